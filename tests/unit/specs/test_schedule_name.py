"""Names of schedules: what they say about stages and micro-batches, and what is refused.

Wrong versions these catch: a number of micro-batches that is offered and does not work, a placement
that leaves a rank without its share.
"""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picolab.specs import TrainConfig
from picolab.specs.schedule_name import SCHEDULES, ScheduleName

names = st.sampled_from((*SCHEDULES, "interleaved-v3", "interleaved-v12")).map(ScheduleName.parse)
ranks = st.integers(1, 9)


@given(names, ranks)
def test_every_rank_has_as_many_stages(name, ranks):
    placement = name.stage_ranks(ranks)
    assert Counter(placement) == dict.fromkeys(range(ranks), name.stages_a_rank)
    assert ScheduleName.parse(str(name)) == name


def test_round_and_round_or_there_and_back():
    assert ScheduleName.parse("interleaved").stage_ranks(3) == (0, 1, 2, 0, 1, 2)
    assert ScheduleName.parse("interleaved-v2") == ScheduleName.parse("interleaved")
    for name in ("zb-v", "dualpipe-v"):
        assert ScheduleName.parse(name).stage_ranks(3) == (0, 1, 2, 2, 1, 0)
    for name in ("1f1b", "gpipe", "zb-h1"):
        assert ScheduleName.parse(name).stage_ranks(3) == (0, 1, 2)


@given(names, ranks, st.integers(1, 30))
def test_the_number_that_is_offered_works_and_is_the_next(name, ranks, least):
    found = name.micro_batches(ranks, least)
    name.check_micro_batches(ranks, found)
    assert found >= least
    for fewer in range(least, found):
        with pytest.raises(ValueError):
            name.check_micro_batches(ranks, fewer)


@pytest.mark.parametrize(
    ("layout", "accumulate", "says"),
    [
        ("pp2:interleaved", 1, "rounds of 2, which do not divide 1; take 2$"),
        ("pp2:interleaved", 5, "rounds of 2, which do not divide 5; take 4 or 6$"),
        ("pp2:dualpipe-v", 3, "dualpipe-v on 2 ranks .* needs 4 micro-batches or more, not 3$"),
    ],
)
def test_a_training_with_micro_batches_that_do_not_work(layout, accumulate, says):
    with pytest.raises(ValueError, match=says):
        TrainConfig(layout=layout, accumulate=accumulate)
    TrainConfig(layout=layout.replace("pp2", "dp2"), accumulate=accumulate)  # no pipeline: no order
