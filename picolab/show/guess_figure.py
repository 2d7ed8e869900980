"""All guesses against what was measured, in one log-log picture with its table underneath.

A point is a question: what was measured to the right, the guess upwards, both on logarithmic axes.
Units may differ from point to point, because only a point's distance to the diagonal is read: on it
the guess is right, and a factor of two is as far above it as below, at any size. The band along it
is where a guess is near. Points carry numbers, and the table says which question each is.

Beyond a factor of 10,000 a guess is drawn at that distance, with an arrow. A choice, zero, or
numbers that are negative have no place on logarithmic axes: these points stand beside, in one
column if the guess is right (or near), in another if not.
"""

import html
import math
from collections.abc import Iterable
from typing import NamedTuple

from picolab.show.guess_labels import label_offsets
from picolab.show.picture import ANSWER, GRID, TEXT, LabFigure, template
from picolab.show.table import Table, bytes_text, show

NEAR = 0.10  # a guess within 10 % counts as near
_EDGE = 1e4

# Pixels, at the narrowest a notebook shows a figure; on a wider page points only move apart.
_WIDTH, _PLOT, _ROW = 640, 380, 25


class Answered(NamedTuple):
    """One question with its three answers; None where there is none."""

    id: str
    guess: float | str | None
    measured: float | str | None
    formula: float | str | None = None
    unit: str = ""
    note: str = ""  # "default" or "skipped"
    question: str = ""  # in words


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
    """Whether the guess is the measured choice, or within 10 % of the measured number."""
    ratio = _ratio(row.guess, row.measured)
    return ratio is not None and abs(ratio - 1) <= NEAR


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _ratio(value, measured) -> float | None:
    """value / measured, or None where that means nothing; equal things have ratio 1."""
    if value is None or measured is None:
        return None
    if value == measured:
        return 1.0
    if not (_is_number(value) and _is_number(measured)):
        return math.inf
    if not measured or not math.isfinite(value) or not math.isfinite(measured):
        return math.inf
    return max(value / measured, 0.0)


def _has_place(value, measured) -> bool:
    """Whether the pair can stand on logarithmic axes."""
    numbers = _is_number(value) and _is_number(measured)
    return numbers and value > 0 and 0 < measured < math.inf


def finding(rows: Iterable[Answered]) -> str:
    """The title: how many guesses are near, and the factor within which half of them lie."""
    guessed = [row for row in rows if row.guess is not None and row.measured is not None]
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
    ratio = _ratio(row.guess, row.measured)
    return math.inf if not ratio else max(ratio, 1 / ratio)


def guess_figure(rows: Iterable[Answered]) -> LabFigure:
    """The scoreboard's picture: each guess against the measured value."""
    rows = list(rows)
    title = finding(rows)
    if not rows:
        return _Sentence(title, lambda: _build(rows, title))
    columns = ["", "question", "guess", "formula", "measured", "guess / measured"]
    lines = []
    for number, row in enumerate(rows, 1):
        guess = value_text(row.guess, row.unit)
        if row.note:
            guess = row.note if row.guess is None else f"{guess} ({row.note})"
        formula, measured = (value_text(v, row.unit) for v in (row.formula, row.measured))
        lines.append([number, row.id, guess, formula, measured, _against(row)])
    return LabFigure(f"{title}\n{Table(columns, lines)}", lambda: _build(rows, title))


def _against(row: Answered) -> str:
    ratio = _ratio(row.guess, row.measured)
    if ratio is None:
        return ""
    return "other" if math.isinf(ratio) else f"{ratio:.3g}"


# -- the picture ----------------------------------------------------------------------------------


class _Point(NamedTuple):
    number: int
    x: float
    y: float
    symbol: str
    hover: str


