"""What an expression of a question bank may do: a walk over its tree, with a list for everything.

A bank is a file that somebody sends you. So nothing of it is ever compiled or run: the text is
parsed, and the tree is walked by this file, which knows

* the names (allowed.py): each function and constant of `picolab.costs`, `schedules` and `specs`
  that a question may use, one by one, under its dotted name. No module is among the values, so none
  leads on (`schedules.ir.re.enum.sys.modules`); "costs.parameters" is a name and no attribute
* the types: results are numbers, words, lists of them and the records of allowed.py, of which the
  listed fields can be read and the listed methods be called. A function is no value
* the sizes: of the text, of a number, of a list, of a model, a layout and a schedule, and of the
  time in all. Words take no arithmetic, so there is nothing to format and nothing to multiply

What is not on a list is refused with one sentence. Two libraries for it were tried: simpleeval and
asteval (1.0) keep lists of the attributes that are forbidden, which grow with each report, both
gave the machine's memory to `"%2000000000d" % 1`, and neither bounds what a call builds.

What is left out: a formula that is slow within these sizes costs its time, a second at most.
"""

import ast
import inspect
import time
from collections.abc import Callable, Mapping, MappingView, Sequence

from picolab.interview import allowed
from picolab.interview.allowed import LAYERS, MOST, PLAIN, RANKS

LONGEST = 1000
"""characters of an expression"""
DEEPEST = 60
"""brackets and operators inside each other"""
STEPS = 20_000
"""parts that are worked out, those of a loop each time"""
BITS = 1024
"""of a whole number; beyond it no float can follow"""
ITEMS = 10_000
"""of a list"""
SECONDS = 2.0
"""of this thread's processor time"""

_KINDS = (int, float, str, list, tuple, range, Mapping, MappingView)
_OPERATORS: dict[type, Callable] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
    ast.Pow: lambda a, b: a**b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
}


def parse(text: str) -> ast.expr:
    """The tree of an expression. ValueError if it is none, or is too long."""
    if len(text) > LONGEST:
        raise ValueError(f"an expression has {LONGEST:,} characters at most, not {len(text):,}")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"is not an expression: {error.msg}") from None
    except (ValueError, MemoryError, RecursionError):  # a NUL; brackets beyond the parser's stack
        raise ValueError("is not an expression: it is nested too deeply, or no text") from None


def work_out(text: str, known: Mapping[str, object]):
    """What the expression gives: a number, or another value of the types that are allowed.

    known: values by name. ValueError says what is wrong, without repeating the expression.
    """
    try:
        return _Walk(known, allowed.names()).value(parse(text))
    except ZeroDivisionError:
        raise ValueError("divides by zero") from None
    except OverflowError:
        raise ValueError("gives a number beyond every float; a finite number is needed") from None


