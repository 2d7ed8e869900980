"""The bubble's two definitions and what each rank holds. The simulator asks for the same numbers
exactly, in tests/unit/schedules/test_simulator.py.

Wrong versions these catch, kept below: the one bubble taken for the other, p for p - 1, and 1F1B's
memory taken to be p on every rank.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picolab import costs

sizes = st.tuples(st.integers(1, 100), st.integers(1, 1000))


def by_counting(p, m):
    """(total, ideal) time of a GPipe step in units of one forward, laid out micro-batch by
    micro-batch: stage s may start i when it has ended i - 1 and stage s - 1 has ended i.
    """
    end = {}
    for i in range(m):
        for s in range(p):
            end[s, i] = max(end.get((s, i - 1), 0), end.get((s - 1, i), 0)) + 1
    return 2 * end[p - 1, m - 1], 2 * m


def check(bubble_of_total, bubble_of_ideal):
    for p, m in ((1, 1), (2, 1), (2, 3), (4, 8), (8, 32), (7, 5)):
        total, ideal = by_counting(p, m)
        assert bubble_of_total(p, m) == (total - ideal) / total
        assert bubble_of_ideal(p, m) == (total - ideal) / ideal


def test_counted_micro_batch_by_micro_batch():
    check(costs.bubble_of_total, costs.bubble_of_ideal)


def test_mutants_are_caught():
    for total, ideal in (
        (costs.bubble_of_ideal, costs.bubble_of_total),
        (lambda p, m: p / (m + p), costs.bubble_of_ideal),
        (costs.bubble_of_total, lambda p, m: p / m),
    ):
        with pytest.raises(AssertionError):
            check(total, ideal)


@given(sizes)
def test_the_two_are_one_over_the_other(size):
    of_total, of_ideal = costs.bubble_of_total(*size), costs.bubble_of_ideal(*size)
    assert 0 <= of_total < 1
    assert of_total == pytest.approx(of_ideal / (1 + of_ideal), rel=1e-15)


def test_printed_numbers():
    """27.3 % of total, 37.5 % of ideal: the chapter's example."""
    assert f"{costs.bubble_of_total(4, 8):.1%} {costs.bubble_of_ideal(4, 8):.1%}" == "27.3% 37.5%"
    assert costs.bubble_of_total(1, 5) == 0


def test_in_flight():
    assert [costs.in_flight("1f1b", 4, 8, rank) for rank in range(4)] == [4, 3, 2, 1]
    assert [costs.in_flight("1f1b", 4, 2, rank) for rank in range(4)] == [2, 2, 2, 1]
    assert [costs.in_flight("gpipe", 4, 8, rank) for rank in range(4)] == [8] * 4


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: costs.bubble_of_total(0, 1), "stages"),
        (lambda: costs.bubble_of_ideal(1, 0), "micro-batches"),
        (lambda: costs.bubble_of_ideal(1.0, 1), "whole number"),
        (lambda: costs.in_flight("1f1b", 4, 8, 4), "0 to 3"),
        (lambda: costs.in_flight("2f2b", 4, 8, 0), "1f1b, gpipe"),
    ],
)
def test_sizes_that_are_none(call, says):
    with pytest.raises(ValueError, match=says):
        call()
