"""A chapter's notebook, executed once for all that is asked of it: it runs from top to bottom with
other parameters than it is saved with, nobody answers, and then everybody does.

    executed = run("03_3d_parallel.ipynb", folder, WORLD_SIZE=2)
    leaks(executed) == []     no output of any cell contains the answer of a covered question
    open_questions(executed)  what did not uncover when it was answered

Two cells are added: one reads the chapter's own comparisons out of the kernel; one answers every
question, so that what waits for an answer runs too. Then each answer is looked for, as it would be
written, in everything that the cells before put out: text, HTML, and the numbers and titles of
figures.
"""

import json
import re
from pathlib import Path

from picolab.show.table import show
from tests.notebooks.executing import NOTEBOOKS, execute

READ_OUT = """
import json as _json
from picolab.lab import guesses as _guesses
_answers = {
    id: [[c.formula, c.measured], c.unit, c.guess.choices]
    for id, c in _guesses._comparisons.items()
}
print("ANSWERS" + _json.dumps(_answers))
"""
# What cells show then is not put into their outputs, which are to be read as they were.
ANSWER_ALL = """
get_ipython().display_pub.publish = lambda *given, **named: None
for _guess in _guesses._guesses.values():
    _guess.answer(_guess.choices[0] if _guess.choices else 1)
print("COVERED" + _json.dumps([id for id, c in _guesses._comparisons.items() if not c.uncovered]))
"""
ADDED = 2


def run(name: str, folder: Path, **parameters) -> dict:
    return execute(NOTEBOOKS / name, folder, added=(READ_OUT, ANSWER_ALL), **parameters)


def put_out(cell: dict) -> str:
    """All that a cell has put out, as text."""
    parts = []
    for output in cell.get("outputs", []):
        parts.append("".join(output.get("text", "")))
        for shown in output.get("data", {}).values():
            parts.append(shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False))
    return re.sub(r"<[^>]+>", " ", "\n".join(parts))


def _told(cell: dict, word: str):
    said = put_out(cell)
    return json.loads(said[said.index(word) + len(word) :].partition("\n")[0])


def answers(notebook: dict) -> dict[str, list]:
    """id -> [formula, measured], unit, choices"""
    return _told(notebook["cells"][-2], "ANSWERS")


def open_questions(notebook: dict) -> list[str]:
    return _told(notebook["cells"][-1], "COVERED")


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


def leaks(notebook: dict, chance=(), many_numbers=()) -> list[str]:
    """What gives an answer away. Both are (cell, question): `chance`, where the cell has the same
    number of something else; `many_numbers`, where it draws so many that one may be what was
    measured, which is another one each time: there, only the formula's is looked for."""
    found = []
    for id, (values, unit, choices) in answers(notebook).items():
        for cell in notebook["cells"][:-ADDED]:
            if choices and "choices=" in "".join(cell["source"]):
                continue  # it lists all of them
            if (cell["id"], id) in chance:
                continue
            said = put_out(cell)
            looked_for = values[:1] if (cell["id"], id) in many_numbers else values
            given = [value for value in looked_for if value is not None]
            for form in {form for value in given for form in written(value, unit)}:
                if re.search(rf"(?<![\d.,\w]){re.escape(form)}(?![\d\w]|[.,]\d)", said):
                    found.append(f"{cell['id']} says {form!r}, the answer of {id}")
    return found


def with_title(notebook: dict, text: str) -> dict:
    """The notebook with a cell that says this, too: a wrong version for the search to find."""
    notebook = json.loads(json.dumps(notebook))
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    title = {"output_type": "display_data", "data": {"text/html": f"<b>{text}</b>"}, "metadata": {}}
    first["outputs"].append(title)
    return notebook
