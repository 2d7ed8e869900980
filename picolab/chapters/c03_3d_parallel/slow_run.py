"""A run with something wrong, for section 4. Guess before you read on here.

    pico.train(layout="dp2pp2", ..., observers=[pico.chapters.c03_3d_parallel.patient()])

Rank 3, the second stage of the second replica, takes twice as long for each micro-batch as its twin
in the first replica: as a card does that is hot, or has a neighbour on its node. The time is slept,
as the stages' own is (`stage_cost_s`), so that nothing else changes.
"""

import time

from picolab import comm
from picolab.debug.faults import patched
from picolab.monitoring import Observer
from picolab.parallel.pipeline import PipelineParallelOptimizer

SLOWER = 1.0
RANK = 3


class Patient(Observer):
    """See above; in every other rank it does nothing."""

    def begin(self, run) -> None:
        if comm.mesh().rank("world") == RANK:
            cost_s = sum(run.config.stage_cost_s)
            run.until_end(_slowed(SLOWER * cost_s))


def _slowed(extra_s: float):
    """Each forward takes so much longer, for its backward as well."""
    real = PipelineParallelOptimizer._forward

    def slower(self, *args):
        time.sleep(extra_s)
        return real(self, *args)

    return patched(PipelineParallelOptimizer, "_forward", slower)
