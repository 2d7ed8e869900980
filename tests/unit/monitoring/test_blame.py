"""Who is blamed for a hang, case by case.

Wrong versions these catch: the rank with the fewest collectives, of equals the first (the rule
that this one replaced, kept below), a majority over all ranks where each pair has a group of its
own, a rank of which nobody wants anything."""

import pytest

from picolab.launch import stacks
from picolab.monitoring import blame
from picolab.monitoring.beacon import Reading
from picolab.monitoring.blame import Blame

ALL = "ranks (0, 1, 2, 3)"
REDUCE = f"all_reduce of {ALL}: float32[1] (torch.distributed.all_reduce)"
LARGE = f"all_reduce of {ALL}: float32[64] (torch.distributed.all_reduce)"
BARRIER = f"barrier of {ALL}: (torch.distributed.barrier)"
GATHER = f"all_gather of {ALL}: float32[1] (torch.distributed.all_gather)"
RAW_RECV = f"recv of {ALL}: float32[1] (torch.distributed.recv)"
BATCH = "batch_isend_irecv (recv): float32[3] (torch.distributed)"
PAIR = "all_reduce of ranks (0, 1): float32[1] (torch.distributed.all_reduce)"


def at(text, entered=5):
    return Reading(entered, entered - 1, text)


def after(text, entered=5):
    return Reading(entered, entered, text)


def recv_from(source):
    return at(f"recv over pp of ranks (0, 1, 2, 3): float32[8] from {source} (pp: activation)")


def tp(low):
    return at(f"all_reduce over tp of ranks ({low}, {low + 1}): float32[8] (tp: output)")


def dp(low):
    return at(f"all_reduce over dp of ranks ({low}, {low + 2}): float32[8] (dp: gradients)")


NOTHING = Reading(0, 0, "")
CASES = {
    # name: (readings, other evidence, suspects)
    "one in another operation": ([at(REDUCE)] * 3 + [at(BARRIER)], {}, {3}),
    "the first in another operation": ([at(BARRIER)] + [at(REDUCE)] * 3, {}, {0}),
    "one of another size": ([at(REDUCE), at(LARGE), at(REDUCE), at(REDUCE)], {}, {1}),
    "one stopped where all are": ([at(REDUCE)] * 4, {"stopped": {2}}, {2}),
    "stopped beats elsewhere": ([at(REDUCE)] * 3 + [at(BARRIER)], {"stopped": {1}}, {1}),
    "two stopped": ([at(REDUCE)] * 4, {"stopped": {1, 2}}, {1, 2}),
    "one outside": ([at(REDUCE, 6), at(REDUCE, 6), after(REDUCE), at(REDUCE, 6)], {}, {2}),
    "one outside that was ahead": ([at(REDUCE)] * 3 + [after(GATHER, 9)], {}, {3}),
    "one that never entered any": ([NOTHING] + [at(REDUCE)] * 3, {}, {0}),
    "two outside": ([at(REDUCE), after(REDUCE), after(REDUCE), at(REDUCE)], {}, {1, 2}),
    "outside, but nobody wants it": (
        [at(PAIR), after(PAIR), after(PAIR, 2), after(PAIR, 2)],
        {},
        {1},
    ),
    "one returned": (
        [at(REDUCE), after(GATHER), at(REDUCE), after(REDUCE)],
        {"returned": {1}},
        {1},
    ),
    "returned, and nobody wants it": (
        [at(PAIR), after(PAIR), NOTHING, NOTHING],
        {"returned": {2, 3}},
        {1},
    ),
    "the end of a chain": (
        [recv_from(1), recv_from(2), recv_from(3), after(REDUCE)],
        {},
        {3},
    ),
    "in a call that the beacon does not know": (
        [at(REDUCE)] * 3 + [after(GATHER)],
        {"calling": {3}},
        {3},
    ),
    "two in calls that the beacon does not know": (
        [at(REDUCE)] * 2 + [after(GATHER)] * 2,
        {"calling": {2, 3}},
        set(),
    ),
    "perhaps waiting for a batch": ([at(REDUCE)] * 2 + [after(BATCH)] * 2, {}, set()),
    "two and two": ([at(REDUCE)] * 2 + [at(BARRIER)] * 2, {}, set()),
    "two, one and one": ([at(REDUCE)] * 2 + [at(BARRIER), at(GATHER)], {}, set()),
    "all in the same": ([at(REDUCE)] * 4, {}, set()),
    "all in the same, with other counts": ([at(REDUCE, n) for n in (5, 9, 9, 9)], {}, set()),
    "all outside": ([after(REDUCE)] * 3 + [NOTHING], {}, set()),
    "a ring of receives": ([recv_from(n) for n in (1, 2, 3, 0)], {}, set()),
    "three receive, one reduces": ([at(RAW_RECV)] * 3 + [at(REDUCE)], {}, set()),
    "pairs in a circle": ([dp(0), dp(1), tp(2), tp(2)], {}, set()),
    "two pairs, both complete": ([tp(0), tp(0), tp(2), tp(2)], {}, set()),
    "two that differ": ([at(PAIR), at(PAIR.replace("all_reduce", "barrier"))], {}, set()),
    "two, one outside": ([at(PAIR), after(PAIR)], {}, {1}),
    "two, one stopped": ([at(PAIR), at(PAIR)], {"stopped": {0}}, {0}),
    "one alone": ([NOTHING], {}, {0}),
}


