"""A plotly figure as a PNG: drawn by an installed Chromium or Chrome, which is asked to and ends.

plotly draws in a browser and nowhere else; kaleido, its own way to a PNG, starts one too. So the
figure's page is opened in a headless browser with a profile of its own (one that the reader has
open is left alone), plotly.js makes the image there, and the page is read back with the image in
it. Nothing is fetched: plotly.js is in the page.

Its ground is given: white, as a printed page, on which text and marks are chosen to be readable
(picture.py).
"""

import base64
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

WIDTH = 1000  # pixels of the figure; the image has twice as many
TIMEOUT_S = 60

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_MAC = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
_INSTEAD = "save it as .html instead, which works offline in any browser"

_FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=20000",  # waits for the image, and no longer
    "--dump-dom",
)
# The image takes the place of everything in the page, so that what is read back is nothing else.
_SCRIPT = """
Plotly.toImage(document.getElementById('{plot_id}'), %s).then(
    image => { document.body.textContent = image },
    error => { document.body.textContent = 'plotly failed: ' + error });
"""


def find_browser() -> str | None:
    """A Chromium or Chrome that is installed, or None."""
    for name in _NAMES:
        if path := shutil.which(name):
            return path
    return str(_MAC) if _MAC.exists() else None


def png(figure, ground: str, colours: dict[str, str]) -> bytes:
    """The figure as a PNG on this ground, `WIDTH` wide and as high as its layout says; `colours`
    that suit any ground are replaced by those for this one.

    RuntimeError, which names the way to save it as HTML, if no browser is there, or if it fails.
    """
    browser = find_browser()
    if browser is None:
        raise RuntimeError(
            f"a PNG needs Chromium or Chrome, and none is installed here: {_INSTEAD}"
        )
    height = figure.layout.height or 450
    drawn = type(figure)(figure).update_layout(paper_bgcolor=ground)
    script = _SCRIPT % f"{{format: 'png', width: {WIDTH}, height: {height}, scale: 2}}"
    # Not hidden: a Chromium that is a snap may not read hidden folders.
    with tempfile.TemporaryDirectory(prefix="picolab-png-", ignore_cleanup_errors=True) as folder:
        page = Path(folder) / "figure.html"
        text = drawn.to_html(post_script=script, auto_play=False)
        for before, after in colours.items():
            text = text.replace(before, after)
        page.write_text(text, encoding="utf-8")
        answer = _open(browser, page, Path(folder) / "profile")
    found = re.search(r"data:image/png;base64,([A-Za-z0-9+/=]+)", answer)
    if found is None:
        why = re.search(r"plotly failed: [^<]*", answer)
        said = why[0] if why else "it gave no image back"
        raise RuntimeError(f"{Path(browser).name} could not draw the PNG ({said}): {_INSTEAD}")
    return base64.b64decode(found[1])


def _open(browser: str, page: Path, profile: Path) -> str:
    """What the page holds once it has drawn; the browser is gone then, with all its processes."""
    # root in a container has no sandbox
    sandbox = ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    process = subprocess.Popen(
        [browser, *_FLAGS, *sandbox, f"--user-data-dir={profile}", page.as_uri()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.communicate(timeout=TIMEOUT_S)[0].decode("utf-8", "replace")
    except subprocess.TimeoutExpired:
        raise RuntimeError(
            f"{Path(browser).name} did not draw the PNG within {TIMEOUT_S} s: {_INSTEAD}"
        ) from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
