"""Run All with no guesses leaves every answer covered: no output of any cell contains it.

The chapter is executed as it is saved, without its long cells that answer nothing, and at the end
its own comparisons are read out of the kernel. Then each answer is looked for, as it would be
written, in everything that the cells put out: text, HTML, and the numbers and titles of figures.

Wrong versions this catches, kept as edits of the executed outputs: a table beside the cover, a
figure whose title has the number, a comparison that shows itself.
"""

import copy
import json
import re
from pathlib import Path

import papermill
import pytest

from picolab.show.table import show

NOTEBOOK = Path(__file__).resolve().parents[3] / "notebooks" / "01_4d_basics.ipynb"
# The slider draws other schedules than the one that is asked for; one has this share by chance.
CHANCE = {("pp-slider", "4d.cp.share")}
# Among its bubbles may be what was measured on a busy machine: there the formula is looked for.
MANY_SHARES = {("pp-slider", "4d.pp.bubble")}
LONG = ("raw-torchrun", "close-verify", "close-panel", "close-quiz", "close-progress")
READ_OUT = """
import json as _json
from picolab.lab import guesses as _guesses
_answers = {
    id: [[c.formula, c.measured], c.unit, c.guess.choices]
    for id, c in _guesses._comparisons.items()
}
print("ANSWERS" + _json.dumps(_answers))
"""

pytestmark = [pytest.mark.notebook, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("chapter")
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["id"] not in LONG]
    # Short of training: packed documents, whose answer is one of three words.
    cells = [cell for cell in cells if not cell["id"].startswith("cp-documents-")]
    read_out = {"cell_type": "code", "execution_count": None, "id": "read-out"}
    cells.append({**read_out, "metadata": {}, "outputs": [], "source": READ_OUT})
    notebook["cells"] = cells
    saved, done = folder / "chapter.ipynb", folder / "executed.ipynb"
    saved.write_text(json.dumps(notebook), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(folder / "state"))
        papermill.execute_notebook(
            str(saved),
            str(done),
            parameters={"STEPS": 2},
            cwd=str(folder),
            store_widget_state=False,
            progress_bar=False,
            execution_timeout=300,
        )
    return json.loads(done.read_text(encoding="utf-8"))


def put_out(cell: dict) -> str:
    """All that a cell has put out, as text."""
    parts = []
    for output in cell.get("outputs", []):
        parts.append("".join(output.get("text", "")))
        for shown in output.get("data", {}).values():
            parts.append(shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False))
    return re.sub(r"<[^>]+>", " ", "\n".join(parts))


def answers(notebook: dict) -> dict[str, list]:
    said = put_out(notebook["cells"][-1])
    return json.loads(said[said.index("ANSWERS") + len("ANSWERS") :].partition("\n")[0])


def written(value, unit: str) -> list[str]:
    """How it might stand in a table, a title or a sentence."""
    if isinstance(value, str):
        return [value]
    forms = {f"{show(value)} {unit}", f"{value:.1f} {unit}", f"{value:.0f} {unit}"}
    if value >= 1000 or value != int(value):
        forms |= {show(value), f"{value:.1f}", f"{value:.2f}", f"{value:,.0f}"} - {f"{value:.0f}"}
    if value >= 1000:
        forms.add(f"{value:.0f}")
    return [form for form in forms if len(form) > 1]


def leaks(notebook: dict) -> list[str]:
    found = []
    for id, (values, unit, choices) in answers(notebook).items():
        for cell in notebook["cells"][:-1]:
            if choices and "choices=" in "".join(cell["source"]):
                continue  # it lists all of them
            if (cell["id"], id) in CHANCE:
                continue
            said = put_out(cell)
            looked_for = values[:1] if (cell["id"], id) in MANY_SHARES else values
            given = [value for value in looked_for if value is not None]
            for form in {form for value in given for form in written(value, unit)}:
                if re.search(rf"(?<![\d.,\w]){re.escape(form)}(?![\d\w]|[.,]\d)", said):
                    found.append(f"{cell['id']} says {form!r}, the answer of {id}")
    return found


def test_no_output_gives_an_answer_away(executed):
    assert len(answers(executed)) >= 9
    assert leaks(executed) == []


def _a_title(text):
    return {"output_type": "display_data", "data": {"text/html": f"<b>{text}</b>"}, "metadata": {}}


@pytest.mark.parametrize(
    "text, id",
    [
        ("payload 3,215,872 bytes", "4d.dp.payload"),
        ("bubble 27.3 % of total", "4d.pp.bubble"),
        ("one layer: 4 all-reduces", "4d.tp.count"),
        ("each sends 6,000,000", "4d.ring.bytes"),
        ("the busiest has 43.8 %", "4d.cp.share"),
        ("loss right, norm wrong", "4d.pp.break"),
    ],
)
def test_a_number_beside_the_cover_is_found(executed, text, id):
    notebook = copy.deepcopy(executed)
    next(c for c in notebook["cells"] if c["cell_type"] == "code")["outputs"].append(_a_title(text))
    assert any(id in leak for leak in leaks(notebook)), leaks(notebook)
