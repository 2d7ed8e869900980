"""Who keeps the others waiting: the culprit of a hang, if the evidence names one.

When nothing moves, most ranks stand in a collective and wait, and the loudest thing about them is
that they look alike. The evidence is in who does *not*. In this order, the first that speaks:

1. a rank that the system shows as stopped (SIGSTOP): nothing goes on without it;
2. a rank that has returned, and that another one waits for: it will never come;
3. a rank that is in no collective, and that another one waits for;
4. the only rank that is missing from a collective which at least two of its group are in: it is in
   one of another operation, shape or group.

Whom a rank waits for is read from its beacon (`monitoring/beacon.py`): the group of the
collective it is in, or the peer. With two ranks that differ there is no majority, so neither is
named. Nor is anybody if all are in the same collective, or all outside: then their stacks are what
there is. To name the first rank in such cases would send the reader to correct code."""

import re
from collections import Counter
from collections.abc import Collection, Hashable, Mapping
from typing import NamedTuple

from picolab.monitoring.beacon import Reading


class Blame(NamedTuple):
    """`suspects`: those whom the evidence fits. One: the culprit. None: it cannot be told."""

    suspects: tuple[int, ...]
    why: str

    @property
    def rank(self) -> int | None:
        return self.suspects[0] if len(self.suspects) == 1 else None


def of_hang(
    readings: Mapping[int, Reading],
    returned: Collection[int] = (),
    stopped: Collection[int] = (),
    calling: Collection[int] = (),
) -> Blame:
    """Whom to blame, by the rules above.

    readings  each rank's beacon
    returned  the ranks whose function has ended
    stopped   the ranks that the system shows as stopped
    calling   the ranks whose stack ends inside torch.distributed: they are in a call, whatever
              the beacon says (not every call of torch's is written to it)"""
    there = set(readings) - set(returned)
    inside = {rank for rank in there if readings[rank].inside}
    # A batch is written when it is issued; that somebody waits for it is not.
    unseen = {rank for rank in there if readings[rank].text.startswith("batch_isend_irecv")}
    outside = there - inside - unseen - set(calling)
    awaited = {peer for rank in inside for peer in _awaits(rank, readings)}

    for suspects, what in (
        (there & set(stopped), "stopped by a signal (SIGSTOP)"),
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
    listed = re.search(r"\branks \(([\d, ]*)", reading.text)
    return set(map(int, re.findall(r"\d+", listed[1]))) if listed else set()


def signature(reading: Reading) -> str:
    """Operation and shape of a beacon's text, without the ranks, the reason, and who sends to
    whom.
    """
    text = re.sub(r"( to \d+.*| from \d+)? \([^()]*\)$", "", reading.text)
    return re.sub(r" of ranks \([\d, ]*\)", "", text)


_PEER = re.compile(r" (?:to|from) (\d+)")
_BETWEEN_TWO = re.compile(r"i?(?:send|recv)\b")


def _awaits(rank: int, readings: Mapping[int, Reading]) -> set[int]:
    """Those without whom the call that this rank is in may not end."""
    reading = readings[rank]
    peers = set(map(int, _PEER.findall(reading.text)))
    return (peers or group(reading) or set(readings)) - {rank}


def _only_one_missing(readings: Mapping[int, Reading], inside: set[int]) -> set[int]:
    """Rule 4. If two collectives miss one each, that speaks against nobody."""
    calls: dict[tuple, set[int]] = {}
    for rank in inside:
        reading = readings[rank]
        if not _BETWEEN_TWO.match(reading.text):
            call = (frozenset(group(reading)), signature(reading))
            calls.setdefault(call, set()).add(rank)
    missing = {
        rank
        for (members, _), here in calls.items()
        for rank in members - here
        if len(here) >= 2 and len(members - here) == 1
    }
    return missing if len(missing) == 1 else set()
