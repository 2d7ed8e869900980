"""What somebody typed, compared with what was asked: numbers with their units, and rubric ticks.

    judge(numeric, computed, "3.2 GiB")     right, or why not: a unit, a factor, a known mistake
    propose(question, ticks, ...)           the grade that the ticks speak for; the reader decides

Units are read by pint. Two things it takes otherwise than this field does are put right first: b is
a bit (pint: a gilbert, a barn), and K is k. GB is 1e9 bytes and GiB 2**30; Gb/s are bits. A number
without a unit is read in the unit that was asked for.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from picolab.interview import values as numbers
from picolab.interview.bank import Numeric, Question
from picolab.show.table import show

Rating = Literal["again", "hard", "good", "easy"]
RATINGS: tuple[Rating, ...] = ("again", "hard", "good", "easy")
# A comma parts thousands; in 17,9 it does not, and reading 179 would be worse than asking again.
_NUMBER = r"[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d[\d_]*)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?(?![\d.,])"


@dataclass(frozen=True)
class NumericVerdict:
    """right: within the tolerance. reason: what went wrong, where it is known; what was read."""

    right: bool
    value: float
    expected: float
    unit: str
    reason: str = ""

    @property
    def text(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        said = f"{show(float(self.value))}{unit}"
        if self.right:
            return f"Right: {said} (computed: {show(float(self.expected))}{unit})"
        return f"Not {said}. {self.reason}".rstrip()


def parse(text: str, unit: str) -> tuple[float, bool]:
    """The number in `unit`, and whether a unit was typed. ValueError says what can be read."""
    match = re.fullmatch(rf"\s*({_NUMBER})\s*(.*?)\s*", text)
    if match is None:
        example = f"17.9 {unit}".strip()
        raise ValueError(f"{text.strip()!r} is not a number; write for instance {example}, 3.2e9")
    value = float(re.sub("[,_]", "", match[1]))
    typed = match[2]
    if not typed:
        return value, False
    import pint  # takes a third of a second: only once a unit is typed

    units = _units()
    try:
        found = value * units.Unit(_spelled(typed))
    except Exception:  # pint's parser raises a dozen kinds; whatever it is, the text is no unit
        asked = unit or "a pure number"
        raise ValueError(f"{typed!r} is no unit that is known here; asked for is {asked}") from None
    try:
        return float(
            found.to(units.Unit(_spelled(unit) if unit else "dimensionless")).magnitude
        ), True
    except pint.DimensionalityError:
        raise ValueError(
            f"{text.strip()} is {_dimension(found)}, and asked for is "
            f"{_dimension(1 * units.Unit(_spelled(unit) if unit else 'dimensionless'))}"
            + (f" in {unit}" if unit else "")
        ) from None


def judge(numeric: Numeric, computed: Mapping[str, float], text: str) -> NumericVerdict:
    """Whether the typed answer is right; if not, the reason where one is known. ValueError if it is
    no number of the asked kind.
    """
    value, with_unit = parse(text, numeric.unit)
    if not math.isfinite(value):
        raise ValueError(f"{text.strip()} is larger than any number that is meant here")
    expected = float(computed[numeric.value])

    def verdict(right, reason=""):
        return NumericVerdict(right, value, expected, numeric.unit, reason)

    if close(value, expected, numeric.rtol):
        return verdict(True)
    for wrong in numeric.wrong:
        if close(value, float(numbers.evaluate(wrong.value, computed)), numeric.rtol):
            return verdict(False, wrong.why)
    if numeric.unit == "%" and not with_unit and close(100 * value, expected, numeric.rtol):
        return verdict(False, "As a fraction it would be right; asked for are per cent.")
    return verdict(False, _factor(value, expected, numeric))


def close(value: float, expected: float, rtol: float) -> bool:
    return abs(value - expected) <= rtol * abs(expected) if expected else abs(value) <= rtol


def _factor(value: float, expected: float, numeric: Numeric) -> str:
    """A reason that needs no list: a power of 1000, of 1024/1000, or bits for bytes."""
    if not value or not expected or value * expected < 0:
        return ""
    ratio = value / expected
    data = any(letter in numeric.unit for letter in "Bb")
    if data:
        for power, names in ((1, "kB and KiB"), (2, "MB and MiB"), (3, "GB and GiB")):
            for factor in (1.024**power, 1.024**-power):
                if abs(ratio / factor - 1) < min(0.003, numeric.rtol):
                    return f"The factor looks like {names}: 1000 or 1024 a step."
        for factor in (8.0, 1 / 8):
            if abs(ratio / factor - 1) < numeric.rtol:
                return "It is off by exactly 8: bits and bytes."
    power = math.log10(abs(ratio)) / 3
    if abs(power - round(power)) < 0.005 and round(power):
        return f"The digits are right, and it is off by {show(10.0 ** (3 * round(power)))}."
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


# Units.


@lru_cache(maxsize=1)
def _units():
    import pint

    units = pint.UnitRegistry()
    # pint's bit has no dimension: a number of bytes would pass for a pure number.
    units.define("databit = [data]")
    units.define("databyte = 8 * databit")
    units.define("token = [token]")
    units.define("flop = [flop]")
    return units


_PREFIXES = {"": "", "k": "kilo", "K": "kilo", "M": "mega", "G": "giga", "T": "tera", "P": "peta"}
_PREFIXES |= {f"{p}i": f"{p.lower()}bi" for p in "KMGTP"}
_PREFIXES |= {"Ki": "kibi", "Mi": "mebi", "Gi": "gibi", "Ti": "tebi", "Pi": "pebi", "ki": "kibi"}
_PREFIXES |= {
    p: p for p in ("kilo", "mega", "giga", "tera", "peta", "kibi", "mebi", "gibi", "tebi")
}
_DATA = re.compile(rf"\b({'|'.join(_PREFIXES)})(B|b|[Bb]ytes?|[Bb]its?)(ps)?\b")
_FLOPS = re.compile(r"\b([kKMGTP]|)(FLOPS|FLOP/s|FLOPs|FLOP|flops|flop)\b")


def _spelled(unit: str) -> str:
    """The unit in pint's words."""

    def data(match: re.Match) -> str:
        prefix, what, a_second = match.groups()
        name = "databit" if what == "b" or what.lower().startswith("bit") else "databyte"
        return f"{_PREFIXES[prefix]}{name}" + ("/second" if a_second else "")

    def flops(match: re.Match) -> str:
        rate = match[2] in ("FLOPS", "FLOP/s")
        return f"{_PREFIXES[match[1]]}flop" + ("/second" if rate else "")

    text = unit.strip().replace("%", "percent").replace("µ", "micro").replace("per cent", "percent")
    text = re.sub(r"\btokens\b", "token", text)
    return _FLOPS.sub(flops, _DATA.sub(data, text))


def _dimension(quantity) -> str:
    """In words, for a person who typed the wrong one."""
    units = _units()
    kinds = {
        "databit": "an amount of data",
        "second": "a time",
        "databit/second": "a rate of data",
        "dimensionless": "a pure number",
        "token": "a number of tokens",
        "flop": "a number of operations",
        "flop/second": "a rate of operations",
    }
    for name, kind in kinds.items():
        if quantity.is_compatible_with(units.Unit(name)):
            return kind
    return f"of another kind ({str(quantity.units).replace('data', '')})"
