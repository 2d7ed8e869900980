"""What the README shows is so: its Python runs, its commands are known, its files exist.

Catches a command or a flag that was renamed, a picture that is gone, and a chapter that is
announced as existing but does not.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from picolab.cli import parse

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(tmp_path):
    """As a script without a main guard, which is how a reader would save it."""
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    script = tmp_path / "example.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "dp: gradient bucket" in done.stdout and "tp: row-parallel output" in done.stdout


COMMANDS = re.findall(r"^picolab (.*)$", README, re.MULTILINE)


def test_there_are_commands():
    assert len(COMMANDS) >= 4


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_known(line):
    parse(shlex.split(line, comments=True))


def test_make_targets_are_known():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z]+)\b", README))
    assert {"lab", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_files_exist():
    linked_files = re.findall(r"\]\(((?!http)[^)]+)\)", README)
    linked_files += re.findall(r'src="([^"]+)"', README)
    assert "summary/images/chapter_running.png" in linked_files
    for linked in linked_files:
        assert (ROOT / linked).exists(), linked
    for chapter in re.findall(r"`(\d\d_\w+)`", README):
        assert (ROOT / "notebooks" / f"{chapter}.ipynb").exists(), chapter
