"""Figures of a run, made from its events: loss, speed, where a step goes, what travels, and the
four together.

Each builder takes a list of events, a `RunState`, or anything with `.events` (a result, a job),
and returns a `LabFigure`. A figure's title is what it found, not what it shows. `panels` gives
the same four panels as plain arrays, in a fixed order of traces, which is what the live dashboard
assigns at each paint. Below them come more where a run has told of them: the newest step in time
(activity_figure.py, a pipeline), the experts (experts_figure.py), the format of each layer
(precision_figure.py), and where bytes go (memory_figure.py); and, of a run that is watched
(`RunState(watch=True)`), who comes late and what was found (watch_figure.py), with marks on the
loss.

The figures of a schedule (`gantt`, `schedule_slider`, `schedule_figure`) live beside this file and
are offered here too.
"""

import math
from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple

from picolab.monitoring import experts_figure, memory_figure, precision_figure, watch_figure
from picolab.monitoring.activity import Activity
from picolab.monitoring.activity_figure import (
    MAX_BARS,
    ROW,
    activity_figure,
)
from picolab.monitoring.activity_figure import arrays as activity_arrays
from picolab.monitoring.activity_figure import axes as activity_axes
from picolab.monitoring.activity_figure import traces as activity_traces
from picolab.monitoring.alert_history import read_history
from picolab.monitoring.gantt_figure import gantt
from picolab.monitoring.history import History
from picolab.monitoring.panels_figure import panel_title
from picolab.monitoring.run_state import RunState, decimate
from picolab.monitoring.schedule_figure import schedule_figure
from picolab.monitoring.schedule_slider import schedule_slider
from picolab.show.picture import (
    BLUE,
    GREY,
    LETTERS,
    TEXT,
    TIME,
    LabFigure,
    broken,
    pattern,
    template,
)
from picolab.show.table import Table, bytes_text

__all__ = [
    "LabFigure",
    "Panels",
    "activity_figure",
    "experts",
    "gantt",
    "ledger_figure",
    "loss_figure",
    "memory",
    "panels",
    "precision",
    "schedule_figure",
    "schedule_slider",
    "split_figure",
    "throughput_figure",
    "training_figure",
]

HEIGHT = 300  # of one panel's figure, in pixels
_ROWS = 8  # reasons drawn; the rest are summed in one row
_SMOOTH_FROM = 40  # points: fewer need no smoothed line


Losses = Mapping[str, Mapping[int, float]]  # name of a run -> step -> loss


class Panels(NamedTuple):
    """What the four panels show now: ten traces' arrays, in the order of `_traces`, and the
    titles.
    """

    traces: list[dict]
    titles: list[str]
    activity: Activity | None
    """The newest step in time, of a run with a pipeline: a fifth panel below the four."""
    ghosts: dict
    """Losses of earlier runs, one trace behind the loss."""
    experts: experts_figure.Drawn
    """Of a model with experts three more panels, below those; else empty ones."""
    precision: precision_figure.Drawn
    """Of a run with adaptive precision two more, below those; else empty ones."""
    memory: memory_figure.Drawn
    """Of a run whose memory is looked at two more, below those; else empty ones."""
    watch: watch_figure.Drawn | None
    """Of a run that is watched some more, below all others, and marks on the loss."""

    @property
    def below(self) -> list["_Section"]:
        """The groups of panels below the newest step, from top to bottom."""
        experts, formats, bytes_, watched = self.experts, self.precision, self.memory, self.watch
        found = [
            _Section(experts_figure, experts, experts.layers, 64, experts_figure.HEIGHT),
            _Section(precision_figure, formats, formats.layers, 92, precision_figure.HEIGHT),
            _Section(memory_figure, bytes_, bytes_.ranks, 92, memory_figure.HEIGHT),
        ]
        if watched is not None:
            height = watch_figure.height(watched.shape)
            found.append(_Section(watch_figure, watched, watched.shape, 92, height))
        return found


class _Section(NamedTuple):
    """A group of panels that only some runs have."""

    module: ModuleType
    drawn: NamedTuple
    shape: object
    """What its axes depend on; nothing in it: it is not there."""
    above: int
    """pixels, for the titles"""
    height: int

    def domains(self, low: float, high: float) -> list:
        if self.module is watch_figure:
            return watch_figure.domains(low, high, _LEFT, _RIGHT, self.shape)
        return self.module.domains(low, high, _LEFT, _RIGHT)

    @property
    def there(self) -> list[bool]:
        """Of each of its panels."""
        if self.module is watch_figure and self.shape:
            return [panel in self.shape.there for panel in range(watch_figure.AXES)]
        return [bool(self.shape)] * self.module.AXES

    def letters(self, panel: int) -> int:
        """In a line of the panel's title."""
        whole = self.module is watch_figure and panel == watch_figure.FINDINGS
        return LETTERS if whole else _TITLE


