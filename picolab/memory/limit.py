"""A limit of live tensor bytes: a device's memory, on a machine that has more.

    pico.train("tiny", observers=[MemoryLimit("16MB")])

A GPU refuses an allocation; a CPU goes on until the system kills the process. With this observer a
rank fails as it would on a device of that size: a watch (watch.py) knows what is alive after each
operator, and raises where the sum passes the limit. It is the error that torch raises on a GPU, so
whoever catches one catches the other, and the trainer says of both what would have fitted
(advice.py). Each operator passes through Python meanwhile, for all of the run: it is slow.
"""

from contextlib import closing

import torch

from picolab.memory.monitor import RunWatch, call_states
from picolab.memory.watch import CATEGORIES, Life
from picolab.monitoring import Observer
from picolab.show.table import bytes_text
from picolab.specs.train_config import bytes_of


class LimitPassed(torch.OutOfMemoryError):
    """More is alive than the limit. `.limit`, and what was there: `.alive`, by category."""

    def __init__(self, limit: int, live: int, alive: dict[str, int]):
        super().__init__(limit, live, alive)
        self.limit, self.live, self.alive = limit, live, alive

    def __str__(self) -> str:
        of = ", ".join(f"{bytes_text(nbytes)} {name}" for name, nbytes in self.alive.items())
        return (
            f"out of memory: {self.live:,} bytes of tensors are alive, and the limit is "
            f"{self.limit:,} ({of})"
        )


class MemoryLimit(Observer):
    """Ends a run whose live tensor bytes pass a limit, on any rank; its numbers are the same.

    limit: bytes of a rank, such as "16MB" or 16_000_000.
    With it a rank that needs more fails with LimitPassed; without it, it takes what it needs.
    """

    def __init__(self, limit: int | str):
        self.limit = bytes_of("limit", limit)
        self.peak = 0
        """The most that was alive, once the run is over."""
        self._watch: LimitWatch | None = None

    def start(self, run) -> None:
        run.until_end(closing(self))
        watch = LimitWatch(run, self.limit)
        watch.__enter__()
        self._watch = watch

    def end(self, run) -> None:
        self.close()  # what a report gathers afterwards is no part of training

    def close(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.__exit__(None, None, None)
            self.peak = watch.peak


class LimitWatch(RunWatch):
    """Keeps no history, and raises when too much is alive."""

    def __init__(self, run, limit: int):
        super().__init__(run)
        self.limit, self.peak = limit, 0
        self._counts = False

    def __enter__(self) -> "LimitWatch":
        super().__enter__()
        self._counts = True
        try:
            self._check()  # what is there before the first step
        except LimitPassed:
            self.__exit__(None, None, None)
            raise
        return self

    def _change(self, life: Life, grown: int) -> None:
        self.live += grown
        self.peak = max(self.peak, self.live)
        if grown > 0:  # (a death is told by Python, which takes no error from there)
            self._check()

    def _check(self) -> None:
        if self._counts and self.live > self.limit:
            self._counts = False  # it is said once, and then the step is left
            raise LimitPassed(self.limit, self.live, self._alive())

    def _alive(self) -> dict[str, int]:
        """By category, as far as it is known in mid-step."""
        call_states(self, self.run.optimizer)
        self._keep(self._born)  # in a forward, what backward would have found
        found = dict.fromkeys(CATEGORIES, 0)
        for _, life in self._lives.values():
            found[life.category] += life.nbytes
        return {name: nbytes for name, nbytes in found.items() if nbytes}
