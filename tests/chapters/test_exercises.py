"""Every exercise of the catalogue: its stub is todo, its solution right, each mutant refused with
its own sentence.

Wrong versions these catch: a judge that lets a mistake through or only says "wrong", a solution
over its own budget, a stub that fails (and with it Run All), a hint that is missing, a function of
the package that could be handed in.
"""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest

from picolab.chapters import all_chapters
from picolab.exercises.catalogue import find, ids
from picolab.exercises.check import CheckResult, check, judged
from picolab.exercises.mystery import cases


@pytest.mark.parametrize("name", ids())
def test_the_stub_is_todo_and_the_solution_right(name):
    exercise = find(name)
    todo = judged(exercise, exercise.stub_function)
    assert todo.status == "todo" and not todo
    right = judged(exercise, exercise.solution_function)
    assert right.status == "pass", right
    assert right.counted is not None, "the budget is not judged"
    assert all(least <= used <= most for *_, least, used, most in right.counted.rows)
    asks_for_traffic = any(most for _, what, _, _, most in right.counted.rows if "payload" in what)
    has_a_floor = any(least for _, what, least, *_ in right.counted.rows if "payload" in what)
    assert has_a_floor == asks_for_traffic


def answers(name: str):
    """MUTANTS: wrong answer -> what its author must be told. RIGHT: right ones in another style."""
    module = find(name).stub_function.__module__
    _, _, chapter, file = module.split(".")
    return importlib.import_module(f"tests.chapters.{chapter}.mutants.{file}")


# In a push two of each exercise, which show that its judge refuses and says why, and beside the
# solution of each one right answer in another style to the starred ones; the rest weekly.
MUTANTS = [
    pytest.param(
        name,
        function,
        says,
        id=f"{name}-{function.__name__}",
        marks=[] if i < 2 else pytest.mark.weekly,
    )
    for name in ids()
    for i, (function, says) in enumerate(answers(name).MUTANTS.items())
]
RIGHT = [
    pytest.param(
        name,
        function,
        id=f"{name}-{function.__name__}",
        marks=[] if i < 1 and find(name).about.starred else pytest.mark.weekly,
    )
    for name in ids()
    for i, function in enumerate(answers(name).RIGHT)
]


@pytest.mark.parametrize("name,function,says", MUTANTS)
def test_each_mutant_is_told_what_is_wrong(name, function, says):
    exercise = find(name)
    if says == "they wait for ever":
        exercise = replace(exercise, timeout=2.0)
    said = judged(exercise, function)
    assert said.status == "fail", said
    assert says in said.text, said


@pytest.mark.weekly
@pytest.mark.parametrize("name", ids())
def test_no_exercise_is_deaf_to_another_way(name):
    solution = find(name).solution_function

    def also_gathers_objects(*arguments):
        import torch.distributed as dist

        result = solution(*arguments)
        dist.all_gather_object([None] * dist.get_world_size(), 1)
        return result

    assert judged(find(name), also_gathers_objects).status == "fail"


@pytest.mark.parametrize("name,function", RIGHT)
def test_right_answers_in_another_style_are_right(name, function):
    assert judged(find(name), function), judged(find(name), function)


@pytest.mark.parametrize("name", ids())
def test_the_statement_is_whole(name):
    exercise = find(name)
    assert exercise.id == name
    assert 5 <= exercise.about.minutes <= 25 and 1 <= exercise.about.difficulty <= 5
    assert len(set(exercise.hints)) == 3 and all(exercise.hints)
    assert len(answers(name).MUTANTS) >= 14 and len(answers(name).RIGHT) >= 2
    assert exercise.goal and exercise.interface and exercise.budget and exercise.why
    for part in (exercise.title, str(exercise.about.minutes), exercise.budget):
        assert part in exercise.statement()
    assert "raise NotImplementedError" in exercise.stub


@pytest.mark.parametrize("name", ids())
def test_what_the_package_has_cannot_be_handed_in(name):
    exercise = find(name)
    with pytest.raises(ValueError, match="picolab's own"):
        check(exercise, exercise.solution_function)


@pytest.mark.parametrize("chapter", all_chapters(), ids=lambda chapter: chapter.notebook)
def test_two_are_starred_and_ids_are_of_a_chapter(chapter):
    assert [find(name).about.starred for name in ids(chapter.key)].count(True) == 2
    assert all(
        name.count(".") == 2 and chapter.key in name.split(".")[:2] for name in chapter.exercises
    )


README = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")
NUMBERS = {2: "two", 3: "three", 4: "four", 6: "six"}


def check_counts(chapter, readme: str) -> None:
    (row,) = (line for line in readme.splitlines() if f"| `{chapter.notebook}_exercises` |" in line)
    runs = [name for name in cases() if name.startswith(f"{chapter.key}.")]
    assert f"| {NUMBERS[len(ids(chapter.key))]} exercises" in row
    assert f"and {NUMBERS[len(runs)]} mystery runs" in row


# (Chapter 1's are counted in its own tests: one of its exercises stands in the chapter.)
@pytest.mark.parametrize("chapter", all_chapters()[1:], ids=lambda chapter: chapter.notebook)
def test_the_readme_counts_exercises_and_mystery_runs(chapter):
    check_counts(chapter, README)
    with pytest.raises(AssertionError):
        check_counts(chapter, README.replace("mystery runs", "runs"))


def test_a_verdict_reads_in_text_and_in_html():
    exercise = find("4d.ring.all-reduce")
    result = CheckResult(exercise, "fail", "on 2 ranks", [("rank 1", "x < y & z")], "a\nb")
    assert (
        "Not yet" in result.text and "rank 1: x < y & z" in result.text and "hint()" in repr(result)
    )
    page = result._repr_html_()
    assert "x &lt; y &amp; z" in page and "<b>rank 1</b>" in page
