"""The scoreboard's picture: guesses against what was measured, on logarithmic axes, with a table.

Wrong versions these tests catch (mutants below): one that counts far guesses as near, one that
draws the guess to the right and what was measured upwards, axes that differ so that the diagonal is
none, a choice or a zero that is dropped, a guess that is drawn off the page, numbers that all stand
in the same direction and lie on one another, a title whose half is the mean, empty axes.
"""

import math
import random

import pytest

from picolab.show import guess_figure
from picolab.show.guess_figure import Answered, finding, is_near
from picolab.show.guess_labels import label_box, label_offsets, overlap

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
    figure = guess_figure(rows).figure
    points = [trace for trace in figure.data if trace.type == "scatter"]
    named = {trace.name: trace for trace in points if trace.name}
    named["beside"] = next((trace for trace in points if trace.xaxis == "x2"), None)
    return named | {"table": next(trace for trace in figure.data if trace.type == "table")}


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


def check_axes(x, y):
    """Measured to the right, the guess upwards, at most a factor of 10,000 away."""
    assert list(zip(x, y)) == [(100, 95), (4, 1), (1.0, 1e4)]


def test_where_the_points_are():
    drawn = traces(ROWS)
    check_axes(drawn["guess"].x, drawn["guess"].y)
    assert list(drawn["guess"].marker.symbol) == ["diamond", "diamond", "triangle-up"]
    assert list(drawn["formula"].x) == list(drawn["formula"].y) == [100, 4, 1.0, 7]
    layout = guess_figure(ROWS).figure.layout
    assert layout.xaxis.type == layout.yaxis.type == "log"
    assert layout.xaxis.range == layout.yaxis.range  # else the diagonal is not where it is drawn
    low, high = layout.xaxis.range
    assert all(low < math.log10(v) < high for t in ("guess", "formula") for v in drawn[t].y)
    assert list(drawn["measured"].x) == list(drawn["measured"].y)
    left_low, right_low, right_high, left_high = drawn["within 10 %"].y
    x = drawn["within 10 %"].x
    assert [left_low / x[0], right_low / x[1]] == pytest.approx([0.9, 0.9])
    assert [right_high / x[2], left_high / x[3]] == pytest.approx([1.1, 1.1])


def test_swapped_axes_are_noticed():
    drawn = traces(ROWS)
    with pytest.raises(AssertionError):
        check_axes(drawn["guess"].y, drawn["guess"].x)


def check_all_are_there(drawn, rows):
    """Each answered question is drawn once, with its number, and the table has all of them."""
    drawn_in_all = len(drawn["guess"].x) + len(drawn["beside"].x)
    assert drawn_in_all == sum(row.guess is not None for row in rows)
    assert list(drawn["table"].cells["values"][1]) == [row.id for row in rows]


def test_what_has_no_logarithm_stands_beside():
    drawn = traces(ROWS)
    check_all_are_there(drawn, ROWS)
    assert list(drawn["beside"].text) == ["3", "4", "6", "8"]
    assert list(drawn["beside"].x) == [0, 1, 1, 0]  # right, not, not, right
    assert len(set(zip(drawn["beside"].x, drawn["beside"].y))) == 4
    assert list(guess_figure(ROWS).figure.layout.xaxis2.ticktext) == ["right", "not"]
    assert traces(ROWS[:2])["beside"] is None


def test_a_dropped_choice_is_noticed():
    with pytest.raises(AssertionError):
        check_all_are_there(traces([row for row in ROWS if row.id != "a.word"]), ROWS)


def test_hovering_tells_the_question_in_words():
    hover = traces(ROWS)["guess"].customdata[0]
    assert hover.startswith("<b>1  a.near</b><br>How many bytes, in words &amp; numbers?<br>guess")
    assert hover.endswith("measured 100 bytes")
    long = Answered("a.b", 1, 2, question="word " * 40)
    assert max(map(len, traces([long])["guess"].customdata[0].split("<br>"))) <= 62


def test_the_text_form_has_it_all():
    text = repr(guess_figure(ROWS))
    assert text.startswith("7 guesses (1 by default): 3 within 10 %, half within a factor of 4\n")
    assert "skipped" in text and "1,000,000,000 ms (default)" in text and "95 bytes" in text
    assert all(f"\n{number}  {row.id}" in text for number, row in enumerate(ROWS, 1))


def clump(seed: int, count: int = 20) -> list[tuple[float, float]]:
    """Points as the scoreboard has them: some the same, most within a few pixels of others."""
    draw = random.Random(seed)
    centres = [(draw.uniform(60, 500), draw.uniform(60, 320)) for _ in range(4)]
    return [
        (x + draw.choice([0, 0, 5, 20]), y + draw.choice([0, 0, 15, 40]))
        for x, y in draw.choices(centres, k=count)
    ]


def check_labels(offsets_of, seed):
    points, size = clump(seed), (640, 380)
    texts = [str(number) for number in range(1, len(points) + 1)]
    marks = [(x, y, 6) for x, y in points]
    offsets = offsets_of(points, texts, marks, size)
    boxes = [label_box(*at, text, off) for at, text, off in zip(points, texts, offsets)]
    dots = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    for i, box in enumerate(boxes):
        assert min(box[:2]) >= 0 and box[2] <= size[0] and box[3] <= size[1]
        assert not any(overlap(box, other) for other in (*boxes[:i], *dots))


@pytest.mark.parametrize("seed", range(20))
def test_numbers_of_twenty_points_do_not_overlap(seed):
    check_labels(label_offsets, seed)


def test_numbers_in_one_direction_are_noticed():
    with pytest.raises(AssertionError):
        check_labels(lambda points, *_: [(0, 18)] * len(points), 0)


def test_each_number_points_at_its_point():
    layout = guess_figure(ROWS).figure.layout
    assert [(a.text, round(10**a.x, 6), round(10**a.y, 6)) for a in layout.annotations] == [
        ("1", 100, 95),
        ("2", 4, 1),
        ("5", 1, 1e4),
    ]


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
