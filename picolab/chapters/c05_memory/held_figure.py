"""What pools hold, step by step, beside what is asked of them."""

from collections.abc import Mapping, Sequence

from picolab.show.picture import GREY, GROUPS, LabFigure, template
from picolab.show.table import Table

_ROWS = 10  # steps in the text


def held_figure(held: Mapping[str, Sequence[int]], wanted: Sequence[int]) -> LabFigure:
    """held: name -> bytes that this pool has, after each step. wanted: bytes that are asked for in
    each. ValueError if they have not the same steps."""
    if not held or any(len(of) != len(wanted) for of in held.values()):
        raise ValueError("every pool has its bytes after each step, and so has what is wanted")
    last = {name: 1 - wanted[-1] / of[-1] for name, of in held.items()}
    title = "; ".join(f"{name}: {100 * idle:.0f} % idle" for name, idle in last.items())
    chosen = sorted({round(i * (len(wanted) - 1) / (_ROWS - 1)) for i in range(_ROWS)})
    rows = [[step, wanted[step], *(of[step] for of in held.values())] for step in chosen]
    table = Table(["step", "wanted", *held], rows, title)
    return LabFigure(repr(table), lambda: _build(held, wanted, title))


def _build(held, wanted, title: str):
    import plotly.graph_objects as go

    lines = [("asked for in the step", wanted, GREY, "dot")]
    lines += [(name, of, color, "solid") for (name, of), color in zip(held.items(), GROUPS)]
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": list(range(len(of))),
            "y": [value / 1e6 for value in of],
            "line": {"color": color, "width": 2, "dash": dash, "shape": "hv"},
            "hovertemplate": f"step %{{x}}: %{{y:.1f}} MB ({name})<extra></extra>",
        }
        for name, of, color, dash in lines
    ]
    layout = {
        "template": template(),
        "title": {"text": title},
        "height": 340,
        "xaxis": {"title": {"text": "step"}},
        "yaxis": {"title": {"text": "MB held"}, "rangemode": "tozero"},
        "legend": {"y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"t": 88},
    }
    return go.Figure(data=data, layout=layout)
