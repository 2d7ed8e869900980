"""All guesses against what is right, a row a question, on one axis of ratios.

Right is what the formula says, where there is one: a measurement has noise, and whoever derived the
number must not lose to whoever met the noise. Without a formula it is what was measured.

To the left the question in words, and what was guessed and is right. To the right a dot where
guess / right lies, from a tenth to ten times, logarithmic: on the line in the middle the guess
is right, and a factor of two is as far to its left as to its right, at any size and in any unit.
The band along it is where a guess is near. A ring is what was measured: how far it is from the line
is the noise of the measurement. The height follows the number of questions.

Beyond a factor of ten a guess stands at the edge, with its factor. A choice is right, on the line,
or wrong: then it has no ratio, nor has a zero or a negative number, and stands in a column of its
own.
"""

import html
import math
import textwrap
from collections.abc import Iterable
from typing import NamedTuple

from picolab.show.picture import ANSWER, GRID, TEXT, LabFigure, template
from picolab.show.table import Table, bytes_text, show

NEAR = 0.10  # a guess within 10 % counts as near
_EDGE = 10.0  # a guess farther away than this stands at the edge
_TICKS = {0.1: "÷10", 0.2: "÷5", 0.5: "÷2", 1.0: "right", 2.0: "×2", 5.0: "×5", 10.0: "×10"}

# Pixels. Questions stand in the left margin, so that a wide page widens the axis and not them.
_LABEL, _LINE, _BETWEEN, _TOP, _BOTTOM = 320, 17, 16, 96, 52
_LETTERS = 42  # in a line of a question


class Answered(NamedTuple):
    """One question with its three answers; None where there is none."""

    id: str
    guess: float | str | None
    measured: float | str | None
    formula: float | str | None = None
    unit: str = ""
    note: str = ""  # "default" or "skipped"
    question: str = ""  # in words

    @property
    def right(self) -> float | str | None:
        """What a guess is held against: the formula if there is one, else what was measured."""
        return self.measured if self.formula is None else self.formula


class _Sentence(LabFigure):
    """Nothing to draw yet: a cell shows the text instead of empty axes. It can still be saved."""

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return {"text/plain": self.text, "text/html": f"<div>{html.escape(self.text)}</div>"}


def value_text(value, unit: str = "") -> str:
    """A value with its unit; large byte counts in words as well."""
    if value is None:
        return "none"
    if unit == "bytes" and isinstance(value, int | float) and abs(value) >= 1000:
        return f"{show(value)} bytes ({bytes_text(value)})"
    return f"{show(value)} {unit}".strip()


def is_near(row: Answered) -> bool:
    """Whether the guess is the right choice, or within 10 % of the right number."""
    ratio = _ratio(row.guess, row.right)
    return ratio is not None and abs(ratio - 1) <= NEAR


def apart(value, reference, how: str = "too") -> str:
    """How far a value is from the reference, in words.

    Within a factor of two in per cent, beyond that as a factor: 13 and 400 would both be
    "-100 %" of 54,321. `how` is "as" where neither of the two is the true one.
    """
    if value == reference:
        return "equal"
    if not (_is_number(value) and _is_number(reference)):
        return "different"
    if not reference or not math.isfinite(value) or not math.isfinite(reference):
        return f"{show(value - reference)} apart"
    ratio = value / reference
    if ratio <= 0:
        return f"{show(value - reference)} apart"
    if 0.5 < ratio < 2:
        percent = 100 * (ratio - 1)
        return f"{percent:+.0f} %" if abs(percent) >= 10 else f"{percent:+.2g} %"
    if ratio > 1:
        return f"{_factor_text(ratio)} times {how} large"
    return f"{_factor_text(1 / ratio)} times {how} small"


def _factor_text(factor: float) -> str:
    """Two digits: 4178.5 -> "4,200"."""
    for name, size in (("billion", 1e9), ("million", 1e6)):
        if factor >= size:
            return f"{factor / size:.2g} {name}" if factor < 1e3 * size else f"over a {name}"
    return f"{float(f'{factor:.2g}'):,.0f}" if factor >= 10 else f"{factor:.2g}"


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _ratio(value, right) -> float | None:
    """value / right, or None where that means nothing; equal things have ratio 1."""
    if value is None or right is None:
        return None
    if value == right:
        return 1.0
    if not (_is_number(value) and _is_number(right)):
        return math.inf
    if not right or not math.isfinite(value) or not math.isfinite(right):
        return math.inf
    return max(value / right, 0.0)


def _has_place(value, right) -> bool:
    """Whether the pair can stand on logarithmic axes."""
    numbers = _is_number(value) and _is_number(right)
    return numbers and value > 0 and 0 < right < math.inf


