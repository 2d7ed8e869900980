"""The scoreboard's picture: a row a question, a dot where guess / right lies.

Wrong versions these tests catch (mutants below): one that counts far guesses as near, one that
scores a guess against a noisy measurement where there is a formula, one that draws right / guess, a
choice or a zero that is dropped, a guess that is drawn off the page, questions that lie on one
another, a title whose half is the mean, empty axes, a percentage where only a factor says
something.
"""

import math

import pytest

from picolab.show import guess_figure
from picolab.show.guess_figure import Answered, apart, finding, is_near
from picolab.show.picture import ANSWER, PAGES, contrast

ROWS = [
    Answered("a.near", 95, 100, 100, "bytes", question="How many bytes, in words & numbers?"),
    Answered("a.far", 1, 4, 4),
    Answered("a.word", "norm", "norm"),
    Answered("a.wrong", "loss", "norm"),
    Answered("a.off", 1e9, 1.0, 1.0, "ms", "default"),
    Answered("a.zero", 3.0, 0.0),
    Answered("a.skipped", None, 7, 7, "", "skipped"),
    Answered("a.below", -4.0, -4.1, -4.1),
]


def traces(rows) -> dict:
    return {trace.name: trace for trace in guess_figure(rows).figure.data}


def middles(rows) -> dict:
    """Where a question stands, by its number from 1 on."""
    layout = guess_figure(rows).figure.layout
    return {number: label.y for number, label in enumerate(layout.annotations, 1)}


def check_near(is_near):
    assert [is_near(row) for row in ROWS] == [True, False, True, *[False] * 4, True]


def test_what_is_near():
    check_near(is_near)


def test_far_guesses_that_count_as_near_are_noticed():
    with pytest.raises(AssertionError):
        check_near(lambda row: row.guess is not None and row.guess != "loss")


@pytest.mark.parametrize(
    "ratios, title",
    [
        ([1, 1.05, 2, 3, 100], "5 guesses: 2 within 10 %, half within a factor of 2"),
        ([1, 0.25, 1 / 3, 5], "4 guesses: 1 within 10 %, half within a factor of 3"),
        ([1, 1, 3], "3 guesses: 2 within 10 %"),  # half of them are near as well
        ([7], "1 guess: 0 within 10 %"),
        ([1, math.inf, math.inf], "3 guesses: 1 within 10 %"),
    ],
)
def test_the_title_is_the_finding(ratios, title):
    assert finding([Answered("a.b", 8 * ratio, 8) for ratio in ratios]) == title


def test_the_title_says_which_guesses_were_nobodys():
    rows = [Answered("a.b", 4, 4, note=note) for note in ("default", "default", "")]
    assert finding(rows) == "3 guesses (2 by default): 3 within 10 %"
    assert finding(rows[:2]) == "2 guesses (all by default): 2 within 10 %"


def check_dots(rows, dots):
    """On each question's line; the ratio to the right, at the edge beyond a factor of ten."""
    at = middles(rows)
    # a.near, a.far, a.word (right), a.below; then what stands at the edge
    ratios = [(0.95, at[1]), (0.25, at[2]), (1, at[3]), (4 / 4.1, at[8]), (10, at[5])]
    assert [round(x, 9) for x, _ in dots] == [round(x, 9) for x, _ in ratios]
    assert [y for _, y in dots] == [y for _, y in ratios]


def drawn(name: str) -> list[tuple[float, float]]:
    return list(zip(traces(ROWS)[name].x, traces(ROWS)[name].y))


def test_where_the_dots_are():
    check_dots(ROWS, drawn("guess"))
    guess = traces(ROWS)["guess"]
    assert list(guess.marker.symbol) == ["diamond"] * 4 + ["triangle-right"]
    assert [text.strip() for text in guess.text] == [*[""] * 4, "1 billion times too large"]
    axis = guess_figure(ROWS).figure.layout.xaxis
    assert axis.type == "log" and axis.range[0] == -axis.range[1] and axis.range[1] > 1
    assert list(axis.tickvals) == [0.1, 0.2, 0.5, 1, 2, 5, 10] and axis.ticktext[3] == "right"


def test_the_inverse_ratio_is_noticed():
    with pytest.raises(AssertionError):
        check_dots(ROWS, [(1 / x, y) for x, y in drawn("guess")])


def test_measurements_are_on_the_axis_too():
    at = middles(ROWS)
    assert drawn("measured") == [(1, at[1]), (1, at[2]), (1, at[5]), (1, at[7])]


# A bubble of 27.27 % by the formula that a busy machine measured as 29.9 %.
DERIVED, LUCKY = (Answered("a.bubble", guess, 29.9, 300 / 11, "%") for guess in (27.27, 30.2))


def check_scored_by_the_formula(is_near):
    assert is_near(DERIVED) and not is_near(LUCKY)


def test_who_derived_the_number_is_right_whatever_was_measured():
    check_scored_by_the_formula(is_near)
    drawn = traces([DERIVED, LUCKY])
    assert drawn["guess"].x == pytest.approx([1, 30.2 * 11 / 300], abs=1e-3)
    assert drawn["measured"].x == pytest.approx(2 * [29.9 * 11 / 300])
    [derived, _] = guess_figure([DERIVED, LUCKY]).figure.layout.annotations
    assert "formula 27.27 %" in derived.text and "measured" not in derived.text


def test_a_score_against_the_noise_is_noticed():
    with pytest.raises(AssertionError):
        check_scored_by_the_formula(lambda row: abs(row.guess / row.measured - 1) <= 0.1)


