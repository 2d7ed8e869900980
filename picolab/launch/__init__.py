"""From a notebook cell to N ranks and back.

`run` starts fresh ranks from a warm server and returns what they returned; `Job` is the same in
the background; a failure names the rank that caused it. Needs no torch itself (the ranks do)."""

from picolab.launch.expect import expect_failure
from picolab.launch.export import collect, export
from picolab.launch.failures import RankFailure, RankHang, Stopped
from picolab.launch.job import Job, jobs, run
from picolab.launch.result import RunResult
from picolab.launch.rundirs import RunDirectoryError
from picolab.launch.rundirs import root as runs_root
from picolab.launch.server import warm
from picolab.launch.world import World
from picolab.monitoring.events import emit

__all__ = [
    "Job",
    "RankFailure",
    "RankHang",
    "RunDirectoryError",
    "RunResult",
    "Stopped",
    "World",
    "collect",
    "emit",
    "expect_failure",
    "export",
    "jobs",
    "run",
    "runs_root",
    "warm",
]
