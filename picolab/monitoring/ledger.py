"""The ledger: one entry for each collective a rank took part in.

An entry says what was done (op, axis, dtype), how much (payload bytes, and the bytes this rank
would send if the operation ran as a ring), how long it took, and *why* it was done (the caller's
reason). Two conventions, and the formulas in `costs` keep the same ones:

    payload_bytes   the full tensor the operation is about: what is reduced, the gathered result
                    of an
                    all-gather, the whole input of a reduce-scatter, a rank's input of an
                    all-to-all, the message of a send
    ring_bytes      what one rank puts on the wire for it, see `costs.ring_bytes`

A rank's ledger is filled by `picolab.comm`; a run's ledger is all ranks' entries together.
"""

import time
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from picolab.monitoring import events
from picolab.monitoring.beacon import Beacon
from picolab.show.table import Table, bytes_text


class Entry(NamedTuple):
    rank: int
    step: int | None  # the optimizer step, where there is one
    op: str  # all_reduce, all_gather, reduce_scatter, all_to_all, broadcast, send, recv, barrier
    axis: str  # the mesh axis, or "world"
    ranks: tuple[int, ...]  # who took part, as global ranks
    dtype: str
    payload_bytes: int
    ring_bytes: float
    reason: str
    start: float  # time.monotonic() at the call (for an asynchronous one: at the start of wait)
    seconds: float  # call to return (asynchronous: issue to return of wait)
    exposed_s: float  # the part in which the caller stood still


def _from_json(fields: list) -> Entry:
    """An entry that was read back from a file: JSON has no tuples."""
    entry = Entry(*fields)
    return entry._replace(ranks=tuple(entry.ranks))


class Totals(NamedTuple):
    count: int = 0
    payload_bytes: int = 0
    ring_bytes: float = 0.0
    seconds: float = 0.0

    def add(self, entry: Entry) -> "Totals":
        return Totals(
            self.count + 1,
            self.payload_bytes + entry.payload_bytes,
            self.ring_bytes + entry.ring_bytes,
            self.seconds + entry.exposed_s,
        )


class Ledger:
    """A list of entries with questions it can answer.

    A run's ledger holds the entries of all ranks: `ledger.rank(0)` is what rank 0 did, and that
    is what the formulas of `costs` predict."""

    def __init__(self, entries: Iterable[Entry] = ()):
        self.entries = [e if isinstance(e, Entry) else _from_json(e) for e in entries]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self):
        return iter(self.entries)

    def where(self, **fields) -> "Ledger":
        """The entries whose fields have these values: `ledger.where(rank=0, op="all_reduce",
        axis="tp")`.
        """
        unknown = set(fields) - set(Entry._fields)
        if unknown:
            raise ValueError(
                f"a ledger entry has no field {sorted(unknown)}; its fields are {Entry._fields}"
            )
        return Ledger(
            entry
            for entry in self.entries
            if all(getattr(entry, name) == value for name, value in fields.items())
        )

    def rank(self, rank: int) -> "Ledger":
        return self.where(rank=rank)

    def step(self, step: int) -> "Ledger":
        return self.where(step=step)

    def total(self, **fields) -> Totals:
        """Count, payload, ring bytes and seconds (of exposed time) of the matching entries."""
        totals = Totals()
        for entry in self.where(**fields):
            totals = totals.add(entry)
        return totals

    def by(self, *names: str) -> dict[tuple, Totals]:
        """Totals for each combination of these fields, in order of first appearance."""
        groups: dict[tuple, Totals] = defaultdict(Totals)
        for entry in self.entries:
            key = tuple(getattr(entry, name) for name in names)
            groups[key] = groups[key].add(entry)
        return dict(groups)

    def by_reason(self) -> dict[str, Totals]:
        """Totals for each reason, largest payload first."""
        groups = {key[0]: totals for key, totals in self.by("reason").items()}
        return dict(sorted(groups.items(), key=lambda item: -item[1].payload_bytes))

    def table(self) -> Table:
        """One row for each (operation, axis, reason): how often, how much, how long."""
        rows = [
            [op, axis, reason, t.count, t.payload_bytes, round(t.ring_bytes), t.seconds * 1e3]
            for (op, axis, reason), t in self.by("op", "axis", "reason").items()
        ]
        rows.sort(key=lambda row: -row[4])
        columns = ["operation", "axis", "reason", "count", "payload bytes", "ring bytes", "ms"]
        return Table(columns, rows)

    def __repr__(self) -> str:
        total = self.total()
        ranks = len({entry.rank for entry in self.entries})
        return (
            f"Ledger: {total.count:,} collectives of {ranks} rank(s), payload "
            f"{bytes_text(total.payload_bytes)}, {total.seconds:.3f} s stood still"
        )


class RankLedger:
    """The writer's side: what the current rank did.

    `enter` is called before a collective and `record` after it; between them the beacon says in
    which collective the rank is. Together they cost about two microseconds."""

    def __init__(self):
        self.rank = 0
        self.step: int | None = None
        self.kept: list[Entry] = []
        self._flushed = 0
        self._beacon: Beacon | None = None
        self.now = time.monotonic

    def attach(self, rank: int, beacon: Beacon | None) -> None:
        self.rank, self._beacon = rank, beacon

    def enter(self, what: str) -> float:
        if self._beacon is not None:
            self._beacon.enter(what)
        return self.now()

    def record(
        self,
        op,
        axis,
        ranks,
        dtype,
        payload_bytes,
        ring_bytes,
        reason,
        start,
        seconds,
        exposed_s,
        leaves=True,
    ) -> None:
        """leaves: False for the second entry of a collective that is entered once (an exchange is
        a send and a receive). Were it counted as left twice, a rank that waits in another one
        would look as if it were outside.
        """
        if leaves and self._beacon is not None:
            self._beacon.leave()
        what = (op, axis, ranks, dtype, payload_bytes, ring_bytes, reason)
        self.kept.append(Entry(self.rank, self.step, *what, start, seconds, exposed_s))

    def snapshot(self) -> Ledger:
        """Everything recorded in this rank so far."""
        return Ledger(self.kept)

    def flush(self) -> None:
        """Send what is new as one event. The trainer does it each step, the rank's end does the
        rest.
        """
        new = self.kept[self._flushed :]
        if new:
            events.write("ledger", entries=new)
            self._flushed = len(self.kept)


current = RankLedger()  # this process's ledger: with the current mesh, the only global state
