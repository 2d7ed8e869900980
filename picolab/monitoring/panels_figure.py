"""Panels with titles, side by side: the map of experts, the map of formats; and a panel's title,
for a figure that places its panels itself.
"""

from collections.abc import Iterable, Sequence

from picolab.show.picture import LETTERS, TEXT, broken, template

Domain = Sequence[float]


def panels_figure(
    traces: Iterable[tuple[int, dict]],
    values: Iterable[dict],
    titles: Iterable[str],
    axes: Iterable[tuple[dict, dict]],
    places: Sequence[tuple[Domain, Domain]],
    **layout,
):
    """A plotly figure of panels.

    traces: (panel, trace), and their data in the same order. titles, axes (x, y) and places (where
    x and y run, in shares of the figure): of each panel. layout: of the whole.
    """
    import plotly.graph_objects as go

    data = []
    for (panel, trace), found in zip(traces, values, strict=True):
        number = "" if panel == 0 else str(panel + 1)
        data.append({**trace, **found, "xaxis": f"x{number}", "yaxis": f"y{number}"})
    layout = {"template": template(), **layout}
    for panel, ((x, y), (across, up)) in enumerate(zip(axes, places)):
        number = "" if panel == 0 else str(panel + 1)
        layout[f"xaxis{number}"] = {**x, "domain": across, "anchor": f"y{number}"}
        layout[f"yaxis{number}"] = {**y, "domain": up, "anchor": f"x{number}"}
    layout["annotations"] = [
        panel_title(broken(title, LETTERS // 2), place, color=TEXT) | {"yshift": 4}
        for title, place in zip(titles, places)
    ]
    return go.Figure(data=data, layout=layout)


def panel_title(text: str, place: tuple[Domain, Domain], above: float = 0.0, **font) -> dict:
    """The annotation that stands over a panel, `above` its upper edge in shares of the figure."""
    (left, _), (_, top) = place
    return {
        "text": text,
        "x": left,
        "y": top + above,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "bottom",
        "showarrow": False,
        "align": "left",
        "font": {"size": 13, **font},
    }
