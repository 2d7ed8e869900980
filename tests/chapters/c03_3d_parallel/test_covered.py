"""Run All with no guesses leaves every answer covered, as in chapter 1, whose search this is.

Wrong versions this catches, kept as edits of the executed outputs: a number beside the cover, a
figure or a sentence that has it.
"""

import copy
import json
from pathlib import Path

import papermill
import pytest

from tests.chapters.c01_4d_basics import test_covered as search

NOTEBOOK = Path(__file__).resolve().parents[3] / "notebooks" / "03_3d_parallel.ipynb"
LONG = ("live-panel", "live-read", "close-quiz", "close-progress", "tune-run")

pytestmark = [pytest.mark.notebook, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("chapter")
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["id"] not in LONG]
    # With the half of the ranks, that the runs of a push stay short: answers are others then, and
    # covered in the same way. Section 6 and the planner's tables ask nothing.
    cells = [c for c in cells if not c["id"].startswith(("scale-", "plan-all", "plan-changes"))]
    read_out = {"cell_type": "code", "execution_count": None, "id": "read-out"}
    cells.append({**read_out, "metadata": {}, "outputs": [], "source": search.READ_OUT})
    notebook["cells"] = cells
    saved, done = folder / "chapter.ipynb", folder / "executed.ipynb"
    saved.write_text(json.dumps(notebook), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(folder / "state"))
        papermill.execute_notebook(
            str(saved),
            str(done),
            parameters={"WORLD_SIZE": 2},
            cwd=str(folder),
            store_widget_state=False,
            progress_bar=False,
            execution_timeout=300,
        )
    return json.loads(done.read_text(encoding="utf-8"))


def test_no_output_gives_an_answer_away(executed):
    assert len(search.answers(executed)) >= 7
    assert search.leaks(executed) == []


@pytest.mark.parametrize(
    "text, id",
    [
        ("together 10 bytes", "3d.zero.bytes"),
        ("it sends 4.5 times", "3d.zero.traffic"),
        ("in step 1: both right", "3d.zero.break"),
        ("every rank holds 2 micro-batches", "3d.zoo.held"),
        ("both wait for ever", "3d.order.break"),
        ("one rank works longer than its twin in the other replica", "3d.slow.cause"),
    ],
)
def test_an_answer_beside_the_cover_is_found(executed, text, id):
    notebook = copy.deepcopy(executed)
    first = next(c for c in notebook["cells"] if c["cell_type"] == "code")
    first["outputs"].append(search._a_title(text))
    assert any(id in leak for leak in search.leaks(notebook)), search.leaks(notebook)
