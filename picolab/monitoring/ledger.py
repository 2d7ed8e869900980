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

A run of 20,000 steps has millions of entries. In memory there are the newest of them, and of the
older ones what they add up to (`Folded`), so that totals over the whole run stay exact. Whoever
asks for older entries one by one gets them from the run directory, where all of them are.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from types import EllipsisType
from typing import NamedTuple

from picolab.monitoring import events
from picolab.monitoring.beacon import Beacon
from picolab.monitoring.core_clock import CoreClock
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
    peer: int | None = None  # of a message: the global rank at its other end
    # Ready to run and without a core (core_clock.py; None: not told), since the rank's entry before
    # this one until it stood still, and while it stood still.
    queued_before_s: float | None = None
    queued_s: float | None = None


def _from_json(fields: list) -> Entry:
    """An entry that was read back from a file: JSON has no tuples, and a new string for each."""
    rank, step, op, axis, ranks, dtype, payload, ring, reason, *rest = fields
    op, axis, dtype, reason = map(sys.intern, (op, axis, dtype, reason))
    return Entry(rank, step, op, axis, tuple(ranks), dtype, payload, ring, reason, *rest)


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

    def plus(self, other: "Totals") -> "Totals":
        return Totals(*(mine + theirs for mine, theirs in zip(self, other)))


class Group(NamedTuple):
    """What the totals of folded entries tell apart: every field of theirs that a program repeats
    in each step."""

    rank: int
    step: EllipsisType | None  # ... of some optimizer step or other, None of none
    op: str
    axis: str
    ranks: tuple[int, ...]
    dtype: str
    reason: str


