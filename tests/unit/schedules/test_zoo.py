"""The schedule zoo against its closed forms: exactly, for dozens of sizes and costs, and every
wrong version of a generator is refused by the validator or by a formula.

Sizes are not powers of two only: p from 1 to 7, m up to 21. Costs are Fractions, so equal is equal.
"""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picolab import costs
from picolab.schedules import Action, Schedule, ScheduleError, make, one_f_one_b, simulate, validate
from picolab.specs.schedule_name import ScheduleName

SPLIT = ("zb-h1", "zb-v", "dualpipe-v")
NAMES = ("1f1b", "gpipe", "interleaved", "interleaved-v3", "interleaved-v4", *SPLIT)
# Where a closed form holds, m is at least so much.
LEAST = {"zb-h1": lambda p: p, "zb-v": lambda p: 2 * p - 1}
# F, B and W of which each form is true.
ANY = [(1, 1, 1), (2, 3, 1), (1, 4, 2), (Fraction(7, 3), 1, 5), (3, 2, 0), (5, 3, 4)]
COSTS = {
    "zb-v": [(1, 1, 1), (2, 3, 2), (Fraction(5, 2), 3, 2), (1, 2, 1), (3, 5, 4)],
    "dualpipe-v": [(1, 1, 1), (Fraction(3, 7),) * 3],
}


def clock(schedule: Schedule, forward=1, backward_input=1, backward_weight=1):
    """Costs are of a rank, as the formulas have them: its stages share them."""
    v = schedule.stages // schedule.ranks
    each = {"forward": forward, "backward_input": backward_input}
    each["backward_weight"] = backward_weight
    return simulate(schedule, **{name: Fraction(cost) / v for name, cost in each.items()})


def check(schedule: Schedule, name: str, given=(1, 1, 1)):
    """Valid, and its bubble, makespan and memory are the formulas'."""
    p, m = schedule.ranks, schedule.micro_batches
    done = clock(schedule, *given)  # which validates it first
    of = dict(zip(("forward", "backward_input", "backward_weight"), given))
    bubble = costs.bubble(name, p, m, **of)
    assert done.ideal == m * sum(given) and done.makespan - done.ideal == bubble
    assert done.idle == (bubble,) * p
    total = costs.bubble_of_total(p, m, name, **of)
    assert float(done.bubble_of_total) == pytest.approx(total, rel=1e-15)
    ideal = costs.bubble_of_ideal(p, m, name, **of)
    assert float(done.bubble_of_ideal) == pytest.approx(ideal, rel=1e-15)
    # Which action is when depends on the costs, how much is held does not.
    assert list(done.peak_in_flight) == caps_of(schedule, name)


def caps_of(schedule: Schedule, name: str) -> list[int]:
    p, m = schedule.ranks, schedule.micro_batches
    return [costs.in_flight(name, p, m, rank) for rank in range(p)]


@pytest.mark.parametrize("name", NAMES)
def test_the_closed_forms(name):
    checked = 0
    for p in range(1, 8):
        least = LEAST.get(name, lambda p: 1)(p)
        for m in {ScheduleName.parse(name).micro_batches(p, m) for m in range(least, 22, 4)}:
            for given_costs in COSTS.get(name, ANY):
                check(make(name, p, m), name, given_costs)
                checked += 1
    assert checked >= 36


@settings(max_examples=25)
@given(st.sampled_from(NAMES), st.integers(1, 7), st.integers(1, 21))
def test_valid_and_memory_for_every_size(name, p, least):
    m = ScheduleName.parse(name).micro_batches(p, least)
    schedule = make(name, p, m)
    assert schedule.kinds == ("FBW" if name in SPLIT else "FB")
    assert schedule.placement == ScheduleName.parse(name).stage_ranks(p)
    caps = caps_of(schedule, name)
    validate(schedule, caps)
    assert list(clock(schedule).peak_in_flight) == caps
    if caps[-1] > 1:  # one less is too little
        with pytest.raises(ScheduleError, match=f"its cap is {caps[-1] - 1}"):
            validate(schedule, [*caps[:-1], caps[-1] - 1])


