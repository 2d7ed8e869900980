"""The clock, against closed forms without a tolerance and against a longest path written apart.

Wrong versions these catch, kept below: a rank that starts its next action before the last has
ended, one that does not wait for its input, a link that carries any number of messages at once, a
full backward that costs only its first half.
"""

from fractions import Fraction
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picolab import costs
from picolab.schedules import Action, Schedule, ScheduleError, Span, gpipe, make, simulate
from picolab.schedules.simulator import Simulation

names = st.sampled_from(("gpipe", "1f1b"))
sizes = st.tuples(st.integers(1, 8), st.integers(1, 12))
cost = st.fractions(0, 5, max_denominator=12)


@given(names, sizes, st.fractions(Fraction(1, 7), 9), st.fractions(0, 9), st.fractions(0, 9))
def test_the_closed_forms_exactly(name, size, forward, backward_input, backward_weight):
    """Whatever F, B and W cost, as long as every stage costs the same."""
    p, m = size
    done = simulate(
        make(name, p, m),
        forward=forward,
        backward_input=backward_input,
        backward_weight=backward_weight,
    )
    f = forward + backward_input + backward_weight
    assert done.makespan == (m + p - 1) * f and done.ideal == m * f
    assert done.bubble_of_total == Fraction(p - 1, m + p - 1)
    assert done.bubble_of_ideal == Fraction(p - 1, m)
    assert float(done.bubble_of_total) == costs.bubble_of_total(p, m)
    assert float(done.bubble_of_ideal) == costs.bubble_of_ideal(p, m)
    assert done.busy == (m * f,) * p and done.idle == ((p - 1) * f,) * p
    assert done.peak_in_flight == tuple(costs.in_flight(name, p, m, r) for r in range(p))


def test_four_stages_eight_micro_batches():
    """The numbers of the chapter."""
    done = simulate(make("1f1b", 4, 8))
    assert done.makespan == 33 and done.ideal == 24 and done.bubble_of_total == Fraction(3, 11)
    assert done.peak_in_flight == (4, 3, 2, 1)
    assert simulate(gpipe(4, 8)).peak_in_flight == (8, 8, 8, 8)


# -- against a longest path, written apart --------------------------------------------------------


def longest_path(schedule, F, B, W, latency) -> dict[Action, Fraction]:
    """End of each action, by recursion over what it needs and what its rank did before."""
    before = {}
    for row in schedule.actions:
        before |= dict(zip(row[1:], row))
    full = not schedule.splits_backward

    @cache
    def end(action):
        at = action.stage
        takes = {"F": F[at], "B": B[at] + (W[at] if full else 0), "W": W[at]}[action.kind]
        ready = [end(before[action])] if action in before else [Fraction(0)]
        if source := schedule.needs(action):
            apart = schedule.rank_of(source.stage) != schedule.rank_of(at)
            ready.append(end(source) + (latency if apart else 0))
        return max(ready) + takes

    return {action: end(action) for row in schedule.actions for action in row}


def split_after_each_backward(schedule):
    """The same order, with the weights' gradient as an action of its own right after B."""
    rows = [
        [a for b in row for a in ([b, b._replace(kind="W")] if b.kind == "B" else [b])]
        for row in schedule.actions
    ]
    return Schedule(schedule.name + "-split", schedule.stages, schedule.micro_batches, rows)


@st.composite
def uneven(draw):
    p, m = draw(sizes)
    schedule = make(draw(names), p, m)
    if draw(st.booleans()):
        schedule = split_after_each_backward(schedule)
    per_stage = st.lists(cost, min_size=p, max_size=p)
    return schedule, draw(per_stage), draw(per_stage), draw(per_stage), draw(cost)


def check_uneven(run, case):
    schedule, F, B, W, latency = case
    done = run(schedule, forward=F, backward_input=B, backward_weight=W, latency=latency)
    expected = longest_path(schedule, F, B, W, latency)
    assert {span.action: span.end for span in done.spans} == expected
    check_possible(schedule, done)


def check_possible(schedule, done):
    """No rank does two things at once, and nobody works on what has not come."""
    assert sorted(s.action for s in done.spans) == sorted(a for r in schedule.actions for a in r)
    for rank, row in enumerate(schedule.actions):
        mine = [span for span in done.spans if span.rank == rank]
        assert [span.action for span in mine] == list(row)
        for one, next_one in pairwise(mine):
            assert one.end <= next_one.start
    ends = {span.action: span.end for span in done.spans}
    arrivals = {t.action: t.end for t in done.transfers}
    for span in done.spans:
        if source := schedule.needs(span.action):
            assert span.start >= arrivals.get(source, ends[source]) >= ends[source]


@given(uneven())
def test_uneven_stages(case):
    check_uneven(simulate, case)


