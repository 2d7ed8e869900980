"""Chapter 5 runs from top to bottom, and Run All with no guesses leaves every answer covered.

Wrong versions this catches, kept as edits of the executed outputs: a number beside the cover, a
figure or a sentence that has it.
"""

import pytest

from tests.chapters import executed as search
from tests.notebooks.executing import text_of

# The panel lists plans, each with its megabytes and with measured milliseconds: one may be 16.1.
CHANCE = {("live-budget", "memory.pool.idle")}

pytestmark = [pytest.mark.notebook, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("chapter") / "here"
    asked = {"LAYOUT": "dp2zero1", "STEPS": 4, "WORLD_SIZE": 2}
    return search.run("05_memory.ipynb", folder, **asked)


def test_it_runs_with_the_layout_that_was_asked_for(executed):
    assert "dp2zero1" in text_of(executed)
    assert search.open_questions(executed) == []


def test_no_output_gives_an_answer_away(executed):
    assert len(search.answers(executed)) >= 10
    assert search.leaks(executed, CHANCE) == []


@pytest.mark.parametrize(
    "text, id",
    [
        ("18 bytes a parameter", "memory.states.bytes"),
        ("it is early in the backward pass", "memory.peak.when"),
        ("keeps 65,536 bytes", "memory.again.kept"),
        ("133.3 %", "memory.again.work"),
        ("others, and nothing is said", "memory.break.dropout"),
        ("16.08 %", "memory.pool.idle"),
        ("equal to the last bit", "memory.plan.bits"),
        ("8 steps", "memory.collect.steps"),
        ("70.2 %", "memory.scale.scores"),
    ],
)
def test_an_answer_beside_the_cover_is_found(executed, text, id):
    found = search.leaks(search.with_title(executed, text), CHANCE)
    assert any(id in leak for leak in found), found
