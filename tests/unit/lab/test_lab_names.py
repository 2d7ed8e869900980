"""The room's names: functions, whatever was imported before, and light to import.

Wrong versions these tests catch: `pico.dashboard` that is a module because somebody imported
`picolab.lab.dashboard`; ipywidgets, plotly or torch loaded by `import picolab.lab`.
"""

import subprocess
import sys

import pytest

NAMES = "guess compare scoreboard panel dashboard doctor timetable quiz exercise mystery progress"
NAMES += " source"


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "first", ["picolab", "picolab.lab.dashboard", "picolab.lab.panel", "picolab.lab.timetable"]
)
def test_public_names_are_functions(first):
    code = (
        f"import {first}, picolab as pico, picolab.lab\n"
        f"print([n for n in {NAMES.split()!r} if not hasattr(getattr(pico, n), '__code__')])"
    )
    assert python(code) == "[]"


def test_importing_the_lab_loads_nothing_heavy():
    heavy = {"torch", "numpy", "plotly", "ipywidgets", "IPython", "anywidget"}
    assert python(f"import sys, picolab.lab; print(sorted({heavy!r} & set(sys.modules)))") == "[]"


def test_the_timetable_is_seven_evenings():
    import picolab as pico

    table = pico.timetable()
    assert [row[0] for row in table.rows] == [1, 2, 3, 4, 5, 6, 7]
    assert "00_start_here" in repr(table) and "<table>" in table._repr_html_()
