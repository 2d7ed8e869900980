"""The ring all-reduce, step by step: who sends which chunk to whom, and how much of the sum each
chunk already holds.

Simulated on sets, not measured: a chunk is the set of ranks whose contribution it holds. The
rules are those of the real one (`picolab.comm.ring`): each rank has n chunks and one neighbour;
in a step it sends one chunk on.

    reduce-scatter, steps 1 .. n-1    rank r sends chunk (r - s + 1) mod n; its neighbour adds it
    all-gather, steps n .. 2(n-1)     the neighbour keeps the finished chunk instead

After 2(n-1) steps every chunk on every rank holds all n contributions, and each rank has sent
2(n-1)/n of the tensor. The figure is plain plotly frames behind a slider: it needs no kernel.
"""

from typing import NamedTuple

from picolab.show.picture import LabFigure, frame_slider, template
from picolab.show.table import Table

MAX_RANKS = 16  # 30 steps; more is no longer a picture


class RingStep(NamedTuple):
    step: int  # 0 is before the first
    phase: str  # "start", "reduce-scatter", "all-gather"
    sends: list[tuple[int, int, int]]  # (from rank, to rank, chunk)
    chunks: list[
        list[frozenset[int]]
    ]  # [rank][chunk] -> whose contributions it holds after the step


def simulate_ring(n: int) -> list[RingStep]:
    """Every step of a ring all-reduce over n ranks, on sets of contributions."""
    chunks = [[frozenset({rank}) for _ in range(n)] for rank in range(n)]
    steps = [RingStep(0, "start", [], [row[:] for row in chunks])]
    for s in range(1, 2 * (n - 1) + 1):
        reducing = s < n
        sends = [(rank, (rank + 1) % n, (rank - s + 1) % n) for rank in range(n)]
        moving = [(to, chunk, chunks[rank][chunk]) for rank, to, chunk in sends]
        for to, chunk, arrived in moving:  # all at once: what was sent is from before the step
            chunks[to][chunk] = chunks[to][chunk] | arrived if reducing else arrived
        phase = "reduce-scatter" if reducing else "all-gather"
        steps.append(RingStep(s, phase, sends, [row[:] for row in chunks]))
    return steps


def ring_all_reduce_frames(n: int = 4) -> LabFigure:
    """A figure with a slider over the 2(n-1) steps of a ring all-reduce of n ranks (simulated)."""
    if not isinstance(n, int) or isinstance(n, bool) or not 2 <= n <= MAX_RANKS:
        raise ValueError(f"a ring needs 2 to {MAX_RANKS} ranks to be drawn, not {n!r}")
    steps = simulate_ring(n)
    return LabFigure(_text(n, steps), lambda: _build(n, steps))


def _text(n: int, steps: list[RingStep]) -> str:
    rows = []
    for step in steps:
        held = [len(chunk) for row in step.chunks for chunk in row]
        full = sum(count == n for count in held)
        sends = ", ".join(f"{a}→{b}: chunk {c}" for a, b, c in step.sends) or "nothing yet"
        rows.append([step.step, step.phase, sends, f"{full} of {n * n}"])
    title = f"Ring all-reduce of {n} ranks in {2 * (n - 1)} steps (simulated)"
    return str(Table(["step", "phase", "sends", "chunks complete"], rows, title))


def _title(n: int, step: RingStep) -> str:
    if step.step == 0:
        return f"Before the first of {2 * (n - 1)} steps: each rank holds only its own (simulated)"
    return (
        f"Step {step.step} of {2 * (n - 1)}, {step.phase}: each rank has sent "
        f"{step.step}/{n} of its tensor (simulated)"
    )


def _legend(n: int) -> str:
    return f"k/{n}: holds k of {n} contributions; ● arrived in this step; arrows: from whom"


def _cells(n: int, step: RingStep) -> dict:
    arrived = {(to, chunk) for _, to, chunk in step.sends}
    label = [
        [
            f"<b>{len(chunk)}/{n}</b>" + (" ●" if (rank, c) in arrived else "")
            for c, chunk in enumerate(row)
        ]
        for rank, row in enumerate(step.chunks)
    ]
    names = [
        ["ranks " + ", ".join(map(str, sorted(chunk))) for chunk in row] for row in step.chunks
    ]
    return {
        "z": [[len(chunk) for chunk in row] for row in step.chunks],
        "text": label,
        "customdata": names,
    }


def _arrows(n: int, step: RingStep) -> dict:
    """One line for each message, down its chunk's column: from the sender's row to the
    receiver's.
    """
    x, y = [], []
    for rank, to, chunk in step.sends:
        side = 0.38
        if to > rank:
            x += [chunk + side, chunk + side, None]
            y += [rank, to - 0.12, None]
        else:  # from the last rank to rank 0: out at the bottom and in at the top
            x += [chunk + side, chunk + side, None, chunk + side, chunk + side, None]
            y += [rank, rank + 0.55, None, -0.6, -0.12, None]
    return {"x": x, "y": y}


def _build(n: int, steps: list[RingStep]):
    import plotly.graph_objects as go

    heat = {
        "type": "heatmap",
        "texttemplate": "%{text}",
        "textfont": {"color": "#ffffff", "size": 13},
        "zmin": 1,
        "zmax": n,
        "colorscale": _scale(n),
        "showscale": False,
        "xgap": 3,
        "ygap": 3,
        "hovertemplate": "%{y}, %{x}<br>holds %{customdata}<extra></extra>",
    }
    arrows = {
        "type": "scatter",
        "mode": "lines+markers",
        "showlegend": False,
        "hoverinfo": "skip",
        "cliponaxis": False,
        "line": {"color": "#ffffff", "width": 2},
        "marker": {
            "symbol": "arrow",
            "size": 9,
            "color": "#ffffff",
            "angleref": "previous",
        },
    }
    place = {"x": list(range(n)), "y": list(range(n))}

    def data(step: RingStep) -> list[dict]:
        return [{**heat, **place, **_cells(n, step)}, {**arrows, **_arrows(n, step)}]

    frames = [
        {
            "name": str(step.step),
            "data": data(step),
            "layout": {"title": {"text": _title(n, step), "subtitle": {"text": _legend(n)}}},
        }
        for step in steps
    ]
    slider = frame_slider([str(step.step) for step in steps], pad=30)
    height = 215 + 46 * n
    return go.Figure(
        data=data(steps[0]),
        frames=frames,
        layout={
            "template": template(),
            "title": {"text": _title(n, steps[0]), "subtitle": {"text": _legend(n)}},
            "height": height,
            "margin": {"t": 112, "l": 70},
            "xaxis": {
                "side": "top",
                "showgrid": False,
                "zeroline": False,
                "tickvals": list(range(n)),
                "ticktext": [f"chunk {c}" for c in range(n)],
                "range": [-0.5, n - 0.5],
            },
            "yaxis": {
                "range": [n - 0.4, -0.6],
                "showgrid": False,
                "zeroline": False,
                "tickvals": list(range(n)),
                "ticktext": [f"rank {r}" for r in range(n)],
            },
            "sliders": [slider],
        },
    )


def _scale(n: int) -> list[list]:
    """Grey for the own contribution alone, through blue, to green for the complete sum."""
    grey, blue, green = "#6a6f78", "#2a72ee", "#0d7f65"  # dark enough for white digits
    nearly = (n - 2) / (n - 1) if n > 2 else 0.5
    return [
        [0.0, grey],
        [nearly, blue],
        [(nearly + 1) / 2, blue],
        [(nearly + 1) / 2, green],
        [1.0, green],
    ]
