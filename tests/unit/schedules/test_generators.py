"""GPipe and 1F1B: what they hold, for every number of stages and micro-batches.

Wrong versions these catch, kept below: a cooldown that starts at a negative micro-batch when there
are fewer micro-batches than warm-up steps, a warm-up one too long (it holds p - r + 1), and the
warm-up counted from the wrong end.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picolab import costs
from picolab.schedules import SCHEDULES, Action, Schedule, gpipe, make, one_f_one_b, validate
from picolab.specs import schedule_name

sizes = st.tuples(st.integers(1, 10), st.integers(1, 20))


def held_at_most(schedule, rank):
    held = most = 0
    for action in schedule.actions[rank]:
        held += {"F": 1, "B": -1}[action.kind]
        most = max(most, held)
    return most


def check_one_f_one_b(generator, p, m):
    schedule = generator(p, m)
    validate(schedule)
    for rank, row in enumerate(schedule.actions):
        assert (
            held_at_most(schedule, rank) == min(p - rank, m) == costs.in_flight("1f1b", p, m, rank)
        )
        for kind in "FB":
            assert [a.micro_batch for a in row if a.kind == kind] == list(range(m))


@given(sizes)
def test_1f1b(size):
    check_one_f_one_b(one_f_one_b, *size)


@given(sizes)
def test_gpipe(size):
    p, m = size
    schedule = validate(gpipe(p, m))
    for rank, row in enumerate(schedule.actions):
        assert [a.kind for a in row] == ["F"] * m + ["B"] * m
        assert held_at_most(schedule, rank) == m == costs.in_flight("gpipe", p, m, rank)


def one_f_one_b_with(warmup_of, p, m):
    """1F1B with another warm-up, written without a min anywhere: as it is often written."""
    rows = []
    for stage in range(p):
        warmup = warmup_of(p, stage)
        row = [Action("F", stage, i) for i in range(min(warmup, m))]
        for i in range(m - warmup):
            row += [Action("F", stage, warmup + i), Action("B", stage, i)]
        row += [Action("B", stage, i) for i in range(m - warmup, m)]
        rows.append(row)
    return Schedule("1f1b", p, m, rows)


def test_mutants_are_caught():
    def unbounded(p, m):
        return one_f_one_b_with(lambda p, stage: p - 1 - stage, p, m)

    def one_too_long(p, m):
        return one_f_one_b_with(lambda p, stage: p - stage, p, m)

    def other_end(p, m):
        return one_f_one_b_with(lambda p, stage: stage, p, m)

    check_one_f_one_b(unbounded, 4, 8)  # right while m is large enough, which is why it survives
    for mutant, m in ((unbounded, 2), (one_too_long, 8), (other_end, 8)):
        with pytest.raises((AssertionError, ValueError)):
            check_one_f_one_b(mutant, 4, m)


def test_every_layout_can_name_its_schedule():
    assert tuple(SCHEDULES) == schedule_name.SCHEDULES
    for name in SCHEDULES:
        assert make(name, 3, 6).name == name


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize(
    ("p", "m", "says"), [(0, 4, "one stage"), (4, 0, "one micro-batch"), (2.0, 4, "whole number")]
)
def test_sizes_that_are_none(name, p, m, says):
    with pytest.raises(ValueError, match=says):
        make(name, p, m)


def test_a_name_that_is_none():
    with pytest.raises(ValueError, match="schedules are 1f1b, gpipe"):
        make("2f2b", 2, 2)
