"""The time that each chapter after the first states is what it takes, counted as chapter 1's is:
words at 180 a minute, five seconds a line of code, and the runs. The evenings of the timetable
follow.

Wrong versions this catches: a page more than it says, an optional part without its minutes, a long
one, another sentence about time.
"""

import copy
import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from picolab.chapters.c02_moe import CHAPTER as MOE
from picolab.chapters.c03_3d_parallel import CHAPTER as THREE_D
from picolab.chapters.c04_mixed_precision import CHAPTER as PRECISION
from picolab.chapters.c05_memory import CHAPTER as MEMORY
from picolab.chapters.c06_monitoring import CHAPTER as MONITORING
from picolab.chapters.record import Chapter
from tests.chapters.c01_4d_basics import test_time as counting

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


class Told(NamedTuple):
    chapter: Chapter
    runs: tuple[float, float]
    """Minutes of all runs on two quiet cores, in the two halves."""
    second_half: str
    """Its first heading."""


TOLD = {
    "02_moe": Told(MOE, (1.2, 0.8), "5. Rows travel"),
    "03_3d_parallel": Told(THREE_D, (1.5, 1.5), "3. All of it, live"),
    "04_mixed_precision": Told(PRECISION, (1.0, 0.6), "5. How to measure an error"),
    "05_memory": Told(MEMORY, (0.5, 0.5), "5. Send it away"),
    "06_monitoring": Told(MONITORING, (0.6, 0.7), "5. From conditions to messages"),
}
of_each = pytest.mark.parametrize("name", TOLD)


def saved(name: str) -> list[dict]:
    return json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def minutes(name: str, cells: list[dict]) -> tuple[list[float], dict[str, float]]:
    with pytest.MonkeyPatch.context() as other:
        other.setattr(counting, "RUNS", TOLD[name].runs)
        other.setattr(counting, "SECOND_HALF", TOLD[name].second_half)
        return counting.minutes(cells)


def check_time(name: str, cells: list[dict]) -> None:
    title = "".join(cells[0]["source"])
    halves = r"sections \d (?:to|and) \d about (\d+), sections \d (?:to|and) \d about (\d+)"
    said = re.search(rf"About (\d+) minutes: {halves}", title)
    whole, first, second = map(int, said.groups())
    halves, optional = minutes(name, cells)
    assert whole == first + second <= counting.MOST
    assert sum(halves) <= whole, f"{sum(halves):.1f} minutes, and it says {whole}"
    for stated, counted in zip((first, second), halves):
        assert abs(stated - counted) <= 2.5, f"{counted:.1f} minutes, and it says {stated}"
    for heading, counted in optional.items():
        stated = counting.OPTIONAL.match(heading)
        assert stated, f"{heading!r} does not say its minutes"
        assert counted <= int(stated[1]), f"{heading!r} takes {counted:.1f} minutes"
        assert f"{stated[1]} minutes for" in title
    assert [evening[1] for evening in TOLD[name].chapter.evenings] == [whole]


@of_each
def test_the_stated_time_is_the_counted_time(name):
    check_time(name, saved(name))


@of_each
@pytest.mark.parametrize(
    "edit",
    [
        counting._a_page_more,
        counting._an_optional_part_without_minutes,
        counting._a_long_optional_part,
        counting._another_time,
    ],
)
def test_a_wrong_time_is_noticed(name, edit):
    cells = copy.deepcopy(saved(name))
    edit(cells)
    with pytest.raises((AssertionError, AttributeError)):
        check_time(name, cells)
