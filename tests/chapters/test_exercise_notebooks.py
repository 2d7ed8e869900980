"""What is said of the exercises of the chapters after the first, in words: their number and their
minutes.

That each stands in the notebook once, as the package has it, chapter 1's test of all notebooks asks
(tests/chapters/c01_4d_basics/test_exercise_notebook.py). Wrong versions this catches: a count or a
time that is another than the catalogue's, and a look that a mystery run has and its cell has not.
"""

import json
import re
from pathlib import Path

import pytest

from picolab.chapters import all_chapters
from picolab.exercises.catalogue import find, ids
from picolab.exercises.mystery import cases

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight")
CHAPTERS = {chapter.key: chapter.notebook for chapter in all_chapters()[1:]}
MYSTERIES = [(key, name) for key in CHAPTERS for name in cases() if name.startswith(f"{key}.")]
README = (ROOT / "README.md").read_text("utf-8")


def cells(key: str) -> dict[str, str]:
    path = ROOT / "notebooks" / f"{CHAPTERS[key]}_exercises.ipynb"
    found = json.loads(path.read_text("utf-8"))["cells"]
    return {cell["id"]: "".join(cell["source"]) for cell in found}


def check_counts(key: str, said: str, readme: str = README) -> None:
    exercises = [find(name).about for name in ids(key)]
    mysteries = [name for of, name in MYSTERIES if of == key]
    how_many, runs = NUMBERS[len(exercises)], NUMBERS[len(mysteries)]
    assert f"{how_many.capitalize()} exercises and {runs} mystery runs" in said
    assert f"they take {sum(a.minutes for a in exercises if a.starred)} minutes" in said
    assert f"about {round(sum(a.minutes for a in exercises) / 60)} hours" in said
    least, most = (pick(a.minutes for a in exercises) for pick in (min, max))
    row = f"| `{CHAPTERS[key]}_exercises` | {least} to {most} min each |"
    assert f"{row} {how_many} exercises and {runs} mystery runs |" in readme


def test_every_chapter_after_the_first_is_read():
    assert len(CHAPTERS) >= 5 and {key for key, _ in MYSTERIES} == CHAPTERS.keys()


@pytest.mark.parametrize("key", CHAPTERS)
def test_the_exercises_are_counted(key):
    check_counts(key, cells(key)["exercises-title"])


@pytest.mark.parametrize("key", CHAPTERS)
@pytest.mark.parametrize(
    "right, wrong",
    [
        (r"\w+ exercises and", "Five exercises and"),
        (r"\w+ mystery runs", "one mystery runs"),
        (r"they take \d+ minutes", "they take 35 minutes"),
        (r"about \d+ hours", "about 3 hours"),
    ],
)
def test_a_wrong_count_is_noticed(key, right, wrong):
    with pytest.raises(AssertionError):
        check_counts(key, re.sub(right, wrong, cells(key)["exercises-title"]))


@pytest.mark.parametrize("key", CHAPTERS)
def test_a_wrong_count_in_the_readme_is_noticed(key):
    for wrong in (
        README.replace("| six exercises", "| five exercises"),
        README.replace(" min ", " h "),
    ):
        with pytest.raises(AssertionError):
            check_counts(key, cells(key)["exercises-title"], wrong)


@pytest.mark.parametrize("key, name", MYSTERIES)
def test_each_look_of_a_mystery_run_is_in_its_cell(key, name):
    number = NUMBERS[int(name.rpartition(".")[2])]
    looks = cells(key)[f"mystery-{number}-looks"]
    assert all(f'.look("{look}")' in looks for look in cases()[name].looks)
    assert f"You have {NUMBERS[len(cases()[name].looks)]} looks" in cells(key)["mystery-title"]
