"""The time that the chapter states is what it takes by the standard's count: words at 180 a
minute, five seconds a line of code, and the runs. A line that `pico.source` shows is one of code,
too. What is marked optional is counted apart; glossary and sources are looked up, not read.

Counted from the notebook itself, so that neither can drift; the evenings of the timetable follow.
Wrong versions these catch: a paragraph that makes the chapter longer than it says, a section that
is called optional to be left out of the count and says no minutes, the package's code shown and not
counted, an evening of another length.
"""

import copy
import json
import math
import re
from pathlib import Path

import pytest

import picolab as pico
from picolab.chapters.c01_4d_basics import CHAPTER
from picolab.exercises.catalogue import find, ids

NOTEBOOK = Path(__file__).resolve().parents[3] / "notebooks" / "01_4d_basics.ipynb"
WORDS_A_MINUTE, SECONDS_A_LINE = 180, 5
RUNS = (1.0, 1.0)  # minutes of all runs on two quiet cores, sections 1 to 4 and 5 to 8
MOST = 90
SECOND_HALF = "5. Pipeline parallel"
OPTIONAL = re.compile(r"Optional, (\d+) minutes: ")
LOOKED_UP = ("close-glossary", "close-sources")


def saved() -> list[dict]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def minutes(cells: list[dict]) -> tuple[list[float], dict[str, float]]:
    """Of the two halves of the main path; and of each optional part, by its heading."""
    halves, optional, half, part, depth = list(RUNS), {}, 0, None, 0
    for cell in cells:
        text, code = "".join(cell["source"]), cell["cell_type"] == "code"
        shown = re.findall(r'pico\.source\("(.*)"\)', text) if code else []
        text = "\n".join([text, *(pico.source(name, now=True).text for name in shown)])
        for line in text.splitlines() if cell.get("id") not in LOOKED_UP else []:
            if code:
                spent = SECONDS_A_LINE / 60 * bool(line.strip())
            else:
                spent = len(re.findall(r"\w+(?:['’.\-]\w+)*", line)) / WORDS_A_MINUTE
                if heading := re.match(r"(#+) (.*)", line):
                    if part is None or len(heading[1]) <= depth:
                        part = heading[2] if heading[2].startswith("Optional") else None
                        depth = len(heading[1])
                    half = max(half, heading[2] == SECOND_HALF)
            if part is None:
                halves[half] += spent
            else:
                optional[part] = optional.get(part, 0.0) + spent
    return halves, optional


def check_time(cells: list[dict]) -> None:
    title = "".join(cells[0]["source"])
    said = re.search(r"About (\d+) minutes: sections 1 to 4 about (\d+), sections 5 to 8", title)
    whole, first = map(int, said.groups())
    second = int(re.search(r"sections 5 to 8 about (\d+)", title)[1])
    halves, optional = minutes(cells)
    assert whole == first + second <= MOST
    assert sum(halves) <= whole, f"{sum(halves):.1f} minutes, and it says {whole}"
    for stated, counted in zip((first, second), halves):
        assert abs(stated - counted) <= 2.5, f"{counted:.1f} minutes, and it says {stated}"
    for heading, counted in optional.items():
        stated = OPTIONAL.match(heading)
        assert stated, f"{heading!r} does not say its minutes"
        assert counted <= int(stated[1]), f"{heading!r} takes {counted:.1f} minutes"
        assert f"{stated[1]} minutes for" in title or f"{stated[1]} for" in title
    starred = sum(find(name).about.minutes for name in ids("4d") if find(name).about.starred)
    assert [evening[1] for evening in CHAPTER.evenings] == [5 + first, second + starred]


def test_the_stated_time_is_the_counted_time():
    check_time(saved())


def _a_page_more(cells):
    cells[5:5] = [{"cell_type": "markdown", "id": "x", "source": ["word " * 180 * 10]}]


def _an_optional_part_without_minutes(cells):
    cells[-1:-1] = [{"cell_type": "markdown", "id": "x", "source": ["## Optional: more"]}]


def _a_long_optional_part(cells):
    source = ["### Optional, 5 minutes: roofline\n", "word " * 180 * 6]
    cells[-1:-1] = [{"cell_type": "markdown", "id": "x", "source": source}]


def _the_packages_code(cells):
    name = "picolab.parallel.buckets.GradientBuckets"
    cells[5:5] = [{"cell_type": "code", "id": "x", "source": [f'pico.source("{name}")']}]


def _another_time(cells):
    cells[0]["source"] = "".join(cells[0]["source"]).replace("minutes: sections", "hours: sections")


@pytest.mark.parametrize(
    "edit",
    [
        _a_page_more,
        _an_optional_part_without_minutes,
        _a_long_optional_part,
        _the_packages_code,
        _another_time,
    ],
)
def test_a_wrong_time_is_noticed(edit):
    cells = copy.deepcopy(saved())
    edit(cells)
    with pytest.raises((AssertionError, AttributeError)):
        check_time(cells)


def test_what_counts_is_rounded_to_nothing():
    halves, _ = minutes([{"cell_type": "code", "source": ["x = 1\n", "\n", "y = 2\n"]}])
    assert math.isclose(halves[0] - RUNS[0], 10 / 60)
