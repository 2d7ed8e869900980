"""Ring attention, step by step: which rank meets which keys and values, and how much of that block
causality leaves to compute. The sequence cut contiguously beside the zig-zag cut.

Simulated, not measured. The rules are those of the real one (`picolab.parallel.ring`): each of n
ranks keeps its queries; in step s, from 1, rank r holds the keys and values of rank r - (s - 1) mod
n, then passes them to its right. A block is the queries of one rank times the keys of one; of it is
computed

    contiguous    the diagonal: 1/2      keys of an earlier rank: 1      of a later rank: 0
    zig-zag       1/2 in every step on every rank

in units of a whole block. A rank that is done with its block waits for the slowest, so that a step
lasts as long as its largest block: n - 1/2 in all if contiguous, n/2 if zig-zag. The figure is
plain plotly frames behind a slider: it needs no kernel.
"""

from typing import NamedTuple

from picolab.show.picture import (
    BLUE,
    GREEN,
    GRID,
    HATCH,
    TEXT,
    TIME,
    LabFigure,
    frame_slider,
    ink,
    template,
)
from picolab.show.table import Table

MAX_RANKS = 8
SPLITS = ("contiguous", "zigzag")

_NAMES = {"contiguous": "contiguous", "zigzag": "zig-zag"}
_STATES = ("unseen", "skipped", "now", "done")
_FILL = {"unseen": GRID, "skipped": GRID, "now": BLUE, "done": GREEN}  # skipped has a dash as well
_HALVES = ((0.07, 0.475), (0.595, 1.0))  # of the width
_TOP, _ROW, _BOTTOM = 142, 46, 152  # pixels


class AttentionStep(NamedTuple):
    """After step `step`, for one way to cut the sequence."""

    step: int
    states: list[list[str]]  # [rank][owner of the keys] -> unseen, skipped, now or done
    work: list[float]  # of each rank so far, in blocks
    now: list[float]  # of that, in this step
    elapsed: float  # what the slowest rank of each step did, added up


def computed(rank: int, owner: int, split: str) -> float:
    """The part of a block that causality leaves: a half on the diagonal, and as the table above."""
    if split == "zigzag" or rank == owner:
        return 0.5
    return 1.0 if owner < rank else 0.0


def chunks_held(rank: int, n: int, split: str) -> tuple[int, ...]:
    return (rank,) if split == "contiguous" else (rank, 2 * n - 1 - rank)


def simulate_ring_attention(n: int, split: str) -> list[AttentionStep]:
    """Every step of ring attention over n ranks."""
    states = [["unseen"] * n for _ in range(n)]
    work, elapsed, steps = [0.0] * n, 0.0, []
    for step in range(1, n + 1):
        states = [["done" if state == "now" else state for state in row] for row in states]
        owners = [(rank - step + 1) % n for rank in range(n)]
        now = [computed(rank, owner, split) for rank, owner in enumerate(owners)]
        for rank, owner in enumerate(owners):
            states[rank][owner] = "now" if now[rank] else "skipped"
        work = [before + more for before, more in zip(work, now)]
        elapsed += max(now)
        steps.append(AttentionStep(step, states, work, now, elapsed))
    return steps


def ring_attention_frames(n: int = 4) -> LabFigure:
    """A figure with a slider over the n steps of ring attention, contiguous beside zig-zag."""
    if not isinstance(n, int) or isinstance(n, bool) or not 2 <= n <= MAX_RANKS:
        raise ValueError(f"ring attention needs 2 to {MAX_RANKS} ranks to be drawn, not {n!r}")
    runs = {split: simulate_ring_attention(n, split) for split in SPLITS}
    return LabFigure(_text(n, runs), lambda: _build(n, runs))


# -- text -----------------------------------------------------------------------------------------


def _part(blocks: float) -> str:
    return {0.0: "–", 0.5: "½"}.get(blocks, f"{blocks:g}")


