"""What comes from somebody else is shown, not obeyed; no character ends a program whose stream
cannot say it. The wrong version kept below sends what it is given.
"""

import io
import os
import sys

from picolab.show import plain, terminal
from picolab.show.plain import put, say_everything, visible
from picolab.show.table import Table

HOSTILE = "\x1b]0;title\x07\x1b[2Jrun\u202e\x9b1m"


def obeyed(text: str) -> bool:
    return any(mark in text for mark in "\x1b\x07\x9b\u202e")


def test_what_a_terminal_obeys_is_written_out():
    assert visible(HOSTILE) == r"\x1b]0;title\x07\x1b[2Jrun\u202e\x9b1m"
    for text in ("Gradienten für 8 Ränge\n\tund 中文 → ✓", "", "a b"):
        assert visible(text) == text


def shown(capsys) -> list[str]:
    table = Table(["run", "state"], [[HOSTILE, 1]], title=HOSTILE)
    terminal.say(HOSTILE)
    said = capsys.readouterr().out
    return [said, repr(table), terminal.text(terminal.markdown(HOSTILE)), terminal.text(HOSTILE)]


def test_tables_markdown_and_sentences_obey_nothing(monkeypatch, capsys):
    assert not any(map(obeyed, shown(capsys)))
    for module in (plain, terminal, sys.modules["picolab.show.table"]):  # mutant
        monkeypatch.setattr(module, "visible", lambda text: text)
    assert all(map(obeyed, shown(capsys)))


def test_styles_of_our_own_still_work(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    to = terminal.console(force_terminal=True, color_system="standard", width=40)
    with to.capture() as made:
        to.print("loud", style="bold")
    assert made.get().startswith("\x1b[1mloud")


def test_a_stream_that_cannot_say_it_says_what_it_is(monkeypatch):
    for encoding, arrives in (("ascii", "gr\\xfcn \\u2713"), ("latin-1", "grün \\u2713")):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding)
        put("grün ✓", stream)
        assert raw.getvalue().decode(encoding) == f"{arrives}{os.linesep}"
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        say_everything()
        print("grün ✓", flush=True)
        assert raw.getvalue().decode(encoding) == f"{arrives}{os.linesep}"
