"""What no layout of a split can beat, so that most need not be looked at.

A split is (dp, tp, pp, cp, ep); zero, sp, schedule, micro-batch and recomputation are open. For
every sp, micro-batch (of which a step has m) and recomputation two numbers are taken:

    bytes     the mean over the stages: states sharded over all replicas (ZeRO-3), and what layers
              keep, as often as 1F1B keeps it: min(p - r, m) on rank r, the least of all schedules
    seconds   m + (p - 1)/6 micro-batches of work that is spread evenly over the stages: the bubble
              of ZB-V, (p - 1) B/2, is the least of those searched, and B is a third or more

The rank that needs most needs at least the mean; the slowest rank takes at least the mean. What is
left out (the loss, gathered parameters, sends, gradients' way, the optimizer) is never negative.

A split is dead if the bytes fit for none, and cannot be among the ten best if the seconds of those
that fit are more than the tenth best's. A test holds both to every candidate of small worlds.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from picolab import costs
from picolab.planner.costing import Costing
from picolab.planner.parts import uniform
from picolab.planner.verdict import MICRO_BATCHES


class Split(NamedTuple):
    dp: int
    tp: int
    pp: int
    cp: int
    ep: int


class Bound(NamedTuple):
    """Of one sp, micro-batch and recomputation in a split."""

    sp: bool
    micro_batch: int
    recompute: str
    bytes: float
    seconds: float


def bounds(costing: Costing, split: Split, room: float = math.inf) -> Iterator[Bound]:
    """room: then only what may be the fastest is worked out. What needs more bytes is infinitely
    slow, and recomputing more than what fits already is left out, since it is never faster."""
    dp, tp, pp, cp, ep = split
    sequences, whole = costing.request.global_batch // dp, costing.whole()
    held = costing.parameters(whole, tp, ep)
    numbers = held.dense / (dp * cp) + held.experts / (dp * cp // ep)
    states = numbers / pp * sum(costing.practice.recipe.values())
    layers = costing.config.layers // pp
    for micro_batch in MICRO_BATCHES:
        if sequences % micro_batch:
            continue
        m = sequences // micro_batch
        waiting = sum(min(pp - rank, m) for rank in range(pp)) / pp
        steps = m + ((pp - 1) / 6 if costing.turns == 1 else 0)
        for sp in (False, True) if tp > 1 else (False,):
            for recompute in costs.RECOMPUTE:
                kept = costing.least_layer(tp, sp, cp, micro_batch, recompute)
                needed, seconds = states + waiting * layers * kept, math.inf
                if needed <= room:
                    mix = uniform(whole, recompute)
                    micro = costing.micro(whole, mix, tp, sp, cp, ep, micro_batch)
                    seconds = micro.total / pp * steps * costing.turns
                yield Bound(sp, micro_batch, recompute, needed, seconds)
                if needed <= room < math.inf:
                    break
