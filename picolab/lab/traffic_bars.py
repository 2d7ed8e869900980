"""What a rank of a layout holds and sends, as bars: the formula's bytes above the measured ones.

The same as `layout_choice.formula_table`, to be looked at. A table, so that a screen reader reads
it: each bar has its words beside it, and whether two bars are equal stands there too.
"""

import html
import math

from picolab.lab.layout_choice import Traffic, formula_traffic, title, whole_facts
from picolab.show.picture import ANSWER
from picolab.specs import Layout, ModelConfig

_CELL = "text-align:left;vertical-align:middle;padding:0 12px 0 0;line-height:17px"


def traffic_bars(
    config: ModelConfig,
    layout: Layout,
    measured: dict[str, tuple[float, float]] | None = None,
    **step,
) -> str:
    """HTML. The arguments are those of `layout_choice.formula_table`."""
    expected = formula_traffic(config, layout, **step)
    found = {reason: Traffic(*row) for reason, row in (measured or {}).items()}
    facts = "".join(
        f"<div>{html.escape(name)}: <b>{html.escape(value)}</b></div>"
        for name, value in whole_facts(config, layout, step.get("accumulate"))
    )
    reasons = [*expected, *(reason for reason in found if reason not in expected)]
    most = max([t.payload_bytes for t in (*expected.values(), *found.values())], default=0) or 1
    rows = []
    for reason in reasons:
        lines = [_line("formula", expected.get(reason), most)]
        if measured is not None:
            unit = expected[reason].unit if reason in expected else "collective"
            told = found.get(reason)
            told = told._replace(unit=unit) if told else None
            same = _same(expected.get(reason), told)
            lines.append(_line("measured", told, most, same))
        head = f'<th scope="rowgroup" rowspan="{len(lines)}" style="{_CELL};font-weight:normal">'
        rows.append(
            f"<tbody><tr>{head}{html.escape(reason)}</th>" + "</tr><tr>".join(lines) + "</tr>"
            '<tr aria-hidden="true"><td style="height:4px;padding:0"></td></tr></tbody>'
        )
    whose = "one step, mean of the ranks" if layout.pp > 1 else "one rank, one step"
    body = "".join(rows)
    table = (
        f'<table style="width:100%;max-width:900px;border-collapse:collapse;margin-top:6px">'
        f'<thead><tr><th scope="col" colspan="4" style="{_CELL}">{whose}, payload</th></tr></thead>'
        f"{body}</table>"
        if reasons
        else "<div>no collectives: one rank talks to nobody</div>"
    )
    said = html.escape(title(layout, step["micro_batch"], step.get("accumulate")))
    return f'<div style="font-size:13px;line-height:18px"><div>{said}</div>{facts}{table}</div>'


def _line(name: str, traffic: Traffic | None, most: float, same: bool | None = None) -> str:
    share = 100 * traffic.payload_bytes / most if traffic else 0
    bar = (
        f'<div class="bar {name}" style="width:{share:.6g}%;min-width:2px;height:10px;'
        f'background:{ANSWER[name]}"></div>'
        if traffic
        else ""
    )
    said = "the same" if same else str(traffic) if traffic else "none"
    if same is False:
        said += "; <b>not the formula's</b>"
    return (
        f'<td style="{_CELL}">{name}</td><td style="{_CELL};width:34%">{bar}</td>'
        f'<td style="{_CELL}">{said}</td>'
    )


def _same(expected: Traffic | None, found: Traffic | None) -> bool:
    if expected is None or found is None:
        return False
    return all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(expected[:2], found[:2]))
