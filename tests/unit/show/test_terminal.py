"""What a terminal shows: as wide as it is, with escape codes where it knows them and nowhere else.

Wrong versions these tests catch: Chinese measured in characters (mutant), codes in a pipe, under
NO_COLOR or in a dumb terminal, a JSON object that is broken into lines, brackets of a text that are
taken for rich's markup, a row of a table that a pipe gets in two lines.
"""

import os
import re
import subprocess
import sys

import pexpect
import pytest
from rich.cells import cell_len

from picolab.show.table import Table
from picolab.show.terminal import console, listed, markdown, text

LONG = (
    "Every rank passes one chunk to its right in each step and adds what comes from its left. " * 3
)
CHINESE = "每个阶段都要等到第一个微批次到达，最后一个离开后又要再等。" * 5


def check_wide(made: str, width: int):
    """No line is wider than the terminal, and none ends in blanks."""
    lines = made.splitlines()
    assert max(map(cell_len, lines)) <= width and all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("width", [40, 72, 100])
@pytest.mark.parametrize("prose", [LONG, CHINESE, LONG + CHINESE], ids=["en", "zh", "both"])
def test_prose_lists_and_tables_fit_the_width_and_lose_nothing(prose, width):
    to = console(width=width)
    for made, copies in (
        (text(markdown(prose), to=to), 1),
        (text(listed([("1.", prose), ("10.", prose)]), to=to), 2),
        (text(Table(["", "n"], [[prose, 3]]), to=to), 1),
    ):
        check_wide(made, width)
        for letter in "vmq微离":
            assert made.count(letter) == copies * prose.count(letter)


def test_columns_of_chinese_are_aligned_in_cells(monkeypatch):
    def check():
        lines = repr(Table(["题目", "n"], [["气泡", 1], ["abcdef", 22]])).splitlines()
        assert len({cell_len(line) for line in lines[2:]}) == 1

    check()
    for module in ("rich.text", "rich.segment", "rich.measure"):  # the wrong version
        if hasattr(sys.modules[module], "cell_len"):
            monkeypatch.setattr(f"{module}.cell_len", len)
    with pytest.raises(AssertionError):
        check()


def test_brackets_are_text_and_formulas_stay_whole():
    made = text(listed([("1.", "[3] says `2*(n-1)/n*B` [bold]twice[/bold] :smile:")]))
    assert made == "1. [3] says 2*(n-1)/n*B [bold]twice[/bold] :smile:"
    assert repr(Table(["[red]x"], [["[/]"]], "a [title]")) == "a [title]\n[red]x\n------\n[/]"


PROGRAM = """
from picolab.show.table import Table
from picolab.show.terminal import console, markdown, say
say(Table(["what", "count"], [["word " * 30, 1_000]], "a title"))
say('{"json": "' + "x " * 100 + '"}')
console().print(markdown("**bold** and `code`"))
"""


def on_terminal(**env) -> str:
    plain = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS")}
    talk = pexpect.spawn(
        sys.executable,
        ["-c", PROGRAM],
        env={**plain, "TERM": "xterm", **env},
        encoding="utf-8",
        dimensions=(40, 60),
        timeout=30,
    )
    talk.expect(pexpect.EOF)
    return talk.before.replace("\r\n", "\n")


def test_a_terminal_gets_its_width_and_codes_where_it_knows_them():
    said = on_terminal()
    assert "\x1b[1mbold" in said
    table, _, rest = re.sub(r"\x1b\[[\d;]*m", "", said).partition('{"json"')
    check_wide("\n".join(line.rstrip() for line in table.splitlines()), 60)
    assert len(table.splitlines()) > 4, "the long cell goes on in further lines"
    assert rest.splitlines()[0].endswith('x "}')
    for setting in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in on_terminal(**setting) and "bold and code" in on_terminal(**setting)


def test_a_pipe_gets_one_line_a_row_and_no_codes():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "\x1b" not in done.stdout and lines[0] == "a title"
    assert lines[3] == "word " * 30 + "  1,000" and len(lines) == 6
