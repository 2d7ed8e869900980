"""Layers dealt out to stages: evenly, by hand, and by what each layer costs.

Wrong versions these catch: a division that leaves a stage empty, one that forgets the head, greedy
filling (which is not the best), rank_stages that gives a rank another's layers.
"""

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picolab import costs
from picolab.specs import Layout


def all_divisions(n: int, stages: int):
    for cuts in combinations(range(1, n), stages - 1):
        ends = (0, *cuts, n)
        yield tuple(stop - start for start, stop in pairwise(ends))


def cost_of(division, layers, first, last):
    found, start = [], 0
    for size in division:
        found.append(sum(layers[start : start + size]))
        start += size
    found[0] += first
    found[-1] += last
    return found


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=9),
    st.integers(1, 5),
    st.integers(0, 40),
    st.integers(0, 40),
)
def test_no_division_is_better(layers, stages, first, last):
    stages = min(stages, len(layers))
    found = costs.balanced_stages(layers, stages, first=first, last=last)
    assert sum(found) == len(layers) and min(found) >= 1

    def key(division):
        of = cost_of(division, layers, first, last)
        return max(of), sum(cost * cost for cost in of)

    assert key(found) == min(key(d) for d in all_divisions(len(layers), stages))


@given(st.integers(1, 30), st.integers(1, 8))
def test_equal_layers_are_dealt_out_evenly(layers, stages):
    stages = min(stages, layers)
    even = tuple(map(len, costs.stage_layers(layers, stages)))
    assert costs.balanced_stages([1] * layers, stages) == even


def test_a_large_head_and_what_greedy_would_do():
    assert costs.balanced_stages([1] * 8, 3, last=3) == (4, 3, 1)
    forgotten = costs.balanced_stages([1] * 8, 3)  # mutant: without the head
    assert max(cost_of((4, 3, 1), [1] * 8, 0, 3)) == 4 < max(cost_of(forgotten, [1] * 8, 0, 3))
    assert costs.balanced_stages([4, 1, 1, 4, 1, 1], 2) == (3, 3)


def test_by_hand():
    assert costs.stage_layers(8, 3, (3, 3, 2)) == [range(0, 3), range(3, 6), range(6, 8)]
    for wrong in ((3, 3), (3, 3, 3), (8, 0, 0)):
        with pytest.raises(ValueError, match="does not deal out 8 layers to 3 stages"):
            costs.stage_layers(8, 3, wrong)


def test_the_stages_of_a_rank():
    folded = Layout.parse("pp2:zb-v/1-2-3-1")
    assert costs.rank_stages(7, folded, 0) == {0: range(0, 1), 3: range(6, 7)}
    assert costs.rank_stages(7, folded, 1) == {1: range(1, 3), 2: range(3, 6)}
    looped = Layout.parse("pp2:interleaved")
    assert costs.rank_stages(7, looped, 0) == {0: range(0, 2), 2: range(4, 6)}
    assert costs.rank_stages(7, Layout(dp=2, schedule="zb-v"), 0) == {0: range(7)}
