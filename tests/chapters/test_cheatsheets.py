"""The cheat sheets of the chapters after the first, asked what chapter 1's is: what is committed is
what its calls return, each formula says what its call says, and every line leads to what measures
it.

The wrong versions that these checks find are kept beside chapter 1's; here one of each.
"""

import json
from pathlib import Path

import pytest

from picolab.chapters.c02_moe.cheatsheet import SHEET as MOE
from picolab.chapters.c03_3d_parallel.cheatsheet import SHEET as THREE_D
from picolab.chapters.c04_mixed_precision.cheatsheet import SHEET as PRECISION
from picolab.chapters.c05_memory.cheatsheet import SHEET as MEMORY
from picolab.chapters.c06_monitoring.cheatsheet import SHEET as MONITORING
from tests.chapters.c01_4d_basics import test_cheatsheet as checks

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "02_moe": "cheatsheet_moe",
    "03_3d_parallel": "cheatsheet_3d",
    "04_mixed_precision": "cheatsheet_precision",
    "05_memory": "cheatsheet_memory",
    "06_monitoring": "cheatsheet_monitoring",
}
SHEETS = (MOE, THREE_D, PRECISION, MEMORY, MONITORING)
# Of a sheet's first line: another formula, call and number; and a cell that measures nothing.
WRONG = {
    "02_moe": ("L*3*h*f*k", "10", "all of 8 experts", "why-idea"),
    "03_3d_parallel": ("P + G + M", "10", "a parameter, 4 ranks", "zero-idea"),
    "04_mixed_precision": ("1/2**m", "10", "7 bits of mantissa", "format-idea"),
    "05_memory": ("P + A", "10", "16 bytes a parameter", "count-idea"),
    "06_monitoring": ("n*p", "10", "one of 1,024 ranks pauses", "slow-idea"),
}
LINES = [(sheet, line) for sheet in SHEETS for line in sheet.lines]

of_each = pytest.mark.parametrize("sheet", SHEETS, ids=lambda sheet: sheet.notebook)


@pytest.fixture(autouse=True)
def this_sheet(sheet, monkeypatch):
    monkeypatch.setattr(checks, "SHEET", sheet)
    monkeypatch.setattr(checks, "NOTEBOOK", f"../notebooks/{sheet.notebook}.ipynb")


def cells(sheet) -> dict[str, dict]:
    notebook = ROOT / "notebooks" / f"{sheet.notebook}.ipynb"
    return {cell["id"]: cell for cell in json.loads(notebook.read_text("utf-8"))["cells"]}


@of_each
def test_the_committed_sheet_is_what_the_calls_return(sheet, tmp_path):
    sheet.write(tmp_path)
    for ending in ("md", "html"):
        name = f"{FILES[sheet.notebook]}.{ending}"
        committed = (ROOT / "summary" / name).read_text("utf-8")
        assert committed == (tmp_path / name).read_text("utf-8"), "make refresh writes it again"


@of_each
def test_powers_are_written_as_people_do(sheet):
    committed = (ROOT / "summary" / f"{FILES[sheet.notebook]}.md").read_text("utf-8")
    assert "··" not in committed and "²" in sheet.lines[0]._replace(formula="p**2").formula_text
    assert sheet.lines[0]._replace(formula="2*p**20 - 1").formula_text == "2·p^20 − 1"


@pytest.mark.parametrize("sheet, line", LINES, ids=lambda one: getattr(one, "what", "")[:40])
def test_the_formula_agrees_with_the_call(sheet, line):
    checks.check_line(line)


@of_each
def test_every_line_leads_to_what_measures_it(sheet):
    found = cells(sheet)
    for line in sheet.lines:
        checks.check_where(line, found)


@of_each
def test_wrong_lines_are_noticed(sheet):
    formula, call, what, _ = WRONG[sheet.notebook]
    for change in ({"formula": formula}, {"call": call}, {"what": what}):
        with pytest.raises(AssertionError):
            checks.check_line(sheet.lines[0]._replace(**change))


@of_each
def test_a_link_that_leads_nowhere_is_noticed(sheet):
    *_, where = WRONG[sheet.notebook]
    with pytest.raises(AssertionError):
        checks.check_where(sheet.lines[0]._replace(where=where, how="measured"), cells(sheet))
