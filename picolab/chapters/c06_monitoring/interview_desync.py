"""Exercise: where the lists of collectives of several ranks part, and whose it is (mon-032).

Lists are drawn from one seed on all ranks, and then changed on some: another entry, two exchanged,
one left out, one added, an early end. Fingerprints are large integers, so that a rank that sends
them as floating-point numbers loses their digits.
"""

import random
from collections import Counter

import torch

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_parting(calls, axis):
    raise NotImplementedError("return position, odd")


def solution(calls, axis):
    from collections import Counter

    import torch

    import picolab as pico

    n = pico.comm.mesh().size(axis)
    longest = pico.comm.all_reduce(torch.tensor([len(calls)]), axis, "longest list", op="max")
    row = torch.full((int(longest) + 1,), -1)  # -1 is no fingerprint: the list has ended
    row[: len(calls)] = torch.tensor(calls, dtype=torch.int64)
    columns = pico.comm.all_gather(row, axis, "all lists").view(n, -1).T.tolist()
    for position, column in enumerate(columns):
        if len(set(column)) > 1:
            common, count = Counter(column).most_common(1)[0]
            odd = [r for r in range(n) if column[r] != common] if 2 * count > n else []
            return position, odd
    return None, []


def judge(learner, attempt: Attempt) -> None:
    axis = attempt.case.values["axis"]
    mesh = comm.mesh()
    line, n = mesh.ranks(axis), mesh.size(axis)
    for seed, changes in enumerate(attempt.case.values["settings"]):
        attempt.setting(" and ".join(f"rank {r}: {what}" for r, what in changes) or "all alike")
        lists = _lists(seed, line, n, changes)
        given = {"calls": lists[mesh.rank(axis)], "axis": axis}
        result = attempt.call(learner, given)
        if attempt.returned(result, "position", "odd"):
            _compare(attempt, result, lists)
        attempt.only("all_reduce", "all_gather")
        attempt.along(axis)
        longest = max(map(len, lists))
        attempt.budget(count=2, at_least=1, axis=axis)
        most = 8 * n + 8 * n * (longest + 1)
        attempt.budget(payload_bytes=most, least_bytes=8, axis=axis)


def _lists(seed: int, line, n: int, changes) -> list[list[int]]:
    draw = random.Random(100 * seed + line[0])
    base = [draw.randrange(2**53, 2**62) for _ in range(draw.randint(5, 9))]
    base[3] = base[1]  # the same call is made more than once
    lists = [list(base) for _ in range(n)]
    for rank, what in changes:
        of, at = lists[rank], 2 + draw.randrange(2)
        match what:
            case "another call":
                of[at] += 1  # (which no float64 can tell)
            case "a call with another high digit":
                of[at] ^= 2**60
            case "two exchanged":
                of[0], of[2] = of[2], of[0]
            case "one left out":
                del of[at]
            case "one added":
                of.insert(at, draw.randrange(2**53, 2**62))
            case "an early end":
                del of[at:]
            case "one more at the end":
                of.append(of[0])
            case "its last call once more":
                of.append(of[-1])
            case "a call 1 at the end":
                of.append(1)
            case "another first call":
                of[0] = 1 + rank
            case "the same other first call":
                of[0] = 7
            case "none":
                of.clear()
    return lists


def _parting(lists, pad: int | None = -1, majority: bool = True):
    """Position and odd ranks. pad None: only as far as the shortest goes."""
    ends = [len(of) for of in lists]
    length = min(ends) if pad is None else max(ends)
    for at in range(length):
        column = [of[at] if at < len(of) else pad for of in lists]
        if len(set(column)) > 1:
            common, count = Counter(column).most_common(1)[0]
            if majority and 2 * count <= len(lists):
                return at, []
            return at, [r for r, one in enumerate(column) if one != common]
    return None, []


def _compare(attempt: Attempt, result, lists) -> None:
    position, odd = result
    position = position.item() if isinstance(position, torch.Tensor) else position
    odd = odd.tolist() if isinstance(odd, torch.Tensor) else odd
    expected = _parting(lists)
    if not (position is None or type(position) is int):
        attempt.wrong(f"the position is {position!r}; asked for is a whole number, or None")
        return
    if not isinstance(odd, list | tuple) or not all(type(r) is int for r in odd):
        attempt.wrong("`odd` is no list of ranks, such as [2], counted along the axis")
        return
    got = (position, list(odd))
    if got == expected:
        return
    attempt.wrong(_why(got, expected, lists))


