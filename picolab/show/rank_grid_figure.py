"""The rank grid of a layout, drawn: `arange(world).reshape(pp, dp, cp, tp)` and its slices.

Rows are places on the outer axes (pp, dp), columns on the inner ones (cp, tp). The slider picks
an axis and colours its groups: the ranks of one colour talk to each other along that axis. A
group is what is left of the grid when all other axes are held fixed.
"""

from picolab.show.picture import GREY, GRID, GROUPS, TEXT, LabFigure, ink, template
from picolab.show.table import Table

MAX_WORLD = 256


def groups(layout, axis: str) -> list[list[int]]:
    """The groups of one axis: ranks that differ in nothing but their place on it."""
    found: dict[tuple, list[int]] = {}
    for rank in range(layout.world):
        place = layout.coordinates(rank)
        key = tuple(place[other] for other in layout.axes if other != axis)
        found.setdefault(key, []).append(rank)
    return list(found.values())


def rank_grid_figure(layout) -> LabFigure:
    """Draw a `Layout`: which rank stands where, and who talks to whom along each axis."""
    if layout.world > MAX_WORLD:
        raise ValueError(
            f"{layout} has {layout.world:,} ranks; a grid of more than {MAX_WORLD} cannot be read. "
            "Its groups follow the same line: arange(world).reshape(pp, dp, cp, tp)"
        )
    axes = [axis for axis, size in layout.axes.items() if size > 1] or ["dp"]
    return LabFigure(_text(layout, axes), lambda: _build(layout, axes))


def _listed(members: list[list[int]], most: int = 8) -> str:
    shown = "  ".join("(" + " ".join(map(str, group)) + ")" for group in members[:most])
    return shown + (f"  and {len(members) - most} more" if len(members) > most else "")


def _text(layout, axes: list[str]) -> str:
    rows = [[axis, layout.axes[axis], _listed(groups(layout, axis))] for axis in axes]
    return f"{layout!r}\n\n{Table(['axis', 'size', 'its groups'], rows)}"


def _title(layout, axis: str) -> str:
    members = groups(layout, axis)
    if layout.world == 1:
        return f"{layout}: one rank, which talks to nobody"
    noun = "group" if len(members) == 1 else "groups"
    return f"{layout}: {len(members)} {axis} {noun} of {len(members[0])}, one colour each"


def _build(layout, axes: list[str]):
    import plotly.graph_objects as go

    rows, columns = layout.pp * layout.dp, layout.cp * layout.tp
    places = [layout.coordinates(rank) for rank in range(layout.world)]
    x = [place["cp"] * layout.tp + place["tp"] for place in places]
    y = [place["pp"] * layout.dp + place["dp"] for place in places]
    hover = [
        f"rank {rank}<br>" + ", ".join(f"{axis} {i}" for axis, i in place.items())
        for rank, place in enumerate(places)
    ]
    small = rows > 12 or columns > 12

    def trace(axis: str) -> dict:
        colour = {
            rank: GROUPS[i % len(GROUPS)]
            for i, group in enumerate(groups(layout, axis))
            for rank in group
        }
        colours = [colour[rank] if axes else GREY for rank in range(layout.world)]
        return {
            "type": "scatter",
            "mode": "markers+text",
            "x": x,
            "y": y,
            "text": [str(rank) if small else f"<b>{rank}</b>" for rank in range(layout.world)],
            "textfont": {"color": [ink(c) for c in colours], "size": 11 if small else 15},
            "customdata": hover,
            "hovertemplate": "%{customdata}<extra></extra>",
            "marker": {
                "symbol": "square",
                "size": 22 if small else 38,
                "color": colours,
            },
            "showlegend": False,
        }

    jump = {
        "mode": "immediate",
        "frame": {"duration": 0, "redraw": True},
        "transition": {"duration": 0},
    }
    start = axes[-1]
    slider = {
        "active": len(axes) - 1,
        "currentvalue": {"prefix": "groups of "},
        "pad": {"t": 16},
        "len": 0.62,
        "x": 0,
        "bordercolor": GRID,
        "bgcolor": GRID,
        "activebgcolor": TEXT,
        "tickcolor": TEXT,
        "steps": [{"method": "animate", "label": a, "args": [[a], jump]} for a in axes],
    }
    step = 30 if small else 52
    figure = go.Figure(
        data=[trace(start)],
        frames=[
            {"name": a, "data": [trace(a)], "layout": {"title": {"text": _title(layout, a)}}}
            for a in axes
        ],
        layout={
            "template": template(),
            "title": {"text": _title(layout, start)},
            "height": 120 + step * rows + (90 if len(axes) > 1 else 0),
            "margin": {"l": 90, "t": 84, "b": 20},
            "xaxis": {
                "side": "top",
                "range": [-0.6, max(columns, 8 if not small else columns) - 0.4],
                "showgrid": False,
                "zeroline": False,
                "tickvals": list(range(columns)),
                "ticktext": _labels(layout, ("cp", "tp"), columns),
            },
            "yaxis": {
                "range": [rows - 0.5, -0.5],
                "showgrid": False,
                "zeroline": False,
                "tickvals": list(range(rows)),
                "ticktext": _labels(layout, ("pp", "dp"), rows),
            },
        },
    )
    if len(axes) > 1:
        figure.update_layout(sliders=[slider])
    return figure


def _labels(layout, pair: tuple[str, str], count: int) -> list[str]:
    """'pp 0, dp 1' for the rows, 'tp 3' for the columns; an axis of size 1 is not named."""
    outer, inner = pair
    size = layout.axes[inner]
    named = [axis for axis in pair if layout.axes[axis] > 1] or [inner]
    places = [{outer: i // size, inner: i % size} for i in range(count)]
    return [", ".join(f"{axis} {place[axis]}" for axis in named) for place in places]
