"""A loss scale step by step: where it overflowed, and what it did then."""

from collections.abc import Mapping, Sequence

from picolab.show.picture import GROUPS, RUST, LabFigure, template
from picolab.show.table import Table


def scale_figure(scales: Mapping[str, Sequence[float]], overflows: Sequence[bool]) -> LabFigure:
    """scales: name -> the scale that each step was taken with. overflows: in which steps a gradient
    was not finite. ValueError if they have not the same steps."""
    if any(len(of) != len(overflows) for of in scales.values()):
        raise ValueError("every line has a scale for each step, and so have overflows")
    skipped = sum(overflows)
    title = f"{skipped} of {len(overflows)} steps overflowed and were skipped"
    rows = [
        [step, "overflow" if bad else "", *(f"{of[step]:,.0f}" for of in scales.values())]
        for step, bad in enumerate(overflows)
    ]
    table = Table(["step", "", *scales], rows, title)
    return LabFigure(repr(table), lambda: _build(scales, overflows, title))


def _build(scales, overflows, title: str):
    import plotly.graph_objects as go

    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": list(range(len(of))),
            "y": list(of),
            "line": {"color": color, "width": 2 + 2 * (i == 0), "shape": "hv"},
            "hovertemplate": f"step %{{x}}: %{{y:,.0f}} ({name})<extra></extra>",
        }
        for i, ((name, of), color) in enumerate(zip(scales.items(), GROUPS))
    ]
    bad = [step for step, over in enumerate(overflows) if over]
    top = max(max(of) for of in scales.values())
    data.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "overflow",
            "x": bad,
            "y": [2 * top] * len(bad),
            "marker": {"symbol": "x", "size": 8, "color": RUST},
            "hovertemplate": "step %{x}: a gradient was not finite<extra></extra>",
        }
    )
    layout = {
        "template": template(),
        "title": {"text": title},
        "height": 340,
        "xaxis": {"title": {"text": "step"}},
        "yaxis": {"type": "log", "dtick": 0.30103, "title": {"text": "loss scale"}},
        "legend": {"y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"t": 88},
    }
    return go.Figure(data=data, layout=layout)
