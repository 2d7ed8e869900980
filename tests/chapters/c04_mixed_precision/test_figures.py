"""The chapter's figures: each says what is so.

Wrong versions these catch: a bias off by one, a subnormal with a leading 1, a shift of the bars the
wrong way, a title of another frame, a line with a step too few.
"""

import math

import pytest
import torch

import picolab as pico
from picolab.chapters import c04_mixed_precision as chapter
from picolab.chapters.c04_mixed_precision.formats_figure import SHOWN, bits_table, pattern
from picolab.precision import FORMATS, cast

NUMBERS = [0.0, 1.0, -0.1, 1 / 3, 448.0, 449.0, 65504.0, 6e-8, 2e-8, 1.5e-5, 2.0**-9, 57344.0]
AS_INTEGERS = {8: torch.uint8, 16: torch.int16, 32: torch.int32}


@pytest.mark.parametrize("name", [name for name in SHOWN if FORMATS[name].dtype])
def test_bits_are_torchs(name):
    format = FORMATS[name]
    for value in NUMBERS:
        held = cast(torch.tensor([value]), format, saturate=True)
        number = int(held.view(AS_INTEGERS[format.bits])[0]) % 2**format.bits
        assert pattern(value, format).replace(" ", "") == f"{number:0{format.bits}b}", value


def test_tf32_is_fp32_cut_short():
    assert pattern(1.5, "tf32").split() == ["0", "01111111", "1000000000"]
    assert len(pattern(0.1, "tf32").replace(" ", "")) == 19


def test_a_number_in_all_formats():
    rows = {row[0]: row for row in bits_table(3e-6).rows}
    assert list(rows) == list(SHOWN)
    assert rows["e4m3"][4] == "flushed to zero" and rows["fp16"][4] == "subnormal"
    assert "saturated" in {row[0]: row for row in bits_table(1e6).rows}["fp16"][4]
    assert {row[3] for row in bits_table(0.5).rows} == {"exact"}
    with pytest.raises(ValueError, match="has no bits to look at"):
        bits_table(math.nan)
    assert "sign exponent mantissa" in repr(chapter.bits(0.1))


def test_typing_another_number():
    made = chapter.bits(0.1)
    field, shown = made._form().children
    field.value = "65520"
    assert "beyond the largest" in shown.value and "65,520" not in repr(made.table.rows[0])
    field.value = "1e400"
    assert "larger than any number" in shown.value
    field.value = "<b>"
    assert "<b>" not in shown.value and "is not a number" in shown.value


def test_the_map_of_formats():
    figure = chapter.formats_figure().figure
    assert [trace.name for trace in figure.data] == list(SHOWN)
    by_name = {trace.name: trace for trace in figure.data}
    e4m3 = dict(zip(by_name["e4m3"].x, by_name["e4m3"].y))
    assert e4m3[1.0] == 6.25 and e4m3[2.0**-9] == 50 and max(e4m3) <= 448
    assert min(by_name["fp16"].x) < 2.0**-24 < min(by_name["e5m2"].x)


COUNTS = {-30: 100, -20: 300, 5: 600}


def test_the_slider_moves_gradients_into_the_range():
    shown = chapter.range_figure(COUNTS, "fp16", range(0, 13, 6))
    assert [row[1] for row in _rows(repr(shown))] == ["10", "0", "0"]
    figure = shown.figure
    assert [frame.name for frame in figure.frames] == ["2^0", "2^6", "2^12"]
    later = chapter.range_figure(COUNTS, "fp16", range(-6, 7, 6)).figure
    assert later.layout.sliders[0].active == 1 and list(later.data[0].x) == [-30]
    flushed, held, large = figure.frames[0].data
    assert (list(flushed.x), list(held.x), list(large.x)) == ([-30], [-20, 5], [])
    flushed, held, large = figure.frames[2].data
    assert (list(flushed.x), list(held.x), list(large.x)) == ([], [-18, -8], [17])
    assert "10.0 % of the gradients become zero" in figure.frames[0].layout.title.text
    assert "60 % too large" in figure.frames[2].layout.title.text.replace("<br>", " ")
    with pytest.raises(ValueError, match="nothing to draw"):
        chapter.range_figure({})


def _rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.startswith("2^")]


def test_a_scale_step_by_step():
    shown = chapter.scale_figure({"one": [4.0, 4.0, 2.0]}, [False, True, False])
    assert "1 of 3 steps overflowed" in repr(shown)
    line, marks = shown.figure.data
    assert list(line.y) == [4, 4, 2] and list(marks.x) == [1]
    with pytest.raises(ValueError, match="a scale for each step"):
        chapter.scale_figure({"one": [4.0]}, [False, True])


def test_losses_by_name():
    shown = chapter.losses_figure({"a": [3.0, 2.0], "b": [3.0, 2.5]})
    assert "a ends lowest, b highest" in repr(shown)
    assert [trace.name for trace in shown.figure.data] == ["a", "b"]
    for wrong in ({}, {"a": [1.0], "b": [1.0, 2.0]}):
        with pytest.raises(ValueError, match="the same number of steps"):
            chapter.losses_figure(wrong)


def test_it_is_a_chapter_of_its_own():
    assert pico.chapters.c04_mixed_precision is chapter