def panels(source, covers: str = "", beside: Losses | None = None) -> Panels:
    """The arrays and titles of the loss, speed, split and ledger panels. With `covers`, the two
    lower panels are empty, and this is what they say. `beside` are earlier runs' losses by name.
    """
    state = run_state(source)
    shown = RunState() if covers else state
    drawn = [_loss(state), _speed(state), _split(shown), _ledger(shown)]
    if covers:
        drawn[2:] = [(traces, covers) for traces, _ in drawn[2:]]
    activity = shown.pipeline_step()
    if activity is not None and len(activity.intervals) > MAX_BARS:
        activity = None
    titles = [title for _, title in drawn]
    titles += [activity.sentence()] if activity else []
    traces = [trace for traces, _ in drawn for trace in traces]
    return Panels(
        traces,
        titles,
        activity,
        _ghosts(beside),
        experts_figure.drawn(shown.experts),
        precision_figure.drawn(shown.precision),
        memory_figure.drawn(shown.memory),
        watch_figure.drawn(state, bool(covers)) if state.watch is not None else None,
    )


def loss_figure(source) -> LabFigure:
    state = run_state(source)
    return _single(state, 0, steps_table)


def throughput_figure(source) -> LabFigure:
    state = run_state(source)
    return _single(state, 1, steps_table)


def split_figure(source) -> LabFigure:
    """Where a step goes, for each rank: compute, communication, waiting for others, bubble."""
    state = run_state(source)
    return _single(state, 2, split_table)


def ledger_figure(source) -> LabFigure:
    """Payload bytes of one rank in one step, by reason."""
    state = run_state(source)
    return _single(state, 3, traffic_table)


def experts(source) -> LabFigure:
    """Who is asked, what is dropped, what unevenness costs. ValueError without experts."""
    return experts_figure.experts_figure(run_state(source).experts)


def precision(source) -> LabFigure:
    """Each layer's format, step by step, and what it saves. ValueError without adaptive
    precision."""
    return precision_figure.precision_figure(run_state(source).precision)


def memory(source) -> LabFigure:
    """A step's live bytes in time, by category, and each rank's at its peak. ValueError without a
    `MemoryMonitor`."""
    return memory_figure.memory_figure(run_state(source).memory)


def training_figure(
    source, covers: str = "", beside: Losses | None = None, headed: bool = True
) -> LabFigure:
    """The four panels together, under the sentence that says where the run is. With `covers`, the
    two lower ones say only this, in the picture and in the text. `beside`: the losses of earlier
    runs by name, drawn in grey. Without `headed` the sentence is in the text only.
    """
    state = run_state(source)
    text = training_text(state, covers, beside)
    heading = state.sentence(bool(covers)) if headed else ""
    return LabFigure(text, lambda: _training(state, covers, beside, heading))


def run_state(source, watch: bool = False) -> RunState:
    """A RunState of whatever carries events. watch: with what a monitor looks at, and the alerts
    that one has left in the run's folder. (Given a RunState, that one.)"""
    if isinstance(source, RunState):
        return source
    events = getattr(source, "events", source)
    state = RunState(world_size=getattr(source, "world_size", None), watch=watch)
    if isinstance(events, History):
        events.tell(state)
    else:
        for event in list(events):
            state.add(event)
    if not hasattr(source, "state") and state.state == "running":
        state.state = "done"  # a result, or a list that was kept: nothing more will come
    folder = getattr(source, "run_dir", None)
    if watch and folder is not None:
        for transition in read_history(folder):
            state.watch.alert(transition)
    return state


# -- the text forms -------------------------------------------------------------------------------


def steps_table(state: RunState, rows: int = 10) -> Table:
    """About ten steps of the run, the first and the last among them."""
    steps = sorted({*state.losses, *state.tokens_per_s})
    chosen = sorted({round(i * (len(steps) - 1) / max(1, rows - 1)) for i in range(rows)})
    picked = [steps[i] for i in chosen] if steps else []
    values = [[s, state.losses.get(s), _whole(state.tokens_per_s.get(s))] for s in picked]
    return Table(["step", "loss", "tokens/s"], values)


