"""The numbers of a question: expressions over the package's own formulas.

    bubble: 100 * costs.bubble_of_total(8, 32)
    fits: costs.parameters(ModelConfig.preset("llama-3-8b")).total * 16 / 1e9

A bank writes no number into an answer by hand; it names a value and puts `{{bubble:.1f}}` into the
text. So the bank, the notebooks and the package cannot disagree, and a formula that changes changes
the answers, or the lint fails.

An expression may use the functions of `costs`, `schedules`, `ModelConfig`, `Layout` and `Hardware`
that allowed.py lists, values of the same question defined above it, arithmetic, comparisons,
literals, a few functions (min, max, round, abs, ceil, floor, log2, sqrt, sum, len) and nothing
else. It is worked out by a walk over its tree (expressions.py); a bank runs no code.
"""

import math
import re
import reprlib
from collections.abc import Mapping

from picolab.interview.expressions import work_out
from picolab.show.table import show

PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*(?::([^{}]*))?\}\}")
BRACES = re.compile(r"\{\{[^{}\n]*\}\}|\{\{[^{}\s]{0,20}|\}\}")
"""What looks like a placeholder; each must be one."""
_FORMAT = re.compile(r"[+]?,?(\.\d{1,2})?[defgEG%]?")


def evaluate(expression: str | int | float, known: Mapping[str, float] = {}) -> float | int:
    """The value of an expression. ValueError says what is wrong with it."""
    try:
        number = isinstance(expression, int | float)
        return _finite(expression if number else work_out(expression, known))
    except ValueError as error:
        raise ValueError(f"{_shown(expression)}: {error}") from error


def evaluate_all(expressions: Mapping[str, str | int | float]) -> dict[str, float | int]:
    """All values of a question, in order: a later one may use those above it."""
    found: dict[str, float | int] = {}
    for name, expression in expressions.items():
        found[name] = evaluate(expression, found)
    return found


def render(text: str, values: Mapping[str, float | int]) -> str:
    """The text with its placeholders filled in: `{{name}}` or `{{name:.1f}}`. ValueError for an
    unknown one.
    """

    def fill(match: re.Match) -> str:
        found = PLACEHOLDER.fullmatch(match[0])
        if found is None:
            raise ValueError(
                f"{match[0]} is no placeholder; one is {{{{name}}}} or {{{{name:.1f}}}}"
            )
        name, spec = found.groups()
        if name not in values:
            known = ", ".join(values) or "none"
            raise ValueError(f"{{{{{name}}}}} is not among the values of the question ({known})")
        if not spec:
            return show(values[name])
        if not _FORMAT.fullmatch(spec.strip()):
            raise ValueError(f"{match[0]:.60} has no format that is known: .1f, ,.0f or .3g is one")
        try:
            return format(values[name], spec.strip())
        except ValueError:  # d of a fraction
            raise ValueError(f"{match[0]} cannot format {values[name]!r}; .1f can") from None

    return BRACES.sub(fill, text)


def _finite(value) -> float | int:
    try:
        usable = isinstance(value, int | float) and not isinstance(value, bool)
        usable = usable and math.isfinite(value)
    except OverflowError:  # an int beyond every float
        usable = False
    if not usable:
        raise ValueError(f"gives {_shown(value)}, and a finite number is needed")
    return value


def _shown(value) -> str:
    if isinstance(value, int) and value.bit_length() > 1024:  # repr refuses 4,300 digits
        return "a whole number beyond every float"
    return reprlib.repr(value) if not isinstance(value, str) else f"{value!r:.200}"
