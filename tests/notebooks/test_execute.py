"""Every notebook runs from top to bottom under papermill, with other parameters than it is saved
with where it has a layout.

nbval runs them as they are saved (the suite's own step, `pytest --nbval-lax notebooks`). Those of
the chapters run once more in a push, in `tests/chapters/*/test_covered.py`, without guesses; here
weekly, with them. Catches a cell that needs a screen, a front end or the author's kernel, a
parameter that no cell uses, a rank that outlives its notebook, a notebook that writes beside
itself, and a stub that is judged.
"""

import json
from pathlib import Path

import pytest

from picolab.chapters import all_chapters
from tests.notebooks.executing import NOTEBOOKS, execute, text_of

CHAPTERS = Path(__file__).resolve().parents[1] / "chapters"

pytestmark = pytest.mark.notebook


def parameters_of(path: Path) -> dict:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    [cell] = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", [])]
    values: dict = {}
    exec("".join(cell["source"]), values)
    return {name: value for name, value in values.items() if not name.startswith("__")}


def case(path: Path):
    """A chapter's is weekly, if a push runs it elsewhere."""
    elsewhere = [
        chapter
        for chapter in all_chapters()
        if chapter.notebook == path.stem
        and (CHAPTERS / f"c{path.stem}" / "test_covered.py").exists()
    ]
    return pytest.param(path, id=path.name, marks=[pytest.mark.weekly] if elsewhere else [])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", map(case, sorted(NOTEBOOKS.glob("*.ipynb"))))
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