def split_table(state: RunState) -> Table:
    rows = [
        [f"rank {rank}", *(round(1e3 * part, 3) for part in parts)]
        for rank, parts in state.split().items()
    ]
    return Table(["", "compute ms", "communication ms", "waiting ms", "bubble ms"], rows)


def traffic_table(state: RunState) -> Table:
    rows = [[r, _exact(count), _exact(size)] for r, (count, size) in state.traffic().items()]
    return Table(["reason", "collectives", "payload bytes"], rows)


def training_text(state: RunState, covers: str = "", beside: Losses | None = None) -> str:
    drawn = panels(state, covers, beside)
    tables = [steps_table(state), None, split_table(state), traffic_table(state)]
    if covers:
        tables[2:] = [None, None]
    parts = [state.sentence(bool(covers))]
    for title, table in zip(drawn.titles, tables):
        body = f"\n{table}" if table is not None and table.rows else ""
        parts.append(f"{title}{body}")
    if drawn.activity:
        parts.append(f"{drawn.titles[-1]}\n{drawn.activity.text()}")
    if state.experts and not covers:
        parts.append(experts_figure.text(state.experts))
    if state.precision and not covers:
        parts.append(precision_figure.text(state.precision))
    if state.memory and not covers:
        parts.append(memory_figure.text(state.memory))
    if state.watch is not None and not covers:
        parts += filter(None, [watch_figure.text(state)])
    if beside:
        rows = [[name, len(losses), losses[max(losses)]] for name, losses in beside.items()]
        parts.append(f"earlier runs\n{Table(['layout', 'steps', 'last loss'], rows)}")
    return "\n\n".join(parts)


# -- the four panels as arrays ---------------------------------------------------------------


def _loss(state: RunState):
    values = state.losses
    x, y = _arrays(*values.points())
    smooth = values.smoothed() if len(values) >= _SMOOTH_FROM else ([], [])
    sx, sy = _arrays(*smooth)
    # After so many steps: comparable with the training loss of the step that comes next.
    ex, ey = _arrays(list(state.eval_losses), list(state.eval_losses.values()))
    title = "loss: no step yet"
    if len(values) == 1:
        title = f"loss {values[values.last]:.3f} after the first step"
    elif values:
        # One noisy step is no headline where the smoothed line is drawn.
        end = f"{values.now:.3f} (smoothed)" if len(sy) else f"{values[values.last]:.3f}"
        title = f"loss {next(iter(values.values())):.3f} → {end} in {len(values)} steps"
    if state.eval_losses:
        title += f"; held-out text {state.eval_losses[max(state.eval_losses)]:.3f} ◆"
    return [{"x": x, "y": y}, {"x": sx, "y": sy}, {"x": ex, "y": ey}], title


def _ghosts(beside: Losses | None) -> dict:
    """Lines with gaps between them. Runs on the same batches lie on one another, so each has its
    name at a place of its own.
    """
    xs, ys, texts = [], [], []
    for i, (name, losses) in enumerate((beside or {}).items()):
        steps = sorted(losses)
        x, y = decimate(steps, [losses[s] for s in steps], 300)
        named = (len(x) - 1) * (i + 1) // (len(beside) + 1)
        xs += [*x, math.nan]
        ys += [*y, math.nan]
        texts += [*(name if at == named else "" for at in range(len(x))), ""]
    return {"x": _array(xs), "y": _array(ys), "text": texts}


def _speed(state: RunState):
    x, y = _arrays(*state.tokens_per_s.points())
    speed = state.speed()
    title = "tokens/s: no step yet" if speed is None else f"{speed:,.0f} tokens/s (median)"
    if (mfu := state.mfu()) is not None:
        title += f", MFU {100 * mfu:.1f}\N{NO-BREAK SPACE}%"
    return [{"x": x, "y": y}], title


