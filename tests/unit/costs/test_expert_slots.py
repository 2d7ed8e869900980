"""Rows of experts that are on several ranks: each goes to one copy, and every copy has its share.

The wrong versions this file catches: a remainder that always falls on the first holder, rows that
go to the sender's own copy.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picolab import costs
from picolab.costs import ExpertSlots
from picolab.specs import ModelConfig


@st.composite
def slots(draw):
    ranks, each = draw(st.integers(2, 5)), draw(st.integers(1, 3))
    experts = ranks * each
    others = [[e for e in range(experts) if e // each != rank] for rank in range(ranks)]
    copies = [draw(st.lists(st.sampled_from(of), unique=True, max_size=4)) for of in others]
    return ExpertSlots(experts, copies)


@settings(max_examples=80, deadline=None)
@given(slots(), st.data())
def test_each_row_goes_to_one_holder_and_shares_are_even(slots, data):
    ranks = len(slots.held)
    rows = [
        data.draw(st.lists(st.integers(0, 20), min_size=slots.experts, max_size=slots.experts))
        for _ in range(ranks)
    ]
    got = [[0] * ranks for _ in range(slots.experts)]
    for sender, mine in enumerate(rows):
        went = {expert: [] for expert in range(slots.experts)}
        for rank, shares in enumerate(slots.share_out(mine, sender)):
            for expert, share in zip(slots.held[rank], shares, strict=True):
                went[expert] += share
                got[expert][rank] += len(share)
                even = mine[expert] / len(slots.holders[expert])
                assert abs(len(share) - even) < 1
        assert all(sorted(of) == list(range(mine[e])) for e, of in went.items())
    loads = [sum(of) for of in zip(*rows)]
    expected = slots.rows_of_ranks(loads)
    assert sum(expected) == pytest.approx(sum(loads))
    for rank in range(ranks):
        off = abs(sum(got[expert][rank] for expert in range(slots.experts)) - expected[rank])
        several = sum(len(slots.holders[expert]) > 1 for expert in slots.held[rank])
        assert off <= ranks * several


def test_what_is_left_over_falls_on_another_rank_for_each_sender():
    two = ExpertSlots(4, ((), (0,)))
    parts = [
        [
            len(of[0])
            for of in (
                rank[:1] if not i else rank[2:]
                for i, rank in enumerate(two.share_out([5, 0, 0, 0], sender))
            )
        ]
        for sender in (0, 1)
    ]
    assert parts == [[3, 2], [2, 3]]


def test_a_copy_is_as_large_as_its_expert():
    config = ModelConfig.preset("tiny-moe")
    one = 3 * config.hidden * config.expert_ffn
    for rank, copies in ((0, 1), (1, 2)):
        plain = costs.local_parameters(config, "dp2ep2", rank)
        more = costs.local_parameters(config, "dp2ep2", rank, expert_copies="0@1 1@1 4@0")
        added = sum(p.numel for p in more) - sum(p.numel for p in plain)
        assert added == config.layers * copies * one
