"""Exercises stand in the notebooks as the package has them, each once, and without an answer.

Wrong versions these catch, kept as edits of the cells: a stub that was changed in one place only,
an exercise or a mystery run that no notebook has or two have, a stub that nothing checks, a
solution that somebody left in a saved notebook, a hint or a solution that Run All would show.
"""

import ast
import json
import re
import textwrap
from pathlib import Path

import pytest

from picolab.exercises.catalogue import find, ids
from picolab.exercises.definition import source_of
from picolab.exercises.mystery import cases

NOTEBOOKS = Path(__file__).resolve().parents[3] / "notebooks"
IN_A_CHAPTER = {"4d.ring.all-reduce"}  # every other is in NN_topic_exercises
GIVEN_AWAY = 0.75  # of the lines that the solution has and the stub has not

# Those of coding interviews stand in no notebook: practice asks them.
EXERCISES = [name for name in ids() if not name.startswith("interview.")]

Cells = dict[tuple[str, str], str]  # (notebook, id of a code cell) -> its text


def code_cells() -> Cells:
    return {
        (path.name, cell["id"]): "".join(cell["source"])
        for path in sorted(NOTEBOOKS.glob("*.ipynb"))
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    }


def calls(text: str) -> list[ast.Call]:
    """All calls in a cell; a comment calls nothing, and a %%magic's body is not ours."""
    tree = ast.parse("" if text.startswith("%%") else text)
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def misplaced(cells: Cells) -> list[str]:
    """What is wrong with where exercises and mystery runs are shown."""
    shown: dict[str, list[str]] = {name: [] for name in (*EXERCISES, *cases())}
    for (notebook, _), text in cells.items():
        called = calls(text)
        if any(ast.unparse(call.func).endswith(".check") for call in called):
            continue
        for call in called:
            if ast.unparse(call.func) in ("pico.exercise", "pico.mystery") and call.args:
                shown.setdefault(call.args[0].value, []).append(notebook)
    wrong = [f"{name}: shown in {found}" for name, found in shown.items() if len(found) != 1]
    for name, found in shown.items():
        if any(
            notebook.endswith("_exercises.ipynb") == (name in IN_A_CHAPTER) for notebook in found
        ):
            wrong.append(f"{name}: does not belong into {found}")
    return wrong


def drifted(cells: Cells) -> list[str]:
    """What is wrong with the stubs and their checks."""
    wrong = []
    for name in EXERCISES:
        exercise = find(name)
        function = exercise.stub_function.__name__
        stubs = [text for text in cells.values() if f"def {function}(" in text]
        checks = [text for text in cells.values() if f".check({function})" in text]
        if (len(stubs), len(checks)) != (1, 1):
            wrong.append(f"{name}: {len(stubs)} stubs and {len(checks)} checks")
        # A chapter's set-up has imported what the stub needs; an exercise stands on its own.
        same = without_imports if name in IN_A_CHAPTER else str.strip
        if any(same(stub) != same(exercise.stub) for stub in stubs):
            wrong.append(f"{name}: the stub is not that of {exercise.stub_function.__module__}")
    return wrong


def given_away(cells: Cells) -> list[str]:
    """Cells that hold most of a solution, however indented, or that show a hint or a solution."""
    wrong = []
    for where, text in cells.items():
        shows = [call for call in calls(text) if ast.unparse(call.func).endswith(_HELP)]
        wrong += [f"{where}: shows {ast.unparse(call)}" for call in shows]
    for name in EXERCISES:
        exercise = find(name)
        own = lines(source_of(exercise.solution_function)) - lines(exercise.stub)
        held = {where: len(own & lines(text)) / len(own) for where, text in cells.items()}
        wrong += [
            f"{where}: holds {share:.0%} of the solution of {name}"
            for where, share in held.items()
            if share >= GIVEN_AWAY
        ]
    return wrong


_HELP = (".hint", ".solution")


def lines(code: str) -> set[str]:
    """Without indentation and comments."""
    return {line.split("  #")[0].strip() for line in code.splitlines()} - {""}


def without_imports(code: str) -> str:
    kept = [line for line in code.splitlines() if line and not re.match(r"\s*import ", line)]
    return "\n".join(kept)


def test_each_exercise_and_mystery_run_is_in_one_notebook():
    assert misplaced(code_cells()) == []


