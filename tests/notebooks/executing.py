"""Executes a notebook under papermill, as a user would who has no screen."""

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


def execute(path: Path, folder: Path, added: tuple[str, ...] = (), **parameters) -> dict:
    """Run a copy in `folder`, without widget state (a saved FigureWidget costs 5 MB), with these
    cells added at the end. It may write nothing beside itself, and no rank may outlive it."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for number, source in enumerate(added):
        cell = {"cell_type": "code", "execution_count": None, "id": f"added-{number}"}
        notebook["cells"].append({**cell, "metadata": {}, "outputs": [], "source": source})
    folder.mkdir()
    output, marker = folder / f"executed_{path.name}", f"{folder}-state"
    given = folder.parent / path.name
    given.write_text(json.dumps(notebook), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        # Run directories of the notebook's own, and by it a mark on every process that it starts.
        patched.setenv("XDG_STATE_HOME", marker)
        papermill.execute_notebook(
            str(given),
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


def text_of(notebook: dict) -> str:
    """Everything the cells printed and showed as text."""
    parts = []
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            shown = output.get("text") or output.get("data", {}).get("text/plain", "")
            parts.append("".join(shown))
    return "\n".join(parts)