def _build(rows: list[Answered], title: str):
    import plotly.graph_objects as go

    points, beside, formulas = _places(rows)
    table_px = _ROW * (len(rows) + 2)  # a row to spare: a long name may take two lines
    height = 56 + _PLOT + 110 + table_px + 10
    bottom, floor = (table_px + 110) / (height - 66), table_px / (height - 66)
    right = 0.76 if beside else 1.0
    low, high = _range([v for p in points for v in (p.x, p.y)] + [f.y for f in formulas])
    ticks = range(math.ceil(low), math.floor(high) + 1, max(1, round((high - low) / 8)))
    log_axis = {
        "type": "log",
        "range": [low, high],
        "tickvals": [10.0**tick for tick in ticks],
        "ticktext": [_power(tick) for tick in ticks],
    }
    traces = [
        *_diagonal(low, high),
        _marks("formula", formulas, {"symbol": "circle-open", "size": 17, "line": {"width": 2.5}}),
        _marks("guess", points, {"size": 10}),
    ]
    layout = {
        "template": template(),
        "title": {"text": title},
        "height": height,
        "margin": {"t": 56, "b": 10},
        "annotations": _numbers(points, formulas, low, high, right),
        "xaxis": {**log_axis, "domain": [0, right], "title": {"text": "measured"}},
        "yaxis": {**log_axis, "domain": [bottom, 1], "title": {"text": "guess"}},
        "legend": {"x": 0, "y": bottom - 62 / (height - 66), "yanchor": "top"},
    }
    if beside:
        traces.append(_marks("", beside, {"size": 10}, axis="2"))
        layout |= _strip(beside, right, bottom)
    traces.append(_table(rows, floor))
    return go.Figure(data=[trace for trace in traces if trace], layout=layout)


def _places(rows: list[Answered]) -> tuple[list[_Point], list[_Point], list[_Point]]:
    """Guesses on the axes, guesses that stand beside, and formulas on the axes."""
    points, beside, formulas = [], [], []
    filled = {0: 0, 1: 0}
    for number, row in enumerate(rows, 1):
        hover = "<br>".join(_hover(number, row))
        if row.guess is not None and row.measured is not None:
            if _has_place(row.guess, row.measured):
                ratio = row.guess / row.measured
                y = row.measured * min(max(ratio, 1 / _EDGE), _EDGE)
                points.append(_Point(number, row.measured, y, _symbol(ratio), hover))
            else:
                column = 0 if is_near(row) else 1
                symbol = "x" if column else "diamond"
                beside.append(_Point(number, column, filled[column], symbol, hover))
                filled[column] += 1
        if _has_place(row.formula, row.measured) and 1 / _EDGE < row.formula / row.measured < _EDGE:
            formulas.append(_Point(number, row.measured, row.formula, "circle-open", hover))
    return points, beside, formulas


def _hover(number: int, row: Answered) -> list[str]:
    """Lines of at most some 60 characters: plotly does not break any itself."""
    lines, line = [f"<b>{number}  {html.escape(row.id)}</b>"], ""
    for word in html.escape(row.question).split():
        if line and len(line) + len(word) > 60:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    answers = (("guess", row.guess), ("formula", row.formula), ("measured", row.measured))
    lines += [line] if line else []
    lines += [
        f"{name} {html.escape(value_text(value, row.unit))}"
        for name, value in answers
        if value is not None
    ]
    return lines + ([f"({row.note})"] if row.note else [])


def _symbol(ratio: float) -> str:
    if ratio > _EDGE:
        return "triangle-up"
    return "triangle-down" if ratio < 1 / _EDGE else "diamond"


def _range(values: list[float]) -> tuple[float, float]:
    """Both axes' ends, as powers of ten: the same, so that the diagonal is one."""
    if not values:
        return -0.3, 2.3
    low, high = math.log10(min(values)), math.log10(max(values))
    room = 0.35 + 0.05 * (high - low)
    return low - room, high + room


def _power(tick: int) -> str:
    return f"{10**tick:,}" if 0 <= tick <= 4 else f"10<sup>{tick}</sup>".replace("-", "−")


def _diagonal(low: float, high: float) -> list[dict]:
    ends, near = [10**low, 10**high], (1 - NEAR, 1 + NEAR)
    band = [end * factor for factor, way in zip(near, (1, -1)) for end in ends[::way]]
    return [
        {
            "type": "scatter",
            "x": [*ends, *ends[::-1]],
            "y": band,
            "fill": "toself",
            "fillcolor": GRID,
            "mode": "lines",
            "line": {"width": 0},
            "name": f"within {100 * NEAR:.0f} %",
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "x": ends,
            "y": ends,
            "mode": "lines",
            "line": {"color": ANSWER["measured"], "width": 1.5, "dash": "dot"},
            "name": "measured",
            "hoverinfo": "skip",
        },
    ]


