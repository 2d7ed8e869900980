"""The precision of a run, layer by layer and step by step.

Two panels: a map with a row for each linear and a column for each step, dark where a number has
fewest bits, with a mark over each step that was taken back; and what it saves, in shares of fp32.
`precision_figure` is a figure of its own; `drawn`, `traces`, `axes` and `domains` are what the
dashboard puts under its other panels for a run with adaptive precision, also while it runs.
"""

from typing import NamedTuple

from picolab.monitoring.panels_figure import panels_figure
from picolab.monitoring.precision import LADDER, PrecisionHistory
from picolab.show.picture import BLUE, OCHRE, RUST, LabFigure
from picolab.show.table import Table

HEIGHT = 260  # of the panels, in pixels
AXES = 2
MOST = 200  # columns of the map
_ROWS = 8  # steps in the text
_SHADES = ("rgba(42,114,238,1)", "rgba(42,114,238,0.62)", "rgba(42,114,238,0.32)")
_FP32 = "rgba(42,114,238,0.05)"


class Drawn(NamedTuple):
    """What the panels show now: the traces' data, in their order, and the titles."""

    traces: list[dict]
    titles: list[str]
    layers: tuple[str, ...]


def drawn(history: PrecisionHistory) -> Drawn:
    import numpy

    if not history or history.last < 0:
        empty = [{"x": _array([]), "y": _array([])} for _ in traces()]
        return Drawn(empty, [""] * AXES, ())
    steps = _columns(history)
    places = [[LADDER.index(of) for of in history.formats(step).values()] for step in steps]
    shown = numpy.asarray(places, dtype=float).T
    bad = [step for step, _, _ in history.went_back]
    below = [100 * history.below_fp32(step) for step in steps]
    read = [100 * history.bytes_share(step) for step in steps]
    found = [
        {"x": _array(steps), "y": _array(range(len(history.layers))), "z": shown},
        {"x": _array(bad), "y": _array([-0.9] * len(bad))},
        {"x": _array(steps), "y": _array(below)},
        {"x": _array(steps), "y": _array(read)},
    ]
    return Drawn(found, _titles(history), tuple(map(short, history.layers)))


def _columns(history: PrecisionHistory) -> list[int]:
    every = 1 + history.last // MOST
    return sorted({*range(0, history.last + 1, every), history.last})


def _array(values):
    import numpy

    return numpy.asarray(list(values), dtype=float)


def short(layer: str) -> str:
    """ "0 mlp.down" for "layers.0.mlp.down.weight"."""
    return layer.removeprefix("layers.").removesuffix(".weight").replace(".", " ", 1)


def _titles(history: PrecisionHistory) -> list[str]:
    now = list(history.now.values())
    counted = ", ".join(f"{now.count(name)} in {name}" for name in LADDER if name in now)
    back = f"; {len(history.went_back)} x taken back ▼" if history.went_back else ""
    return [
        f"layers: {counted} (dark: fewest bits){back}",
        f"{100 * history.below_fp32(history.last):.0f} % of operations below fp32 (line), "
        f"{100 * history.bytes_share(history.last):.0f} % of its operands' bytes (dots)",
    ]


def traces() -> list[tuple[int, dict]]:
    """(panel, trace) without data, in the order of `Drawn.traces`."""
    line = {"type": "scatter", "mode": "lines", "showlegend": False, "cliponaxis": False}
    colors = (*_SHADES, _FP32)
    edges = [(i + side) / len(colors) for i in range(len(colors)) for side in (0, 1)]
    scale = [[edge, colors[i // 2]] for i, edge in enumerate(edges)]
    heat = {
        "type": "heatmap",
        "zmin": -0.5,
        "zmax": len(colors) - 0.5,
        "colorscale": scale,
        "showscale": False,
        "ygap": 1,
        "hovertemplate": "step %{x}: format %{z} of " + ", ".join(LADDER) + "<extra></extra>",
    }
    back = {
        **line,
        "mode": "markers",
        "marker": {"symbol": "triangle-down", "size": 10, "color": RUST},
        "hovertemplate": "step %{x} was taken back<extra></extra>",
    }

    def share(color: str, dash: str, hover: str) -> dict:
        return {
            **line,
            "line": {"color": color, "width": 2, "dash": dash, "shape": "hv"},
            "hovertemplate": f"step %{{x}}: %{{y:.1f}} % {hover}<extra></extra>",
        }

    return [
        (0, heat),
        (0, back),
        (1, share(BLUE, "solid", "of operations below fp32")),
        (1, share(OCHRE, "dot", "of the bytes of operands in fp32")),
    ]


def axes(layers: tuple[str, ...]) -> list[tuple[dict, dict]]:
    """The x and y axis of each panel. layers: `Drawn.layers`."""
    step = {"title": {"text": "step"}, "tickformat": ",~r", "nticks": 6, "showgrid": False}
    step["zeroline"] = False
    every = max(1, -(-len(layers) // 12))
    of_layers = {
        "tickvals": list(range(0, len(layers), every)),
        "ticktext": list(layers[::every]),
        "tickfont": {"size": 11},
        "range": [max(len(layers), 1) - 0.5, -1.4],
        "showgrid": False,
        "zeroline": False,
    }
    return [(step, of_layers), (step, {"title": {"text": "%"}, "range": [-3, 103], "nticks": 5})]


def domains(low: float, high: float, left: list, right: list) -> list[tuple[list, list]]:
    """Where the panels are, (x, y), between these heights of the figure."""
    return [([left[0] + 0.06, left[1]], [low, high]), (right, [low, high])]


def text(history: PrecisionHistory) -> str:
    """The titles, the formats at some steps, and what was taken back."""
    steps = _columns(history)
    chosen = sorted({round(i * (len(steps) - 1) / (_ROWS - 1)) for i in range(_ROWS)})
    rows = []
    for step in [steps[i] for i in chosen]:
        formats = list(history.formats(step).values())
        shares = 100 * history.below_fp32(step), 100 * history.bytes_share(step)
        rows.append([step, *(formats.count(name) for name in LADDER), *shares])
    columns = ["step", *(f"in {name}" for name in LADDER), "below fp32 %", "bytes %"]
    back = [f"step {bad} was taken back to {to}: {why}" for bad, to, why in history.went_back]
    return "\n".join([*_titles(history), repr(Table(columns, rows)), *back])


def precision_figure(history: PrecisionHistory) -> LabFigure:
    """Of a whole run. ValueError if it has told nothing of formats."""
    if not history:
        raise ValueError(
            "this run has told of no formats: train with precision='adaptive', two steps or more"
        )

    def build():
        shown = drawn(history)
        places = domains(0.0, 1.0, [0.0, 0.42], [0.52, 1.0])
        whole = {"height": HEIGHT + 130, "margin": {"t": 84}}
        return panels_figure(
            traces(), shown.traces, shown.titles, axes(shown.layers), places, **whole
        )

    return LabFigure(text(history), build)
