"""The pipeline's Gantt chart: what each stage did when, and what it held meanwhile.

`gantt` draws a `Timeline`: a row for each stage with stage 0 on top, a bar for each action, and
beneath it how many micro-batches each stage holds. A simulated and a measured one are drawn by the
same function, one above the other on one time axis, and the face of each says which it is. Where a
rank has several stages, a row is a rank and the bars of its later stages are lower. Where the
backward is split, its two halves have colours of their own.

The lesson before that, with sliders, is `schedule_slider` in the file beside; it is made of the
same pieces.
"""

from collections.abc import Iterable
from numbers import Real
from typing import NamedTuple

from picolab.schedules import Span, Timeline
from picolab.show.picture import LETTERS, MEMORY, TEXT, TIME, LabFigure, broken, ink, template
from picolab.show.table import Table

MAX_RANKS = 64

_ROW = 30  # pixels of a stage's row
_LANE = 18  # of a stage's lane in what is held
_GAP, _HEADING = 16, 34
_LINE = 17  # of a heading that has a second one
TOP, BOTTOM = 56, 52
_WIDE = 780  # pixels of the time axis where the figure is as wide as a notebook's page
_KINDS = {"F": "forward", "B": "backward", "W": "backward, weights"}
_COLOURS = {"F": "forward", "B": "backward-input", "W": "backward-weight"}
NAMES = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved": "interleaved 1F1B",
    "zb-h1": "ZB-H1",
    "zb-v": "ZB-V",
    "dualpipe-v": "DualPipeV",
}
_TALL, _LOW = 0.84, 0.6  # of a row: bars of a rank's first stage and of its last
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


# -- text -----------------------------------------------------------------------------------------


def _timeline(source: Timeline | Iterable[Span]) -> Timeline:
    return source if isinstance(source, Timeline) else Timeline(source)


def _how(timeline: Timeline) -> str:
    return "simulated" if timeline.simulated else "measured"


def percent(share: Real) -> str:
    return f"{100 * float(share):.1f} %"


def _title(drawn: list[Timeline], formula: float | None) -> str:
    said = [f"{percent(t.bubble_of_total)} {_how(t)}" for t in drawn]
    if formula is not None:
        said.append(f"{percent(formula)} by formula")
    return f"Bubble of the total: {', '.join(said)}"


def _heading(timeline: Timeline, unit: str) -> str:
    """What is above a panel: which it is, its bubble, and how long it took."""
    name = f"{NAMES.get(timeline.name, timeline.name)}, " if timeline.name else ""
    several = sum(map(len, timeline.stages)) > timeline.ranks
    return (
        f"<b>{_how(timeline)}</b>: {name}{_sizes(timeline)}, {timeline.micro_batches} "
        f"micro-batches<br>bubble {percent(timeline.bubble_of_total)} of total, "
        f"{percent(timeline.bubble_of_ideal)} of ideal; {float(timeline.makespan):.4g} {unit}"
        f"{'; later stages lower' * several}"
    )


def _sizes(timeline: Timeline) -> str:
    stages = sum(map(len, timeline.stages))
    if stages == timeline.ranks:
        return f"{stages} stages"
    return f"{timeline.ranks} ranks, {stages} stages"


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


def place(rows: list[int], lines: int = 1) -> tuple[list[_Panel], int]:
    """Panels from the top down for timelines of that many rows, with that many lines above each,
    and the pixels they need."""
    above = _HEADING + _LINE * (lines - 1)
    total = sum(above + _ROW * n + _GAP + _LANE * n for n in rows)
    panels, y = [], float(total)
    for i, n in enumerate(rows):
        heading = y - above
        bars = (heading - _ROW * n, heading)
        flight = (bars[0] - _GAP - _LANE * n, bars[0] - _GAP)
        y = flight[0]
        axes = ("y" if i == 0 else f"y{2 * i + 1}", f"y{2 * i + 2}")
        shares = [tuple(max(0.0, edge / total) for edge in pair) for pair in (bars, flight)]
        panels.append(_Panel(*axes, *shares, heading / total))
    return panels, total


def _number(value: Real) -> int | float:
    value = float(value)
    return int(value) if value.is_integer() else round(value, 9)


def bars_of(timeline: Timeline, kind: str) -> dict:
    spans = [span for span in timeline.spans if span.action.kind == kind]
    digits = len(str(timeline.micro_batches - 1))
    needed = timeline.makespan * (7 * digits + 5) / _WIDE
    # All numbers of a row or none: with some of them the eye counts wrong.
    tight = {span.rank for span in spans if span.end - span.start < needed}
    places = ["none" if span.rank in tight else "inside" for span in spans]
    return {
        **_heights(timeline, spans),
        "textposition": places[0] if len(set(places)) == 1 else places,
        "y": [span.rank for span in spans],
        "base": [_number(span.start - timeline.start) for span in spans],
        "x": [_number(span.end - span.start) for span in spans],
        "text": [str(span.action.micro_batch) for span in spans],
    }


def _heights(timeline: Timeline, spans: list[Span]) -> dict:
    """Lower bars for a rank's later stages, and the stage for the pointer, if any has several."""
    several = max(map(len, timeline.stages)) - 1
    if not several:
        return {}
    places = [timeline.stages[span.rank].index(span.action.stage) for span in spans]
    return {
        "width": [_TALL - (_TALL - _LOW) * place / several for place in places],
        "customdata": [f", stage {span.action.stage}" for span in spans],
    }


