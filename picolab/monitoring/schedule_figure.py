"""The zoo in one figure: the same model, ranks and micro-batches under one schedule after another.

    schedule_figure(ranks=4, micro_batches=8, backward_weight=0.8, hop=0.1)

A Gantt with a slider of schedules, all on one time axis; every gap says who is waited for. Beneath
it what is held, in micro-batches of a whole rank, so that schedules with several stages a rank
compare with those that have one. Simulated: what the sliders of a kernel could ask for is an
argument here. Plotly frames, so it needs no kernel.
"""

from collections import Counter
from collections.abc import Sequence
from numbers import Real

from picolab import costs
from picolab.monitoring.gantt_figure import (
    BOTTOM,
    MAX_RANKS,
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
from picolab.schedules import SCHEDULES, Simulation, make, simulate
from picolab.show.picture import GRID, TEXT, TIME, LabFigure, pattern
from picolab.show.table import Table

_SLIDER = 92  # pixels
_KINDS = "FBW"
_NOTHING = {"y": [0], "base": [0], "x": [0], "text": [""], "textposition": "none"}


def schedule_figure(
    schedules: Sequence[str] = tuple(SCHEDULES),
    ranks: int = 4,
    micro_batches: int = 8,
    *,
    forward: Real = 1,
    backward_input: Real = 1,
    backward_weight: Real = 1,
    hop: Real = 0,
    first: str | None = None,
) -> LabFigure:
    """Simulated Gantts of one pipeline, a slider of schedules: bubble, memory, who waits for whom.

    forward, backward_input, backward_weight
             of a micro-batch on a rank, in any one unit; a rank's stages share it
    hop      how long a message takes, in the same unit
    first    the schedule it opens with; None: the first one given

    Raises ValueError for a schedule that cannot have so many micro-batches.
    """
    names = list(schedules)
    if not names or len(set(names)) < len(names):
        raise ValueError("give the names of schedules, each once")
    first = names[0] if first is None else first
    if first not in names:
        raise ValueError(f"first is {first!r}, which is none of {', '.join(names)}")
    if ranks > MAX_RANKS:
        raise ValueError(f"a Gantt of {ranks} ranks cannot be read; {MAX_RANKS} can")
    given = {"forward": forward, "backward_input": backward_input}
    given["backward_weight"] = backward_weight
    cases = {name: _simulated(name, ranks, micro_batches, given, hop) for name in names}
    best = min(cases, key=lambda name: cases[name].bubble_of_total)
    rest = f"{percent(cases[best].bubble_of_total)} of {_name(best)}"
    title = (
        f"Bubble of the total, simulated: {percent(cases[first].bubble_of_total)} of "
        f"{_name(first)}, {'the least here' if first == best else rest}"
    )
    shown = cases[first]
    text = "\n\n".join(
        [title, str(_comparison(cases, given, hop)), repr(shown), str(_ranks_table(shown))]
    )
    return LabFigure(text, lambda: _build(cases, first, title))


def _simulated(name: str, ranks: int, m: int, given: dict[str, Real], hop: Real) -> Simulation:
    schedule = make(name, ranks, m)
    v = schedule.stages // ranks
    each = {kind: cost if v == 1 else cost / v for kind, cost in given.items()}
    return simulate(schedule, **each, latency=hop)


def _name(name: str) -> str:
    return NAMES.get(name, name)


# -- text -----------------------------------------------------------------------------------------


def _comparison(cases: dict[str, Simulation], given: dict[str, Real], hop: Real) -> Table:
    rows = []
    for name, case in cases.items():
        rows.append(
            [
                _name(name),
                float(case.bubble_of_total),
                _formula(name, case, given) if not hop else None,
                float(case.bubble_of_ideal),
                max(_held(case)),
                len(case.transfers),
            ]
        )
    columns = ["schedule", "of total", "formula", "of ideal", "most held", "messages"]
    return Table(columns, rows, "bubble, micro-batches held on a rank, messages")


def _formula(name: str, case: Simulation, given: dict[str, Real]) -> float | None:
    """None where there is no closed form."""
    try:
        return costs.bubble_of_total(case.ranks, case.micro_batches, name, **given)
    except ValueError:
        return None


def _held(case: Simulation) -> list[float]:
    """The most each rank holds, in micro-batches of all its stages."""
    return [peak / len(stages) for peak, stages in zip(case.peak_in_flight, case.stages)]


def _ranks_table(case: Simulation) -> Table:
    rows = []
    for rank, held in enumerate(_held(case)):
        waits = Counter()
        for wait in case.waits():
            if wait.rank == rank:
                waits[wait.source] += wait.end - wait.start
        of = [
            f"{float(time):.4g} {'at the end' if source is None else f'for rank {source}'}"
            for source, time in sorted(waits.items(), key=lambda one: -one[1])
        ]
        rows.append([f"rank {rank}", float(case.idle[rank]), ", ".join(of) or "never", held])
    return Table(["", "idle", "waits", "holds at most"], rows, f"{_name(case.name)}: who waits")


# -- drawing --------------------------------------------------------------------------------------


def _gaps(case: Simulation) -> dict:
    waits = case.waits()
    return {
        "y": [wait.rank for wait in waits],
        "base": [float(wait.start) for wait in waits],
        "x": [float(wait.end - wait.start) for wait in waits],
        "customdata": [
            "has nothing left to do"
            if wait.action is None
            else f"waits for {wait.action} from rank {wait.source}"
            for wait in waits
        ],
    }


def _gap_style(axis: str) -> dict:
    return {
        "type": "bar",
        "orientation": "h",
        "name": "waiting (bubble)",
        "yaxis": axis,
        "width": 0.3,
        "marker": {"color": TIME["bubble"], "line": {"width": 0}, "pattern": pattern("bubble")},
        "hovertemplate": "%{y} %{customdata}<br>%{base:.4~g}, for %{x:.4~g}<extra></extra>",
    }


def _finding(case: Simulation) -> str:
    several = sum(map(len, case.stages)) > case.ranks
    lower = "; low bars: later stages" if several else ""
    return (
        f"<b>{_name(case.name)}</b>: bubble {percent(case.bubble_of_total)} of total, "
        f"{percent(case.bubble_of_ideal)} of ideal; holds {max(_held(case)):g} at most{lower}"
    )


def _peaks(case: Simulation) -> dict:
    texts = [f"\u2002holds {held:g}" for held in _held(case)]
    return {**peaks_of(case), "text": texts}


def _build(cases: dict[str, Simulation], first: str, title: str):
    import plotly.graph_objects as go

    ranks = cases[first].ranks
    (panel,), pixels = place([ranks])
    most = max(max(_held(case)) for case in cases.values())

    def data(case: Simulation) -> list[dict]:
        """All traces of a frame."""
        several = max(map(len, case.stages)) > 1
        styles = [
            bar_style(kind, panel.bars, "", case.kinds, several)
            | {"showlegend": kind in case.kinds}
            for kind in _KINDS
        ]
        # plotly gives no style to a trace without a bar, and keeps that in the frames after it.
        drawn = [bars_of(case, kind) if kind in case.kinds else _NOTHING for kind in _KINDS]
        bars = [{**style, **values} for style, values in zip(styles, drawn)]
        held = {
            **held_style(panel.flight, "rank"),
            **held_by(case, most, len(case.stages[0])),
        }
        finding = {
            **peaks_style(panel.bars),
            **{"x": [0], "y": [-0.5], "text": [_finding(case)], "textposition": "top right"},
            "textfont": {"size": 13, "color": TEXT},
        }
        peaks = {**peaks_style(panel.bars), **_peaks(case)}
        return [*bars, {**_gap_style(panel.bars), **_gaps(case)}, held, peaks, finding]

    height = pixels + TOP + BOTTOM + _SLIDER
    layout = common_layout(title, height, "units of the costs", panel.flight)
    layout |= panel_axes(panel, ranks, "rank")
    longest = max(float(case.makespan) for case in cases.values())
    layout["xaxis"]["range"] = [0, longest * 1.002]
    layout["margin"]["b"] = BOTTOM + _SLIDER
    layout["sliders"] = [_slider(list(cases), first)]
    frames = [{"name": name, "data": data(case)} for name, case in cases.items()]
    return go.Figure(data=data(cases[first]), frames=frames, layout=layout)


def _slider(names: list[str], first: str) -> dict:
    jump = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}}
    jump["transition"] = {"duration": 0}
    return {
        "len": 1,
        "x": 0,
        "y": 0,
        "pad": {"t": 54},
        "bordercolor": GRID,
        "bgcolor": GRID,
        "activebgcolor": TEXT,
        "tickcolor": TEXT,
        "transition": {"duration": 0},
        "active": names.index(first),
        "currentvalue": {"prefix": "schedule: "},
        "steps": [
            {"method": "animate", "label": _name(name), "args": [[name], jump]} for name in names
        ],
    }
