"""A reader with a keyboard and no mouse: the panel, also after the page was loaded again, and a
mystery run.

Catches a button that Tab never reaches, radio buttons that are a stop each, keys that JupyterLab
takes for its own (an arrow that leaves the cell), and a Stop that is dead after a reload.
"""

import pytest
from lab_driver import Lab
from test_chapter_one import NEEDS_A_BROWSER, Panel, wait_until
from test_quiz import write
from test_reload import save

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(400),
    *NEEDS_A_BROWSER,
]

PANEL = """import picolab as pico
pico.panel(max_world=2, steps=5_000, seq=32, layers=1)"""
# What has the focus: its kind, and what it says; nothing outside the outputs.
_FOCUSED = """() => {
    const at = document.activeElement;
    if (!at || !at.closest('.jp-OutputArea')) return ['', ''];
    const row = at.closest('.widget-toggle-buttons, label');
    const said = `${row ? row.innerText.split('\\n')[0] : ''} ${at.innerText || ''}`;
    return [at.type || at.tagName, said.replace(/\\s+/g, ' ').trim()];
}"""


def focused(lab: Lab) -> list[str]:
    return lab.page.evaluate(_FOCUSED)


def tab_to(lab: Lab, text: str) -> list[list[str]]:
    """Press Tab until the focus is on what says `text`; the stops on the way inside the outputs."""
    stops = []
    for _ in range(60):
        lab.page.keyboard.press("Tab")
        now = focused(lab)
        if now[0]:
            stops.append(now)
        if now[0] and text in now[1]:
            return stops
    raise AssertionError(f"Tab never reaches {text!r}: {stops}")


def test_panel_by_keyboard_also_after_a_reload(jupyter, tmp_path):
    write(tmp_path / "panel.ipynb", {"panel": PANEL})
    with jupyter.lab(tmp_path) as lab:
        lab.open("panel.ipynb")
        lab.run_cell("pico.panel(")
        lab.wait_idle()
        panel = Panel(lab)
        tab_to(lab, "dp 2")
        lab.page.keyboard.press("Space")
        wait_until(lambda: "dp2: what each of 2 ranks" in panel.text(), "dp 2 to be chosen")
        tab_to(lab, "Run")
        lab.page.keyboard.press("Enter")
        wait_until(lambda: panel.points() > 10, "points")

        save(lab, tmp_path / "panel.ipynb")
        lab.open("panel.ipynb")
        panel = Panel(lab)
        wait_until(lambda: panel.points() > 10, "points to be there again")
        assert "press Stop to end it" in panel.text()
        tab_to(lab, "Stop")
        lab.page.keyboard.press("Enter")
        wait_until(lambda: not lab.ranks(), "ranks to be gone")
        wait_until(lambda: "stopped after" in panel.text(), "the panel to say so")
        pictures = lab.page.locator(".jp-OutputArea .js-plotly-plot:visible")
        wait_until(lambda: pictures.count() == 1, "one picture, of the run")
        assert lab.cell_errors() == []


def test_mystery_run_by_keyboard(jupyter, tmp_path):
    write(
        tmp_path / "mystery.ipynb",
        {"mystery": "import picolab as pico\npico.mystery('4d.mystery.1')", "after": "'here'"},
    )
    with jupyter.lab(tmp_path) as lab:
        lab.open("mystery.ipynb")
        lab.run_cell("pico.mystery(")
        lab.wait_idle()
        form = lab.page.locator(".picolab-mystery")
        form.locator("input[type=radio]").first.wait_for()
        grouped = "form => !!form.querySelector('input[type=radio]').name"
        wait_until(lambda: form.evaluate(grouped), "one group of radio buttons")

        stops = tab_to(lab, "spans")
        assert [said for _, said in stops] == ["loss", "norm", "ledger", "shards", "spans"]
        lab.page.keyboard.press("Tab")
        assert focused(lab)[0] == "radio"
        for _ in range(2):
            lab.page.keyboard.press("ArrowDown")
        assert focused(lab)[0] == "radio" and form.locator("input:checked").count() == 1
        lab.page.keyboard.press("Tab")
        assert "Name it" in focused(lab)[1]  # one stop for the whole group, not seven

        # The mutant: what ipywidgets makes by itself, a group of each radio button.
        alone = "form => form.querySelectorAll('input').forEach(i => i.removeAttribute('name'))"
        form.evaluate(alone)
        lab.page.keyboard.press("Shift+Tab")
        lab.page.keyboard.press("Shift+Tab")
        assert focused(lab)[0] == "radio"
        tab_to(lab, "Name it")
        lab.page.keyboard.press("Enter")
        said = ("Wrong so far", "Closed, score")
        wait_until(lambda: any(word in form.inner_text() for word in said), "the verdict")
        assert lab.page.evaluate("() => jupyterapp.shell.currentWidget.content.widgets.length") == 2
        assert lab.errors == [] and lab.cell_errors() == []
