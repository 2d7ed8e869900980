"""How anything is shown: tables, figures that more than one chapter draws, PNGs, what a cell shows,
and files that are written whole; and how a typed number is read. No torch; plotly is imported when
something is drawn.
"""

from picolab.show.files import write_beside
from picolab.show.front_end import Message, Shown, has_front_end
from picolab.show.guess_figure import guess_figure
from picolab.show.numbers import Typed, read
from picolab.show.picture import LabFigure, template
from picolab.show.rank_grid_figure import rank_grid_figure
from picolab.show.table import Table, bytes_text

__all__ = [
    "LabFigure",
    "Message",
    "Shown",
    "Table",
    "Typed",
    "bytes_text",
    "guess_figure",
    "has_front_end",
    "rank_grid_figure",
    "read",
    "template",
    "write_beside",
]
