"""The lesson before the first pipeline runs: what stages and micro-batches do to the bubble.

GPipe above 1F1B, simulated, with a slider for the stages and one for the micro-batches. Plotly
frames, so it needs no kernel. The two sliders are independent because they turn different things:
a frame (one for each count of micro-batches) replaces the data of all traces, and the slider of
the stages chooses which traces are seen.
"""

from collections.abc import Sequence

from picolab.monitoring.gantt_figure import (
    BOTTOM,
    NAMES,
    TOP,
    bar_style,
    bars_of,
    common_layout,
    held_by,
    held_style,
    panel_axes,
    peaks_of,
    peaks_style,
    percent,
    place,
)
from picolab.schedules import Simulation, make, simulate
from picolab.show.picture import GRID, TEXT, LabFigure
from picolab.show.table import Table

MAX_FRAMES = 60

_SLIDERS = 160  # pixels, with Play below them
_ROWS = 5  # the height is that of five rows, whatever the slider of the stages says


def schedule_slider(
    stages: Sequence[int] = (2, 3, 4, 6, 8),
    micro_batches: Sequence[int] = (1, 2, 3, 4, 6, 8, 12, 16),
    schedules: Sequence[str] = ("gpipe", "1f1b"),
    *,
    first: tuple[int, int] = (4, 4),
) -> LabFigure:
    """Simulated Gantts with two sliders, stages and micro-batches. Forward 1, backward 2 units.

    first   the stages and micro-batches it opens with
    """
    stages, micro_batches = sorted(set(stages)), sorted(set(micro_batches))
    if not stages or not micro_batches or not 1 <= len(schedules) <= 2:
        raise ValueError("the slider needs stages, micro-batches, and one or two schedules")
    if len(micro_batches) > MAX_FRAMES:
        raise ValueError(f"{len(micro_batches)} micro-batch counts; at most {MAX_FRAMES} frames")
    if first[0] not in stages or first[1] not in micro_batches:
        raise ValueError(f"first is {first}; it opens with one of the given stages, micro-batches")
    cases = {
        (name, p, m): simulate(make(name, p, m))
        for name in schedules
        for p in stages
        for m in micro_batches
    }
    rows = [
        [name, p, m, float(s.bubble_of_total), float(s.bubble_of_ideal), max(s.peak_in_flight)]
        for (name, p, m), s in cases.items()
    ]
    columns = ["schedule", "stages", "micro-batches", "of total", "of ideal", "stage 0 holds"]
    shown = "\n\n".join(repr(cases[name, *first]) for name in schedules)
    text = f"{_slider_title(schedules)}\n\n{shown}\n\n{Table(columns, rows, 'bubble and memory')}"
    return LabFigure(text, lambda: _build_slider(cases, stages, micro_batches, schedules, first))


def _slider_title(schedules: Sequence[str]) -> str:
    capped = "; 1F1B caps what is held" if "1f1b" in schedules else ""
    return f"More micro-batches, less bubble{capped} (simulated)"


def _slider_finding(case: Simulation) -> str:
    return (
        f"<b>{NAMES.get(case.name, case.name)}</b>: bubble {percent(case.bubble_of_total)} of "
        f"total, {percent(case.bubble_of_ideal)} of ideal"
    )


def _build_slider(cases, stages, micro_batches, schedules, first):
    import plotly.graph_objects as go

    panels, pixels = place([_ROWS] * len(schedules))
    unit = "forwards of one micro-batch"

    def data(m: int) -> list[dict]:
        """All traces' data for m micro-batches, in the order of `styles`."""
        traces = []
        for name in schedules:
            for p in stages:
                case = cases[name, p, m]
                finding = {"x": [0], "y": [-0.5], "text": [_slider_finding(case)]}
                bars = [bars_of(case, kind) for kind in "FB"]
                # Both schedules on one scale: nothing holds more than m.
                traces += [*bars, held_by(case, m), peaks_of(case), finding]
        return traces

    def styles() -> list[dict]:
        traces = []
        for panel in panels:
            for p in stages:
                bars = [bar_style(kind, panel.bars, "") for kind in "FB"]
                for style in bars:
                    style["showlegend"] = panel is panels[0]
                finding = {
                    **peaks_style(panel.bars),
                    "textposition": "top right",
                    "textfont": {"size": 13, "color": TEXT},
                }
                held, peaks = held_style(panel.flight, "stage"), peaks_style(panel.bars)
                traces += [
                    {**style, "visible": p == first[0]} for style in [*bars, held, peaks, finding]
                ]
        return traces

    def axes(p: int) -> dict:
        layout = {}
        for panel in panels:
            layout |= panel_axes(panel, p, "stage")
        return layout

    kinds = ["bar", "bar", "scatter", "scatter", "scatter"] * (len(schedules) * len(stages))
    frames = [
        {
            "name": str(m),
            "data": [{"type": kind, **trace} for kind, trace in zip(kinds, data(m))],
            "layout": {},
        }
        for m in micro_batches
    ]
    height = pixels + TOP + BOTTOM + _SLIDERS
    layout = common_layout(_slider_title(schedules), height, unit, panels[-1].flight)
    visible = {p: [p == at for _ in schedules for at in stages for _ in range(5)] for p in stages}
    shows = {p: [{"visible": visible[p]}, _flat(axes(p))] for p in stages}
    layout |= axes(first[0]) | {"sliders": _sliders(shows, micro_batches, first)}
    layout["margin"]["b"] = BOTTOM + _SLIDERS
    layout["xaxis"]["rangemode"] = "tozero"
    begin = data(first[1])
    return go.Figure(
        data=[{**style, **values} for style, values in zip(styles(), begin)],
        frames=frames,
        layout=layout,
    )


def _sliders(shows: dict[int, list], micro_batches: list[int], first: tuple[int, int]) -> list:
    """shows[p] is what changes in traces and layout for p stages."""
    jump = {
        "mode": "immediate",
        "frame": {"duration": 0, "redraw": True},
        "transition": {"duration": 0},
    }
    look = {
        "len": 0.46,
        "y": 0,
        "pad": {"t": 58},
        "bordercolor": GRID,
        "bgcolor": GRID,
        "activebgcolor": TEXT,
        "tickcolor": TEXT,
        "transition": {"duration": 0},
    }
    return [
        {
            **look,
            "x": 0,
            "active": list(shows).index(first[0]),
            "currentvalue": {"prefix": "stages: "},
            "steps": [
                {"method": "update", "label": str(p), "args": change} for p, change in shows.items()
            ],
        },
        {
            **look,
            "x": 0.54,
            "active": micro_batches.index(first[1]),
            "currentvalue": {"prefix": "micro-batches: "},
            "steps": [
                {"method": "animate", "label": str(m), "args": [[str(m)], jump]}
                for m in micro_batches
            ],
        },
    ]


def _flat(axes: dict) -> dict:
    """What differs between numbers of stages, as {"yaxis.range": ...}: the rest stays as it is."""
    kept = ("range", "tickvals", "ticktext")
    return {
        f"{name}.{key}": axis[key]
        for name, axis in axes.items()
        if "tickvals" in axis
        for key in kept
    }
