"""Chapter 3 runs from top to bottom, and Run All with no guesses leaves every answer covered.

Wrong versions this catches, kept as edits of the executed outputs: a number beside the cover, a
figure or a sentence that has it.
"""

import pytest

from tests.chapters import executed as search
from tests.notebooks.executing import text_of

# The panel has a button for each layout, so for the right one too.
CHANCE = {("live-panel", "3d.plan.machine")}

pytestmark = [pytest.mark.notebook, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("chapter") / "here"
    # With half of the ranks: answers are others then, and covered in the same way.
    asked = {"WORLD_SIZE": 2, "LAYOUT": "dp2tp2", "STEPS": 30}
    return search.run("03_3d_parallel.ipynb", folder, **asked)


def test_it_runs_with_the_layout_that_was_asked_for(executed):
    assert "dp2tp2" in text_of(executed)
    assert search.open_questions(executed) == []


def test_no_output_gives_an_answer_away(executed):
    assert len(search.answers(executed)) >= 7
    assert search.leaks(executed, CHANCE) == []


@pytest.mark.parametrize(
    "text, id",
    [
        ("together 10 bytes", "3d.zero.bytes"),
        ("it sends 4.5 times", "3d.zero.traffic"),
        ("in step 1: both right", "3d.zero.break"),
        ("every rank holds 2 micro-batches", "3d.zoo.held"),
        ("both wait for ever", "3d.order.break"),
        ("one rank works longer than its twin in the other replica", "3d.slow.cause"),
    ],
)
def test_an_answer_beside_the_cover_is_found(executed, text, id):
    found = search.leaks(search.with_title(executed, text), CHANCE)
    assert any(id in leak for leak in found), found
