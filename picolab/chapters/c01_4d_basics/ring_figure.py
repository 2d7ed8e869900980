"""The ring all-reduce, step by step: who sends which chunk to whom, and how much of the sum each
chunk already holds.

Simulated on sets, not measured: a chunk is the set of ranks whose contribution it holds. The
rules are those of the real one (`picolab.comm.ring`): each rank has n chunks and one neighbour;
in a step it sends one chunk on.

    reduce-scatter, steps 1 .. n-1    rank r sends chunk (r - s + 1) mod n; its neighbour adds it
    all-gather, steps n .. 2(n-1)     the neighbour keeps the finished chunk instead

After 2(n-1) steps every chunk on every rank holds all n contributions, and each rank has sent
2(n-1)/n of the tensor.

In the figure a cell has n parts, one for each rank's contribution: its place and its colour say
whose it is, and it is filled once the chunk holds it. The figure is plain plotly frames behind a
slider: it needs no kernel.
"""

from typing import NamedTuple

from picolab.show.picture import GRID, GROUPS, TEXT, LabFigure, frame_slider, template
from picolab.show.table import Table

_ROOMY = 8  # ranks: up to here there is room for words
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
    return (
        f"a cell has a part for each of {n} ranks, filled once it is in the sum; ● arrived just now"
    )


def _cells(n: int, step: RingStep) -> dict:
    """A row a rank, and an empty one for its labels; of each chunk n parts and the gap after them.
    0 is empty, 1 is missing, 2 and more is the colour of the rank that a part comes from."""
    z: list[list[int]] = []
    for row in step.chunks:
        colours = []
        for chunk in row:
            colours += [2 + part % len(GROUPS) if part in chunk else 1 for part in range(n)] + [0]
        z += [colours, [0] * len(colours)]
    return {"z": z[:-1]}


def _ranks(chunk: frozenset[int]) -> str:
    return f"rank{'s' * (len(chunk) > 1)} {', '.join(map(str, sorted(chunk)))}"


def _edges(n: int) -> list[float]:
    """Where parts and gaps begin and end, for chunks at 0, 1, ..."""
    left, right = -0.46, 0.32  # the arrow goes down beside them
    inside = [left + (right - left) * part / n for part in range(n + 1)]
    return [chunk + edge for chunk in range(n) for edge in inside] + [n + left]


def _labels(n: int, step: RingStep) -> dict:
    """Below each cell, how many parts it holds, and whether the last of them arrived just now."""
    arrived = {(to, chunk) for _, to, chunk in step.sends}
    places = [(rank, chunk) for rank in range(n) for chunk in range(n)]
    labels: dict = {
        "text": [
            f"{len(step.chunks[rank][chunk])}/{n}" + (" ●" if (rank, chunk) in arrived else "")
            for rank, chunk in places
        ]
    }
    if n <= _ROOMY:  # beyond, the lists would be most of the figure's bytes
        labels["customdata"] = [_ranks(step.chunks[rank][chunk]) for rank, chunk in places]
    return labels


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

    colours = ["rgba(0,0,0,0)", GRID, *GROUPS]
    heat = {
        "type": "heatmap",
        "x": _edges(n),
        "y": [rank + edge for rank in range(n) for edge in (-0.42, 0.24)],  # a row, and the label's
        "zmin": 0,
        "zmax": len(colours),
        "colorscale": [
            [edge / len(colours), colour] for k, colour in enumerate(colours) for edge in (k, k + 1)
        ],
        "showscale": False,
        "xgap": 1,
        "hoverinfo": "skip",
    }
    labels = {
        "type": "scatter",
        "mode": "text",
        "textfont": {"color": TEXT, "size": 12 if n <= _ROOMY else 9},
        "showlegend": False,
        "hovertemplate": "%{y:.0f}, chunk %{x:.0f}"
        + ("<br>holds the parts of %{customdata}" if n <= _ROOMY else "")
        + "<extra></extra>",
        "cliponaxis": False,
        "x": [chunk - 0.07 for _ in range(n) for chunk in range(n)],
        "y": [rank + 0.4 for rank in range(n) for _ in range(n)],
    }
    arrows = {
        "type": "scatter",
        "mode": "lines+markers",
        "showlegend": False,
        "hoverinfo": "skip",
        "cliponaxis": False,
        "line": {"color": TEXT, "width": 2},
        "marker": {"symbol": "arrow", "size": 9, "color": TEXT, "angleref": "previous"},
    }

    def changes(step: RingStep) -> list[dict]:
        return [_cells(n, step), _arrows(n, step), _labels(n, step)]

    def data(step: RingStep) -> list[dict]:
        return [{**style, **of} for style, of in zip((heat, arrows, labels), changes(step))]

    frames = [
        {
            "name": str(step.step),
            "data": [
                {"type": style["type"], **of}  # plotly keeps the rest
                for style, of in zip((heat, arrows, labels), changes(step))
            ],
            "layout": {"title": {"text": _title(n, step), "subtitle": {"text": _legend(n)}}},
        }
        for step in steps
    ]
    slider = frame_slider([str(step.step) for step in steps], pad=30)
    height = 215 + 54 * n
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
                "ticktext": [f"chunk {c}" if n <= _ROOMY else str(c) for c in range(n)],
                "title": {"text": "" if n <= _ROOMY else "chunk"},
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
