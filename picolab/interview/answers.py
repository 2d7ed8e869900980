"""What somebody typed, compared with what was asked: numbers with their units, and rubric ticks.

    judge(numeric, computed, "3.2 GiB")     right, or why not: a unit, a factor, a known mistake
    propose(question, ticks, ...)           the grade that the ticks speak for; the reader decides

The number is read by `picolab.show`: with its unit, or without one in the unit that was asked for.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from picolab import show
from picolab.interview import values as numbers
from picolab.interview.bank import Numeric, Question
from picolab.show.table import show as cell

Rating = Literal["again", "hard", "good", "easy"]
RATINGS: tuple[Rating, ...] = ("again", "hard", "good", "easy")


@dataclass(frozen=True)
class NumericVerdict:
    """right: within the tolerance. reason: what went wrong, where it is known; note: how the number
    was read, where it could be meant otherwise."""

    right: bool
    value: float
    expected: float
    unit: str
    reason: str = ""
    note: str = ""

    @property
    def text(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        said = f"{cell(float(self.value))}{unit}"
        note = f"{self.note[:1].upper()}{self.note[1:]}. " if self.note else ""
        if self.right:
            return f"{note}Right: {said} (computed: {cell(float(self.expected))}{unit})"
        return f"{note}Not {said}. {self.reason}".rstrip()


def judge(numeric: Numeric, computed: Mapping[str, float], text: str) -> NumericVerdict:
    """Whether the typed answer is right; if not, the reason where one is known. ValueError if it is
    no number of the asked kind.
    """
    typed = show.read(text, numeric.unit)
    value, expected = float(typed.value), float(computed[numeric.value])

    def verdict(right, reason=""):
        return NumericVerdict(right, value, expected, numeric.unit, reason, typed.note)

    if close(value, expected, numeric.rtol):
        return verdict(True)
    for wrong in numeric.wrong:
        if close(value, float(numbers.evaluate(wrong.value, computed)), numeric.rtol):
            return verdict(False, wrong.why)
    if numeric.unit == "%" and not typed.with_unit and close(100 * value, expected, numeric.rtol):
        return verdict(False, "As a fraction it would be right; asked for are per cent.")
    return verdict(False, _factor(value, expected, numeric, computed.values()))


def close(value: float, expected: float, rtol: float) -> bool:
    return abs(value - expected) <= rtol * abs(expected) if expected else abs(value) <= rtol


_STEP = {"k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_NEAR = 5e-4
"""how well a ratio is met that is told without a doubt"""


def _factor(value: float, expected: float, numeric: Numeric, known: Collection[float]) -> str:
    """A reason that needs no list: a power of 1000, of 1024/1000, or bits for bytes. `known`: the
    other numbers of the question; what is one of them was no mistake in the unit.
    """
    if not value or not expected or value * expected < 0:
        return ""
    ratio = value / expected
    data = any(letter in numeric.unit for letter in "Bb")
    if data:
        step = 1.024 ** _STEP.get(numeric.unit[:1], 3)
        binary = min(abs(ratio / factor - 1) for factor in (step, 1 / step))
        if binary < _NEAR and not any(close(value, other, 2 * _NEAR) for other in known):
            letter = numeric.unit[:1] if numeric.unit[:1] in _STEP else "G"
            names = f"{letter}B and {letter.upper()}iB"
            return f"The factor looks like {names}: 1000 or 1024 a step."
        for factor in (8.0, 1 / 8):
            if abs(ratio / factor - 1) < numeric.rtol:
                return "It is off by exactly 8: bits and bytes."
    power = math.log10(abs(ratio)) / 3
    if abs(power - round(power)) < 0.005 and round(power):
        return f"The digits are right, and it is off by {cell(10.0 ** (3 * round(power)))}."
    if abs(ratio - 2) < 2 * numeric.rtol or abs(ratio - 0.5) < numeric.rtol:
        return f"It is {'twice' if ratio > 1 else 'half of'} the right value."
    return "It is too large." if ratio > 1 else "It is too small."


@dataclass(frozen=True)
class Proposal:
    """score of 0 to 1, the rating it speaks for, and why."""

    score: float
    rating: Rating
    why: str


def propose(
    question: Question,
    ticks: Collection[int],
    flags: Collection[int] = (),
    wrong_numbers: int = 0,
) -> Proposal:
    """A grade from the ticked points of the rubric (their indices).

    Below 40 %, or without a must: again. Below 70 %: hard. Below 90 %: good. Else easy. A red flag
    that was said, or a number that was wrong, allows hard at most.
    """
    for index in ticks:
        if not 0 <= index < len(question.rubric):
            raise ValueError(f"the rubric has no point {index + 1}; it has {len(question.rubric)}")
    for index in flags:
        if not 0 <= index < len(question.red_flags):
            raise ValueError(f"there is no red flag {index + 1}")
    total = sum(point.points for point in question.rubric)
    score = sum(question.rubric[i].points for i in set(ticks)) / total
    missing = [p.text for i, p in enumerate(question.rubric) if p.must and i not in ticks]
    if missing:
        return Proposal(score, "again", f"a must is missing: {missing[0]}")
    if score < 0.4:
        return Proposal(score, "again", "less than 40 % of the points")
    rating: Rating = "hard" if score < 0.7 else "good" if score < 0.9 else "easy"
    if flags and rating != "hard":
        return Proposal(score, "hard", f"a red flag: {question.red_flags[min(flags)]}")
    if wrong_numbers and rating != "hard":
        return Proposal(score, "hard", "a number was wrong")
    return Proposal(score, rating, f"{score:.0%} of the points")
