"""Chapter 1 runs from top to bottom, and Run All with no guesses leaves every answer covered.

Wrong versions this catches, kept as edits of the executed outputs: a table beside the cover, a
figure whose title has the number, a comparison that shows itself.
"""

import pytest

from tests.chapters import executed as search
from tests.notebooks.executing import text_of

# The slider draws other schedules than the one that is asked for; one has this share by chance, and
# of its bubbles one may be what was measured on a busy machine.
CHANCE = {("pp-slider", "4d.cp.share")}
MANY_NUMBERS = {("pp-slider", "4d.pp.bubble")}

pytestmark = [pytest.mark.notebook, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("chapter") / "here"
    return search.run("01_4d_basics.ipynb", folder, LAYOUT="dp2tp2", STEPS=6)


def test_it_runs_with_the_layout_that_was_asked_for(executed):
    assert "dp2tp2" in text_of(executed)
    assert search.open_questions(executed) == []


def test_no_output_gives_an_answer_away(executed):
    assert len(search.answers(executed)) >= 9
    assert search.leaks(executed, CHANCE, MANY_NUMBERS) == []


@pytest.mark.parametrize(
    "text, id",
    [
        ("payload 3,215,872 bytes", "4d.dp.payload"),
        ("bubble 27.3 % of total", "4d.pp.bubble"),
        ("one layer: 4 all-reduces", "4d.tp.count"),
        ("each sends 6,000,000", "4d.ring.bytes"),
        ("the busiest has 43.8 %", "4d.cp.share"),
        ("loss right, norm wrong", "4d.pp.break"),
    ],
)
def test_a_number_beside_the_cover_is_found(executed, text, id):
    found = search.leaks(search.with_title(executed, text), CHANCE, MANY_NUMBERS)
    assert any(id in leak for leak in found), found
