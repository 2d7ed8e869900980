"""Where a rank's step went: computing, communicating, waiting for others, or in the bubble.

A collective ends for nobody before the last rank has arrived. So the time a rank stands still in
one has two parts, and they have different cures: until the last rank arrived it *waited* (a slow
or late rank is the cause), and from then on it *communicated* (the wire is the cause). For
collective k on rank r, with the arrival a[r] and the time it stood still from s[r] on, for e[r]
seconds:

    arrival        a[r] = s[r] + e[r] - seconds[r], where it was issued; if blocking, s[r]
    waiting        w[r] = max(a over its ranks) - s[r], clipped to 0..e[r]
    communication  c[r] = e[r] - w[r]
    compute        the step's seconds less all e[r]: whenever it did not stand still

The last arriver's w is 0 and its c is the pure transfer. The rank to blame for waiting is the one
without any.

A message is a collective of two: what the receiver stands still before the sender sends is
waiting, and so is what a sender stands still before the receiver takes it. An exchange (a ring's
hop, too) is one stand-still for two messages, and lasts until both can travel.

The stages of a pipeline wait for one another although none is slow: the schedule makes them. That
is the *bubble*, so waiting over the axis pp goes by this name: for the first activation, for the
gradient that comes back, and, after a stage's last backward, for the others to end theirs. Where
one stage is slow, the wait for it is bubble as well, as it is in `Timeline.bubble_of_total`.

Which entries belong together: all ranks of a group run the same program, so the k-th collective
of an (operation, axis, ranks) on one rank is the k-th on the others, and the k-th send of a
(sender, receiver, axis, reason) is the k-th receive; k counts in the order of issue. An entry whose
partners are missing counts as communication: no waiting is invented.

Start times are `time.monotonic()`, which all processes of one machine share. What this leaves
out: clocks of different machines, which would have to be aligned first.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from picolab.monitoring.ledger import Entry

_MESSAGES = ("send", "recv")
_PIPELINE = "pp"


class StepSplit(NamedTuple):
    """One rank's step (or the mean of several), in seconds."""

    compute_s: float
    communication_s: float
    waiting_s: float
    bubble_s: float

    @property
    def seconds(self) -> float:
        return sum(self)

    @property
    def held_up_s(self) -> float:
        """Waiting and bubble: what it stood still because others had not come yet."""
        return self.waiting_s + self.bubble_s


def arrival(entry: Entry) -> float:
    """When the rank issued the collective, on its monotonic clock."""
    # In this order a blocking one arrives exactly when it starts, without rounding.
    return entry.start + (entry.exposed_s - entry.seconds)


def standing_still(entry: Entry) -> str:
    """What the time is called in which the rank waits in this entry."""
    return "bubble" if entry.axis == _PIPELINE else "waiting"


def waiting_of(entries: Iterable[Entry]) -> list[tuple[Entry, float]]:
    """Each entry of one step, with the part of its exposed time in which the last of those it
    needs had not arrived.
    """
    entries = list(entries)
    arrivals, needed = needs_of(entries)
    result = []
    for entry, needs in zip(entries, needed):
        until = max(arrivals[j] for j in needs)
        result.append((entry, min(max(0.0, until - entry.start), entry.exposed_s)))
    return result


def needs_of(entries: list[Entry]) -> tuple[list[float], list[set[int]]]:
    """When each entry of one step was issued; and which of them (by their places, itself included)
    must have been issued before it can end. One whose partners are missing needs itself alone."""
    arrivals, halves = _arrivals(entries)
    keys, meetings = _meetings(entries, arrivals)

    def meets(i: int) -> set[int]:
        arrived = meetings[keys[i]]
        complete = arrived.keys() == set(_takes_part(entries[i]))
        return set(arrived.values()) if complete else {i}

    return arrivals, [{i} | meets(i) | meets(halves.get(i, i)) for i in range(len(entries))]


class Message(NamedTuple):
    """What one rank sent and another received, on the monotonic clock."""

    source: int
    target: int
    axis: str
    reason: str
    payload_bytes: int
    sent: float  # when the sender issued it
    received: float  # when the receiver had it


def messages_of(entries: Iterable[Entry]) -> list[Message]:
    """The messages of one step of which both ends are known, in the order in which they were
    sent."""
    entries = list(entries)
    arrivals, _ = _arrivals(entries)
    found = []
    for meeting in _meetings(entries, arrivals)[1].values():
        ends = {entries[i].op: i for i in meeting.values()}
        if ends.keys() == {*_MESSAGES}:
            sent, got = entries[ends["send"]], entries[ends["recv"]]
            about = sent.rank, got.rank, sent.axis, sent.reason, sent.payload_bytes
            found.append(Message(*about, arrivals[ends["send"]], got.start + got.exposed_s))
    return sorted(found, key=lambda message: message.sent)


