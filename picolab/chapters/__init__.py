"""The chapters: a folder each, with its exercises, coding tasks, mystery runs, figures that only it
draws, cheat-sheet rows, and a record of all these as CHAPTER.

    chapters.register()                      tell the engines what there is; again does nothing
    chapters.all_chapters()                  their records, in order
    pico.chapters.c01_4d_basics.FIGURE()     a figure of one

`exercises` and `interview` know no chapter. Whoever stands left of the chapters (the command line,
`lab`, the lazy names of `pico`) registers them before an engine is used. None imports another.
"""

import importlib
import pkgutil
from functools import cache

from picolab.chapters.record import Chapter

__all__ = ["Chapter", "all_chapters", "register"]


def __getattr__(name: str):
    """A chapter that is asked for before anybody has imported it, or while another thread does."""
    if name in {one.name for one in pkgutil.iter_modules(__path__) if one.ispkg}:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def all_chapters() -> tuple[Chapter, ...]:
    """Every folder cNN_topic that is here."""
    found = sorted(one.name for one in pkgutil.iter_modules(__path__) if one.ispkg)
    return tuple(importlib.import_module(f"{__name__}.{name}").CHAPTER for name in found)


@cache
def register() -> None:
    """Tell the engines of every chapter's exercises, mystery runs and bank."""
    from picolab.exercises import catalogue, mystery
    from picolab.interview import topics

    for chapter in all_chapters():
        catalogue.register(chapter.exercises)
        mystery.register(chapter.mysteries)
        topics.register(chapter.topic, chapter.areas, chapter.counts, chapter.taught)
