"""What grows with a run and is drawn in few points: nothing that stands out is lost.

Wrong versions these tests catch: the mean of a bin, or every tenth point, which lose a spike
of one step; points that grow with the run; a smoothed line that begins at zero; values that are
kept of steps that a run went back before.
"""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picolab.monitoring import series
from picolab.monitoring.run_state import decimate
from picolab.monitoring.series import BINS, Binned, Series, Smooth, largest_of_each


def check_spikes(steps: int, at: int):
    told = Series()
    for step in range(steps):
        told.add(step, 9.0 if step == at else -9.0 if step == at // 2 else 1.0)
    x, y = told.points()
    points = dict(zip(x, y))
    assert len(x) <= 2 * BINS + 1 and list(x) == sorted(x)
    assert points[at] == 9.0 and points[at // 2] == -9.0 and steps - 1 in points


@pytest.mark.parametrize("steps, at", [(10, 7), (601, 600), (1000, 333), (50_000, 31_415)])
def test_a_spike_of_one_step_is_drawn_whatever_the_length(steps, at):
    check_spikes(steps, at)


def test_a_mean_would_lose_it(monkeypatch):
    def mean(one, other):
        middle = lambda of: (of[0][0], sum(value for _, value in of) / 2)  # noqa: E731
        kept = middle([middle(one), middle(other)])
        return kept, kept

    monkeypatch.setattr(series, "_ends", mean)
    with pytest.raises((AssertionError, KeyError)):
        check_spikes(50_000, 31_415)


def test_the_newest_of_each_would_lose_it(monkeypatch):
    monkeypatch.setattr(series, "_ends", lambda one, other: other)
    with pytest.raises((AssertionError, KeyError)):
        check_spikes(50_000, 31_415)


numbers = st.floats(-1e6, 1e6) | st.just(math.nan) | st.just(math.inf)


@given(st.lists(numbers, max_size=3 * BINS), st.integers(0, 10**9))
def test_it_has_the_extremes_and_every_point_of_a_short_run(values, first):
    told = Series()
    for place, value in enumerate(values):
        told.add(first + place, value)
    x, y = told.points()
    assert len(x) <= 2 * BINS + 1
    finite = [value for value in values if math.isfinite(value)]
    if finite:
        assert {min(finite), max(finite)} <= set(y)
    if len(values) == len(finite) <= BINS:
        assert list(y) == values and list(x) == [*range(first, first + len(values))]
        assert (list(x), list(y)) == decimate(list(x), list(y))


def test_what_is_told_late_or_again_is_in_its_place():
    told = Series({0: 1.0, 1: 2.0, 5: 4.0})
    told.add(3, 3.0)
    told.add(3, 99.0)  # another rank says the same step
    assert told == {0: 1.0, 1: 2.0, 3: 3.0, 5: 4.0} and list(told) == [0, 1, 3, 5]
    assert told.points() == ([0, 1, 3, 5], [1.0, 2.0, 3.0, 4.0]) and told.last == 5
    copied = told.copy()
    told.forget(3)
    assert told == {0: 1.0, 1: 2.0} and told.points()[0] == [0, 1] and told.last == 1
    told.add(3, 7.0)
    assert told[3] == 7.0 and copied[3] == 3.0 and len(copied) == 4
    assert told.now == pytest.approx(Series({0: 1.0, 1: 2.0, 3: 7.0}).now)


def test_a_smoothed_line_is_unbiased_from_the_first_step():
    """A constant is itself, and n steps are their mean with weights 0.9**k: by hand for three."""
    smooth = Smooth()
    assert [smooth.add(2.5) for _ in range(50)] == pytest.approx([2.5] * 50, rel=1e-12)
    smooth = Smooth()
    by_hand = [1.0, (0.9 + 2) / 1.9, (0.81 + 0.9 * 2 + 4) / 2.71]
    assert [smooth.add(value) for value in (1.0, 2.0, 4.0)] == pytest.approx(by_hand, rel=1e-12)
    assert smooth.add(math.nan) == pytest.approx(by_hand[-1])


def test_columns_keep_the_latest_of_each_rank():
    columns = Binned(200, largest_of_each)
    for step in range(12_345):
        columns.add(step, {0: 0.0, 1: 1.0 if step == 7_001 else 0.1})
    assert len(columns) <= 200 and columns.width == 64
    found = dict(columns.items())
    assert found[7_001 // 64 * 64] == {0: 0.0, 1: 1.0}
    assert sum(of[1] == 1.0 for of in found.values()) == 1
