"""`pico.chapters.c01_4d_basics`, whoever imported it before, or nobody."""

import subprocess
import sys

import pytest

from picolab import chapters


def test_a_chapter_is_there_before_anybody_has_imported_it():
    ask = "from picolab import chapters; print(chapters.c05_memory.CHAPTER.topic)"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "memory"


def test_and_while_another_thread_does(monkeypatch):
    first = chapters.c01_4d_basics
    monkeypatch.delattr(chapters, "c01_4d_basics")  # loaded, and not yet the package's attribute
    assert chapters.c01_4d_basics is first


def test_what_is_no_chapter():
    with pytest.raises(AttributeError, match="no attribute 'c09_missing'"):
        _ = chapters.c09_missing
