"""Where a rank's step went: computing, communicating, or waiting for others.

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

Which entries belong together: all ranks of a group run the same program, so the k-th collective
of an (operation, axis, ranks) on one rank is the k-th on the others. An entry whose partners are
missing counts as communication: no waiting is invented. Messages (send, recv) count as
communication, since only two ranks take part and their entries are of different operations.

Start times are `time.monotonic()`, which all processes of one machine share. What this leaves
out: clocks of different machines, which would have to be aligned first.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from picolab.monitoring.ledger import Entry

_MESSAGES = ("send", "recv", "exchange")


class StepSplit(NamedTuple):
    """One rank's step (or the mean of several), in seconds."""

    compute_s: float
    communication_s: float
    waiting_s: float

    @property
    def seconds(self) -> float:
        return self.compute_s + self.communication_s + self.waiting_s


def arrival(entry: Entry) -> float:
    """When the rank issued the collective, on its monotonic clock."""
    # In this order a blocking one arrives exactly when it starts, without rounding.
    return entry.start + (entry.exposed_s - entry.seconds)


def waiting_of(entries: Iterable[Entry]) -> list[tuple[Entry, float]]:
    """Each entry of one step, with the part of its exposed time in which the last rank had not
    arrived.
    """
    entries = list(entries)
    seen: dict[tuple, int] = defaultdict(int)
    groups: dict[tuple, list[Entry]] = defaultdict(list)
    keys = []
    for entry in entries:
        kind = (entry.op, entry.axis, tuple(entry.ranks))
        k = seen[entry.rank, kind]
        seen[entry.rank, kind] += 1
        keys.append((kind, k))
        groups[kind, k].append(entry)
    result = []
    for entry, key in zip(entries, keys):
        group = groups[key]
        complete = {other.rank for other in group} == set(entry.ranks)
        if entry.op in _MESSAGES or not complete:
            result.append((entry, 0.0))
            continue
        last = max(arrival(other) for other in group)
        result.append((entry, min(max(0.0, last - entry.start), entry.exposed_s)))
    return result


def step_split(entries: Iterable[Entry], seconds: Mapping[int, float]) -> dict[int, StepSplit]:
    """Split one step: `entries` of all ranks in that step, and each rank's seconds for the whole
    step.
    """
    exposed: dict[int, float] = defaultdict(float)
    waited: dict[int, float] = defaultdict(float)
    for entry, waiting_s in waiting_of(entries):
        exposed[entry.rank] += entry.exposed_s
        waited[entry.rank] += waiting_s
    return {
        rank: StepSplit(
            compute_s=max(0.0, total - exposed[rank]),
            communication_s=exposed[rank] - waited[rank],
            waiting_s=waited[rank],
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
