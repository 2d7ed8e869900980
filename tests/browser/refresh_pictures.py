"""Take the README's picture: chapter 1 in JupyterLab, with ranks training (`make refresh`).

Nothing is staged: the chapter runs from top to bottom, the panel's pp slider moves one step, Run is
pressed, and the picture is taken while ranks are alive and points arrive.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from lab_driver import Lab, find_browser
from test_chapter_one import NOTEBOOK, Panel

PICTURE = NOTEBOOK.parents[1] / "summary" / "images" / "chapter_running.png"


def take(picture: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="picolab-picture-") as folder:
        shutil.copyfile(NOTEBOOK, Path(folder) / NOTEBOOK.name)
        with Lab(folder, size=(1100, 1110)) as lab:
            lab.open(NOTEBOOK.name)
            lab.command("application:toggle-left-area")
            lab.run_all()
            lab.wait_idle(240)
            panel = Panel(lab)
            panel.move("pp", "ArrowRight")
            panel.run_and_watch(looks=30)
            # Sliders at the top of the window, the figure under them.
            panel.slider("dp").evaluate("slider => slider.scrollIntoView({block: 'start'})")
            beside = picture.with_suffix(f".{os.getpid()}.png")
            lab.page.screenshot(path=beside)
            panel.stop()
            if lab.errors or lab.cell_errors():
                beside.unlink()
                raise SystemExit(f"no picture: {lab.errors + lab.cell_errors()}")
            os.replace(beside, picture)
    print(f"drew {picture.name}, {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    if find_browser() is None:
        sys.exit("no Chromium or Chrome here (apt-get install chromium)")
    take(PICTURE)
