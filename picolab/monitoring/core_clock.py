"""How long this thread has been ready to run while no core was free.

Four ranks on two cores take turns, and whoever's turn it is not looks slow although it is not: what
it needs is a core. The wall time of a piece of work less its CPU time is

    waiting for a core  +  asleep (time.sleep, a lock, the disk)

and only the first of the two is a core's fault. Linux counts it for each thread (its scheduler's
run delay, the second number in /proc/thread-self/schedstat, in nanoseconds), and so it is read
there: 1 to 3 microseconds. Where the system does not tell (macOS), `read` returns None, and the
time stays with what was being done.
"""

import os
from pathlib import Path

_PLACE = Path("/proc/thread-self/schedstat")


class CoreClock:
    """Of the thread that reads it first."""

    def __init__(self) -> None:
        self._file: int | None = None
        self._told = True

    def read(self) -> float | None:
        """Seconds waited for a core so far; None where the system does not tell."""
        if self._file is None and self._told:
            self._told = _PLACE.exists()
            if self._told:
                self._file = os.open(_PLACE, os.O_RDONLY | os.O_CLOEXEC)
        if self._file is None:
            return None
        return int(os.pread(self._file, 96, 0).split()[1]) / 1e9
