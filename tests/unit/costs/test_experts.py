"""Experts in closed form, against choices that are really drawn and against the step's ledger.

Catches a share over the wrong total, a capacity that is rounded down, choices that are drawn with
replacement, and a pass that is forgotten.
"""

import random

import pytest

from picolab import costs
from picolab.specs import ModelConfig

TINY = ModelConfig.preset("tiny-moe")


def drawn(tokens: int, experts: int, k: int, seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [draw.sample(range(experts), k) for _ in range(tokens)]


def loads(choices: list[list[int]], experts: int) -> list[int]:
    counts = [0] * experts
    for of_token in choices:
        for expert in of_token:
            counts[expert] += 1
    return counts


def test_capacity_is_rounded_up():
    assert costs.expert_capacity(4096, 64, 2, 1.25) == 160
    assert costs.expert_capacity(10, 4, 1, 1.0) == 3
    assert costs.expert_capacity(8, 8, 8, 1.0) == 8


@pytest.mark.parametrize("tokens, experts, k, factor", [(512, 16, 2, 1.0), (256, 8, 1, 1.25)])
def test_what_is_dropped_by_chance(tokens, experts, k, factor):
    room = costs.expert_capacity(tokens, experts, k, factor)
    shares = [
        sum(max(0, load - room) for load in loads(drawn(tokens, experts, k, seed), experts))
        / (tokens * k)
        for seed in range(60)
    ]
    mean = sum(shares) / len(shares)
    spread = (sum((s - mean) ** 2 for s in shares) / len(shares) ** 2) ** 0.5
    formula = costs.dropped_share(tokens, experts, k, factor)
    assert abs(mean - formula) < 4 * spread + 1e-12
    # Per token instead of per choice, it would be k times as much.
    assert k == 1 or abs(mean - k * formula) > 4 * spread


def test_what_is_dropped_at_the_ends():
    assert costs.dropped_share(64, 8, 2, 8 / 2) == 0
    assert costs.dropped_share(64, 4, 4, 0.5) == pytest.approx(0.5)
    # Everybody drops nearly all where there is room for one.
    assert costs.dropped_share(64, 8, 2, 1 / 16) == pytest.approx(15 / 16, rel=1e-6)


@pytest.mark.parametrize("experts, k, groups", [(16, 4, 4), (12, 3, 6), (8, 8, 4), (8, 1, 8)])
def test_groups_that_a_token_meets(experts, k, groups):
    each = experts // groups
    met = [len({e // each for e in choice}) for choice in drawn(4000, experts, k, seed=1)]
    spread = max(1e-3, (sum(m * m for m in met) / len(met) - (sum(met) / len(met)) ** 2) ** 0.5)
    formula = costs.distinct_groups(experts, k, groups)
    assert abs(sum(met) / len(met) - formula) < 4 * spread / len(met) ** 0.5


def test_experts_that_a_batch_touches():
    touched = [len({e for c in drawn(6, 16, 2, seed) for e in c}) for seed in range(2000)]
    assert sum(touched) / 2000 == pytest.approx(costs.touched_experts(6, 16, 2), rel=0.02)
    assert costs.touched_experts(1, 16, 2) == pytest.approx(2)


def test_bytes_are_those_of_the_ledger():
    """Choices that fall on all experts alike, in the exact count of a step."""
    each = TINY.seq * TINY.experts_per_token // TINY.experts * TINY.layers
    routed = [[each] * TINY.experts for _ in range(4)]
    ledger = costs.step_ledger(TINY, "dp4ep4", micro_batch=1, routed=routed)
    payload = sum(
        expected.payload_bytes
        for (op, axis, reason), expected in ledger.items()
        if (op, axis) == ("all_to_all", "ep") and "rows for each expert" not in reason
    )
    sent = costs.ring_bytes("all_to_all", payload, 4)
    formula = costs.expert_parallel_bytes(TINY, 4, TINY.seq, dtype="fp32")
    assert sent == TINY.layers * formula


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: costs.expert_capacity(8, 4, 5, 1.0), "cannot choose 5 of 4 different experts"),
        (lambda: costs.distinct_groups(10, 2, 3), "3 groups do not divide 10 experts"),
        (lambda: costs.touched_experts(8, 4, 0), "cannot choose 0 of 4"),
    ],
)
def test_what_cannot_be(call, says):
    with pytest.raises(ValueError, match=says):
        call()