def _split(state: RunState):
    split = state.split()
    names = [f"rank {rank}" for rank in split]
    columns = zip(*split.values()) if split else ((), (), (), ())
    traces = [{"x": _array([1e3 * v for v in column]), "y": names} for column in columns]
    if not split:
        return traces, "where a step goes: no step yet"
    if (slowest := state.slowest()) is not None:
        rank, waited = slowest
        title = f"{waited * 1e3:.0f} ms a step waiting for rank {rank}"
        bubble = state.bubble()  # the formula's is in the sentence: a panel's title is short
        return traces, title if bubble is None else f"{title}; bubble {100 * bubble[0]:.0f} %"
    whole = sum(parts.seconds for parts in split.values()) or 1.0
    shares = [100 * sum(part) / whole for part in zip(*split.values())]
    if bubble := state.bubble_text():
        return traces, bubble
    if shares[1] + shares[2] == 0:
        return traces, "a step is all compute"
    return traces, f"{shares[0]:.0f} % computing, {shares[2]:.0f} % waiting"


def _ledger(state: RunState):
    rows = list(state.traffic().items())
    if len(rows) > _ROWS:
        rest = rows[_ROWS - 1 :]
        summed = (sum(c for _, (c, _) in rest), sum(b for _, (_, b) in rest))
        rows = [*rows[: _ROWS - 1], (f"{len(rest)} other reasons", summed)]
    place = _array(list(range(len(rows))))
    sizes = _array([size for _, (_, size) in rows])
    labels = [f"{reason}<br>{bytes_text(size)}{_in(count)}" for reason, (count, size) in rows]
    traces = [
        {"x": sizes, "y": place},
        {"x": _array([0.0] * len(rows)), "y": place - 0.5, "text": labels},
    ]
    total = sum(size for _, (_, size) in state.traffic().items())
    over = "a step and rank" if state.has_steps else "a rank"
    return traces, f"payload {bytes_text(total)} {over}" if rows else "no collectives"


def _array(values: list):
    import numpy

    return numpy.asarray(values, dtype=float)


def _arrays(x: list, y: list):
    return _array(x), _array(y)


def _exact(value: float) -> int | float:
    return round(value) if math.isclose(value, round(value), rel_tol=1e-12) else value


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _in(count: float) -> str:
    return f" in {_exact(count):g} calls" if count != 1 else ""


# -- the drawing ----------------------------------------------------------------------------------


def _traces() -> list[tuple[int, dict]]:
    """(panel, trace) in the order of `Panels.traces`; without data."""
    line = {"type": "scatter", "mode": "lines+markers", "showlegend": False, "cliponaxis": False}
    bar = {"type": "bar", "orientation": "h"}
    white = {"width": 0}
    loss_hover = "step %{x}: loss %{y:.4f}<extra></extra>"
    split_hover = "%{y}: %{x:.1f} ms %{fullData.name}<extra></extra>"
    return [
        (
            0,
            {
                **line,
                "line": {"color": BLUE, "width": 1.5},
                "marker": {"size": 4},
                "hovertemplate": loss_hover,
            },
        ),
        (
            0,
            {
                **line,
                "mode": "lines",
                "line": {"color": GREY, "width": 2.5},
                "hoverinfo": "skip",
            },
        ),
        (
            0,
            {
                **line,
                "mode": "markers",
                "marker": {"size": 9, "symbol": "diamond", "color": TEXT},
                "hovertemplate": "after %{x} steps: %{y:.4f} on held-out text<extra></extra>",
            },
        ),
        (
            1,
            {
                **line,
                "line": {"color": BLUE, "width": 1.5},
                "marker": {"size": 4},
                "hovertemplate": "step %{x}: %{y:,.0f} tokens/s<extra></extra>",
            },
        ),
        *(
            (
                2,
                {
                    **bar,
                    "name": name,
                    "hovertemplate": split_hover,
                    "marker": {"color": TIME[name], "line": white, "pattern": pattern(name)},
                },
            )
            for name in ("compute", "communication", "waiting", "bubble")
        ),
        (
            3,
            {
                **bar,
                "width": 0.2,
                "showlegend": False,
                "marker": {"color": TIME["communication"], "line": white},
                "hovertemplate": "%{x:,.0f} bytes<extra></extra>",
            },
        ),
        (
            3,
            {
                "type": "scatter",
                "mode": "text",
                "textposition": "middle right",
                "textfont": {"size": 12, "color": TEXT},
                "cliponaxis": False,
                "hoverinfo": "skip",
                "showlegend": False,
            },
        ),
    ]


