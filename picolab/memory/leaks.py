"""Tensors that outlive their step, by the line that made them.

    pico.train(..., observers=[LeakFinder()])           # an event "leaks", and a table

A step's tensors are over when the next one is: activations are used up, gradients replaced. What is
then still alive, and was not there before, somebody holds: a list of losses with their graphs, a
cache, a hook's closure, or a circle of objects that Python frees only when its collector comes by.
So a `Watch` goes with some steps and notes, for each storage that is born, the line that called
torch. At the end, what was born in one step and is alive a whole step later is counted by line.
Then the collector runs: what goes with it was held by a circle only.

A line is a leak if two steps at least have left something there; a tensor that each step replaces
is none. Twin: torch's memory snapshot, which shows stacks of what is alive, on a GPU.
"""

import gc
import sys
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import torch

from picolab.memory.monitor import RunWatch, call_copies, call_states
from picolab.memory.watch import Life
from picolab.monitoring import Observer, events

_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)
NOT_LEAKS = ("parameters", "gathered", "copies", "gradients", "optimizer", "pool")


class Leak(NamedTuple):
    """What one line left behind."""

    file: str
    line: int
    function: str
    nbytes: int
    tensors: int
    circle: bool
    """Only a circle of objects holds it: a full garbage collection frees it."""

    def __str__(self) -> str:
        why = "held by a circle of objects" if self.circle else "still referred to"
        return (
            f"{self.file}:{self.line} ({self.function}): {self.nbytes:,} bytes in {self.tensors} "
            f"tensors, {why}"
        )


class LeakFinder(Observer):
    """Looks for what steps leave behind: `steps` of them, after `skip` that warm up. `found` has
    the leaks, the largest first, on each rank; the run's events have them too.

    With it a run with a leak names its line; without it, memory grows.
    """

    def __init__(self, steps: int = 3, skip: int = 1):
        if steps < 3 or skip < 0:
            raise ValueError(
                f"steps is {steps} and skip {skip}; three steps are the least: two that may leave "
                "something, and one to see whether it stays"
            )
        self.steps, self.skip = steps, skip
        self.found: list[Leak] = []
        self._watch: _LineWatch | None = None

    def start(self, run) -> None:
        run.until_end(closing(self))
        self._first = run.first_step + self.skip
        if self.skip == 0:
            self._begin(run)

    def gradients(self, run) -> None:
        if self._watch is not None:
            call_copies(self._watch, run.model)

    def step(self, run, report) -> None:
        if report.step == self._first - 1:
            self._begin(run)
        elif self._watch is not None:
            call_states(self._watch, run.optimizer)
            self._watch.step += 1
            if self._watch.step == self.steps:
                self._end()

    def end(self, run) -> None:
        if self._watch is not None:  # a shorter run
            self._end()

    def close(self) -> None:
        """The run is over, however it ended: nothing is watched any more."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.__exit__(None, None, None)

    def _begin(self, run) -> None:
        self._watch = _LineWatch(run).__enter__()

    def _end(self) -> None:
        watch, self._watch = self._watch, None
        suspects = [
            (life, life.nbytes, step, where)
            for life, (step, where) in watch.born.items()
            if life.nbytes and life.category not in NOT_LEAKS and step < watch.step - 1
        ]
        gc.collect()  # of what dies here nobody else knew
        watch.__exit__(None, None, None)
        by_line: dict[tuple, list[tuple[int, int]]] = {}
        for life, nbytes, step, where in suspects:
            by_line.setdefault((*where, life.nbytes == 0), []).append((step, nbytes))
        self.found = [
            Leak(*key[:3], sum(nbytes for _, nbytes in left), len(left), circle=key[3])
            for key, left in by_line.items()
            if len({step for step, _ in left}) > 1
        ]
        self.found.sort(key=lambda leak: -leak.nbytes)
        events.write("leaks", found=[leak._asdict() for leak in self.found])


class _LineWatch(RunWatch):
    """Knows where each storage was born."""

    def __init__(self, run):
        super().__init__(run)
        self.step = 0
        self.born: dict[Life, tuple[int, tuple[str, int, str]]] = {}

    def see(self, tensor: torch.Tensor, before: bool = False) -> Life | None:
        known = len(self._lives)
        life = super().see(tensor, before)
        if life is not None and len(self._lives) > known and not before:
            self.born[life] = self.step, _who()
        return life

    def _dies(self, key: int, life: Life) -> None:
        super()._dies(key, life)
        self.born.pop(life, None)


def _who() -> tuple[str, int, str]:
    """The line that called torch."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_TORCH, _HERE)):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
