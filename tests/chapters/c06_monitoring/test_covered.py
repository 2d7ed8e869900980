"""Chapter 6 runs from top to bottom, and Run All with no guesses leaves every answer covered.

Wrong versions this catches, kept as edits of the executed outputs: a number beside the cover, a
figure or a sentence that has it.
"""

import pytest

from tests.chapters import executed as search
from tests.notebooks.executing import text_of

MANY_NUMBERS = ("live-run", "call-run", *(f"call-figure-{number}" for number in range(2, 6)))
pytestmark = [pytest.mark.notebook, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("chapter") / "here"
    return search.run("06_monitoring.ipynb", folder, WORLD_SIZE=3, SEED=2)


def test_it_runs_with_the_ranks_that_were_asked_for(executed):
    assert "number 2" in text_of(executed) and "number 3" not in text_of(executed)
    assert search.open_questions(executed) == []


def test_no_output_gives_an_answer_away(executed):
    assert len(search.answers(executed)) >= 10
    chance = [(cell, "monitoring.z.second") for cell in MANY_NUMBERS]
    assert search.leaks(executed, chance=chance) == []


@pytest.mark.parametrize(
    "text, id",
    [
        ("all ranks' are alike", "monitoring.slow.step"),
        ("on the slow rank", "monitoring.slow.reduce"),
        ("3.75 sigma", "monitoring.z.second"),
        ("none of them", "monitoring.break.nan"),
        ("3 ranks", "monitoring.nan.reduced"),
        ("4,483 alarms", "monitoring.scale.alarms"),
        ("two, of the incident", "monitoring.alert.rule"),
        ("one message", "monitoring.alert.inhibit"),
        ("when a rank is done, or never", "monitoring.break.skip"),
        ("12.71 %", "monitoring.scale.waste"),
    ],
)
def test_an_answer_beside_the_cover_is_found(executed, text, id):
    found = search.leaks(search.with_title(executed, text))
    assert any(id in leak for leak in found), found
