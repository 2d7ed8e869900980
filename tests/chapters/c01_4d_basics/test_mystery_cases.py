"""The mystery runs as data: what a reader is shown, before anything is trained.

Catches a true suspect that always stands at the same place, a case that shows the name of its
fault, fewer or more suspects than can be weighed, a suspect twice in a case, an id that is taken
for another, and an import, a story or a table of suspects that takes torch.
"""

import subprocess
import sys

import pytest

from picolab.exercises.mystery import MysteryRun, cases, mystery, points
from picolab.exercises.mystery_case import LOADS, LOOKS, MEMORY, SCALES, WATCHED
from picolab.specs import Layout

CASES = cases()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_case_can_be_weighed(case):
    assert 6 <= len(case.suspects) <= 8 and case.culprit in case.letters
    assert len({suspect.words for suspect in case.suspects}) == len(case.suspects)
    assert len({suspect.fault for suspect in case.suspects}) == len(case.suspects)
    assert any(suspect.fault is None for suspect in case.suspects)
    assert case.gives_away in case.looks and Layout.parse(case.layout).world <= 4
    for suspect in case.suspects:
        assert set(suspect.shows) <= set(case.looks) and suspect.tell


@pytest.mark.parametrize("key", dict.fromkeys(id.split(".")[0] for id in CASES))
def test_the_true_suspect_stands_at_many_places_and_one_run_is_right(key):
    own = [case for case in CASES.values() if case.id.startswith(f"{key}.")]
    assert len({case.culprit for case in own}) == len(own) >= 2
    assert sum(case.fault is None for case in own) == 1


def test_each_look_has_a_case():
    assert {case.gives_away for case in CASES.values()} == {
        *LOOKS,
        *LOADS,
        *SCALES,
        *MEMORY,
        *WATCHED,
    }


@pytest.mark.parametrize("id", CASES)
def test_what_is_shown_names_no_fault_and_every_look(id):
    case = MysteryRun(CASES[id])
    shown = repr(case) + case.content()._repr_html_() + repr(case.suspects)
    for suspect in CASES[id].suspects:
        assert suspect.words in shown
        assert suspect.fault is None or suspect.fault not in shown
        assert suspect.tell not in shown
    assert CASES[id].why not in shown and "score" not in shown
    assert all(f'case.look("{name}")' in repr(case) for name in CASES[id].looks)
    assert CASES[id].story in repr(case) and CASES[id].setting_text() in repr(case)
    assert [row[0] for row in case.suspects.rows] == list(CASES[id].letters)


def test_the_setting_is_computed():
    text = CASES["4d.mystery.5"].setting_text()
    assert "dp2tp2 (4 ranks)" in text and "24 steps of 1,024 tokens" in text  # 2 * 4 * 2 * 64
    assert "tied" in CASES["4d.mystery.7"].setting_text() and "tied" not in text


def test_points():
    assert [points(looks, 0) for looks in range(6)] == [50, 100, 90, 80, 65, 50]
    assert [points(1, wrong) for wrong in range(3)] == [100, 75, 50]
    assert points(5, 2) == points(0, 2) == 0


@pytest.mark.parametrize("id", ["4d.mystery.0", "mystery.1", "", 1, ["4d.mystery.1"]])
def test_an_id_that_no_case_has(id):
    with pytest.raises(ValueError, match=r"there are 4d\.mystery\.1, 4d\.mystery\.2"):
        mystery(id)


def test_no_torch_until_a_run_starts():
    code = """
import sys
import picolab as pico

case = pico.mystery("4d.mystery.1")
assert case.suspects.rows and repr(case) and pico.mystery().rows
heavy = {"torch", "numpy", "plotly", "picolab.debug", "picolab.training"} & set(sys.modules)
assert not heavy, heavy
"""
    asked = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert asked.returncode == 0, asked.stderr