_MARKS = 99  # the number of the y axis on which marks stand: whatever the loss is, at its bottom
_ON_THE_AXIS = {
    "overlaying": "y",
    "anchor": "x",
    "range": [-0.025, 1],
    "fixedrange": True,
    "visible": False,
}
_GHOSTS = {
    "type": "scatter",
    "mode": "lines+text",
    # Wide and pale: it shows on both sides of a line that lies on it.
    "line": {"color": "rgba(106,111,120,0.45)", "width": 5},
    "zorder": -1,
    "textposition": "top right",
    "textfont": {"size": 12, "color": TEXT},
    "hoverinfo": "skip",
    "showlegend": False,
}


def _axes(panel: int, rows: int) -> tuple[dict, dict]:
    """The x and y axis of a panel; `rows` is how many reasons the ledger shows."""
    # Few ticks, and none rounded: of four steps more than six would stand at halves.
    step = {"title": {"text": "step"}, "rangemode": "tozero", "tickformat": ",~r", "nticks": 6}
    return [
        (step, {"title": {"text": "loss (nats per token)"}, "nticks": 6}),
        (step, {"title": {"text": "tokens/s"}, "rangemode": "tozero", "nticks": 6}),
        (
            {"title": {"text": "ms per step"}, "rangemode": "tozero"},
            {"autorange": "reversed", "type": "category", "showgrid": False},
        ),
        (
            {
                "title": {"text": "payload bytes"},
                "rangemode": "tozero",
                "ticksuffix": "B",
                "nticks": 5,
            },
            {
                "range": [max(rows, _LEAST_ROWS) - 0.8, -0.95],
                "showticklabels": False,
                "showgrid": False,
                "zeroline": False,
            },
        ),
    ][panel]


def _single(state: RunState, panel: int, table) -> LabFigure:
    drawn = panels(state)
    title = drawn.titles[panel]

    def build():
        import plotly.graph_objects as go

        chosen = [
            {**trace, **data}
            for (where, trace), data in zip(_traces(), drawn.traces)
            if where == panel
        ]
        x, y = _axes(panel, len(drawn.traces[-1]["y"]))
        figure = go.Figure(data=chosen, layout={"template": template(), "title": {"text": title}})
        if panel == 0 and drawn.watch is not None:
            figure.add_trace({**watch_figure.MARKS, **drawn.watch.marks, "yaxis": "y2"})
            figure.update_layout(yaxis2=_ON_THE_AXIS)
        height = HEIGHT + (max(0, len(state.ranks) - 6) * 24 if panel == 2 else 0)
        figure.update_layout(height=height, xaxis=x, yaxis=y, barmode="stack")
        if panel == 2:
            figure.update_layout(legend={"y": -0.22, "traceorder": "normal"}, margin={"b": 80})
        return figure

    return LabFigure(f"{title}\n{table(state)}", build)


_LEFT, _RIGHT = [0.0, 0.42], [0.52, 1.0]  # of the width
# Pixels, from the top: margin, upper panels, their axes and the lower titles, lower panels (a row
# of the ledger has two lines and its bar), their axes, the fifth panel with its title and axis.
_TOP, _TOP_HEADED, _BOTTOM = 56, 104, 44
_UPPER, _BETWEEN, _REASON, _LEAST_ROWS, _BELOW, _FIFTH = 200, 112, 46, 4, 40, 100
_TITLE = 32  # letters in a line of a panel's title


