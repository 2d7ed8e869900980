"""A run beyond this notebook: write the payload here, start it there, read what it left.

    pico.launch.export(fn, "runs/x", arg)                            # writes runs/x/payload.pkl
    torchrun --nproc-per-node 4 -m picolab.launch.worker runs/x      # on each machine
    result = pico.launch.collect("runs/x")                           # a RunResult, or RankFailure

The run directory (on a shared disk, if there are several machines) carries the payload in, and
events, results and errors out, in the format of a run at home: `pico.dashboard("runs/x")` watches
it, and a failure is attributed by the same rules, where elastic alone names whichever rank it heard
of first.

The payload is the function, its arguments, what it uses, and the cells in which it was written; no
environment. Payload and results are pickles, which run code when they are read: both are written
for this account alone, and refused where another one could have written them.
"""

import json
from pathlib import Path

from picolab.launch import failures, rundirs
from picolab.launch import payload as payloads
from picolab.launch.failures import RankFailure, RankReport
from picolab.launch.result import RunResult
from picolab.monitoring import History
from picolab.show.files import write_beside


def export(fn, run_dir: str | Path, *args, **kwargs) -> str:
    """Write the payload of `fn(*args, **kwargs)`; returns the command that runs it on one machine.

    Raises ValueError if the function cannot be sent, RunDirectoryError if the folder cannot be
    written.
    """
    blob = payloads.pack(fn, args, kwargs)
    directory = rundirs.create(getattr(fn, "__name__", "run"), {"state": "exported"}, run_dir)
    write_beside(directory / "payload.pkl", blob, mode=0o600)
    for old in [*directory.glob("result.*.pkl"), *directory.glob("error.*.json")]:
        old.unlink()
    for old in directory.glob("events.*.jsonl"):
        old.unlink()
    return f"torchrun --nproc-per-node 4 -m picolab.launch.worker {directory}"


def collect(run_dir: str | Path) -> RunResult:
    """What the ranks of an exported run left: their results, or the RankFailure that ended it.

    Raises ValueError while ranks are missing.
    """
    directory = Path(run_dir)
    world = rundirs.describe(directory).get("world_size")
    if not world:
        raise ValueError(
            f"no rank has started in {directory} yet; start it with torchrun, see export"
        )
    errors = [json.loads(path.read_text()) for path in sorted(directory.glob("error.*.json"))]
    if errors:
        reports = [
            RankReport(e["rank"], e["kind"], e["what"], e["t"], e["traceback"]) for e in errors
        ]
        raise RankFailure(*failures.choose(reports))
    missing = [rank for rank in range(world) if not (directory / f"result.{rank}.pkl").exists()]
    if missing:
        raise ValueError(f"of {world} ranks, {missing} have left no result in {directory} yet")
    values = [
        payloads.unpack_result(rundirs.read_pickle(directory / f"result.{rank}.pkl"))
        for rank in range(world)
    ]
    return RunResult(values, History.read(directory), run_dir=directory, backend="torchrun")