@given(uneven(), st.fractions(0, 3, max_denominator=8))
def test_lower_bounds_and_links_that_are_busy(case, transfer):
    """No makespan is under what one rank, or one micro-batch, has to go through."""
    schedule, F, B, W, latency = case
    done = simulate(
        schedule,
        forward=F,
        backward_input=B,
        backward_weight=W,
        latency=latency,
        transfer=transfer,
    )
    check_possible(schedule, done)
    p = schedule.stages
    wire = 2 * (p - 1) * (latency + transfer)
    there_and_back = sum(F) + sum(B) + (0 if schedule.splits_backward else sum(W)) + wire
    assert done.makespan >= max(max(done.busy), there_and_back)
    for link in {(t.source, t.target) for t in done.transfers}:
        sent = sorted(t.end for t in done.transfers if (t.source, t.target) == link)
        assert all(b - a >= transfer for a, b in pairwise(sent))
    for rank in range(p):
        held = [n for _, n in done.in_flight(rank)]
        assert held[0] == held[-1] == 0 and max(held) == done.peak_in_flight[rank]


@given(sizes, cost, cost, cost)
def test_splitting_alone_takes_the_weights_out_of_the_bubble(size, F, B, W):
    """The gradient travels on after B, so each of the p - 1 others waits for F + B, not F + B + W.

    What is left, ZB-H1 takes down to F + B - W by moving W into the gaps (arXiv 2401.10241).
    """
    p, m = size
    done = simulate(
        split_after_each_backward(make("1f1b", p, m)),
        forward=F,
        backward_input=B,
        backward_weight=W,
    )
    assert done.makespan - done.ideal == (p - 1) * (F + B)


def test_a_split_backward_holds_longer():
    done = simulate(Schedule("late", 1, 2, ((("F", 0, 0), ("B", 0, 0), ("F", 0, 1), ("B", 0, 1),
                                             ("W", 0, 0), ("W", 0, 1)),)))  # fmt: skip
    assert done.peak_in_flight == (2,)
    assert done.in_flight(0) == [(0, 0), (0, 1), (2, 2), (5, 1), (6, 0)]


def test_stages_of_one_rank_hand_over_at_once():
    folded = Schedule.parse(
        "v: 4 stages, 1 micro-batch, on ranks 0 1 1 0\n"
        "rank 0: 0F0 3F0 3B0 0B0\nrank 1: 1F0 2F0 2B0 1B0"
    )
    done = simulate(folded, latency=10)
    # 4 forwards, 4 backwards of 2, and the wire four times: 0->1, 2->3 and back.
    assert done.makespan == 4 + 8 + 4 * 10
    assert {(t.source, t.target) for t in done.transfers} == {(0, 1), (1, 0)}


def test_a_slow_link_sets_the_pace():
    """Stage 0 is done with all forwards at 4; its link needs 3 for each of four messages."""
    done = simulate(gpipe(2, 4), transfer=3)
    forwards = [t for t in done.transfers if t.action.kind == "F"]
    assert [(t.start, t.end) for t in forwards] == [(1, 4), (4, 7), (7, 10), (10, 13)]
    apart = simulate(gpipe(2, 4), latency=3)  # the same seconds, but all at once on the way
    assert [t.end for t in apart.transfers if t.action.kind == "F"] == [4, 5, 6, 7]


# -- mutants --------------------------------------------------------------------------------------


def changed(change):
    """A simulator whose spans are changed afterwards."""

    def run(schedule, **given):
        done = simulate(schedule, **given)
        return Simulation(schedule, change(done), done.transfers)

    return run


def all_at_once(done):
    """Each action starts when its input is there, whether or not the rank is free."""
    return [
        Span(r, a, a.micro_batch, a.micro_batch + end - start) for r, a, start, end in done.spans
    ]


def never_waits(done):
    """Each rank does one action after the other, whether or not its input is there."""
    spans, free = [], {}
    for rank, action, start, end in done.spans:
        spans.append(Span(rank, action, free.get(rank, 0), free.get(rank, 0) + end - start))
        free[rank] = spans[-1].end
    return spans


def half_a_backward(schedule, **given):
    return simulate(schedule, **{**given, "backward_weight": 0})


@pytest.mark.parametrize("mutant", [changed(all_at_once), changed(never_waits), half_a_backward])
def test_mutants_are_caught(mutant):
    case = (make("1f1b", 3, 4), [1, 2, 1], [1, 1, 1], [1, 1, 2], 0)
    check_uneven(simulate, case)
    with pytest.raises(AssertionError):
        check_uneven(mutant, case)


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"forward": -1}, "forward costs -1"),
        ({"forward": [1, 2]}, "2 costs for 3 stages"),
        ({"backward_input": float("nan")}, "backward_input costs nan"),
        ({"backward_weight": [1, 1, "1"]}, "backward_weight costs '1'"),
        ({"latency": float("inf")}, "latency costs inf"),
        ({"transfer": True}, "transfer costs True"),
    ],
)
def test_costs_that_are_none(given, says):
    with pytest.raises(ValueError, match=says):
        simulate(gpipe(3, 2), **given)


def test_a_wrong_schedule_is_refused_before_the_clock_starts():
    with pytest.raises(ScheduleError, match="never done"):
        simulate(Schedule("x", 1, 1, ((("F", 0, 0),),)))
