"""Which exercises there are, in the order in which they are met. Chapters register theirs."""

import difflib
import importlib
from collections.abc import Mapping

_modules: dict[str, str] = {}


def register(modules: Mapping[str, str]) -> None:
    """Exercises of a chapter: id -> the module that holds it, as EXERCISE. It is imported when the
    exercise is asked for.
    """
    _modules.update(modules)


def ids(chapter: str | None = None) -> list[str]:
    """All ids, or those of a chapter: ids("4d")."""
    return [name for name in _modules if chapter is None or name.split(".")[0] == chapter]


def find(exercise_id: str):
    """The Exercise with this id, without showing it. ValueError names the nearest if there is
    none.
    """
    if exercise_id not in _modules:
        near = difflib.get_close_matches(str(exercise_id), _modules, n=1, cutoff=0.4)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"there is no exercise {exercise_id!r}; {meant}there are {', '.join(_modules)}"
        )
    return importlib.import_module(_modules[exercise_id]).EXERCISE


def exercise(exercise_id: str):
    """The exercise: as the last line of a cell it shows its statement. `.check(fn)`, `.hint()`,
    `.solution()`, `.stub`.
    """
    return find(exercise_id)
