"""One step as bars in time, a row a rank, and its messages as arrows from sender to receiver.

`activity_figure` is a figure of its own; `arrays`, `traces` and `axes` are what the dashboard puts
under its four panels for a run with a pipeline, also while it runs.
"""

from picolab.monitoring.activity import KINDS, Activity
from picolab.show.picture import LETTERS, TEXT, TIME, LabFigure, broken, pattern, template
from picolab.show.table import Table, bytes_text

ROW = 40  # pixels of a rank
MAX_BARS = 6_000  # of a dashboard's panel: more can be neither read nor painted five times a second
_BAR = 0.56  # of a row; arrows cross the rest


def activity_figure(activity: Activity) -> LabFigure:
    """Compute, communication, waiting and bubble of each rank in one step, and its messages."""
    title = activity.sentence()
    rows = [
        [f"rank {rank}", *(round(1e3 * part, 3) for part in parts)]
        for rank, parts in activity.split().items()
    ]
    table = Table(["", *(f"{kind} ms" for kind in KINDS)], rows)

    def build():
        import plotly.graph_objects as go

        drawn = [{**trace, **data} for trace, data in zip(traces(), arrays(activity))]
        for trace in drawn:
            trace["showlegend"] = True
        x, y = axes(activity)
        heading = {"text": broken(title, LETTERS)}
        layout = {"template": template(), "title": heading, "barmode": "overlay"}
        figure = go.Figure(data=[t for t in drawn if len(t["x"])], layout=layout)
        height = ROW * len(activity.bounds) + 174
        figure.update_layout(height=height, xaxis=x, yaxis=y, margin={"t": 80, "b": 90})
        figure.update_layout(
            legend={"y": -56 / (height - 170), "yanchor": "top", "traceorder": "normal"}
        )
        return figure

    return LabFigure(f"{title}\n{activity.text()}\n{table}", build)


def arrays(activity: Activity | None) -> list[dict]:
    """The data of `traces()`: a bar trace for each kind, then the messages."""
    import numpy

    if activity is None:
        return [{"x": numpy.asarray([]), "y": numpy.asarray([])} for _ in (*KINDS, "messages")]

    def ms(time: float) -> float:
        return round(1e3 * (time - activity.start), 6)

    place = {rank: row for row, rank in enumerate(activity.bounds)}
    found = []
    for kind in KINDS:
        mine = [i for i in activity.intervals if i.kind == kind]
        data = {
            "x": numpy.asarray([round(1e3 * i.seconds, 6) for i in mine], dtype=float),
            "y": numpy.asarray([place[i.rank] for i in mine], dtype=float),
            "base": numpy.asarray([ms(i.start) for i in mine], dtype=float),
        }
        if kind != "compute":
            data["customdata"] = [f"{i.entry.op}, {i.entry.reason}" for i in mine]
        found.append(data)
    x, y, said = [], [], []
    for message in activity.messages:
        source, target = place[message.source], place[message.target]
        edge = _BAR / 2 if target > source else -_BAR / 2
        x += [ms(message.sent), ms(message.received), None]
        y += [source + edge, target - edge, None]
        text = (
            f"{message.reason}, {bytes_text(message.payload_bytes)} from rank {message.source} to "
            f"rank {message.target}"
        )
        said += [text, text, ""]
    arrows = {"x": numpy.asarray(x, dtype=float), "y": numpy.asarray(y, dtype=float)}
    return [*found, {**arrows, "customdata": said, "marker": _arrow_heads(len(x) // 3)}]


def traces() -> list[dict]:
    """Without data; in the order of `arrays`."""
    bars = [
        {
            "type": "bar",
            "orientation": "h",
            "name": kind,
            "legendgroup": kind,
            "showlegend": False,
            "width": _BAR,
            "marker": {"color": TIME[kind], "line": {"width": 0}, "pattern": pattern(kind)},
            "hovertemplate": (
                f"%{{y}}: {'compute' if kind == 'compute' else kind + ', %{customdata}'}<br>"
                "%{base:.2f} to %{x:.2f} ms<extra></extra>"
            ),
        }
        for kind in KINDS
    ]
    arrows = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "message",
        "showlegend": False,
        "connectgaps": False,
        "line": {"color": TEXT, "width": 1.2},
        "marker": _arrow_heads(0),
        "hovertemplate": "%{customdata}<br>at %{x:.2f} ms<extra></extra>",
    }
    return [*bars, arrows]


def _arrow_heads(count: int) -> dict:
    size = [0, 8, 0] * count  # at the receiver only
    return {"symbol": "arrow", "angleref": "previous", "color": TEXT, "size": size}


def axes(activity: Activity | None) -> tuple[dict, dict]:
    ranks = list(activity.bounds) if activity else []
    length = 1e3 * (activity.end - activity.start) if activity else 1.0
    x = {"title": {"text": "ms since the step began"}, "range": [0, length], "zeroline": False}
    y = {
        "range": [max(1, len(ranks)) - 0.5, -0.5],
        "tickvals": list(range(len(ranks))),
        "ticktext": [f"rank {rank}" for rank in ranks],
        "showgrid": False,
        "zeroline": False,
    }
    return x, y
