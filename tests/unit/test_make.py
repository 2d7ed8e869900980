"""`make lab` and the set-up behind it, as a reader runs them.

Catches a set-up that dies without a sentence on an old Python, that installs again although nothing
changed (and so fails offline), and a JupyterLab that opens elsewhere than on the reader's copy.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MADE_BY_MAKE = Path(sys.prefix, ".installed-test").exists()
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "http_proxy": "http://127.0.0.1:9"}

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def make_lab(tmp_path: Path, **options) -> subprocess.CompletedProcess:
    words = [f"{name}={value}" for name, value in options.items()]
    return subprocess.run(
        ["make", "lab", f"VENV={tmp_path / 'venv'}", f"WORK={tmp_path / 'work'}", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def old(version: str) -> str:
    """A Python of that version, as far as the set-up asks: it says so, and is not new enough."""
    return f'case "$2" in *print*) echo {version} ;; *version_info*) exit 1 ;; esac'


def test_an_old_python_gets_a_sentence(tmp_path):
    python = script(tmp_path / "python3", old("3.10"))
    done = make_lab(tmp_path, PYTHON=python)
    assert done.returncode != 0
    assert f"Python 3.11 or newer is needed, and here {python} is 3.10" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_placeholder_is_not_a_python(tmp_path):
    """A version manager leaves commands on the path that only say how to get the real one."""
    python = script(tmp_path / "python3", "echo 'not installed' >&2; exit 127")
    done = make_lab(tmp_path, PYTHON=python)
    assert done.returncode != 0 and "no Python was found" in done.stderr


def test_no_venv_module_gets_a_sentence(tmp_path):
    broken = f'case "$2" in *ensurepip*) exit 1 ;; esac; exec "{sys.executable}" "$@"'
    python = script(tmp_path / "python3", broken)
    done = make_lab(tmp_path, PYTHON=python)
    assert done.returncode != 0 and "sudo apt install python3-venv" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_constraints_that_do_not_exist(tmp_path):
    done = make_lab(tmp_path, CONSTRAINTS="nowhere.txt")
    assert done.returncode != 0 and "CONSTRAINTS=nowhere.txt" in done.stderr


@pytest.mark.skipif(not MADE_BY_MAKE, reason="this environment was not made by `make test`")
def test_make_lab_twice_offline(tmp_path):
    """After the first set-up nothing is installed any more, and JupyterLab opens on the copy."""
    for _ in range(2):
        with socket.socket() as asked:
            asked.bind(("127.0.0.1", 0))
            port = asked.getsockname()[1]
        log = tmp_path / "log"
        with log.open("w") as output:
            lab = subprocess.Popen(
                [
                    *("make", "lab", f"VENV={sys.prefix}", f"WORK={tmp_path / 'my work'}"),
                    *(f"PORT={port}", "BROWSER=no"),
                ],
                cwd=ROOT,
                env={**os.environ, **OFFLINE},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            deadline, address = time.monotonic() + 60, None
            while address is None:
                assert time.monotonic() < deadline and lab.poll() is None, log.read_text()
                address = re.search(
                    r"http://127\S+/00_start_here\.ipynb\?token=\w+", log.read_text()
                )
                time.sleep(0.2)
            with urllib.request.urlopen(address[0], timeout=20) as page:
                assert page.status == 200 and b"JupyterLab" in page.read()
        finally:
            os.killpg(lab.pid, signal.SIGTERM)
            lab.wait(20)
        assert "Installing" not in log.read_text()
        assert f":{port}/" in address[0]
    assert (tmp_path / "my work" / "00_start_here.ipynb").exists()
