"""Exercise: who waits for whom, and where the chain ends (chapter 6).

Cases by hand first (one rank outside, a pipeline that stands, a chain over three axes, two ranks
that wait for each other), then a hundred random states of a dp2tp2pp2 job. What is right is the
closure of "waits for", by repeated squaring of a matrix; a solution walks it.
"""

import random
from itertools import product

import torch

from picolab.chapters.c06_monitoring.known_mistakes import judge_each
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_culprits(groups, entered, inside):
    raise NotImplementedError("return the ranks at which waiting ends")


def solution(groups, entered, inside):
    waits = {rank: set() for rank in inside}
    for rank, call in inside.items():
        if call is None:
            continue
        kind, whom = call
        if kind == "collective":  # for those that have not entered the one that it is in
            number = entered[rank][whom]
            waits[rank] = {r for r in groups[whom] if entered[r][whom] < number}
        elif inside[whom] != ("send" if kind == "recv" else "recv", rank):
            waits[rank] = {whom}  # else both ends are there, and the message is under way

    def reached(start):
        found, open_ = set(), list(waits[start])
        while open_:
            rank = open_.pop()
            if rank not in found:
                found.add(rank)
                open_ += waits[rank]
        return found

    ends = {rank: reached(rank) for rank in waits}
    awaited = set().union(*waits.values()) if waits else set()
    # An end of the chains: all that it waits for itself waits for it, or it waits for nobody.
    return sorted(r for r in awaited if all(r in ends[other] for other in ends[r]))


def judge(learner, attempt: Attempt) -> None:
    questions = [(about, _arguments(*rest)) for about, *rest in [*_small(), *_random()]]
    judge_each(learner, attempt, questions, _wrong, _MISTAKES, _alike, _culprits(), 50)


def _arguments(groups, entered, inside) -> dict:
    return {"groups": groups, "entered": entered, "inside": inside}


def _job(dp: int, pp: int, tp: int) -> dict[str, tuple[int, ...]]:
    """The groups of a layout, by name; ranks are pp-major, tp-minor."""
    at = {(d, p, t): (p * dp + d) * tp + t for d, p, t in product(*map(range, (dp, pp, tp)))}
    groups: dict[str, tuple[int, ...]] = {}
    for (d, p, t), rank in sorted(at.items(), key=lambda one: one[1]):
        for name in (f"dp of {p}, {t}", f"tp of {p}, {d}"):
            groups[name] = (*groups.get(name, ()), rank)
    return groups


def _even(groups, number: int, ranks: int) -> dict:
    return {r: {name: number for name, of in groups.items() if r in of} for r in range(ranks)}


