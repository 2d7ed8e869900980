"""A tuning's memory: what was asked, who contends, and every trial, as lines of one JSONL file.

    {"kind": "question", "version": 1, "model": {...}, "world": 4, ...}
    {"kind": "contenders", "contenders": [{"layout": "dp4", "micro_batch": 4, ...}, ...]}
    {"kind": "trial", "round": 0, "contender": 0, "turn": 0, "steps": 3, "seconds": 0.031, ...}

A line is on the disk before anything goes on. A kill may tear the last one: it is passed over, and
the next begins on a line of its own. What a tuning decides follows from the lines alone, so that
one that goes on decides the same.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from picolab.launch import rundirs
from picolab.show.files import append_line
from picolab.specs import Layout, TrainConfig

VERSION = 1
_FILE = "trials.jsonl"


class Contender(NamedTuple):
    """A layout, how its step is cut, and what the planner says of it."""

    layout: str
    micro_batch: int
    predicted_s: float


class Trial(NamedTuple):
    """One real run."""

    round: int
    """From 0; of the last comparison, minus the place of the default's opponent."""
    contender: int
    """Its place in the list; 0 is the default."""
    turn: int
    steps: int
    seconds: float | None
    """Of its median step; None if it failed."""
    wall_s: float
    error: str | None = None


@dataclass(frozen=True)
class Question:
    """What is asked: a folder is of one question."""

    model: dict
    data: str
    world: int
    global_batch: int
    default: str

    @classmethod
    def of(cls, config: TrainConfig, world: int, global_batch: int, default: Layout) -> "Question":
        # As JSON gives it back.
        model = json.loads(json.dumps(asdict(config.model)))
        return cls(model, str(config.data), world, global_batch, str(default))


@dataclass
class TuneLog:
    folder: Path
    question: Question
    contenders: list[Contender] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)

    @classmethod
    def open(cls, folder: str | Path | None, question: Question) -> "TuneLog":
        """A new one, or that of the folder. ValueError if that is of another question."""
        path = _new_folder() if folder is None else Path(folder).expanduser().absolute()
        path.mkdir(parents=True, exist_ok=True)
        log = cls(path, question)
        lines = _read(path / _FILE)
        if not lines:
            log._write(kind="question", version=VERSION, **asdict(question))
            return log
        head = lines[0]
        if head.get("kind") != "question" or head.get("version") != VERSION:
            raise ValueError(
                f"{path / _FILE} was written by another version of picolab; take a new folder"
            )
        asked = {name: head.get(name) for name in asdict(question)}
        for name, value in asdict(question).items():
            if asked[name] != value:
                is_model = name == "model"
                said = "is another" if is_model else f"is {value!r}, there it was {asked[name]!r}"
                raise ValueError(
                    f"{path} holds trials of another question: {name} {said}; take a new folder"
                )
        for line in lines[1:]:
            kind = line.pop("kind", None)
            if kind == "contenders":
                log.contenders = [Contender(**one) for one in line["contenders"]]
            elif kind == "trial":
                log.trials.append(Trial(**line))
        return log

    def propose(self, contenders: list[Contender]) -> None:
        self.contenders = contenders
        self._write(kind="contenders", contenders=[one._asdict() for one in contenders])

    def add(self, trial: Trial) -> None:
        self._write(kind="trial", **trial._asdict())
        self.trials.append(trial)

    def find(self, number: int, contender: int, turn: int) -> Trial | None:
        wanted = number, contender, turn
        return next((trial for trial in self.trials if trial[:3] == wanted), None)

    def halving(self, contender: int) -> list[Trial]:
        """Its trials in the rounds of halving."""
        return [t for t in self.trials if t.contender == contender and t.round >= 0]

    def final(self, finalist: int, contender: int) -> list[Trial]:
        """Its trials in the last comparison, of the default with the finalist."""
        return [t for t in self.trials if t.contender == contender and t.round == -finalist]

    def _write(self, **line) -> None:
        append_line(self.folder / _FILE, json.dumps(line))


def _read(path: Path) -> list[dict]:
    """The lines that are whole."""
    found = []
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _new_folder() -> Path:
    """Beside the run directories, and not among them: they are removed when they get many."""
    stamp, number = time.strftime("%Y%m%d-%H%M%S"), 0
    while True:
        path = rundirs.root().parent / "tunings" / f"{stamp}-{number:02d}"
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1
