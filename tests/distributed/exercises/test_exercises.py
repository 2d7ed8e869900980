"""Every exercise of the catalogue: its stub is todo, its solution right, each mutant refused with
its own sentence.

Wrong versions these catch: a judge that lets a mistake through or only says "wrong", a solution
over its own budget, a stub that fails (and with it Run All), a hint that is missing, a function of
the package that could be handed in.
"""

import pytest

from picolab.exercises.catalogue import find, ids
from picolab.exercises.check import CheckResult, check, judged


@pytest.mark.parametrize("name", ids())
def test_the_stub_is_todo_and_the_solution_right(name):
    exercise = find(name)
    todo = judged(exercise, exercise.stub_function)
    assert todo.status == "todo" and not todo
    right = judged(exercise, exercise.solution_function)
    assert right.status == "pass", right
    assert right.counted is not None, "the budget is not judged"
    assert all(used <= most for *_, used, most in right.counted.rows)


# Two of each exercise in a push, which show that its judge refuses and says why; the rest weekly.
MUTANTS = [
    pytest.param(
        name,
        mutant,
        id=f"{name}-{mutant.function.__name__}",
        marks=[] if i < 2 else pytest.mark.weekly,
    )
    for name in ids()
    for i, mutant in enumerate(find(name).mutants)
]


@pytest.mark.parametrize("name,mutant", MUTANTS)
def test_each_mutant_is_told_what_is_wrong(name, mutant):
    said = judged(find(name), mutant.function)
    assert said.status == "fail", said
    assert mutant.says in said.text, said


@pytest.mark.parametrize("name", ids())
def test_the_statement_is_whole(name):
    exercise = find(name)
    assert exercise.id == name
    assert 5 <= exercise.minutes <= 25 and 1 <= exercise.difficulty <= 5
    assert len(set(exercise.hints)) == 3 and all(exercise.hints)
    assert len(exercise.mutants) >= 4
    assert exercise.goal and exercise.interface and exercise.budget and exercise.why
    for part in (exercise.title, str(exercise.minutes), exercise.budget):
        assert part in exercise.statement()
    assert "raise NotImplementedError" in exercise.stub


@pytest.mark.parametrize("name", ids())
def test_what_the_package_has_cannot_be_handed_in(name):
    exercise = find(name)
    with pytest.raises(ValueError, match="picolab's own"):
        check(exercise, exercise.solution_function)


def test_two_are_starred_and_ids_are_of_a_chapter():
    assert [find(name).starred for name in ids("4d")].count(True) == 2
    assert all(name.count(".") == 2 for name in ids())


def test_a_verdict_reads_in_text_and_in_html():
    exercise = find("4d.ring.all-reduce")
    result = CheckResult(exercise, "fail", "on 2 ranks", [("rank 1", "x < y & z")], "a\nb")
    assert (
        "Not yet" in result.text and "rank 1: x < y & z" in result.text and "hint()" in repr(result)
    )
    page = result._repr_html_()
    assert "x &lt; y &amp; z" in page and "<b>rank 1</b>" in page
