"""What somebody who watches a run looks at, in panels: who comes late, the gradient's norm, the
memory of the processes, the loss scale, and what was found.

Each is there only where the run has its data: lateness with several ranks, the loss scale if it
ever was another than 1, the findings once there are some. Two stand side by side, the findings
below them in the whole width. A bar goes from when something was first seen until it was resolved,
a triangle is one moment; the words are above it, whole on hover. `drawn`, `traces`, `axes` and
`domains` are what the dashboard puts under its other panels, also while the run goes on; `marks`
are the same findings on the step axis of the loss.

Lateness has a fixed range, 0 to 30 % of a step, so that a colour means the same in every run and
one pause of a second does not bleach what is always there.
"""

import html
import math
import statistics
from typing import NamedTuple

from picolab.monitoring.panels_figure import panels_figure
from picolab.monitoring.run_state import RunState
from picolab.monitoring.watch import NOTICED, Finding, Watch
from picolab.show.picture import BLUE, GREY, OCHRE, RED, RUST, TEXT, LabFigure, broken
from picolab.show.table import Table, bytes_text

LATE, NORM, MEMORY, SCALE, FINDINGS = range(5)
AXES = 5
LATEST = 30.0  # % of a step: a darker place means no more than this
ROWS = 8  # findings drawn, the newest
_PANEL, _ROW, _BETWEEN = 170, 38, 96  # pixels: a panel, a finding, from a panel to the one below
_NOTICEABLE = 6.0  # % of a step
_LETTERS = 74  # of a finding above its bar
_SHADES = [[0.0, "rgba(178,83,42,0.04)"], [0.4, "rgba(178,83,42,0.45)"], [1.0, "rgba(178,83,42,1)"]]
_STATES = {"pending": OCHRE, "held back": "rgba(106,111,120,0.35)", "firing": RED, "over": GREY}


class Shape(NamedTuple):
    """What the layout depends on."""

    there: tuple[int, ...]
    """Which of the panels."""
    ranks: int
    rows: int


class Drawn(NamedTuple):
    """What the panels show now: the traces' data, in their order, and the titles."""

    traces: list[dict]
    titles: list[str]
    shape: Shape | None
    """None: nothing to draw."""
    marks: dict
    last: int
    """The step at which the axis of the findings ends: a round one."""


def nothing() -> Drawn:
    empty = [{"x": _array([]), "y": _array([])} for _ in traces()]
    return Drawn(empty, [""] * AXES, None, {"x": _array([]), "y": _array([]), "hovertext": []}, 1)


def drawn(state: RunState, covered: bool = False) -> Drawn:
    """Of a run that is watched. covered: nothing is to be seen yet."""
    watch = state.watch
    if covered:
        return nothing()
    findings = watch.findings()
    late, who = _late(watch)
    norms, scales = _line(watch.grad_norms), _line(watch.loss_scales)
    scaled = watch.scaled
    held, held_title = _resident(watch)
    bars, listed, last = _bars(findings[-ROWS:], state.last_step)
    there = {LATE: bool(late), NORM: bool(watch.grad_norms), MEMORY: bool(held), SCALE: scaled,
             FINDINGS: bool(findings)}  # fmt: skip
    blank = {"x": _array([]), "y": _array([])}
    found = [
        late or blank,
        norms,
        held or blank,
        scales if scaled else blank,
        _line(watch.overflows) if scaled else blank,
        *bars,
        listed,
    ]
    titles = [who, _norm_title(watch), held_title, _scale_title(watch), _findings_title(findings)]
    present = tuple(panel for panel in range(AXES) if there[panel])
    ranks = len(late["y"]) if late else 0
    shape = Shape(present, ranks, min(ROWS, len(findings))) if present else None
    return Drawn(found, titles, shape, marks(watch), last)


def marks(watch: Watch) -> dict:
    """On the step axis of the loss: one for each step (of a long run, for a few) with findings."""
    kept = watch.marks.items()
    texts = []
    for _, (count, said) in kept:
        more = [f"and {count - len(said)} more"] * (count > len(said))
        texts.append("<br>".join(plain(text, 60) for text in (*said, *more)))
    steps = [step for step, _ in kept]
    return {"x": _array(steps), "y": _array([0.0] * len(steps)), "hovertext": texts}


def plain(text: str, letters: int) -> str:
    """In lines, and nothing in it is taken for plotly's own bold or links."""
    return broken(html.escape(text, quote=False), letters)


