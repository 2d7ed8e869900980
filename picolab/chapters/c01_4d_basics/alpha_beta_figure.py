"""What a collective costs against its size: measured, and alpha-beta, on logarithmic axes.

Both terms of alpha + beta n are straight there: latency is a level line, bandwidth one of slope 1,
and they cross at the size n = alpha / beta, from which on a message is worth its latency.
"""

import math
from collections.abc import Sequence

from picolab.show.picture import ANSWER, GREY, LabFigure, template
from picolab.show.table import Table


def alpha_beta_figure(
    sizes: Sequence[int],
    measured: Sequence[float],
    formula: Sequence[float],
    alpha: float,
    beta: float,
) -> LabFigure:
    """The times of all-reduces of two ranks, in seconds, of these sizes in bytes.

    Of two ranks a ring all-reduce has two steps: latency is 2 alpha, and each rank sends n bytes.
    """
    title = f"alpha {1e6 * alpha:.0f} µs, bandwidth {1e-9 / beta:.2g} GB/s"
    rows = [[n, 1e3 * m, 1e3 * f, n / m / 1e9] for n, m, f in zip(sizes, measured, formula)]
    columns = ["bytes", "measured ms", "alpha-beta ms", "GB/s sent"]
    return LabFigure(
        repr(Table(columns, rows, title)),
        lambda: _build(sizes, measured, formula, (alpha, beta), title),
    )


def _build(sizes, measured, formula, terms: tuple[float, float], title: str):
    import plotly.graph_objects as go

    alpha, beta = terms
    ms = 1e3
    lines = {
        "latency alone, 2 alpha": [2 * alpha * ms for _ in sizes],
        "bandwidth alone, beta n": [beta * n * ms for n in sizes],
    }
    floor = min(min(measured), min(formula)) * ms / 3  # the bandwidth's line goes on far below
    return go.Figure(
        data=[
            *(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": name,
                    "x": list(sizes),
                    "y": y,
                    "line": {"color": GREY, "width": 1.5, "dash": dash},
                    "hoverinfo": "skip",
                }
                for (name, y), dash in zip(lines.items(), ("dot", "dash"))
            ),
            _times("formula", sizes, formula, "circle-open", 15, "lines+markers"),
            _times("measured", sizes, measured, "diamond", 10, "markers"),
        ],
        layout={
            "template": template(),
            "title": {"text": title},
            "height": 380,
            "xaxis": {"type": "log", "title": {"text": "bytes"}, "dtick": 1},
            "yaxis": {
                "type": "log",
                "title": {"text": "ms"},
                "range": [math.log10(floor), math.log10(max(*measured, *formula) * ms * 1.6)],
            },
            "legend": {"y": 1.02, "yanchor": "bottom", "x": 0},
            "margin": {"t": 88},
        },
    )


def _times(name: str, sizes, seconds, symbol: str, size: int, mode: str) -> dict:
    return {
        "type": "scatter",
        "mode": mode,
        "name": "alpha-beta" if name == "formula" else name,
        "x": list(sizes),
        "y": [1e3 * value for value in seconds],
        "line": {"color": ANSWER[name], "width": 2},
        "marker": {"symbol": symbol, "size": size, "color": ANSWER[name], "line": {"width": 2}},
        "hovertemplate": f"{name}, %{{x:,}} bytes: %{{y:.4g}} ms<extra></extra>",
    }
