"""Every notebook runs from top to bottom under papermill, with other parameters than it is saved
with where it has a layout.

nbval runs them as they are saved (the suite's own step, `pytest --nbval-lax notebooks`). Catches a
cell that needs a screen, a front end or the author's kernel, a parameter that no cell uses, a rank
that outlives its notebook, a notebook that writes beside itself, and a stub that is judged.
"""

import json
import os
import time
from pathlib import Path

import papermill
import psutil
import pytest

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
CELL_TIMEOUT = 300
OUTLIVES_BY = 5.0  # seconds: a rank outlives its kernel by 3 at most

pytestmark = pytest.mark.notebook


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """Run directories of the notebook's own, and by it a mark on every process that it starts."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def execute(path: Path, folder: Path, **parameters) -> dict:
    """Run a copy in `folder`, without widget state (a saved FigureWidget costs 5 MB)."""
    output = folder / f"executed_{path.name}"
    folder.mkdir()
    marker = os.environ["XDG_STATE_HOME"]
    papermill.execute_notebook(
        str(path),
        str(output),
        parameters=parameters,
        cwd=str(folder),
        store_widget_state=False,
        progress_bar=False,
        execution_timeout=CELL_TIMEOUT,
    )
    deadline = time.monotonic() + OUTLIVES_BY
    while left := started_with("XDG_STATE_HOME", marker):
        assert time.monotonic() < deadline, f"outlived the notebook: {left}"
        time.sleep(0.1)
    assert [entry.name for entry in folder.iterdir()] == [output.name]
    return json.loads(output.read_text(encoding="utf-8"))


def started_with(name: str, value: str) -> list[str]:
    """The command lines of living processes whose environment says so: the kernel and its ranks."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(name) == value:
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):
            continue  # it is gone, or another user's
    return found


def parameters_of(path: Path) -> dict:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    [cell] = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", [])]
    values: dict = {}
    exec("".join(cell["source"]), values)
    return {name: value for name, value in values.items() if not name.startswith("__")}


def text_of(notebook: dict) -> str:
    """Everything the cells printed and showed as text."""
    parts = []
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            shown = output.get("text") or output.get("data", {}).get("text/plain", "")
            parts.append("".join(shown))
    return "\n".join(parts)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebook_runs(path, tmp_path):
    """With the questions answered by their defaults, so that every comparison is shown; an
    exercise says that it is not written yet, and nothing of its solution.
    """
    saved, other = parameters_of(path), {}
    if "LAYOUT" in saved:
        layout = "dp2tp2" if saved["LAYOUT"] != "dp2tp2" else "dp2"
        other = {"LAYOUT": layout, "STEPS": max(2, saved["STEPS"] // 2)}
    executed = execute(path, tmp_path / "here", DEFAULT_GUESSES=True, **other)
    # The layout that was asked for is the layout that ran.
    assert other.get("LAYOUT", "") in text_of(executed)
    checks = [c for c in executed["cells"] if ".check(my_" in "".join(c["source"])]
    assert text_of(executed).count("Not written yet: ") == len(checks)
