"""Chapter 4 runs from top to bottom, and Run All with no guesses leaves every answer covered.

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
    asked = {"LAYOUT": "dp2", "STEPS": 26, "STALL_STEPS": 40}
    return search.run("04_mixed_precision.ipynb", folder, **asked)


def test_it_runs_with_the_layout_that_was_asked_for(executed):
    assert "dp2" in text_of(executed)
    assert search.open_questions(executed) == []


def test_no_output_gives_an_answer_away(executed):
    assert len(search.answers(executed)) >= 10
    assert search.leaks(executed) == []


@pytest.mark.parametrize(
    "text, id",
    [
        ("s is 256 in the end", "precision.format.count"),
        ("64 times", "precision.range.least"),
        ("more than half of it", "precision.sqnr.zero"),
        ("37.2 %", "precision.adaptive.bytes"),
        ("8.25 bits", "precision.scale.bits"),
        ("that layer alone", "precision.select.planted"),
        ("rank 0 ends with an error", "precision.break.alone"),
    ],
)
def test_an_answer_beside_the_cover_is_found(executed, text, id):
    found = search.leaks(search.with_title(executed, text))
    assert any(id in leak for leak in found), found
