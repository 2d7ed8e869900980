"""The pipeline's Gantt chart: what each stage did when, and what it held meanwhile.

`gantt` draws a `Timeline`: a row for each stage with stage 0 on top, a bar for each action, and
beneath it how many micro-batches each stage holds. A simulated and a measured one are drawn by the
same function, one above the other on one time axis, and the face of each says which it is.

`schedule_slider` is the lesson before that: GPipe above 1F1B, simulated, with a slider for the
stages and one for the micro-batches. Plotly frames, so it needs no kernel. The two sliders are
independent because they turn different things: a frame (one for each count of micro-batches)
replaces the data of all traces, the slider of the stages chooses which traces are seen.
"""

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import NamedTuple

from picolab.costs import bubble_of_ideal, bubble_of_total
from picolab.monitoring.picture import GRID, MEMORY, TEXT, TIME, LabFigure, template
from picolab.monitoring.table import Table
from picolab.schedules import Span, Timeline, make, simulate

MAX_RANKS = 64
MAX_FRAMES = 60

_ROW = 30  # pixels of a stage's row
_FLIGHT = 76  # of the in-flight row
_GAP, _HEADING = 16, 34
_TOP, _BOTTOM = 56, 52
_SLIDERS = 100
_WIDE = 780  # pixels of the time axis where the figure is as wide as a notebook's page
_KINDS = {"F": "forward", "B": "backward", "W": "backward, weights"}
_COLOURS = {"F": "forward", "B": "backward-input", "W": "backward-weight"}
_NAMES = {"gpipe": "GPipe", "1f1b": "1F1B"}
_EDGE = {"color": "rgba(0,0,0,0.5)", "width": 1}  # parts neighbours on a light and a dark page


def gantt(
    above: Timeline | Iterable[Span],
    below: Timeline | Iterable[Span] | None = None,
    *,
    formula: float | None = None,
    unit: str = "s",
) -> LabFigure:
    """Draw one timeline, or two on one time axis (simulated above measured).

    above, below   a `Simulation`, a `Timeline`, or measured spans
    formula        bubble of the total by `costs.bubble_of_total`, for the title
    unit           of the times; both have the same
    """
    drawn = [_timeline(timeline) for timeline in (above, below) if timeline is not None]
    for timeline in drawn:
        if timeline.ranks > MAX_RANKS:
            raise ValueError(f"a Gantt of {timeline.ranks} ranks cannot be read; {MAX_RANKS} can")
    title = _title(drawn, formula)
    text = "\n\n".join([title, *(f"{t!r}\n{_ranks_table(t, unit)}" for t in drawn)])
    return LabFigure(text, lambda: _build(drawn, title, unit))


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


# -- text -----------------------------------------------------------------------------------------


def _slider_title(schedules: Sequence[str]) -> str:
    capped = "; 1F1B never holds more than there are stages" if "1f1b" in schedules else ""
    return f"More micro-batches, less bubble{capped} (simulated)"


def _timeline(source: Timeline | Iterable[Span]) -> Timeline:
    return source if isinstance(source, Timeline) else Timeline(source)


def _how(timeline: Timeline) -> str:
    return "simulated" if timeline.simulated else "measured"


def _percent(share: Real) -> str:
    return f"{100 * float(share):.1f} %"


def _title(drawn: list[Timeline], formula: float | None) -> str:
    said = [f"{_percent(t.bubble_of_total)} {_how(t)}" for t in drawn]
    if formula is not None:
        said.append(f"{_percent(formula)} by formula")
    return f"Bubble of the total: {', '.join(said)}"


def _heading(timeline: Timeline, unit: str) -> str:
    """What is above a panel: which it is, its bubble, and how long it took."""
    name = f"{_NAMES.get(timeline.name, timeline.name)}, " if timeline.name else ""
    return (
        f"<b>{_how(timeline)}</b>: {name}{timeline.ranks} stages, {timeline.micro_batches} "
        f"micro-batches; bubble {_percent(timeline.bubble_of_total)} of total, "
        f"{_percent(timeline.bubble_of_ideal)} of ideal; {float(timeline.makespan):.4g} {unit}"
    )


