"""What became of each alert, in the run directory, so that it outlives the monitor.

    alerts.jsonl       a line for each transition, appended and never changed:
                       {"v": 1, "n": 61, "t": ..., "step": 60, "name": "slow rank", "rank": 2,
                        "state": "firing", "severity": "ticket", "value": null,
                        "said": "rank 2 comes ...", "cause": null}
    alerts.state.json  what the manager knows beyond that (what was counted, silences), written
                       beside and renamed

A manager that starts again in the folder reads the second and then the lines that are newer: it
goes on where the other was killed, and tells nobody twice. A torn last line is one that was never
told. One manager at a time: the file is locked while one writes it. Where the disk is full the
lines are kept, said to be missing (`trouble`), and written as soon as there is space. Fields may be
added to a line; none changes its meaning within a version `v`.
"""

import fcntl
import json
import math
import os
from collections import deque
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from picolab.monitoring.alert_rules import Rank, Severity
from picolab.show.files import private, write_beside

State = Literal["pending", "firing", "inhibited", "silenced", "resolved", "passed"]
VERSION = 1
LINES, STATE = "alerts.jsonl", "alerts.state.json"
KEPT = 10_000
"""lines that are not written yet"""


class Transition(NamedTuple):
    """An alert, and what it has become."""

    n: int
    """of the looks at the run, in which it did"""
    t: float
    step: int | None
    name: str
    rank: Rank
    state: State
    severity: Severity
    value: float | None
    said: str
    cause: str | None
    """what hides it: another alert, or a silence"""

    def to_json(self) -> str:
        value = self.value if self.value is None or math.isfinite(self.value) else None
        return json.dumps({"v": VERSION, **self._asdict(), "value": value})

    def __str__(self) -> str:
        where = "" if self.step is None else f"step {self.step}: "
        cause = f" (by {self.cause})" if self.cause else ""
        return f"{where}{self.state}{cause}: {named(self.name, self.rank)}: {self.said}"


def named(name: str, rank: Rank) -> str:
    """An alert in a sentence."""
    if rank is None:
        return name
    return f"{name}, {'rank' if isinstance(rank, int) else 'ranks'} {rank}"


class AlertHistory:
    """The two files in one folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.trouble: str | None = None
        self._waiting: deque[str] = deque(maxlen=KEPT)
        self._held = self._hold()
        self.lines = len(read_history(self.folder))

    def _hold(self) -> BinaryIO | None:
        """The file, locked as long as it is open here: it ends with this process, however."""
        path = self.folder / LINES
        try:
            file = open(path, "ab", opener=private)  # noqa: SIM115
        except OSError as error:
            self._in_trouble(path, error)
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ValueError(
                f"another monitor writes the alerts of {self.folder}; close it first, or keep no "
                'history here: {"history": False}'
            ) from None
        except OSError:
            pass  # a file system that knows no locks
        return file

    def close(self) -> None:
        if self._held is not None:
            self._held.close()

    def append(self, transitions: Iterable[Transition]) -> None:
        self._waiting.extend(transition.to_json() for transition in transitions)
        count, path = len(self._waiting), self.folder / LINES
        if not count:
            return
        try:
            with open(path, "a+b", opener=private, buffering=0) as file:
                size = file.seek(0, os.SEEK_END)
                torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
                text = "\n" * torn + "".join(line + "\n" for line in self._waiting)
                if file.write(text.encode()) < len(text.encode()):
                    raise OSError("the disk is full")
        except OSError as error:
            self._in_trouble(path, error)
            return
        self._waiting.clear()
        self.lines += count
        self.trouble = None

    def save(self, state: dict) -> None:
        if self._waiting:
            return  # it would be ahead of the lines
        try:
            text = json.dumps({"v": VERSION, "lines": self.lines, **state})
            write_beside(self.folder / STATE, text, mode=0o600)
        except OSError as error:
            self._in_trouble(self.folder / STATE, error)

    def _in_trouble(self, path: Path, error: OSError) -> None:
        self.trouble = (
            f"the history of alerts cannot be written to {path}: {error.strerror or error}; "
            f"{len(self._waiting)} line(s) wait until it can"
        )

    def state(self) -> tuple[dict, list[Transition]]:
        """What was saved last, and the lines since."""
        saved: dict = {}
        path = self.folder / STATE
        if path.exists():
            with open(path, opener=private) as file:
                text = file.read()
            try:
                saved = _checked(json.loads(text), path)
            except json.JSONDecodeError:
                raise ValueError(f"{path} is damaged; take it away, and what {LINES} says is gone "
                                 "on with") from None  # fmt: skip
        lines = read_history(self.folder)
        return saved, lines[saved.get("lines", 0) :]


def read_history(run: str | Path) -> list[Transition]:
    """What is in a run directory's history; empty where there is none. Lines that were cut off are
    left out. ValueError if another version of picolab has written it."""
    path = Path(run).expanduser()
    path = path / LINES if path.is_dir() else path
    if not path.exists():
        return []
    with open(path, "rb", opener=private) as file:
        told = [_transition(line, path) for line in file]
    return [transition for transition in told if transition is not None]


class HistoryTail:
    """The history of a run that goes on: `poll` gives the lines that are new."""

    def __init__(self, folder: str | Path):
        self._path, self._read = Path(folder) / LINES, 0

    def poll(self) -> list[Transition]:
        if not self._path.exists():
            return []
        found = []
        with open(self._path, "rb", opener=private) as file:
            file.seek(self._read)
            for line in takewhile(lambda line: line.endswith(b"\n"), file):
                self._read += len(line)
                found.append(_transition(line, self._path))
        return [transition for transition in found if transition is not None]


def _transition(line: bytes, path: Path) -> Transition | None:
    """None of a line that was cut off."""
    try:
        told = json.loads(line)
    except ValueError:
        return None
    told = _checked(told, path)
    try:
        return Transition(**{name: told[name] for name in Transition._fields})
    except KeyError as missing:
        sentence = f"{path}: a line without {missing}: it is no history of alerts"
        raise ValueError(sentence) from None


def _checked(told, path: Path) -> dict:
    version = told.get("v") if isinstance(told, dict) else None
    if version != VERSION:
        raise ValueError(
            f"{path} was written by another version of picolab (its lines are of version "
            f"{version}, and this one reads {VERSION}); read it with that one, or move it away"
        )
    return told
