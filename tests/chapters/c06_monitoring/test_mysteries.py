"""The three looks at what each rank knows of itself: do their numbers decide between suspects?

That a fault shows in the looks that it is said to, and that a right run shows in none, chapter 1's
test of all mystery runs asks; no time is asserted there. Here a time is compared with others of the
same step, or with what a rank slept at least. Wrong versions these catch, kept as mutants: own
numbers that are looked at after the sum, calls that are counted at the end, a batch that counts as
work, noise that is in one of the runs only, and cases whose fault is not at work.
"""

from collections import Counter
from math import isfinite, isnan

import pytest

from picolab.exercises import mystery_looks as looks
from picolab.exercises.mystery_looks import Trial, calls, look, summary
from picolab.exercises.mystery_run_faults import EVERY, LATE_S, LINK_S, SINCE
from tests.chapters.c01_4d_basics.test_mystery import CASES, check_shown, trial_of

LATE, ZEROED, PARTED, SPIKE = (f"monitoring.mystery.{i}" for i in (1, 2, 3, 4))


def suspect(id: str, fault: str) -> Trial:
    """What the looks would have, were it this one."""
    (letter,) = (key for key, of in CASES[id].letters.items() if of.fault == fault)
    return trial_of(id, letter)


def not_at_work(trial: Trial) -> Trial:
    return Trial(trial.right, trial.right, trial.one)


def own(run, name: str) -> list[list[float]]:
    """Of each rank its own, step by step."""
    return [[told[name] for told in of_rank] for of_rank in run.told]


# -- who is late


def longest(parts) -> int:
    return max(range(len(parts)), key=parts.__getitem__)


def check_late(trial: Trial) -> None:
    batch, _ = zip(*looks._middle(trial.this))
    assert longest(batch) == 3 and batch[3] >= LATE_S
    assert sorted(batch)[-2] < batch[3] / 2


def test_the_loader_is_told_from_the_device():
    trial = trial_of(LATE)
    check_late(trial)
    assert "rank 3 waits" in summary(trial, "work")
    table = look(trial, "work")
    assert [row[0] for row in table.rows[-2:]] == ["median", "median of a right dp2cp2"]


def test_mutant_a_batch_counts_as_work(monkeypatch):
    real = looks.work_of
    monkeypatch.setattr(looks, "work_of", lambda *of: real(*of)._replace(data=0.0))
    with pytest.raises(AssertionError):
        check_late(trial_of(LATE))


def test_mutant_nobody_is_late():
    with pytest.raises(AssertionError):
        check_late(not_at_work(trial_of(LATE)))


@pytest.mark.weekly
def test_the_other_slow_ones_are_told_apart():
    _, rest = zip(*looks._middle(suspect(LATE, "rank-3-slow").this))
    assert longest(rest) == 3 and sorted(rest)[-2] < rest[3] - LATE_S / 2
    with pytest.raises(AssertionError):
        check_late(suspect(LATE, "rank-3-slow"))

    pauses = looks._work_of_steps(suspect(LATE, "rank-3-pauses").this)[3]
    paused = [step for step, (_, rest) in enumerate(pauses) if rest >= EVERY * LATE_S * 0.99]
    # A busy machine can hold up another step as long; a sleep is never shorter.
    assert {5, 11, 17, 23} <= set(paused) and len(paused) < len(pauses) / 2

    link = suspect(LATE, "link-2-3-slow").this
    messages = Counter(e.rank for e in link.ledger.step(1) if e.op == "recv" and e.peer == 2)
    assert link.split[3].communication_s >= messages[3] * LINK_S > 0
    assert longest([of.communication_s for of in link.split.values()]) == 3


# -- whose number it was


def check_zeroed(trial: Trial) -> None:
    norms, right = own(trial.this, "own_grad_norm"), own(trial.right, "own_grad_norm")
    assert all(isnan(norm) for norm in norms[2][SINCE:]) and norms[2][:SINCE] == right[2][:SINCE]
    assert all(isfinite(norm) for rank in (0, 1, 3) for norm in norms[rank])
    losses, right = own(trial.this, "own_loss"), own(trial.right, "own_loss")
    assert losses[2][: SINCE + 1] == right[2][: SINCE + 1]  # its forward pass is fine
    assert all(isfinite(loss) for of in losses for loss in of)


def test_a_nan_that_no_sum_shows():
    trial = trial_of(ZEROED)
    check_zeroed(trial)
    assert all(map(isfinite, (*trial.this.losses, *trial.this.norms)))
    assert trial.this.losses[: SINCE + 1] == trial.right.losses[: SINCE + 1]  # "up to step 9"
    assert "rank 2 had other numbers" in summary(trial, "own")
    assert "nan (" in repr(look(trial, "own"))


