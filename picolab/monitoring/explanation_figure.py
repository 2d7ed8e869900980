"""One step explained, as a figure: above, what every rank did when, with the critical path as a
line through it; beneath, each rank's seconds by what they went to. Made by `Explanation.figure()`.
"""

from typing import TYPE_CHECKING

from picolab.monitoring import activity_figure
from picolab.monitoring.rank_seconds import RankSeconds
from picolab.show.picture import LETTERS, TEXT, TIME, LabFigure, broken, pattern, template

if TYPE_CHECKING:
    from picolab.monitoring.explanation import Explanation

_KIND = {
    "warm-up": "bubble",
    "drain": "bubble",
    "imbalance": "bubble",
    "waiting for a rank": "waiting",
    "waiting for a core": "waiting",
}
_SHAPES = {"drain": "/", "imbalance": "x", "waiting for a core": "."}  # told apart from the others
_BAR = 0.62
_ABOVE, _BELOW = 40, 32  # pixels of a rank in each panel
_GAP, _TOP, _BOTTOM = 92, 80, 112


def explanation_figure(explanation: "Explanation") -> LabFigure:
    """See above; the text form is the explanation's own."""
    return LabFigure(repr(explanation), lambda: _build(explanation))


def _build(explanation: "Explanation"):
    import plotly.graph_objects as go

    ranks = len(explanation.split)
    plot = ranks * (_ABOVE + _BELOW) + _GAP
    x, y = activity_figure.axes(explanation.activity)
    above = [1 - ranks * _ABOVE / plot, 1]
    below = [0, ranks * _BELOW / plot]
    rows = {**y, "domain": below, "anchor": "x2"}
    split_x = {"title": {"text": "ms of the step, by what they went to"}, "range": x["range"]}
    layout = {
        "template": template(),
        "title": {"text": broken(explanation.heading(), LETTERS)},
        "barmode": "overlay",
        "height": plot + _TOP + _BOTTOM,
        "margin": {"t": _TOP, "b": _BOTTOM},
        "xaxis": {**x, "anchor": "y"},
        "yaxis": {**y, "domain": above},
        "xaxis2": {**split_x, "anchor": "y2", "zeroline": False},
        "yaxis2": rows,
        "legend": {"y": -60 / plot, "yanchor": "top", "traceorder": "normal"},
    }
    return go.Figure(
        data=[*_moments(explanation), _path(explanation), *_parts(explanation)], layout=layout
    )


def _moments(explanation: "Explanation") -> list[dict]:
    """The bars in time; the messages are left out, where the path needs the room between them."""
    traces, data = activity_figure.traces(), activity_figure.arrays(explanation.activity)
    bars = [{**t, **d} for t, d in zip(traces, data) if t["type"] == "bar" and len(d["x"])]
    return [{**bar, "showlegend": bar["name"] == "compute", "name": bar["name"]} for bar in bars]


def _path(explanation: "Explanation") -> dict:
    """Along the ranks that were on it, from one to the other where one waited for the other."""
    place = {rank: row for row, rank in enumerate(explanation.split)}
    x, y, said = [], [], []
    for part in explanation.path:
        reason = f", {part.node.entry.reason}" if part.kind == "communication" else ""
        for time in (part.start, part.end):
            x.append(round(1e3 * time, 4))
            y.append(place[part.rank])
            said.append(f"rank {part.rank}: {part.kind}{reason}, {1e3 * part.seconds:.2f} ms")
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "critical path",
        "x": x,
        "y": y,
        "customdata": said,
        "line": {"color": TEXT, "width": 3},
        "hovertemplate": "critical path, %{customdata}<extra></extra>",
    }


def _parts(explanation: "Explanation") -> list[dict]:
    """A bar for each thing that the seconds went to, one behind the other."""
    place = {rank: row for row, rank in enumerate(explanation.split)}
    behind = dict.fromkeys(explanation.split, 0.0)
    traces = []
    for name in RankSeconds().parts():
        each = {rank: 1e3 * of.parts()[name] for rank, of in explanation.split.items()}
        if any(each.values()):
            kind = _KIND.get(name, name)
            hatch = pattern(kind)
            hatch["shape"] = _SHAPES.get(name, hatch["shape"])
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": name,
                    "legendgroup": name,
                    "showlegend": name != "compute",
                    "xaxis": "x2",
                    "yaxis": "y2",
                    "width": _BAR,
                    "x": [round(ms, 4) for ms in each.values()],
                    "base": [round(behind[rank], 4) for rank in each],
                    "y": [place[rank] for rank in each],
                    "customdata": [_said(explanation, rank, name) for rank in each],
                    "marker": {"color": TIME[kind], "line": {"width": 0}, "pattern": hatch},
                    "hovertemplate": "%{y}: %{customdata}<extra></extra>",
                }
            )
        behind = {rank: behind[rank] + each[rank] for rank in behind}
    return traces


def _said(explanation: "Explanation", rank: int, name: str) -> str:
    of = explanation.split[rank]
    detail = {
        "communication": {reason: s for reason, s in of.communication.items()},
        "waiting for a rank": {f"rank {other}": s for other, s in of.waiting.items()},
    }.get(name, {})
    lines = [f"{name} {1e3 * of.parts()[name]:.2f} ms"]
    most = sorted(detail.items(), key=lambda item: -item[1])[:6]
    return "<br>".join([*lines, *(f"{what} {1e3 * s:.2f} ms" for what, s in most)])
