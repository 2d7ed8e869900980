"""Guess, formula, measured: covered until guessed, never silent about a disagreement.

Wrong versions these tests catch (mutants below): a compare that raises only after a guess, one that
takes the tolerance as absolute, one that lets NaN pass, one that shows numbers before a guess (or
the table that goes with them), a default that cannot be told from the reader's own answer, a stored
file that headless runs read.
"""

import json
import math

import pytest

from picolab.lab import guesses
from picolab.lab.guesses import Disagreement, compare, guess, scoreboard
from picolab.show import Table, front_end


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """No guesses of other tests, and a state folder of its own."""
    monkeypatch.setattr(guesses, "_guesses", {})
    monkeypatch.setattr(guesses, "_comparisons", {})
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.fixture
def reader(monkeypatch):
    """As in a front end: answers are kept in the file, and taken from it."""
    monkeypatch.setattr(front_end, "_seen", True)


def check_covering(compare):
    asked = guess("c.t.bytes", "How many bytes?", unit="bytes")
    shown = compare("c.t.bytes", formula=4096, measured=4096)
    assert "4,096" not in repr(shown) and "covered until you guess" in repr(shown)
    with pytest.raises(ValueError, match="covered"):
        shown.table()
    asked.answer(5000)
    assert "5,000 bytes" in repr(shown) and "4,096 bytes" in repr(shown) and "+22 %" in repr(shown)


def check_against_the_formula(table):
    """The guess against the formula, and the noise of the measurement apart from it."""
    guess("c.t.bubble", "How much?", unit="%", default=30)
    rows = table(compare("c.t.bubble", formula=27.27, measured=29.9, tolerance=0.15)).rows
    assert [row[2] for row in rows] == ["+10 %", "", "+9.6 % (noise; tolerance 15 %)"]
    guess("c.t.none", "How much?", unit="%", default=30)
    assert compare("c.t.none", measured=29.9).table().rows[0][2] == "+0.33 %"


def test_a_guess_is_held_against_the_formula_where_there_is_one():
    check_against_the_formula(lambda compared: compared.table())


def test_a_guess_against_the_noise_is_noticed():
    def mutant(compared):
        compared.formula, compared.tolerance = None, 0.0
        return compared.table()

    with pytest.raises(AssertionError):
        check_against_the_formula(mutant)


def test_numbers_are_covered_until_there_is_a_guess():
    check_covering(compare)


def test_a_skip_uncovers_too():
    asked = guess("c.t.n", "How many?")
    shown = compare("c.t.n", formula=4, measured=4, note="Two forward, two backward.")
    asked.skip()
    assert "guess (skipped)" in repr(shown) and "measured" in repr(shown)
    assert repr(shown).endswith("Two forward, two backward.")


def check_what_goes_with_it(also):
    asked = guess("c.t.also", "How many?")
    compared = compare("c.t.also", formula=4321, measured=4321)
    table = Table(["", "count"], [["in all", 4321]])
    beside = also(compared, table)
    assert "4,321" not in repr(beside) and "covered until you guess" in repr(beside)
    asked.answer(4000)
    assert repr(beside) == repr(table) and beside.content() is table


def test_what_goes_with_the_numbers_is_covered_with_them():
    check_what_goes_with_it(lambda compared, table: compared.also(table))


def test_what_tells_two_answers_waits_for_both():
    asked = [guess(f"c.t.both-{name}", "How many?") for name in "ab"]
    first, second = (compare(one.id, formula=4321, measured=4321) for one in asked)
    beside = first.also(Table(["", "count"], [["in all", 4321]]), second)
    assert "c.t.both-a and c.t.both-b: also covered" in repr(beside)
    asked[0].answer(4000)
    assert "c.t.both-b: also covered" in repr(beside) and "4,321" not in repr(beside)
    asked[1].skip()
    assert "4,321" in repr(beside)


def test_a_table_beside_the_cover_is_noticed():
    with pytest.raises(AssertionError):
        check_what_goes_with_it(lambda compared, table: table)


def test_a_default_uncovers_and_says_that_it_is_one():
    guess("c.t.n", "How many?", default=2)
    shown = compare("c.t.n", formula=4, measured=4)
    assert "guess (default)" in repr(shown)
    guess("c.t.n", "How many?", default=2).answer(4)
    assert "default" not in repr(compare("c.t.n", formula=4, measured=4))


