"""Every way in which a schedule can be wrong is named, at the rank and action where it shows.

The mutants are schedules, and each is one that was published, printed or easily written: a 1F1B
that counts its warm-up from the wrong end (its stage 0 begins with a backward and does some twice),
the order that torch 2.13 displays for its 1F1B (forwards counted from 1 on the last rank), a pair
swapped on one rank. torch's own checker is asked about the same ones.
"""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picolab.schedules import (
    Action,
    Schedule,
    ScheduleError,
    gpipe,
    make,
    one_f_one_b,
    validate,
)

SENDS = ("buffered", "rendezvous", "fused")


def refused(schedule, **options) -> ScheduleError:
    with pytest.raises(ScheduleError) as caught:
        validate(schedule, **options)
    return caught.value


def schedule(*rows, m, name="test", placement=()):
    """Rows as text, one a rank."""
    on = f", on ranks {' '.join(map(str, placement))}" if placement else ""
    head = f"{name}: {len(placement) or len(rows)} stages, {m} micro-batches{on}"
    return Schedule.parse("\n".join([head, *(f"rank {r}: {row}" for r, row in enumerate(rows))]))


# -- right ones -----------------------------------------------------------------------------------


@given(
    st.sampled_from(("gpipe", "1f1b")),
    st.integers(1, 8),
    st.integers(1, 12),
    st.sampled_from(("buffered", "fused")),
)
def test_our_own_are_right(name, p, m, sends):
    right = make(name, p, m)
    assert validate(right, sends=sends) is right


def test_two_stages_on_a_rank_and_a_split_backward():
    validate(schedule("0F0 0F1 2F0 2F1 2B0 2B1 0B0 0B1", "1F0 1F1 3F0 3F1 3B0 3B1 1B0 1B1", m=2,
                      placement=(0, 1, 0, 1)))  # fmt: skip
    validate(schedule("0F0 1F0 1B0 0B0", m=1, placement=(0, 0)))
    validate(schedule("F0 F1 B0 B1 W0 W1", "F0 B0 F1 W0 B1 W1", m=2))


# -- published, printed or easily written wrong ones ----------------------------------------------


def published_one_f_one_b(p, m):
    """As an online book prints it: warm-up s instead of p - 1 - s, and B before F in the steady
    state.
    """
    rows = []
    for s in range(p):
        row = [("F", s, i) for i in range(s)]
        for i in range(s, m):
            row += [("B", s, i - s), ("F", s, i)]
        row += [("B", s, i) for i in range(m - p + s + 1, m)]
        rows.append(row)
    return Schedule("published", p, m, rows)


def displayed_by_torch(p, m):
    """What torch 2.13's Schedule1F1B displays: right up to the forward of the last rank."""
    rows = [list(row) for row in one_f_one_b(p, m).actions]
    rows[-1] = [a._replace(micro_batch=a.micro_batch + (a.kind == "F")) for a in rows[-1]]
    return Schedule("displayed", p, m, rows)


def test_the_published_one():
    error = refused(published_one_f_one_b(4, 8))
    assert error.rank == 0 and error.action.kind == "B" and "twice" in error.reason
    first = published_one_f_one_b(4, 8).actions[0][0]
    assert first == Action("B", 0, 0)
    assert "before its forward" in refused(schedule("B0 F0", "F0 B0", m=1)).reason


def test_the_displayed_one():
    error = refused(displayed_by_torch(4, 8))
    assert (error.rank, error.action) == (3, Action("F", 3, 8))
    assert "numbered 0 to 7" in error.reason


def test_a_pair_swapped_on_one_rank():
    """Nothing is missing and each rank alone is fine; together they wait for each other."""
    stuck = schedule("F0 B0 F1 B1", "F0 F1 B0 B1", m=2)
    for sends in SENDS:
        error = refused(stuck, sends=sends)
        assert error.rank == 0 and error.action == Action("B", 0, 0)
        assert "deadlock: rank 0 waits for B0 of stage 1 from rank 1" in error.reason
        assert "rank 1 waits for F1 of stage 0 from rank 0" in error.reason


def test_a_receiver_that_expects_another_order():
    """No deadlock with room in the pipe, and worse: the wrong micro-batch."""
    crossed = schedule("F1 F0 B0 B1", "F0 F1 B0 B1", m=2)
    for sends in SENDS:
        error = refused(crossed, sends=sends)
        assert (error.rank, error.action) == (1, Action("F", 1, 0))
        assert "F1 of stage 0 was sent first" in error.reason