class _Walk:
    """One expression, from its leaves up. names: values; listed: what may be called or read."""

    def __init__(self, names: Mapping[str, object], listed: Mapping[str, object]):
        self.names, self.listed = dict(names), listed
        self.steps, self.depth, self.until = 0, 0, time.thread_time() + SECONDS
        self.readable, self.callable = allowed.types()

    def value(self, node: ast.expr):
        self.steps, self.depth = self.steps + 1, self.depth + 1
        if self.depth > DEEPEST:
            raise ValueError(f"is nested more than {DEEPEST} deep")
        if self.steps > STEPS or time.thread_time() > self.until:
            raise ValueError("takes too long: it is for a number of a question, not for a program")
        found = self._value(node)
        self.depth -= 1
        return self._checked(found)

    def _value(self, node: ast.expr):
        match node:
            case ast.Constant(value=bool() | int() | float() | str() as found):
                return found
            case ast.Name() | ast.Attribute():
                return self._named(node)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return self._arithmetic(op, self.value(left), self.value(right))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self._number(self.value(operand))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self.value(operand)
            case ast.BoolOp(op=op, values=parts):
                found = None
                for part in parts:
                    found = self.value(part)
                    if bool(found) == isinstance(op, ast.Or):
                        break
                return found
            case ast.Compare(left=left, ops=ops, comparators=rest):
                return self._compared(self.value(left), ops, rest)
            case ast.IfExp(test=test, body=body, orelse=other):
                return self.value(body if self.value(test) else other)
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                found = [self._flat(self.value(part)) for part in parts]
                return tuple(found) if isinstance(node, ast.Tuple) else found
            case ast.ListComp() | ast.GeneratorExp():
                return self._loop(node.elt, node.generators)
            case ast.Subscript(value=whole, slice=index):
                return self._part(self.value(whole), self.value(index))
            case ast.Call():
                return self._call(node)
        raise ValueError(f"{type(node).__name__} is not allowed in a value")

    # Names.

    def _named(self, node: ast.Name | ast.Attribute):
        if isinstance(node, ast.Name) and node.id in self.names:
            return self.names[node.id]
        dotted = self._dotted(node)
        if dotted is None:
            owner, name = self.value(node.value), node.attr
            if name not in self.readable.get(type(owner), ()):
                raise ValueError(f"has no access to .{name} of a {type(owner).__name__}")
            return getattr(owner, name)
        found = self.listed[dotted]
        if callable(found):
            raise ValueError(f"{dotted} is a function, and a finite number is needed: call it")
        return found

    def _dotted(self, node: ast.expr) -> str | None:
        """The name on the list that this is. None if it is part of a value; else ValueError."""
        parts, root = [], node
        while isinstance(root, ast.Attribute):
            if root.attr.startswith("_"):
                raise ValueError(f"{root.attr} is private")
            parts, root = [root.attr, *parts], root.value
        if not isinstance(root, ast.Name) or root.id in self.names:
            return None
        full = ".".join([root.id, *parts])
        name = full.removeprefix("pico.")
        if name in self.listed:
            return name
        if any(name.startswith(f"{known}.") for known in self.listed):
            return None  # a field of a constant: refused with the value's type
        known = ", ".join(sorted([*self.names, *self.listed]))
        raise ValueError(f"there is no {full!r}; known are {known}")

    # Arithmetic.

    def _arithmetic(self, op: ast.operator, a, b):
        if isinstance(a, list) and (
            (isinstance(op, ast.Mult) and type(b) is int)
            or (isinstance(op, ast.Add) and type(b) is list)
        ):
            if (len(a) * b if type(b) is int else len(a) + len(b)) > ITEMS:
                raise ValueError(f"a list has {ITEMS:,} entries at most")
            return _OPERATORS[type(op)](a, b)
        a, b = self._number(a), self._number(b)
        whole = isinstance(op, ast.Pow) and isinstance(a, int) and isinstance(b, int)
        if whole and a.bit_length() * b > 2 * BITS:
            raise OverflowError
        return _OPERATORS[type(op)](a, b)

    def _compared(self, left, ops, rest) -> bool:
        for op, node in zip(ops, rest):
            right = self.value(node)
            if type(op) not in _OPERATORS:
                raise ValueError(f"{type(op).__name__} is not allowed in a value")
            words = isinstance(left, str) and isinstance(right, str)
            if not words:
                left, right = self._number(left), self._number(right)
            if not _OPERATORS[type(op)](left, right):
                return False
            left = right
        return True

    def _number(self, found) -> int | float:
        if isinstance(found, int | float):
            return found
        raise ValueError(f"calculates with a {type(found).__name__}, and that takes numbers")

    def _flat(self, found):
        if isinstance(found, int | float | str):
            return found
        raise ValueError(f"a list here holds numbers and words, no {type(found).__name__}")

    # Lists and calls.

    def _loop(self, element: ast.expr, generators: list[ast.comprehension]) -> list:
        outside, found = self.names, []

        def go(level: int) -> None:
            if level == len(generators):
                found.append(self._flat(self.value(element)))
                return
            loop = generators[level]
            entries = self.value(loop.iter)
            if not isinstance(entries, Sequence | MappingView):
                raise ValueError(f"goes through a {type(entries).__name__}, which is no list")
            for entry in entries:
                self.names = {**self.names, **self._bound(loop.target, entry)}
                if all(self.value(test) for test in loop.ifs):
                    go(level + 1)

        go(0)
        self.names = outside
        return found

    def _bound(self, target: ast.expr, entry) -> dict:
        match target:
            case ast.Name(id=name):
                return {name: entry}
            case ast.Tuple(elts=[*parts]) if (
                isinstance(entry, tuple)
                and len(parts) == len(entry)
                and all(isinstance(part, ast.Name) for part in parts)
            ):
                return {part.id: one for part, one in zip(parts, entry)}
        raise ValueError(f"{ast.unparse(target)!r} does not fit what the loop goes through")

    def _part(self, whole, index):
        if not isinstance(whole, Sequence | Mapping) or isinstance(whole, str):
            raise ValueError(f"a {type(whole).__name__} has no parts by [...]")
        try:
            return whole[index]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"there is no [{index!r:.60}] in it") from None

    def _call(self, node: ast.Call):
        method = None
        if isinstance(node.func, ast.Attribute) and self._dotted(node.func) is None:
            owner, method = self.value(node.func.value), node.func.attr
            if method not in self.callable.get(type(owner), ()):
                raise ValueError(f"has no access to .{method}() of a {type(owner).__name__}")
            function, name = getattr(owner, method), f"{type(owner).__name__}.{method}"
        elif isinstance(node.func, ast.Name | ast.Attribute):
            if isinstance(node.func, ast.Name) and node.func.id in self.names:
                raise ValueError(f"{node.func.id} is a value and cannot be called")
            name = self._dotted(node.func)
            function = self.listed[name]
        else:
            function, name = self.value(node.func), "this"
        if not callable(function):
            raise ValueError(f"{name} is a value and cannot be called")
        given = [self.value(part) for part in node.args]
        named: dict[str, object] = {}
        for keyword in node.keywords:
            found = self.value(keyword.value)
            more = {keyword.arg: found} if keyword.arg is not None else found
            if not isinstance(more, Mapping) or not all(isinstance(key, str) for key in more):
                raise ValueError("** takes one of the sets of bytes, such as costs.BYTES_16_BF16")
            named |= more
        self._check_arguments(name, function, given, named)
        try:
            return function(*given, **named)
        except ValueError as error:
            raise ValueError(f"fails: {error}") from error
        except (TypeError, AttributeError, KeyError, IndexError) as error:
            raise ValueError(f"{name} cannot work with these arguments: {error}") from error

    def _check_arguments(self, name: str, function: Callable, given: list, named: dict) -> None:
        if name in PLAIN and name != "len":
            numbers = [
                n for one in given for n in (one if isinstance(one, list | tuple) else [one])
            ]
            if named or not all(isinstance(n, int | float) for n in numbers):
                raise ValueError(f"{name} takes numbers, or one list of numbers")
        try:
            bound = {**inspect.signature(function).bind(*given, **named).arguments, **named}
        except TypeError as error:
            raise ValueError(f"{name} cannot be called like this: {error}") from None
        except ValueError:  # min and max say nothing of their arguments
            bound = {}
        for argument, most in MOST.get(name, {}).items():
            found = bound.get(argument, 0)
            if isinstance(found, int | float) and abs(found) > most:
                raise ValueError(f"{name} takes {argument} up to {most:,} in a question")
        if isinstance(layout := bound.get("layout"), str):
            from picolab.specs import Layout

            self._checked(Layout.parse(layout))

    def _checked(self, found):
        """The value, if it is of a type and a size that an expression may hold."""
        if isinstance(found, int) and not isinstance(found, bool) and found.bit_length() > BITS:
            raise OverflowError
        kind = type(found).__name__
        if not isinstance(found, _KINDS) and type(found) not in self.readable:
            raise ValueError(f"gives a {kind}, and a finite number is needed")
        if kind == "ModelConfig" and found.layers > LAYERS:
            raise ValueError(f"a model has {LAYERS} layers at most in a question")
        if kind == "Layout" and found.world > RANKS:
            raise ValueError(f"a layout has {RANKS:,} ranks at most in a question")
        return found