def test_without_a_guess_cell_it_says_what_to_run():
    assert "Run the cell that asks" in repr(compare("c.t.none", formula=1, measured=1))


def check_disagreement(compare):
    guess("c.t.x", "How many?", unit="bytes")  # not answered: it raises all the same
    with pytest.raises(Disagreement, match=r"formula says 100 bytes, but 101 bytes was measured"):
        compare("c.t.x", formula=100, measured=101)
    compare("c.t.x", formula=100, measured=101, tolerance=0.01)
    compare("c.t.x", formula=1e9, measured=1.005e9, tolerance=0.01)  # relative, not absolute
    with pytest.raises(AssertionError, match="tolerance 1 %"):
        compare("c.t.x", formula=100, measured=102, tolerance=0.01)
    with pytest.raises(AssertionError):
        compare("c.t.x", formula=0.001, measured=0.005, tolerance=0.01)
    for nan in ({"formula": math.nan, "measured": 1.0}, {"formula": 1.0, "measured": math.nan}):
        with pytest.raises(AssertionError):
            compare("c.t.x", tolerance=0.5, **nan)
    with pytest.raises(AssertionError):
        compare("c.t.x", formula="norm", measured="loss", tolerance=0.5)
    compare("c.t.x", measured="anything")  # nothing to disagree with


def test_disagreement_always_raises():
    check_disagreement(compare)


def _only_after_a_guess(id, **values):
    if guesses._guesses[id].given:
        return compare(id, **values)


def _absolute(id, *, formula=None, measured=None, tolerance=0.0):
    if isinstance(formula, str) or formula is None:
        return compare(id, formula=formula, measured=measured)
    if abs(formula - measured) > tolerance:
        raise Disagreement(f"formula says {formula} bytes, but {measured} bytes was measured")


def _nan_passes(id, *, formula=None, measured=None, tolerance=0.0):
    if any(isinstance(v, float) and math.isnan(v) for v in (formula, measured)):
        return None
    return compare(id, formula=formula, measured=measured, tolerance=tolerance)


@pytest.mark.parametrize("mutant", [_only_after_a_guess, _absolute, _nan_passes])
def test_a_lenient_compare_is_noticed(mutant):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check_disagreement(mutant)


def test_a_compare_that_shows_too_early_is_noticed(monkeypatch):
    monkeypatch.setattr(guesses.Comparison, "uncovered", True)
    with pytest.raises(AssertionError):
        check_covering(compare)


def test_choices():
    asked = guess("c.t.what", "What changes?", choices=["the loss", "the norm"])
    shown = compare("c.t.what", measured="the norm")
    with pytest.raises(ValueError, match="not one of the loss, the norm"):
        asked.answer("the weather")
    asked.answer("the loss")
    assert "different" in repr(shown)


def test_scalars_of_numpy_and_torch_are_numbers():
    numpy, torch = pytest.importorskip("numpy"), pytest.importorskip("torch")
    guess("c.t.s", "?", default=numpy.float64(2.0))
    shown = compare("c.t.s", formula=torch.tensor(4), measured=numpy.int64(4))
    assert shown.formula == 4 and "equal" in repr(shown)


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: guess("no id!", "?"), "is not an id"),
        (lambda: guess("c.t", "?", choices=["one"]), "two different answers"),
        (lambda: guess("c.t", "?", default="many"), "must be a number"),
        (lambda: guess("c.t", "?", default="c", choices=["a", "b"]), "not one of a, b"),
        (lambda: guess("c.t", "?").answer(True), "must be a number"),
        (lambda: compare("c.t", measured=None), "give the measured value"),
        (lambda: compare("c.t", measured=1, tolerance=-1), "not negative"),
        (lambda: compare("c.t", measured=[1]), "numbers and words, not list"),
    ],
)
def test_bad_input_gets_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_the_scoreboard_shows_only_what_is_uncovered():
    guess("c.t.a", "?", default=4)
    guess("c.t.b", "?")
    compare("c.t.a", formula=4, measured=4)
    compare("c.t.b", formula=7, measured=7)
    text = repr(scoreboard())
    assert text.startswith("1 guess (all by default): 1 within 10 %")
    assert "c.t.a" in text and "c.t.b" not in text