def _text(n: int, runs: dict[str, list[AttentionStep]]) -> str:
    rows = []
    for i in range(n):
        parts = [" ".join(map(_part, runs[split][i].now)) for split in SPLITS]
        lasts = [
            f"{runs[split][i].elapsed - (runs[split][i - 1].elapsed if i else 0):g}"
            for split in SPLITS
        ]
        whose = "its own" if i == 0 else f"rank r - {i}"
        rows.append([i + 1, whose, parts[0], lasts[0], parts[1], lasts[1]])
    ends = [runs[split][-1] for split in SPLITS]
    totals = [(" ".join(f"{w:g}" for w in end.work), f"{end.elapsed:g}") for end in ends]
    rows.append(["all", "", *totals[0], *totals[1]])
    columns = [
        "step",
        "K and V of",
        "contiguous, rank 0 ...",
        "lasts",
        "zig-zag, rank 0 ...",
        "lasts",
    ]
    title = f"Ring attention over {n} ranks: blocks computed in each step (simulated)"
    return f"{Table(columns, rows, title)}\nthe busiest rank has {_shares(ends, ' and ')}"


def _shares(ends: list[AttentionStep], between: str) -> str:
    """What the busiest rank has of all work, one way and the other."""
    one, other = (f"{100 * max(end.work) / sum(end.work):.1f} %" for end in ends)
    return f"{one} of the work {_NAMES[SPLITS[0]]}{between}{other} {_NAMES[SPLITS[1]]}"


def _title(n: int, steps: list[AttentionStep]) -> str:
    if steps[0].step == n:
        return f"The busiest rank has {_shares(steps, ', ')}"
    ends = dict(zip(SPLITS, steps))
    spread = [
        f"{_NAMES[s]} {min(e.work):g}" + (f" to {max(e.work):g}" if len(set(e.work)) > 1 else "")
        for s, e in ends.items()
    ]
    return f"Step {steps[0].step} of {n}: blocks computed so far, {', '.join(spread)}"


_LEGEND = "simulated; ½, 1: part of a block (queries × keys) left by causality; – none"


# -- traces ---------------------------------------------------------------------------------------


def _cells(step: AttentionStep) -> dict:
    return {
        "z": [[_STATES.index(state) for state in row] for row in step.states],
        "customdata": step.states,
    }


def _labels(n: int, split: str, step: AttentionStep) -> dict:
    """What stands in the cells, in a colour that can be read there."""
    places = [(rank, owner) for rank in range(n) for owner in range(n)]
    states = [step.states[rank][owner] for rank, owner in places]
    parts = [_part(computed(rank, owner, split)) for rank, owner in places]
    words = {"unseen": "", "now": "<b>{}</b>", "done": "{}", "skipped": "{}"}
    return {
        "text": [words[state].format(part) for state, part in zip(states, parts)],
        "textfont": {
            "color": [TEXT if _FILL[state] == GRID else ink(_FILL[state]) for state in states],
            "size": 14,
        },
    }


def _data(n: int, runs: dict[str, list[AttentionStep]], i: int) -> list[dict]:
    """The traces of both halves, in one order in all frames: cells, their labels, then a bar for
    each state."""
    place = list(range(n))
    traces = []
    for half, split in enumerate(SPLITS):
        step = runs[split][i]
        heat_x, bar_x, y = [("x", "x2", "y"), ("x3", "x4", "y2")][half]
        traces.append(
            {
                "type": "heatmap",
                "x": place,
                "y": place,
                **_cells(step),
                "zmin": 0,
                "zmax": 3,
                "colorscale": _scale(),
                "showscale": False,
                "xgap": 3,
                "ygap": 3,
                "xaxis": heat_x,
                "yaxis": y,
                "hovertemplate": (
                    "queries of %{y}, keys of rank %{x}<br>%{customdata}<extra></extra>"
                ),
            }
        )
        traces.append(
            {
                "type": "scatter",
                "mode": "text",
                "x": [owner for _ in place for owner in place],
                "y": [rank for rank in place for _ in place],
                **_labels(n, split, step),
                "xaxis": heat_x,
                "yaxis": y,
                "hoverinfo": "skip",
                "showlegend": False,
            }
        )
        done = [total - now for total, now in zip(step.work, step.now)]
        waits = [step.elapsed - total for total in step.work]
        labels = [f" {total:g}" for total in step.work]
        for name, length, marker in (
            ("done", done, {"color": _FILL["done"]}),
            ("now", step.now, {"color": _FILL["now"]}),
            ("–: masked, nothing to do", [0.0] * n, {"color": _FILL["skipped"]}),  # for the legend
            (
                "waiting",
                waits,
                {
                    "color": "rgba(0,0,0,0)",
                    "line": {"width": 1, "color": TIME["waiting"]},
                    "pattern": {"shape": HATCH, "fgcolor": TIME["waiting"], "size": 6},
                },
            ),
        ):
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": name,
                    "legendgroup": name,
                    "showlegend": half == 0,
                    "x": length,
                    "y": place,
                    "width": 0.5,
                    "marker": marker,
                    "xaxis": bar_x,
                    "yaxis": y,
                    "customdata": labels,
                    "hovertemplate": (
                        f"%{{y}}, {name}: %{{x:g}}<br>computed so far:%{{customdata}}"
                        "<extra></extra>"
                    ),
                }
            )
    return traces


