"""Chapter 2 runs from top to bottom, and Run All with no guesses leaves every answer covered.

Wrong versions this catches, kept as edits of the executed outputs: a number beside the cover, a
figure or a sentence that has it.
"""

import pytest

from tests.chapters import executed as search
from tests.notebooks.executing import text_of

pytestmark = [pytest.mark.notebook, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("chapter") / "here"
    # Short of training and with half of the ranks, that the runs of a push stay short.
    asked = {"WORLD_SIZE": 2, "SEEDS": 1, "TWIN_STEPS": 10, "LAYOUT": "dp2tp2ep2", "STEPS": 20}
    return search.run("02_moe.ipynb", folder, **asked)


def test_it_runs_with_the_layout_that_was_asked_for(executed):
    assert "dp2tp2ep2" in text_of(executed)
    assert search.open_questions(executed) == []


def test_no_output_gives_an_answer_away(executed):
    assert len(search.answers(executed)) >= 11
    assert search.leaks(executed) == []


@pytest.mark.parametrize(
    "text, id",
    [
        ("rank 0 sends 524,288 bytes", "moe.a2a.bytes"),
        ("dropped 4.7 %", "moe.drop.fair"),
        ("zero: it learns nothing", "moe.route.renorm"),
        ("12.9 billion", "moe.scale.active"),
        ("5.3 nodes", "moe.scale.nodes"),
        ("loss right, norm wrong", "moe.break.undivided"),
        ("the others wait for ever", "moe.a2a.break"),
    ],
)
def test_an_answer_beside_the_cover_is_found(executed, text, id):
    found = search.leaks(search.with_title(executed, text))
    assert any(id in leak for leak in found), found
