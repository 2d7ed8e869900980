"""What ranks print: whole on the disk, bounded in the cell, whatever it is.

Wrong versions these catch, kept below where they are short: a line that is kept whole until it ends
(24 million characters took 22 s, and reached the cell), an end at the first character that the
notebook's encoding has not, "all in rank.*.log" where it is not.
"""

import io
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picolab.launch import display
from picolab.launch.display import LINE_BYTES, SHOWN_LINES, Display


@given(st.lists(st.text("ab\r", max_size=6)))
def test_a_line_is_what_follows_its_last_carriage_return(parts):
    """However it was cut into pieces."""
    line = display._Line()
    for part in parts:
        line.add(part.encode())
    assert line.text() == "".join(parts).rstrip("\r").rsplit("\r", 1)[-1]


class KeptWhole(display._Line):
    """Mutant."""

    def add(self, part):
        self._kept = (self._kept + part).rsplit(b"\r", 1)[-1]


def most_kept(tmp_path, capsys) -> tuple[int, int]:
    """Bytes of a line without an end that were kept at once, and that reached the cell."""
    shown, most = Display(tmp_path, 1), 0
    for _ in range(100):
        shown.feed(0, b"x" * 65_536)
        most = max(most, len(shown._lines[0]._kept))
    shown.feed(0, b"\n")
    shown.close()
    assert (tmp_path / "rank.0.log").stat().st_size == 6_553_601
    return most, len(capsys.readouterr().out)


def test_a_line_without_end_is_bounded(tmp_path, capsys, monkeypatch):
    kept, reached = most_kept(tmp_path, capsys)
    assert kept <= LINE_BYTES and reached < LINE_BYTES + 100
    monkeypatch.setattr(display, "_Line", KeptWhole)
    kept, reached = most_kept(tmp_path, capsys)
    assert kept > 6e6 and reached > 6e6


def test_what_is_cut_is_said(tmp_path, capsys):
    shown = Display(tmp_path, 1)
    shown.feed(0, b"y" * (LINE_BYTES + 1_234) + b"\nnext\n")
    out = capsys.readouterr().out
    assert out.splitlines()[0].endswith("y ... (1,234 more bytes)") and "[0] next" in out


def test_any_character_in_any_encoding(tmp_path, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    Display(tmp_path, 1).feed(0, "grün ✓ \ud800\n".encode("utf-8", "surrogatepass"))
    assert raw.getvalue().startswith(b"[0] gr\\xfcn \\u2713 ")
    with pytest.raises(UnicodeEncodeError):  # mutant
        print("grün", flush=True)


def test_all_in_the_log_is_said_only_if_it_is(tmp_path, capsys):
    for full in (False, True):
        shown = Display(tmp_path, 1)
        if full:
            shown._files[0].close()
            shown._files[0] = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
        shown.feed(0, b"line\n" * (SHOWN_LINES + 5))
        shown.close()
        last = capsys.readouterr().out.splitlines()[-1]
        kept = "not kept" if full else f"all in {tmp_path}/rank.*.log"
        assert last == f"... 5 more lines, {kept}"


def test_quiet_is_quiet_in_a_flood_too(tmp_path, capsys):
    shown = Display(tmp_path, 1, quiet=True)
    shown.feed(0, b"line\n" * (SHOWN_LINES + 5))
    shown.close()
    assert capsys.readouterr().out == ""
    assert (tmp_path / "rank.0.log").read_bytes().count(b"\n") == SHOWN_LINES + 5


def test_a_log_that_is_a_link_is_not_written(tmp_path, capsys):
    (tmp_path / "theirs").write_text("precious")
    os.symlink(tmp_path / "theirs", tmp_path / "rank.0.log")
    shown = Display(tmp_path, 1)
    shown.feed(0, b"overwritten\n")
    assert (tmp_path / "theirs").read_text() == "precious"
    assert "no longer kept" in capsys.readouterr().out
