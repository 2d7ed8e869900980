"""A number as people type it, read: the one place where text becomes a number.

    read("17,9 %", "%").value      17.9     one comma is a decimal comma ...
    read("1,024").value            1024     ... unless it parts thousands: three digits follow, and
    read("0,158").value            0.158        one to three go before, the first of them no 0
    read("1.024").value            1.024    one point is a decimal point; two part thousands
    read("3.2 GiB", "GB").value    3.436    a unit is converted, and refused if of another kind
    read("~1/6.32").value          0.158    + - * / ^ ( ) and sqrt: people think in formulas
    read("9x"), read("14k"), read("35 %")   9, 14000, 0.35: a factor, a multiple, a share

Where the text could be meant otherwise, `.note` says how it was taken: "read as 1,024 (thousands
comma)". Spaces, underscores and apostrophes part thousands too; full-width digits and signs are
read, and 万 and 亿. Whatever is no number gets one sentence, and soon: everything is a float, so a
tower of powers overflows instead of growing.

What is left out: vulgar fractions, words for digits, ranges (3-4 is -1, and the note says so).
"""

import math
import re
from dataclasses import dataclass

from picolab.show import units

LONGEST = 100
"""characters of a number"""


@dataclass(frozen=True)
class Typed:
    """A number that was read, in the unit that was asked for."""

    value: float | int
    with_unit: bool = False
    """a unit was typed"""
    note: str = ""
    """how it was understood, where it could be meant otherwise"""


def read(text: str, unit: str = "") -> Typed:
    """The number, in `unit`; one without a unit is taken to be in it. ValueError says in a sentence
    what is wrong: that it is no number, or its unit is unknown or of another kind.
    """
    said = text.strip()
    plain = _one_width(said).lstrip("~= ")
    try:
        reader = _Reader(plain if len(plain) <= LONGEST else "")
        value, rest = reader.sum(), plain[reader.at :].strip()
        times, word, rest = _multiple(rest, unit)
        if re.fullmatch("[eE][-+]?", rest):
            raise _NoNumber
        value *= times
        found = units.convert(value, rest, unit, said) if rest else value
        if isinstance(found, complex):
            raise _NoNumber
        if not math.isfinite(found):
            raise OverflowError
    except _NoNumber:
        example = f"17.9 {unit}".strip()
        raise ValueError(
            f"{said!r:.60} is not a number; write for instance {example}, 3.2e9"
        ) from None
    except ZeroDivisionError:
        raise ValueError(f"{said:.60} divides by zero") from None
    except OverflowError:
        raise ValueError(f"{said:.60} is larger than any number that is meant here") from None
    whys = [*reader.whys, *([f"{word} is {_shown(times)}"] if word else [])]
    with_unit = bool(rest)
    if units.is_share(rest) and not units.is_share(unit):
        value, rest = found, ""
        whys.append("a share")
    because = ", ".join(dict.fromkeys(whys))
    note = f"read as {_shown(value)} {rest}".rstrip() + f" ({because})" if whys else ""
    return Typed(_whole(found), with_unit, note)


class _NoNumber(Exception):
    """What stands there is no number."""


_OPERATOR = r"\s*({})\s*(?=[-+(.,\d√]|sqrt)"
_NUMBER = re.compile(r"(?:\d(?:[,.'_ ]?\d)*\.?|[.,]\d+)(?:[eE][-+]?\d+)?")


