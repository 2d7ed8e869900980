"""`picolab demo monitoring` to its end, on a run that is too short for its fault; and a fault that
ends. (That a slow rank is found is no promise on a busy machine: tests/benchmarks/detection.py.)
"""

import pytest

from picolab import comm
from picolab.debug.monitoring_demo import monitoring_demo
from picolab.debug.run_faults import InRun
from picolab.monitoring.alert_summary import summary


def test_the_demo_runs_to_its_end(capsys):
    said = [str(part) for part in monitoring_demo("dp2", rank=1, steps=12)]
    assert "drawn by lot" in said[0]
    assert any("The lot had fallen on rank 1, from step 50 to 110" in part for part in said)
    folder = said[-1].split()[4].rstrip(";")
    assert "by the rules" in repr(summary(folder)) or "as its monitor" in repr(summary(folder))
    with pytest.raises(ValueError, match="dp1 is one rank, which nobody waits for"):
        next(monitoring_demo("dp1"))


def test_a_fault_that_ends(monkeypatch):
    fault = InRun("slow pace", at=3, until=5)
    on = []
    for step in (None, 2, 3, 4, 5):
        monkeypatch.setattr(comm.ledger(), "step", step, raising=False)
        on.append(fault.since)
    assert on == [False, False, True, True, False]