def bar_style(kind: str, axis: str, unit: str, kinds: str = "FB", several: bool = False) -> dict:
    """kinds: all that occur, since B is half a backward where there is W. several: a rank has
    several stages."""
    name = "backward, inputs" if kind == "B" and "W" in kinds else _KINDS[kind]
    stage = "%{customdata}" if several else ""
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "legendgroup": kind,
        "yaxis": axis,
        "width": _TALL,
        "insidetextanchor": "middle",
        "textangle": 0,
        "insidetextfont": {"color": ink(TIME[_COLOURS[kind]]), "size": 12},
        "marker": {"color": TIME[_COLOURS[kind]], "line": _EDGE},
        "hovertemplate": (
            f"%{{y}}{stage}, {name} of micro-batch %{{text}}<br>"
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
        "legendgroup": "links",
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


def held_by(timeline: Timeline, most: Real, stages: int = 1) -> dict:
    """A staircase for each rank in a lane of its own, `most` as high as the lane: one trace, with
    gaps between. stages: of a rank, if a micro-batch counts as one when all of them hold it."""
    x: list = []
    y: list = []
    said: list = []
    for rank in range(timeline.ranks):
        # Of several at one time, the last: a micro-batch that follows another at once is no dip.
        steps = {
            _number(t - timeline.start): _number(held / stages)
            for t, held in timeline.in_flight(rank)
        }
        foot = next(iter(steps))  # from the lane's floor, so that what is below is filled
        x += [foot, *steps, None]
        y += [rank + 0.44, *(round(rank + 0.44 - 0.88 * n / most, 4) for n in steps.values()), None]
        said += [[rank, 0], *([rank, held] for held in steps.values()), None]
    return {"x": x[:-1], "y": y[:-1], "customdata": said[:-1]}


def held_style(axis: str, row: str) -> dict:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "micro-batches held",
        "showlegend": False,
        "yaxis": axis,
        "line": {"color": MEMORY["activations"], "width": 1, "shape": "hv"},
        "fill": "toself",
        "hoveron": "points",
        "hovertemplate": f"{row} %{{customdata[0]}} holds %{{customdata[1]}}<extra></extra>",
    }


def peaks_of(timeline: Timeline) -> dict:
    """At the end of each row, the most it holds."""
    return {
        "x": [_number(timeline.makespan)] * timeline.ranks,
        "y": list(range(timeline.ranks)),
        "text": [f"\u2002holds {peak}" for peak in timeline.peak_in_flight],
    }


def peaks_style(axis: str) -> dict:
    return {
        "type": "scatter",
        "mode": "text",
        "yaxis": axis,
        "textposition": "middle right",
        "textfont": {"size": 12, "color": TEXT},
        "cliponaxis": False,
        "hoverinfo": "skip",
        "showlegend": False,
    }


def panel_axes(panel: _Panel, ranks: int, row: str) -> dict:
    """The two y axes of a panel, rows with stage 0 on top: the bars, and what is held."""

    def key(axis: str) -> str:
        return f"yaxis{axis[1:]}"

    rows = {
        "range": [ranks - 0.5, -0.5],
        "tickvals": list(range(ranks)),
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
    }
    return {
        key(panel.bars): {
            **rows,
            "domain": panel.bars_domain,
            "ticktext": [f"{row} {rank}" for rank in range(ranks)],
            "ticklabelstandoff": 5,
        },
        key(panel.flight): {
            **rows,
            "domain": panel.flight_domain,
            "ticktext": [f"held by {rank}" for rank in range(ranks)],
            "tickfont": {"size": 11},
            "ticklabelstandoff": 5,
        },
    }


def common_layout(title: str, height: int, unit: str, lowest: str) -> dict:
    return {
        "template": template(),
        "title": {
            "text": broken(title, LETTERS),
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 14},
        },
        "height": height,
        "barmode": "overlay",
        "uniformtext": {"minsize": 9, "mode": "hide"},
        "margin": {"t": TOP, "b": BOTTOM, "l": 72, "r": 66},
        "legend": {"y": 1, "yanchor": "bottom", "x": 1, "xanchor": "right"},
        "xaxis": {"title": {"text": f"time ({unit})"}, "anchor": lowest, "zeroline": False},
        "hovermode": "closest",
    }


def _build(drawn: list[Timeline], title: str, unit: str):
    import plotly.graph_objects as go

    panels, pixels = place([timeline.ranks for timeline in drawn], lines=2)
    layout = common_layout(title, pixels + TOP + BOTTOM, unit, panels[-1].flight)
    longest = max(float(timeline.makespan) for timeline in drawn)
    most = max(max(timeline.peak_in_flight) for timeline in drawn)  # one scale for both
    layout["xaxis"]["range"] = [0, longest * 1.002]
    data, annotations, in_legend = [], [], set()
    for timeline, panel in zip(drawn, panels):
        row = _row_name(timeline)
        for kind in timeline.kinds:
            several = max(map(len, timeline.stages)) > 1
            style = bar_style(kind, panel.bars, unit, timeline.kinds, several)
            style["showlegend"] = kind not in in_legend
            in_legend.add(kind)
            data.append({**style, **bars_of(timeline, kind)})
        if any(t.end > t.start for t in timeline.transfers):
            style = {"showlegend": "links" not in in_legend}
            in_legend.add("links")
            data.append({**style, **_links(timeline, panel.bars, unit)})
        data.append({**held_style(panel.flight, row), **held_by(timeline, most)})
        data.append({**peaks_style(panel.bars), **peaks_of(timeline)})
        layout |= panel_axes(panel, timeline.ranks, row)
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
