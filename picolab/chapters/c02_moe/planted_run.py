"""What section 3 does to a run, so that two cores can show what many devices do.

    pico.train("tiny-moe", "dp2ep2", observers=[pico.chapters.c02_moe.planted(hot=2, row_s=1e-5)])

hot     so many experts, the first of each layer, are favoured from the start: their rows of the
        router are longer, so their scores are more often the highest
row_s   an expert takes so many seconds longer for each row, and twice as long in backward. The time
        is slept, as a stage's is in `stage_cost_s`: ranks that share a core would take turns, and
        sleepers overlap as devices do
"""

import time

import torch

from picolab.debug.faults import patched
from picolab.moe import SwiGLUExperts, expert_layers
from picolab.monitoring import Observer

LONGER = 3.0


class Planted(Observer):
    """See above. It changes the first step's weights and the time of every step, and no rule."""

    def __init__(self, hot: int = 0, row_s: float = 0.0):
        if not isinstance(hot, int) or hot < 0:
            raise ValueError(f"hot is {hot!r}; it is a number of experts, 0 or more")
        if not isinstance(row_s, int | float) or row_s < 0:
            raise ValueError(f"row_s is {row_s!r}; it is seconds for a row, 0 or more")
        self.hot, self.row_s = hot, row_s

    def begin(self, run) -> None:
        if self.row_s:
            run.until_end(_priced(self.row_s))

    @torch.no_grad()
    def start(self, run) -> None:
        for layer in expert_layers(run.model):
            layer.router.weight[: self.hot] *= LONGER


def _priced(row_s: float):
    real = SwiGLUExperts.forward

    def forward(self, x_AD, rows):
        return _Sleep.apply(real(self, x_AD, rows), row_s * len(x_AD))

    return patched(SwiGLUExperts, "forward", forward)


class _Sleep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, seconds):
        ctx.seconds = seconds
        time.sleep(seconds)
        return y.view_as(y)

    @staticmethod
    def backward(ctx, dy):
        time.sleep(2 * ctx.seconds)
        return dy, None