def _row_name(timeline: Timeline) -> str:
    """A rank with one stage, its own, is called by the stage."""
    return "stage" if all(s.action.stage == s.rank for s in timeline.spans) else "rank"


def _ranks_table(timeline: Timeline, unit: str) -> Table:
    rows = [
        [f"{_row_name(timeline)} {rank}", float(busy), float(idle), peak]
        for rank, (busy, idle, peak) in enumerate(
            zip(timeline.busy, timeline.idle, timeline.peak_in_flight)
        )
    ]
    return Table(["", f"busy {unit}", f"idle {unit}", "holds at most"], rows)


# -- traces ---------------------------------------------------------------------------------------


class _Panel(NamedTuple):
    """Where a timeline is drawn: its bars' axis, its in-flight axis, their domains, the heading."""

    bars: str  # "y", "y3"
    flight: str
    bars_domain: tuple[float, float]
    flight_domain: tuple[float, float]
    heading: float


def _panels(rows: list[int]) -> tuple[list[_Panel], int]:
    """Panels from the top down for timelines of that many rows, and the pixels they need."""
    total = sum(_HEADING + _ROW * n + _GAP + _FLIGHT for n in rows)
    panels, y = [], float(total)
    for i, n in enumerate(rows):
        heading = y - _HEADING
        bars = (heading - _ROW * n, heading)
        flight = (bars[0] - _GAP - _FLIGHT, bars[0] - _GAP)
        y = flight[0]
        axes = ("y" if i == 0 else f"y{2 * i + 1}", f"y{2 * i + 2}")
        shares = [tuple(max(0.0, edge / total) for edge in pair) for pair in (bars, flight)]
        panels.append(_Panel(*axes, *shares, heading / total))
    return panels, total


def _number(value: Real) -> int | float:
    value = float(value)
    return int(value) if value.is_integer() else round(value, 9)


def _bars(timeline: Timeline, kind: str) -> dict:
    spans = [span for span in timeline.spans if span.action.kind == kind]
    digits = len(str(timeline.micro_batches - 1))
    needed = timeline.makespan * (7 * digits + 5) / _WIDE
    # All numbers of a row or none: with some of them the eye counts wrong.
    tight = {span.rank for span in spans if span.end - span.start < needed}
    places = ["none" if span.rank in tight else "inside" for span in spans]
    return {
        "textposition": places[0] if len(set(places)) == 1 else places,
        "y": [span.rank for span in spans],
        "base": [_number(span.start - timeline.start) for span in spans],
        "x": [_number(span.end - span.start) for span in spans],
        "text": [str(span.action.micro_batch) for span in spans],
    }


def _bar_style(kind: str, axis: str, unit: str) -> dict:
    return {
        "type": "bar",
        "orientation": "h",
        "name": _KINDS[kind],
        "legendgroup": kind,
        "yaxis": axis,
        "width": 0.84,
        "insidetextanchor": "middle",
        "textangle": 0,
        "insidetextfont": {"color": "#ffffff", "size": 12},
        "marker": {"color": TIME[_COLOURS[kind]], "line": _EDGE},
        "hovertemplate": (
            f"%{{y}}, {_KINDS[kind]} of micro-batch %{{text}}<br>"
            f"%{{base:.4~g}} to %{{x:.4~g}} {unit}<extra></extra>"
        ),
    }


def _links(timeline: Timeline, axis: str, unit: str) -> dict:
    """What is under way: a thin bar along the lower edge of the sender's row."""
    moved = [t for t in timeline.transfers if t.end > t.start]
    return {
        "type": "bar",
        "orientation": "h",
        "name": "on its way",
        "yaxis": axis,
        "width": 0.1,
        "y": [t.source + 0.46 for t in moved],
        "base": [_number(t.start - timeline.start) for t in moved],
        "x": [_number(t.end - t.start) for t in moved],
        "text": [f"{t.action} to rank {t.target}" for t in moved],
        "textposition": "none",
        "marker": {"color": TIME["communication"], "line": {"width": 0}},
        "hovertemplate": f"%{{text}}<br>%{{base:.4~g}} to %{{x:.4~g}} {unit}<extra></extra>",
    }


