"""A run's events: all of them on disk, the newest in memory, and what the older ones add up to.

Four ranks that train for 20,000 steps do eight million collectives, which would fill two
gigabytes of the kernel. So a history keeps

    the newest   whole: about `KEPT` items, where an event is one, and so is each collective or
                 span in it. A short run is kept whole.
    of the older what they add up to: the ledger's totals, which stay exact (`ledger.Folded`), and
                 what the picture of a run needs, such as the loss of every step (`RunState`)
    all          on disk: the ranks write `events.RANK.jsonl` into the run directory, one line each

and reads like the list of all events, older ones taken from disk when somebody asks for them. That
is exact and slow, a minute for a long run, so `where` and `tell` are there for what is asked often.

What the kernel itself says (a run's state) is on no disk; it is little, and kept. Leaves out: the
size of what is emitted. A hundred thousand large objects are still large.
"""

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from picolab.monitoring.event_files import RunFiles, first_events, in_order
from picolab.monitoring.events import Event
from picolab.monitoring.ledger import Entry, Folded, Ledger
from picolab.monitoring.run_state import RunState

KEPT = 100_000


class History(Sequence):
    """The events of one run, in order of arrival (older ones in order of time). `add` is called
    by one thread, the rest by any.

    run_dir   where the ranks write them; None: nowhere, so nothing can be folded
    skip      file name -> bytes at its beginning that are not of this run; see event_files.py
    """

    def __init__(self, run_dir: Path | None = None, skip: dict[str, int] | None = None):
        self.run_dir, self._skip = run_dir, skip or {}
        self._newest: list[Event] = []
        self._items = 0  # in the newest
        self._on_disk: Counter[int] = Counter()  # rank -> how many older events
        self._older_own: list[Event] = []  # of the kernel, which are on no disk
        self._last_step = -1  # the highest that an older event names
        self._folded = Folded(self._older_entries)
        self._state = RunState()  # that has heard the older events
        self._lock = threading.Lock()

    @classmethod
    def read(cls, run_dir: Path) -> "History":
        """Of the newest run that has left its events in this directory, in order of time."""
        files = RunFiles(run_dir)
        events = files.poll()
        history = cls(run_dir, files.starts)
        for event in events:
            history.add(event)
        return history

    def add(self, event: Event) -> None:
        with self._lock:
            self._newest.append(event)
            self._items += _items(event)
            if self._items > KEPT and self.run_dir is not None:
                self._fold()

    def _fold(self) -> None:
        count, keep = 0, KEPT * 7 // 8  # some at once: to fold each by itself would cost more
        for event in self._newest[:-1]:
            if self._items <= keep:
                break
            count += 1
            self._items -= _items(event)
            self._state.add(event)
            if event.rank < 0:
                self._older_own.append(event)
                continue
            self._on_disk[event.rank] += 1
            self._last_step = max(self._last_step, _step(event))
            if event.kind == "ledger":
                self._folded.add(event.data["entries"])
        del self._newest[:count]

    # -- what is asked of it --

    @property
    def older(self) -> int:
        """How many events are not in memory."""
        return self._state.heard

    @property
    def ledger(self) -> Ledger:
        """The collectives of all ranks."""
        with self._lock:
            newest, folded = list(self._newest), self._folded.only()
        told = (event.data["entries"] for event in newest if event.kind == "ledger")
        return Ledger((entry for entries in told for entry in entries), folded)

    def tell(self, state: RunState) -> bool:
        """Let `state` hear what it has not heard yet. Was there anything?"""
        with self._lock:
            behind = state.heard < self.older
            if behind:
                state.catch_up(self._state)
            fresh = self._newest[state.heard - self.older :]
        for event in fresh:
            state.add(event)
        return behind or bool(fresh)

    def where(self, kind: str, step: int) -> Iterator[Event]:
        """The events of this kind that name this step."""
        with self._lock:
            newest, older = list(self._newest), Counter(self._on_disk)
        if step <= self._last_step:
            wanted = f'"step": {step}'.encode()
            newest = [*self._older(older, lambda rank, line: wanted in line), *newest]
        return (event for event in newest if event.kind == kind and _step(event) == step)

    def __len__(self) -> int:
        with self._lock:
            return self.older + len(self._newest)

    def __iter__(self) -> Iterator[Event]:
        with self._lock:
            newest, older, own = list(self._newest), Counter(self._on_disk), list(self._older_own)
        yield from in_order([self._older(older), own])
        yield from newest

    def __getitem__(self, index):
        with self._lock:
            older, newest = self.older, list(self._newest)
        places = range(older + len(newest))[index]
        if not isinstance(index, slice):
            return newest[places - older] if places >= older else next(islice(self, places, None))
        if not places or min(places) >= older:
            return [newest[place - older] for place in places]
        first = min(places)
        found = list(islice(self, first, max(places) + 1))
        return [found[place - first] for place in places]

    def __repr__(self) -> str:
        with self._lock:
            older, newest = self.older, list(self._newest)
        if not older:
            return repr(newest)
        return (
            f"History of {older + len(newest):,} events: the newest {len(newest):,} are in memory, "
            f"all of them in {self.run_dir}"
        )

    def __getstate__(self) -> dict:
        with self._lock:
            return vars(self) | {"_newest": list(self._newest), "_lock": None}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, _lock=threading.Lock())

    # -- what is on disk only --

    def _older_entries(self, step: int | None) -> Iterator[Entry]:
        def may_hold(rank: int, line: bytes) -> bool:
            of_step = step is None or f"[{rank}, {step}, ".encode() in line
            return of_step and line.startswith(b'{"kind": "ledger"')

        with self._lock:
            older = Counter(self._on_disk)
        for event in self._older(older, may_hold):
            yield from event.data["entries"]

    def _older(self, counts: Counter[int], wanted=lambda rank, line: True) -> Iterator[Event]:
        """The first so many events of each rank's file, in order of time: those for whose line
        `wanted` holds."""

        def of_rank(rank: int, count: int) -> Iterator[Event]:
            path = self.run_dir / f"events.{rank}.jsonl"
            found = 0
            if path.is_file():
                start = self._skip.get(path.name, 0)
                for event in first_events(path, start, count, lambda line: wanted(rank, line)):
                    found += 1
                    if event is not None:
                        yield event
            if found < count:
                raise LookupError(
                    f"of {count:,} older events of rank {rank} only {found:,} are left in {path}: "
                    "what they add up to is still known, single ones are not"
                )

        return in_order(of_rank(*item) for item in sorted(counts.items()))


def _items(event: Event) -> int:
    """What an event weighs: itself, and what it lists."""
    return 1 + sum(len(value) for value in event.data.values() if isinstance(value, list | tuple))


def _step(event: Event) -> int:
    step = event.data.get("step")
    return step if isinstance(step, int) else -1