def test_the_numbers_of_the_chapter():
    """p = 4, m = 8, F = B = W: what is idle, in units of one forward of a rank."""
    idle = {name: costs.bubble(name, 4, 8) for name in NAMES}
    assert idle["1f1b"] == 9 and idle["interleaved"] == Fraction(9, 2) and idle["zb-h1"] == 3
    assert idle["zb-v"] == idle["dualpipe-v"] == Fraction(3, 2)
    assert costs.bubble_of_total(4, 8, "interleaved") == pytest.approx(0.1579, abs=5e-5)
    assert costs.bubble_of_total(4, 8, "interleaved-v4") == pytest.approx(0.0857, abs=5e-5)
    # With every cost equal, no rank of ZB-V is idle between its first action and its last.
    for rank in range(4):
        mine = [span for span in clock(make("zb-v", 4, 8)).spans if span.rank == rank]
        assert mine[-1].end - mine[0].start == sum(span.end - span.start for span in mine)
    # ZB-H1 holds no more than 1F1B's first rank, at a third of its bubble.
    assert clock(make("zb-h1", 4, 8)).peak_in_flight == (4, 4, 4, 4)


def test_dualpipe_v_is_within_its_authors_formula():
    """They hand a gradient on after the whole backward; here it goes after B."""
    for F, B, W in ((1, 1, 1), (10, 12, 8), (3, 3, 2), (2, 3, 2)):
        done = clock(make("dualpipe-v", 4, 11), F, B, W)
        assert done.makespan - done.ideal <= Fraction(3 * (F + B + W + B + W - 3 * W), 2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (("zb-h1", 4, 3), "zb-h1 has a closed form of 4 micro-batches or more, not of 3"),
        (("zb-v", 4, 6), "zb-v has a closed form of 7 micro-batches or more"),
        (("interleaved", 4, 6), "rounds of 4, which do not divide 6; take 4 or 8"),
        (("dualpipe-v", 4, 7), "needs 8 micro-batches or more, not 7"),
        (("zbh1", 4, 8), "did you mean 'zb-h1'"),
    ],
)
def test_where_there_is_no_closed_form(call, says):
    with pytest.raises(ValueError, match=says):
        costs.bubble(*call)
    if "closed form" not in says:
        with pytest.raises(ValueError, match=says):
            make(*call)


def test_costs_of_which_no_closed_form_is_true():
    with pytest.raises(ValueError, match=r"where max\(F, W\) <= B <= F \+ W; simulate it"):
        costs.bubble("zb-v", 4, 8, forward=2)
    with pytest.raises(ValueError, match="where F = B = W"):
        costs.bubble("dualpipe-v", 4, 8, backward_input=2)


def test_several_stages_a_rank_need_sends_that_return():
    """A rank that waits until its send is taken stands still; ZB-H1 is like 1F1B in that."""
    for name in ("interleaved", "zb-v", "dualpipe-v"):
        with pytest.raises(ScheduleError, match="deadlock"):
            validate(make(name, 4, 8), sends="fused")
    validate(make("zb-h1", 4, 8), sends="fused")


# -- mutants --------------------------------------------------------------------------------------


def changed(name, p, m, change) -> Schedule:
    """The schedule with each rank's row changed."""
    right = make(name, p, m)
    rows = [change(rank, list(row)) for rank, row in enumerate(right.actions)]
    return Schedule(name, right.stages, m, rows, right.placement)


