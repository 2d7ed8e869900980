"""Gradients by their size, and what fp16 holds of them at each loss scale: a histogram that a
slider pushes to the right.
"""

from collections.abc import Mapping

from picolab.show.picture import (
    BLUE,
    GREY,
    HATCH,
    LETTERS,
    RUST,
    LabFigure,
    broken,
    frame_slider,
    template,
)
from picolab.show.table import Table

_KINDS = {"flushed to zero": GREY, "held": BLUE, "too large": RUST}


def range_figure(
    counts: Mapping[int, int], format: str = "fp16", shifts: range = range(0, 25, 2)
) -> LabFigure:
    """counts: exponent -> elements (`precision.powers`). shifts: loss scales, as powers of two.
    ValueError if there is nothing to draw."""
    if not counts:
        raise ValueError("there is no element that is not zero, so there is nothing to draw")
    from picolab.precision.powers import lost_at

    rows = []
    for shift in shifts:
        flushed, beyond = lost_at(counts, format, shift)
        rows.append([f"2^{shift}", 100 * flushed, 100 * beyond])
    columns = ["loss scale", "flushed %", "too large %"]
    title = f"{sum(counts.values()):,} gradients in {format}"
    return LabFigure(
        repr(Table(columns, rows, title)), lambda: _build(dict(counts), format, list(shifts))
    )


def _build(counts: dict[int, int], format: str, shifts: list[int]):
    import plotly.graph_objects as go

    from picolab.precision.formats import find

    of, total = find(format), sum(counts.values())
    least, most = of.least - of.mantissa - 1, of.limit
    low, high = min(counts) + min(shifts) - 2, max(counts) + max(shifts) + 2
    style = {"type": "bar", "width": 0.9, "hovertemplate": "2^%{x}: %{y:.2f} %<extra></extra>"}

    def bars(shift: int) -> list[dict]:
        moved = {e + shift: 100 * count / total for e, count in counts.items()}
        parts: dict[str, dict[int, float]] = {name: {} for name in _KINDS}
        for e, share in moved.items():
            kind = "flushed to zero" if e < least else "held" if 2.0**e < most else "too large"
            parts[kind][e] = share
        return [{"x": list(part), "y": list(part.values())} for part in parts.values()]

    def title(shift: int) -> str:
        from picolab.precision.powers import lost_at

        flushed, beyond = lost_at(counts, format, shift)
        said = f"loss scale 2^{shift}: {100 * flushed:.1f} % of the gradients become zero"
        return broken(said + (f", {100 * beyond:.2g} % too large" if beyond else ""), LETTERS)

    names = list(_KINDS)
    data = []
    first = 0 if 0 in shifts else shifts[0]
    for name, values in zip(names, bars(first)):
        marker = {"color": _KINDS[name], "line": {"width": 0}}
        if name != "held":
            marker["pattern"] = {"shape": HATCH, "fillmode": "overlay", "fgcolor": "#ffffff"}
            marker["pattern"] |= {"size": 7, "solidity": 0.3}
        data.append({**style, "name": name, "marker": marker, **values})
    frames = [
        go.Frame(name=f"2^{s}", data=bars(s), layout={"title": {"text": title(s)}}) for s in shifts
    ]
    slider = frame_slider([f"2^{s}" for s in shifts], 52)
    slider["currentvalue"]["prefix"] = "loss scale "
    slider["active"] = shifts.index(first)
    edges = [least - 0.5, of.least - 0.5]
    layout = {
        "template": template(),
        "title": {"text": title(first)},
        "height": 430,
        "barmode": "stack",
        "xaxis": {"title": {"text": "size, as a power of two"}, "range": [low, high]},
        "yaxis": {"title": {"text": "% of the gradients"}, "rangemode": "tozero"},
        "legend": {"y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"t": 96, "b": 130},
        "sliders": [slider],
        "shapes": [
            {
                "type": "line",
                "x0": at,
                "x1": at,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "line": {"color": GREY, "dash": "dot", "width": 1.5},
            }
            for at in edges
        ],
    }
    return go.Figure(data=data, frames=frames, layout=layout)