def suspects_of(case) -> tuple[set[int], Blame]:
    readings, evidence, _ = CASES[case]
    found = blame.of_hang(dict(enumerate(readings)), **evidence)
    return set(found.suspects), found


@pytest.mark.parametrize("case", CASES)
def test_the_evidence_names_those_it_fits_and_no_others(case):
    expected = CASES[case][2]
    suspects, found = suspects_of(case)
    assert suspects == expected, found.why
    assert found.rank == (next(iter(expected)) if len(expected) == 1 else None)
    for rank in expected:
        assert str(rank) in found.why


def test_the_sentences():
    def why(case):
        return suspects_of(case)[1].why

    assert why("one in another operation") == "rank 3 is elsewhere than the others of the group"
    assert why("two stopped") == "ranks 1, 2 are stopped by a signal (SIGSTOP)"
    assert why("one outside") == "rank 2 is in no collective, and others wait for it"
    assert why("two outside") == "ranks 1, 2 are in no collective, and others wait for them"
    assert why("two that differ") == "neither of the two ranks can be told from the other"
    assert why("two and two") == "nothing tells one of the ranks from the others"


def test_the_rule_before_named_innocent_ranks():
    """Mutant: outside a collective, or behind in the count; of equals, the first."""

    def before(readings, returned=(), **_):
        there = {n: reading for n, reading in enumerate(readings) if n not in returned}
        return min(there, key=lambda n: (there[n].inside, there[n].entered))

    wrong = {case for case, (readings, evidence, right) in CASES.items()} - {
        case for case, (r, evidence, right) in CASES.items() if {before(r, **evidence)} == right
    }
    assert wrong >= {
        *("one in another operation", "one stopped where all are", "two that differ"),
        *("one of another size", "all in the same, with other counts"),
    }


def test_a_stack_that_ends_in_torch_distributed():
    inside = '  File "/a.py", line 1, in f\n    dist.gather(x)\n  File "/x/torch/distributed/d.py"'
    assert stacks.ends_in_torch_distributed(f"{inside}, line 3, in gather\n    work.wait()")
    within = f"{inside}, line 3, in step\n    fn()\n  Cell In[7], line 3, in fn\n    time.sleep(9)"
    assert not stacks.ends_in_torch_distributed(within)
    assert not stacks.ends_in_torch_distributed("  gave no stack")
