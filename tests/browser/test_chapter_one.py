"""Chapter 1 as a reader meets it: JupyterLab, a real browser, sliders, run, stop, run again.

Catches a panel whose callbacks are dead, a figure that stays empty or fills only at the end, a stop
that leaves ranks behind, a second run that shows the first one's data, an error in the browser's
console, and a driver that would see none of this.
"""

import importlib.util
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lab_driver import Lab, find_browser

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "01_4d_basics.ipynb"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None,
        reason="playwright is not installed (make test installs it)",
    ),
    pytest.mark.skipif(
        find_browser() is None, reason="no Chromium or Chrome here (apt-get install chromium)"
    ),
]


class Panel:
    """The panel on the page: two sliders, two buttons, a live figure in the same cell."""

    def __init__(self, lab: Lab):
        self.lab = lab
        lab.show_cell("pico.panel(")
        self.button("Run").wait_for(timeout=30_000)

    def button(self, name: str):
        found = self.lab.page.locator("button.jupyter-button")
        return found.filter(has_text=re.compile(rf"^\s*{name}\s*$"))

    def slider(self, name: str):
        label = self.lab.page.locator(".widget-label", has_text=re.compile(rf"^{name}$"))
        return self.lab.page.locator(".widget-inline-hbox", has=label)

    def move(self, name: str, key: str) -> tuple[str, str]:
        """Press an arrow key on a slider; its reading before and after."""
        slider = self.slider(name)
        readout = slider.locator(".widget-readout")
        before = readout.inner_text()
        slider.locator(".noUi-handle").focus()
        self.lab.page.keyboard.press(key)
        wait_until(lambda: readout.inner_text() != before, f"slider {name} to leave {before}")
        return before, readout.inner_text()

    def data(self) -> list[list[float]]:
        """The values of every trace of the panel's figures, as the browser holds them."""
        return self.button("Run").evaluate("""button => {
            const figures = [...button.closest('.jp-Cell').querySelectorAll('.js-plotly-plot')];
            const traces = figures.flatMap(figure => figure._fullData || []);
            return traces.map(trace => Array.from(trace.y || trace.x || []));
        }""")

    def points(self) -> int:
        return sum(map(len, self.data()))

    def run_and_watch(self, looks: int = 6) -> list[int]:
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
        return self.lab.page.locator(".jp-Cell", has=self.button("Run")).inner_text()

    def stop(self) -> None:
        self.button("Stop").click()
        wait_until(lambda: not self.lab.ranks(), "ranks to be gone after stop", timeout_s=5)
        stopped = self.lab.page.locator(".progress-bar-warning")
        wait_until(stopped.count, "the panel to show that the run was stopped")


def wait_until(holds: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.1)


def test_chapter_one_in_a_browser(tmp_path):
    shutil.copyfile(NOTEBOOK, tmp_path / NOTEBOOK.name)
    with Lab(tmp_path) as lab:
        lab.open(NOTEBOOK.name)
        lab.run_all()
        lab.wait_idle(240)
        assert lab.cell_errors() == []
        wait_until(lambda: not lab.ranks(), "the chapter's own ranks to be gone")

        panel = Panel(lab)
        before, after = panel.move("tp", "ArrowRight")
        assert int(after) > int(before)

        panel.run_and_watch()
        first = panel.data()
        panel.stop()

        panel.run_and_watch()
        assert panel.data() != first
        panel.stop()

        assert lab.cell_errors() == [] and lab.errors == []
    assert lab.processes() == []


def test_the_driver_sees_what_goes_wrong(tmp_path):
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
    with Lab(tmp_path) as lab:
        page = lab.open("wrong.ipynb")
        assert lab.errors == [] and lab.ranks() == []
        lab.run_all()
        lab.wait_idle()
        assert lab.cell_errors() == ["ValueError: 42"]
        page.evaluate("() => console.error('seen')")
        wait_until(lambda: lab.errors == ["seen"], "the console's error", timeout_s=5)
    assert lab.processes() == []
