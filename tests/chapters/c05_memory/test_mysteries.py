"""The two looks at memory: what tells the leaks of chapter 5 apart, and a run that has none.

That a fault shows in the looks that it is said to, chapter 1's test of all mystery runs asks. Here:
do the numbers of a look decide? Wrong versions these catch, kept as mutants: a look that counts
every tensor object that Python has over a storage, so that a view's base hides it, and a case whose
fault is not at work.
"""

import gc
from itertools import pairwise

import pytest
import torch

from picolab import launch
from picolab.exercises import mystery_runs
from picolab.exercises.mystery_faults import find
from picolab.exercises.mystery_looks import _grown, look, summary
from picolab.specs import assemble
from tests.chapters.c01_4d_basics.test_mystery import CASES, trial_of

BLOCK = 2 * 64 * 64 * 4  # bytes of a block's result, of one micro-batch
A_STEP = BLOCK * 2 * 4  # of 2 blocks and 4 micro-batches
LATE = 64  # bytes of a count or a norm, which a collective may let go of a step later


def of_fault(fault: str):
    """A case that has this suspect, and the trial were it the culprit."""
    for case in CASES.values():
        for letter, suspect in case.letters.items():
            if case.memory and suspect.fault == fault:
                return trial_of(case.id, letter)
    raise AssertionError(fault)


def steps_of(trial) -> list[int]:
    """By how much rank 0 has more, step after step."""
    more = _grown(trial)
    return [b - a for a, b in pairwise(more)]


def grows(trial, by: list[int]) -> bool:
    steps = steps_of(trial)
    return len(steps) == len(by) and all(abs(a - b) <= LATE for a, b in zip(steps, by))


def check_views(trial) -> None:
    (one,) = trial.this.ranks[0].remains
    assert one.where.startswith("model/transformer.py") and not one.circle
    assert one.nbytes == 11 * A_STEP  # all but those of the last step
    assert one.numbers == 11 * 2 * 4 * 64 * 4
    assert grows(trial, [A_STEP] * 12)


def test_a_view_keeps_far_more_than_its_numbers():
    trial = trial_of("memory.mystery.1")
    check_views(trial)
    assert "2,883,584" in repr(look(trial, "lines")) and "22,528" in summary(trial, "lines")


def _weighed(fault: str, held_by_python) -> list[mystery_runs.Remains]:
    """What is left of a run on one rank, which looks for holders in this way."""
    case = CASES["memory.mystery.1"]
    config = assemble(layout="dp1", **case.settings)
    run = launch.run(_rank, held_by_python, config, fault, world_size=1, backend="gloo", quiet=True)
    return run[0]


def _rank(held_by_python, config, fault):
    mystery_runs._held_by_python = held_by_python  # (in this rank alone)
    return mystery_runs._rank(config, find(fault), CASES["memory.mystery.1"]).remains


def _every_one():
    return [of for of in gc.get_objects() if issubclass(type(of), torch.Tensor)]


def test_mutant_every_tensor_object_counts():
    """A view's base has an object in Python, too, which nobody there holds."""
    (one,) = _weighed("views-kept", mystery_runs._held_by_python)
    assert one.numbers < one.nbytes / 100
    (one,) = _weighed("views-kept", _every_one)
    assert one.numbers > one.nbytes  # as of a tensor that is kept whole


def test_a_graph_is_held_by_autograd_alone():
    trial = trial_of("memory.mystery.2")
    remains = trial.this.ranks[0].remains
    assert len(remains) > 8 and sum(one.nbytes for one in remains) > 40 * A_STEP
    assert sum(one.numbers for one in remains) == 11 * 4  # the losses themselves
    first, second, *_ = steps_of(trial)  # (the first makes tables that stay)
    assert grows(trial, [first, *[second] * 11])


def test_a_right_run_grows_once():
    trial = trial_of("memory.mystery.3")
    totals = [of["total"] for of in trial.this.ranks[0].memory]
    assert max(totals[1:]) - min(totals[1:]) <= LATE and trial.this.ranks[0].remains == []
    assert totals[1] / totals[0] == pytest.approx(5 / 3, abs=0.02)  # "two thirds more"
    hundred = totals[0] + 100 * (totals[1] - totals[0])
    assert 65 < hundred / totals[0] < 75  # "seventy times"
    moments = trial.this.ranks[0].memory[1]["optimizer"]
    assert moments == pytest.approx(2 * trial.this.ranks[0].memory[1]["parameters"], rel=0.01)


@pytest.mark.weekly
def test_the_others_are_told_apart():
    whole, circle = of_fault("activations-kept"), of_fault("circles-and-no-collector")
    for trial, is_circle in ((whole, False), (circle, True)):
        (one,) = trial.this.ranks[0].remains
        assert one.circle == is_circle and one.numbers == one.nbytes == 11 * A_STEP
    three = of_fault("activations-kept-for-three-steps")
    assert grows(three, [A_STEP] * 3 + [0] * 9)
    losses = of_fault("losses-kept-with-their-graph")
    (one,) = losses.this.ranks[0].remains
    assert one.nbytes == one.numbers == 11 * 4 * 4 and grows(losses, [16] * 12)


def test_mutant_a_run_without_the_fault():
    right = trial_of("memory.mystery.1")
    with pytest.raises(ValueError, match="not enough values"):
        check_views(type(right)(right.right, right.right, right.one))
