"""The cheat sheet: what is committed is what its calls return, and every line leads somewhere.

Wrong versions these tests catch (mutants below): a number typed by hand into the sheet, a formula
that says something else than its call, a number typed into the words of a line, a link to a cell
that does not exist, or to one that neither compares nor prints a measurement, or to a test that is
not there, a page that loads something, one that takes a second sheet of paper.
"""

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest

from picolab.chapters.c01_4d_basics.cheatsheet import SHEET
from picolab.interview.cheatsheet import Line
from picolab.show import png

ROOT = Path(__file__).resolve().parents[3]
SUMMARY = ROOT / "summary"
LINES = SHEET.lines
NOTEBOOK = f"../notebooks/{SHEET.notebook}.ipynb"
FILES = ("cheatsheet.md", "cheatsheet.html")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> dict[str, str]:
    paths = SHEET.write(tmp_path_factory.mktemp("sheet"))
    return {path.name: path.read_text(encoding="utf-8") for path in paths}


def check_committed(rendered: dict[str, str], committed: dict[str, str]):
    assert committed == rendered, "make refresh writes the cheat sheet again"


def committed() -> dict[str, str]:
    return {name: (SUMMARY / name).read_text(encoding="utf-8") for name in FILES}


def test_the_committed_sheet_is_what_the_calls_return(rendered):
    check_committed(rendered, committed())


@pytest.mark.parametrize("name", FILES)
def test_a_number_changed_by_hand_is_noticed(rendered, name):
    wrong = committed()
    assert "3,215,872 bytes" in wrong[name]
    wrong[name] = wrong[name].replace("3,215,872 bytes", "3,215,871 bytes")
    with pytest.raises(AssertionError):
        check_committed(rendered, wrong)


def test_every_line_is_in_both(rendered):
    for line in LINES:
        assert f"`{line.call}`" in rendered["cheatsheet.md"]
        assert f"**{SHEET.value_text(line)}**" in rendered["cheatsheet.md"]
        assert rendered["cheatsheet.html"].count(f'href="{SHEET.link(line)}"') >= 1
    assert rendered["cheatsheet.html"].count("<article>") == len(LINES) > 40


# -- the numbers ----------------------------------------------------------------------------------


def check_line(line: Line):
    """The call is one into the formulas, and the formula's text says the same number."""
    calls = {ast.unparse(n.func) for n in ast.walk(ast.parse(line.call)) if isinstance(n, ast.Call)}
    formulas = ("pico.costs.", "pico.schedules.")
    assert "h100" in line.call or any(call.startswith(formulas) for call in calls), line.call
    if line.formula:
        assert SHEET.evaluate(line.formula, line.given) == pytest.approx(
            SHEET.evaluate(line.call), rel=1e-12
        )
    # Names of formats, schedules and models have digits; no other digit is typed.
    names = r"fp(8|16|32|64)|bf16|1F1B|ZeRO-\d|llama\d+"
    assert not re.search(r"\d", re.sub(names, "", line.what)), line.what


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.what[:40])
def test_the_formula_agrees_with_the_call(line):
    check_line(line)


@pytest.mark.parametrize(
    "change",
    [
        {"formula": "(n-1)/n*B"},  # an all-reduce is two such rounds
        {"call": "1.75e9"},
        {"call": 'pico.costs.ring_bytes("all_reduce", 1e9, 4)'},
        {"what": "all-reduce of 1 GB"},
    ],
    ids=str,
)
def test_wrong_lines_are_noticed(change):
    assert LINES[0].what == "all-reduce"
    with pytest.raises(AssertionError):
        check_line(LINES[0]._replace(**change))


def test_most_lines_have_a_formula_that_was_evaluated():
    assert sum(bool(line.formula) for line in LINES) / len(LINES) > 0.85


# -- the links ------------------------------------------------------------------------------------


def cells() -> dict[str, dict]:
    notebook = json.loads((ROOT / "notebooks" / "01_4d_basics.ipynb").read_text(encoding="utf-8"))
    return {cell["id"]: cell for cell in notebook["cells"]}


def check_where(line: Line, cells: dict[str, dict]):
    if line.how == "tested":
        assert (ROOT / line.where).is_file(), line.where
        assert "def test_" in (ROOT / line.where).read_text(encoding="utf-8")
        return
    assert SHEET.link(line) == f"{NOTEBOOK}#cell-id={line.where}"
    assert line.where in cells, f"no cell is called {line.where}"
    cell = cells[line.where]
    source = "".join(cell["source"])
    assert cell["cell_type"] == "code", f"{line.where} is no code"
    if line.how == "computed":
        assert re.search(r"pico\.costs\.|assert ", source), f"{line.where} computes nothing"
        return
    shown = any(word in source for word in ("print(", "Table(", "_figure("))
    holds = "pico.compare(" in source or "assert " in source or "ledger_table(" in source
    assert holds or ("measured" in source and shown), f"{line.where} measures nothing"


def test_every_line_leads_to_what_measures_it():
    assert (SUMMARY / NOTEBOOK).is_file()
    found = cells()
    for line in LINES:
        check_where(line, found)


@pytest.mark.parametrize(
    "where, how",
    [
        ("ring-bytes-comparison", "measured"),  # no such cell
        ("ring-bytes-guess", "measured"),  # asks, and measures nothing
        ("basics-setup", "measured"),  # prints, but no measurement
        ("ring-factor", "measured"),  # prose
        ("basics-setup", "computed"),
        ("tests/distributed/comm/test_wires.py", "tested"),
    ],
)
def test_links_that_lead_nowhere_are_noticed(where, how):
    with pytest.raises(AssertionError):
        check_where(LINES[0]._replace(where=where, how=how), cells())


def test_most_of_it_is_measured_in_the_chapter():
    assert sum(line.how == "measured" for line in LINES) >= len(LINES) * 0.4


# -- the page -------------------------------------------------------------------------------------


def check_alone(page: str):
    """Nothing is loaded, and both kinds of screen and the printer are thought of."""
    assert not re.search(r"<(script|link|img|iframe)|url\(|@import|https?://", page)
    for wanted in ("@media print", "prefers-color-scheme: dark", "size: A4", "columns: 2"):
        assert wanted in page


def test_the_page_stands_alone(rendered):
    check_alone(rendered["cheatsheet.html"])


def test_a_page_that_loads_a_font_is_noticed(rendered):
    with pytest.raises(AssertionError):
        check_alone(rendered["cheatsheet.html"].replace("</head>", '<link href="a.css"></head>'))


@pytest.mark.skipif(png.find_browser() is None, reason="no Chromium or Chrome here")
def test_it_prints_on_one_sheet(rendered, tmp_path):
    def sheets(page: str) -> int:
        (tmp_path / "sheet.html").write_text(page, encoding="utf-8")
        command = [png.find_browser(), "--headless", "--no-sandbox", "--disable-gpu"]
        command += [f"--user-data-dir={tmp_path}/profile", f"--print-to-pdf={tmp_path}/sheet.pdf"]
        command += ["--no-pdf-header-footer", (tmp_path / "sheet.html").as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return len(re.findall(rb"/Type /Page\b", (tmp_path / "sheet.pdf").read_bytes()))

    page = rendered["cheatsheet.html"]
    assert sheets(page) == 1
    assert sheets(page.replace("font-size: 6.6pt", "font-size: 9pt")) > 1  # the mutant