def test_the_scoreboard_can_be_exported(tmp_path):
    guess("c.t.a", "How many, in words?", default=4)
    compare("c.t.a", formula=4, measured=4)
    page = scoreboard().save(tmp_path / "board.html").read_text(encoding="utf-8")
    assert "c.t.a" in page and "How many, in words?" in page


def test_headless_nothing_is_kept(tmp_path):
    guess("c.t.a", "?").answer(3)
    compare("c.t.a", formula=4, measured=4)
    assert list(tmp_path.iterdir()) == []


def test_headless_nothing_is_taken_from_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(front_end, "_seen", True)
    guess("c.t.a", "?").answer(3)
    monkeypatch.setattr(guesses, "_guesses", {})
    monkeypatch.setattr(front_end, "_seen", False)
    assert not guess("c.t.a", "?").given


def test_a_readers_answer_outlives_the_session(monkeypatch, reader):
    guess("c.t.a", "?", unit="bytes", default=1).answer(3)
    compare("c.t.a", formula=4, measured=4)
    guess("c.t.default", "?", default=1)  # a default is nobody's answer: it is not kept
    compare("c.t.default", formula=4, measured=4)
    kept = json.loads(guesses.guesses_path().read_text())
    assert kept["c.t.a"] == {
        "question": "?",
        "unit": "bytes",
        "guess": 3,
        "how": "reader",
        "formula": 4,
        "measured": 4,
    }
    monkeypatch.setattr(guesses, "_guesses", {})
    monkeypatch.setattr(guesses, "_comparisons", {})
    assert "c.t.a" in repr(scoreboard()) and "c.t.default" not in repr(scoreboard())
    kept["c.t.a"]["question"] = "How many, in words?"
    assert guesses._answered("c.t.a", kept["c.t.a"]).question == "How many, in words?"
    again = guess("c.t.a", "?", unit="bytes", default=1)
    assert (again.value, again.how) == (3, "reader")
    assert guess("c.t.b", "?", default=1).how == "default"
    # The chapter asks something else now: the old answer is no answer to it.
    assert guess("c.t.a", "And now?", unit="bytes", default=1).how == "default"


def test_a_broken_file_is_no_obstacle(reader):
    guesses.guesses_path().parent.mkdir(parents=True)
    guesses.guesses_path().write_text('{"c.t.a": ')
    guess("c.t.a", "?").answer(3)
    assert json.loads(guesses.guesses_path().read_text())["c.t.a"]["guess"] == 3


def test_a_file_that_cannot_be_written_costs_nothing_but_a_sentence(reader, capsys, tmp_path):
    (tmp_path / "picolab").write_text("a file where the folder should be")
    asked = guess("c.t.a", "?")
    asked.answer(3)
    assert asked.value == 3
    assert "not kept for later sessions" in capsys.readouterr().out


def test_running_the_cell_again_keeps_the_answer():
    guess("c.t.a", "?", default=1).answer(3)
    again = guess("c.t.a", "?", default=1)
    assert (again.value, again.how) == (3, "reader")


def test_the_form(reader):
    asked = guess("c.t.form", "How many bytes?", unit="bytes")
    shown = compare("c.t.form", formula=4096, measured=4096)
    parts = asked.content().parts
    parts["send"].click()
    assert "write a number" in parts["status"].value and not asked.given
    parts["field"].value = "lots"
    parts["send"].click()
    assert "is not a number" in parts["status"].value and not asked.given
    parts["field"].value = "4 ms"
    parts["send"].click()
    assert "4 ms is a time, and asked for is an amount of data" in parts["status"].value
    parts["field"].value = "4 kB"
    parts["send"].click()
    assert asked.value == 4000 and "4,096 bytes" in repr(shown)
    parts["field"].value = "4,096"
    parts["send"].click()
    assert asked.value == 4096 and "(read as 4,096 (thousands comma))" in parts["status"].value
    parts["skip"].click()
    assert asked.how == "skipped"


def test_the_form_of_a_choice(reader):
    asked = guess("c.t.form", "Which?", choices=["a", "b"])
    parts = asked.content().parts
    parts["send"].click()
    assert "choose an answer first" in parts["status"].value
    parts["field"].value = "b"
    parts["send"].click()
    assert (asked.value, asked.how) == ("b", "reader")


def test_a_question_is_text_and_not_html(reader):
    question = guess("c.t.html", "Is <b>a</b> & b?").content().children[0].value
    assert "&lt;b&gt;a&lt;/b&gt; &amp; b?" in question
