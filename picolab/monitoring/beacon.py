"""The last collectives a rank entered, readable from outside even if the rank can no longer speak.

A rank that hangs in C++, holds the GIL, is stopped or was killed can answer no question. So
before each collective it writes one line into a small file that is mapped into memory (about a
microsecond, no system call), and the launcher reads that file. The counter in it is also the
proof of progress: as long as it moves, the rank lives.

    bytes 0..7    how many collectives were entered
    bytes 8..15   how many were left again
    bytes 16..23  in which of them the rank stands still, counted from 1; 0: in none. (It may have
                  entered one and gone on: an asynchronous one is under way, and nobody waits in it)
    bytes 24..31  zero
    then a ring of `KEPT` slots of 512 bytes, call n in slot n modulo KEPT: its number within its
    group (4 bytes), its step (4 bytes; -1: none), and what it is in words, zero-terminated

The number is what makes calls comparable: of one group, all ranks' call number 41 should be the
same one. A message is numbered among those that go the same way between the same two ranks.
"""

import mmap
import re
import struct
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from picolab.show.files import private

KEPT = 64
_HEAD, _SLOT = 32, 512
_SIZE = _HEAD + KEPT * _SLOT
_COUNTER, _ABOUT = struct.Struct("<Q"), struct.Struct("<Ii")
_TEXT = _SLOT - _ABOUT.size - 1


class Reading(NamedTuple):
    entered: int
    left: int
    text: str
    """The call in which the rank stands still; else the last one that it entered."""
    waits: int | None = None
    """Which of the entered it stands still in, from 1; 0: in none; None: not told."""

    @property
    def inside(self) -> bool:
        return self.entered > self.left if self.waits is None else self.waits > 0


class Call(NamedTuple):
    """One collective or message that a rank entered."""

    place: int
    """In the order in which the rank entered its calls, from 1."""
    number: int
    """Within its group, from 1: see above. 0: not numbered."""
    step: int | None
    text: str

    @property
    def what(self) -> "What":
        return parse(self.text)

    @property
    def group(self) -> tuple:
        """In what its number counts: axis, ranks; of a message its direction and other end, too."""
        what = self.what
        ends = (what.op.lstrip("i"), *what.peers) if what.is_message else ()
        return what.axis, what.ranks, *ends

    @property
    def name(self) -> str:
        """ "all_reduce #41 on dp"; of a message "recv #3 from rank 1 on pp"."""
        what, number = self.what, f" #{self.number}" if self.number else ""
        peers = f" from rank {what.source}" * (what.source is not None and what.op == "recv")
        peers += f" to rank {what.to}" * (what.to is not None and what.is_message)
        return f"{what.op}{number}{peers} on {what.axis or 'raw'}"


class What(NamedTuple):
    """The words of a call, taken apart."""

    op: str
    axis: str
    ranks: tuple[int, ...]
    """Its group; empty if the words do not tell."""
    dtype: str
    shape: str
    to: int | None
    source: int | None
    reason: str

    @property
    def is_message(self) -> bool:
        """Between two ranks; not a ring's hop, which all ranks of the axis do together."""
        return self.op in ("send", "isend", "recv", "irecv") and None in (self.to, self.source)

    @property
    def peers(self) -> tuple[int, ...]:
        """Those at the other end, of what goes to or comes from single ranks."""
        return tuple(rank for rank in (self.to, self.source) if rank is not None)


_WORDS = re.compile(
    r"(?P<op>\w+)(?: \(\w+\))?(?: over (?P<axis>\w+))?(?: of ranks \((?P<ranks>[\d, ]*)\)?)?"
    r":? ?(?P<dtype>\w+)?(?P<shape>\[[^\]]*\])?"
    r"(?: to (?P<to>\d+))?(?: while receiving)?(?: from (?P<source>\d+))?(?: ?\((?P<reason>.*)\))?"
)


@lru_cache(maxsize=4096)
def parse(text: str) -> What:
    """Of a text that was cut off, as much as there is."""
    found = _WORDS.match(text)
    if found is None:
        return What(text, "", (), "", "", None, None, "")
    of = {name: value or "" for name, value in found.groupdict().items()}
    ranks = tuple(map(int, re.findall(r"\d+", of["ranks"])))
    to, source = (int(of[name]) if of[name] else None for name in ("to", "source"))
    return What(of["op"], of["axis"], ranks, of["dtype"], of["shape"], to, source, of["reason"])


class Beacon:
    """The writer's side, in the rank."""

    def __init__(self, path: Path | str):
        self.path = path
        with open(path, "w+b", opener=private) as file:
            # Written, not only made longer: on a full disk that says so here, and not by SIGBUS.
            file.write(bytes(_SIZE))
            file.flush()
            self._map = mmap.mmap(file.fileno(), _SIZE)
        self.entered = self._left = 0

    def enter(self, text: str, number: int = 0, step: int | None = None) -> None:
        """The rank enters a call and stands still in it, until it says otherwise."""
        start = _HEAD + self.entered % KEPT * _SLOT
        _ABOUT.pack_into(self._map, start, number, -1 if step is None else step)
        line, start = text.encode()[:_TEXT] + b"\0", start + _ABOUT.size
        self._map[start : start + len(line)] = line
        self.entered += 1
        _COUNTER.pack_into(self._map, 0, self.entered)
        self.stand(self.entered)

    def stand(self, place: int) -> None:
        """In which call the rank stands still; 0: it goes on."""
        _COUNTER.pack_into(self._map, 16, place)

    def leave(self) -> None:
        self._left += 1
        _COUNTER.pack_into(self._map, 8, self._left)
        self.stand(0)


def read(path: Path | str) -> Reading:
    """The reader's side; a file that is not there yet reads as a rank that entered nothing."""
    raw = _bytes(path)
    entered, left, waits = (_COUNTER.unpack_from(raw, at)[0] for at in (0, 8, 16))
    place = waits if entered - KEPT < waits <= entered and waits else entered
    return Reading(entered, left, _call(raw, place).text if place else "", waits)


def read_calls(path: Path | str) -> tuple[Call, ...]:
    """The newest calls, oldest first: `KEPT` of them at most."""
    raw = _bytes(path)
    (entered,) = _COUNTER.unpack_from(raw, 0)
    return tuple(_call(raw, place) for place in range(max(0, entered - KEPT) + 1, entered + 1))


def _bytes(path: Path | str) -> bytes:
    try:
        with open(path, "rb", opener=private) as file:
            raw = file.read(_SIZE)
    except FileNotFoundError:
        raw = b""
    return raw if len(raw) == _SIZE else bytes(_SIZE)


def _call(raw: bytes, place: int) -> Call:
    start = _HEAD + (place - 1) % KEPT * _SLOT
    number, step = _ABOUT.unpack_from(raw, start)
    text = raw[start + _ABOUT.size : start + _SLOT].split(b"\0", 1)[0].decode(errors="replace")
    return Call(place, number, None if step < 0 else step, text)
