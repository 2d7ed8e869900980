"""Questions as data: what a bank file says, read and checked.

`interview_questions/TOPIC.yaml` holds the questions of a topic in English, `TOPIC.zh.yaml` the
Chinese of each id, `sources.yaml` what they cite, `ids.lock` every id there ever was. A mistake in
a file is told with its line. How a question is answered and graded is not known here.

Chinese carries the hash of the English it was made from, so that a test can list what is stale.
"""

import hashlib
import json
import random
import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from picolab.interview import values as numbers
from picolab.show import yaml_file
from picolab.show.yaml_file import FileMistake as BankError
from picolab.show.yaml_file import line_of

Language = Literal["en", "zh"]
Kind = Literal["explain", "numeric", "code", "diagnose", "design"]
BESIDE = ("sources", "glossary")
"""files of a folder of banks that are no bank"""
WARM_UP = 3
"""minutes, at most"""
Text = Annotated[str, Field(min_length=1, max_length=10_000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Point(_Strict):
    """One thing that an interviewer could see in an answer."""

    points: int = Field(ge=1, le=5)
    text: Text
    must: bool = False
    """without it the answer does not pass"""


class Wrong(_Strict):
    """A known wrong value, and how people get there."""

    value: str | int | float
    """an expression, like those of `values`"""
    why: Text


class Numeric(_Strict):
    """A number to be given."""

    prompt: Text
    value: str
    """the name of one of the question's values"""
    unit: str = ""
    """"B", "GB", "GiB", "s", "ms", "%", "" for a pure number; "GB/s" is bytes, "Gb/s" is bits"""
    rtol: float = Field(default=0.02, gt=0, le=0.25)
    convention: Text | None = None
    """where there are two: which one is asked for"""
    wrong: tuple[Wrong, ...] = ()


class Step(_Strict):
    """One look of a diagnosis."""

    look: Text
    because: Text
    """what it would show, and what that would rule out or settle"""
    late: bool = False
    """it names the cause, or mends it: told with the answer, and not among the looks to choose"""


class FollowUp(_Strict):
    question: Text
    points: tuple[Text, ...] = Field(min_length=1)


class Chain(_Strict):
    """Questions that go deeper, one after the other."""

    name: Text
    step: int = Field(ge=1)


class Provenance(_Strict):
    author: Text
    checked: Literal["computed", "source", "measured"]
    """how the answer was settled: by a call, by a source that says it, by a run"""
    note: Text
    """what was compared, and what the second reading changed, if anything"""
    date: Text


class Question(_Strict):
    """One question, in one language."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9]+-\d{3}$")]
    kind: Kind
    area: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    """one of its topic's (topics.py)"""
    level: int = Field(ge=3, le=6)
    """3 explain, 4 derive and quantify, 5 design and trade off, 6 diagnose and judge"""
    minutes: int = Field(ge=2, le=25)
    """up to 3 it is a warm-up: fewer points, a short answer"""
    title: Text
    question: Text
    conventions: tuple[Text, ...] = ()
    values: dict[str, str | int | float] = Field(default={}, max_length=100)
    """name -> expression; `{{name}}` or `{{name:.1f}}` in any text"""
    numeric: tuple[Numeric, ...] = ()
    exercise: str | None = None
    """kind code: the id of an exercise that is judged in real ranks"""
    steps: tuple[Step, ...] = ()
    """kind diagnose: in the order in which they should be taken"""
    give_away: tuple[Text, ...] = ()
    """words of the cause or the method, which nothing that is shown before the answer may say"""
    hints: tuple[Text, ...] = ()
    """one after the other, for who asks"""
    rubric: tuple[Point, ...] = Field(min_length=2, max_length=7)
    red_flags: tuple[Text, ...] = Field(min_length=1)
    answer: Text
    followups: tuple[FollowUp, ...] = Field(min_length=1)
    sources: tuple[str, ...] = Field(min_length=1)
    """keys of sources.yaml"""
    cells: tuple[str, ...] = Field(min_length=1)
    """"notebooks/01_4d_basics.ipynb#cell-id": where it is measured or worked out"""
    chain: Chain | None = None
    provenance: Provenance

    @model_validator(mode="after")
    def _whole(self):
        if self.kind == "numeric" and not self.numeric:
            raise ValueError("a numeric question needs `numeric`")
        if (self.kind == "code") != (self.exercise is not None):
            raise ValueError("`exercise` belongs to kind code, and to no other")
        if (self.kind == "diagnose") != bool(self.steps):
            raise ValueError("`steps` belong to kind diagnose, and to no other")
        if self.steps and len(self.steps) < 4:
            raise ValueError("a diagnosis has at least four steps")
        if self.kind == "diagnose" and not self.give_away:
            raise ValueError("a diagnosis says in `give_away` which words would name its cause")
        if len(self.offered()) < 3 and self.steps:
            raise ValueError("at least three looks of a diagnosis are not `late`")
        if len(self.rubric) < 4 and not self.warm_up:
            raise ValueError("the rubric has at least four points; only a warm-up has fewer")
        if sum(point.points for point in self.rubric) != 10:
            raise ValueError("the rubric's points must sum to 10")
        if not any(point.must for point in self.rubric):
            raise ValueError("at least one point of the rubric is a must")
        for number in self.numeric:
            if number.value not in self.values:
                raise ValueError(f"numeric asks for {number.value!r}, which is not in `values`")
        return self

    @property
    def warm_up(self) -> bool:
        return self.minutes <= WARM_UP

    def offered(self) -> list[int]:
        """The looks of a diagnosis that a reader may choose: their indices, in the right order."""
        return [index for index, step in enumerate(self.steps) if not step.late]

    def mixed(self) -> list[int]:
        """The same, as they are shown to be chosen from: always alike, and never in order."""
        offered = self.offered()
        random.Random(self.id).shuffle(offered)
        return offered if offered != self.offered() else offered[::-1]

    def computed(self) -> dict[str, float | int]:
        """name -> value, computed now. ValueError names the question."""
        return self._named(lambda: numbers.evaluate_all(self.values))

    def rendered(self) -> "Question":
        """The same question with every placeholder filled in."""
        found = self.computed()
        texts = self.model_dump(exclude={"values"})
        data = self._named(lambda: _map_text(texts, lambda text: numbers.render(text, found)))
        return Question.model_validate({**data, "values": self.values})

    def _named(self, make):
        try:
            return make()
        except ValueError as error:
            raise ValueError(f"{self.id}: {error}") from error

    def english_hash(self) -> str:
        """Of the texts that a translation has: changes when one of them does."""
        told = json.dumps(translatable(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(told.encode()).hexdigest()[:12]


class Translation(_Strict):
    """The texts of one question in another language, and the hash of the English they are of."""

    of: str
    title: Text
    question: Text
    conventions: tuple[Text, ...] = ()
    numeric: tuple[dict[str, str | list[str] | None], ...] = ()
    """prompt, convention, and wrong: the reasons, in the order of the English"""
    steps: tuple[Step, ...] = ()
    give_away: tuple[Text, ...] = ()
    hints: tuple[Text, ...] = ()
    rubric: tuple[Text, ...]
    red_flags: tuple[Text, ...]
    answer: Text
    followups: tuple[FollowUp, ...]


class Topic(_Strict):
    topic: Text
    title: Text
    title_zh: Text
    areas_zh: dict[str, Text] = {}
    """area -> what it is called in Chinese"""
    questions: tuple[Question, ...] = Field(min_length=1)


class Bank:
    """All topics of a folder: `bank.questions()`, `bank.find(id)`, `bank.topics`."""

    def __init__(self, folder: Path, topics: dict[str, Topic], zh: dict[str, Translation]):
        self.folder, self.topics, self.zh = folder, topics, zh
        self._by_id = {q.id: (name, q) for name, t in topics.items() for q in t.questions}

    def questions(self, topic: str | None = None, level: int | None = None) -> list[Question]:
        """Those of a topic, of a level. ValueError for a topic that is not there."""
        if topic is not None and topic not in self.topics:
            raise ValueError(f"there is no topic {topic!r}; there is {', '.join(self.topics)}")
        return [
            q
            for name, held in self.topics.items()
            for q in held.questions
            if topic in (None, name) and level in (None, q.level)
        ]

    def topic_of(self, question_id: str) -> str:
        return self._entry(question_id)[0]

    def area(self, name: str, language: Language) -> str:
        """What an area is called."""
        if language == "en":
            return name
        return next((t.areas_zh[name] for t in self.topics.values() if name in t.areas_zh), name)

    def find(self, question_id: str, language: Language = "en") -> Question:
        """The question, its numbers computed, in this language. ValueError for an unknown id or
        language; where the Chinese is missing, the English.
        """
        check_language(language)
        question = self._entry(question_id)[1]
        if language == "zh" and question_id in self.zh:
            question = translated(question, self.zh[question_id])
        rendered = question.rendered()
        return _joined(rendered) if language == "zh" else rendered

    def _entry(self, question_id: str) -> tuple[str, Question]:
        if question_id not in self._by_id:
            import difflib

            near = difflib.get_close_matches(question_id, self._by_id, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"there is no question {question_id!r}{meant}")
        return self._by_id[question_id]


def check_language(language: str) -> None:
    if language not in ("en", "zh"):
        raise ValueError(f"there is no language {language!r}; there is en and zh")


def bank_folder() -> Path:
    """interview_questions of the checkout, or the copy that travels in the wheel."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "interview_questions", package / "_interview_questions"):
        if folder.is_dir():
            return folder
    raise BankError("the question banks are not installed: there is no interview_questions folder")


@lru_cache(maxsize=4)
def load(folder: Path | None = None) -> Bank:
    """Read every bank of the folder. BankError names the file, the line and what is wrong."""
    folder = bank_folder() if folder is None else folder
    topics: dict[str, Topic] = {}
    zh: dict[str, Translation] = {}
    if not folder.is_dir():
        raise BankError(f"there is no folder {folder}")
    seen: dict[str, str] = {}
    for path in sorted(folder.glob("*.yaml")):
        if path.stem in BESIDE:
            continue
        if path.name.endswith(".zh.yaml"):
            zh |= _read_translations(path)
            continue
        topic = _validated(path, Topic)
        if topic.topic != path.stem:
            raise BankError(
                f"{path.name}: its topic is {topic.topic!r}; the file name says {path.stem!r}"
            )
        for question in topic.questions:
            if question.id in seen:
                line = _line_of_id(path, question.id)
                raise BankError(
                    f"{path.name}, line {line}: the id {question.id} is there already "
                    f"({seen[question.id]}); ids are never used twice"
                )
            seen[question.id] = path.name
        topics[topic.topic] = topic
    if not topics:
        raise BankError(f"there is no bank in {folder}: TOPIC.yaml is what is looked for")
    return Bank(folder, topics, zh)


def translatable(question: Question) -> dict:
    """The texts that a translation has to have."""
    return {
        "title": question.title,
        "question": question.question,
        "conventions": list(question.conventions),
        "numeric": [
            {"prompt": n.prompt, "convention": n.convention, "wrong": [w.why for w in n.wrong]}
            for n in question.numeric
        ],
        "steps": [{"look": s.look, "because": s.because} for s in question.steps],
        **({"hints": list(question.hints)} if question.hints else {}),
        "rubric": [point.text for point in question.rubric],
        "red_flags": list(question.red_flags),
        "answer": question.answer,
        "followups": [
            {"question": f.question, "points": list(f.points)} for f in question.followups
        ],
    }


def translated(question: Question, zh: Translation) -> Question:
    """The question with the translation's texts. ValueError where the two have different parts."""
    for part in ("conventions", "numeric", "steps", "hints", "rubric", "red_flags", "followups"):
        ours, theirs = len(getattr(question, part)), len(getattr(zh, part))
        if ours != theirs:
            raise ValueError(f"{question.id}: {part} has {ours} entries, the translation {theirs}")
    numeric = [
        number.model_copy(
            update={
                "prompt": said["prompt"],
                "convention": said.get("convention"),
                "wrong": tuple(
                    wrong.model_copy(update={"why": why})
                    for wrong, why in zip(number.wrong, said.get("wrong") or [])
                ),
            }
        )
        for number, said in zip(question.numeric, zh.numeric)
    ]
    rubric = [p.model_copy(update={"text": text}) for p, text in zip(question.rubric, zh.rubric)]
    return question.model_copy(
        update={
            "title": zh.title,
            "question": zh.question,
            "conventions": zh.conventions,
            "numeric": tuple(numeric),
            "steps": tuple(
                ours.model_copy(update={"look": said.look, "because": said.because})
                for ours, said in zip(question.steps, zh.steps)
            ),
            "give_away": zh.give_away,
            "hints": zh.hints,
            "rubric": tuple(rubric),
            "red_flags": zh.red_flags,
            "answer": zh.answer,
            "followups": zh.followups,
        }
    )


# Reading, and where in the file a mistake is.


def _read_translations(path: Path) -> dict[str, Translation]:
    class Translations(_Strict):
        questions: dict[str, Translation]

    return _validated(path, Translations).questions


def _validated(path: Path, kind: type[BaseModel]):
    root, data = yaml_file.read(path)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        lines = []
        for one in error.errors():
            if one["type"] == "too_short" and len(one["input"]) >= one["ctx"]["min_length"]:
                continue  # nothing is left of a list because each entry has its own mistake
            where = ".".join(str(part) for part in one["loc"])
            said = one["msg"].removeprefix("Value error, ")
            lines.append(f"{path.name}, line {line_of(root, one['loc'])}: {where}: {said}")
        raise BankError("\n".join(lines)) from None


def _line_of_id(path: Path, question_id: str) -> int:
    """The last line that gives this id."""
    found = [
        number
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if line.split("#")[0].strip().lstrip("- ").replace('"', "") == f"id: {question_id}"
    ]
    return found[-1] if found else 1


_CHINESE = r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"
_BROKEN = re.compile(rf"(?<={_CHINESE})[ \n](?={_CHINESE})")


def _joined(question: Question) -> Question:
    """Without line breaks between Chinese characters, nor the spaces that YAML makes of them."""
    data = _map_text(question.model_dump(exclude={"values"}), lambda text: _BROKEN.sub("", text))
    return Question.model_validate({**data, "values": question.values})


def _map_text(value, change):
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _map_text(one, change) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_map_text(one, change) for one in value]
    return value
