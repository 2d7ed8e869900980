"""What is shown in a terminal, by rich: tables, Markdown and lists, as wide as the terminal.

Escape codes go to a terminal only, and to none with NO_COLOR or TERM=dumb. Chinese is measured in
cells. Where nobody looks (a pipe, a file), a table keeps one line a row, whatever its width.
"""

import os
import sys
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.markdown import Markdown
from rich.segment import Segment
from rich.table import Table
from rich.theme import Theme

from picolab.show.markdown import mended
from picolab.show.plain import put, visible

WIDEST = 100
"""cells of a line of prose: longer ones are hard to follow"""
_STYLES = Theme({"markdown.code": "bold", "markdown.item.number": "none", "repr.number": "none"})


class _Console(Console):
    """What is shown is text: escape codes are rich's own, and none comes from a title or a note."""

    def render(self, renderable, options=None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


def console(**settings) -> Console:
    """A terminal as it is: rich, without its guesses at what a text means."""
    plain = {"color_system": None} if os.environ.get("NO_COLOR") else {}
    guesses = {"markup": False, "highlight": False, "emoji": False, "force_jupyter": False}
    return _Console(theme=_STYLES, **plain, **guesses, **settings)


def say(shown) -> None:
    """Print it: laid out for a terminal, else as the text that it is in a test. Words stay as they
    are: a path or a JSON object must not be broken.
    """
    if sys.stdout.isatty() and not isinstance(shown, str):
        console().print(shown)
    else:
        put(visible(str(shown)))


def text(*shown: RenderableType, to: Console | None = None) -> str:
    """As text: for this terminal, or plain and as wide as it comes."""
    to = to or console(width=10_000, color_system=None, no_color=True)
    with to.capture() as made:
        for one in shown:
            to.print(one)
    return "\n".join(line.rstrip() for line in made.get().rstrip("\n").split("\n"))


def markdown(source: str) -> Markdown:
    return Markdown(mended(source), code_theme="ansi_dark")


def listed(entries: Iterable[tuple[str, str]]) -> Table:
    """Marks and texts in Markdown, one below the other."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for mark, source in entries:
        grid.add_row(mark, markdown(source))
    return grid
