"""The cheat sheet of chapter 2, asked what chapter 1's is: what is committed is what its calls
return, each formula says what its call says, and every line leads to what measures it.

The wrong versions that these checks find are kept beside chapter 1's; here one of each.
"""

import json
from pathlib import Path

import pytest

from picolab.chapters.c02_moe.cheatsheet import SHEET
from tests.chapters.c01_4d_basics import test_cheatsheet as checks

ROOT = Path(__file__).resolve().parents[3]
FILES = ("cheatsheet_moe.md", "cheatsheet_moe.html")


@pytest.fixture(autouse=True)
def this_sheet(monkeypatch):
    monkeypatch.setattr(checks, "SHEET", SHEET)
    monkeypatch.setattr(checks, "NOTEBOOK", f"../notebooks/{SHEET.notebook}.ipynb")


def cells() -> dict[str, dict]:
    notebook = ROOT / "notebooks" / f"{SHEET.notebook}.ipynb"
    return {cell["id"]: cell for cell in json.loads(notebook.read_text("utf-8"))["cells"]}


def test_the_committed_sheet_is_what_the_calls_return(tmp_path):
    SHEET.write(tmp_path)
    for name in FILES:
        committed = (ROOT / "summary" / name).read_text("utf-8")
        assert committed == (tmp_path / name).read_text("utf-8"), "make refresh writes it again"


@pytest.mark.parametrize("line", SHEET.lines, ids=lambda line: line.what[:40])
def test_the_formula_agrees_with_the_call(line):
    checks.check_line(line)


def test_every_line_leads_to_what_measures_it():
    found = cells()
    for line in SHEET.lines:
        checks.check_where(line, found)


@pytest.mark.parametrize(
    "change", [{"formula": "L*3*h*f*k"}, {"call": "10"}, {"what": "all of 8 experts"}], ids=str
)
def test_wrong_lines_are_noticed(change):
    with pytest.raises(AssertionError):
        checks.check_line(SHEET.lines[0]._replace(**change))


def test_a_link_that_leads_nowhere_is_noticed():
    with pytest.raises(AssertionError):
        checks.check_where(SHEET.lines[0]._replace(where="why-idea", how="measured"), cells())
