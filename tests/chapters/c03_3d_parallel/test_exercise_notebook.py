"""What is said of chapter 3's exercises, in words: their number and their minutes.

That each stands in the notebook once, as the package has it, chapter 1's test of all notebooks asks
(tests/chapters/c01_4d_basics/test_exercise_notebook.py). Wrong versions this catches: a count or a
time that is another than the catalogue's.
"""

import json
from pathlib import Path

import pytest

from picolab.exercises.catalogue import find, ids
from picolab.exercises.mystery import cases

ROOT = Path(__file__).resolve().parents[3]
NUMBERS = {2: "two", 6: "six"}


def title() -> str:
    path = ROOT / "notebooks" / "03_3d_parallel_exercises.ipynb"
    return "".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"])


def check_counts(said: str, readme: str) -> None:
    exercises = [find(name).about for name in ids("3d")]
    mysteries = [name for name in cases() if name.startswith("3d.")]
    how_many, runs = NUMBERS[len(exercises)], NUMBERS[len(mysteries)]
    assert f"{how_many.capitalize()} exercises and {runs} mystery runs" in said
    assert f"they take {sum(a.minutes for a in exercises if a.starred)} minutes" in said
    assert f"about {round(sum(a.minutes for a in exercises) / 60)} hours" in said
    assert f"| {how_many} exercises and {runs} mystery runs |" in readme
    least, most = (pick(a.minutes for a in exercises) for pick in (min, max))
    assert f"`03_3d_parallel_exercises` | {least} to {most} min each" in readme


def readme() -> str:
    return (ROOT / "README.md").read_text("utf-8")


def test_the_exercises_are_counted():
    check_counts(title(), readme())


@pytest.mark.parametrize("wrong", ["Five exercises", "they take 45 minutes", "about 3 hours"])
def test_a_wrong_count_is_noticed(wrong):
    right = {"Five": "Six exercises", "they": "they take 40 minutes", "about": "about 2 hours"}
    with pytest.raises(AssertionError):
        check_counts(title().replace(right[wrong.split()[0]], wrong), readme())
