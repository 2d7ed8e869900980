"""An all-to-all as a matrix: what each rank sends to each.

`sent_matrix` reads it from a run that sent_rows.py has listened to, in bytes; `traffic_matrix`
draws that, or any other. A row's sum is the payload that this rank's ledger has; the diagonal stays
at home, and what a rank is sent, the column, is what its experts compute.
"""

from collections.abc import Sequence

from picolab.costs import dtype_bytes
from picolab.show.picture import LETTERS, LabFigure, broken, template
from picolab.show.table import Table, bytes_text

EVENT = "rows sent"


def sent_matrix(result, step: int = -1) -> list[list[int]]:
    """[rank][to rank]: bytes of rows to experts in a step's forwards (-1: the last)."""
    told: dict[int, dict[int, list[int]]] = {}
    for event in result.events:
        if event.kind == EVENT:
            told.setdefault(event.data["step"], {})[event.rank] = event.data["rows"]
    if not told:
        raise ValueError(
            "this run did not tell what it sent; give it observers=[pico.chapters.c02_moe.sent()]"
        )
    rows = told[sorted(told)[step]]
    config, layout = result.config, result.layout
    each = config.model.hidden * dtype_bytes(config.dtype)
    matrix = [[0] * layout.world for _ in range(layout.world)]
    for line in layout.lines("ep"):
        for rank in line:
            for other, count in zip(line, rows[rank]):
                matrix[rank][other] = count * each
    return matrix


def traffic_matrix(matrix: Sequence[Sequence[float]], title: str = "") -> LabFigure:
    """Bytes from each rank (a row) to each (a column), with the sums."""
    n = len(matrix)
    if any(len(row) != n for row in matrix):
        raise ValueError("a traffic matrix has as many columns as rows, a rank each")
    sent = [sum(row) for row in matrix]
    got = [sum(column) for column in zip(*matrix)]
    away = sum(sent) - sum(matrix[rank][rank] for rank in range(n))
    mean = sum(got) / n or 1
    said = (
        f"{bytes_text(away)} of {bytes_text(sum(sent))} leave their rank; "
        f"rank {got.index(max(got))} gets {max(got) / mean:.2f} times the mean"
    )
    title = f"{title}: {said}" if title else said
    rows = [[f"from rank {rank}", *row, sent[rank]] for rank, row in enumerate(matrix)]
    rows.append(["together", *got, sum(sent)])
    columns = ["bytes", *(f"to rank {rank}" for rank in range(n)), "together"]
    return LabFigure(repr(Table(columns, rows, title)), lambda: _build(matrix, title))


def _build(matrix, title: str):
    import plotly.graph_objects as go

    n = len(matrix)
    most = max(max(row) for row in matrix) or 1
    names = [f"rank {rank}" for rank in range(n)]
    heat = {
        "type": "heatmap",
        "x": names,
        "y": names,
        "z": [list(row) for row in matrix],
        "zmin": 0,
        "zmax": most,
        # The page shows through, so that text in its own colour can be read on every place.
        "colorscale": [[0, "rgba(42,114,238,0.04)"], [1, "rgba(42,114,238,0.55)"]],
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "hovertemplate": "from %{y} to %{x}: %{z:,.0f} bytes<extra></extra>",
    }
    notes = [
        {
            "x": names[to],
            "y": names[rank],
            "text": bytes_text(value),
            "showarrow": False,
        }
        for rank, row in enumerate(matrix)
        for to, value in enumerate(row)
    ]
    layout = {
        "template": template(),
        "title": {"text": broken(title, LETTERS)},
        "height": 150 + 48 * n,
        "margin": {"t": 84, "b": 52},
        "xaxis": {"title": {"text": "to"}, "showgrid": False},
        "yaxis": {"title": {"text": "from"}, "autorange": "reversed", "showgrid": False},
        "annotations": notes,
    }
    return go.Figure(data=[heat], layout=layout)