def finding(rows: Iterable[Answered]) -> str:
    """The title: how many guesses are near, and the factor within which half of them lie."""
    guessed = [row for row in rows if row.guess is not None and row.right is not None]
    if not guessed:
        return "No guess has met its measurement yet: answer a question, then run this cell again."
    count, defaults = len(guessed), sum(row.note == "default" for row in guessed)
    said = f"{count} {'guess' if count == 1 else 'guesses'}"
    if defaults:
        said += f" ({'all' if defaults == count else defaults} by default)"
    said += f": {sum(map(is_near, guessed))} within {100 * NEAR:.0f} %"
    half = sorted(map(_factor, guessed))[(count - 1) // 2]
    if count > 1 and 1 + NEAR < half < math.inf:
        said += f", half within a factor of {show(half) if half >= 10_000 else f'{half:.2g}'}"
    return said


def _factor(row: Answered) -> float:
    """How many times too large or too small, 1 or more; infinite where there is no distance."""
    ratio = _ratio(row.guess, row.right)
    return math.inf if not ratio else max(ratio, 1 / ratio)


def guess_figure(rows: Iterable[Answered]) -> LabFigure:
    """The scoreboard's picture: each guess against the formula, or the measured value."""
    rows = list(rows)
    title = finding(rows)
    if not rows:
        return _Sentence(title, lambda: _build(rows, title))
    columns = ["", "question", "guess", "formula", "measured", "guess / right"]
    lines = []
    for number, row in enumerate(rows, 1):
        guess = value_text(row.guess, row.unit)
        if row.note:
            guess = row.note if row.guess is None else f"{guess} ({row.note})"
        formula, measured = (value_text(v, row.unit) for v in (row.formula, row.measured))
        lines.append([number, row.id, guess, formula, measured, _against(row)])
    return LabFigure(f"{title}\n{Table(columns, lines)}", lambda: _build(rows, title))


def _against(row: Answered) -> str:
    ratio = _ratio(row.guess, row.right)
    if ratio is None:
        return ""
    return "other" if math.isinf(ratio) else f"{ratio:.3g}"


# -- the picture ----------------------------------------------------------------------------------


class _Dot(NamedTuple):
    x: float  # guess / right, as it is drawn
    y: float  # pixels from the top
    symbol: str
    hover: str
    text: str = ""


def _build(rows: list[Answered], title: str):
    import plotly.graph_objects as go

    labels, middles, total = _labels(rows)
    guesses, others, measurements = _dots(rows, middles)
    high = math.log10(_EDGE)
    right = 0.84 if others else 1.0
    traces = [
        _marks("measured", measurements, {"size": 17, "line": {"width": 2.5}}),
        _marks("guess", guesses, {"size": 11}),
    ]
    vertical = {"range": [total, 0], "visible": False, "fixedrange": True}
    layout = {
        "template": template(),
        "title": {"text": title, "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 14}},
        "height": _TOP + max(total, _LINE) + _BOTTOM,
        "margin": {"l": _LABEL, "r": 24, "t": _TOP, "b": _BOTTOM},
        "annotations": labels,
        "shapes": _lines(middles, total),
        "xaxis": {
            "type": "log",
            "range": [-1.12 * high, 1.12 * high],
            "domain": [0, right],
            "side": "top",
            "tickvals": list(_TICKS),
            "ticktext": list(_TICKS.values()),
            "tickangle": 0,
            "title": {"text": "guess / formula (or / measured)"},
            "fixedrange": True,
        },
        "yaxis": vertical,
        "legend": {"x": 0, "xanchor": "left", "y": 0, "yanchor": "top", "yref": "paper"},
        "showlegend": True,
    }
    if others:
        traces.append(_marks("no ratio", others, {"size": 11}, axis="2"))
        layout["xaxis2"] = {
            "range": [-1, 1],
            "domain": [right + 0.03, 1],
            "anchor": "y2",
            "side": "top",
            "tickvals": [0],
            "ticktext": ["not it"],
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
        }
        layout["yaxis2"] = {**vertical, "anchor": "x2"}
    return go.Figure(data=[trace for trace in traces if trace], layout=layout)


def _labels(rows: list[Answered]) -> tuple[list[dict], list[float], float]:
    """What stands beside each row, where the rows' middles are, and where the last one ends."""
    labels, middles, top = [], [], 0.0
    for row in rows:
        question = _broken(row.question or row.id, lines=3)
        said = _broken(_said(row), lines=2)
        height = _LINE * (len(question) + len(said)) + _BETWEEN
        middles.append(top + height / 2)
        text = [f"<b>{line}</b>" for line in question] + said
        labels.append(
            {
                "text": "<br>".join(text),
                "align": "left",
                "showarrow": False,
                "x": 0,
                "xref": "paper",
                "xanchor": "left",
                "xshift": -_LABEL,
                "y": middles[-1],
                "yanchor": "middle",
                "font": {"size": 12},
            }
        )
        top += height
    return labels, middles, top


def _broken(text: str, lines: int) -> list[str]:
    """Lines that fit beside the axis; the rest is in what the pointer shows."""
    found = textwrap.wrap(text, _LETTERS, max_lines=lines, placeholder=" …")
    return [html.escape(line) for line in found]


def _said(row: Answered) -> str:
    """What was guessed and is right: "guess 13; formula 54,321 bytes"."""

    def short(value) -> str:
        if row.unit == "bytes" and _is_number(value):
            return bytes_text(value)
        return f"{show(value)} {row.unit}".strip()

    name = "measured" if row.formula is None else "formula"
    right = "nothing measured" if row.right is None else short(row.right)
    if row.guess is None:
        return f"{row.note or 'no guess'}: {right}"
    by = " by default" if row.note == "default" else ""
    return f"guess {short(row.guess)}{by}; {name} {right}"


def _dots(rows: list[Answered], middles: list[float]) -> tuple[list[_Dot], list[_Dot], list[_Dot]]:
    """Guesses on the axis, guesses that have no ratio, and measurements beside their formula."""
    guesses, others, measurements = [], [], []
    for row, y in zip(rows, middles):
        hover = "<br>".join(_hover(row))
        if row.guess is not None and row.right is not None:
            if row.guess == row.right:
                guesses.append(_Dot(1.0, y, "diamond", hover))
            elif _has_place(row.guess, row.right):
                guesses.append(_guess_dot(row, y, hover))
            elif is_near(row):  # both are negative
                guesses.append(_Dot(row.guess / row.right, y, "diamond", hover))
            else:
                others.append(_Dot(0, y, "x", hover))
        if _has_place(row.measured, row.formula):
            ratio = row.measured / row.formula
            if 1 / _EDGE <= ratio <= _EDGE:
                measurements.append(_Dot(ratio, y, "circle-open", hover))
    return guesses, others, measurements


def _guess_dot(row: Answered, y: float, hover: str) -> _Dot:
    ratio = row.guess / row.right
    if 1 / _EDGE <= ratio <= _EDGE:
        return _Dot(ratio, y, "diamond", hover)
    symbol = "triangle-right" if ratio > 1 else "triangle-left"
    return _Dot(_EDGE if ratio > 1 else 1 / _EDGE, y, symbol, hover, apart(row.guess, row.right))


def _hover(row: Answered) -> list[str]:
    """Lines of at most some 60 characters: plotly does not break any itself."""
    lines = [f"<b>{html.escape(row.id)}</b>"]
    lines += [html.escape(line) for line in textwrap.wrap(row.question, 60)]
    answers = (("guess", row.guess), ("formula", row.formula), ("measured", row.measured))
    lines += [
        f"{name} {html.escape(value_text(value, row.unit))}"
        for name, value in answers
        if value is not None
    ]
    return lines + ([f"({row.note})"] if row.note else [])


def _lines(middles: list[float], total: float) -> list[dict]:
    """The band in which a guess is near, the line on which it is right, and one a row."""
    down = {"xref": "x", "yref": "y", "y0": 0, "y1": total, "layer": "below"}
    near = {"type": "rect", "x0": 1 - NEAR, "x1": 1 + NEAR, "fillcolor": GRID, "line": {"width": 0}}
    right = {"type": "line", "x0": 1, "x1": 1, "line": {"color": ANSWER["formula"], "width": 1.5}}
    right["line"]["dash"] = "dot"
    across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "layer": "below"}
    grid = {"color": GRID, "width": 1}
    rows = [{**across, "yref": "y", "y0": y, "y1": y, "line": grid} for y in middles]
    return [{**down, **near}, {**down, **right}, *rows]


def _marks(name: str, dots: list[_Dot], marker: dict, axis: str = "") -> dict | None:
    """Dots of one kind; those that have no ratio on axes "2"."""
    if not dots:
        return None
    dots = sorted(dots, key=lambda dot: dot.symbol != "diamond")  # the first one is in the legend
    # At an edge, inwards, where there is room; above the row's line.
    sides = ["top left" if dot.symbol == "triangle-right" else "top right" for dot in dots]
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": name,
        "x": [dot.x for dot in dots],
        "y": [dot.y for dot in dots],
        "xaxis": f"x{axis}",
        "yaxis": f"y{axis}",
        "marker": {
            "symbol": [dot.symbol for dot in dots],
            "color": ANSWER["measured" if name == "measured" else "guess"],
            **marker,
        },
        "text": [dot.text and f" {dot.text} " for dot in dots],
        "textposition": sides,
        "textfont": {"size": 12, "color": TEXT},
        "customdata": [dot.hover for dot in dots],
        "hovertemplate": "%{customdata}<extra></extra>",
        "cliponaxis": False,
    }