def _changes(n: int, runs: dict[str, list[AttentionStep]], i: int) -> list[dict]:
    """What a frame changes of each trace; plotly keeps the rest."""
    changing = {
        "heatmap": ("z", "customdata"),
        "scatter": ("text", "textfont"),
        "bar": ("x", "customdata"),
    }
    return [
        {key: trace[key] for key in ("type", *changing[trace["type"]])}
        for trace in _data(n, runs, i)
    ]


def _scale() -> list[list]:
    colours = [_FILL[state] for state in _STATES]
    return [[edge / 4, colour] for k, colour in enumerate(colours) for edge in (k, k + 1)]


def _frame_layout(n: int, runs: dict[str, list[AttentionStep]], i: int) -> dict:
    steps = [runs[split][i] for split in SPLITS]
    title = {"text": _title(n, steps), "subtitle": {"text": _LEGEND}}
    return {"title": {**title, "y": 1, "yanchor": "top", "pad": {"t": 14}}}


def _build(n: int, runs: dict[str, list[AttentionStep]]):
    import plotly.graph_objects as go

    slider = frame_slider([str(i + 1) for i in range(n)], pad=62)
    return go.Figure(
        data=_data(n, runs, 0),
        frames=[
            {"name": str(i + 1), "data": _changes(n, runs, i), "layout": _frame_layout(n, runs, i)}
            for i in range(n)
        ],
        layout={
            "template": template(),
            **_frame_layout(n, runs, 0),
            "height": _TOP + _ROW * n + _BOTTOM,
            "margin": {"t": _TOP, "l": 12, "r": 16, "b": _BOTTOM, "autoexpand": False},
            "barmode": "stack",
            "legend": {"y": -12 / (_ROW * n), "yanchor": "top", "x": _HALVES[0][0]},
            **_axes(n),
            "annotations": [_heading(n, split, half) for half, split in enumerate(SPLITS)],
            "sliders": [slider],
        },
    )


def _axes(n: int) -> dict:
    axes = {}
    for half, (left, right) in enumerate(_HALVES):
        middle = left + 0.56 * (right - left)
        first = 2 * half + 1
        axes[f"xaxis{first if first > 1 else ''}"] = {
            "domain": [left, middle],
            "anchor": f"y{half + 1 if half else ''}",
            "side": "top",
            "showgrid": False,
            "zeroline": False,
            "ticks": "",
            "title": {"text": "keys of rank", "standoff": 4},
            "tickvals": list(range(n)),
            "range": [-0.5, n - 0.5],
        }
        axes[f"xaxis{first + 1}"] = {
            "domain": [middle + 0.02, right],
            "anchor": f"y{half + 1 if half else ''}",
            "side": "top",
            "ticks": "",
            "showgrid": True,
            "title": {"text": "work, blocks", "standoff": 4},
            "range": [0, n - 0.4],
            "dtick": 1 if n <= 4 else 2,
            "zeroline": False,
        }
        axes[f"yaxis{half + 1 if half else ''}"] = {
            "anchor": f"x{first if first > 1 else ''}",
            "range": [n - 0.5, -0.5],
            "showgrid": False,
            "zeroline": False,
            "automargin": False,
            "tickvals": list(range(n)),
            "ticktext": [f"rank {rank}" for rank in range(n)],
        }
    return axes


def _heading(n: int, split: str, half: int) -> dict:
    held = {"contiguous": f"chunk 0 of {n}", "zigzag": f"0 and {2 * n - 1} of {2 * n}"}
    return {
        "text": f"<b>{_NAMES[split]}</b>: rank 0 has {held[split]}",
        "showarrow": False,
        "xref": "paper",
        "yref": "paper",
        "x": _HALVES[half][0],
        "xanchor": "left",
        "y": 1,
        "yanchor": "bottom",
        "yshift": 44,
    }
