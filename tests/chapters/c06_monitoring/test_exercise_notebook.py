"""What is said of chapter 6's exercises, in words: their number and their minutes.

That each stands in the notebook once, as the package has it, chapter 1's test of all notebooks asks
(tests/chapters/c01_4d_basics/test_exercise_notebook.py). Wrong versions this catches: a count or a
time that is another than the catalogue's, and a look that a mystery run has and its cell has not.
"""

import json
from pathlib import Path

import pytest

from picolab.exercises.catalogue import find, ids
from picolab.exercises.mystery import cases

ROOT = Path(__file__).resolve().parents[3]
NUMBERS = {4: "four", 6: "six", 8: "eight"}
NAMES = ("one", "two", "three", "four")
MYSTERIES = [(f"monitoring.mystery.{i + 1}", name) for i, name in enumerate(NAMES)]


def cells() -> dict[str, str]:
    path = ROOT / "notebooks" / "06_monitoring_exercises.ipynb"
    found = json.loads(path.read_text("utf-8"))["cells"]
    return {cell["id"]: "".join(cell["source"]) for cell in found}


def check_counts(said: str) -> None:
    exercises = [find(name).about for name in ids("monitoring")]
    mysteries = [name for name in cases() if name.startswith("monitoring.")]
    how_many, runs = NUMBERS[len(exercises)], NUMBERS[len(mysteries)]
    assert f"{how_many.capitalize()} exercises and {runs} mystery runs" in said
    assert f"they take {sum(a.minutes for a in exercises if a.starred)} minutes" in said
    assert f"about {round(sum(a.minutes for a in exercises) / 60)} hours" in said


def test_the_exercises_are_counted():
    check_counts(cells()["exercises-title"])


@pytest.mark.parametrize("wrong", ["Five exercises", "they take 50 minutes", "about 3 hours"])
def test_a_wrong_count_is_noticed(wrong):
    right = {"Five": "Six exercises", "they": "they take 40 minutes", "about": "about 2 hours"}
    with pytest.raises(AssertionError):
        check_counts(cells()["exercises-title"].replace(right[wrong.split()[0]], wrong))


@pytest.mark.parametrize(("name", "cell"), MYSTERIES)
def test_each_look_of_a_mystery_run_is_in_its_cell(name, cell):
    looks = cells()[f"mystery-{cell}-looks"]
    assert all(f'.look("{look}")' in looks for look in cases()[name].looks)
    assert f"You have {NUMBERS[len(cases()[name].looks)]} looks" in cells()["mystery-title"]
