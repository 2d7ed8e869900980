"""Chapter 1 as a reader meets it: JupyterLab, a real browser, buttons, run, stop, run again.

Catches a panel whose callbacks are dead, a figure that stays empty or fills only at the end, a stop
that leaves ranks behind, a second run that shows the first one's data, a lesson's figure that
shrinks to a line when its slider is moved or the page gets wider, an error in the browser's
console, and a driver that would see none of this.
"""

import importlib.util
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lab_driver import DEADLINE_S, Lab, find_browser

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "01_4d_basics.ipynb"

NEEDS_A_BROWSER = [
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None,
        reason="playwright is not installed (make test installs it)",
    ),
    pytest.mark.skipif(
        find_browser() is None, reason="no Chromium or Chrome here (apt-get install chromium)"
    ),
]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(600),
    *NEEDS_A_BROWSER,
]


LESSONS = ("ring_all_reduce_frames(", "schedule_slider(", "ring_attention_frames(")


class Panel:
    """The panel on the page: four rows of choices, two buttons, a live figure in the same cell."""

    def __init__(self, lab: Lab):
        self.lab = lab
        lab.show_cell("pico.panel(")
        # Other cells have a Stop as well.
        self.cell = lab.page.locator(".jp-CodeCell", has_text="pico.panel(")
        self.button("Run").wait_for()

    def button(self, name: str):
        found = self.cell.locator("button.jupyter-button")
        return found.filter(has_text=re.compile(rf"^\s*{name}\s*$"))

    def choice(self, name: str):
        """The buttons of one axis."""
        label = self.lab.page.locator(".widget-label", has_text=re.compile(rf"^{name}$"))
        return self.cell.locator(".widget-toggle-buttons", has=label)

    def move(self, name: str) -> tuple[str, str]:
        """Press the button behind the chosen one; what was chosen before and what is after."""
        chosen = self.choice(name).locator("button.mod-active")
        seen = chosen.inner_text().strip()
        self.choice(name).locator("button.mod-active + button").click()
        wait_until(lambda: chosen.inner_text().strip() != seen, f"{name} to leave {seen}")
        return seen, chosen.inner_text().strip()

    def data(self) -> list[list[float]]:
        """The values of every trace of the panel's figures, as the browser holds them."""
        return self.button("Run").evaluate("""button => {
            const figures = [...button.closest('.jp-Cell').querySelectorAll('.js-plotly-plot')];
            const traces = figures.flatMap(figure => figure._fullData || []);
            return traces.map(trace => Array.from(trace.y || trace.x || []));
        }""")

    def points(self) -> int:
        return sum(map(len, self.data()))

    def run_and_watch(self, looks: int = 4) -> list[int]:
        """Press run; the number of points on the page, at so many looks that saw more of them."""
        before = self.points()
        self.button("Run").click()

        def begun() -> bool:
            if not self.lab.ranks() and "is still running" in self.text():
                self.button("Run").click()  # pressed too soon after a stop, as the panel says
            return bool(self.lab.ranks()) and self.points() != before

        wait_until(begun, "ranks and first points")
        seen = [self.points()]

        def grown() -> bool:
            # Only what is on the page while ranks run counts as live.
            if self.lab.ranks() and (now := self.points()) > seen[-1]:
                seen.append(now)
            return len(seen) >= looks

        wait_until(grown, f"points to arrive while ranks run, saw {seen}")
        return seen

    def text(self) -> str:
        """What the panel says."""
        return self.cell.inner_text()

    def stop(self) -> None:
        self.button("Stop").click()
        wait_until(lambda: not self.lab.ranks(), "ranks to be gone after stop")
        stopped = self.lab.page.locator(".progress-bar-warning")
        wait_until(stopped.count, "the panel to show that the run was stopped")


