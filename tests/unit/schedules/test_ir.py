"""A schedule survives its text form, says what it is, and refuses what is none with a sentence.

Wrong versions these catch: a text that loses the stage of a rank with several, a parser that takes
a line of another rank, a placement nobody checks.
"""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picolab.schedules import SCHEDULES, Action, Schedule, make
from picolab.specs.schedule_name import ScheduleName

INTERLEAVED = """\
looped: 4 stages, 2 micro-batches, on ranks 0 1 0 1
rank 0: 0F0 0F1 2F0 2F1 2B0 2B1 0B0 0B1
rank 1: 1F0 1F1 3F0 3F1 3B0 3B1 1B0 1B1
"""
SPLIT = """\
split: 2 stages, 2 micro-batches
rank 0: F0 F1 B0 B1 W0 W1
rank 1: F0 B0 F1 W0 B1 W1
"""


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 12), st.integers(1, 20))
def test_a_schedule_survives_its_text(name, ranks, least):
    schedule = make(name, ranks, ScheduleName.parse(name).micro_batches(ranks, least))
    assert Schedule.parse(str(schedule)) == schedule
    assert pickle.loads(pickle.dumps(schedule)) == schedule


@pytest.mark.parametrize("text", [INTERLEAVED, SPLIT])
def test_a_text_survives_its_schedule(text):
    assert str(Schedule.parse(text)) == text.strip()


def test_a_rank_with_two_stages():
    schedule = Schedule.parse(INTERLEAVED)
    assert schedule.ranks == 2 and schedule.stages == 4
    assert [schedule.rank_of(stage) for stage in range(4)] == [0, 1, 0, 1]
    assert schedule.actions[0][2] == Action("F", 2, 0)
    assert not schedule.splits_backward and schedule.kinds == "FB"


def test_a_wrong_stage_is_seen_in_the_text():
    """A text that writes only F0 would hide that rank 0 does another's work."""
    schedule = make("gpipe", 2, 1)
    strayed = Schedule("x", 2, 1, ((Action("F", 1, 0),), schedule.actions[1]))
    assert "rank 0: 1F0" in str(strayed) and Schedule.parse(str(strayed)) == strayed


def test_what_an_action_needs_and_feeds_are_inverse():
    schedule = make("1f1b", 3, 2)
    for row in schedule.actions:
        for action in row:
            if target := schedule.feeds(action):
                assert schedule.needs(target) == action
            if source := schedule.needs(action):
                assert schedule.feeds(source) == action
    assert schedule.needs(Action("F", 0, 1)) is None and schedule.needs(Action("B", 2, 1)) is None
    assert schedule.needs(Action("B", 1, 0)) == Action("B", 2, 0)
    assert schedule.needs(Action("W", 1, 0)) is schedule.feeds(Action("W", 1, 0)) is None


def test_the_table_aligns_the_orders():
    lines = repr(make("1f1b", 2, 10)).splitlines()
    assert lines[0] == "1f1b: 2 stages, 10 micro-batches"
    assert lines[1].startswith("rank 0 | F0 F1 B0 F2 B1") and lines[2].startswith("rank 1 | F0 B0")
    assert "backward" in lines[3]
    assert "B the input's gradient" in repr(Schedule.parse(SPLIT))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "begins with a line like"),
        ("gpipe", "begins with a line like"),
        ("gpipe: 2 stages, 1 micro-batch\nrank 0: F0 B0", "a line a stage, and there are 1"),
        ("gpipe: 999999999 stages, 1 micro-batch\nrank 0: F0", "a line a stage"),
        ("gpipe: 1 stage, 0 micro-batches\nrank 0:", "at least one micro-batch"),
        ("gpipe: 1 stage, 1 micro-batch\nrank 1: F0 B0", "here stands 'rank 0"),
        ("gpipe: 1 stage, 1 micro-batch\nrank 0: F0 X0", "'X0' is no action"),
        ("gpipe: 1 stage, 1 micro-batch\nrank 0: F0 B", "'B' is no action"),
        ("x: 2 stages, 1 micro-batch, on ranks 0 0\nrank 0: F0 1B0", "does not say of which stage"),
        ("x: 2 stages, 1 micro-batch, on ranks 0 7\nrank 0: 0F0\nrank 1: 1F0", "placement"),
    ],
)
def test_a_text_that_is_no_schedule(text, says):
    with pytest.raises(ValueError, match=says):
        Schedule.parse(text)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("x", 0, 1, ()), "at least one stage"),
        (("x", 1, 0, ((),)), "at least one micro-batch"),
        (("x", True, 1, ((),)), "whole number"),
        (("x", 1, 1.5, ((),)), "whole number"),
        (("x", 2, 1, ((),)), "one row of actions a stage"),
        (("a:b", 1, 1, ((),)), "without a colon"),
        (("x", 1, 1, (("Q00",),)), "'Q' is no action"),
        (("x", 1, 1, ((),), (1,)), "placement"),
    ],
)
def test_a_schedule_that_is_none(arguments, says):
    with pytest.raises(ValueError, match=says):
        Schedule(*arguments)
