"""Lint: the texts of a question, in both languages. Placeholders resolve, no result is typed, the
answer has its length, and the Chinese is there, fits, and is of this English.
"""

import re
from collections.abc import Iterator, Mapping

from picolab.interview import values as numbers
from picolab.interview.bank import Bank, Question, Translation
from picolab.interview.lint_places import File, Finding, Place
from picolab.interview.typed_numbers import given_numbers, typed_numbers

WORDS = (120, 350)
RIGHT = ("answer", "rubric", "red_flags", "followups")
"""The parts that say what is right; numbers given in a question may be typed."""


def english(question: Question, at: Place) -> Iterator[Finding]:
    """What is wrong with the texts of the question itself."""
    try:
        found = question.computed()
    except ValueError:
        return  # told by values
    yield from _renders(question.id, _texts(question), found, at)
    yield from _typed(question.id, _texts(question), at)
    try:
        words = len(numbers.render(question.answer, found).split())
    except ValueError:
        return
    if not WORDS[0] <= words <= WORDS[1]:
        yield at.finding(
            f"{question.id}: the answer has {words} words; {WORDS[0]} to {WORDS[1]} are asked for",
            "answer",
        )


def _texts(told: Question | Translation) -> list[tuple[tuple, str]]:
    """(path in the file, text) of everything that is shown."""
    parts = ("title", "question", "conventions", "numeric", "steps", "rubric", "red_flags")
    parts += ("answer", "followups")
    found: list[tuple[tuple, str]] = []

    def walk(value, path: tuple) -> None:
        if isinstance(value, str):
            if path[-1] not in ("value", "unit"):
                found.append((path, value))
        elif isinstance(value, dict):
            for key, one in value.items():
                walk(one, (*path, key))
        elif isinstance(value, list | tuple):
            for index, one in enumerate(value):
                walk(one, (*path, index))

    data = told.model_dump()
    for part in parts:
        walk(data[part], (part,))
    return found


def _renders(name: str, texts, found: Mapping[str, float], at: Place) -> Iterator[Finding]:
    for path, text in texts:
        for match in numbers.BRACES.finditer(text):
            try:
                numbers.render(match[0], found)
            except ValueError as error:
                yield at.finding(f"{name}: {error}", *path, containing=match[0])


def _is_right(path: tuple) -> bool:
    return path[0] in RIGHT and path[-1] != "question"


def _typed(name: str, texts, at: Place) -> Iterator[Finding]:
    given = given_numbers(text for path, text in texts if not _is_right(path))
    for path, text in texts:
        if not _is_right(path):
            continue
        for number in typed_numbers(text, given):
            yield at.finding(
                f"{name}: {number} is typed by hand; a result is a value, {{{{name:.1f}}}}, and a "
                "formula stands in backticks",
                *path,
                containing=number.split()[0],
            )


# Chinese.


def chinese(bank: Bank, files: dict[str, File], strict: bool) -> Iterator[Finding]:
    """What is wrong with the Chinese of all banks."""
    for topic, held in bank.topics.items():
        name = f"{topic}.zh.yaml"
        there = files[name].keys("questions") if name in files else []
        own = {question.id for question in held.questions}
        for question_id in there:
            if question_id not in own:
                at = Place(files[name], ("questions", question_id))
                yield at.finding(f"{question_id} is no question of {topic}.yaml")
        for index, question in enumerate(held.questions):
            if question.id not in there:
                at = Place(files[f"{topic}.yaml"], ("questions", index))
                yield at.finding(f"{question.id} has no Chinese in {name}", "id")
                continue
            at = Place(files[name], ("questions", question.id))
            yield from _one_chinese(question, bank.zh[question.id], at, strict)
    for name, file in files.items():
        if name.endswith(".zh.yaml") and name.removesuffix(".zh.yaml") not in bank.topics:
            of = name.replace(".zh", "")
            yield Finding(name, file.line(), f"there is no {of} that this could be the Chinese of")


def _one_chinese(question: Question, zh: Translation, at: Place, strict: bool):
    name = question.id
    if zh.of != question.english_hash():
        yield at.finding(
            f"{name}: the English has changed since this was translated (it is "
            f"{question.english_hash()} now, `of` says {zh.of})",
            "of",
            severity="error" if strict else "warning",
        )
    english = {_same(path): text for path, text in _texts(question)}
    chinese = {_same(path): text for path, text in _texts(zh)}
    paths = {_same(path): path for path, _ in _texts(zh)}
    for path in english.keys() - chinese.keys():
        where = ".".join(str(part) for part in path)
        yield at.finding(f"{name}: {where} is missing in the Chinese", path[0])
    for path in chinese.keys() - english.keys():
        where = ".".join(str(part) for part in path)
        yield at.finding(f"{name}: {where} is not in the English", *paths[path])
    for path in english.keys() & chinese.keys():
        ours, theirs, there = english[path], chinese[path], paths[path]
        if set(numbers.PLACEHOLDER.findall(ours)) != set(numbers.PLACEHOLDER.findall(theirs)):
            used = [
                ", ".join(sorted({m[0] for m in numbers.PLACEHOLDER.finditer(text)})) or "none"
                for text in (ours, theirs)
            ]
            yield at.finding(
                f"{name}: the placeholders differ: {used[0]} in English, {used[1]} in Chinese",
                *there,
            )
        # A formula alone is the same in both.
        if len(re.findall(r"[A-Za-z]{3,}", ours)) > 2 and not re.search(r"[\u4e00-\u9fff]", theirs):
            yield at.finding(f"{name}: this is no Chinese", *there)
    try:
        found = question.computed()
    except ValueError:
        return
    yield from _renders(name, _texts(zh), found, at)
    yield from _typed(name, _texts(zh), at)


def _same(path: tuple) -> tuple:
    """The path of a text in both files: a rubric's text and a reason stand alone in Chinese."""
    if path[-1] == "text" or (len(path) > 3 and path[-1] == "why"):
        return path[:-1]
    return path
