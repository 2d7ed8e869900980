"""The losses of several runs of the same steps, one over the other, each by its name."""

from collections.abc import Mapping, Sequence

from picolab.show.picture import GROUPS, LabFigure, template
from picolab.show.table import Table

_ROWS = 10  # steps in the text


def losses_figure(losses: Mapping[str, Sequence[float]]) -> LabFigure:
    """name -> the loss of each step. ValueError if there is no run, or they differ in length."""
    if len({len(of) for of in losses.values()}) != 1:
        raise ValueError("give the losses of runs of the same number of steps, by name")
    count = len(next(iter(losses.values())))
    chosen = sorted({round(i * (count - 1) / (_ROWS - 1)) for i in range(_ROWS)})
    rows = [[step, *(of[step] for of in losses.values())] for step in chosen]
    first, last = min(losses, key=lambda n: losses[n][-1]), max(losses, key=lambda n: losses[n][-1])
    title = f"{first} ends lowest, {last} highest"
    return LabFigure(repr(Table(["step", *losses], rows, title)), lambda: _build(losses, title))


def _build(losses: Mapping[str, Sequence[float]], title: str):
    import plotly.graph_objects as go

    dashes = ("solid", "solid", "dash", "dot", "dashdot")
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": list(range(len(of))),
            "y": list(of),
            "line": {"color": color, "width": 2, "dash": dash},
            "hovertemplate": f"step %{{x}}: %{{y:.4f}} ({name})<extra></extra>",
        }
        for (name, of), color, dash in zip(losses.items(), GROUPS, dashes)
    ]
    layout = {
        "template": template(),
        "title": {"text": title},
        "height": 380,
        "xaxis": {"title": {"text": "step"}},
        "yaxis": {"title": {"text": "loss (nats per token)"}},
        "legend": {"y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"t": 96},
    }
    return go.Figure(data=data, layout=layout)
