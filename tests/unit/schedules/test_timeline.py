"""What spans say, measured ones too, and their text form.

Wrong versions these catch: a bubble over the busiest rank instead of over all, a clock that is
taken to start at zero, two steps' spans counted as one, a row in which two actions share a column.
"""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picolab.schedules import Action, Span, Timeline, make, simulate


def measured(shift=0.0, scale=1.0):
    """Seconds on some clock, as ranks would report them."""
    spans = simulate(make("1f1b", 4, 8)).spans
    return Timeline(
        [Span(r, a, shift + scale * start, shift + scale * end) for r, a, start, end in spans]
    )


def test_the_zero_of_the_clock_does_not_matter():
    one, other = measured(), measured(shift=1234.5, scale=0.25)
    assert one.bubble_of_total == pytest.approx(3 / 11) == pytest.approx(other.bubble_of_total)
    assert other.start == 1234.5 and other.makespan == pytest.approx(33 / 4)
    assert one.peak_in_flight == other.peak_in_flight == (4, 3, 2, 1)
    assert not one.simulated and "(measured)" in one.sentence()


def test_the_bubble_is_over_all_ranks():
    """Two ranks, one busy for 4 of 4, the other for 2: a quarter of the rank-time is idle."""
    spans = [Span(0, Action("F", 0, 0), 0, 4), Span(1, Action("F", 1, 0), 1, 3)]
    assert Timeline(spans).bubble_of_total == Fraction(1, 4)
    assert Timeline(spans).bubble_of_ideal == Fraction(1, 3)
    assert Timeline(spans, ranks=4).bubble_of_total == Fraction(10, 16)


def test_what_is_freed_and_held_at_one_time_is_not_held_twice():
    done = simulate(make("1f1b", 1, 3))
    assert done.peak_in_flight == (1,)
    nothing = simulate(make("gpipe", 2, 3), forward=0, backward_input=0, backward_weight=0)
    assert nothing.peak_in_flight == (3, 3)
    assert nothing.bubble_of_total == nothing.bubble_of_ideal == 0


F0 = Action("F", 0, 0)


@pytest.mark.parametrize(
    ("spans", "ranks", "says"),
    [
        ([], None, "at least one span"),
        ([Span(0, F0, 1, 0)], None, "ends before it starts"),
        ([Span(0, F0, 0, float("nan"))], None, "no number"),
        ([Span(0, F0, 0, 1), Span(0, F0, 2, 3)], None, "give the spans of one step"),
        ([Span(2, F0, 0, 1)], 2, "outside 0 to 1"),
    ],
)
def test_spans_that_are_no_step(spans, ranks, says):
    with pytest.raises(ValueError, match=says):
        Timeline(spans, ranks=ranks)


def test_the_text_form():
    assert repr(simulate(make("1f1b", 2, 3))).splitlines() == [
        "1f1b: bubble 25.0 % of total, 33.3 % of ideal (simulated); makespan 12, ideal 9",
        "rank 0 |F0--F1--........B0======F2--B1======....B2======| holds 2",
        "rank 1 |....F0--B0======F1--B1======F2--B2======........| holds 1",
        "F0- forward, B0= backward, . idle; holds: micro-batches in flight, at most",
    ]


@given(
    st.sampled_from(("gpipe", "1f1b")),
    st.integers(1, 9),
    st.integers(1, 40),
    st.sampled_from((1, Fraction(1, 3), 0.37)),
    st.integers(20, 200),
)
def test_every_row_is_as_wide_and_starts_each_action_it_has_room_for(name, p, m, unit, width):
    done = simulate(
        make(name, p, m), forward=unit, backward_input=unit, backward_weight=Fraction(unit)
    )
    rows = [line.split("|")[1] for line in done.gantt(width).splitlines()]
    assert len(rows) == p and len({len(row) for row in rows}) == 1 and len(rows[0]) <= width
    if unit != 0.37 and done.makespan / unit <= width:  # then the columns are exact
        for rank, row in enumerate(rows):
            assert (row.count("F"), row.count("B")) == (m, m)
            assert row.count(".") * done.makespan == done.idle[rank] * len(row)