def _small():
    four = {"world": (0, 1, 2, 3)}

    def of_four(numbers, inside):
        return four, {r: {"world": n} for r, n in enumerate(numbers)}, dict(enumerate(inside))

    c = ("collective", "world")
    yield "three wait, one is in its own code", *of_four((8, 8, 7, 8), (c, c, None, c))
    yield "nobody is in a call", *of_four((8, 8, 8, 8), (None,) * 4)
    yield "all are in the same call", *of_four((8, 8, 8, 8), (c,) * 4)
    yield "all have entered, one has left already", *of_four((8, 8, 8, 8), (c, None, c, c))
    yield "two are missing", *of_four((8, 7, 7, 8), (c, None, None, c))
    yield "one is a call ahead of the others", *of_four((8, 9, 8, 8), (c, c, c, c))
    yield "one waits in an earlier call", *of_four((8, 7, 8, 8), (c, c, c, c))
    yield (
        "a pipeline: each waits for the stage before, the first is in its own code",
        {}, {r: {} for r in range(4)},
        {0: None, 1: ("recv", 0), 2: ("recv", 1), 3: ("recv", 2)},
    )  # fmt: skip
    yield (
        "two ranks that both send first", {}, {0: {}, 1: {}, 2: {}},
        {0: ("send", 1), 1: ("send", 0), 2: ("recv", 1)},
    )  # fmt: skip
    yield (
        "a message that is under way", {}, {0: {}, 1: {}, 2: {}},
        {0: ("send", 1), 1: ("recv", 0), 2: ("recv", 1)},
    )  # fmt: skip
    yield (
        "two that both receive, and one that waits for a third", {}, {r: {} for r in range(4)},
        {0: ("recv", 1), 1: ("recv", 0), 2: ("recv", 3), 3: None},
    )  # fmt: skip
    yield (
        "a circle of three messages, of which none meets its own", {}, {r: {} for r in range(3)},
        {0: ("send", 1), 1: ("recv", 2), 2: ("recv", 0)},
    )  # fmt: skip
    yield (
        "a circle of two, of which one waits for a third as well", {"a": (0, 1, 2), "b": (0, 1)},
        {0: {"a": 3, "b": 2}, 1: {"a": 2, "b": 3}, 2: {"a": 2}},
        {0: ("collective", "a"), 1: ("collective", "b"), 2: None},
    )  # fmt: skip
    groups = _job(2, 2, 2)
    entered = _even(groups, 5, 8)
    inside: dict = dict.fromkeys(range(8))
    # Rank 5 is in its own code; 4 waits for it in tp, 6 and 7 in dp and tp, and the first stage for
    # what 4 to 7 should send.
    for rank, name in ((4, "tp of 1, 0"), (7, "dp of 1, 1")):
        entered[rank][name] += 1
        inside[rank] = ("collective", name)
    entered[6]["dp of 1, 0"] += 1
    inside[6] = ("collective", "dp of 1, 0")
    inside |= {r: ("recv", r + 4) for r in range(4)}
    yield "a chain over tp, dp and the pipeline", groups, entered, inside
    crossed = {"a": (0, 1), "b": (0, 1)}
    yield (
        "two groups, entered in another order", crossed,
        {0: {"a": 3, "b": 2}, 1: {"a": 2, "b": 3}},
        {0: ("collective", "a"), 1: ("collective", "b")},
    )  # fmt: skip
    yield (
        "numbers of different groups that cannot be compared", {"a": (0, 1), "b": (1, 2)},
        {0: {"a": 90}, 1: {"a": 90, "b": 4}, 2: {"b": 3}},
        {0: ("collective", "a"), 1: ("collective", "b"), 2: None},
    )  # fmt: skip
    yield "a job of one rank", {"world": (0,)}, {0: {"world": 3}}, {0: ("collective", "world")}
    yield "no ranks at all", {}, {}, {}


def _random():
    draw = random.Random(0)
    for number in range(100):
        groups = _job(2, 2, 2) if number % 2 else _job(3, 1, 2)
        ranks = 8 if number % 2 else 6
        entered, inside = _even(groups, 5, ranks), dict.fromkeys(range(ranks))
        for rank in range(ranks):
            names, kind = list(entered[rank]), draw.random()
            if kind < 0.6:
                name = draw.choice(names)
                entered[rank][name] += draw.choice((0, 1, 1, 1, 2))
                inside[rank] = ("collective", name)
            elif kind < 0.8 and number % 2:
                inside[rank] = (draw.choice(("send", "recv")), (rank + 4) % 8)
        yield f"random state {number + 1}", groups, entered, inside


def _edges(groups, entered, inside, *, late=0, message=True, p2p=True, collectives=True,
           everybody=False, anybody=False) -> dict[int, set[int]]:  # fmt: skip
    """Who waits for whom, or what it is with a mistake."""
    found: dict[int, set[int]] = {rank: set() for rank in inside}
    for rank, call in inside.items():
        if call is not None and call[0] == "collective" and collectives:
            number = entered[rank][call[1]] + late
            found[rank] = {
                r for r in groups[call[1]]
                if r != rank and (everybody or entered[r][call[1]] < number)
            }  # fmt: skip
        elif call is not None and call[0] != "collective" and p2p:
            other = inside[call[1]]
            meets = {"send": "recv", "recv": "send"}[call[0]]
            to = other[1] if anybody and other else rank
            if not (message and other == (meets, to)):
                found[rank] = {call[1]}
    return found


def _culprits(*, ends=True, cycles=True, closed=True, awaited_only=True, **change):
    """The rule, or one with a mistake."""

    def found(groups, entered, inside) -> list[int]:
        edges = _edges(groups, entered, inside, **change)
        ranks = sorted(inside)
        reach = {r: set(edges[r]) for r in ranks}
        for _ in range(len(ranks).bit_length() + 1):  # chains of 1, 2, 4, ... edges
            reach = {r: reach[r].union(*(reach[m] for m in reach[r])) for r in ranks}
        awaited = {one for of in edges.values() for one in of}
        if not ends:
            return sorted(awaited)
        if not closed:
            last = {r for r in ranks if not edges[r] or r in reach[r]}
        elif not cycles:
            last = {r for r in ranks if not edges[r]}
        else:
            last = {r for r in ranks if all(r in reach[other] for other in reach[r])}
        return sorted(last & awaited if awaited_only else last)

    return found


