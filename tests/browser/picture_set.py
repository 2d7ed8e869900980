"""What a reader sees, in both themes and at two widths, for eyes to judge:

    python tests/browser/picture_set.py FOLDER

The first minute, the panel with ranks at work, the placement picture, a timeline, guesses, the
scoreboard, a mystery run and a dashboard after its page was loaded again: 32 pictures,
FOLDER/panel-dark-1000.png and so on, with JupyterLab's file list open as it is at first. Each comes
from a real run. An error in the browser's console or in a cell ends it. How long a first run leaves
its reader alone, from the click to the first point, is printed for each of the four.
"""

import re
import sys
import tempfile
import time
from pathlib import Path

from lab_driver import Jupyter, Lab, find_browser
from test_chapter_one import Panel, wait_until
from test_quiz import write
from test_reload import save, steps
from tqdm import tqdm

THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
WIDTHS = {1000: 900, 1400: 1000}  # and the heights to them
FIRST = """job = pico.train("tiny", layout="dp2", steps=400, wait=False, progress=False)
pico.dashboard(job)"""
CELLS = {
    "start": "import picolab as pico",
    "first": FIRST,
    "stop": "job.stop()",
    "panel": "pico.panel(max_world=4, steps=2_000)",
    "placement": """from picolab.lab import placement_figure
placement_figure("dp2tp2")""",
    "timeline": """run = pico.train(
    "tiny", layout="pp4", accumulate=8, micro_batch=1, steps=3, stage_cost_s=(0.02, 0.04)
)
run.activity()""",
    "guesses": """bubble = 100 * pico.costs.bubble_of_total(4, 8)
took = min(100 * float(run.timeline(step).bubble_of_total) for step in range(3))
data = pico.train("tiny", layout="dp4", steps=2, accumulate=4, progress=False)
total = data.ledger.step(1).total(rank=0, axis="dp", reason="dp: gradient bucket")
size = 4 * pico.costs.parameters(pico.ModelConfig.preset("tiny")).total
for id, question, unit, guessed, numbers in (
    ("4d.pp.bubble", "4 stages, 8 micro-batches: the bubble?", "%", 30, (bubble, took)),
    ("4d.dp.payload", "Payload of a step?", "bytes", 4 * size, (size, total.payload_bytes)),
    ("4d.ring.bytes", "On a ring of 4?", "bytes", size, (1.5 * size, total.ring_bytes)),
):
    pico.guess(id, question, unit=unit, default=guessed)
    pico.compare(id, formula=numbers[0], measured=numbers[1], tolerance=0.5)""",
    "scoreboard": "pico.scoreboard()",
    "mystery": "pico.mystery('4d.mystery.1')",
}


class Camera:
    def __init__(self, lab: Lab, folder: Path, suffix: str):
        self.lab, self.folder, self.suffix = lab, folder, suffix

    def take(self, name: str, cell: str) -> None:
        """The page, with the cell of this text at its top."""
        self.lab.show_cell(cell)
        place = self.lab.page.locator(".jp-CodeCell", has_text=cell)
        place.evaluate("cell => cell.scrollIntoView({block: 'start'})")
        self.lab.page.mouse.move(2, 2)  # plotly's buttons show under the mouse
        time.sleep(1)  # and fade slowly
        self.lab.page.screenshot(path=self.folder / f"{name}-{self.suffix}.png")

    def run(self, cell: str) -> None:
        self.lab.run_cell(cell)
        self.lab.wait_idle()


def take_all(lab: Lab, book: Path, camera: Camera) -> float:
    """Eight pictures. Returns how many seconds it took until the first run's first point."""
    lab.open(book.name)
    lab.run_cell(CELLS["start"])
    began = time.monotonic()
    lab.run_cell("pico.dashboard(job)")
    wait_until(lambda: max(steps(lab), default=-1) >= 0, "the first step to be drawn")
    moved = time.monotonic() - began
    wait_until(lambda: max(steps(lab)) >= 20, "some steps")
    camera.take("first_minute", "pico.dashboard(job)")
    save(lab, book)
    lab.open(book.name)
    seen = max(steps(lab), default=0)
    wait_until(lambda: max(steps(lab), default=-1) > seen, "the run to go on after a reload")
    camera.run("job.stop()")
    camera.take("dashboard_after_reload", "pico.dashboard(job)")

    camera.run("pico.panel(")
    panel = Panel(lab)
    panel.move("tp")
    panel.run_and_watch(looks=20)
    camera.take("panel", "pico.panel(")
    panel.stop()
    for name, text in (
        ("placement", "placement_figure("),
        ("timeline", "run.activity()"),
        ("guesses", "pico.guess("),
        ("scoreboard", "pico.scoreboard()"),
        ("mystery", "pico.mystery("),
    ):
        camera.run(text)
        camera.take(name, text)
    if errors := lab.errors + lab.cell_errors():
        raise SystemExit(f"{camera.suffix}: {errors}")
    return moved


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    sets = [(theme, width) for theme in THEMES for width in WIDTHS]
    with Jupyter() as jupyter, tqdm(sets, unit="set") as bar:
        for theme, width in bar:
            suffix = f"{theme}-{width}"
            bar.set_postfix_str(suffix)
            size = width, WIDTHS[width]
            with (
                tempfile.TemporaryDirectory(prefix="picolab-picture-") as scratch,
                jupyter.lab(scratch, size=size, theme=THEMES[theme]) as lab,
            ):
                book = Path(scratch) / "pictures.ipynb"
                write(book, CELLS)
                moved = take_all(lab, book, Camera(lab, folder, suffix))
            tqdm.write(f"{suffix}: {moved:.1f} s from the click to the first point")


if __name__ == "__main__":
    if len(sys.argv) != 2 or re.match("-", sys.argv[1]):
        sys.exit(__doc__)
    if find_browser() is None:
        sys.exit("no Chromium or Chrome here (apt-get install chromium)")
    main(Path(sys.argv[1]))
