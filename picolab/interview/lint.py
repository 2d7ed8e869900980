"""What must hold of every bank: `picolab quiz lint`.

    lint(folder)           a list of findings: file, line, what; an error or a warning
    update_lock(folder)    new ids go to the end of ids.lock

The schema is bank.py's. What is added here needs more than one question to be seen, or a
computation: ids that may never go away, counts, links that lead somewhere, titles and chains here;
numbers that come from calls and nowhere else in lint_values.py and typed_numbers.py; Chinese that
is there and fits in lint_texts.py.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

from picolab.exercises import catalogue
from picolab.interview import bank as banks
from picolab.interview import topics
from picolab.interview.bank import WARM_UP, Bank, BankError, Question
from picolab.interview.lint_places import File, Finding, Place, keys_twice, told
from picolab.interview.lint_texts import chinese, english
from picolab.interview.lint_values import from_calls, values
from picolab.interview.sources import read_sources
from picolab.interview.topics import Counts
from picolab.show.files import write_beside

LOCK = "ids.lock"
ALIKE = 0.6
"""Two titles that share more of their trigrams than this are one question asked twice."""


def lint(
    folder: Path,
    strict: bool = False,
    counts: Mapping[str, Counts] | None = None,
    areas: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Finding]:
    """All findings, by file and line. If a file cannot be read as a bank, only that is told.

    strict: Chinese that is behind its English is an error, not a warning. counts, areas: what each
    topic must have, and may use; what its chapter registered, if not given.
    """
    counts = topics.COUNTS if counts is None else counts
    areas = topics.AREAS if areas is None else areas
    findings = [finding for path in sorted(folder.glob("*.yaml")) for finding in keys_twice(path)]
    try:
        banks.load.cache_clear()  # the files may have changed since
        bank = banks.load(folder)
    except BankError as error:
        return _sorted([*findings, *told(error)])
    files = {path.name: File(path) for path in sorted(folder.glob("*.yaml"))}
    findings += _ids(bank, files)
    findings += _counts(bank, counts)
    for question, at in _questions(bank, files):
        findings += values(question, at)
        findings += english(question, at)
        findings += _exercise(question, at)
        findings += _area(question, at, areas.get(bank.topic_of(question.id)))
    findings += _cells(bank, files)
    findings += _sources(bank, files)
    findings += chinese(bank, files, strict)
    findings += _titles(bank, files)
    findings += _chains(bank, files)
    findings += readme(folder.parent, strict)
    return _sorted(findings)


def readme(root: Path, strict: bool = False) -> list[Finding]:
    """Whether README.zh.md is of the present README.md: its first line says of which.

    None where there is no such file (in the wheel). Stale is a warning, an error if strict.
    """
    english, chinese = root / "README.md", root / "README.zh.md"
    if not (english.exists() and chinese.exists()):
        return []
    now = hashlib.sha256(english.read_bytes()).hexdigest()[:12]
    first = chinese.read_text(encoding="utf-8").splitlines()[0]
    if first == f"<!-- of: {now} -->":
        return []
    what = (
        "README.md has changed since this was translated; bring it up to date and let its first "
        f"line be <!-- of: {now} -->"
    )
    return [Finding(chinese.name, 1, what, "error" if strict else "warning")]


def update_lock(folder: Path) -> list[str]:
    """Append the ids that ids.lock does not have yet; return them. Nothing else changes."""
    banks.load.cache_clear()
    locked = _locked(folder)
    new = [q.id for q in banks.load(folder).questions() if q.id not in locked]
    if new:
        write_beside(folder / LOCK, "".join(f"{name}\n" for name in [*locked, *new]))
    return new


def main_lint(folder: Path, strict: bool = False) -> int:
    """Print the findings; 1 if one of them is an error."""
    findings = lint(folder, strict)
    for finding in findings:
        print(finding)
    errors = sum(finding.severity == "error" for finding in findings)
    said = [_several(errors, "error"), _several(len(findings) - errors, "warning")]
    if not errors:
        bank = banks.load(folder)
        held = _several(len(bank.questions()), "question")
        said.insert(0, f"{held} in {_several(len(bank.topics), 'topic')}")
    print(", ".join(said))
    return int(errors > 0)


def _several(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'s' * (count != 1)}"


def _sorted(findings: list[Finding]) -> list[Finding]:
    return sorted(dict.fromkeys(findings), key=lambda f: (f.file, f.line, f.what))


# Ids and counts.


def _locked(folder: Path) -> list[str]:
    try:
        return (folder / LOCK).read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return []


def _ids(bank: Bank, files: dict[str, File]) -> Iterator[Finding]:
    locked = _locked(bank.folder)
    place = {name: line for line, name in reversed(list(enumerate(locked, 1)))}
    known = {question.id for question in bank.questions()}
    for line, name in enumerate(locked, 1):
        if place[name] != line:
            yield Finding(LOCK, line, f"{name} is there already, in line {place[name]}")
        elif name not in known:
            yield Finding(
                LOCK,
                line,
                f"{name} was a question and is none any more: logs and decks still hold it. A "
                "question may be rewritten, and it keeps its id",
            )
    for topic, held in bank.topics.items():
        furthest = 0
        for index, question in enumerate(held.questions):
            at = Place(files[f"{topic}.yaml"], ("questions", index))
            if question.id not in place:
                yield at.finding(f"{question.id} is not in {LOCK}; make refresh appends it", "id")
            elif place[question.id] < furthest:
                yield at.finding(
                    f"{question.id} stands after {locked[furthest - 1]}, which is younger; new "
                    "questions go to the end of the file",
                    "id",
                )
            furthest = max(furthest, place.get(question.id, 0))


def _counts(bank: Bank, counts: Mapping[str, Counts]) -> Iterator[Finding]:
    for topic, held in bank.topics.items():
        file = f"{topic}.yaml"
        if topic not in counts:
            yield Finding(file, 1, f"no chapter says how many questions {topic} must have")
            continue
        wanted, questions = counts[topic], held.questions
        have = {
            "questions": len(questions),
            "numeric": sum(any(n.value in from_calls(q) for n in q.numeric) for q in questions),
            "code": sum(q.kind == "code" for q in questions),
            "diagnose": sum(q.kind == "diagnose" for q in questions),
            "warm_ups": sum(q.warm_up for q in questions),
        }
        of = {"questions": "", "numeric": " with a number that comes from a call"}
        of |= {"warm_ups": f" of at most {WARM_UP} minutes"}
        for what, count in have.items():
            least = getattr(wanted, what)
            if count < least:
                said = _several(count, "question") + of.get(what, f" of kind {what}")
                yield Finding(file, 1, f"{said}; {least} is the least")
        senior = [q for q in questions if not q.warm_up]
        explain = sum(q.kind == "explain" for q in senior)
        if explain > wanted.explain_share * len(senior):
            yield Finding(
                file,
                1,
                f"{explain} of {len(senior)} longer questions ask for an explanation; "
                f"{wanted.explain_share:.0%} is the most",
            )


# Links.


def notebook_path(folder: Path, cell: str) -> Path:
    """Where the notebook of a `notebooks/NAME.ipynb#cell` is, in a checkout and in a wheel."""
    name = cell.partition("#")[0]
    inside = "_notebooks" if folder.name == "_interview_questions" else "notebooks"
    return folder.parent / inside / name.removeprefix("notebooks/")


def _cells(bank: Bank, files: dict[str, File]) -> Iterator[Finding]:
    known: dict[Path, set[str] | None] = {}
    for question, at in _questions(bank, files):
        for index, cell in enumerate(question.cells):
            match = re.fullmatch(r"notebooks/[\w.]+\.ipynb#([\w-]+)", cell)
            if match is None:
                what = f"{question.id}: {cell!r} is no link; one is notebooks/NAME.ipynb#cell-id"
                yield at.finding(what, "cells", index)
                continue
            path = notebook_path(bank.folder, cell)
            if path not in known:
                known[path] = _cell_ids(path)
            if known[path] is None:
                yield at.finding(f"{question.id}: there is no notebook {path.name}", "cells", index)
            elif match[1] not in known[path]:
                what = f"{question.id}: {path.name} has no cell {match[1]!r}"
                yield at.finding(what, "cells", index)


def _cell_ids(path: Path) -> set[str] | None:
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except FileNotFoundError:
        return None
    return {cell.get("id", "") for cell in cells}


def _sources(bank: Bank, files: dict[str, File]) -> Iterator[Finding]:
    try:
        known = read_sources(bank.folder)
    except BankError as error:
        yield from told(error)
        return
    for question, at in _questions(bank, files):
        for index, key in enumerate(question.sources):
            if key not in known:
                what = f"{question.id}: {key!r} is not in sources.yaml"
                yield at.finding(what, "sources", index)


def _exercise(question: Question, at: Place) -> Iterator[Finding]:
    if question.exercise is not None and question.exercise not in catalogue.ids():
        what = f"{question.id}: there is no exercise {question.exercise!r} in the catalogue"
        yield at.finding(what, "exercise")


def _area(question: Question, at: Place, known: Mapping[str, str] | None) -> Iterator[Finding]:
    if known is not None and question.area not in known:
        what = f"{question.id}: there is no area {question.area!r}; there is {', '.join(known)}"
        yield at.finding(what, "area")


# The bank as a whole.


def _questions(bank: Bank, files: dict[str, File]) -> Iterator[tuple[Question, Place]]:
    for topic, held in bank.topics.items():
        for index, question in enumerate(held.questions):
            yield question, Place(files[f"{topic}.yaml"], ("questions", index))


def similarity(one: str, other: str) -> float:
    """Share of the trigrams of two titles that they have in common (Jaccard), 0 to 1."""
    a, b = (_trigrams(text) for text in (one, other))
    return len(a & b) / len(a | b)


def _trigrams(text: str) -> set[str]:
    words = re.findall(r"[^\W_]+", text.lower())
    plain = f"  {' '.join(words)} "
    return {plain[i : i + 3] for i in range(len(plain) - 2)}


def _titles(bank: Bank, files: dict[str, File]) -> Iterator[Finding]:
    earlier: list[Question] = []
    for question, at in _questions(bank, files):
        for other in earlier:
            if similarity(question.title, other.title) > ALIKE:
                what = f"{question.id}: the title is nearly that of {other.id}, {other.title!r}"
                yield at.finding(what, "title")
        earlier.append(question)


def _chains(bank: Bank, files: dict[str, File]) -> Iterator[Finding]:
    chains: dict[str, list[tuple[Question, Place]]] = defaultdict(list)
    for question, at in _questions(bank, files):
        if question.chain is not None:
            chains[question.chain.name].append((question, at))
    for name, links in chains.items():
        links.sort(key=lambda link: link[0].chain.step)
        steps = [question.chain.step for question, _ in links]
        if steps != list(range(1, len(links) + 1)):
            said = ", ".join(str(step) for step in steps)
            what = f"the chain {name!r} has the steps {said}; they count 1, 2, ... without a gap"
            yield links[-1][1].finding(what, "chain")
        for (before, _), (after, at) in pairwise(links):
            if after.level < before.level:
                yield at.finding(
                    f"{after.id}: a chain goes deeper, and this is level {after.level} after "
                    f"level {before.level} ({before.id})",
                    "level",
                )