class _Reader:
    """sum: product + product; product: power * power; power: number ^ power; `whys`: readings that
    could be others. After `sum`, `at` is where the formula ends and a unit may begin.
    """

    def __init__(self, text: str):
        self.text, self.at, self.whys = text, 0, []

    def sum(self) -> float:
        value = self.product()
        while operator := self._operator("[-+]"):
            other = self.product()
            value = value + other if operator == "+" else value - other
        return value

    def product(self) -> float:
        value = self.power()
        while operator := self._operator(r"\*(?!\*)|/|[xX](?=\s*\d)"):
            other = self.power()
            value = value / other if operator == "/" else value * other
        return value

    def power(self) -> float:
        if sign := self._take(r"\s*[-+]\s*"):
            return -self.power() if "-" in sign else self.power()
        value = self.number()
        return value ** self.power() if self._operator(r"\^|\*\*") else value

    def number(self) -> float:
        if self._take(r"\s*(?:sqrt|√)\s*"):
            self.whys.append("calculated")
            return self.number() ** 0.5
        if self._take(r"\s*\(\s*"):
            value = self.sum()
            if not self._take(r"\s*\)"):
                raise _NoNumber
            return value
        match = _NUMBER.match(self.text, self.at)
        if match is None:
            raise _NoNumber
        self.at = match.end()
        return _literal(match[0], self.whys)

    def _operator(self, pattern: str) -> str | None:
        found = self._take(_OPERATOR.format(pattern))
        if found:
            self.whys.append("calculated")
        return found and found.strip()

    def _take(self, pattern: str) -> str | None:
        match = re.compile(pattern).match(self.text, self.at)
        self.at = match.end() if match else self.at
        return match and match[0]


def _literal(text: str, whys: list[str]) -> float:
    """One number without a sign: which of its marks part thousands, and which is the decimal's."""
    body, *exponent = re.split("[eE]", text.replace("_", ""))
    marks = [letter for letter in body.rstrip(".") if not letter.isdigit()]
    last = marks[-1] if marks else ""
    thousands, decimal = "", ""
    if len(set(marks)) == 2 and marks.count(last) == 1 and last in ",.":
        thousands, decimal = marks[0], last
    elif len(set(marks)) > 1:
        raise _NoNumber
    elif last == "," and re.fullmatch(r"[1-9]\d{0,2},\d{3}", body):
        thousands = last
    elif last in ("", ",", ".") and len(marks) < 2:
        decimal = last
    else:
        thousands = last
    whole, *fraction = body.split(decimal) if decimal else [body.rstrip(".")]
    if thousands and not re.fullmatch(rf"[1-9]\d{{0,2}}(?:{re.escape(thousands)}\d{{3}})+", whole):
        raise _NoNumber
    if thousands in (",", ".") and not decimal:
        whys.append("thousands comma" if thousands == "," else "thousands points")
    if decimal == ",":
        whys.append("decimal comma")
    digits = f"{whole.replace(thousands, '')}.{''.join(fraction)}"
    return float("e".join([digits, *exponent]))


_TIMES = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_TIMES |= {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_WORDS = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12, "万": 1e4, "亿": 1e8}


def _multiple(rest: str, unit: str) -> tuple[float, str, str]:
    """(1000, "k", what follows) of "k tokens". A letter alone is none where the unit that is asked
    for has a letter of its own: 5 G, when GB are asked for, could be 5 or 5e9 of them.
    """
    match = re.match(rf"({'|'.join(_WORDS)})\s*|({'|'.join(_TIMES)})(?:\s+|$)", rest)
    if match is None or (match[2] and not rest[match.end() :] and units.has_prefix(unit)):
        return 1.0, "", rest
    word = match[1] or match[2]
    return (_TIMES | _WORDS)[word], word, rest[match.end() :]


_SIGNS = {chr(0xFF01 + i): chr(0x21 + i) for i in range(94)}  # full-width ASCII
_SIGNS |= dict.fromkeys("\N{IDEOGRAPHIC SPACE}\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\t", " ")
_SIGNS |= dict.fromkeys("\N{THIN SPACE}\N{FIGURE SPACE}", " ")
_SIGNS |= dict.fromkeys("×·⋅", "*") | dict.fromkeys("−–—", "-") | {"÷": "/", "∶": "/", "。": "."}
_SIGNS |= {"’": "'", "≈": "~", "约": "~"}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


def _one_width(text: str) -> str:
    raised = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda match: "^" + match[0].translate(_RAISED), text)
    return raised.translate(str.maketrans(_SIGNS)).strip()


def _whole(value: float) -> float | int:
    return int(value) if float(value).is_integer() and abs(value) < 2**53 else value


def _shown(value: float) -> str:
    return f"{int(value):,}" if isinstance(_whole(value), int) else f"{value:,.6g}"
