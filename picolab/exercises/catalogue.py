"""Which exercises there are, in the order in which they are met. Chapters register theirs.

What is said of an exercise before it is opened stands here, so that a list of all of them imports
none, and no torch.
"""

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class About:
    """What a list tells of an exercise, and where it is."""

    module: str
    """holds it as EXERCISE; imported when the exercise is asked for"""
    title: str
    minutes: int
    """what it takes somebody who meets it first"""
    difficulty: int
    """1 (fill in a line) to 5 (a whole algorithm with traps)"""
    starred: bool = False
    """one of the two to do if you do only two"""

    def within(self, package: str) -> "About":
        """The same, its module named in full."""
        return replace(self, module=f"{package}.{self.module}")


_known: dict[str, About] = {}


def register(exercises: Mapping[str, About]) -> None:
    """Exercises of a chapter, by id."""
    _known.update(exercises)


def about(exercise_id: str) -> About:
    """What is told of this one. ValueError names the nearest if there is none."""
    if exercise_id not in _known:
        near = difflib.get_close_matches(str(exercise_id), _known, n=1, cutoff=0.4)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"there is no exercise {exercise_id!r}; {meant}there are {', '.join(_known)}"
        )
    return _known[exercise_id]


def ids(chapter: str | None = None) -> list[str]:
    """All ids, or those of a chapter: ids("4d")."""
    return [name for name in _known if chapter is None or name.split(".")[0] == chapter]


def find(exercise_id: str):
    """The Exercise with this id, without showing it. ValueError names the nearest if there is
    none.
    """
    return importlib.import_module(about(exercise_id).module).EXERCISE


def exercise(exercise_id: str):
    """The exercise: as the last line of a cell it shows its statement. `.check(fn)`, `.hint()`,
    `.solution()`, `.stub`.
    """
    return find(exercise_id)