class Lesson:
    """A figure with sliders of its own, made of frames."""

    def __init__(self, lab: Lab, call: str):
        self.lab, self.page = lab, lab.page
        lab.show_cell(call)
        cell = lab.page.locator(".jp-CodeCell", has_text=call)
        self.figure = cell.locator(".js-plotly-plot")
        self.figure.locator(".slider-rail-touch-rect").first.wait_for()

    def look(self) -> tuple[float, str]:
        """Its height on the page, and the numbers that it shows."""
        return (
            self.figure.bounding_box()["height"],
            self.figure.evaluate("figure => JSON.stringify(figure._fullData.map(t => [t.x, t.z]))"),
        )

    def move(self) -> None:
        """Every slider to its last step, then a page of another width. After each the figure must
        be as high, and at the end show other things.
        """
        height, numbers = self.look()
        for rail in self.figure.locator(".slider-rail-touch-rect").all():
            rail.scroll_into_view_if_needed()
            box = rail.bounding_box()
            self.page.mouse.click(box["x"] + box["width"] - 8, box["y"] + box["height"] / 2)
            time.sleep(0.5)
            assert self.look()[0] == height > 100  # the next slider may give it its height back
        wait_until(lambda: self.look()[1] != numbers, "the figure to show another step")
        width = self.figure.bounding_box()["width"]
        self.lab.command("application:toggle-left-area")
        wait_until(
            lambda: self.figure.bounding_box()["width"] != width, "the figure to change its width"
        )
        time.sleep(1)  # plotly measures a moment later
        assert self.look()[0] == height


def wait_until(holds: Callable[[], object], what: str, timeout_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.1)


# The cells whose figures are operated, and what they need: nbval and papermill run all of them.
OPERATED = {
    *("basics-parameters", "basics-setup", "ring-frames", "pp-slider", "cp-frames"),
    *("close-layout-run", "close-panel"),
}


def copy_cells(folder: Path, whole: bool) -> None:
    source = NOTEBOOK.read_text(encoding="utf-8")  # what a guess covers is operated, too
    assert source.count("DEFAULT_GUESSES = False") == 1
    notebook = json.loads(source.replace("DEFAULT_GUESSES = False", "DEFAULT_GUESSES = True"))
    if not whole:
        for cell in notebook["cells"]:
            if cell["id"] == "close-layout-run":  # the panel needs the layout, not the run
                cell["source"] = "both = pico.Layout.parse(LAYOUT)"
            elif cell["id"] in ("ring-frames", "cp-frames"):  # without what they go with
                _, _, figure = "".join(cell["source"]).partition(".also(")
                cell["source"] = figure.removesuffix(")")
        notebook["cells"] = [cell for cell in notebook["cells"] if cell["id"] in OPERATED]
        assert len(notebook["cells"]) == len(OPERATED)
    (folder / NOTEBOOK.name).write_text(json.dumps(notebook), encoding="utf-8")


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.weekly)])
def test_chapter_one_in_a_browser(jupyter, tmp_path, whole):
    copy_cells(tmp_path, whole)
    with jupyter.lab(tmp_path) as lab:
        lab.open(NOTEBOOK.name)
        lab.run_all()
        lab.wait_idle(240)
        assert lab.cell_errors() == []
        wait_until(lambda: not lab.ranks(), "the chapter's own ranks to be gone")

        for call in LESSONS:
            Lesson(lab, call).move()

        panel = Panel(lab)
        for axis in ("tp", "pp"):  # the second makes the first give way
            before, after = panel.move(axis)
            assert int(after) > int(before)
        for said in ("pp: activations", "pp\u00a01"):  # once the kernel has heard of the buttons
            wait_until(lambda said=said: said in panel.text(), f"the panel to say {said!r}")

        assert panel.button("Stop").is_disabled()
        panel.run_and_watch()
        first = panel.data()
        panel.stop()

        panel.run_and_watch(2)
        assert panel.data() != first
        panel.stop()

        assert lab.cell_errors() == [] and lab.errors == []
    assert lab.processes() == []


def test_the_driver_sees_what_goes_wrong(jupyter, tmp_path):
    """A notebook with one failing cell, and a page that complains: neither goes unnoticed."""
    cells = ["answer = 6 * 7", "raise ValueError(answer)"]
    notebook = {
        "cells": [
            {
                "cell_type": "code",
                "execution_count": None,
                "id": f"wrong-{i}",
                "metadata": {},
                "outputs": [],
                "source": source,
            }
            for i, source in enumerate(cells)
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (tmp_path / "wrong.ipynb").write_text(json.dumps(notebook))
    with jupyter.lab(tmp_path) as lab:
        page = lab.open("wrong.ipynb")
        assert lab.errors == [] and lab.ranks() == []
        lab.run_all()
        lab.wait_idle()
        assert lab.cell_errors() == ["ValueError: 42"]
        page.evaluate("() => console.error('seen')")
        wait_until(lambda: lab.errors == ["seen"], "the console's error")
    assert lab.processes() == []