def _outside(groups, entered, inside) -> list[int]:
    return sorted(r for r, call in inside.items() if call is None)


def _behind(groups, entered, inside) -> list[int]:
    done = {r: sum(of.values()) for r, of in entered.items()}
    return sorted(r for r in done if done[r] == min(done.values()))


def _first_only(groups, entered, inside) -> list[int]:
    return _culprits()(groups, entered, inside)[:1]


def _waiting(groups, entered, inside) -> list[int]:
    return sorted(r for r, of in _edges(groups, entered, inside).items() if of)


_MISTAKES = {
    "a rank that waits itself is no end: go on to whom it waits for": _culprits(ends=False),
    "two that wait for each other are an end, too: nobody outside of them is to blame": _culprits(
        cycles=False
    ),
    "a circle of which one waits for somebody outside of it is no end": _culprits(closed=False),
    "a receive belongs to a send if each names the other rank": _culprits(anybody=True),
    "who is in its own code is only to blame if somebody waits for it": _outside,
    "who has made fewest calls need not be it: numbers of different groups cannot be compared": (
        _behind
    ),
    "these are the ranks that wait": _waiting,
    "ends at which nobody waits are in it, too": _culprits(awaited_only=False),
    "who is in a call waits only for those that have not entered it": _culprits(everybody=True),
    "who has entered the same call is not waited for": _culprits(late=1),
    "a rank waits for those that have entered fewer calls of the group, one fewer included": (
        _culprits(late=-1)
    ),
    "messages are left out": _culprits(p2p=False),
    "collectives are left out": _culprits(collectives=False),
    "a message whose both ends are there is under way, and nobody waits for the other": _culprits(
        message=False
    ),
    "there may be several": _first_only,
}


def _wrong(got, given) -> str | None:
    right = _culprits()(**given)
    if isinstance(got, torch.Tensor):
        got = got.tolist()
    if not isinstance(got, list | tuple | set) or not all(type(r) is int for r in got):
        return "it returns no list of ranks, such as [2]"
    if not _alike(got, right):
        return f"it names {sorted(got)}, and should {right}"
    return None


def _alike(got, right) -> bool:
    return isinstance(got, list | tuple | set) and sorted(got) == list(right)


EXERCISE = Exercise(
    id="monitoring.hang.who_waits",
    goal="A job stands still. From each rank's last calls say where waiting ends: the ranks for "
    "whom others wait, directly or through others, and who wait for nobody outside of themselves.",
    interface="`my_culprits(groups, entered, inside)` returns a list of ranks, in order. "
    "`groups[name]` are the ranks of a process group. `entered[rank][name]` is how many of the "
    "group's collectives the rank has entered, finished or not. `inside[rank]` is where it is now: "
    "None (in its own code, or gone), `('collective', name)` (the last one of the group that it "
    "entered), `('send', peer)` or `('recv', peer)`. In a collective a rank waits for the members "
    "that have not entered that one. In a send or receive it waits for its peer, unless that is in "
    "the receive or send that belongs to it: then the message is under way. Ranks that wait for "
    "each other in a circle, and for nobody outside of it, are such an end, all of them.",
    budget="No communication: this is the work of whoever looks at a job from outside.",
    hints=(
        "Draw an arrow from each rank to all that it waits for. Where do the arrows lead in the "
        "end?",
        "For each rank collect all that can be reached by arrows. A rank is an end if everybody "
        "that it reaches reaches it as well (also if it reaches nobody).",
        "`sorted(r for r in awaited if all(r in reach[o] for o in reach[r]))`, where `awaited` are "
        "those that somebody has an arrow to.",
    ),
    stub_function=my_culprits,
    solution_function=solution,
    why="Most ranks of a hang are victims, and they look alike. A rank in a call points to those "
    "that have not come, and only to them; following the arrows ends at a rank that is in no call, "
    "or in a circle: two that both send first, two groups entered in another order. Numbers are "
    "compared within a group only. Whoever is in its own code without being awaited is nobody's "
    "culprit, and if everybody has entered nobody waits for a rank: then it is the transfer.",
    judge=judge,
    cases=(Case("dp1"),),
    blocked=(
        "picolab.monitoring.blame.of_hang",
        "picolab.monitoring.blame.missing",
        "picolab.monitoring.blame.awaits",
        "picolab.monitoring.who_waits.of_standstill",
    ),
)
