"""A table that reads the same in a terminal, in a notebook and in a test.

`print(table)` gives aligned text, JupyterLab shows HTML in its own style (so it follows the light
and the dark theme), and `rows` holds the values, not their text. Floats of a column have one number
of decimals, so that digits of the same worth stand under each other.

wrong    numbers of rows that say what is wrong: bold, and with a red edge in a notebook. It has to
         be said in the row as well, since a pipe shows neither
"""

import html
import math
from collections.abc import Collection, Sequence

from picolab.show.plain import visible

_EDGE = "box-shadow:inset 3px 0 #d6424b;"  # red is "now wrong" and nothing else, see picture.py
_ROOM = "padding:.3em .6em;line-height:1.4"  # in a widget a table has none of JupyterLab's
_MOST_DECIMALS = 6


class Table:
    def __init__(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence],
        title: str = "",
        wrong: Collection[int] = (),
    ):
        self.columns, self.rows, self.title = (
            list(columns),
            [list(row) for row in rows],
            visible(title),
        )
        self.wrong = frozenset(wrong)

    def texts(self) -> list[list[str]]:
        """What the cells show."""
        decimals = [_decimals([row[i] for row in self.rows]) for i in range(len(self.columns))]
        return [[_cell(value, n) for value, n in zip(row, decimals)] for row in self.rows]

    def __rich__(self):
        from rich.box import Box
        from rich.console import Group
        from rich.table import Table as Rich

        rule = Box("    \n    \n -  \n" + "    \n" * 5)
        table = Rich(box=rule, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for i, name in enumerate(self.columns):
            right = i > 0 and self._numeric(i)
            table.add_column(name, justify="right" if right else "left", overflow="fold")
        for number, row in enumerate(self.texts()):
            table.add_row(*row, style="bold" if number in self.wrong else None)
        return Group(self.title, table) if self.title else table

    def __repr__(self) -> str:
        from picolab.show.terminal import text

        return text(self)

    def _repr_html_(self) -> str:
        def cell(tag, i, text, wrong=False):
            style = f"text-align:{'right' if self._numeric(i) else 'left'};{_ROOM}"
            if wrong:
                style = f"font-weight:600;{_EDGE if i == 0 else ''}{style}"
            return f'<{tag} style="{style}">{html.escape(text)}</{tag}>'

        head = "".join(cell("th", i, name) for i, name in enumerate(self.columns))
        body = "".join(
            "<tr>"
            + "".join(cell("td", i, text, number in self.wrong) for i, text in enumerate(row))
            + "</tr>"
            for number, row in enumerate(self.texts())
        )
        # Not a caption: that is wrapped to the width of its table, however narrow.
        style = "text-align:left;font-size:var(--jp-ui-font-size1,13px)"
        title = f'<div style="{style}">{html.escape(self.title)}</div>' if self.title else ""
        return f"{title}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _numeric(self, i: int) -> bool:
        values = [row[i] for row in self.rows if row[i] is not None]
        return bool(values) and all(isinstance(value, int | float) for value in values)


def _decimals(values: list) -> int | None:
    """For all floats of a column: enough that the smallest has three digits, and none more than
    four need. None where there is no such number: then each has its own.
    """
    sizes = [abs(v) for v in values if isinstance(v, float) and v and math.isfinite(v)]
    if len(sizes) < 2:
        return None
    least, most = (math.floor(math.log10(size)) for size in (min(sizes), max(sizes)))
    if most - least > 5 or 2 - least > _MOST_DECIMALS:
        return None
    needed = max(len(show(size).partition(".")[2]) for size in sizes)
    return min(needed, max(0, 2 - least))


def _cell(value, decimals: int | None) -> str:
    if decimals is None or not isinstance(value, float) or not math.isfinite(value):
        return show(value)
    return f"{value:,.{decimals}f}"


def show(value) -> str:
    """A cell's text: integers with thousands separators, floats with four significant digits."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return visible(str(value))


def bytes_text(count: float) -> str:
    """Bytes in words, in powers of 1000: 3_200_000 -> '3.2 MB'."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"
