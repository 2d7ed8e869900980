"""The experts of a run: who is asked, step by step, what is dropped, and what unevenness costs.

Three panels: a map with a row for each expert of each layer and a column for each step; what was
dropped beside how even the choices are; and, where experts are on several ranks, the slow-down that
the rows predict beside the one that was measured. `experts_figure` is a figure of its own;
`drawn`, `traces` and `axes` are what the dashboard puts under its other panels for a model with
experts, also while it runs.
"""

from typing import NamedTuple

from picolab.monitoring.experts import ExpertHistory
from picolab.monitoring.panels_figure import panels_figure
from picolab.show.picture import ANSWER, BLUE, RUST, LabFigure
from picolab.show.table import Table

HEIGHT = 300  # of the three panels, in pixels
AXES = 3
_TOP_SHARE = 3.0  # times the even share: a darker place means no more than this
_ROWS = 10  # steps in the text
_DARK = "rgba(42,114,238,1)"
_SHADES = [[0.0, "rgba(42,114,238,0.03)"], [1 / _TOP_SHARE, "rgba(42,114,238,0.38)"], [1.0, _DARK]]


class Drawn(NamedTuple):
    """What the panels show now: the traces' data, in their order, and the titles."""

    traces: list[dict]
    titles: list[str]
    layers: dict[int, int]
    """layer -> its experts."""


def drawn(history: ExpertHistory) -> Drawn:
    import numpy

    steps = history.steps
    if not steps:
        return Drawn([{"x": _array([]), "y": _array([])} for _ in traces()], [""] * AXES, {})
    layers = {}
    for told in history.loads.values():
        layers |= {layer: len(loads) for layer, loads in told.items()}
    layers = dict(sorted(layers.items()))
    rows = sum(layers.values()) + len(layers) - 1  # an empty one between two layers
    shares = numpy.full((rows, len(steps)), numpy.nan)
    for place, step in enumerate(steps):
        told, first = history.shares(step), 0
        for layer, size in layers.items():
            if layer in told:  # a later stage of a pipeline may not have told its own
                shares[first : first + size, place] = told[layer]
            first += size + 1
    slow = sorted(history.slow_downs)
    lines = [
        (steps, [100 * history.dropped_share(step) for step in steps]),
        (steps, [100 * history.evenness(step) for step in steps]),
        (slow, [history.slow_downs[step].predicted for step in slow]),
        (slow, [history.slow_downs[step].measured for step in slow]),
    ]
    # A live figure sends a map as text, which has no word for nan.
    places = numpy.where(numpy.isnan(shares), None, shares)
    found = [{"x": _array(steps), "y": _array(range(rows)), "z": places}]
    found += [{"x": _array(x), "y": _array(y)} for x, y in lines]
    return Drawn(found, _titles(history), layers)


def _array(values):
    import numpy

    return numpy.asarray(list(values), dtype=float)


def _titles(history: ExpertHistory) -> list[str]:
    last = history.steps[-1]
    titles = [
        f"the busiest expert: {history.busiest(last):.1f} times its even share",
        f"dropped {100 * history.dropped_share(last):.1f} % (line), "
        f"evenness {100 * history.evenness(last):.0f} % (dots)",
    ]
    if not history.slow_downs:
        return [*titles, "experts wait for no other rank: rows stay here"]
    newest = list(history.slow_downs.values())[-_ROWS:]
    predicted, measured = (sum(each) / len(newest) for each in zip(*newest))
    return [
        *titles,
        f"experts {predicted:.2f}x slower by rows (dots), {measured:.2f}x measured (line)",
    ]


def traces() -> list[tuple[int, dict]]:
    """(panel, trace) without data, in the order of `Drawn.traces`."""
    line = {"type": "scatter", "mode": "lines+markers", "showlegend": False, "cliponaxis": False}
    heat = {
        "type": "heatmap",
        "zmin": 0,
        "zmax": _TOP_SHARE,
        "colorscale": _SHADES,
        "showscale": False,
        "ygap": 1,
        "hoverongaps": False,
        "hovertemplate": "step %{x}: %{z:.2f} times the even share<extra></extra>",
    }

    def drawn_as(color: str, dots: bool, hover: str) -> dict:
        return {
            **line,
            "line": {"color": color, "width": 1.8, "dash": "dot" if dots else "solid"},
            "marker": {"size": 3},
            "hovertemplate": f"step %{{x}}: {hover}<extra></extra>",
        }

    return [
        (0, heat),
        (1, drawn_as(RUST, False, "%{y:.1f} % dropped")),
        (1, drawn_as(BLUE, True, "evenness %{y:.1f} %")),
        (2, drawn_as(ANSWER["formula"], True, "%{y:.2f} by rows")),
        (2, drawn_as(ANSWER["measured"], False, "%{y:.2f} measured")),
    ]


def axes(layers: dict[int, int]) -> list[tuple[dict, dict]]:
    """The x and y axis of each panel. layers: `Drawn.layers`."""
    step = {"title": {"text": "step"}, "tickformat": ",~r", "nticks": 6, "showgrid": False}
    step["zeroline"] = False
    ticks, at = [], 0
    for size in layers.values():
        ticks.append(at + (size - 1) / 2)
        at += size + 1
    experts = {
        "tickvals": ticks,
        "ticktext": [f"layer {layer}" for layer in layers],
        "range": [max(at - 1, 1) - 0.5, -0.5],
        "showgrid": False,
        "zeroline": False,
    }
    share = {"title": {"text": "%"}, "range": [-3, 103], "nticks": 5}
    times = {"title": {"text": "times"}, "nticks": 5, "rangemode": "normal"}
    return [(step, experts), (step, share), (step, times)]


def domains(low: float, high: float, left: list, right: list) -> list[tuple[list, list]]:
    """Where the panels are, (x, y), between these heights of the figure: the map at the left, the
    two lines above one another at the right."""
    height = high - low
    third = 0.36 * height
    return [
        (left, [low, high]),
        (right, [high - third, high]),
        (right, [low, low + third]),
    ]


def text(history: ExpertHistory) -> str:
    """The titles, and about ten steps."""
    steps = history.steps
    chosen = sorted({round(i * (len(steps) - 1) / (_ROWS - 1)) for i in range(_ROWS)})
    rows = []
    for step in [steps[i] for i in chosen]:
        slow = history.slow_downs.get(step)
        row = [step, history.busiest(step), 100 * history.evenness(step)]
        row += [100 * history.dropped_share(step)]
        rows.append([*row, *(slow or (None, None))])
    columns = ["step", "busiest expert / even", "evenness %", "dropped %"]
    columns += ["slower by rows", "slower, measured"]
    return "\n".join([*_titles(history), repr(Table(columns, rows))])


def experts_figure(history: ExpertHistory) -> LabFigure:
    """Of a whole run. ValueError if it has told nothing of experts."""
    if not history:
        raise ValueError("this run has told of no experts: its model has none, or no step is over")

    def build():
        shown = drawn(history)
        places = domains(0.0, 1.0, [0.0, 0.42], [0.52, 1.0])
        whole = {"height": HEIGHT + 120, "margin": {"t": 80}}
        return panels_figure(
            traces(), shown.traces, shown.titles, axes(shown.layers), places, **whole
        )

    return LabFigure(text(history), build)
