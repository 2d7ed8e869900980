"""A mystery run in a front end: buttons and curves, and the same looks, names and score as in code.

Wrong versions these tests catch: a button that looks without being counted, one that counts a look
twice, a table in place of the curves, a curve of another run, a form headless, a name that is taken
from a wrong suspect, a form that does not follow what is done in code.
"""

import math
from types import SimpleNamespace

import pytest

from picolab.exercises import mystery as engine
from picolab.exercises.mystery import MysteryRun, cases
from picolab.exercises.mystery_case import LOOKS
from picolab.exercises.mystery_curves import curves
from picolab.exercises.mystery_looks import Trial
from picolab.lab.mystery_form import form
from picolab.show import front_end
from picolab.show.table import Table

CASE = cases()["4d.mystery.1"]


def run(losses, norms):
    return SimpleNamespace(
        losses=losses, norms=norms, ranks=[], config=SimpleNamespace(layout=CASE.layout)
    )


def trial() -> Trial:
    """Not trained: losses as they are, norms four times too large."""
    one = run([5.0, 4.0, 3.0], [1.0, 2.0, 1.5])
    this, right = run(one.losses, [4.0, 8.0, 6.0]), run(one.losses, [1.0, 2.0, 1.5000001])
    made = Trial(this, right, one)
    made.copies, made.collectives, this.split = ([], []), [], {}
    return made


@pytest.fixture
def case(monkeypatch):
    monkeypatch.setattr(front_end, "_seen", True)
    assert engine._forms == [form]  # by lab
    case = MysteryRun(CASE)
    case._trial = trial()
    return case


def press(box, name):
    box.parts[name].click()


def choose(box, letter):
    box.parts["suspects"].value = letter
    press(box, "name")


def test_there_is_a_button_for_each_look_and_a_choice_for_each_suspect(case):
    box = case.content()
    assert [box.parts[name].description for name in LOOKS] == list(LOOKS)
    assert [letter for _, letter in box.parts["suspects"].options] == list(CASE.letters)
    assert (
        "5 looks left" in box.parts["status"].value and "50 points now" in box.parts["status"].value
    )


def test_a_button_takes_the_look_once(case):
    box = case.content()
    press(box, "norm")
    press(box, "norm")
    assert case.looks == ["norm"] and box.parts["norm"].icon == "check"
    assert not box.parts["loss"].icon and len(box.parts["seen"].children) == 1
    assert "4 looks left" in box.parts["status"].value
    assert "worth 100 points now, 90 after another look" in box.parts["status"].value


def test_names_count_as_in_code(case):
    box = case.content()
    press(box, "norm")
    wrong = next(letter for letter in CASE.letters if letter != CASE.culprit)
    choose(box, wrong)
    assert (
        case.wrong == [wrong]
        and "(wrong)"
        in dict((letter, words) for words, letter in box.parts["suspects"].options)[wrong]
    )
    assert box.parts["suspects"].value == wrong  # the keyboard stays where it was
    choose(box, CASE.culprit)
    assert case.closed and case.score == engine.points(1, 1) == 75
    assert "Closed, score 75" in box.parts["status"].value


def test_naming_nobody_costs_nothing(case):
    box = case.content()
    press(box, "name")
    assert not case.wrong and "Choose a suspect first" in box.parts["status"].value


def test_what_is_done_in_code_shows_in_the_form(case):
    box = case.content()
    case.look("loss")
    assert box.parts["loss"].icon == "check" and "4 looks left" in box.parts["status"].value


def test_training_is_told_in_the_form_and_nothing_is_printed(case, monkeypatch, capsys):
    heard = []
    box = case.content()
    box.parts["status"].observe(lambda change: heard.append(change.new), "value")

    def trained():
        case.say("training this run")
        return trial()

    monkeypatch.setattr(case, "_trained", trained)
    press(box, "loss")
    assert any("training this run" in said for said in heard) and not capsys.readouterr().out
    case._tables.clear()
    case.look("loss")
    assert capsys.readouterr().out == "training this run"


def test_a_run_that_fails_is_said_and_is_no_look(case, monkeypatch):
    def broken():
        raise RuntimeError("no ranks today")

    monkeypatch.setattr(case, "_trained", broken)
    box = case.content()
    press(box, "loss")
    assert case.looks == [] and "no ranks today" in box.parts["status"].value


def check_curves(figure):
    drawn = figure.figure
    upper = {trace.name: list(trace.y) for trace in drawn.data if trace.yaxis != "y2"}
    lower = {trace.name: list(trace.y) for trace in drawn.data if trace.yaxis == "y2"}
    assert upper["this run"] == [4, 8, 6] and upper["one process"] == [1, 2, 1.5]
    assert lower["this run"] == [3, 3, 3]  # off by a factor that stays
    right = lower[f"a right {CASE.layout}"]
    assert right[:2] == [1e-9, 1e-9] and right[2] == pytest.approx(6.7e-8, rel=0.01)
    low, high = drawn.layout.yaxis2.range
    assert sum(low < math.log10(tick) < high for tick in drawn.layout.yaxis2.tickvals) >= 2
    assert drawn.layout.yaxis2.type == "log" and low < -9 and high > 0.47
    assert len({trace.line.dash for trace in drawn.data[:3]}) == 3  # not by colour alone


def test_losses_and_norms_are_curves_and_read_as_the_table(case):
    figure = case.picture("norm")
    check_curves(figure)
    assert repr(figure) == repr(case.look("norm"))
    assert case.looks == ["norm"] and isinstance(case.look("norm"), Table)


def test_curves_of_other_runs_are_noticed():
    of = trial()
    with pytest.raises(AssertionError):
        check_curves(curves(Trial(of.right, of.this, of.one), "norm"))
    with pytest.raises(AssertionError):
        check_curves(curves(of, "loss"))


def test_headless_it_is_text(monkeypatch):
    monkeypatch.setattr(front_end, "_seen", False)
    content = MysteryRun(CASE).content()
    assert isinstance(content, engine.Parts) and 'case.look("norm")' in repr(content)


def test_in_a_front_end_the_text_form_stays(case):
    assert 'case.look("norm")' in repr(case) and "You have five looks" in repr(case)
