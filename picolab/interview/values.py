"""The numbers of a question: expressions over the package's own formulas.

    bubble: 100 * costs.bubble_of_total(8, 32)
    fits: costs.parameters(ModelConfig.preset("llama-3-8b")).total * 16 / 1e9

A bank writes no number into an answer by hand; it names a value and puts `{{bubble:.1f}}` into the
text. So the bank, the notebooks and the package cannot disagree, and a formula that changes changes
the answers, or the lint fails.

An expression may use `costs`, `schedules`, `ModelConfig`, `Layout`, `Hardware`, values of the same
question defined above it, arithmetic, comparisons, literals, a few functions (min, max, round, abs,
ceil, floor, log2, sqrt, sum, len) and nothing else: it is parsed, and what is not on the list is
refused with its place.
"""

import ast
import math
import re
from collections.abc import Mapping

from picolab.show.table import show

_FUNCTIONS = {
    "min": min,
    "max": max,
    "round": round,
    "abs": abs,
    "sum": sum,
    "len": len,
    "ceil": math.ceil,
    "floor": math.floor,
    "log2": math.log2,
    "sqrt": math.sqrt,
}
_NODES = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Attribute, ast.Call, ast.keyword),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow),
    *(ast.UnaryOp, ast.USub, ast.Subscript, ast.Tuple, ast.List, ast.Dict, ast.Starred),
    *(ast.Compare, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq, ast.IfExp),
    *(ast.GeneratorExp, ast.ListComp, ast.comprehension, ast.Store, ast.BoolOp, ast.And, ast.Or),
)
PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*(?::([^{}]*))?\}\}")


def evaluate(expression: str | int | float, known: Mapping[str, float] = {}) -> float | int:
    """The value of an expression. ValueError says what is wrong with it."""
    if isinstance(expression, int | float):
        return _finite(expression, expression)
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except SyntaxError as error:
        raise ValueError(f"{expression!r} is not an expression: {error.msg}") from None
    names = {**_rooms(), **_FUNCTIONS, **known}
    bound = {
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    for node in ast.walk(tree):
        if not isinstance(node, _NODES):
            raise ValueError(f"{expression!r}: {type(node).__name__} is not allowed in a value")
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            raise ValueError(f"{expression!r}: {node.attr} is private")
        if isinstance(node, ast.Name) and node.id not in names and node.id not in bound:
            raise ValueError(
                f"{expression!r}: there is no {node.id!r}; known are {', '.join(sorted(names))}"
            )
    try:
        value = eval(compile(tree, "value", "eval"), {"__builtins__": {}, **names})
    except Exception as error:
        raise ValueError(f"{expression!r} fails: {type(error).__name__}: {error}") from error
    return _finite(value, expression)


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
        name, spec = match.groups()
        if name not in values:
            known = ", ".join(values) or "none"
            raise ValueError(f"{{{{{name}}}}} is not among the values of the question ({known})")
        return format(values[name], spec.strip()) if spec else show(values[name])

    return PLACEHOLDER.sub(fill, text)


def _finite(value, expression) -> float | int:
    try:
        usable = isinstance(value, int | float) and not isinstance(value, bool)
        usable = usable and math.isfinite(value)
    except OverflowError:  # an int beyond every float
        usable = False
    if not usable:
        raise ValueError(f"{expression!r} gives {value!r:.40}, and a finite number is needed")
    return value


def _rooms() -> dict:
    from picolab import costs, schedules
    from picolab.specs import Hardware, Layout, ModelConfig

    return {
        "costs": costs,
        "schedules": schedules,
        "ModelConfig": ModelConfig,
        "Layout": Layout,
        "Hardware": Hardware,
    }