@given(st.integers(2, 6), st.integers(2, 8))
def test_1f1b_needs_sends_that_do_not_block(p, m):
    """Megatron and torch post a send and the next receive together; one after the other stands
    still, GPipe never does.
    """
    validate(gpipe(p, m), sends="rendezvous")
    error = refused(one_f_one_b(p, m), sends="rendezvous")
    assert error.reason.startswith("deadlock: ") and " to take " in error.reason


@pytest.mark.parametrize(
    ("rows", "m", "rank", "action", "says"),
    [
        (("F0 B0", "F0 F0 B0"), 1, 1, "F0 of stage 1", "twice"),
        (("F0 B0", "F0"), 1, 1, "B0 of stage 1", "backward is never done"),
        (("F0 F1 B0", "F0 B0 F1 B1"), 2, 0, "B1 of stage 0", "never done"),
        (("F0 1B0", "F0 B0"), 1, 0, "B0 of stage 1", "is on rank 1"),
        (("F0 B0 B1", "F0 B0"), 1, 0, "B1 of stage 0", "numbered 0 to 0"),
        (("F0 B0 7F0", "F0 B0"), 1, 0, "F0 of stage 7", "2 stages"),
        (("F0 B0 W0", "F0 W0 B0"), 1, 1, "W0 of stage 1", "before its backward"),
        (("F0 B0 W0", "F0 B0"), 1, 1, "W0 of stage 1", "weight gradient is never done"),
    ],
)
def test_what_is_missing_twice_or_out_of_place(rows, m, rank, action, says):
    error = refused(schedule(*rows, m=m))
    assert (error.rank, str(error.action)) == (rank, action) and says in error.reason
    assert str(error) == f"rank {rank}, {action}: {error.reason}"


def test_stages_of_one_rank_take_each_others_results_in_order():
    error = refused(schedule("1F0 0F0 1B0 0B0", m=1, placement=(0, 0)))
    assert error.action == Action("F", 1, 0) and "comes before F0 of stage 0" in error.reason


# -- the cap --------------------------------------------------------------------------------------


@given(st.integers(1, 8), st.integers(1, 12))
def test_the_cap_is_met_exactly(p, m):
    for build, most in ((one_f_one_b, [min(p - r, m) for r in range(p)]), (gpipe, [m] * p)):
        validate(build(p, m), activation_cap=most)
        if max(most) > 1:
            error = refused(build(p, m), activation_cap=max(most) - 1)
            assert error.rank == 0 and error.action == Action("F", 0, max(most) - 1)
            assert f"cap is {max(most) - 1}" in error.reason


def test_a_split_backward_holds_until_the_weights_have_their_gradient():
    late = schedule("F0 B0 F1 B1 W0 W1", m=2)
    validate(late, activation_cap=2)
    assert refused(late, activation_cap=1).action == Action("F", 0, 1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"activation_cap": 0}, "at least one"),
        ({"activation_cap": True}, "at least one"),
        ({"activation_cap": [1]}, "1 numbers for 2 ranks"),
        ({"sends": "pigeon"}, "buffered, rendezvous, fused"),
    ],
)
def test_options_that_are_none(options, says):
    with pytest.raises(ValueError, match=says):
        validate(gpipe(2, 1), **options)


def test_the_error_travels():
    error = pickle.loads(pickle.dumps(refused(displayed_by_torch(2, 2))))
    assert error.rank == 1 and "micro-batches" in str(error)


# -- torch's judgement ----------------------------------------------------------------------------


def torch_runs(ours: Schedule) -> bool:
    """Whether torch's own dry run gets through our schedule."""
    from torch.distributed.pipelining import schedules as torch_schedules

    compute = {
        rank: [
            torch_schedules._Action.from_str(f"{action.stage}{action.kind}{action.micro_batch}")
            for action in row
        ]
        for rank, row in enumerate(ours.actions)
    }
    try:
        with_messages = torch_schedules._add_send_recv(compute, ours.rank_of, ours.stages)
        torch_schedules._simulate_comms_compute(with_messages, ours.rank_of, ours.stages)
    except (ValueError, AssertionError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("p", "m"), [(1, 3), (2, 1), (2, 5), (4, 2), (4, 8), (5, 7)])
def test_torch_accepts_what_we_accept(name, p, m):
    assert torch_runs(make(name, p, m))


@pytest.mark.parametrize(
    "wrong",
    [
        published_one_f_one_b(4, 8),
        displayed_by_torch(4, 8),
        schedule("F0 B0 F1 B1", "F0 F1 B0 B1", m=2),
    ],
    ids=["published", "displayed", "swapped"],
)
def test_torch_refuses_what_we_refuse(wrong, capsys):
    refused(wrong)
    assert not torch_runs(wrong)