def training_layout(drawn: Panels, heading: str = "") -> dict:
    """The layout of the panels; titles are its annotations, in order."""
    top = _TOP_HEADED if heading else _TOP
    ranks = len(drawn.activity.bounds) if drawn.activity else 0
    fifth = ROW * ranks + _FIFTH if ranks else 0
    rows = len(drawn.traces[-1]["y"])
    lower = _REASON * max(rows, _LEAST_ROWS)
    sections = [section for section in drawn.below if section.shape]
    more = sum(section.above + section.height + _BELOW for section in sections)
    whole = _UPPER + _BETWEEN + lower + _BELOW + fifth + more
    height = top + whole + _BOTTOM

    def share(*pixels: int) -> list[float]:
        return [edge / whole for edge in pixels]

    base = _BELOW + fifth + more
    upper, below = share(whole - _UPPER, whole), share(base, base + lower)
    domains = [(_LEFT, upper), (_RIGHT, upper), (_LEFT, below), (_RIGHT, below)]
    foot = _BELOW + more
    domains.append(([0.0, 1.0], share(foot, foot + ROW * ranks)))
    titles = [broken(title, LETTERS if i == 4 else _TITLE) for i, title in enumerate(drawn.titles)]
    headed = list(zip(titles, domains))
    pairs = [*(_axes(panel, rows) for panel in range(4)), activity_axes(drawn.activity)]
    there = [True] * 4 + [bool(ranks)]
    for section in drawn.below:
        if section.shape:
            foot -= section.above + section.height + _BELOW
        places = section.domains(*share(foot, foot + section.height))
        for panel, (title, place) in enumerate(zip(section.drawn.titles, places)):
            if section.there[panel]:
                headed.append((broken(title, section.letters(panel)), place))
        domains += places
        pairs += section.module.axes(section.shape)
        there += section.there
    layout: dict = {
        "template": template(),
        "height": height,
        "barmode": "stack",
        "legend": {
            "x": 0.0,
            "y": -26 / whole,
            "yanchor": "top",
            "xanchor": "left",
            "traceorder": "normal",
        },
        "margin": {"t": top, "b": _BOTTOM, "l": 70},
        "title": {
            "text": broken(heading, LETTERS),
            "y": 1 - 16 / height,
            "yanchor": "top",
        },
        "annotations": [panel_title(title, place, 8 / whole) for title, place in headed],
    }
    for panel, ((x, y), (x_domain, y_domain)) in enumerate(zip(pairs, domains)):
        number = "" if panel == 0 else str(panel + 1)
        shown = {} if panel < 4 else {"visible": there[panel]}
        if not there[panel]:
            # Out of the way: what cannot be seen still takes the mouse from what is behind it, and
            # an axis without any length would be given the whole figure.
            y_domain = share(0, 2)
        layout[f"xaxis{number}"] = {**x, **shown, "domain": x_domain, "anchor": f"y{number}"}
        layout[f"yaxis{number}"] = {**y, **shown, "domain": y_domain, "anchor": f"x{number}"}
    if drawn.watch is not None:
        layout[f"yaxis{_MARKS}"] = _ON_THE_AXIS
    for name, axis in moving_ranges(drawn).items():
        layout[name] |= axis
    return layout


def moving_ranges(drawn: Panels) -> dict[str, dict]:
    """The part of the layout that goes with the steps: where two of the axes end."""
    found = {}
    if drawn.activity:
        found["xaxis5"] = {"range": activity_axes(drawn.activity)[0]["range"]}
    if drawn.watch is not None:
        before = sum(section.module.AXES for section in drawn.below[:-1])
        last = 6 + before + watch_figure.FINDINGS
        found[f"xaxis{last}"] = {"range": [0, drawn.watch.last]}
    return found


def training_traces(drawn: Panels) -> list[dict]:
    """The ten traces of the four panels, the five of the fifth, those of the sections below, the
    marks on the loss and the earlier runs' losses, with their data, each on its panel's axes."""
    placed = [*_traces(), *((4, trace) for trace in activity_traces())]
    first = 5
    for section in drawn.below:
        placed += [(first + panel, trace) for panel, trace in section.module.traces()]
        first += section.module.AXES
    if drawn.watch is not None:
        placed.append((0, {**watch_figure.MARKS, "yaxis": f"y{_MARKS}"}))
    placed.append((0, _GHOSTS))
    traces = []
    for (panel, trace), data in zip(placed, training_arrays(drawn), strict=True):
        number = "" if panel == 0 else str(panel + 1)
        traces.append({"xaxis": f"x{number}", "yaxis": f"y{number}", **trace, **data})
    return traces


def training_arrays(drawn: Panels) -> list[dict]:
    """The data of `training_traces`, in their order."""
    below = [values for section in drawn.below for values in section.drawn.traces]
    marks = [] if drawn.watch is None else [drawn.watch.marks]
    return [*drawn.traces, *activity_arrays(drawn.activity), *below, *marks, drawn.ghosts]


def _training(state: RunState, covers: str, beside: Losses | None, heading: str):
    import plotly.graph_objects as go

    drawn = panels(state, covers, beside)
    traces, layout = training_traces(drawn), training_layout(drawn, heading)
    # A live view needs a place for what is not there yet; what is finished does not.
    there = [True] * 4 + [drawn.activity is not None]
    for section in drawn.below:
        there += section.there
    absent = {str(panel + 1) for panel, is_there in enumerate(there) if not is_there}
    for number in absent:
        del layout[f"xaxis{number}"], layout[f"yaxis{number}"]
    *traces, ghosts = [trace for trace in traces if trace["xaxis"][1:] not in absent]
    return go.Figure(data=[*traces, ghosts] if beside else traces, layout=layout)
