"""A mock interview: planned to the minute, with a report.

    10 minutes    a warm-up, a number
    25            and a diagnosis
    45            and code, judged in real ranks
    60            and a design

What is left is filled with further designs and numbers. Each part but the warm-up and code is
followed up: `FOLLOW_UPS` questions, a minute each, asked one by one. The plan is drawn once, at the
start (not what the last interview asked, where there is something else), so that questions and
follow-ups together take the minutes that there are and every part that is promised is there. The
session is an ordinary one with a plan, and its reviews count like all others. The report is
Markdown: what was asked, what was skipped, what was seen of each rubric, how long it took, what to
read.
"""

import random
from collections import defaultdict
from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from picolab.interview.bank import Bank, Question
from picolab.interview.reviews import Review
from picolab.interview.words import WORDS
from picolab.show.files import write_beside

MINUTES = 45
PARTS = ((10, "warm-up"), (10, "numeric"), (25, "diagnosis"), (45, "code"), (60, "deep"))
"""from how many minutes on a part is there"""
ORDER = ("warm-up", "numeric", "deep", "code", "diagnosis")
FOLLOW_UPS = 2


class Part(NamedTuple):
    name: str
    question: str
    """its id"""
    follow_ups: int

    def minutes(self, bank: Bank) -> int:
        return bank.find(self.question).minutes + self.follow_ups


def promised(minutes: int) -> list[str]:
    """The parts that an interview of so many minutes always has."""
    return [name for least, name in PARTS if minutes >= least]


def plan(
    bank: Bank,
    rng: random.Random,
    topic: str | None = None,
    avoid: Collection[str] = frozenset(),
    minutes: int = MINUTES,
) -> list[Part]:
    """What is asked, in order. ValueError if that cannot be: less than ten minutes, or a bank that
    lacks a part.
    """
    if minutes < 10:
        raise ValueError(f"an interview needs ten minutes at least, not {minutes}")
    questions = bank.questions(topic)
    wanted = sorted(promised(minutes), key=ORDER.index)
    choices = {name: [q for q in questions if _fits(name, q)] for name in wanted}
    for name, fitting in choices.items():
        if not fitting:
            raise ValueError(
                f"there is no question for the part {name!r} of an interview; widen the topic"
            )
        rng.shuffle(fitting)
    # What is rare or long is chosen first, so that the rest can give way.
    by_choice = sorted(wanted, key=lambda name: (len(choices[name]), name))
    chosen = _choose(by_choice, choices, minutes, {}, avoid)
    if chosen is None:
        raise ValueError(
            f"the questions for {', '.join(wanted)} do not fit into {minutes} minutes; take more"
        )
    parts = [_part(name, chosen[name]) for name in wanted]
    left = minutes - sum(_cost(part.name, chosen[part.name]) for part in parts)
    for name in ("deep", "numeric"):
        more = [q for q in questions if _fits(name, q) and q not in chosen.values()]
        rng.shuffle(more)
        for question in sorted(more, key=lambda q: q.id in avoid):
            if _cost(name, question) <= left:
                left -= _cost(name, question)
                parts.insert(2, _part(name, question))
    return parts


def asked_last(reviews: list[Review]) -> set[str]:
    """What `plan` should avoid: the last questions, as many as an interview has."""
    return {review.id for review in reviews[-len(ORDER) :]}


def report_path(folder: Path, began: datetime) -> Path:
    """Where a report goes if no path is given."""
    return folder / f"interview_{began:%Y-%m-%d_%H%M%S}.md"


