"""Who keeps the others waiting: the culprit of a hang, if the evidence names one.

When nothing moves, most ranks stand in a collective and wait, and the loudest thing about them is
that they look alike. The evidence is in who does *not*. In this order, the first that speaks:

1. a rank that the system shows as stopped (SIGSTOP): nothing goes on without it;
2. the only rank that did something else than the others of its group under the same number: another
   operation, size or type, for another reason or in another step (`first_difference`);
3. a rank that has returned, and that another one waits for: it will never come;
4. a rank that is in no collective, and that another one waits for;
5. the only rank that is missing from a collective which at least two of its group are in: it is in
   one of another operation, shape or group.

Whom a rank waits for is read from its beacon (`monitoring/beacon.py`): the peer, or those of the
group of the collective it is in who have not entered as many of that group. With two ranks that
differ there is no majority, so neither is named. Nor is anybody if all are in the same collective,
or all outside: then their stacks are what there is. To name the first rank in such cases would send
the reader to correct code."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import NamedTuple

from picolab.monitoring.beacon import Call, Reading, parse

UNEVEN = ("all_to_all", "all_to_all_single")  # of which ranks may send different sizes
Calls = Mapping[int, Sequence[Call]]


class Blame(NamedTuple):
    """`suspects`: those whom the evidence fits. One: the culprit. None: it cannot be told."""

    suspects: tuple[int, ...]
    why: str

    @property
    def rank(self) -> int | None:
        return self.suspects[0] if len(self.suspects) == 1 else None


class Difference(NamedTuple):
    """Calls that should be one and the same, and are not: rank -> call."""

    calls: dict[int, Call]

    @property
    def rank(self) -> int | None:
        """The only one that did something else; None if there is no majority."""
        return odd_one_out({rank: sense(call) for rank, call in self.calls.items()})


def of_hang(
    readings: Mapping[int, Reading],
    returned: Collection[int] = (),
    stopped: Collection[int] = (),
    calling: Collection[int] = (),
    calls: Calls | None = None,
) -> Blame:
    """Whom to blame, by the rules above.

    readings  each rank's beacon
    returned  the ranks whose function has ended
    stopped   the ranks that the system shows as stopped
    calling   the ranks whose stack ends inside torch.distributed: they are in a call, whatever
              the beacon says (not every call of torch's is written to it)
    calls     each rank's newest calls"""
    there = set(readings) - set(returned)
    inside = {rank for rank in there if readings[rank].inside}
    # A batch is written when it is issued; that somebody waits for it is not.
    unseen = {rank for rank in there if readings[rank].text.startswith("batch_isend_irecv")}
    outside = there - inside - unseen - set(calling)
    awaited = {peer for rank in inside for peer in awaits(rank, readings, calls or {})}
    difference = first_difference(calls or {})
    odd = set() if difference is None or difference.rank is None else {difference.rank}

    for suspects, what in (
        (there & set(stopped), "stopped by a signal (SIGSTOP)"),
        (odd, "elsewhere than the others of the group"),
        (awaited & set(returned), "no longer there, having returned, and others wait for {}"),
        (awaited & outside, "in no collective, and others wait for {}"),
        (_only_one_missing(readings, inside), "elsewhere than the others of the group"),
    ):
        if suspects:
            verb, pronoun = ("is", "it") if len(suspects) == 1 else ("are", "them")
            why = f"{ranks(suspects)} {verb} {what.format(pronoun)}"
            return Blame(tuple(sorted(suspects)), why)
    if len(there) == 1:
        return Blame(tuple(there), f"{ranks(there)} alone has not returned")
    if len(there) == 2:
        return Blame((), "neither of the two ranks can be told from the other")
    return Blame((), "nothing tells one of the ranks from the others")


def odd_one_out(values: Mapping[int, Hashable]) -> int | None:
    """The one rank whose value is not that of all the others; None where there is none, or no
    majority: of two, neither is the odd one.
    """
    (common, count), *_ = Counter(values.values()).most_common(1) or [(None, 0)]
    odd = [rank for rank, value in values.items() if value != common]
    return odd[0] if count >= 2 and len(odd) == 1 else None


def ranks(numbers: Collection[int]) -> str:
    """ "rank 3", or "ranks 0, 2"."""
    numbers = sorted(numbers)
    return f"rank {numbers[0]}" if len(numbers) == 1 else "ranks " + ", ".join(map(str, numbers))


def group(reading: Reading) -> set[int]:
    """The ranks of the collective that a beacon's text names; empty if it names none."""
    return set(parse(reading.text).ranks)


def signature(reading: Reading) -> str:
    """Operation and shape of a beacon's text, without the ranks, the reason, and who sends to
    whom.
    """
    text = re.sub(r"( to \d+.*| from \d+)? \([^()]*\)$", "", reading.text)
    return re.sub(r" of ranks \([\d, ]*\)", "", text)


def sense(call: Call) -> tuple:
    """What all ranks of a group should agree on in a call of the same number."""
    what = call.what
    return what.op, what.dtype, what.op not in UNEVEN and what.shape, what.reason, call.step


def first_difference(calls: Calls) -> Difference | None:
    """The first call, of those that are still known, in which ranks of a group parted ways."""
    same: dict[tuple, dict[int, Call]] = defaultdict(dict)
    for rank, of_rank in calls.items():
        for call in of_rank:
            if call.number and not call.what.is_message:
                same[call.group, call.number][rank] = call
    differ = [of for of in same.values() if len({sense(call) for call in of.values()}) > 1]
    first = min(differ, key=lambda of: min(call.place for call in of.values()), default=None)
    return first and Difference(first)


def standing(reading: Reading, calls: Sequence[Call]) -> Call | None:
    """The call in which a rank stands still, if it is known."""
    return next((call for call in calls if call.place == reading.waits), None)


def entered(call: Call, rank: int, other: int, calls: Sequence[Call]) -> int:
    """How many calls of the kind that `rank` stands in `other` has entered: of a receive, how many
    it sent to this rank. 0 if none is known."""
    group = call.group
    if call.what.is_message:
        group = (*group[:2], "recv" if group[2] == "send" else "send", rank)
    return max((known.number for known in calls if known.group == group), default=0)


def missing(rank: int, readings: Mapping[int, Reading], calls: Calls) -> set[int]:
    """Those who have not entered the call that this rank stands in; nobody, where numbers do not
    tell."""
    call, what = standing(readings[rank], calls.get(rank, ())), parse(readings[rank].text)
    if call is None or not call.number or (what.peers and not what.is_message):
        return set()
    others = set(what.peers or what.ranks) & set(readings) - {rank}
    return {o for o in others if entered(call, rank, o, calls.get(o, ())) < call.number}


def awaits(rank: int, readings: Mapping[int, Reading], calls: Calls) -> set[int]:
    """Those without whom the call that this rank is in may not end."""
    what = parse(readings[rank].text)
    others = set(what.peers) or set(what.ranks) or set(readings)
    return missing(rank, readings, calls) or others - {rank}


def _only_one_missing(readings: Mapping[int, Reading], inside: set[int]) -> set[int]:
    """Rule 5. If two collectives miss one each, that speaks against nobody."""
    calls: dict[tuple, set[int]] = {}
    for rank in inside:
        reading = readings[rank]
        if parse(reading.text).op.lstrip("i") not in ("send", "recv"):
            call = (frozenset(group(reading)), signature(reading))
            calls.setdefault(call, set()).add(rank)
    alone = {
        rank
        for (members, _), here in calls.items()
        for rank in members - here
        if len(here) >= 2 and len(members - here) == 1
    }
    return alone if len(alone) == 1 else set()
