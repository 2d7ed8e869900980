"""The last collective a rank entered, readable from outside even if the rank can no longer speak.

A rank that hangs in C++, holds the GIL, is stopped or was killed can answer no question. So
before each collective it writes one line into a small file that is mapped into memory (about a
microsecond, no system call), and the launcher reads that file. The counter in it is also the
proof of progress: as long as it moves, the rank lives.

    bytes 0..7    how many collectives were entered
    bytes 8..15   how many were left again (equal: the rank is not inside one)
    bytes 16..    the last one in words, zero-terminated
"""

import mmap
import struct
from pathlib import Path
from typing import NamedTuple

from picolab.show.files import private

_SIZE = 512
_TEXT = _SIZE - 17
_COUNTER = struct.Struct("<Q")


class Reading(NamedTuple):
    entered: int
    left: int
    text: str

    @property
    def inside(self) -> bool:
        return self.entered > self.left


class Beacon:
    """The writer's side, in the rank."""

    def __init__(self, path: Path | str):
        with open(path, "w+b", opener=private) as file:
            # Written, not only made longer: on a full disk that says so here, and not by SIGBUS.
            file.write(bytes(_SIZE))
            file.flush()
            self._map = mmap.mmap(file.fileno(), _SIZE)
        self._entered = self._left = 0

    def enter(self, text: str) -> None:
        line = text.encode()[:_TEXT] + b"\0"
        self._map[16 : 16 + len(line)] = line
        self._entered += 1
        _COUNTER.pack_into(self._map, 0, self._entered)

    def leave(self) -> None:
        self._left += 1
        _COUNTER.pack_into(self._map, 8, self._left)


def read(path: Path | str) -> Reading:
    """The reader's side; a file that is not there yet reads as a rank that entered nothing."""
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        raw = b""
    if len(raw) < _SIZE:
        return Reading(0, 0, "")
    text = raw[16:].split(b"\0", 1)[0].decode(errors="replace")
    return Reading(_COUNTER.unpack_from(raw, 0)[0], _COUNTER.unpack_from(raw, 8)[0], text)
