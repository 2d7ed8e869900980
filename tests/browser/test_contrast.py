"""Text can be read in both themes: the colours are the page's own, asked from the page.

For every text of every figure, live or not, and of the tables beside them, the contrast between its
computed colour and the first ground behind it that is not transparent. Digits on coloured marks are
black or white and held by tests/unit/show/test_picture.py; they are left out here.

The mutant is the figures' own grey, without the rule that makes it the page's colour.
"""

import pytest
from lab_driver import Lab
from test_chapter_one import NEEDS_A_BROWSER, wait_until
from test_quiz import write

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(400),
    *NEEDS_A_BROWSER,
]

FIGURES = {
    "start": "import picolab as pico\nfrom picolab.lab import placement_figure",
    "run": """def steps():
    for step in range(4):
        pico.emit(step=step, loss=5.0 - step)
pico.dashboard(pico.run(steps, quiet=True))""",
    "slider": "pico.monitoring.figures.schedule_slider()",
    "grid": "pico.show.rank_grid_figure(pico.Layout.parse('dp2tp2'))",
    "lesson": """from picolab.chapters.c01_4d_basics.ring_attention_figure import *
ring_attention_frames(3)""",
    "place": "placement_figure('dp2tp2')",
    "panel": "pico.panel(max_world=2)",
    "guess": "pico.guess('a.b.c', 'How many?')",
}
# (text, its contrast) of every text under the outputs that are in the page.
_CONTRASTS = """() => {
    const channel = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) =>
        0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const parts = text => {
        const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
        return [r, g, b, a];
    };
    const over = ([r, g, b, a], ground) => [r, g, b].map((c, i) => a * c + (1 - a) * ground[i]);
    const ground = element => {
        if (!element) return [255, 255, 255];
        const own = parts(getComputedStyle(element).backgroundColor);
        return own[3] ? over(own, ground(element.parentElement)) : ground(element.parentElement);
    };
    const found = [];
    const look = (element, text, colour, alpha) => {
        const box = element.getBoundingClientRect();
        if (!text.trim() || !box.width || !element.checkVisibility()) return;
        for (let at = element; at; at = at.parentElement)
            alpha *= Number(getComputedStyle(at).opacity);
        const [r, g, b, a] = parts(colour), behind = ground(element.parentElement);
        const lights = [over([r, g, b, a * alpha], behind), behind].map(luminance);
        const [low, high] = lights.sort((x, y) => x - y);
        found.push([text.trim().slice(0, 40), (high + 0.05) / (low + 0.05)]);
    };
    for (const text of document.querySelectorAll('.jp-OutputArea .js-plotly-plot text')) {
        const style = getComputedStyle(text), mark = text.closest('.bartext, .textpoint, .points');
        if (mark && ['rgb(0, 0, 0)', 'rgb(255, 255, 255)'].includes(style.fill)) continue;
        look(text, text.textContent, style.fill, Number(style.fillOpacity));
    }
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node; (node = walk.nextNode()); ) {
        const element = node.parentElement;
        if (!element.closest('.jp-OutputArea-output') || element.closest('svg, style, button'))
            continue;  // the colours of buttons are JupyterLab's
        look(element, node.data, getComputedStyle(element).color, 1);
    }
    return found;
}"""


def too_pale(lab: Lab) -> list:
    return [pair for pair in lab.page.evaluate(_CONTRASTS) if pair[1] < 4.5]


def check_texts(lab: Lab) -> None:
    seen = lab.page.evaluate(_CONTRASTS)
    assert len(seen) > 100
    assert too_pale(lab) == []
    rules = lab.page.locator("#picolab-theme, style.picolab-saved")
    rules.evaluate_all("rules => rules.forEach(rule => { rule.disabled = true })")
    assert len(too_pale(lab)) > 30 and all(contrast > 4 for _, contrast in too_pale(lab))
    rules.evaluate_all("rules => rules.forEach(rule => { rule.disabled = false })")


def test_every_text_has_the_contrast(jupyter, tmp_path):
    """In the dark, and in the light after a reader has changed the theme of the open page."""
    write(tmp_path / "figures.ipynb", FIGURES)
    with jupyter.lab(tmp_path, size=(1300, 3500), theme="JupyterLab Dark") as lab:
        lab.open("figures.ipynb")
        lab.run_all()
        lab.wait_idle()
        ruled = "() => !!document.getElementById('picolab-theme')"
        wait_until(lambda: lab.page.evaluate(ruled), "the rule for figures' text")
        drawn = "() => document.querySelectorAll('.js-plotly-plot .main-svg text').length"
        wait_until(lambda: lab.page.evaluate(drawn) > 60, "figures with text")
        light = "() => document.body.dataset.jpThemeLight == 'true'"
        assert not lab.page.evaluate(light)
        check_texts(lab)
        lab.command("apputils:change-theme", {"theme": "JupyterLab Light"})
        wait_until(lambda: lab.page.evaluate(light), "the other theme")
        check_texts(lab)
        assert lab.errors == [] and lab.cell_errors() == []
