"""No exercise's solution stands in a chapter after the first: its own cells, adapted to each
exercise's interface as a reader would who writes no mechanism of their own, fail the judge.

Each chapter has beside it `nearest.py`, of each exercise the nearest that its cells have. Wrong
version this catches: a chapter that has a solution in one of its cells; adapted in the same way, it
passes, and is found.
"""

import pytest

from picolab.exercises.catalogue import find, ids
from picolab.exercises.check import judged
from picolab.exercises.definition import source_of
from tests.chapters.c02_moe import nearest as moe
from tests.chapters.c03_3d_parallel import nearest as three_d
from tests.chapters.c04_mixed_precision import nearest as precision
from tests.chapters.c05_memory import nearest as memory
from tests.chapters.c06_monitoring import nearest as monitoring

CHAPTERS = {
    "moe": moe,
    "3d": three_d,
    "precision": precision,
    "memory": memory,
    "monitoring": monitoring,
}
SOLVED = {
    "moe": "moe.balance.aux",
    "3d": "3d.pp.split",
    "precision": "precision.scale.amax",
    "memory": "memory.plan.knapsack",
    "monitoring": "monitoring.hang.who_waits",
}
CASES = [
    (name, make)
    for chapter in CHAPTERS.values()
    for name, makes in chapter.NEAREST.items()
    for make in makes
]


def given_away(exercise: str, make) -> bool:
    said = judged(find(exercise), make())
    assert said.status in ("pass", "fail"), said
    return said.status == "pass"


@pytest.mark.parametrize("exercise, make", CASES)
def test_the_chapters_cells_do_not_pass(exercise, make):
    assert not given_away(exercise, make)


@pytest.mark.parametrize("key", CHAPTERS)
def test_every_exercise_of_the_chapter_is_tried(key):
    assert [name for name in ids(key) if name not in CHAPTERS[key].NEAREST] == []


@pytest.mark.parametrize("key", CHAPTERS)
def test_a_chapter_with_the_solution_is_found(key):
    def make():
        names: dict = {"__name__": "__main__"}
        exec(source_of(find(SOLVED[key]).solution_function), names)
        return names["solution"]

    assert given_away(SOLVED[key], make)
