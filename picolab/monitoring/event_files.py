"""Reading what a run has written: every reader of `events.RANK.jsonl` comes through here. The live
view, the explanation, a result's history, exporters and post-mortems see the same events.

A rank appends one line an event, whole (a killed run is readable to its last event), and begins
with a line of the kind "begin", which is of the file and no event that anybody hears:

    {"kind": "begin", "rank": 3, "t": ..., "data": {"run": "8d41...", "world_size": 4}}

What may be wrong with such a file, and what is made of it:

    the last line is torn   it is still being written: left for later
    a line inside is        its rank died in it and another went on: it costs itself, and is counted
    the clock went back     (it was set, or corrected) order within a rank is kept, and its later
                            events are put as far on as it went back, so that ranks still meet
    two runs in one folder  only the newest is read: the one that began last. Also if it has fewer
                            ranks than the older one, whose files are still there
    a rank never wrote      `silent` names it
"""

import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from operator import itemgetter
from pathlib import Path

from picolab.monitoring.events import Event
from picolab.monitoring.ledger import Ledger

BEGIN = "begin"
_BEGINS = b'{"kind": "begin"'
_WHOLE = b"}}\n"  # what every whole line ends with


class RunFiles:
    """The newest run's events in a folder, as they come: `poll` gives what is new."""

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self.run: str | None = None
        """Of the run that is read; None if its files do not say (an older version's)."""
        self.starts: dict[str, int] = {}
        """Where it begins in each file: what `History` skips."""
        self._began: dict[str, float] = {}
        self._over: set[str] = set()  # runs after which another began in the same file
        self._files: dict[Path, _File] = {}

    def poll(self) -> Iterator[Event]:
        """What has been written since the last call, in order of time. (Read as far as it is asked
        for.) If another run has begun meanwhile, `run` is another afterwards, and these are its."""
        for path in event_files(self.run_dir):
            self._files.setdefault(path, _File(path))
        for file in self._files.values():
            for begin in file.begins():
                self._began[begin.data["run"]] = begin.t
                self._over |= {file.run} - {None, begin.data["run"]}
                file.run = begin.data["run"]
        # (Not the time alone: the clock may have gone back since the older one.)
        named = [run for run in self._began if run not in self._over]
        newest = max(named, key=self._began.__getitem__, default=None)
        if newest != self.run:
            self.run, self.starts = newest, {}
        mine = [file for file in self._files.values() if file.run == newest]
        self.starts.update((file.path.name, file.start) for file in mine)
        return in_order(file.events(newest) for file in mine)

    @property
    def torn(self) -> int:
        """Lines that were cut off so far."""
        return sum(file.torn for file in self._files.values())

    def silent(self, world_size: int) -> list[int]:
        """The ranks of whom nothing was read."""
        heard = {f.rank for f in self._files.values() if f.run == self.run and f.heard}
        return [rank for rank in range(world_size) if rank not in heard]


class _File:
    """One rank's, and how far it was read."""

    def __init__(self, path: Path):
        self.path, self.rank = path, int(path.name.split(".")[1])
        self.torn, self.heard = 0, False
        self.run: str | None = None  # that began last in it
        self.start = 0  # where that was
        self._looked = self._read = 0

    def begins(self) -> Iterator[Event]:
        """Those of runs that were not seen yet."""
        for line in lines(self.path, self._looked):
            at, self._looked = self._looked, self._looked + len(line)
            begin = event_of(line) if line.startswith(_BEGINS) else None
            if begin is not None:
                if begin.data["run"] != self.run:
                    self.start, self.heard = at, False
                yield begin

    def events(self, run: str | None) -> Iterator[Event]:
        """Those of this run, which is the last one in it."""
        self._read = max(self._read, self.start)
        for line in lines(self.path, self._read):
            if line.startswith(_BEGINS):
                begin = event_of(line)
                if begin is not None and begin.data["run"] != run:
                    return  # another has just begun: the next call is about that
                self._read += len(line)
                continue
            self._read += len(line)
            event = event_of(line)
            if event is None:
                self.torn += 1
                continue
            self.heard = True
            yield event


def event_files(run_dir: Path) -> list[Path]:
    return sorted(run_dir.glob("events.*.jsonl"))


def lengths(run_dir: Path) -> dict[str, int]:
    """How long each file of events is now: what a run that starts in this directory will skip."""
    return {path.name: path.stat().st_size for path in event_files(run_dir)}


def lines(path: Path, start: int = 0) -> Iterator[bytes]:
    """The whole lines from this byte on."""
    with open(path, "rb") as file:
        file.seek(start)
        yield from takewhile(lambda line: line.endswith(b"\n"), file)


def first_events(
    path: Path, start: int, count: int, wanted: Callable[[bytes], bool]
) -> Iterator[Event | None]:
    """The first `count` events from this byte on, by one rank of one run; None for each that is
    not `wanted`, which is asked of its line and saves the reading of it."""
    for line in lines(path, start):
        if not count:
            return
        if line.startswith(_BEGINS) or not line.endswith(_WHOLE):
            continue
        asked = wanted(line)
        event = event_of(line) if asked else None
        if event is None and asked:
            continue  # cut off, and by chance at such a place
        count -= 1
        yield event


def event_of(line: bytes) -> Event | None:
    """None of a line that was cut off. ValueError of one that another version has written."""
    try:
        event = Event.from_json(line)
    except ValueError:
        return None
    except TypeError:
        event = None  # whole, and with other fields
    try:
        if event is not None and event.kind == "ledger":
            event.data["entries"] = Ledger(event.data["entries"]).entries
    except (TypeError, KeyError, ValueError):
        event = None
    if event is None:
        begin = line[:60].decode(errors="replace")
        raise ValueError(
            f"this run was written by another version of picolab: {begin}... is none of its events "
            f"as this version ({', '.join(Event._fields)}) knows them; read it with that version"
        )
    return event


def in_order(streams: Iterable[Iterable[Event]]) -> Iterator[Event]:
    """Events of several ranks in order of time; each rank's stay in the order in which it told
    them, whatever its clock did."""
    return map(itemgetter(1), heapq.merge(*map(_forward, streams), key=itemgetter(0)))


def _forward(events: Iterable[Event]) -> Iterator[tuple[float, Event]]:
    """Each with a time that never goes back: what the clock lost is added from then on."""
    lost, latest = 0.0, -math.inf
    for event in events:
        lost = max(lost, latest - event.t)
        latest = event.t + lost
        yield latest, event


def start_line(run: str, rank: int, world_size: int, t: float) -> str:
    """The line with which a rank's part of a run begins."""
    return Event(BEGIN, rank, t, {"run": run, "world_size": world_size}).to_json() + "\n"


def ends_whole(path: Path) -> bool:
    """Whether what is appended now would begin a line."""
    size = path.stat().st_size
    if not size:
        return True
    with open(path, "rb") as file:
        file.seek(size - 1)
        return file.read() == b"\n"
