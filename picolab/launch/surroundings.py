"""What a rank finds around it when it begins: what a process freshly started by the kernel would.

A rank is forked from the warm server, and a fork inherits from *its* parent: the environment, the
folder and the random state of a process that was started minutes ago and knows nothing of what the
notebook has done since. So the kernel notes its own surroundings when `run` is called, and the
rank makes them its own before it does anything else.

    taken over   environment (what was deleted is gone), working directory, umask, resource limits,
                 the cores it may use, sys.path, sys.argv, time zone
    made new     random state: torch and numpy are seeded from fresh entropy (Python's `random`
                 does so itself at a fork); standard input is empty
    left alone   warnings filters, locale, signal handlers, recursion limit, niceness: a rank has
                 those of a fresh Python, not what the notebook made of its own. What Python and
                 its libraries read once, when they are loaded (PYTHONHASHSEED, PYTHONWARNINGS,
                 LANG, TORCH_LOGS), is as it was when the server started

Files that the kernel has open are not open in a rank. Torch computes with one thread in each rank
(`rank.py`), whatever the kernel's number is."""

import os
import re
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_LIMITS = [value for name, value in vars(resource).items() if name.startswith("RLIMIT_")]


@dataclass(frozen=True)
class Surroundings:
    environment: dict[str, str]
    directory: str
    umask: int
    limits: dict[int, tuple[int, int]]
    cores: set[int] | None  # None: this system cannot say
    path: list[str]
    argv: list[str]

    @classmethod
    def now(cls) -> "Surroundings":
        """Those of this process. ValueError if its working directory has been removed."""
        try:
            directory = os.getcwd()
        except FileNotFoundError:
            raise ValueError(
                "the working directory of this process has been removed, so ranks cannot start "
                "in it; go to one that exists: os.chdir(...)"
            ) from None
        return cls(
            environment=dict(os.environ),
            directory=directory,
            umask=_umask(),
            limits={number: resource.getrlimit(number) for number in _LIMITS},
            cores=os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None,
            path=list(sys.path),
            argv=list(sys.argv),
        )

    def take_over(self) -> None:
        """In a rank: make them its own."""
        os.environ.clear()
        os.environ.update(self.environment)
        time.tzset()
        os.chdir(self.directory)
        os.umask(self.umask)
        for number, limits in self.limits.items():
            if resource.getrlimit(number) != limits:
                resource.setrlimit(number, limits)
        if self.cores is not None:
            os.sched_setaffinity(0, self.cores)
        sys.path[:], sys.argv[:] = self.path, self.argv


def keep_standard_files() -> None:
    """Under `nohup script <&-`, or in a service, 0, 1 or 2 may be closed, and the next file opened
    would have that number: a pipe to the server, which a rank closes when it empties its standard
    input. So nothing stands there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # the least number that is free; the server inherits it
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def draw_anew() -> None:
    """In a rank: random numbers of its own. Without this, ranks that each draw their weights would
    all draw the same ones, and a step that forgets its all-reduce would look right."""
    for name in ("torch", "numpy.random"):
        if name in sys.modules:  # one that is loaded later seeds itself
            sys.modules[name].seed()


def _umask() -> int:
    """Read, where the system tells it; else by setting it, to the strictest for a moment."""
    try:
        told = re.search(r"^Umask:\s*([0-7]+)$", Path("/proc/self/status").read_text(), re.M)
    except OSError:
        told = None
    if told:
        return int(told[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
