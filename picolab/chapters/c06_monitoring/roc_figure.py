"""False alarms against what is found, threshold by threshold, with the threshold on a slider."""

import itertools
from collections.abc import Mapping, Sequence

from picolab.show.picture import GREY, GROUPS, LabFigure, template
from picolab.show.table import Table

Point = tuple[float, float]
"""(share of quiet windows that alarm, share of the faulty ones that do)"""


def roc_figure(thresholds: Sequence[float], curves: Mapping[str, Sequence[Point]]) -> LabFigure:
    """curves: rule -> its point at each threshold. ValueError if one has not as many."""
    if not curves or any(len(of) != len(thresholds) for of in curves.values()):
        raise ValueError("every rule has a point at each threshold")
    areas = {name: area(of) for name, of in curves.items()}
    title = "; ".join(f"{name}: {of:.3f} of the area" for name, of in areas.items())
    rows = [
        [f"{100 * (limit - 1):+.0f} %", *(100 * x for of in curves.values() for x in of[i])]
        for i, limit in enumerate(thresholds)
    ]
    columns = ["threshold"]
    for name in curves:
        columns += [f"{name}: false %", "found %"]
    text = repr(Table(columns, rows[:: max(1, len(rows) // 8)], title))
    return LabFigure(text, lambda: _build(thresholds, curves, title))


def area(points: Sequence[Point]) -> float:
    """Under the curve, by trapezoids: the chance that a faulty window has more than a quiet one."""
    ends = sorted([(0.0, 0.0), *points, (1.0, 1.0)])
    return sum((x - x0) * (y + y0) / 2 for (x0, y0), (x, y) in itertools.pairwise(ends))


def _build(thresholds, curves, title: str):
    import plotly.graph_objects as go

    figure = go.Figure()
    for (name, of), color in zip(curves.items(), GROUPS):
        x, y = zip(*sorted(of))
        figure.add_scatter(x=x, y=y, mode="lines", name=name, line={"color": color, "width": 2})
    first = len(thresholds) // 2
    for (name, of), color in zip(curves.items(), GROUPS):
        figure.add_scatter(
            x=[of[first][0]], y=[of[first][1]], mode="markers", showlegend=False, name=name,
            marker={"color": color, "size": 12},
            hovertemplate="false %{x:.1%}, found %{y:.1%}",
        )  # fmt: skip
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="a coin", line={"color": GREY, "dash": "dot"}
    )
    count = len(curves)
    steps = [
        {
            "method": "restyle",
            "label": f"{100 * (limit - 1):+.0f} %",
            "args": [
                {"x": [[of[i][0]] for of in curves.values()],
                 "y": [[of[i][1]] for of in curves.values()]},
                list(range(count, 2 * count)),
            ],
        }
        for i, limit in enumerate(thresholds)
    ]  # fmt: skip
    figure.update_layout(
        template=template(), height=480, title={"text": title},
        xaxis={"title": {"text": "false alarms, share of quiet windows"}, "range": [-0.02, 1]},
        yaxis={"title": {"text": "found, share of faulty windows"}, "range": [0, 1.03]},
        sliders=[{"active": first, "steps": steps, "pad": {"t": 48},
                  "currentvalue": {"prefix": "threshold: "}}],
    )  # fmt: skip
    return figure
