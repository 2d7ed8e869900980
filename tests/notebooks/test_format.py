"""Notebooks as the house wants them: the .ipynb is the only copy, and a diff of it can be read.

Canonical JSON; stable cell ids that say what the cell is; no outputs, execution counts or widget
state; one cell tagged `parameters`, with literal values only; code cells of at most 30 lines.

    python tests/notebooks/test_format.py          say what is wrong
    python tests/notebooks/test_format.py --fix    mend what can be mended without judgement

Catches a notebook saved from JupyterLab with its outputs, two parameters cells, a parameter that
papermill cannot set, and ids that a tool made up.
"""

import ast
import copy
import json
import re
import sys
from pathlib import Path

import pytest

from picolab.show.files import write_beside

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
MAX_LINES = 30
_ID = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_MADE_UP = re.compile(r"(?=.*\d)[0-9a-f]{6,}|cell\d*")
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def faults(text: str) -> list[str]:
    """What is wrong with this notebook; a reader's sentence each."""
    notebook = json.loads(text)
    cells = notebook["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    found = []
    if canonical(notebook) != text:
        found.append("the JSON is not canonical (--fix mends it)")
    if (notebook["nbformat"], notebook["nbformat_minor"]) != (4, 5):
        found.append("the format is not 4.5")
    if notebook["metadata"].get("kernelspec") != _KERNEL or "widgets" in notebook["metadata"]:
        found.append("the notebook's metadata hold more, or less, than the kernel (--fix)")
    for cell in code:
        if cell["outputs"] or cell["execution_count"] is not None:
            found.append(f"{cell.get('id')}: saved outputs or an execution count (--fix)")
        lines = len("".join(cell["source"]).splitlines())
        if lines > MAX_LINES:
            found.append(f"{cell.get('id')}: {lines} lines, the limit is {MAX_LINES}")
    for cell in cells:
        if set(cell["metadata"]) - {"tags"}:
            found.append(f"{cell.get('id')}: metadata besides tags (--fix)")
        if not _is_descriptive(cell.get("id", "")):
            found.append(f"{cell.get('id')!r}: an id says what the cell is, like pp-bubble-predict")
    ids = [cell.get("id") for cell in cells]
    found += [
        f"{name}: this id stands more than once" for name in {i for i in ids if ids.count(i) > 1}
    ]
    return found + _parameter_faults(code)


def _is_descriptive(name: str) -> bool:
    return bool(_ID.fullmatch(name)) and not any(map(_MADE_UP.fullmatch, name.split("-")))


def _parameter_faults(code: list[dict]) -> list[str]:
    """papermill sets what one tagged cell assigns; it can set literals only."""
    tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        return [f"{len(tagged)} cells are tagged parameters; there must be one"]
    found = []
    for statement in ast.parse("".join(tagged[0]["source"])).body:
        try:
            assert isinstance(statement, ast.Assign) and len(statement.targets) == 1
            assert isinstance(statement.targets[0], ast.Name)
            ast.literal_eval(statement.value)
        except (AssertionError, ValueError):
            found.append(f"parameters: `{ast.unparse(statement)}` is not name = literal")
    return found


def canonical(notebook: dict) -> str:
    """One way to write it: sorted keys, one space, sources as lists of lines, a final newline."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"]).splitlines(keepends=True)
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def mended(text: str) -> str:
    """Without outputs, counts and foreign metadata, in canonical form. Ids are the author's to
    choose."""
    notebook = json.loads(text)
    notebook["nbformat"], notebook["nbformat_minor"] = 4, 5
    notebook["metadata"] = {"kernelspec": _KERNEL, "language_info": {"name": "python"}}
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags")
        cell["metadata"] = {"tags": tags} if tags else {}
        cell.pop("attachments", None)
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    return canonical(notebook)


# --- the tests ----------------------------------------------------------------------------------


def notebooks() -> list[Path]:
    return sorted(NOTEBOOKS.glob("*.ipynb"))


def test_there_are_notebooks():
    names = [path.stem for path in notebooks()]
    assert names[:3] == ["00_start_here", "01_4d_basics", "01_4d_basics_exercises"]


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.name)
def test_format(path):
    text = path.read_text(encoding="utf-8")
    assert faults(text) == []
    assert mended(text) == text


GOOD = {
    "cells": [
        {
            "cell_type": "code",
            "execution_count": None,
            "id": "basics-parameters",
            "metadata": {"tags": ["parameters"]},
            "outputs": [],
            "source": ['layout = "dp4"\n', "steps = -1"],
        },
        {"cell_type": "markdown", "id": "basics-route", "metadata": {}, "source": ["# Route"]},
    ],
    "metadata": {"kernelspec": _KERNEL, "language_info": {"name": "python"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}


def test_a_good_notebook_has_no_faults():
    assert faults(canonical(GOOD)) == [] and mended(canonical(GOOD)) == canonical(GOOD)


def _output(notebook):
    notebook["cells"][0]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["4"]}]


def _count(notebook):
    notebook["cells"][0]["execution_count"] = 3


def _widget_state(notebook):
    notebook["metadata"]["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}


def _cell_metadata(notebook):
    notebook["cells"][1]["metadata"]["collapsed"] = True


def _made_up_id(notebook):
    notebook["cells"][1]["id"] = "a1f2e3d4"


def _same_id(notebook):
    notebook["cells"][1]["id"] = "basics-parameters"


def _no_parameters(notebook):
    notebook["cells"][0]["metadata"] = {}


def _computed_parameter(notebook):
    notebook["cells"][0]["source"] = ["steps = 2 * 10 if True else 5"]


def _long_cell(notebook):
    notebook["cells"][0]["source"] = ["steps = 1\n"] * (MAX_LINES + 1)


@pytest.mark.parametrize("spoil", [_output, _count, _widget_state, _cell_metadata])
def test_what_saving_leaves_behind_is_found_and_mended(spoil):
    notebook = copy.deepcopy(GOOD)
    spoil(notebook)
    assert len(faults(canonical(notebook))) == 1
    assert mended(canonical(notebook)) == canonical(GOOD)


@pytest.mark.parametrize(
    "spoil", [_made_up_id, _same_id, _no_parameters, _computed_parameter, _long_cell]
)
def test_what_needs_judgement_is_found_and_left(spoil):
    notebook = copy.deepcopy(GOOD)
    spoil(notebook)
    assert len(faults(canonical(notebook))) == 1
    assert mended(canonical(notebook)) == canonical(notebook)


@pytest.mark.parametrize(
    "text", [json.dumps(GOOD), json.dumps(GOOD, indent=2), canonical(GOOD) + "\n"]
)
def test_another_way_to_write_it_is_found_and_mended(text):
    assert faults(text) == ["the JSON is not canonical (--fix mends it)"]
    assert mended(text) == canonical(GOOD)


def main(arguments: list[str]) -> int:
    """Check every notebook; with --fix, mend first and say what is left."""
    wrong = 0
    for path in notebooks():
        text = path.read_text(encoding="utf-8")
        if "--fix" in arguments and (better := mended(text)) != text:
            write_beside(path, better)
            text = better
            print(f"{path.name}: mended")
        for fault in faults(text):
            wrong += 1
            print(f"{path.name}: {fault}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
