"""Where a rank's bytes go in a step.

Two panels: the newest step that the memory monitor has looked at, on the rank that needs most, in
time and stacked by category, under the budget and the peak that was predicted; and what each rank
had when it had most. `memory_figure` is a figure of its own; `drawn`, `traces`, `axes` and
`domains` are what the dashboard puts under its other panels for a run with a `MemoryMonitor`, also
while it runs.
"""

from typing import NamedTuple

from picolab.monitoring.memory import SHOWN, MemoryHistory
from picolab.monitoring.panels_figure import panels_figure
from picolab.show.picture import GREY, MEMORY, OCHRE, TEXT, LabFigure
from picolab.show.table import Table, bytes_text

HEIGHT = 260  # of the panels, in pixels
AXES = 2
_LEAST = 0.01  # of a peak: less is not named
_ROWS = 12  # moments in the text
_COLORS = {**MEMORY, "temporaries": OCHRE, "buffers": GREY}
_MB = 1e6


class Drawn(NamedTuple):
    """What the panels show now: the traces' data, in their order, and the titles."""

    traces: list[dict]
    titles: list[str]
    ranks: tuple[int, ...]


def drawn(history: MemoryHistory) -> Drawn:
    if not history:
        empty = [{"x": _array([]), "y": _array([])} for _ in traces()]
        return Drawn(empty, [""] * AXES, ())
    rank, budget = history.highest, history.budget
    times, alive = zip(*history.timeline(rank))
    ms = [1e3 * seconds for seconds in times]
    found = [{"x": _array(ms), "y": _mb(of[name] for of in alive)} for name in SHOWN]
    found += [_level(ms, predicted(history, rank)), _level(ms, budget)]
    places = [f"rank {rank}" for rank in history.ranks]
    most = [history.at_peak(rank) for rank in history.ranks]
    found += [{"x": _mb(of[name] for of in most), "y": places} for name in SHOWN]
    under = [] if budget is None else places
    found.append({"x": _mb([budget] * len(under)), "y": under})
    return Drawn(found, titles(history), tuple(history.ranks))


def _level(x: list[float], nbytes: int | None) -> dict:
    if nbytes is None:
        return {"x": _array([]), "y": _array([])}
    return {"x": _array([x[0], x[-1]]), "y": _mb([nbytes] * 2)}


def _mb(values):
    return _array(value / _MB for value in values)


def _array(values):
    import numpy

    return numpy.asarray(list(values), dtype=float)


def predicted(history: MemoryHistory, rank: int) -> int | None:
    """The peak that the plan of a budget counts on; None without one."""
    return history.plans[rank]["peak"] if rank in history.plans else None


def titles(history: MemoryHistory) -> list[str]:
    rank, budget = history.highest, history.budget
    report, most = history.reports[rank], history.at_peak(rank)
    peak, expected = report["most"]["total"], predicted(history, rank)
    first = f"rank {rank}, step {report['step']}: peak {bytes_text(peak)}"
    if expected is not None:
        first += f", predicted {bytes_text(expected)}"
    if budget is not None:
        first += f"; budget of {bytes_text(budget)} {'kept' if peak <= budget else 'NOT kept'}"
    shares = {name: nbytes / peak for name, nbytes in most.items()}
    named = [f"{name} {100 * of:.0f} %" for name, of in shares.items() if of >= _LEAST]
    return [first, f"at the peak, from the left: {', '.join(named)}"]


def traces() -> list[tuple[int, dict]]:
    """(panel, trace) without data, in the order of `Drawn.traces`."""
    alive = {
        "type": "scatter", "mode": "lines", "stackgroup": "bytes", "showlegend": False,
        "hoveron": "points",
    }  # fmt: skip
    bar = {"type": "bar", "orientation": "h", "showlegend": False, "width": 0.62}
    level = {"type": "scatter", "mode": "lines", "showlegend": False, "cliponaxis": False}
    found = [
        (0, {**alive, "name": name, "fillcolor": _COLORS[name],
             "line": {"width": 0, "shape": "hv"},
             "hovertemplate": f"%{{x:.1f}} ms: %{{y:.2f}} MB {name}<extra></extra>"})
        for name in SHOWN
    ]  # fmt: skip
    for name, dash in (("predicted peak", "dot"), ("budget", "dash")):
        hover = f"{name}: %{{y:.2f}} MB<extra></extra>"
        line = {"color": TEXT, "width": 2, "dash": dash}
        found.append((0, {**level, "name": name, "line": line, "hovertemplate": hover}))
    found += [
        (1, {**bar, "name": name, "marker": {"color": _COLORS[name], "line": {"width": 0}},
             "hovertemplate": f"%{{y}}: %{{x:.2f}} MB {name}<extra></extra>"})
        for name in SHOWN
    ]  # fmt: skip
    mark = {"symbol": "line-ns", "size": 22, "line": {"width": 2, "color": TEXT}}
    hover = "budget: %{x:.2f} MB<extra></extra>"
    found.append((1, {**level, "mode": "markers", "marker": mark, "hovertemplate": hover}))
    return found


def axes(ranks: tuple[int, ...]) -> list[tuple[dict, dict]]:
    """The x and y axis of each panel. ranks: `Drawn.ranks`."""
    time = {"title": {"text": "ms of the step"}, "showgrid": False, "zeroline": False, "nticks": 6}
    alive = {"title": {"text": "MB alive"}, "rangemode": "tozero", "nticks": 6}
    most = {"title": {"text": "MB at the peak"}, "rangemode": "tozero", "nticks": 6}
    places = {"autorange": "reversed", "type": "category", "showgrid": False}
    return [(time, alive), (most, places)]


def domains(low: float, high: float, left: list, right: list) -> list[tuple[list, list]]:
    """Where the panels are, (x, y), between these heights of the figure."""
    return [(left, [low, high]), (right, [low, high])]


def text(history: MemoryHistory) -> str:
    """The titles, what was alive at some moments, and what each rank had at its peak."""
    moments = list(history.timeline(history.highest))
    chosen = sorted({round(i * (len(moments) - 1) / (_ROWS - 1)) for i in range(_ROWS)})
    rows = [
        [f"{1e3 * seconds:.1f} ms", *(round(nbytes / _MB, 3) for nbytes in alive.values())]
        for seconds, alive in (moments[i] for i in chosen)
    ]
    for rank in history.ranks:
        most = history.at_peak(rank)
        rows.append([f"rank {rank} at its peak", *(round(of / _MB, 3) for of in most.values())])
    return "\n".join([*titles(history), repr(Table(["MB alive", *SHOWN], rows))])


def memory_figure(history: MemoryHistory) -> LabFigure:
    """Of a run that was looked at. ValueError if it was not."""
    if not history:
        raise ValueError(
            "this run has told nothing of its memory: train with "
            "observers=[pico.memory.MemoryMonitor()], two steps or more"
        )

    def build():
        shown = drawn(history)
        listed = [(panel, dict(trace)) for panel, trace in traces()]
        for panel, trace in listed:  # the bars have the same colours
            has_line = history.budget is not None or "line" not in trace
            trace["showlegend"] = panel == 0 and ("stackgroup" in trace or has_line)
        places = domains(0.0, 1.0, [0.0, 0.52], [0.64, 1.0])
        whole = {
            "height": HEIGHT + 170,
            "barmode": "stack",
            "margin": {"t": 84, "b": 100},
            "legend": {"y": -0.24, "yanchor": "top", "x": 0, "traceorder": "normal"},
        }
        return panels_figure(listed, shown.traces, shown.titles, axes(shown.ranks), places, **whole)

    return LabFigure(text(history), build)
