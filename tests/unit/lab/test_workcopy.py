"""The reader's copies: made where there is none, never overwritten, told apart from newer chapters.

Catches a copy that replaces the reader's work, a silence about a changed chapter, and an alarm
about a chapter that only the reader changed.
"""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from picolab.lab.workcopy import ORIGINS, make_copies, notebooks_folder, refuse_taken


@pytest.fixture
def chapters(tmp_path):
    source = tmp_path / "notebooks"
    source.mkdir()
    (source / "00_start_here.ipynb").write_text("first")
    (source / "01_4d_basics.ipynb").write_text("second")
    return source, tmp_path / "work"


def contents(work: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in work.iterdir() if path.name != ORIGINS}


def test_copies_are_made_once(chapters):
    source, work = chapters
    assert len(make_copies(source, work)) == 2
    assert contents(work) == {"00_start_here.ipynb": "first", "01_4d_basics.ipynb": "second"}
    assert make_copies(source, work) == []


def test_the_readers_work_is_kept_and_is_no_news(chapters):
    source, work = chapters
    make_copies(source, work)
    (work / "01_4d_basics.ipynb").write_text("second, with my answers")
    assert make_copies(source, work) == []
    assert contents(work)["01_4d_basics.ipynb"] == "second, with my answers"


@pytest.mark.parametrize("mine", ["second", "second, with my answers"])
def test_a_chapter_that_moved_on_is_said_and_not_taken(chapters, mine):
    source, work = chapters
    make_copies(source, work)
    (work / "01_4d_basics.ipynb").write_text(mine)
    (source / "01_4d_basics.ipynb").write_text("second edition")
    for _ in range(2):  # said every time, until the reader does something about it
        [line] = make_copies(source, work)
        assert "01_4d_basics.ipynb has moved on" in line
        assert line.endswith(f"The new one is {work / '01_4d_basics.new.ipynb'}")
        assert contents(work)["01_4d_basics.ipynb"] == mine
        assert contents(work)["01_4d_basics.new.ipynb"] == "second edition"
    (work / "01_4d_basics.ipynb").rename(work / "01_4d_basics.mine.ipynb")
    [line] = make_copies(source, work)
    assert line.startswith("new:") and make_copies(source, work) == []
    assert contents(work)["01_4d_basics.ipynb"] == "second edition"
    assert contents(work)["01_4d_basics.mine.ipynb"] == mine


def test_a_new_edition_that_was_worked_in_is_kept(chapters):
    source, work = chapters
    make_copies(source, work)
    new = work / "01_4d_basics.new.ipynb"
    for edition in ("second edition", "third edition"):
        (source / "01_4d_basics.ipynb").write_text(edition)
        make_copies(source, work)
        assert new.read_text() == edition  # nobody has touched the one before
    new.write_text("third edition, with my answers")
    (source / "01_4d_basics.ipynb").write_text("fourth edition")
    [line] = make_copies(source, work)
    assert "worked in" in line and new.read_text() == "third edition, with my answers"


def test_a_port_that_is_taken_is_a_sentence(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} cannot be used.*PORT={port + 1}"):
            refuse_taken(port)
    refuse_taken(port)
    with pytest.raises(ValueError, match="from 1 to 65535"):
        refuse_taken(70_000)


@pytest.mark.parametrize("record", [None, "", "{half", "[]"])
def test_a_lost_record_costs_no_work(chapters, record):
    source, work = chapters
    make_copies(source, work)
    (work / "01_4d_basics.ipynb").write_text("mine")
    (work / ORIGINS).unlink()
    if record is not None:
        (work / ORIGINS).write_text(record)
    [line] = make_copies(source, work)
    assert "was kept" in line and contents(work)["01_4d_basics.ipynb"] == "mine"


def test_a_checkout_that_cannot_be_written_gives_copies_that_can(chapters):
    source, work = chapters
    (source / "00_start_here.ipynb").chmod(0o444)
    make_copies(source, work)
    assert (work / "00_start_here.ipynb").stat().st_mode & 0o200


def test_the_command(tmp_path):
    words = [sys.executable, "-m", "picolab.lab.workcopy"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = {path.name for path in (tmp_path / "work").glob("*.ipynb")}
    assert made == {path.name for path in notebooks_folder().glob("*.ipynb")} and made
    lost = subprocess.run(
        [*words, "--notebooks", "nowhere"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert lost.returncode == 1 and lost.stderr == "picolab: nowhere is not a folder\n"
