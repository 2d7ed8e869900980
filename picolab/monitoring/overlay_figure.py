"""Finished runs laid over one another: loss and speed, step by step, named by their layouts.

Runs on the same batches have the same losses but for rounding, so their lines lie on one another:
each next one is drawn dashed and wider below the first, and the title says how far apart they are.
"""

from picolab.monitoring.run_state import RunState, decimate
from picolab.show.picture import GROUPS, LabFigure, template
from picolab.show.table import Table

HEIGHT = 340
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def names(states: list[RunState]) -> list[str]:
    """The layout of each; the second run of one layout is "dp2 (2)"."""
    found: list[str] = []
    for state in states:
        name, again = state.layout or "run", 1
        while (label := name if again == 1 else f"{name} ({again})") in found:
            again += 1
        found.append(label)
    return found


def overlay_figure(states: list[RunState]) -> LabFigure:
    """Loss and tokens/s of some runs in one figure each, and a table of them as text."""
    return LabFigure(_text(states), lambda: _build(states))


def findings(states: list[RunState]) -> tuple[str, str]:
    """What the loss panel and the speed panel say."""
    labels = names(states)
    common = sorted(set.intersection(*(set(state.losses) for state in states)))
    loss = "losses: no step in common"
    if common:
        of_step = [[state.losses[step] for state in states] for step in common]
        apart = max(max(values) - min(values) for values in of_step)
        loss = f"losses {apart:.1e} apart at most"
    speeds = {label: state.speed() for label, state in zip(labels, states)}
    told = [f"{label} {speed:,.0f}" for label, speed in speeds.items() if speed is not None]
    return loss, f"tokens/s (median): {', '.join(told)}" if told else "tokens/s: no step yet"


def _text(states: list[RunState]) -> str:
    labels, (loss, speed) = names(states), findings(states)
    runs = [[label, state.sentence()] for label, state in zip(labels, states)]
    steps = sorted(set().union(*(state.losses for state in states)))
    chosen = sorted({round(i * (len(steps) - 1) / 9) for i in range(10)}) if steps else []
    rows = [[steps[i], *(state.losses.get(steps[i]) for state in states)] for i in chosen]
    parts = [str(Table(["run", "where it is"], runs)), loss, speed]
    return "\n\n".join([*parts, str(Table(["step", *labels], rows, "loss"))])


def _build(states: list[RunState]):
    import plotly.graph_objects as go

    traces, (loss, _) = [], findings(states)
    for i, (label, state) in enumerate(zip(names(states), states)):
        speed = "" if state.speed() is None else f": {state.speed():,.0f} tokens/s"
        series = ((state.losses, "", "loss %{y:.4f}"), (state.tokens_per_s, "2", "%{y:,.0f} tok/s"))
        for values, axis, said in series:
            steps = sorted(values)
            x, y = decimate(steps, [values[step] for step in steps])
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": f"{label}{speed}",  # many names do not fit in a title
                    "legendgroup": label,
                    "showlegend": not axis,
                    "cliponaxis": False,
                    "x": x,
                    "y": y,
                    "xaxis": f"x{axis}",
                    "yaxis": f"y{axis}",
                    "line": {
                        "color": GROUPS[i % len(GROUPS)],
                        "dash": _DASHES[i % len(_DASHES)],
                        "width": 2 + 1.5 * (i if not axis else 0),
                    },
                    "zorder": -i,
                    "hovertemplate": f"{label}, step %{{x}}: {said}<extra></extra>",
                }
            )
    step = {"title": {"text": "step"}, "rangemode": "tozero", "nticks": 6}
    heads = [
        {
            "text": text,
            "x": x,
            "y": 1.04,
            "xref": "paper",
            "yref": "paper",
            "xanchor": "left",
            "yanchor": "bottom",
            "showarrow": False,
        }
        for text, x in ((loss, 0.0), ("speed, the median below", 0.54))
    ]
    layout = {
        "template": template(),
        "height": HEIGHT,
        "margin": {"t": 50, "b": 84, "l": 70},
        "annotations": heads,
        "legend": {"y": -0.24, "yanchor": "top"},
        "xaxis": {**step, "domain": [0.0, 0.46], "anchor": "y"},
        "xaxis2": {**step, "domain": [0.54, 1.0], "anchor": "y2"},
        "yaxis": {"title": {"text": "loss (nats per token)"}, "anchor": "x", "nticks": 6},
        "yaxis2": {"title": {"text": "tokens/s"}, "anchor": "x2", "rangemode": "tozero"},
    }
    return go.Figure(data=traces, layout=layout)
