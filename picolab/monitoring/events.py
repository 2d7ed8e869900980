"""What a rank says while it runs: events, one line of JSON each.

An event is a kind, the rank, the time and a flat dictionary. Which kinds there are and what is in
them, with units, is listed in event_kinds.py; how the files are read, in event_files.py.

`comm` and the trainer write events, `launch` carries them, the dashboard draws them, and none of
the three knows the others: they share this file. In a rank, `start_recording` names the sink;
everywhere else events go nowhere, which is why `pico.emit` is a no-op outside a rank."""

import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Event(NamedTuple):
    kind: str
    rank: int
    t: float  # seconds since the epoch, the rank's clock
    data: dict[str, Any]

    def to_json(self) -> str:
        return _encode(self._asdict())

    @classmethod
    def from_json(cls, line: str) -> "Event":
        return cls(**json.loads(line))


def _plain(value):
    """numpy and torch scalars as numbers, anything else as text: an event never fails to be
    written.
    """
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


_encode = json.JSONEncoder(default=_plain).encode  # (making one takes a third of it)


class _Recorder:
    rank: int = 0
    sink: Callable[[Event], None] | None = None


_recorder = _Recorder()


def start_recording(rank: int, sink: Callable[[Event], None]) -> None:
    """From here on, this process's events go to `sink`. Called once in each rank, before its
    function.
    """
    _recorder.rank, _recorder.sink = rank, sink


def stop_recording() -> None:
    _recorder.sink = None


def write(kind: str, /, **data) -> None:
    """Write one event; nothing happens where nobody records."""
    if _recorder.sink is not None:
        _recorder.sink(Event(kind, _recorder.rank, time.time(), data))


def emit(**values) -> None:
    """An event from inside a rank: `pico.emit(step=3, loss=1.7)`. A no-op outside one.

    The values appear in `result.events` (kind "values"), in the run directory's
    `events.RANK.jsonl`, and in a live dashboard, which draws `loss` and `tokens_per_s` if it
    finds them."""
    write("values", **values)