class Transfer(NamedTuple):
    """How long one message took from one rank to another, from when both ends were there."""

    source: int
    target: int
    seconds: float


def transfers_of(entries: Iterable[Entry]) -> list[Transfer]:
    """Of each message of one step that was received: what its receiver stood still for it when all
    that it needs had been issued, less what it waited for a core.

    A ring's hop needs its neighbours, and under gloo, where it is an all-to-all, everybody: a rank
    that comes late at the other end of the ring is not this link's fault."""
    entries = list(entries)
    arrivals, halves = _arrivals(entries)
    seen: dict[tuple, int] = defaultdict(int)
    hops: dict[int, tuple] = {}
    all_there: dict[tuple, float] = {}
    for i in sorted(halves, key=arrivals.__getitem__):
        entry = entries[i]
        kind = entry.axis, entry.reason, tuple(entry.ranks)
        hops[halves[i]] = hop = kind, seen[entry.rank, kind]
        seen[entry.rank, kind] += 1
        all_there[hop] = max(arrivals[i], all_there.get(hop, arrivals[i]))
    sends = {receive: send for send, receive in halves.items()}
    found = []
    for i, (entry, waited) in enumerate(waiting_of(entries)):
        if entry.op != "recv" or entry.peer is None:
            continue
        timed = entry  # which of the two of an exchange has the time of both
        if i in sends:
            timed = entries[sends[i]]
            waited = max(0.0, all_there[hops[i]] - timed.start)
        taken = timed.exposed_s - waited - (timed.queued_s or 0.0)
        found.append(Transfer(entry.peer, entry.rank, max(0.0, taken)))
    return found


def _meetings(
    entries: list[Entry], arrivals: list[float]
) -> tuple[list[tuple], dict[tuple, dict[int, int]]]:
    """A key for each entry, the same for those that belong together; and for each key, rank ->
    its entry."""
    seen: dict[tuple, int] = defaultdict(int)
    meetings: dict[tuple, dict[int, int]] = defaultdict(dict)
    keys: list[tuple] = [()] * len(entries)
    for i in sorted(range(len(entries)), key=arrivals.__getitem__):
        entry = entries[i]
        kind = _kind(entry)
        keys[i] = kind, seen[entry.rank, kind]
        seen[entry.rank, kind] += 1
        meetings[keys[i]][entry.rank] = i
    return keys, meetings


def _arrivals(entries: list[Entry]) -> tuple[list[float], dict[int, int]]:
    """When each was issued, and of each exchange: its send -> its receive. The send has the time of
    both and the receive, which follows it in the ledger, none."""
    arrivals, halves = [arrival(entry) for entry in entries], {}
    before: dict[int, int] = {}  # rank -> its entry before this one
    for i, entry in enumerate(entries):
        j = before.get(entry.rank)
        before[entry.rank] = i
        if j is None or entry.op != "recv" or entry.seconds or entries[j].op != "send":
            continue
        if (entry.axis, entry.reason) == (entries[j].axis, entries[j].reason):
            arrivals[i], halves[j] = arrivals[j], i
    return arrivals, halves


def _kind(entry: Entry) -> tuple:
    """What entries have in common that may belong together."""
    if entry.op not in _MESSAGES:
        return entry.op, entry.axis, tuple(entry.ranks)
    way = (entry.rank, entry.peer) if entry.op == "send" else (entry.peer, entry.rank)
    return entry.axis, entry.reason, *way


def _takes_part(entry: Entry) -> Iterable[int | None]:
    return (entry.rank, entry.peer) if entry.op in _MESSAGES else entry.ranks


def step_split(entries: Iterable[Entry], seconds: Mapping[int, float]) -> dict[int, StepSplit]:
    """Split one step: `entries` of all ranks in that step, and each rank's seconds for the whole
    step.
    """
    exposed: dict[int, float] = defaultdict(float)
    waited: dict[int, float] = defaultdict(float)
    bubble: dict[int, float] = defaultdict(float)
    for entry, waiting_s in waiting_of(entries):
        exposed[entry.rank] += entry.exposed_s
        into = bubble if standing_still(entry) == "bubble" else waited
        into[entry.rank] += waiting_s
    return {
        rank: StepSplit(
            compute_s=max(0.0, total - exposed[rank]),
            communication_s=exposed[rank] - waited[rank] - bubble[rank],
            waiting_s=waited[rank],
            bubble_s=bubble[rank],
        )
        for rank, total in sorted(seconds.items())
    }


def mean_split(splits: Iterable[Mapping[int, StepSplit]]) -> dict[int, StepSplit]:
    """The mean over steps, for each rank that appears in them."""
    by_rank: dict[int, list[StepSplit]] = defaultdict(list)
    for split in splits:
        for rank, parts in split.items():
            by_rank[rank].append(parts)
    return {
        rank: StepSplit(*(sum(values) / len(rows) for values in zip(*rows)))
        for rank, rows in sorted(by_rank.items())
    }
