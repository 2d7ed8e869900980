"""Lint: the numbers of a question.

Each evaluates, the right value is accepted, and each known wrong one lies outside the tolerance and
gets its own reason. That a number which is asked for comes from no call is a warning: for some
there is no function, and arithmetic has to do.
"""

import ast
from collections.abc import Iterator

from picolab.interview import values as numbers
from picolab.interview.answers import close, judge
from picolab.interview.bank import Question
from picolab.interview.expressions import parse
from picolab.interview.lint_places import Finding, Place
from picolab.show import units
from picolab.show.table import show


def values(question: Question, at: Place) -> Iterator[Finding]:
    """What is wrong with the numbers of the question."""
    found: dict[str, float | int] = {}
    for name, expression in question.values.items():
        try:
            found[name] = numbers.evaluate(expression, found)
        except ValueError as error:
            yield at.finding(f"{question.id}: {error}", "values", name)
            return  # those below may need it
    called = from_calls(question)
    for index, numeric in enumerate(question.numeric):
        path, right = ("numeric", index), float(found[numeric.value])
        if numeric.value not in called:
            yield at.finding(
                f"{question.id}: {numeric.value} is asked for and comes from no call into costs, "
                "schedules or specs; is there no function for it?",
                "values",
                numeric.value,
                severity="warning",
            )
        if not units.known(numeric.unit):
            what = f"{question.id}: {numeric.unit!r} is no unit that is known here"
            yield at.finding(what, *path, "unit")
            continue
        verdict = judge(numeric, found, f"{right!r} {numeric.unit}")
        if not verdict.right:
            yield at.finding(f"{question.id}: the right value is refused: {verdict.text}", *path)
        for number, wrong in enumerate(numeric.wrong):
            here = (*path, "wrong", number)
            try:
                value = float(numbers.evaluate(wrong.value, found))
            except ValueError as error:
                yield at.finding(f"{question.id}: {error}", *here)
                continue
            if close(value, right, numeric.rtol):
                yield at.finding(
                    f"{question.id}: the wrong value {show(value)} lies within {numeric.rtol:.1%} "
                    f"of the right one, {show(right)}",
                    *here,
                )
            elif judge(numeric, found, f"{value!r} {numeric.unit}").reason != wrong.why:
                yield at.finding(
                    f"{question.id}: who types the wrong value {show(value)} gets the reason of "
                    "another one",
                    *here,
                )


_ROOMS = {"costs", "schedules", "planner", "ModelConfig", "Layout", "Hardware"}


def from_calls(question: Question) -> set[str]:
    """Names of the values with a call into the package, their own or one of a value they use."""
    called: set[str] = set()
    for name, expression in question.values.items():
        try:
            tree = parse(str(expression))
        except ValueError:
            continue  # told by values
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id in called:
                called.add(name)
            if isinstance(node, ast.Call):
                root = node.func
                while isinstance(root, ast.Attribute | ast.Call | ast.Subscript):
                    root = root.func if isinstance(root, ast.Call) else root.value
                if isinstance(root, ast.Name) and root.id in _ROOMS:
                    called.add(name)
    return called
