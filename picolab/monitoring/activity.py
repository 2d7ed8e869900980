"""What every rank did during one step, moment by moment, and which messages travelled between them.

The split of a step (`step_split`) says how much of it was compute, communication, waiting and
bubble. This says when: the same seconds, laid out in time.

    collective   ....waiting....|--communication--      of the exposed time, w first, then c
    between two  ########## compute ##########

A message leaves when its sender issues the send and arrives when its receiver has it; so where an
arrow ends, a stand-still ends. Intervals of one rank follow one another without gap or overlap,
and add up to the step's seconds.

Source of the times: the ledger's entries, and each rank's start of the step (of events written
before that was told: its first collective). One clock, as in `step_split`: one machine.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from picolab.monitoring.ledger import Entry
from picolab.monitoring.step_split import (
    Message,
    StepSplit,
    arrival,
    messages_of,
    standing_still,
    waiting_of,
)

KINDS = ("compute", "communication", "waiting", "bubble")
_SIGNS = {"compute": "#", "communication": "=", "waiting": ".", "bubble": " "}


class Interval(NamedTuple):
    """A rank was busy with one kind of thing from start to end (seconds of the monotonic clock)."""

    rank: int
    kind: str
    start: float
    end: float
    entry: Entry | None = None  # of all kinds but compute

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Activity(NamedTuple):
    """One step of all ranks."""

    step: int
    bounds: dict[int, tuple[float, float]]  # rank -> the step's start and end
    intervals: list[Interval]  # by rank, then by time
    messages: list[Message]

    @property
    def start(self) -> float:
        return min(start for start, _ in self.bounds.values())

    @property
    def end(self) -> float:
        return max(end for _, end in self.bounds.values())

    def split(self) -> dict[int, StepSplit]:
        """The seconds of each kind, for each rank."""
        sums = {rank: dict.fromkeys(KINDS, 0.0) for rank in self.bounds}
        for interval in self.intervals:
            sums[interval.rank][interval.kind] += interval.seconds
        return {rank: StepSplit(*of.values()) for rank, of in sums.items()}

    def sentence(self) -> str:
        """What was found, in a line."""
        whole = sum(end - start for start, end in self.bounds.values()) or 1.0
        shares = [100 * sum(part) / whole for part in zip(*self.split().values())]
        parts = [f"{share:.0f} % {kind}" for share, kind in zip(shares, KINDS) if share >= 0.5]
        count = len(self.messages)
        said = f"; {count} message{'s' * (count != 1)}" if count else ""
        return (
            f"step {self.step}: {1e3 * (self.end - self.start):,.0f} ms, {', '.join(parts)}{said}"
        )

    def text(self, width: int = 100) -> str:
        """A row a rank, time to the right; each character is what took most of its time."""
        scale = (self.end - self.start) / width or 1.0
        edge = max(len(f"rank {rank}") for rank in self.bounds)
        rows = []
        for rank in self.bounds:
            parts = [dict.fromkeys(KINDS, 0.0) for _ in range(width)]
            for interval in (i for i in self.intervals if i.rank == rank):
                begin, end = ((t - self.start) / scale for t in interval[2:4])
                for column in range(int(begin), min(width, int(end) + 1)):
                    shared = min(end, column + 1) - max(begin, column)
                    parts[column][interval.kind] += max(0.0, shared)
            most = [max(part, key=part.__getitem__) if any(part.values()) else "" for part in parts]
            row = "".join(_SIGNS.get(kind, " ") for kind in most)
            rows.append(f"{f'rank {rank}':<{edge}} |{row}|")
        key = ", ".join(f"{sign} {kind}" for kind, sign in _SIGNS.items() if kind != "bubble")
        return "\n".join([*rows, f"{key}, nothing: bubble"])


def activity(
    step: int,
    entries: Iterable[Entry],
    seconds: Mapping[int, float],
    begins: Mapping[int, float] | None = None,
) -> Activity:
    """Of one step: its entries of all ranks, each rank's seconds, and when each began it."""
    entries = list(entries)
    begins = dict(begins or {})
    first: dict[int, float] = {}  # of ranks that did not tell
    for entry in entries:
        first[entry.rank] = min(first.get(entry.rank, arrival(entry)), arrival(entry))
    anywhere = min([*begins.values(), *first.values()], default=0.0)
    bounds = {}
    for rank, taken in sorted(seconds.items()):
        start = begins.get(rank, first.get(rank, anywhere))
        bounds[rank] = start, start + taken
    intervals = []
    waits = sorted(waiting_of(entries), key=lambda wait: wait[0].start)
    for rank, (start, end) in bounds.items():
        at = start
        for entry, waited in waits:
            if entry.rank != rank or not entry.exposed_s:
                continue
            arrived = entry.start + waited
            for kind, until in (
                ("compute", entry.start),
                (standing_still(entry), arrived),
                ("communication", entry.start + entry.exposed_s),
            ):
                until = min(until, end)
                if until > at:
                    about = entry if kind != "compute" else None
                    intervals.append(Interval(rank, kind, at, until, about))
                    at = until
        if end > at:
            intervals.append(Interval(rank, "compute", at, end))
    return Activity(step, bounds, intervals, messages_of(entries))