def _marks(name: str, points: list[_Point], marker: dict, axis: str = "") -> dict | None:
    """Points of one kind; beside the plot, on axes "2", with their numbers."""
    if not points:
        return None
    trace = {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "showlegend": bool(name),
        "x": [point.x for point in points],
        "y": [point.y for point in points],
        "xaxis": f"x{axis}",
        "yaxis": f"y{axis}",
        "marker": {
            "symbol": [point.symbol for point in points],
            "color": ANSWER[name or "guess"],
            **marker,
        },
        "customdata": [point.hover for point in points],
        "hovertemplate": "%{customdata}<extra></extra>",
    }
    if axis:
        trace |= {
            "mode": "markers+text",
            "text": [str(point.number) for point in points],
            "textposition": "middle right",
            "textfont": {"size": 12, "color": TEXT},
        }
    return trace


def _numbers(points, formulas, low: float, high: float, right: float) -> list[dict]:
    """The points' numbers, each with a thin line to its point."""
    width = _WIDTH * right

    def pixels(point: _Point) -> tuple[float, float]:
        x, y = ((math.log10(v) - low) / (high - low) for v in (point.x, point.y))
        return x * width, y * _PLOT

    at, texts = [pixels(point) for point in points], [str(point.number) for point in points]
    marks = [(*place, 6) for place in at] + [(*pixels(formula), 10) for formula in formulas]
    offsets = label_offsets(at, texts, marks, (width, _PLOT))
    return [
        {
            "x": math.log10(point.x),
            "y": math.log10(point.y),
            "ax": across,
            "ay": -up,
            "text": text,
            "font": {"size": 12},
            "arrowhead": 0,
            "arrowwidth": 1,
            "arrowcolor": TEXT,
            "standoff": 5,
        }
        for point, text, (across, up) in zip(points, texts, offsets)
    ]


def _strip(beside: list[_Point], right: float, bottom: float) -> dict:
    """Axes of the points that have no place on logarithmic ones."""
    most = max(point.y for point in beside)
    return {
        "xaxis2": {
            "domain": [right + 0.06, 1],
            "anchor": "y2",
            "range": [-0.5, 1.5],
            "tickvals": [0, 1],
            "ticktext": ["right", "not"],
            "showgrid": False,
            "zeroline": False,
            "title": {"text": "choices, zeros"},
        },
        "yaxis2": {
            "domain": [bottom, 1],
            "anchor": "x2",
            "range": [-0.7, max(most, 9) + 0.7],
            "visible": False,
        },
    }


def _table(rows: list[Answered], floor: float) -> dict:
    """What the numbers stand for."""

    def short(value, unit: str) -> str:
        if value is None:
            return ""
        if unit == "bytes" and _is_number(value):
            return bytes_text(value)
        text = f"{show(value)} {unit}".strip()
        return html.escape(text if len(text) <= 26 else f"{text[:25]}…")

    columns = [
        ("", [str(number) for number in range(1, len(rows) + 1)]),
        ("question", [html.escape(row.id) for row in rows]),
        ("guess", [short(row.guess, row.unit) or row.note for row in rows]),
        ("measured", [short(row.measured, row.unit) for row in rows]),
        ("ratio", [_against(row) for row in rows]),
    ]
    clear, font = "rgba(0,0,0,0)", {"color": TEXT, "size": 12}
    cell = {
        "align": ["right", "left"],
        "fill": {"color": clear},
        "line": {"color": GRID, "width": 1},
        "font": font,
    }
    return {
        "type": "table",
        "domain": {"x": [0, 1], "y": [0, floor]},
        "columnwidth": [0.25, 1.4, 1.9, 1.9, 0.7],
        "header": {**cell, "values": [f"<b>{name}</b>" for name, _ in columns], "height": _ROW},
        "cells": {**cell, "values": [values for _, values in columns], "height": _ROW},
    }
