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

NOTEBOOK = Path(__file__).resolve().parents[3] / "notebooks" / "02_moe.ipynb"
LONG = ("live-panel", "live-read", "close-quiz", "close-progress", "scale-imbalance")
# The four runs of section 3 are shown under two comparisons at once, and ask nothing.
LONG += ("cures-run", "cures-table", "cures-figure")

pytestmark = [pytest.mark.notebook, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("chapter")
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["id"] not in LONG]
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
            # Short of training and with half of the ranks, that the runs of a push stay short.
            parameters={"WORLD_SIZE": 2, "SEEDS": 1, "TWIN_STEPS": 10},
            cwd=str(folder),
            store_widget_state=False,
            progress_bar=False,
            execution_timeout=300,
        )
    return json.loads(done.read_text(encoding="utf-8"))


def test_no_output_gives_an_answer_away(executed):
    assert len(search.answers(executed)) >= 11
    assert search.leaks(executed) == []


@pytest.mark.parametrize(
    "text, id",
    [
        ("rank 0 sends 524,288 bytes", "moe.a2a.bytes"),
        ("dropped 4.7 %", "moe.drop.fair"),
        ("zero: it learns nothing", "moe.route.renorm"),
        ("12.9 billion", "moe.scale.active"),
        ("5.3 nodes", "moe.scale.nodes"),
        ("loss right, norm wrong", "moe.break.undivided"),
        ("the others wait for ever", "moe.a2a.break"),
    ],
)
def test_an_answer_beside_the_cover_is_found(executed, text, id):
    notebook = copy.deepcopy(executed)
    first = next(c for c in notebook["cells"] if c["cell_type"] == "code")
    first["outputs"].append(search._a_title(text))
    assert any(id in leak for leak in search.leaks(notebook)), search.leaks(notebook)