def _late(watch: Watch) -> tuple[dict | None, str]:
    columns = watch.detector.late.items()
    if not columns:
        return None, ""
    ranks = sorted(set().union(*(of for _, of in columns)))
    shares = [[_percent(of.get(rank)) for _, of in columns] for rank in ranks]
    # Not of the columns: of a long run each has the latest of many steps, a pause of any of them.
    now = watch.detector.late_now
    newest = {
        rank: statistics.median([_percent(of[rank]) for of in now if rank in of] or [0.0])
        for rank in ranks
    }
    latest = max(newest, key=newest.__getitem__)
    title = "no rank comes late"
    if newest[latest] > _NOTICEABLE:
        title = f"rank {latest} comes {newest[latest]:.0f} % of a step late"
    import numpy

    # A live figure sends a map as text, which has no word for nan: None is an empty place.
    z = numpy.asarray(shares, dtype=object)
    steps = [step for step, _ in columns]
    return {"x": _array(steps), "y": [f"rank {rank}" for rank in ranks], "z": z}, title


def _percent(share: float | None) -> float | None:
    """One decimal: it travels as text. Who comes before the others is not late."""
    return None if share is None else round(100 * max(0.0, share), 1)


def _line(series) -> dict:
    x, y = series.points()
    return {"x": _array(x), "y": _array([v if math.isfinite(v) else math.nan for v in y])}


def _norm_title(watch: Watch) -> str:
    if not watch.grad_norms:
        return ""
    steps, values = watch.grad_norms.points()
    finite = [(value, step) for step, value in zip(steps, values) if math.isfinite(value)]
    title = f"gradient norm {values[-1]:.3g}"
    if finite and max(finite)[0] > 2 * statistics.median(value for value, _ in finite):
        title += f"; {max(finite)[0]:.3g} at step {max(finite)[1]}"
    return title


def _scale_title(watch: Watch) -> str:
    if not watch.loss_scales:
        return ""
    times = len(watch.overflows)
    overflows = f"; {times} overflow{'s' * (times > 1)} ▼" if times else ""
    return f"loss scale {watch.loss_scales[watch.loss_scales.last]:,.0f}{overflows}"


