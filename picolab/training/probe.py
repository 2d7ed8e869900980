"""Each rank's own gradient norm, from before the gradients are summed: `observers=[Probe()]`.

A gradient that one rank blew up, or filled with NaN, is every rank's after the all-reduce, and then
nobody can say whose it was. So the norm is taken of a bucket before it travels. It is a pass over
all gradients, which is about what AdamW's reading of them costs, and so nobody pays for it who has
not asked. (A rank's own loss costs nothing, and is in every step's event.)
"""

import math
from collections.abc import Sequence

import torch

from picolab.monitoring import Observer
from picolab.parallel.buckets import GradientBuckets


class Probe(Observer):
    """Tells `own_grad_norm` with each step."""

    def __init__(self):
        self._squares: list[torch.Tensor] = []

    def start(self, run) -> None:
        buckets = [p for p in run.parallel.placements if isinstance(p, GradientBuckets)]
        summed = {parameter for placement in buckets for parameter in placement.watched}
        for placement in buckets:
            placement.before_sum = self._look
        self._others = [p for p in run.model.parameters() if p not in summed]

    @torch.no_grad()
    def _look(self, gradients: Sequence[torch.Tensor]) -> None:
        self._squares.append(_square(gradients))

    @torch.no_grad()
    def gradients(self, run) -> None:
        scaled = sum(square.item() for square in self._squares) / run.precision.scale**2
        rest = [p.grad for p in self._others if p.grad is not None]
        self._squares.clear()
        run.own_grad_norm = math.sqrt(scaled + (_square(rest).item() if rest else 0.0))


def _square(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    norms = torch._foreach_norm([gradient.detach() for gradient in gradients])
    return torch.stack(norms).double().square().sum()
