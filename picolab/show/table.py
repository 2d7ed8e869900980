"""A table that reads the same in a terminal, in a notebook and in a test.

`print(table)` gives aligned text, JupyterLab shows HTML in its own style (so it follows the light
and the dark theme), and `rows` holds the values, not their text."""

import html
from collections.abc import Sequence


class Table:
    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence], title: str = ""):
        self.columns, self.rows, self.title = list(columns), [list(row) for row in rows], title

    def __rich__(self):
        from rich.box import Box
        from rich.console import Group
        from rich.table import Table as Rich

        rule = Box("    \n    \n -  \n" + "    \n" * 5)
        table = Rich(box=rule, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for i, name in enumerate(self.columns):
            right = i > 0 and self._numeric(i)
            table.add_column(name, justify="right" if right else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*map(show, row))
        return Group(self.title, table) if self.title else table

    def __repr__(self) -> str:
        from picolab.show.terminal import text

        return text(self)

    def _repr_html_(self) -> str:
        def cell(tag, i, text):
            align = "right" if self._numeric(i) else "left"
            return f'<{tag} style="text-align:{align}">{html.escape(text)}</{tag}>'

        head = "".join(cell("th", i, name) for i, name in enumerate(self.columns))
        body = "".join(
            "<tr>" + "".join(cell("td", i, show(value)) for i, value in enumerate(row)) + "</tr>"
            for row in self.rows
        )
        # Not a caption: that is wrapped to the width of its table, however narrow.
        style = "text-align:left;font-size:var(--jp-ui-font-size1,13px)"
        title = f'<div style="{style}">{html.escape(self.title)}</div>' if self.title else ""
        return f"{title}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _numeric(self, i: int) -> bool:
        values = [row[i] for row in self.rows if row[i] is not None]
        return bool(values) and all(isinstance(value, int | float) for value in values)


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
    return str(value)


def bytes_text(count: float) -> str:
    """Bytes in words, in powers of 1000: 3_200_000 -> '3.2 MB'."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"
