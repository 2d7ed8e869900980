"""What this chapter's runs are watched and disturbed by: observers, each for one question.

Litter       circles of objects in each step, in a program that has many objects already
Collecting   Python's collector by each rank's own appointment: full passes, apart from each other
"""

import gc
import time

from picolab import comm
from picolab.memory.scheduler import Cost, Measured
from picolab.monitoring import Observer, events

COLLECTED = "collected"
HISTORY = 300_000
"""Objects of a program that has imported and read things: each full pass looks at all of them."""


class Litter(Observer):
    """So many circles a step, on every rank."""

    def __init__(self, objects: int):
        if not isinstance(objects, int) or objects < 0:
            raise ValueError(f"objects is {objects!r}; it is a number of circles, from 0")
        self.objects = objects

    def start(self, run) -> None:
        self.history = [[i] for i in range(HISTORY)]

    def gradients(self, run) -> None:
        for _ in range(self.objects):
            circle = []
            circle.append(circle)

    def end(self, run) -> None:
        self.history = []


class Collecting(Observer):
    """On rank r after the steps r * apart, r * apart + every, and so on; never otherwise."""

    def __init__(self, every: int, apart: int):
        if every < 1 or apart < 0:
            raise ValueError(f"every is {every} and apart {apart}; they are steps, from 1 and 0")
        self.every, self.apart = every, apart

    def start(self, run) -> None:
        self._was_on = gc.isenabled()
        gc.disable()
        self._rank = comm.mesh().rank("world")

    def gradients(self, run) -> None:
        if (run.step - self._rank * self.apart) % self.every == 0:
            began = time.perf_counter()
            gc.collect()
            events.write(COLLECTED, step=run.step, seconds=time.perf_counter() - began)

    def end(self, run) -> None:
        if self._was_on:
            gc.enable()


def plan_of(result) -> dict:
    """Of rank 0. ValueError for a run without a budget."""
    found = [of for of in result.events if of.kind == "memory plan" and of.rank == 0]
    if not found:
        raise ValueError("this run has no plan: train with memory_budget='40MB', say")
    return found[0].data


def example_blocks() -> Measured:
    """Eight blocks, every second one larger and slower to run again."""
    blocks = []
    for i in range(8):
        size, slow = (90, 2.0) if i % 2 else (50, 1.0)
        mb = {
            "keep": (size, size, 0.0),
            "selective": (size - 28, size, 0.35 * slow),
            "recompute": (4, size, slow),
            "offload": (0, size // 2, size / 60),
        }
        blocks.append(
            {
                choice: Cost(kept * 10**6, work * 10**6, ms * 1e-3)
                for choice, (kept, work, ms) in mb.items()
            }
        )
    return Measured(tuple(blocks), end=40 * 10**6, pool=60 * 10**6)
