"""`pico.source("picolab.parallel.ring.ring_attention")`: the package's own code, as it runs here.

A chapter builds a toy of each mechanism and then shows the function that a training run calls: its
file, its first line, its text, from the package that is imported. The file is read and parsed, not
imported, so that it costs nothing and needs no torch; a name that a package hands on
(`picolab.parallel.ring_attention`) leads to where it is written.

What an exercise asks the reader to write stays covered until that exercise was tried, as its worked
solution does: the file is on the reader's disk, and a solution seen first teaches little. Which
names these are, the chapters' records say (`Chapter.covered`).
"""

import ast
import difflib
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

from picolab.chapters import all_chapters
from picolab.exercises import record

_PACKAGE = Path(__file__).resolve().parents[1]


def source(name, now: bool = False) -> "Source":
    """The source of a function, class, method or module of the package.

    name   dotted, "picolab.parallel.ring.ring_attention", or the object itself
    now    also what an exercise asks for that you have not tried yet

    In a notebook it is highlighted; `print(pico.source(...))` in a terminal. ValueError for a name
    that is not there, with the nearest that is.
    """
    if not isinstance(name, str):
        if not hasattr(name, "__qualname__"):
            raise ValueError(
                f"source takes a name, 'picolab.parallel.ring.ring_attention', or a function or "
                f"class of the package, not a {type(name).__name__}"
            )
        name = f"{name.__module__}.{name.__qualname__}"
    found = _find(name)
    return Source(found, None if now else _asked_by(found.name))


class _Found(NamedTuple):
    name: str  # where it is written, dotted
    path: Path
    line: int
    text: str


class Source:
    """A piece of the package: `.path`, `.line`, `.text`; shown highlighted."""

    def __init__(self, found: _Found, covered_by: str | None):
        self.name, self.line, self.text = found.name, found.line, found.text
        self.path = found.path.relative_to(_PACKAGE.parent).as_posix()
        self.covered_by = covered_by

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}"

    def _cover(self) -> str:
        return (
            f"covered: exercise {self.covered_by} asks you to write this. It is shown once you "
            "have tried (or with `now=True`)."
        )

    def __repr__(self) -> str:
        if self.covered_by:
            return f"{self.where}\n{self._cover()}"
        if sys.stdout.isatty():
            from rich.syntax import Syntax

            from picolab.show import terminal

            code = Syntax(self.text, "python", theme="ansi_dark", background_color="default")
            return terminal.text(self.where, code, to=terminal.console())
        return f"{self.where}\n{self.text}"

    def _repr_markdown_(self) -> str:
        if self.covered_by:
            return f"`{self.where}` {self._cover()}"
        return f"`{self.where}`\n\n```python\n{self.text}\n```"


def _asked_by(name: str) -> str | None:
    """The exercise that asks for it, or for a part of it, and was not tried yet."""
    for chapter in all_chapters():
        for covered, exercise in chapter.covered.items():
            inside = f"{name}.".startswith(f"{covered}.") or f"{covered}.".startswith(f"{name}.")
            if inside and not record.has_tried(exercise):
                return exercise
    return None


def _find(name: str) -> _Found:
    parts = name.split(".")
    if parts[0] != _PACKAGE.name:
        raise ValueError(f"{name!r} is not a name of the package: it begins with 'picolab.'")
    place, rest = _PACKAGE, parts[1:]
    while rest and place.is_dir():
        inside = place / rest[0]
        if inside.is_dir() and (inside / "__init__.py").exists():
            place, rest = inside, rest[1:]
        elif inside.with_suffix(".py").exists():
            place, rest = inside.with_suffix(".py"), rest[1:]
        else:
            place = place / "__init__.py"
    path = place / "__init__.py" if place.is_dir() else place
    return _within(name, path, rest)


def _within(name: str, path: Path, rest: list[str]) -> _Found:
    """The definition `rest`, dotted, in this file; or in the file from which it is imported."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    dotted = ".".join(path.relative_to(_PACKAGE.parent).with_suffix("").parts)
    dotted = dotted.removesuffix(".__init__")
    if not rest:
        return _Found(dotted, path, 1, text.rstrip())
    node, body = None, tree.body
    for depth, part in enumerate(rest):
        defined, imported = _names(body)
        if part in imported and depth == 0:
            return _find(".".join([imported[part], *rest[1:]]))
        if part not in defined:
            _refuse(name, part, {*defined, *imported, *_beside(path)} if depth == 0 else defined)
        node = defined[part]
        body = getattr(node, "body", [])
    decorators = [one.lineno for one in getattr(node, "decorator_list", [])]
    line = min([node.lineno, *decorators])
    lines = text.splitlines()[line - 1 : node.end_lineno]
    return _Found(f"{dotted}.{'.'.join(rest)}", path, line, textwrap.dedent("\n".join(lines)))


def _names(body: list[ast.stmt]) -> tuple[dict[str, ast.stmt], dict[str, str]]:
    """What is defined here, and what is handed on: name -> its full name."""
    defined, imported = {}, {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            defined[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined |= {one.id: node for one in targets if isinstance(one, ast.Name)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("picolab"):
            imported |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    return defined, imported


def _beside(path: Path) -> set[str]:
    """Of a package the modules in it."""
    if path.name != "__init__.py":
        return set()
    return {one.stem for one in path.parent.iterdir() if one.suffix == ".py" or one.is_dir()}


def _refuse(name: str, part: str, known) -> None:
    visible = sorted(one for one in known if not one.startswith("__"))
    near = difflib.get_close_matches(part, visible, n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(map(repr, near))}?" if near else ""
    here = f"there are {', '.join(visible)}" if visible else "there is nothing with a name"
    raise ValueError(f"{name!r}: there is no {part!r} there; {meant or here}")
