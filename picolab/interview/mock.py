"""A mock interview: forty-five minutes, five questions, and a report.

    warm-up        level 3 or 4
    two deep ones  level 5 or 6, with follow-ups, of different areas
    a number       numeric, level 4 and up
    a diagnosis    partial evidence, and an order of looks

The questions are drawn once, at the start (not those of the last interview, where there are
others); the session is an ordinary one with a plan, and its reviews count like all others. The
report is Markdown: what was asked, what was seen of each rubric, how long it took, what to read.
"""

import random
from collections import defaultdict
from datetime import datetime
from pathlib import Path

from picolab.interview.bank import Bank, Question
from picolab.interview.reviews import Review
from picolab.interview.session import CONFIDENCE
from picolab.show.files import write_beside

MINUTES = 45
PARTS = ("warm-up", "deep", "deep", "numeric", "diagnosis")


def plan(
    bank: Bank,
    rng: random.Random,
    topic: str | None = None,
    avoid: set[str] = frozenset(),
    minutes: int = MINUTES,
) -> list[tuple[str, str]]:
    """(part, question id) for each part that there is time for. ValueError if there are too few
    questions, or less than ten minutes.
    """
    if minutes < 10:
        raise ValueError(f"an interview needs ten minutes at least, not {minutes}")
    chosen: list[tuple[str, str]] = []
    taken: set[str] = set()
    areas: set[str] = set()
    left = minutes
    for part in PARTS:
        fitting = [q for q in bank.questions(topic) if q.id not in taken and _fits(part, q)]
        fitting = [q for q in fitting if q.minutes <= left] or []
        if not fitting:
            continue
        rng.shuffle(fitting)
        fitting.sort(key=lambda q: (q.id in avoid, q.area in areas))
        question = fitting[0]
        chosen.append((part, question.id))
        taken.add(question.id)
        areas.add(question.area)
        left -= question.minutes
    if len(chosen) < 2:
        raise ValueError("there are too few questions for an interview; widen the topic")
    return chosen


def asked_last(reviews: list[Review]) -> set[str]:
    """What `plan` should avoid: the last questions, as many as an interview has."""
    return {review.id for review in reviews[-len(PARTS) :]}


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
        return question.level <= 4 and question.kind in ("explain", "numeric", "design")
    if part == "deep":
        return question.level >= 5 and question.kind in ("design", "explain")
    if part == "numeric":
        return bool(question.numeric) and question.level >= 4
    return question.kind == "diagnose"


def report(
    bank: Bank,
    parts: list[tuple[str, str]],
    reviews: list[Review],
    began: datetime,
    ended: datetime,
    language="en",
) -> str:
    """The interview as Markdown."""
    by_id = {review.id: review for review in reviews}
    lines = [f"# Mock interview, {began:%Y-%m-%d %H:%M} UTC", ""]
    spent = (ended - began).total_seconds() / 60
    answered = [by_id[name] for _, name in parts if name in by_id]
    score = sum(r.score for r in answered) / len(answered) if answered else 0.0
    lines += [
        f"{len(answered)} of {len(parts)} questions, {spent:.0f} minutes, "
        f"{score:.0%} of the points.",
        "",
        "| part | question | level | minutes (planned) | score | grade | confidence |",
        "|---|---|---|---|---|---|---|",
    ]
    areas: dict[str, list[float]] = defaultdict(list)
    for part, name in parts:
        question = bank.find(name, language)
        review = by_id.get(name)
        if review is None:
            lines.append(f"| {part} | {question.title} | {question.level} | | | not asked | |")
            continue
        areas[question.area].append(review.score)
        said = CONFIDENCE.get(review.confidence, "")
        took = f"{review.seconds / 60:.0f} ({question.minutes})"
        lines.append(
            f"| {part} | {question.title} | {question.level} | {took} | {review.score:.0%} "
            f"| {review.rating} | {said} |"
        )
    lines += ["", "## By area", ""]
    lines += [f"* {area}: {sum(s) / len(s):.0%}" for area, s in sorted(areas.items())]
    for part, name in parts:
        review = by_id.get(name)
        if review is None:
            continue
        question = bank.find(name, language)
        lines += ["", f"## {part}: {question.title} ({question.id})", ""]
        for i, point in enumerate(question.rubric):
            mark = "x" if i in review.ticks else " "
            must = " (must)" if point.must else ""
            lines.append(f"* [{mark}] {point.points}: {point.text}{must}")
        for i in review.flags:
            lines.append(f"* red flag: {question.red_flags[i]}")
        if review.notes:
            lines += ["", "Your notes:", "", *(f"> {line}" for line in review.notes.splitlines())]
        lines += ["", "To read: " + ", ".join(f"`{cell}`" for cell in question.cells)]
    return "\n".join(lines) + "\n"