def test_mutant_own_numbers_after_the_sum(monkeypatch):
    monkeypatch.setattr(looks, "_OWN", ("loss", "grad_norm"))
    trial = trial_of(ZEROED)
    assert "rank 2 had other numbers" not in summary(trial, "own")  # but all had


def test_mutant_the_gradients_are_numbers():
    with pytest.raises(AssertionError):
        check_zeroed(not_at_work(trial_of(ZEROED)))


@pytest.mark.weekly
def test_the_other_own_numbers_are_told_apart():
    def at(fault, name, step):
        trial = suspect(ZEROED, fault)
        return own(trial.this, name)[2][step], own(trial.right, name)[2][step]

    assert at("rank-2-detached", "own_grad_norm", SINCE)[0] == 0
    steeper, right = at("rank-2-steeper", "own_grad_norm", SINCE)
    assert steeper == pytest.approx(8 * right)
    by_heart, right = at("rank-2-same-batch", "own_loss", 23)
    assert by_heart < 0.9 * right
    ahead, right = at("rank-2-a-batch-ahead", "own_loss", SINCE)
    assert ahead != right
    for fault in ("rank-2-detached", "rank-2-same-batch", "rank-2-a-batch-ahead"):
        with pytest.raises(AssertionError):
            check_zeroed(suspect(ZEROED, fault))


# -- who parted ways


def check_parted(trial: Trial) -> None:
    counts, right = calls(trial.this), calls(trial.right)
    for axis, of_ranks in counts[-1].items():
        assert of_ranks == right[-1][axis]  # in the end "as many as the formula says"
        before = [of[axis] for of in counts]
        assert before[SINCE][2] == before[SINCE - 1][2] and before[:SINCE] == [
            of[axis] for of in right[:SINCE]
        ]
        for step in range(SINCE, 23):  # a step behind
            assert [before[step][r] for r in (0, 1, 3)] == [right[step][axis][0]] * 3
            assert before[step][2] == right[step - 1][axis][2]


def test_a_step_that_one_rank_left_out():
    trial = trial_of(PARTED)
    check_parted(trial)
    held = [rank.end for rank in trial.this.ranks]
    assert all(looks._apart(held[0], held[1], name) == 0 for name in held[0])
    drifts = [looks._apart(held[0], held[2], name) for name in held[0]]
    assert 0.1 > max(drifts) > looks.ROUNDING
    assert "first in step 9" in summary(trial, "calls")


def test_mutant_calls_are_counted_in_the_end(monkeypatch):
    real = looks.calls
    monkeypatch.setattr(looks, "calls", lambda run: real(run)[-1:])
    with pytest.raises(AssertionError):
        check_shown(PARTED)


def test_mutant_nothing_was_left_out():
    with pytest.raises(AssertionError):
        check_parted(not_at_work(trial_of(PARTED)))


@pytest.mark.weekly
def test_a_rate_that_is_ahead_drifts_with_all_calls_in_place():
    trial = suspect(PARTED, "rank-2-rate-ahead")
    assert calls(trial.this) == calls(trial.right)
    held = [rank.end for rank in trial.this.ranks]
    assert looks._apart(held[0], held[2], "embed.weight") > looks.ROUNDING


# -- a spike that is the text's


def test_the_spike_is_the_texts():
    trial, (at, replica) = trial_of(SPIKE), CASES[SPIKE].odd
    losses = own(trial.this, "own_loss")
    for rank, of in enumerate(losses):
        jumps = of[at] > 1.3 * max(of[at - 1], of[at + 1])
        assert jumps == (rank == replica)  # "and the others' did not"
    assert losses == own(trial.right, "own_loss")
    for of in (trial.this.losses, trial.one.losses):
        assert of[at] > 1.1 * max(of[at - 1], of[at + 1])


def test_mutant_the_noise_is_in_this_run_only():
    spike, other = trial_of(SPIKE), trial_of(ZEROED)
    with pytest.raises(AssertionError):
        check_shown(SPIKE, trial=Trial(spike.this, other.right, other.one))


@pytest.mark.weekly
def test_what_a_device_would_have_done_in_that_step():
    at, replica = CASES[SPIKE].odd
    three = suspect(SPIKE, "loss-three-times")
    mine, right = (own(run, "own_loss")[replica][at] for run in (three.this, three.right))
    assert mine == pytest.approx(3 * right)
    ten = suspect(SPIKE, "gradient-ten-times")
    mine, right = (own(run, "own_grad_norm")[replica][at] for run in (ten.this, ten.right))
    assert mine == pytest.approx(10 * right)
    assert own(ten.this, "own_loss")[replica][at] == own(ten.right, "own_loss")[replica][at]
