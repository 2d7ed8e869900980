"""The time that the chapter states is what it takes, counted as chapter 1's is: words at 180 a
minute, five seconds a line of code, and the runs. The evenings of the timetable follow.

Wrong versions this catches: a page more than it says, an optional part without its minutes, another
sentence about time.
"""

import copy
import json
import re
from pathlib import Path

import pytest

from picolab.chapters.c04_mixed_precision import CHAPTER
from tests.chapters.c01_4d_basics import test_time as counting

NOTEBOOK = Path(__file__).resolve().parents[3] / "notebooks" / "04_mixed_precision.ipynb"
RUNS = (1.0, 0.6)  # minutes of all runs on two quiet cores, sections 1 to 4, and 5 to 8
SECOND_HALF = "5. How to measure an error"


def saved() -> list[dict]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def minutes(cells: list[dict]) -> tuple[list[float], dict[str, float]]:
    with pytest.MonkeyPatch.context() as other:
        other.setattr(counting, "RUNS", RUNS)
        other.setattr(counting, "SECOND_HALF", SECOND_HALF)
        return counting.minutes(cells)


def check_time(cells: list[dict]) -> None:
    title = "".join(cells[0]["source"])
    said = re.search(
        r"About (\d+) minutes: sections 1 to 4 about (\d+), sections 5 to 8 about (\d+)", title
    )
    whole, first, second = map(int, said.groups())
    halves, optional = minutes(cells)
    assert whole == first + second <= counting.MOST
    assert sum(halves) <= whole, f"{sum(halves):.1f} minutes, and it says {whole}"
    for stated, counted in zip((first, second), halves):
        assert abs(stated - counted) <= 2.5, f"{counted:.1f} minutes, and it says {stated}"
    for heading in optional:  # (there is none today)
        assert counting.OPTIONAL.match(heading), f"{heading!r} does not say its minutes"
    assert [evening[1] for evening in CHAPTER.evenings] == [whole]


def test_the_stated_time_is_the_counted_time():
    check_time(saved())


def _another_time(cells):
    cells[0]["source"] = "".join(cells[0]["source"]).replace("minutes: sections", "hours: sections")


@pytest.mark.parametrize(
    "edit",
    [counting._a_page_more, counting._an_optional_part_without_minutes, _another_time],
)
def test_a_wrong_time_is_noticed(edit):
    cells = copy.deepcopy(saved())
    edit(cells)
    with pytest.raises((AssertionError, AttributeError)):
        check_time(cells)
