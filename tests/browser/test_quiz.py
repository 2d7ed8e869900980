"""`pico.quiz()` in JupyterLab, by keyboard alone.

Two questions that are due, on a small bank: a number with a unit that is a known mistake, its
reason, keywords, confidence, the answer, ticks, a grade, the second question, the end.

Catches a card whose callbacks are dead, a focus that is lost when a button goes, a key that
JupyterLab takes for a command of its own (D, D on a button deletes the cell), a focus that cannot
be seen, a card wider than a narrow window, text that a theme swallows, a link that leaves the lab,
an error in the browser's console, and grades that do not reach the log.
"""

import json
from pathlib import Path

import pytest
from lab_driver import Lab
from test_chapter_one import NEEDS_A_BROWSER, wait_until

BANK = Path(__file__).parents[1] / "unit" / "interview" / "practice_bank"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(300),
    *NEEDS_A_BROWSER,
]

_FOCUSED = """() => {
    const at = document.activeElement;
    if (!at || !at.closest('.picolab-quiz')) return ['', ''];
    const label = at.closest('label');
    return [at.type || at.tagName, (at.innerText || (label && label.innerText) || '').trim()];
}"""
_OUTLINE = "() => getComputedStyle(document.activeElement).outlineStyle"
_OVERFLOW = """() => {
    const card = document.querySelector('.picolab-quiz');
    const right = card.getBoundingClientRect().right;
    const wide = [...card.querySelectorAll('button, input, textarea, h4, h5, p, li, label')];
    return wide.filter(e => e.getBoundingClientRect().right > right + 1).map(e => e.outerHTML);
}"""
_CONTRASTS = """() => {
    const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
        .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = element => {
        for (let at = element; at; at = at.parentElement) {
            const found = parse(getComputedStyle(at).backgroundColor);
            if (found.length === 3 || found[3] > 0.99) return found;
        }
        return [255, 255, 255];
    };
    const card = document.querySelector('.picolab-quiz'), rows = [];
    for (const element of card.querySelectorAll('*')) {
        const own = [...element.childNodes].filter(n => n.nodeType === 3 && n.data.trim());
        if (!own.length || !element.offsetParent || element.tagName === 'STYLE') continue;
        if (element.closest(':disabled')) continue;  // what can no longer be changed
        const [a, b] = [parse(getComputedStyle(element).color), behind(element)].map(light);
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        rows.push([own[0].data.trim().slice(0, 40), ratio]);
    }
    return rows;
}"""


class Card:
    """The card on the page, and a reader who has a keyboard and no mouse."""

    def __init__(self, lab: Lab):
        self.lab, self.page = lab, lab.page
        self.press = lab.page.keyboard.press
        self.type = lab.page.keyboard.type
        lab.show_cell("pico.quiz(")
        self.see("Skip")

    def text(self) -> str:
        return self.page.locator(".picolab-quiz").inner_text()

    def see(self, text: str) -> None:
        def there() -> bool:
            card = self.page.locator(".picolab-quiz")
            return card.count() == 1 and text in card.inner_text()

        wait_until(there, f"the card to say {text!r}")

    def focused(self) -> tuple[str, str]:
        """The kind of what has the focus inside the card, and its text; nothing outside."""
        return tuple(self.page.evaluate(_FOCUSED))

    def focus_comes(self, kind: str, text: str = "") -> None:
        wait_until(lambda: self.is_on(kind, text), f"the focus on {kind} {text!r}")

    def is_on(self, kind: str, text: str) -> bool:
        found_kind, found_text = self.focused()
        return found_kind == kind and text in found_text

    def tab_to(self, kind: str, text: str = "") -> None:
        """Press Tab until the focus is there; every stop on the way can be seen."""
        for _ in range(40):
            self.press("Tab")
            if self.focused()[0]:
                assert self.page.evaluate(_OUTLINE) == "solid", self.focused()
            if self.is_on(kind, text):
                return
        raise AssertionError(f"Tab never reaches {kind} {text!r}")


def notebook(folder: Path, lang: str = "en") -> Path:
    """A notebook with a quiz whose two questions have been due for long; returns the log."""
    log = folder / "reviews.jsonl"
    lines = [
        {"v": 1, "id": name, "at": f"2026-01-0{i}T00:00:00+00:00", "rating": "again", "score": 0}
        for i, name in enumerate(("practice-001", "practice-003"), 1)
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code = (
        "import picolab as pico\n"
        f"pico.quiz(n=2, bank={str(BANK)!r},\n          log={str(log)!r}, lang={lang!r})"
    )
    write(folder / "quiz.ipynb", {"quiz": code, "after": "'still here'"})
    return log


def write(path: Path, sources: dict[str, str]) -> None:
    cells = [
        {
            "cell_type": "code",
            "execution_count": None,
            "id": name,
            "metadata": {},
            "outputs": [],
            "source": source,
        }
        for name, source in sources.items()
    ]
    kernel = {"name": "python3", "display_name": "", "language": "python"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}}
    path.write_text(json.dumps({**whole, "nbformat": 4, "nbformat_minor": 5}))


