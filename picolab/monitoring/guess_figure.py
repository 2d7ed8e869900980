"""All guesses against what was measured, in one picture.

A row is a question. A number's guess and formula are drawn as multiples of the measured value, on
a logarithmic axis: 1 is right, 2 is twice too large. What lies beyond a factor of 32 is drawn at
the edge with an arrow. A choice has no distance: right is at 1, wrong at the edge, marked with a
cross.
"""

import html
import math
from collections.abc import Iterable
from typing import NamedTuple

from picolab.monitoring.picture import ANSWER, LabFigure, template
from picolab.monitoring.table import Table, bytes_text, show

_EDGE = 32.0
NEAR = 0.10  # a guess within 10 % counts as near


class Answered(NamedTuple):
    """One question with its three answers; None where there is none."""

    id: str
    guess: float | str | None
    measured: float | str | None
    formula: float | str | None = None
    unit: str = ""
    note: str = ""  # "default" or "skipped"


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


def _ratio(value, measured) -> float | None:
    """value / measured, or None where that means nothing; equal things have ratio 1."""
    if value is None or measured is None:
        return None
    if value == measured:
        return 1.0
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in (value, measured)):
        return math.inf
    if not measured or not math.isfinite(value) or not math.isfinite(measured):
        return math.inf
    return max(value / measured, 0.0)


def guess_figure(rows: Iterable[Answered]) -> LabFigure:
    """The scoreboard's picture: each guess against the measured value."""
    rows = list(rows)
    guessed = [row for row in rows if row.guess is not None and row.measured is not None]
    near = sum(is_near(row) for row in guessed)
    title = (
        f"{near} of {len(guessed)} {'guess' if len(guessed) == 1 else 'guesses'} within "
        f"{NEAR:.0%} of what was measured".replace("%", " %")
        if guessed
        else "No guess has met its measurement yet: answer a question, then run this cell again."
    )
    if not rows:
        return _Sentence(title, lambda: _build(rows, title))
    columns = ["question", "guess", "formula", "measured", "guess / measured"]
    lines = []
    for row in rows:
        ratio = _ratio(row.guess, row.measured)
        guess = value_text(row.guess, row.unit) if row.guess is not None else "none"
        lines.append(
            [
                row.id,
                f"{guess} ({row.note})"
                if row.note and row.guess is not None
                else row.note or guess,
                value_text(row.formula, row.unit),
                value_text(row.measured, row.unit),
                "" if ratio is None else "other" if math.isinf(ratio) else f"{ratio:.3g}",
            ]
        )
    return LabFigure(f"{title}\n{Table(columns, lines)}", lambda: _build(rows, title))


def _build(rows: list[Answered], title: str):
    import plotly.graph_objects as go

    guess_x, guess_y, symbols, texts = [], [], [], []
    formula_x, formula_y = [], []
    for i, row in enumerate(rows):
        ratio = _ratio(row.guess, row.measured)
        if ratio is not None:
            guess_x.append(min(max(ratio, 1 / _EDGE), _EDGE))
            guess_y.append(i)
            symbols.append(_symbol(ratio))
            texts.append(
                f"{row.id}<br>guess {value_text(row.guess, row.unit)}"
                f"<br>measured {value_text(row.measured, row.unit)}"
            )
        if (ratio := _ratio(row.formula, row.measured)) is not None and ratio <= _EDGE:
            formula_x.append(max(ratio, 1 / _EDGE))
            formula_y.append(i)
    ticks = [1 / 32, 1 / 8, 1 / 2, 1, 2, 8, 32]
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "formula",
            "x": formula_x,
            "y": formula_y,
            "marker": {
                "symbol": "circle-open",
                "size": 17,
                "color": ANSWER["formula"],
                "line": {"width": 2.5},
            },
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "guess",
            "x": guess_x,
            "y": guess_y,
            "customdata": texts,
            "hovertemplate": "%{customdata}<extra></extra>",
            "marker": {
                "symbol": symbols,
                "size": 10,
                "color": ANSWER["guess"],
                "line": {"width": 0},
            },
        },
    ]
    labels = [
        {
            "text": f"{row.id} · measured {value_text(row.measured, row.unit)}"
            + (f" · {row.note}" if row.note else ""),
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "y": i - 0.33,
            "yref": "y",
            "yanchor": "middle",
            "showarrow": False,
            "font": {"size": 12},
        }
        for i, row in enumerate(rows)
    ]
    return go.Figure(
        data=traces,
        layout={
            "template": template(),
            "title": {"text": title},
            "height": 170 + 52 * max(1, len(rows)),
            "margin": {"b": 90},
            "annotations": labels,
            "legend": {"y": 0, "yref": "container", "yanchor": "bottom"},
            "shapes": [
                {
                    "type": "line",
                    "x0": 1,
                    "x1": 1,
                    "y0": 0,
                    "y1": 1,
                    "yref": "paper",
                    "line": {"color": ANSWER["measured"], "width": 2, "dash": "dot"},
                }
            ],
            "xaxis": {
                "type": "log",
                "range": [-math.log10(_EDGE) - 0.1, math.log10(_EDGE) + 0.1],
                "tickvals": ticks,
                "ticktext": ["1/32", "1/8", "1/2", "measured", "2 ×", "8 ×", "32 ×"],
                "title": {"text": "guess as a multiple of what was measured"},
            },
            "yaxis": {
                "range": [max(1, len(rows)) - 0.5, -0.7],
                "showticklabels": False,
                "showgrid": False,
                "zeroline": False,
            },
        },
    )


def _symbol(ratio: float) -> str:
    if math.isinf(ratio):
        return "x"
    if ratio > _EDGE:
        return "triangle-right"
    return "triangle-left" if ratio < 1 / _EDGE else "diamond"