def _resident(watch: Watch) -> tuple[dict | None, str]:
    """Lines with gaps between them; the rank with most has its name at the end."""
    columns = watch.resident.items()
    if not columns:
        return None, ""
    ranks = sorted(set().union(*(of for _, of in columns)))
    newest = {rank: next(of[rank] for _, of in reversed(columns) if rank in of) for rank in ranks}
    most = max(newest, key=newest.__getitem__)
    x, y, text = [], [], []
    for rank in ranks:
        told = [(step, of[rank]) for step, of in columns if rank in of]
        every = max(1, 8 * len(ranks) * len(told) // 3200)  # all lines together: 400 points or so
        told = [*told[:-1:every], told[-1]]
        x += [*(step for step, _ in told), math.nan]
        y += [*(size / 1e6 for _, size in told), math.nan]
        text += [*[""] * (len(told) - 1), f"rank {rank}" if rank == most else "", ""]
    title = f"process memory: rank {most} has most, {bytes_text(newest[most])}"
    return {"x": _array(x), "y": _array(y), "text": text}, title


def _findings_title(findings: list[Finding]) -> str:
    if not findings:
        return ""
    firing = sum(finding.state == "firing" for finding in findings)
    many = len(findings)
    title = f"{many} finding{'s' * (many > 1)}"
    if any(finding.state != NOTICED for finding in findings):
        title = f"{firing} alert{'s' * (firing != 1)} firing, {many} in all"
    return title + (f"; the newest {ROWS}" if many > ROWS else "")


def _bars(findings: list[Finding], last: int) -> tuple[list[dict], dict, int]:
    """The bars of each state, the moments, and the words; and where the axis ends."""
    ends = [step for f in findings for step in (f.begin, f.fired, f.end) if step is not None]
    last = max([last, 1, *ends])
    lines = {state: ([], []) for state in _STATES}
    moments: tuple[list, list, list] = ([], [], [])
    for row, f in enumerate(findings):
        begin = last if f.begin is None else f.begin
        if f.state == NOTICED:
            for values, value in zip(moments, (begin, row, plain(_said(f), 60))):
                values.append(value)
            continue
        end = last if f.end is None else f.end
        fired = end if f.fired is None else f.fired
        first = "held back" if f.cause else "pending"
        then = "firing" if f.state == "firing" else "over"
        for state, start, stop in ((first, begin, fired), (then, fired, end)):
            if stop > start or (state == then and f.fired is not None):
                lines[state][0].extend([start, max(stop, start + last / 200), math.nan])
                lines[state][1].extend([row, row, math.nan])
    bars = [{"x": _array(x), "y": _array(y)} for x, y in lines.values()]
    x, y, hover = moments
    bars.append({"x": _array(x), "y": _array(y), "hovertext": hover})
    rows = _array([row - 0.42 for row in range(len(findings))])
    words = [html.escape(_short(_said(f)), quote=False) for f in findings]
    listed = {"x": _array([0.0] * len(findings)), "y": rows, "text": words}
    listed["hovertext"] = [plain(_said(f), 60) for f in findings]
    unit = 10 ** max(1, len(str(last)) - 2)  # it changes seldom
    return bars, listed, -(-last // unit) * unit


def _said(f: Finding) -> str:
    when = "" if f.begin is None else f"step {f.begin}, "
    held = f" (held back: {f.cause})" if f.cause else ""
    state = "" if f.state == NOTICED else f"{f.state} "
    return f"{when}{state}{f.name}: {f.said}{held}"


def _short(text: str) -> str:
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}…"


def _array(values):
    import numpy

    return numpy.asarray(list(values), dtype=float)


def traces() -> list[tuple[int, dict]]:
    """(panel, trace) without data, in the order of `Drawn.traces`."""
    line = {"type": "scatter", "mode": "lines", "showlegend": False, "cliponaxis": False}
    late = {
        "type": "heatmap",
        "zmin": 0.0,
        "zmax": LATEST,
        "colorscale": _SHADES,
        "showscale": False,
        "ygap": 2,
        "hovertemplate": "step %{x}, %{y}: %{z:.1f} % of a step late<extra></extra>",
    }
    norm = {
        **line,
        "line": {"color": BLUE, "width": 1.5},
        "hovertemplate": "step %{x}: gradient norm %{y:.4g}<extra></extra>",
    }
    held = {
        **line,
        "mode": "lines+text",
        "line": {"color": BLUE, "width": 1.5},
        "textposition": "top left",
        "textfont": {"size": 12, "color": TEXT},
        "hovertemplate": "step %{x}: %{y:,.1f} MB<extra></extra>",
    }
    scale = {
        **line,
        "line": {"color": BLUE, "width": 1.5, "shape": "hv"},
        "hovertemplate": "step %{x}: loss scale %{y:,.0f}<extra></extra>",
    }
    overflow = {
        **line,
        "mode": "markers",
        "marker": {"symbol": "triangle-down", "size": 10, "color": RUST},
        "hovertemplate": "step %{x} was skipped: overflow at %{y:,.0f}<extra></extra>",
    }
    bars = [
        {
            **line,
            "line": {"color": color, "width": 9},
            "hovertemplate": f"{state}: step %{{x}}<extra></extra>",
        }
        for state, color in _STATES.items()
    ]
    moments = {**_MARK, "hoverinfo": "text"}
    words = {
        **line,
        "mode": "text",
        "textposition": "middle right",
        "textfont": {"size": 12, "color": TEXT},
        "hoverinfo": "text",
    }
    found = [(LATE, late), (NORM, norm), (MEMORY, held), (SCALE, scale), (SCALE, overflow)]
    return found + [(FINDINGS, trace) for trace in (*bars, moments, words)]


_MARK = {
    "type": "scatter",
    "mode": "markers",
    "marker": {"symbol": "triangle-up", "size": 11, "color": RUST},
    "cliponaxis": False,
    "showlegend": False,
}
MARKS = {**_MARK, "hoverinfo": "text", "name": "findings"}


def axes(shape: Shape | None, last: int = 1) -> list[tuple[dict, dict]]:
    """The x and y axis of each panel. last: `Drawn.last`."""
    step = {"title": {"text": "step"}, "tickformat": ",~r", "nticks": 6, "rangemode": "tozero"}
    of_map = {**step, "showgrid": False, "zeroline": False, "rangemode": "normal"}
    ranks = {"type": "category", "autorange": "reversed", "showgrid": False}
    norm = {"type": "log", "nticks": 5, "tickformat": ".2~g"}
    held = {"title": {"text": "MB"}, "nticks": 5}
    scale = {"type": "log", "nticks": 5, "tickformat": ",.6~r"}
    rows = {
        "range": [(shape.rows if shape else 1) - 0.6, -0.8],
        "tickvals": list(range(shape.rows if shape else 1)),
        "showticklabels": False,
        "zeroline": False,
        "fixedrange": True,
    }
    # The words begin at its left end, wherever a reader zooms.
    until = {**step, "range": [0, last], "showgrid": False, "fixedrange": True}
    return [(of_map, ranks), (step, norm), (step, held), (step, scale), (until, rows)]


def height(shape: Shape | None) -> int:
    """Of all panels together, in pixels."""
    if shape is None:
        return _PANEL  # of axes that nobody sees
    pairs = -(-sum(panel != FINDINGS for panel in shape.there) // 2)
    listed = _ROW * shape.rows if FINDINGS in shape.there else 0
    blocks = pairs + bool(listed)
    return pairs * _PANEL + listed + (blocks - 1) * _BETWEEN


def domains(low: float, high: float, left: list, right: list, shape: Shape | None = None) -> list:
    """Where the panels are, (x, y), between these heights of the figure: two side by side, in
    order of those that are there; the findings at the bottom."""
    found = [(left, [low, high])] * AXES
    if shape is None:
        return found
    pixel = (high - low) / height(shape)
    top, beside = high, 0
    for panel in shape.there:
        if panel == FINDINGS:
            continue
        found[panel] = ((left, right)[beside], [top - _PANEL * pixel, top])
        beside = 1 - beside
        top -= 0 if beside else (_PANEL + _BETWEEN) * pixel
    if FINDINGS in shape.there:
        found[FINDINGS] = ([0.0, 1.0], [low, low + _ROW * shape.rows * pixel])
    return found


def text(state: RunState) -> str:
    """The titles, and the findings as a table; nothing where there is nothing to draw."""
    return watch_figure(state).text if drawn(state).shape is not None else ""


def findings_table(watch: Watch) -> Table:
    rows = [
        ["" if f.begin is None else f.begin, f.state, f.name, "" if f.rank is None else f.rank,
         f.said]
        for f in watch.findings()
    ]  # fmt: skip
    return Table(["step", "state", "what", "rank", "in words"], rows)


def watch_figure(state: RunState, panel: int | None = None) -> LabFigure:
    """The panels as a figure of their own, or one of them. ValueError where there is nothing to
    draw."""
    shown = nothing() if state.watch is None else drawn(state)
    if shown.shape is not None and panel is not None:
        there = tuple(one for one in shown.shape.there if one == panel)
        shown = shown._replace(shape=shown.shape._replace(there=there) if there else None)
    if shown.shape is None:
        raise ValueError(f"this run has told nothing of it: {_WHY[panel]}")

    def build():
        right = [0.0, 1.0] if len(shown.shape.there) == 1 else [0.54, 1.0]
        left = [0.0, 1.0] if len(shown.shape.there) == 1 else [0.0, 0.44]
        places = domains(0.0, 1.0, left, right, shown.shape)
        figure = panels_figure(
            traces(), shown.traces, shown.titles, axes(shown.shape, shown.last), places,
            height=height(shown.shape) + 130, margin={"t": 84},
        )  # fmt: skip
        return _without_absent(figure, shown.shape)

    lines = [shown.titles[panel] for panel in shown.shape.there]
    if FINDINGS in shown.shape.there:
        lines.append(repr(findings_table(state.watch)))
    return LabFigure("\n".join(lines), build)


_WHY = {
    None: "it is not watched, or no step is over",
    LATE: "it takes two ranks that have told some steps, and experts that are not dealt out",
    NORM: "no step is over",
    MEMORY: "no step is over, or this system does not say what a process has in memory",
    SCALE: "its loss was never multiplied by anything; precision='fp16' does that",
    FINDINGS: "nothing was out of the ordinary",
}


def _without_absent(figure, shape: Shape):
    """A live figure needs a place for what may still come; one that is finished does not."""
    import plotly.graph_objects as go

    numbers = {"" if panel == 0 else str(panel + 1) for panel in shape.there}
    data = [trace for trace in figure.data if trace.xaxis[1:] in numbers]
    layout = figure.to_dict()["layout"]
    for panel in set(range(AXES)) - set(shape.there):
        number = "" if panel == 0 else str(panel + 1)
        del layout[f"xaxis{number}"], layout[f"yaxis{number}"]
    layout["annotations"] = [layout["annotations"][panel] for panel in shape.there]
    return go.Figure(data=data, layout=layout)