def interleaved_with(warmup_of, p, m, v=2, backward_chunk=None) -> Schedule:
    """Interleaved 1F1B with another warm-up, or other stages backward."""
    rows = []
    for rank in range(p):

        def action(kind, k, rank=rank):
            turn, place = divmod(k, p * v)
            chunk, i = divmod(place, p)
            if kind == "B":
                chunk = (backward_chunk or (lambda c: v - 1 - c))(chunk)
            return Action(kind, chunk * p + rank, turn * p + i)

        warmup = min(warmup_of(rank), v * m)
        row = [action("F", k) for k in range(warmup)]
        for k in range(warmup, v * m):
            row += [action("F", k), action("B", k - warmup)]
        rows.append(row + [action("B", k) for k in range(v * m - warmup, v * m)])
    return Schedule("interleaved", v * p, m, rows, tuple(range(p)) * v)


def test_the_mutants_pattern_is_right_when_nothing_is_changed():
    right = interleaved_with(lambda rank: 4 + 2 * (3 - rank), 4, 8)
    assert right == make("interleaved", 4, 8)
    check(right, "interleaved")


def w_at_once(rank, row):
    """The split without its use: every W right after its B."""
    backward = [a for a in row if a.kind != "W"]
    return [a for b in backward for a in ([b, b._replace(kind="W")] if b.kind == "B" else [b])]


def w_at_the_end(rank, row):
    """No gap is filled, and everything is held."""
    return [a for a in row if a.kind != "W"] + [a for a in row if a.kind == "W"]


def w_missing(rank, row):
    return row[:-1] if rank == 1 else row


def w_before_b(rank, row):
    """On the first rank a W is done as soon as its forward was."""
    place = next(i for i, a in enumerate(row) if a.kind == "W")
    return [row[place], *row[:place], *row[place + 1 :]] if rank == 0 else row


def w_of_another(rank, row):
    """Two W's of the same micro-batch, and none of the next."""
    i, j = [k for k, a in enumerate(row) if a.kind == "W"][:2]
    return [*row[:j], row[i], *row[j + 1 :]]


def first_backward_late(rank, row):
    """On the last rank the first B waits for one forward more."""
    if rank != 3:
        return row
    i = next(k for k, a in enumerate(row) if a.kind == "B")
    j = next((k for k in range(i, len(row)) if row[k].kind == "F"), i)
    return [*row[:i], row[j], *row[i:j], *row[j + 1 :]]


def stages_swapped(rank, row):
    """On the first rank the two stages change their turns."""
    stages = sorted({a.stage for a in row})
    swap = dict(zip(stages, reversed(stages)))
    return [a._replace(stage=swap[a.stage]) for a in row] if rank == 0 else row


MUTANTS = {
    "1F1B's warm-up with several stages": ("interleaved", interleaved_with(lambda r: 3 - r, 4, 8)),
    "a warm-up one too short": ("interleaved", interleaved_with(lambda r: 3 + 2 * (3 - r), 4, 8)),
    "a warm-up one too long": ("interleaved", interleaved_with(lambda r: 5 + 2 * (3 - r), 4, 8)),
    "backward from the first stage on": (
        "interleaved",
        interleaved_with(lambda r: 4 + 2 * (3 - r), 4, 8, backward_chunk=lambda c: c),
    ),
    "one stage a rank": ("interleaved", one_f_one_b(4, 8)),
    **{
        f"{name}: {change.__name__}": (name, changed(name, 4, 8, change))
        for name in SPLIT
        for change in (w_at_once, w_at_the_end, w_missing, w_before_b, w_of_another)
    },
    **{
        f"{name}: {change.__name__}": (name, changed(name, 4, 8, change))
        for name in ("zb-v", "dualpipe-v")
        for change in (first_backward_late, stages_swapped)
    },
    "round and round instead of there and back": (
        "zb-v",
        lambda: Schedule("zb-v", 8, 8, make("zb-v", 4, 8).actions, (0, 1, 2, 3) * 2),
    ),
}


@pytest.mark.parametrize("what", MUTANTS)
def test_a_wrong_generator_is_refused(what):
    name, mutant = MUTANTS[what]
    with pytest.raises((ScheduleError, AssertionError)):
        check(mutant() if callable(mutant) else mutant, name)
