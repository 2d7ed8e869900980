"""Debugging parallel training: is it right, and if not, what is wrong?

    dry_run.py     one process as rank 0 of thousands: shapes and counts, no values
    oracle.py      verify(layout): equal to one process, or which reduction is missing
    faults.py      the fault catalogue: real bugs that can be switched on (its entries are in
                   reduction_faults.py, zero_faults.py, expert_faults.py and
                   other_faults.py)
    hang.py        who waits for whom, and why: diagnose(run)
    step_trace.py  one step, module by module: where two runs or two ranks part ways
    run_faults.py  what goes wrong with a run whose program is right, for the monitors to find
    awkward.py     the model and the batch in which bugs have nowhere to hide
    planted.py     choices of experts that no rounding changes, in bf16 and fp16
    observe.py     the two trainings, and what is noted of them
    evidence.py    how what differs is compared
    diagnosis.py   from what differs to the most likely cause (with inside_model.py, samples.py,
                   cause.py)
    verdict.py     what is said about it

With torch missing, importing this room says what to install.
"""

from picolab.specs.needed import torch_needed

try:
    import torch  # noqa: F401
except ImportError as error:
    raise torch_needed("picolab.debug needs", error) from error

from picolab.debug import (  # noqa: F401 (they fill the catalogue)
    expert_faults,
    other_faults,
    reduction_faults,
    zero_faults,
)
from picolab.debug.cause import Cause
from picolab.debug.dry_run import DryRun, dry_run
from picolab.debug.evidence import Evidence
from picolab.debug.faults import CATALOGUE, Fault
from picolab.debug.hang import diagnose
from picolab.debug.oracle import judge, main_verify, verify
from picolab.debug.run_faults import InRun, Pace
from picolab.debug.step_trace import StepTrace, compare_steps, trace_step
from picolab.debug.verdict import Row, Verdict
from picolab.monitoring.who_waits import Diagnosis

__all__ = [
    "CATALOGUE",
    "Cause",
    "Diagnosis",
    "DryRun",
    "Evidence",
    "Fault",
    "InRun",
    "Pace",
    "Row",
    "StepTrace",
    "Verdict",
    "compare_steps",
    "diagnose",
    "dry_run",
    "judge",
    "main_verify",
    "trace_step",
    "verify",
]
