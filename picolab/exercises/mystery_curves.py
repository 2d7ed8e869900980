"""A mystery run's losses or norms as curves, for a front end.

Above what was measured, below how far it is from one process.

In the upper plot this run usually lies on the right ones. The lower one tells: the relative
distance to one process, logarithmic, of this run and of a right run of the layout, whose distance
is rounding. A curve that is flat there is off by a factor that stays. The text form is the look's
table, so nothing is said here that is not said there.
"""

import math

from picolab.exercises import mystery_looks
from picolab.exercises.mystery_looks import Trial
from picolab.show.picture import BLUE, GREY, OCHRE, LabFigure, template

CURVES = ("loss", "norm")
_FLOOR = 1e-9  # where a distance of 0 is drawn
_CEILING = 1e3  # and one that is infinite
_HEIGHT = 460
_ABOUT = {"loss": "loss, nats a token", "norm": "gradient norm, before clipping"}


def curves(trial: Trial, name: str) -> LabFigure:
    """The look of this name, "loss" or "norm", as a figure."""
    return LabFigure(repr(mystery_looks.look(trial, name)), lambda: _build(trial, name))


def _build(trial: Trial, name: str):
    import plotly.graph_objects as go

    this, right, one = mystery_looks.series(trial, name)
    steps = list(range(1, len(one) + 1))
    layout = f"a right {trial.layout}"
    data = [
        _curve("one process", steps, one, GREY, "dot", "circle"),
        _curve(layout, steps, right, OCHRE, "dash", "circle-open"),
        _curve("this run", steps, this, BLUE, "solid", "diamond"),
        *(
            _curve(of, steps, _off(values, one), colour, dash, symbol) | _LOWER
            for of, values, colour, dash, symbol in (
                (layout, right, OCHRE, "dash", "circle-open"),
                ("this run", this, BLUE, "solid", "diamond"),
            )
        ),
    ]
    distances = [y for trace in data[3:] for y in trace["y"]]
    ticks = [10.0**power for power in range(-9, 3)]
    words = ["0" if tick == _FLOOR else f"{tick:.0e}" for tick in ticks]
    return go.Figure(
        data=data,
        layout={
            "template": template(),
            "title": {"text": f"{_ABOUT[name]}; below it, how far from one process, relatively"},
            "height": _HEIGHT,
            "xaxis": {"matches": "x2", "showticklabels": False},
            "yaxis": {"domain": [0.52, 1], "title": {"text": name}, "rangemode": "tozero"},
            "xaxis2": {"anchor": "y2", "title": {"text": "step"}},
            "yaxis2": {
                "domain": [0, 0.44],
                "type": "log",
                "anchor": "x2",
                "title": {"text": "off by"},
                "tickvals": ticks,
                "ticktext": words,
                "range": _decades(min(distances), max(distances)),
            },
            "legend": {"y": 1.02, "yanchor": "bottom", "x": 0},
            "margin": {"t": 84},
        },
    )


_LOWER = {"xaxis": "x2", "yaxis": "y2", "showlegend": False}


def _curve(name: str, x: list, y: list[float], colour: str, dash: str, symbol: str) -> dict:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": x,
        "y": y,
        "line": {"color": colour, "dash": dash, "width": 2},
        "marker": {"color": colour, "symbol": symbol, "size": 7},
        "hovertemplate": f"{name}, step %{{x}}: %{{y:.6g}}<extra></extra>",
    }


def _off(values: list[float], one: list[float]) -> list[float]:
    return [min(_CEILING, max(_FLOOR, of)) for of in mystery_looks.relative(values, one)]


def _decades(low: float, high: float) -> list[float]:
    """The axis' ends as powers of ten: beyond the next whole ones, so that both have a tick."""
    return [math.floor(math.log10(low)) - 0.2, math.ceil(math.log10(high)) + 0.2]
