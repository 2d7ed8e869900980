"""Lint: the texts of a question, in both languages. Placeholders resolve, no result is typed, the
answer has its length, and the Chinese is there, fits, and is of this English.
"""

import json
import re
from collections.abc import Iterator, Mapping

from picolab.interview import glossary
from picolab.interview import values as numbers
from picolab.interview.bank import Bank, Question, Translation
from picolab.interview.lint_places import File, Finding, Place, told
from picolab.interview.typed_numbers import given_numbers, typed_numbers
from picolab.show.yaml_file import FileMistake as BankError

WORDS, WARM_UP_WORDS = (120, 350), (40, 150)
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
    yield from _gives_away(question.id, question, question.offered(), at)
    later = json.dumps([question.answer, *(point.text for point in question.rubric)])
    later += json.dumps([[step.look, step.because] for step in question.steps])
    for word in question.give_away:
        if word.lower() not in _plain(later):
            what = f"{question.id}: give_away says {word!r}, and neither answer nor steps do"
            yield at.finding(what, "give_away")
    try:
        words = len(numbers.render(question.answer, found).split())
    except ValueError:
        return
    least, most = WARM_UP_WORDS if question.warm_up else WORDS
    if not least <= words <= most:
        yield at.finding(
            f"{question.id}: the answer has {words} words; {least} to {most} are asked for",
            "answer",
        )


def _plain(text: str) -> str:
    """Small letters, and none that is stressed."""
    return text.replace("*", "").lower()


def _gives_away(name: str, of: Question | Translation, offered: list[int], at: Place):
    """Words of the cause or the method, in what is shown before the answer."""
    for path, text in _texts(of):
        part = path[0]
        if part == "steps" and (path[1] not in offered or path[2] != "look"):
            continue
        if part not in ("title", "question", "conventions", "numeric", "steps") or "wrong" in path:
            continue
        for word in of.give_away:
            if word.lower() in _plain(text):
                yield at.finding(
                    f"{name}: {word!r} gives the answer away before it is asked for",
                    *path,
                    containing=word,
                )


def _texts(of: Question | Translation) -> list[tuple[tuple, str]]:
    """(path in the file, text) of everything that is shown."""
    parts = ("title", "question", "conventions", "numeric", "steps", "hints", "rubric")
    parts += ("red_flags", "answer", "followups")
    found: list[tuple[tuple, str]] = []

    def walk(value, path: tuple) -> None:
        if isinstance(value, str):
            if path[-1] not in ("value", "unit", "late"):
                found.append((path, value))
        elif isinstance(value, dict):
            for key, one in value.items():
                walk(one, (*path, key))
        elif isinstance(value, list | tuple):
            for index, one in enumerate(value):
                walk(one, (*path, index))

    data = of.model_dump()
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
    try:
        terms = glossary.read_glossary(bank.folder)
    except BankError as error:
        yield from told(error)
        return
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
            yield from _one_chinese(question, bank.zh[question.id], terms, at, strict)
    for name, file in files.items():
        if name.endswith(".zh.yaml") and name.removesuffix(".zh.yaml") not in bank.topics:
            of = name.replace(".zh", "")
            yield Finding(name, file.line(), f"there is no {of} that this could be the Chinese of")


def _one_chinese(question: Question, zh: Translation, terms, at: Place, strict: bool):
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
    yield from _gives_away(name, zh, question.offered(), at)
    if question.give_away and not zh.give_away:
        yield at.finding(f"{name}: give_away is missing in the Chinese", "title")
    for path, text in _texts(zh):
        for term, wrong in glossary.misused(text, terms):
            yield at.finding(
                f"{name}: the glossary says {term.zh} for {term.en}, and this says {wrong}",
                *path,
                containing=wrong,
            )


def _same(path: tuple) -> tuple:
    """The path of a text in both files: a rubric's text and a reason stand alone in Chinese."""
    if path[-1] == "text" or (len(path) > 3 and path[-1] == "why"):
        return path[:-1]
    return path