def test_each_stub_is_the_packages_and_is_checked():
    assert drifted(code_cells()) == []


def test_no_notebook_has_an_answer():
    assert given_away(code_cells()) == []


# Edits that must be found.

NAME = "4d.cp.zigzag"
FILE = "01_4d_basics_exercises.ipynb"
STATEMENT, STUB = (FILE, "ex-cp-zigzag-statement"), (FILE, "ex-cp-zigzag-stub")
ELSEWHERE = ("00_start_here.ipynb", "start-elsewhere")


def _not_stated(cells):
    del cells[STATEMENT]


def _stated_twice(cells):
    cells[ELSEWHERE] = cells[STATEMENT]


def _in_a_chapter(cells):
    cells[ELSEWHERE] = cells.pop(STATEMENT)


def _of_no_catalogue(cells):
    cells[ELSEWHERE] = 'pico.exercise("4d.cp.other")'


def _mystery_missing(cells):
    del cells[FILE, "mystery-two"]


@pytest.mark.parametrize(
    "edit", [_not_stated, _stated_twice, _in_a_chapter, _of_no_catalogue, _mystery_missing]
)
def test_a_misplaced_exercise_is_found(edit):
    cells = code_cells()
    edit(cells)
    assert misplaced(cells)


def _other_stub(cells):
    cells[STUB] = cells[STUB].replace("2 * cp", "cp")


def _ring_changed(cells):
    stub = "01_4d_basics.ipynb", "ring-exercise-stub"
    cells[stub] = cells[stub].replace("me + 1", "me - 1")


def _no_stub(cells):
    del cells[STUB]


def _not_checked(cells):
    del cells[FILE, "ex-cp-zigzag-check"]


@pytest.mark.parametrize("edit", [_other_stub, _ring_changed, _no_stub, _not_checked])
def test_a_stub_that_drifts_is_found(edit):
    cells = code_cells()
    edit(cells)
    assert drifted(cells)


def _solution(cells):
    text = source_of(find(NAME).solution_function)
    cells[STUB] = text.replace("def solution", "def my_zigzag")


def _solution_in_a_class(cells):
    text = source_of(find(NAME).solution_function)
    cells[ELSEWHERE] = "class Mine:\n" + textwrap.indent(text, "    ")


def _hint_uncommented(cells):
    cells[FILE, "ex-cp-zigzag-help"] = f'pico.exercise("{NAME}").hint()'


def _solution_asked_for(cells):
    cells[ELSEWHERE] = "ring_exercise.solution(now=True)"


@pytest.mark.parametrize(
    "edit", [_solution, _solution_in_a_class, _hint_uncommented, _solution_asked_for]
)
def test_an_answer_is_found(edit):
    cells = code_cells()
    edit(cells)
    assert given_away(cells)


# What is said of them, in words.

_NUMBERS = {7: "seven", 8: "eight", 12: "twelve", 13: "thirteen"}  # those that occur, or did


def miscounted(title: str, readme: str) -> list[str]:
    """Which number of exercises or minutes is another than the catalogue's."""
    in_file = [name for name in EXERCISES if name.startswith("4d.") and name not in IN_A_CHAPTER]
    mysteries = [name for name in cases() if name.startswith("4d.")]
    minutes = sum(find(name).about.minutes for name in in_file)
    starred = sum(find(name).about.minutes for name in in_file if find(name).about.starred)
    counts = {
        "title": f"{_NUMBERS[len(in_file)].capitalize()} exercises and "
        f"{_NUMBERS[len(mysteries)]} mystery runs" in title,
        "the two starred": f"they take {starred} minutes" in title,
        "all": f"about {round(minutes / 60)} hours" in title,
        "README": f"| {_NUMBERS[len(in_file)]} exercises" in readme,
    }
    return [what for what, right in counts.items() if not right]


def said() -> tuple[str, str]:
    cells = json.loads((NOTEBOOKS / FILE).read_text(encoding="utf-8"))["cells"]
    return "".join(cells[0]["source"]), (NOTEBOOKS.parent / "README.md").read_text("utf-8")


def test_the_exercises_are_counted():
    assert miscounted(*said()) == []


def test_a_wrong_count_is_noticed():
    title, readme = said()
    assert "title" in miscounted(title.replace("exercises", "tasks"), readme)
    assert miscounted(title, readme.replace(" exercises", " tasks")) == ["README"]