def cells(lab: Lab) -> int:
    return lab.page.evaluate("() => jupyterapp.shell.currentWidget.content.widgets.length")


def test_two_questions_by_keyboard(jupyter, tmp_path):
    log = notebook(tmp_path)
    with jupyter.lab(tmp_path, size=(900, 1100)) as lab:
        lab.open("quiz.ipynb")
        lab.run_all()
        lab.wait_idle()
        card = Card(lab)
        assert card.focused() == ("", "")  # it does not take the focus when a cell is run
        assert "Question 1 of 2" in card.text() and "17.9" not in card.text()

        assert "bubble (of the total)" not in card.text()  # words first, then numbers
        card.tab_to("textarea")
        card.type("dd: keys of the notebook, typed into the card")
        card.tab_to("button", "3 fairly sure")
        card.press("Space")
        card.tab_to("submit", "I have said it")
        card.press("Enter")
        card.focus_comes("text")
        card.type("21.9 %")
        card.press("Enter")
        card.see("Not 21.9 %. That is the share of the ideal time")
        card.tab_to("text")
        card.type("64 MiB")
        card.tab_to("submit", "Show answer")
        card.see("Right: 0.0625 GiB")
        card.press("Enter")

        card.focus_comes("checkbox", "says that it is")
        assert "17.9 %" in card.text() and card.page.evaluate(_OVERFLOW) == []
        card.press("Space")
        card.see("Proposed: hard")
        card.press("Tab")
        card.press("Space")
        card.see("a number was wrong")
        card.tab_to("submit", "3 good")
        for key in ("d", "d", "x", "a", "b", "ArrowDown"):
            card.press(key)
        assert cells(lab) == 2 and card.is_on("submit", "3 good")
        card.press("Enter")
        card.see("Written: good, 70% of the points.")
        assert log.read_text().count("\n") == 3  # on the disk before the next one is asked
        card.focus_comes("submit", "Next question")
        card.press("Enter")

        card.see("Question 2 of 2")
        card.focus_comes("textarea")
        card.tab_to("submit", "Show answer")
        card.press("Enter")
        card.focus_comes("checkbox", "asks for the norm of one process")
        assert "one process: it has no reduction at all" in card.text()
        assert "dd: keys" not in card.page.input_value(".picolab-quiz textarea")
        card.tab_to("submit", "1 again")
        card.press("Enter")
        card.focus_comes("submit", "Finish")
        card.press("Enter")
        card.see("Practice: 2 graded, 35% of the points on average")
        assert card.page.locator(".picolab-quiz button").count() == 0
        assert cells(lab) == 2 and lab.cell_errors() == [] and lab.errors == []

    first, second = [json.loads(line) for line in log.read_text().splitlines()[2:]]
    assert (first["id"], first["rating"], first["ticks"]) == ("practice-001", "good", [0, 1])
    assert first["numbers"] == ["21.9", "0.0625"] and first["confidence"] == 3
    assert first["notes"] == "dd: keys of the notebook, typed into the card"
    assert (second["id"], second["rating"]) == ("practice-003", "again")


@pytest.mark.parametrize(
    "theme", ["JupyterLab Dark", pytest.param("JupyterLab Light", marks=pytest.mark.weekly)]
)
def test_it_can_be_read_in_both_themes_and_a_link_opens_its_cell(jupyter, tmp_path, theme):
    """Every text of the card against its background: 4.5 to 1, as WCAG asks for normal text."""
    notebook(tmp_path)
    write(tmp_path / "01_4d_basics.ipynb", {"first": "1", "pp-bubble-compare": "2"})
    with jupyter.lab(tmp_path, size=(1300, 1400), theme=theme) as lab:
        page = lab.open("quiz.ipynb")
        lab.run_all()
        lab.wait_idle()
        card = Card(lab)
        card.tab_to("submit", "I have said it")
        card.press("Enter")
        card.focus_comes("text")
        card.type("21.9")
        card.press("Enter")
        card.see("ideal")
        card.tab_to("submit", "Show answer")
        card.press("Enter")
        card.focus_comes("checkbox")
        dark = page.evaluate("() => document.body.dataset.jpThemeLight") == "false"
        assert dark == ("Dark" in theme)
        low = [row for row in page.evaluate(_CONTRASTS) if row[1] < 4.5]
        assert low == []
        # The measure measures: text in the colour of the page is found.
        page.evaluate(
            "() => { document.querySelector('.picolab-quiz h4').style.color ="
            " 'var(--jp-layout-color0)' }"
        )
        assert min(row[1] for row in page.evaluate(_CONTRASTS)) < 1.2

        card.tab_to("A", "01_4d_basics.ipynb, pp-bubble-compare")
        card.press("Enter")
        where = """() => {
            const panel = jupyterapp.shell.currentWidget, cell = panel.content.activeCell;
            return [panel.title.label, cell ? cell.model.id : ''];
        }"""
        wanted = ["01_4d_basics.ipynb", "pp-bubble-compare"]
        wait_until(lambda: page.evaluate(where) == wanted, "the notebook at its cell")
        assert lab.errors == []
