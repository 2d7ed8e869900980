"""Once a week, many launches with faults in a row (tests/benchmarks/soak.py says what is held)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import picolab as pico

pytest.importorskip("ipykernel", reason="needs the lab extra: pip install -e '.[lab]'")
SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"


def soaked(*words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(pico.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, str(SOAK), *words], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.weekly
@pytest.mark.timeout(1500)
def test_two_hundred_launches():
    assert soaked("--seconds", "1200").count("told wrongly: 0") == 2