def keep(text: str, path: Path) -> Path:
    """Write a report, whole or not at all. OSError if it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_beside(path, text)
    return path


def _fits(part: str, question: Question) -> bool:
    if part == "warm-up":
        return question.warm_up
    if part == "deep":
        return question.level >= 5 and question.kind in ("design", "explain")
    if part == "numeric":
        return question.kind == "numeric" and not question.warm_up
    return question.kind == {"diagnosis": "diagnose", "code": "code"}[part]


def _part(name: str, question: Question) -> Part:
    asked = 0 if name in ("warm-up", "code") else min(FOLLOW_UPS, len(question.followups))
    return Part(name, question.id, asked)


def _cost(name: str, question: Question) -> int:
    return question.minutes + _part(name, question).follow_ups


def _choose(names, choices, left: int, chosen: dict, avoid) -> dict | None:
    """One question for each part, within the minutes: none to be avoided, and of different areas,
    where that can be; None if nothing fits."""
    if not names:
        return chosen
    name, *others = names
    areas = {question.area for question in chosen.values()}
    for question in sorted(choices[name], key=lambda q: (q.id in avoid, q.area in areas)):
        if question in chosen.values() or _cost(name, question) > left:
            continue
        rest = left - _cost(name, question)
        least = sum(min(_cost(n, q) for q in choices[n]) for n in others)
        if least <= rest:
            found = _choose(others, choices, rest, {**chosen, name: question}, avoid)
            if found is not None:
                return found
    return None


def report(
    bank: Bank,
    parts: list[Part],
    reviews: list[Review],
    began: datetime,
    ended: datetime,
    language="en",
    skipped: Collection[str] = (),
    followed: Mapping[str, list[bool]] = {},
) -> str:
    """The interview as Markdown. `followed`: of each question, which follow-ups were answered."""
    words = WORDS[language]
    by_id = {review.id: review for review in reviews}
    began, ended = began.astimezone(), ended.astimezone()
    answered = [by_id[part.question] for part in parts if part.question in by_id]
    lines = [
        f"# {words['mock title'].format(at=f'{began:%Y-%m-%d %H:%M}')}",
        "",
        words["mock sum"].format(
            n=len(answered),
            of=len(parts),
            minutes=f"{(ended - began).total_seconds() / 60:.0f}",
            score=sum(r.score for r in answered) / len(answered) if answered else 0.0,
        ),
        "",
        f"| {' | '.join(words['mock columns'].split('|'))} |",
        "|---" * 8 + "|",
    ]
    areas: dict[str, list[float]] = defaultdict(list)
    for part in parts:
        question, review = bank.find(part.question, language), by_id.get(part.question)
        row = [words[part.name], question.title, question.level]
        if review is None:
            how = words["was skipped" if part.question in skipped else "not asked"]
            row += ["", "", how, "", ""]
        else:
            areas[question.area].append(review.score)
            sure = words[f"sure {review.confidence}"][2:] if review.confidence else ""
            had = followed.get(part.question, [])
            row += [f"{review.seconds / 60:.0f} ({question.minutes})", f"{review.score:.0%}"]
            row += [words[review.rating], sure, f"{sum(had)}/{len(had)}" if had else ""]
        lines.append(f"| {' | '.join(str(cell) for cell in row)} |")
    lines += ["", f"## {words['by area']}", ""]
    lines += [
        f"* {bank.area(area, language)}: {sum(s) / len(s):.0%}" for area, s in sorted(areas.items())
    ]
    for part in parts:
        if (review := by_id.get(part.question)) is None:
            continue
        question = bank.find(part.question, language)
        lines += ["", f"## {words[part.name]}: {question.title} ({question.id})", ""]
        for i, point in enumerate(question.rubric):
            mark = "x" if i in review.ticks else " "
            must = words["must"] if point.must else ""
            lines.append(f"* [{mark}] {point.points}: {point.text}{must}")
        for i in review.flags:
            lines.append(f"* {words['red flag']}: {question.red_flags[i]}")
        for asked, had in zip(question.followups, followed.get(part.question, [])):
            lines.append(f"* [{'x' if had else ' '}] {words['followup']}: {asked.question}")
        if review.notes:
            notes = (f"> {line}" for line in review.notes.splitlines())
            lines += ["", f"{words['your notes']}:", "", *notes]
        cells = ", ".join(f"`{cell}`" for cell in question.cells)
        lines += ["", f"{words['read']}: {cells}"]
    return "\n".join(lines) + "\n"