def test_a_guess_far_below_stands_at_the_left_edge_with_its_factor():
    guess = traces([Answered("a.b", 13, 54_321, unit="bytes")])["guess"]
    assert (guess.x[0], guess.marker.symbol[0]) == (0.1, "triangle-left")
    assert guess.text[0].strip() == "4,200 times too small"
    assert guess.textposition[0].endswith("right")  # inwards


def check_all_are_there(drawn, rows):
    guessed = sum(row.guess is not None for row in rows)
    assert len(drawn["guess"].x) + len(drawn["no ratio"].x) == guessed


def test_what_has_no_ratio_stands_beside():
    check_all_are_there(traces(ROWS), ROWS)
    at = middles(ROWS)
    assert list(traces(ROWS)["no ratio"].y) == [at[4], at[6]]  # a wrong choice, a zero
    assert "no ratio" not in traces(ROWS[:2])


def test_a_dropped_choice_is_noticed():
    with pytest.raises(AssertionError):
        check_all_are_there(traces([row for row in ROWS if row.id != "a.word"]), ROWS)


def check_rows(layout):
    """No label reaches into the next one, and all are inside the page."""
    ends = [0.0]
    for label in layout.annotations:
        half = 17 * (label.text.count("<br>") + 1) / 2
        assert label.y - half >= ends[-1]
        ends.append(label.y + half)
    assert layout.yaxis.range[1] == 0 and layout.yaxis.range[0] >= ends[-1]
    inside = layout.height - layout.margin.t - layout.margin.b
    assert inside == pytest.approx(layout.yaxis.range[0])  # a unit is a pixel


@pytest.mark.parametrize("count", [1, 2, 8, 30])
def test_the_height_follows_the_count(count):
    rows = [Answered(f"a.q{i}", i, 7, question="word " * (3 * i % 40 + 1)) for i in range(count)]
    layout = guess_figure(rows).figure.layout
    assert len(layout.annotations) == count
    check_rows(layout)
    assert 150 < layout.height < 200 + 120 * count


def test_rows_of_one_height_are_noticed():
    layout = guess_figure(ROWS).figure.layout
    for number, label in enumerate(layout.annotations):
        label.y = 20 * number
    with pytest.raises(AssertionError):
        check_rows(layout)


def test_the_question_stands_beside_in_words():
    texts = [label.text for label in guess_figure(ROWS).figure.layout.annotations]
    assert texts[0].replace("<b>", "").replace("</b>", "").split("<br>") == [
        "How many bytes, in words &amp; numbers?",
        "guess 95 B; formula 100 B",
    ]
    assert "a.far" in texts[1]  # without words, its id
    assert texts[4].endswith("by default; formula<br>1 ms") and "skipped: 7" in texts[6]


def test_kinds_differ_in_shape_and_in_contrast_on_both_pages():
    drawn = traces(ROWS)
    shapes = [drawn[name].marker.symbol[0] for name in ("guess", "measured", "no ratio")]
    assert len(set(shapes)) == 3
    for page in PAGES.values():
        assert min(contrast(ANSWER[name], page) for name in ANSWER) >= 3


def check_words(apart):
    assert apart(13, 54_321) == "4,200 times too small"
    assert apart(54_321, 13) == "4,200 times too large"
    assert apart(0.5, 1) == "2 times too small" and apart(2, 1) == "2 times too large"
    assert apart(1.99, 1) == "+99 %" and apart(0.51, 1) == "-49 %" and apart(1.022, 1) == "+2.2 %"
    assert apart(3, 3) == "equal" and apart("a", "b") == "different"
    assert apart(5e6, 1, "as") == "5 million times as large"
    assert apart(3, 0) == "3 apart" and apart(0, 3) == apart(-3, 0) == "-3 apart"


def test_a_factor_where_a_percentage_says_nothing():
    check_words(apart)


def test_percentages_throughout_are_noticed():
    with pytest.raises(AssertionError):
        check_words(lambda value, reference, how="": f"{100 * (value / reference - 1):+.2g} %")


def test_hovering_tells_the_question_in_words():
    hover = traces(ROWS)["guess"].customdata[0]
    assert hover.startswith("<b>a.near</b><br>How many bytes, in words &amp; numbers?<br>guess")
    assert hover.endswith("measured 100 bytes")
    long = Answered("a.b", 1, 2, question="word " * 40)
    assert max(map(len, traces([long])["guess"].customdata[0].split("<br>"))) <= 62


def test_the_text_form_has_it_all():
    text = repr(guess_figure(ROWS))
    assert text.startswith("7 guesses (1 by default): 3 within 10 %, half within a factor of 4\n")
    assert "skipped" in text and "1,000,000,000 ms (default)" in text and "95 bytes" in text
    assert all(f"\n{number}  {row.id}" in text for number, row in enumerate(ROWS, 1))


def test_an_empty_scoreboard_can_be_drawn():
    shown = guess_figure([])
    assert "No guess has met its measurement yet" in shown.figure.layout.title.text
    # The mutant shows empty axes.
    assert set(shown._repr_mimebundle_()) == {"text/plain", "text/html"}


def test_a_scoreboard_of_skipped_questions_can_be_drawn():
    shown = guess_figure([ROWS[6]])
    assert "No guess has met" in shown.figure.layout.title.text and "skipped" in shown.text


def test_the_page_works_offline(tmp_path):
    page = guess_figure(ROWS).save(tmp_path / "guesses.html").read_text(encoding="utf-8")
    assert "Plotly.newPlot" in page and "<script src=" not in page and "a.near" in page
