"""`pico.diagnose(run)`: who waits for whom, of whatever one has of a run.

    pico.diagnose(job)            # that hangs, while it hangs
    pico.diagnose(error)          # a RankHang or RankFailure that was caught
    pico.diagnose(result)         # of a run that ended: did all ranks do the same?
    pico.diagnose("20261124-...") # a run directory, or its name: `picolab debug RUN`

What is said and why is monitoring/who_waits.py's; here is only where each of these keeps its
evidence. Of a run that is over it is in the run directory, where the launcher put it before it
killed the ranks.
"""

from pathlib import Path
from typing import Any

from picolab.launch import Job, RankFailure, rundirs
from picolab.monitoring.who_waits import Diagnosis, Told, of_folder, of_going_on


def diagnose(run: Any) -> Diagnosis:
    """run: a `Job`, a result with a `run_dir`, a `RankFailure`, or a run directory (its path, or
    its name in `picolab runs ls`). ValueError for anything else, and where there is no directory.
    """
    if isinstance(run, Job) and not run.done:
        tell = lambda: Told.of(run.events, run.world_size)  # noqa: E731
        return of_going_on(lambda ask: run.where(ask).found, tell)
    if isinstance(run, str | Path):
        path = rundirs.find(str(run))
    elif (path := getattr(run, "run_dir", None)) is None:
        if isinstance(run, RankFailure):
            raise ValueError("this failure does not know its run directory; give that instead")
        raise ValueError(
            f"a {type(run).__name__} is no run: give a Job, the result of a run, the RankFailure "
            "that it raised, or its run directory"
        )
    return of_folder(path, going_on=rundirs.is_running(Path(path)))