def _why(got, expected, lists) -> str:
    at, odd = expected
    if got[0] != at:
        floats = [[float(one) for one in of] for of in lists]
        if at is None:
            return f"all lists are alike, and it says that they part at {got[0]}"
        if got == _parting(floats):
            return "fingerprints became floating-point numbers on their way, and lost their digits"
        if got[0] == _parting(lists, None)[0]:
            return (
                f"at {at} a list has ended and others go on: that is a difference, too; it says "
                f"{got[0]}"
            )
        if got[0] == at + 1:
            return f"positions count from 0: they part at {at}, and it says {got[0]}"
        last = max((i for i in range(min(map(len, lists))) if len({of[i] for of in lists}) > 1),
                   default=None)  # fmt: skip
        if got[0] is not None and got[0] == last:
            return f"it says where they part last, at {got[0]}; what counts is the first, {at}"
        if got[0] == 0 and at:
            return f"it says 0, and the first {at} calls are the same on all ranks"
        return f"they part at {at}, and it says {got[0]}"
    column = [of[at] if at < len(of) else -1 for of in lists]
    if not odd:
        return f"nobody has a majority at {at}, so nobody is odd; it names {got[1]}"
    if got[1] == [r for r in range(len(lists)) if column[r] != column[0]]:
        return f"it takes rank 0 for right, which is odd itself: {odd}, and not {got[1]}"
    if got[1] == [r for r in range(len(lists)) if r not in odd]:
        return f"it names the majority, {got[1]}; odd are the others, {odd}"
    if got[1] == [r for r in range(len(lists)) if lists[r] != lists[-1]]:
        return f"it takes the last rank for right; odd are {odd}, and not {got[1]}"
    return f"odd are {odd}, and it names {got[1]}"


_FOUR = (
    (), ((2, "another call"),), ((0, "another call"),), ((3, "two exchanged"),),
    ((1, "one left out"),), ((2, "one added"),), ((1, "an early end"),),
    ((0, "one more at the end"),), ((3, "none"),), ((1, "a call with another high digit"),),
    ((2, "its last call once more"),), ((3, "a call 1 at the end"),),
    ((0, "the same other first call"), (1, "the same other first call")),
    ((1, "another first call"), (2, "another first call"), (3, "another first call")),
    ((1, "another first call"), (3, "another first call")),
    ((0, "another first call"), (2, "another call")),
    tuple((rank, "none") for rank in range(4)),
)  # fmt: skip

EXERCISE = Exercise(
    id="interview.monitoring.desync",
    goal="Each rank of `axis` has the list of the collectives that it is going to make, as "
    "fingerprints: equal calls have equal ones. Return on every rank the first position at which "
    "not all lists agree, and which ranks are odd there.",
    interface="`my_parting(calls, axis)` returns `position, odd`. `calls` is a list of positive "
    "integers below 2^62; lists may have different lengths, and where one has ended and another "
    "goes on they differ. `position` counts from 0, and is None if all are alike. `odd`: the "
    "ranks, counted along the axis, that differ there from what more than half of the ranks have; "
    "an empty list where nothing has more than half (and where all are alike). You may use "
    "`pico.comm.all_reduce(t, axis, reason, op=...)`, `pico.comm.all_gather(t, axis, reason)` and "
    "`pico.comm.mesh()`.",
    budget="At most two collectives over the axis; together at most one number from each rank, "
    "and a row of the longest list's length and one more from each.",
    hints=(
        "An all-gather wants the same shape from all. What must everybody know before?",
        "First the longest length. Then everybody fills up its row with a number that is no "
        "fingerprint, and gathers. The same matrix is on all ranks: look at its columns.",
        "`Counter(column).most_common(1)`; a majority is `2 * count > n`. Keep int64 all the way.",
    ),
    stub_function=my_parting,
    solution_function=solution,
    why="Two collectives: the longest length, and rows that were filled up to it. All ranks have "
    "the same matrix, so they come to the same verdict without another word. Only the first column "
    "that is not constant says something; what follows is its consequence. Where no value has more "
    "than half nobody is accused: with two against two, to name those that differ from rank 0 "
    "would send the reader to correct code. And a list that ends is a difference, which the "
    "filling shows.",
    judge=judge,
    cases=(
        Case("dp4", "", {"axis": "dp", "settings": _FOUR}, "every rank takes part, always"),
        Case(
            "dp2tp2", "over tp, which is half of them",
            {"axis": "tp", "settings": ((), ((1, "another call"),), ((0, "an early end"),))},
        ),
        Case("dp3", "", {"axis": "dp", "settings": (*_FOUR[:3], ((2, "one left out"),))}),
    ),
)  # fmt: skip
