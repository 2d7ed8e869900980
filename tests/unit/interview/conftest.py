"""A small bank to test with: four questions that hold, in a folder of their own.

`bank_files(tmp_path)` gives the parts, to be changed; `.write()` writes them as the bank's files
are, with Chinese, sources, ids and a notebook, so that each test breaks one thing.
"""

import json
from pathlib import Path

import pytest
import yaml

from picolab.interview import bank as banks
from picolab.interview.bank import Bank, Question
from picolab.interview.topics import Counts

TITLES = (
    "Why pipelines idle",
    "Ring all-reduce, to the byte",
    "A slow step after a restart",
    "Sharding the optimizer or the weights",
    "Where zig-zag helps",
    "Overlap of gradients and communication",
    "Loss that differs between layouts",
    "Choose tensor parallelism across nodes",
)
AREAS = ("pipeline", "collectives", "hardware", "data", "context", "tensor", "4d", "sequence")
SENTENCE = "A stage waits until its first micro-batch arrives and again when the last has left. "
COUNTS = {"small": Counts(questions=2, numeric=1, code=0, diagnose=0, explain_share=1.0)}


def question(number: int, **changes) -> dict:
    """The data of question s-00N: it holds as it is."""
    data = {
        "id": f"s-{number:03d}",
        "kind": "numeric",
        "area": AREAS[(number - 1) % 8],
        "level": 3 + (number - 1) % 4,
        "minutes": 5,
        "title": TITLES[number - 1] if number <= 8 else f"{chr(64 + number) * 9} {number}",
        "question": "A pipeline has 8 stages and 32 micro-batches. How much of the step is idle?",
        "conventions": ["the bubble is over the total time of the step"],
        "values": {
            "p": 8,
            "m": 32,
            "total": "100 * costs.bubble_of_total(p, m)",
            "ideal": "100 * costs.bubble_of_ideal(p, m)",
        },
        "numeric": [
            {
                "prompt": "Give the idle share of a step",
                "value": "total",
                "unit": "%",
                "rtol": 0.02,
                "convention": "over the total time of the step",
                "wrong": [{"value": "ideal", "why": "This is the share of the ideal time."}],
            }
        ],
        "rubric": [
            {"points": 4, "text": "says that a stage idles twice in a step", "must": True},
            {"points": 2, "text": "derives the formula from the two ramps"},
            {"points": 2, "text": "names the convention of the share"},
            {"points": 2, "text": "says how more micro-batches change it"},
        ],
        "red_flags": ["says that the schedule does not matter for the bubble at all"],
        "answer": SENTENCE * 10 + "In all it is {{total:.1f}} %, `(p-1)/(m+p-1)` with p = {{p}}.",
        "followups": [
            {
                "question": "What would interleaving the stages change here?",
                "points": ["it divides the bubble and sends more activations"],
            }
        ],
        "sources": ["gpipe"],
        "cells": ["notebooks/01_small.ipynb#pp-gantt"],
        "provenance": {
            "author": "picolab",
            "checked": "computed",
            "note": "compared with the simulator",
            "date": "2026-11-24",
        },
    }
    if changes.get("kind") == "diagnose":
        data |= {"minutes": 10, "give_away": ["one slow rank"]}
    return {**data, **changes}


def plain(number: int, **changes) -> dict:
    """A question without numbers: kind design unless changed."""
    return question(
        number,
        **{
            "kind": "design",
            "values": {},
            "numeric": [],
            "answer": SENTENCE * 10,
            **changes,
        },
    )


def chinese(text: str) -> str:
    """Something that is Chinese, with the placeholders and formulas of the English."""
    kept = [match[0] for match in banks.numbers.PLACEHOLDER.finditer(text)]
    return " ".join(["流水线的每一级都会等待。", *kept])


def translation(data: dict) -> dict:
    asked = Question.model_validate(data)
    said = banks.translatable(asked)

    def each(value):
        if isinstance(value, str):
            return chinese(value)
        if isinstance(value, dict):
            return {key: each(one) for key, one in value.items()}
        return [each(one) for one in value] if isinstance(value, list) else value

    gone = {"give_away": ["慢的 rank"]} if asked.give_away else {}
    return {"of": asked.english_hash(), **each(said), **gone}


class BankFiles:
    """questions, zh, sources, ids: lists and dictionaries to change before `.write()`."""

    def __init__(self, folder: Path, questions: list[dict]):
        self.folder, self.questions = folder, questions
        self.zh = {data["id"]: translation(data) for data in questions}
        self.ids = [data["id"] for data in questions]
        self.sources = {
            "gpipe": {
                "title": "GPipe",
                "authors": "Huang and others",
                "year": 2018,
                "arxiv": "1811.06965",
            }
        }
        self.cells = ["pp-gantt", "ring-frames"]

    def write(self) -> Path:
        self.folder.mkdir(exist_ok=True)
        notebooks = self.folder.parent / "notebooks"
        notebooks.mkdir(exist_ok=True)
        cells = [{"id": name, "cell_type": "markdown", "source": ""} for name in self.cells]
        (notebooks / "01_small.ipynb").write_text(json.dumps({"cells": cells}))
        self.put(
            "small.yaml",
            {
                "topic": "small",
                "title": "Small things",
                "title_zh": "小问题",
                "questions": self.questions,
            },
        )
        self.put("small.zh.yaml", {"questions": self.zh})
        self.put("sources.yaml", self.sources)
        (self.folder / "ids.lock").write_text("".join(f"{name}\n" for name in self.ids))
        return self.folder

    def put(self, name: str, data) -> None:
        data = json.loads(json.dumps(data))  # each part for itself: a bank has no aliases
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
        (self.folder / name).write_text(text, encoding="utf-8")

    def change(self, name: str, old: str, new: str) -> int:
        """Change the text of a file where it says `old`, once; the line it is in."""
        path = self.folder / name
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{name} says {old!r} {text.count(old)} times"
        path.write_text(text.replace(old, new), encoding="utf-8")
        return text[: text.index(old)].count("\n") + 1

    def bank(self) -> Bank:
        banks.load.cache_clear()
        return banks.load(self.write())


@pytest.fixture
def bank_files(tmp_path):
    """bank_files(question(1), ...): the parts of a bank in tmp_path."""

    def make(*questions: dict) -> BankFiles:
        return BankFiles(tmp_path / "interview_questions", list(questions))

    return make


@pytest.fixture
def make():
    """question(number, **changes), plain(number, **changes)."""

    class Make:
        question = staticmethod(question)
        plain = staticmethod(plain)
        translation = staticmethod(translation)
        counts = COUNTS

    return Make