def _held(timeline: Timeline) -> dict:
    """A staircase for each rank, one after the other with gaps between: one trace."""
    x: list = []
    y: list = []
    ranks: list = []
    for rank in range(timeline.ranks):
        # Of several at one time, the last: a micro-batch that follows another at once is no dip.
        steps = {_number(t - timeline.start): held for t, held in timeline.in_flight(rank)}
        x += [*steps, None]
        y += [*steps.values(), None]
        ranks += [*([rank] * len(steps)), None]
    return {"x": x[:-1], "y": y[:-1], "customdata": ranks[:-1]}


def _held_style(axis: str, row: str) -> dict:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "micro-batches held",
        "showlegend": False,
        "yaxis": axis,
        "line": {"color": MEMORY["activations"], "width": 1.5, "shape": "hv"},
        "hovertemplate": f"{row} %{{customdata}} holds %{{y}}<extra></extra>",
    }


def _peaks(timeline: Timeline) -> dict:
    """At the end of each row, the most it holds."""
    return {
        "x": [_number(timeline.makespan)] * timeline.ranks,
        "y": list(range(timeline.ranks)),
        "text": [f"\u2002holds {peak}" for peak in timeline.peak_in_flight],
    }


def _peaks_style(axis: str) -> dict:
    return {
        "type": "scatter",
        "mode": "text",
        "yaxis": axis,
        "textposition": "middle right",
        "textfont": {"size": 12, "color": MEMORY["activations"]},
        "cliponaxis": False,
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _panel_axes(panel: _Panel, ranks: int, row: str, most: int) -> dict:
    """The two y axes of a panel: rows with stage 0 on top, and the count of what is held."""

    def key(axis: str) -> str:
        return f"yaxis{axis[1:]}"

    return {
        key(panel.bars): {
            "domain": panel.bars_domain,
            "range": [ranks - 0.5, -0.5],
            "tickvals": list(range(ranks)),
            "ticktext": [f"{row} {rank}" for rank in range(ranks)],
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
        },
        key(panel.flight): {
            "domain": panel.flight_domain,
            "title": {"text": "held"},
            **_counts(most),
            "zeroline": True,
            "fixedrange": True,
        },
    }


def _counts(most: int) -> dict:
    """An axis from 0 to a number of micro-batches, with whole numbers on it."""
    return {"range": [0, most * 1.06 + 0.12], "dtick": max(1, -(-most // 4)), "tick0": 0}


def _common_layout(title: str, height: int, unit: str, lowest: str) -> dict:
    return {
        "template": template(),
        "title": {"text": title, "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 14}},
        "height": height,
        "barmode": "overlay",
        "uniformtext": {"minsize": 9, "mode": "hide"},
        "margin": {"t": _TOP, "b": _BOTTOM, "l": 72, "r": 66},
        "legend": {"y": 1, "yanchor": "bottom", "x": 1, "xanchor": "right"},
        "xaxis": {"title": {"text": f"time ({unit})"}, "anchor": lowest, "zeroline": False},
        "hovermode": "closest",
    }


def _build(drawn: list[Timeline], title: str, unit: str):
    import plotly.graph_objects as go

    panels, pixels = _panels([timeline.ranks for timeline in drawn])
    layout = _common_layout(title, pixels + _TOP + _BOTTOM, unit, panels[-1].flight)
    longest = max(float(timeline.makespan) for timeline in drawn)
    layout["xaxis"]["range"] = [0, longest * 1.002]
    data, annotations, in_legend = [], [], set()
    for timeline, panel in zip(drawn, panels):
        row = _row_name(timeline)
        for kind in timeline.kinds:
            style = _bar_style(kind, panel.bars, unit)
            style["showlegend"] = kind not in in_legend
            in_legend.add(kind)
            data.append({**style, **_bars(timeline, kind)})
        if any(t.end > t.start for t in timeline.transfers):
            data.append(_links(timeline, panel.bars, unit))
        data.append({**_held_style(panel.flight, row), **_held(timeline)})
        data.append({**_peaks_style(panel.bars), **_peaks(timeline)})
        layout |= _panel_axes(panel, timeline.ranks, row, max(timeline.peak_in_flight))
        annotations.append(_note(_heading(timeline, unit), panel.heading))
    return go.Figure(data=data, layout={**layout, "annotations": annotations})


def _note(text: str, y: float) -> dict:
    return {
        "text": text,
        "x": 0,
        "y": y,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"size": 13},
    }


# -- the sliders ----------------------------------------------------------------------------------


def _slider_finding(name: str, p: int, m: int) -> str:
    return (
        f"<b>{_NAMES.get(name, name)}</b>: bubble {_percent(bubble_of_total(p, m))} of total, "
        f"{_percent(bubble_of_ideal(p, m))} of ideal"
    )


def _build_slider(cases, stages, micro_batches, schedules, first):
    import plotly.graph_objects as go

    rows = 5  # the height is that of five rows, whatever the slider of the stages says
    panels, pixels = _panels([rows] * len(schedules))
    unit = "forwards of one micro-batch"

    def data(m: int) -> list[dict]:
        """All traces' data for m micro-batches, in the order of `styles`."""
        traces = []
        for name in schedules:
            for p in stages:
                case = cases[name, p, m]
                finding = {"x": [0], "y": [-0.5], "text": [_slider_finding(name, p, m)]}
                bars = [_bars(case, kind) for kind in "FB"]
                traces += [*bars, _held(case), _peaks(case), finding]
        return traces

    def styles() -> list[dict]:
        traces = []
        for panel in panels:
            for p in stages:
                bars = [_bar_style(kind, panel.bars, "") for kind in "FB"]
                for style in bars:
                    style["showlegend"] = panel is panels[0]
                finding = {
                    **_peaks_style(panel.bars),
                    "textposition": "top right",
                    "textfont": {"size": 13, "color": TEXT},
                }
                held, peaks = _held_style(panel.flight, "stage"), _peaks_style(panel.bars)
                traces += [
                    {**style, "visible": p == first[0]} for style in [*bars, held, peaks, finding]
                ]
        return traces

    def axes(p: int) -> dict:
        layout = {}
        for panel in panels:
            layout |= _panel_axes(panel, p, "stage", first[1])
        return layout

    def counts(m: int) -> dict:
        """Both schedules on one scale: nothing holds more than m."""
        return {f"yaxis{panel.flight[1:]}": _counts(m) for panel in panels}

    each = 5  # traces of one schedule at one number of stages
    visible = {
        p: [p == other for _ in schedules for other in stages for _ in range(each)] for p in stages
    }
    jump = {
        "mode": "immediate",
        "frame": {"duration": 0, "redraw": True},
        "transition": {"duration": 0},
    }
    kinds = ["bar", "bar", "scatter", "scatter", "scatter"] * (len(schedules) * len(stages))
    frames = [
        {
            "name": str(m),
            "data": [{"type": kind, **trace} for kind, trace in zip(kinds, data(m))],
            "layout": counts(m),
        }
        for m in micro_batches
    ]
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
    sliders = [
        {
            **look,
            "x": 0,
            "active": stages.index(first[0]),
            "currentvalue": {"prefix": "stages: "},
            "steps": [
                {
                    "method": "update",
                    "label": str(p),
                    "args": [{"visible": visible[p]}, _flat(axes(p))],
                }
                for p in stages
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
    height = pixels + _TOP + _BOTTOM + _SLIDERS
    layout = _common_layout(_slider_title(schedules), height, unit, panels[-1].flight)
    layout |= axes(first[0]) | {"sliders": sliders}
    layout["margin"]["b"] = _BOTTOM + _SLIDERS
    layout["xaxis"]["rangemode"] = "tozero"
    begin = data(first[1])
    return go.Figure(
        data=[{**style, **values} for style, values in zip(styles(), begin)],
        frames=frames,
        layout=layout,
    )


def _flat(axes: dict) -> dict:
    """What differs between numbers of stages, as {"yaxis.range": ...}: the rest stays as it is."""
    kept = ("range", "tickvals", "ticktext")
    return {
        f"{name}.{key}": axis[key]
        for name, axis in axes.items()
        if "tickvals" in axis
        for key in kept
    }