class Folded:
    """Entries that are not in memory any more: their exact totals, and a way to read them again.

    read    an iterator over all of them; takes a step and then may leave out those of others.
            Raises LookupError where they are no more"""

    def __init__(self, read: Callable[[int | None], Iterator[Entry]]):
        self.totals: dict[Group, Totals] = defaultdict(Totals)
        self.last_step = -1  # the highest with an entry here
        self._read, self._filters = read, ()

    def add(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            rank, step, op, axis, ranks, dtype, _, _, reason, *_ = entry
            if step is not None:
                self.last_step = max(self.last_step, step)
                step = ...
            group = Group(rank, step, op, axis, ranks, dtype, reason)
            self.totals[group] = self.totals[group].add(entry)

    def only(self, *keeps: Callable[[Entry | Group], bool]) -> "Folded":
        """Those of them for which `keeps` holds; it may look at the fields of a `Group` only."""
        fewer = Folded(self._read)
        fewer._filters, fewer.last_step = (*self._filters, *keeps), self.last_step
        fewer.totals.update((g, t) for g, t in self.totals.items() if all(k(g) for k in keeps))
        return fewer

    def read(self, step: int | None = None) -> Iterator[Entry]:
        """The single entries; of one step, if that is all that is wanted."""
        return (e for e in self._read(step) if all(keeps(e) for keeps in self._filters))

    def tells_apart(self, fields: dict) -> bool:
        """Are the totals enough to know what the entries with these values add up to?"""
        return set(fields) <= set(Group._fields) and fields.get("step") is None


class ByReason(dict[str, Totals]):
    """`by_reason()["dp: gradient bucket"].payload_bytes` as ever; printed, a row a reason."""

    def table(self) -> Table:
        rows = [
            [reason, t.count, t.payload_bytes, round(t.ring_bytes), t.seconds * 1e3]
            for reason, t in self.items()
        ]
        return Table(["reason", "count", "payload bytes", "ring bytes", "ms stood still"], rows)

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


class Ledger:
    """A list of entries with questions it can answer.

    A run's ledger holds the entries of all ranks: `ledger.rank(0)` is what rank 0 did, and that
    is what the formulas of `costs` predict. Of a long run, only the newest entries are in memory:
    totals are exact all the same, and a question about single older ones is answered from the run
    directory, which takes a while (LookupError if it is gone).

    folded    the entries before these, if there were any
    """

    def __init__(self, entries: Iterable[Entry] = (), folded: Folded | None = None):
        self._newest = [e if isinstance(e, Entry) else _from_json(e) for e in entries]
        self._folded = folded if folded is not None and folded.totals else None

    @property
    def entries(self) -> list[Entry]:
        """All of them. Of a long run they fill the memory: `where` first, or go through the ledger
        with `for`."""
        return list(self) if self._folded else self._newest

    def __len__(self) -> int:
        older = self._folded.totals.values() if self._folded else ()
        return len(self._newest) + sum(totals.count for totals in older)

    def __iter__(self) -> Iterator[Entry]:
        if self._folded:
            yield from self._folded.read()
        yield from self._newest

    def where(self, **fields) -> "Ledger":
        """The entries whose fields have these values: `ledger.where(rank=0, op="all_reduce",
        axis="tp")`.
        """
        unknown = set(fields) - set(Entry._fields)
        if unknown:
            raise ValueError(
                f"a ledger entry has no field {sorted(unknown)}; its fields are {Entry._fields}"
            )

        def keeps(entry: Entry | Group) -> bool:
            return all(getattr(entry, name) == value for name, value in fields.items())

        newest, step = filter(keeps, self._newest), fields.get("step")
        if self._folded is None or (step is not None and step > self._folded.last_step):
            return Ledger(newest)
        if self._folded.tells_apart(fields):
            return Ledger(newest, self._folded.only(keeps))
        return Ledger([*filter(keeps, self._folded.read(step)), *newest])

    def rank(self, rank: int) -> "Ledger":
        return self.where(rank=rank)

    def step(self, step: int) -> "Ledger":
        return self.where(step=step)

    def in_steps(self) -> "Ledger":
        """What was done in optimizer steps, and not before, between or after them."""

        def keeps(entry: Entry | Group) -> bool:
            return entry.step is not None

        return Ledger(filter(keeps, self._newest), self._folded and self._folded.only(keeps))

    def total(self, **fields) -> Totals:
        """Count, payload, ring bytes and seconds (of exposed time) of the matching entries."""
        return self.where(**fields).by().get((), Totals())

    def by(self, *names: str) -> dict[tuple, Totals]:
        """Totals for each combination of these fields, in order of first appearance."""
        groups: dict[tuple, Totals] = defaultdict(Totals)
        entries = self._newest
        if self._folded and set(names) <= set(Group._fields) - {"step"}:
            for group, totals in self._folded.totals.items():
                key = tuple(getattr(group, name) for name in names)
                groups[key] = groups[key].plus(totals)
        elif self._folded:
            entries = self
        for entry in entries:
            key = tuple(getattr(entry, name) for name in names)
            groups[key] = groups[key].add(entry)
        return dict(groups)

    def by_reason(self) -> "ByReason":
        """Totals for each reason, largest payload first: a dictionary that shows as a table."""
        groups = {key[0]: totals for key, totals in self.by("reason").items()}
        return ByReason(sorted(groups.items(), key=lambda item: -item[1].payload_bytes))

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
        total, ranks = self.total(), len(self.by("rank"))
        text = (
            f"Ledger: {total.count:,} collectives of {ranks} rank(s), payload "
            f"{bytes_text(total.payload_bytes)}, {total.seconds:.3f} s stood still"
        )
        if self._folded:
            text += f"; of all but the newest {len(self._newest):,} there are totals in memory"
        return text


class RankLedger:
    """The writer's side: what the current rank did.

    `enter` is called before a collective and `record` after it; between them the beacon says in
    which collective the rank is. (Of an asynchronous one: `enter`, `go_on` once it is issued,
    `stand_still` as its wait begins, and `record`.) Together they cost about three microseconds,
    and twice one or two more for the question how long the rank waited for a core. At least the
    newest `KEPT` entries are in memory, one by one; older ones as totals, once they are sent."""

    KEPT = 20_000

    def __init__(self):
        self.rank = 0
        self.step: int | None = None
        self.kept: list[Entry] = []
        self._flushed = 0
        self._folded = Folded(_only_on_disk)
        self._beacon: Beacon | None = None
        self._numbers: dict[Hashable, int] = defaultdict(int)  # of the newest call, by group
        self.under_way = 0  # entered and not recorded yet
        self.now = time.monotonic
        self._cores = CoreClock()
        self._queued: float | None = None  # the core clock when the newest entry was written
        self._queued_still: float | None = None  # and when the rank last began to stand still

    def attach(self, rank: int, beacon: Beacon | None) -> None:
        self.rank, self._beacon, self._cores = rank, beacon, CoreClock()
        self._numbers.clear()

    def enter(self, what: str, group: Hashable = None) -> float:
        """group: in what the call is counted, as all of its members do (of messages: the axis, the
        direction and the other end). None: in nothing."""
        self.under_way += 1
        number = 0
        if group is not None:
            number = self._numbers[group] = self._numbers[group] + 1
        if self._beacon is not None:
            self._beacon.enter(what, number, self.step)
        return self.stand_still()

    def go_on(self) -> int:
        """The call that was entered last is issued, and the rank does not wait for it. Returns
        what `stand_still` is to be told when it does."""
        if self._beacon is None:
            return 0
        self._beacon.stand(0)
        return self._beacon.entered

    def stand_still(self, call: int = 0) -> float:
        """The time at which the rank begins to stand still, in a collective or in its wait. call:
        of `go_on`."""
        if call and self._beacon is not None:
            self._beacon.stand(call)
        self._queued_still = self._cores.read()
        return self.now()

    def queued(self) -> float | None:
        """Seconds without a core so far. The next entry counts its own from here."""
        self._queued = self._queued_still = self._cores.read()
        return self._queued

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
        peer=None,
    ) -> None:
        """leaves: False for the second entry of a collective that is entered once (an exchange is
        a send and a receive), which would be counted as left twice."""
        self.under_way -= leaves
        if leaves and self._beacon is not None:
            self._beacon.leave()
        what = (op, axis, ranks, dtype, payload_bytes, ring_bytes, reason)
        before, still, now = self._queued, self._queued_still, self._cores.read()
        self._queued = self._queued_still = now
        cores = (None, None)
        if before is not None and now is not None:
            cores = round(still - before, 7), round(now - still, 7)
        times = start, seconds, exposed_s, peer, *cores
        self.kept.append(Entry(self.rank, self.step, *what, *times))
        if len(self.kept) - self._flushed >= self.KEPT:
            self.flush()  # a function without steps never asks for it

    def snapshot(self) -> Ledger:
        """Everything recorded in this rank so far; what is older than `kept` as totals."""
        return Ledger(self.kept, self._folded.only())

    def flush(self) -> list[Entry]:
        """Send what is new as one event, and return it. The trainer does it each step, the rank's
        end does the rest.
        """
        new = self.kept[self._flushed :]
        if new:
            events.write("ledger", entries=new)
            if len(self.kept) >= 2 * self.KEPT:
                self._folded.add(self.kept[: -self.KEPT])
                del self.kept[: -self.KEPT]
            self._flushed = len(self.kept)
        return new


def _only_on_disk(step: int | None) -> Iterator[Entry]:
    raise LookupError(
        f"a rank keeps its newest {RankLedger.KEPT:,} collectives, and of older ones the totals; "
        "one by one they are in the run's ledger, which the kernel has: result.ledger"
    )


current = RankLedger()  # this process's ledger: with the current mesh, the only global state
