"""What no layout of a split can beat, so that most need not be looked at.

A split is (dp, tp, pp, cp); zero, sp, ep, schedule, micro-batch and recomputation are open. Both
bounds leave out what is never negative, and take the best of what is open:

    seconds   one micro-batch of the whole batch (fixed costs are paid once), nothing recomputed,
              work spread evenly over the stages, no bubble, no optimizer, gradients for nothing
    bytes     states sharded over all replicas (ZeRO-3) and spread evenly over the stages, and of
              activations one layer

A split whose bytes do not fit is dead; one whose seconds are more than the tenth best's cannot be
among the ten best. Safe by construction, and held to every candidate of small worlds by a test.
"""

import math
from typing import NamedTuple

from picolab import costs
from picolab.planner.costing import Costing


class Split(NamedTuple):
    dp: int
    tp: int
    pp: int
    cp: int


def least_seconds(costing: Costing, split: Split) -> float:
    dp, tp, pp, cp = split
    # Spread as far as they go, experts cost least to read; their traffic is left out.
    ep = math.gcd(dp * cp, costing.config.experts) if costing.config.experts else 1
    sequences = costing.request.global_batch / dp
    found = []
    for sp in (False, True) if tp > 1 else (False,):
        micro = costing.micro(costing.whole(), tp, sp, cp, ep, sequences, "none")
        found.append(micro.total - micro.ep)
    return min(found) / pp * costing.turns


def least_bytes(costing: Costing, split: Split) -> float:
    dp, tp, pp, cp = split
    held = costing.parameters(costing.whole(), tp, 1).total
    states = held * sum(costing.practice.recipe.values()) / (pp * dp * cp)
    layers = {0, costing.config.layers - 1}
    activations = min(
        costs.layer_activation_bytes(
            costing.config, layer, seq=costing.request.seq, tp=tp, sp=True, cp=cp,
            recompute="selective", dtype=costing.practice.dtype,
            attention=costing.practice.attention, dropout=costing.practice.dropout,
        )
        for layer in layers
    )  # fmt: skip
    return states + activations
