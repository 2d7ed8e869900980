"""Draw the pictures, write the cheat sheet and the list of questions again (`make refresh`).

Nothing is staged: chapter 1 runs from top to bottom in JupyterLab, light, with the default guesses.
Its five best figures are taken as the browser shows them, cropped to the figure. Then the panel's
next pp is chosen, Run is pressed, and the README's picture is taken while ranks are alive
and points arrive. Either all pictures are replaced or none.

The cheat sheet (summary/cheatsheet.md and .html) needs no browser and is written first; so is the
list of all questions (interview_questions/README.md), and new ids are appended to ids.lock.
"""

import importlib
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from lab_driver import Jupyter, Lab, find_browser
from test_chapter_one import NOTEBOOK, Panel, wait_until

from picolab import chapters
from picolab.interview import bank, index, lint
from picolab.show.files import write_beside

SUMMARY = NOTEBOOK.parents[1] / "summary"
IMAGES = SUMMARY / "images"
MOST_BYTES = 180_000
MARGIN = 8  # pixels left and right: titles begin at a figure's very edge
GUESSES = "DEFAULT_GUESSES = False"


class Figure(NamedTuple):
    """A picture of the figure under one cell."""

    picture: str
    cell: str
    step: float | None = None  # where its slider stands, from 0 to 1
    width: float = 1.0  # how much of it is taken, from the left; the rest is empty
    height: float = 1.0  # and from the top; below it is its slider


FIGURES = (
    Figure("rank_grid.png", "axes-grid", width=0.56, height=0.76),
    Figure("ring_all_reduce.png", "ring-frames", step=0.34),
    Figure("pipeline_gantt.png", "pp-gantt"),
    Figure("ring_attention.png", "cp-frames", step=1.0),
    Figure("scoreboard.png", "close-scoreboard"),
)
# JupyterLab keeps only what is near the window in the page, so the cell is scrolled to first.
_SHOW = """id => {
    const notebook = jupyterapp.shell.currentWidget.content;
    const index = notebook.widgets.findIndex(cell => cell.model.id === id);
    if (index < 0) throw new Error(`no cell is called ${id}`);
    notebook.activeCellIndex = index;
    return notebook.scrollToItem(index, 'start').then(() => 1);
}"""
_PLOT = """id => jupyterapp.shell.currentWidget.content.widgets
    .find(cell => cell.model.id === id).node.querySelector('.js-plotly-plot .main-svg')
    ?.closest('.js-plotly-plot') ?? null"""


def take(figure: Figure, lab: Lab, folder: Path) -> None:
    """The figure as the page shows it, and nothing around it."""
    lab.page.evaluate(_SHOW, figure.cell)

    def plot():
        return lab.page.evaluate_handle(_PLOT, figure.cell).as_element()

    wait_until(lambda: plot() is not None, f"a figure under {figure.cell}")
    if figure.step is not None:
        rail = plot().query_selector(".slider-rail-touch-rect")
        rail.scroll_into_view_if_needed()
        box = rail.bounding_box()
        across = 8 + figure.step * (box["width"] - 16)
        lab.page.mouse.click(box["x"] + across, box["y"] + box["height"] / 2)
    lab.page.mouse.move(2, 2)  # plotly's buttons show under the mouse
    time.sleep(1)  # and fade slowly
    path = folder / figure.picture
    plot().scroll_into_view_if_needed()
    box = plot().bounding_box()
    clip = {
        "x": int(box["x"]) - MARGIN,
        "y": int(box["y"]),
        "width": int(box["width"] * figure.width) + 2 * MARGIN,
        "height": int(box["height"] * figure.height),
    }
    lab.page.screenshot(path=path, clip=clip)
    if path.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{path.name} has {path.stat().st_size:,} bytes, over {MOST_BYTES:,}")


def take_running(lab: Lab, folder: Path) -> None:
    """The panel with ranks at work: its buttons at the top of the window, the figure under them."""
    panel = Panel(lab)
    panel.move("pp")
    panel.run_and_watch(looks=30)
    panel.choice("dp").evaluate("choice => choice.scrollIntoView({block: 'start'})")
    lab.page.screenshot(path=folder / "chapter_running.png")
    panel.stop()


def take_all(images: Path) -> None:
    source = NOTEBOOK.read_text(encoding="utf-8")
    if source.count(GUESSES) != 1:
        raise SystemExit(f"{NOTEBOOK.name} should say {GUESSES!r} once")
    with tempfile.TemporaryDirectory(prefix="picolab-picture-") as folder:
        taken = Path(folder) / "taken"
        taken.mkdir()
        copy = Path(folder) / NOTEBOOK.name
        copy.write_text(source.replace(GUESSES, "DEFAULT_GUESSES = True"), encoding="utf-8")
        with Jupyter() as jupyter, jupyter.lab(folder, size=(1100, 1500)) as lab:
            lab.open(NOTEBOOK.name)
            lab.command("application:toggle-left-area")
            lab.run_all()
            lab.wait_idle(1200)  # beside other work
            for figure in FIGURES:
                take(figure, lab, taken)
            take_running(lab, taken)
            if lab.errors or lab.cell_errors():
                raise SystemExit(f"no pictures: {lab.errors + lab.cell_errors()}")
        for picture in sorted(taken.iterdir()):
            write_beside(images / picture.name, picture.read_bytes())
            print(f"drew {picture.name}, {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    chapters.register()
    for chapter in chapters.all_chapters():
        for path in importlib.import_module(chapter.cheatsheet).SHEET.write(SUMMARY):
            print(f"wrote {path.name}")
    new_ids = lint.update_lock(bank.bank_folder())
    print(f"wrote {index.write(bank.bank_folder())}, new ids: {', '.join(new_ids) or 'none'}")
    if find_browser() is None:
        sys.exit("no Chromium or Chrome here (apt-get install chromium)")
    take_all(IMAGES)
