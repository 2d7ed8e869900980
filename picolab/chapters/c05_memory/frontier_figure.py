"""Bytes against time: the best plan of every budget, plans that another rule chose, and the peaks
that real runs had."""

from collections.abc import Sequence

from picolab.show.block_letters import block_letters
from picolab.show.picture import BLUE, GREY, PURPLE, RUST, LabFigure, template
from picolab.show.table import Table, bytes_text


def frontier_figure(
    frontier: Sequence[tuple],
    others: Sequence[tuple[int, float]] = (),
    runs: Sequence[tuple[int, int]] = (),
    name: str = "another rule",
) -> LabFigure:
    """frontier: (peak, seconds, choices) of the best plans, as a "memory plan" tells them. others:
    (budget, seconds) of plans chosen by `name`. runs: (budget, measured peak). ValueError if there
    is no plan."""
    if not frontier:
        raise ValueError("there is no plan to draw")
    plans = [(peak, seconds, block_letters(choices))
             for peak, seconds, choices in frontier]  # fmt: skip
    rows = [[bytes_text(peak), 1e3 * seconds, letters] for peak, seconds, letters in plans]
    least, most = plans[0][0], plans[-1][0]
    title = (
        f"From {bytes_text(most)} down to {bytes_text(least)} "
        f"({100 * least / most:.0f} %) for {1e3 * plans[0][1]:.1f} ms a micro-batch"
    )
    text = repr(Table(["peak", "ms longer", "blocks"], rows, title))
    if runs:
        seen = [[bytes_text(budget), bytes_text(peak)] for budget, peak in runs]
        text += f"\n\n{Table(['budget', 'measured peak'], seen)!r}"
    return LabFigure(text, lambda: _build(plans, others, runs, name, title))


def _build(plans, others, runs, name: str, title: str):
    import plotly.graph_objects as go

    def mb(values):
        return [value / 1e6 for value in values]

    peaks, seconds, letters = zip(*plans)
    ms = [1e3 * of for of in seconds]
    right = max([peaks[-1], *(budget for budget, _ in runs), *(peak for peak, _ in others)])
    data = [
        {
            "type": "scatter", "mode": "lines+markers", "name": "the best plan of a budget",
            "x": mb([*peaks, 1.05 * right]), "y": [*ms, ms[-1]],
            "text": [*letters, letters[-1]], "line": {"color": BLUE, "width": 2, "shape": "hv"},
            "marker": {"size": [8] * len(peaks) + [0.1]},
            "hovertemplate": "%{x:.2f} MB: %{y:.2f} ms longer (%{text})<extra></extra>",
        }
    ]  # fmt: skip
    if others:
        data.append({
            "type": "scatter", "mode": "markers", "name": name,
            "x": mb(peak for peak, _ in others), "y": [1e3 * of for _, of in others],
            "marker": {"color": RUST, "size": 10, "symbol": "x"},
            "hovertemplate": f"%{{x:.2f}} MB: %{{y:.2f}} ms longer ({name})<extra></extra>",
        })  # fmt: skip
    for at, (budget, peak) in enumerate(runs):
        best = max(i for i, of in enumerate(peaks) if of <= max(budget, peaks[0]))
        y = ms[best]
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": "a run: peak ● under its budget |",
            "x": mb([peak, budget]), "y": [y, y], "showlegend": at == 0,
            "line": {"color": PURPLE, "width": 2},
            "marker": {"color": [PURPLE, GREY], "size": [10, 16],
                       "symbol": ["circle", "line-ns-open"], "line": {"width": 2}},
            "hovertemplate": "%{x:.2f} MB<extra></extra>",
        })  # fmt: skip
    layout = {
        "template": template(),
        "title": {"text": title},
        "height": 380,
        "xaxis": {"title": {"text": "peak of a rank (MB)"}},
        "yaxis": {"title": {"text": "ms a micro-batch more"}, "rangemode": "tozero"},
        "legend": {"y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"t": 96},
    }
    return go.Figure(data=data, layout=layout)
