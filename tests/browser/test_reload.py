"""A page that is loaded again while something is still to come: the kernel lives, the page is new.

Catches a live figure that starts again from its first moment, an end that never arrives, a view
that is taken away though its picture was not delivered, a table that stays covered after the guess,
and a saved notebook that needs its kernel to show what happened. The mutant, an output that is
replaced by display id alone, stays as it was: the test sees the difference.
"""

import json
import time
from pathlib import Path

import pytest
from lab_driver import Lab
from test_chapter_one import NEEDS_A_BROWSER, wait_until
from test_quiz import write

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(400),
    *NEEDS_A_BROWSER,
]

PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
START = "import picolab as pico"
RUN = """import time

class Slow(pico.Observer):  # the browser wants a core, too
    def step(self, run, report):
        time.sleep(0.1)

small = dict(seq=32, layers=1, wait=False, progress=False, observers=[Slow()])
job = pico.train("tiny", layout="dp2", steps=5_000, **small)
first = pico.dashboard(job)"""
PLAIN_ASK = "pico.guess('a.b.c', 'How many?')"
# A second view of the same run, which knows display ids and nothing else.
MUTANT = """mutant = pico.dashboard(job)
mutant._replace = lambda bundle: mutant._handle.update(**bundle)"""
_LAST_STEP = """() => [...document.querySelectorAll('.js-plotly-plot')].map(figure =>
    Math.max(-1, ...((figure._fullData || [{}])[0].x || [])))"""
_RANKS = """() => [...document.querySelectorAll('.js-plotly-plot')].map(figure =>
    figure.data.filter(trace => trace.name === 'compute' && trace.yaxis === 'y3')
        .map(trace => (trace.y || []).length))"""
# What the mouse meets in the middle of the loss: its own panel, and none that is not seen.
_UNDER_THE_MOUSE = """() => [...document.querySelectorAll('.js-plotly-plot')].map(figure => {
    figure.scrollIntoView();
    const box = figure.querySelector('.draglayer .xy .nsewdrag').getBoundingClientRect();
    const met = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    return met.closest('.draglayer > g').classList[0];
})"""
_STEPS_SHOWN = """() => [...document.querySelectorAll('.js-plotly-plot')].map(figure =>
    figure._fullLayout.xaxis.range)"""
_SIZES = """() => [...document.querySelectorAll('.js-plotly-plot')].map(figure =>
    [figure._fullLayout.width, figure._fullLayout.height])"""
_TITLES = """() => [...document.querySelectorAll('.js-plotly-plot')].map(figure =>
    (figure._fullLayout.annotations || []).map(note => note.text))"""
# What is said where a widget cannot be drawn, and the size of the letters of "Loading widget".
_DEAD = """() => [...document.querySelectorAll('.jp-OutputArea-output')]
    .filter(place => /^(Loading|Error displaying) widget/.test(place.textContent))
    .map(place => [getComputedStyle(place, '::after').content, getComputedStyle(place).fontSize])"""
# The colours of a figure's text, those of digits on marks aside, and that of the page's.
_TEXT_COLOURS = """() => [
    [...new Set([...document.querySelectorAll('.js-plotly-plot text')]
        .filter(text => !text.closest('.bartext, .textpoint, .points') && text.textContent.trim())
        .map(text => getComputedStyle(text).fill))],
    (() => {
        const probe = document.body.appendChild(document.createElement('i'));
        probe.style.color = 'var(--jp-ui-font-color1)';
        const colour = getComputedStyle(probe).color;
        probe.remove();
        return colour;
    })()]"""


def outputs(lab: Lab, cell: str) -> list[set[str]]:
    """What the page's own notebook shows under a cell: the kinds of each output that has some."""
    found = lab.page.evaluate(
        """id => [...jupyterapp.shell.currentWidget.content.model.cells]
            .find(cell => cell.id === id).toJSON()
            .outputs.map(output => Object.keys(output.data || {}))""",
        cell,
    )
    return [set(kinds) for kinds in found if kinds]


def save(lab: Lab, path: Path) -> None:
    """Save the notebook. (It may be changed again at once: plotly adds a picture.)"""
    before = path.stat().st_mtime_ns
    # The promise, and not the file's time: the server truncates the file before it writes it.
    lab.page.evaluate("() => jupyterapp.shell.currentWidget.context.save().then(() => 1)")
    assert path.stat().st_mtime_ns > before


def open_without_kernel(lab: Lab) -> None:
    lab.page.evaluate(
        """async () => {
            const panel = jupyterapp.shell.currentWidget, path = panel.context.path;
            await panel.context.save();
            await panel.sessionContext.shutdown();
            panel.dispose();
            const none = {shouldStart: false, canStart: false, autoStartDefault: false};
            await jupyterapp.commands.execute('docmanager:open',
                {path, factory: 'Notebook', kernelPreference: none});
            return 1;
        }""",
    )
    lab.page.wait_for_selector(".jp-NotebookPanel .jp-Cell")


def real_errors(lab: Lab) -> list[str]:
    """anywidget complains of a machine on which a page takes more than two seconds to begin."""
    return [error for error in lab.errors if "Failed to initialize model" not in error]


def steps(lab: Lab) -> list[int]:
    """The last step of the loss in each figure on the page; -1 where there is none."""
    return lab.page.evaluate(_LAST_STEP)


def narrowest(lab: Lab) -> float:
    return min(width for width, _ in lab.page.evaluate(_SIZES))


def test_a_run_survives_a_reload(jupyter, tmp_path, capsys):
    name = "run.ipynb"
    cells = {"start": START, "run": RUN, "mutant": MUTANT, "stop": "job.stop()", "ask": PLAIN_ASK}
    write(tmp_path / name, cells)
    with jupyter.lab(tmp_path) as lab:
        lab.open(name)
        began = time.monotonic()
        for cell in (START, "pico.train"):
            lab.run_cell(cell)
        wait_until(lambda: max(steps(lab), default=-1) >= 0, "the first step to be drawn")
        with capsys.disabled():  # printed, not asserted: how long a first run leaves a reader alone
            print(f"\nfrom the first run cell to a moving figure: {time.monotonic() - began:.1f} s")
        for cell in (PLAIN_ASK, "mutant ="):
            lab.run_cell(cell)
        lab.wait_idle()
        wait_until(lambda: sum(n > 5 for n in steps(lab)) == 2, "both figures to be drawn")
        save(lab, tmp_path / name)
        before = max(steps(lab))

        lab.open(name)
        wait_until(lambda: len(steps(lab)) == 2, "both figures to be there again")
        # From the first moment on what was before is there, and the lower panels with it.
        again = steps(lab)
        assert min(again) >= before - 1, (before, again)
        shown = lab.page.evaluate(_TITLES)
        for titles in shown:
            assert "waiting" in titles[2] and "payload" in titles[3], shown
        wait_until(lambda: min(steps(lab)) > max(again) + 5, "more steps to arrive")
        assert lab.page.evaluate(_RANKS) == [[2], [2]]  # nothing was taken away meanwhile
        assert lab.page.evaluate(_UNDER_THE_MOUSE) == ["xy", "xy"]

        widths, heights = zip(*lab.page.evaluate(_SIZES))
        lab.command("application:toggle-left-area")  # no step need come for this
        wait_until(lambda: narrowest(lab) > max(widths) + 100, "figures to follow their places")
        assert tuple(height for _, height in lab.page.evaluate(_SIZES)) == heights

        lab.run_cell("job.stop()")
        lab.wait_idle()
        wait_until(lambda: PLOTLY in outputs(lab, "run")[0], "the last picture")
        [now] = outputs(lab, "run")
        assert WIDGET not in now  # JupyterLab adds a png
        assert WIDGET in outputs(lab, "mutant")[0]
        lab.show_cell("pico.train")
        # What the mutant shows is inside its widget: nothing is lost as long as the kernel lives.
        wait_until(lambda: sum(n > max(again) for n in steps(lab)) == 2, "both last pictures")
        assert real_errors(lab) == [] and lab.cell_errors() == []
        save(lab, tmp_path / name)

        saved = {cell["id"]: cell for cell in json.loads((tmp_path / name).read_text())["cells"]}
        [kept] = [output for output in saved["run"]["outputs"] if "data" in output]
        assert kept["data"]["text/plain"][0].startswith("stopped after")
        assert len(kept["data"][PLOTLY]["data"][0]["x"]["bdata"]) > 10

        open_without_kernel(lab)
        # What the kernel gave to this page; one that is opened anew has only what was saved.
        lab.page.evaluate("() => document.getElementById('picolab-theme').remove()")
        # plotly's renderer shows the png that JupyterLab saved, until it is asked for more.
        pictures = lab.page.locator(".jp-OutputArea img, .jp-OutputArea .js-plotly-plot")
        wait_until(lambda: pictures.count() == 1, "the saved picture, and one only")
        assert pictures.first.bounding_box()["height"] > 300
        filtered = "() => getComputedStyle(document.querySelector('img.plot-img')).filter"
        dark = "brightness(0.9)"
        wait_until(lambda: lab.page.evaluate(filtered) == dark, "the saved rule for pictures")
        # Under the pointer the figure takes the picture's place; its text has the page's colour.
        box = pictures.first.bounding_box()
        lab.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 150)
        wait_until(lambda: lab.page.evaluate(_TEXT_COLOURS)[0], "a figure with text")
        own, page = lab.page.evaluate(_TEXT_COLOURS)
        assert own == [page]
        # The guess's form and the mutant's figure are widgets that nobody can draw.
        lab.show_cell("mutant =")
        wait_until(lambda: len(lab.page.evaluate(_DEAD)) == 2, "two places without a widget")
        for said, size in lab.page.evaluate(_DEAD):
            assert "needs its kernel" in said and size == "0px"
        lab.page.evaluate("() => document.querySelector('style.picolab-saved').remove()")
        assert [said for said, _ in lab.page.evaluate(_DEAD)] == ["none", "none"]
        assert lab.page.evaluate(_TEXT_COLOURS)[0] != [page]


# A second view of the same run, which forgets a zoom.
FORGETS = """view = pico.dashboard(job)._view
paint, whole = view.paint, {"xaxis.autorange": True}
view.paint = lambda *state: (paint(*state), view.figure._send_relayout_msg(whole))"""


def zoom(lab: Lab, number: int) -> None:
    """Drag the mouse over the middle of a figure's loss."""
    figure = lab.page.locator(".js-plotly-plot").nth(number)
    figure.scroll_into_view_if_needed()
    box = figure.locator(".draglayer .xy .nsewdrag").bounding_box()
    for share, act in ((0.4, lab.page.mouse.down), (0.7, lab.page.mouse.up)):
        at = box["x"] + share * box["width"], box["y"] + share * box["height"]
        lab.page.mouse.move(*at, steps=4)
        act()


def test_a_zoom_is_kept_and_a_pause_holds_while_a_run_goes_on(jupyter, tmp_path):
    """Catches a paint that undoes a zoom, as the second figure's does, and a pause that does not
    hold the picture, or is not over."""
    write(tmp_path / "zoom.ipynb", {"start": START, "run": RUN, "forgets": FORGETS})
    with jupyter.lab(tmp_path) as lab:
        lab.open("zoom.ipynb")
        lab.run_all()
        wait_until(lambda: sum(n > 5 for n in steps(lab)) == 2, "both figures to be drawn")
        zoom(lab, 0)
        zoom(lab, 1)
        zoomed, then = lab.page.evaluate(_STEPS_SHOWN)[0], max(steps(lab))
        assert zoomed[1] - zoomed[0] < 0.5 * then, (zoomed, then)
        wait_until(lambda: min(steps(lab)) > then + 5, "both figures to move")
        kept, forgotten = lab.page.evaluate(_STEPS_SHOWN)
        assert kept == zoomed and forgotten[1] > then, (zoomed, kept, forgotten)

        button = lab.page.locator("button.widget-toggle-button")
        button.filter(has_text="Pause").first.click()
        wait_until(lambda: steps(lab)[1] > steps(lab)[0] + 5, "the other figure to go ahead")
        held, ahead = steps(lab)
        wait_until(lambda: steps(lab)[1] > ahead + 5, "it to go on")
        assert steps(lab)[0] == held
        button.filter(has_text="Go on").click()
        wait_until(lambda: steps(lab)[0] > ahead, "the first figure to have what it missed")
        assert lab.page.evaluate(_STEPS_SHOWN)[0] == kept
        assert real_errors(lab) == [] and lab.cell_errors() == []


ASK = """import picolab as pico
pico.guess("a.b.{0}", "How many {0} are there?")"""
LOOK = """shown = pico.compare("a.b.{0}", formula={1}, measured={1})"""
ASIDE = """shown.also(pico.show.Table(["", "count"], [["in all", 98765]]))"""
COVERED = """def talk():
    for step in range(4):
        import torch
        pico.comm.all_reduce(torch.zeros(25), "world", "all of them")
        pico.emit(step=step, loss=5.0 - step)
talked = pico.run(talk, world_size=2, backend="gloo", quiet=True)
pico.dashboard(talked, covers="a.b.stars")"""


def under(lab: Lab, cell: str) -> str:
    """The text that stands under a cell."""
    lab.show_cell(cell)
    return lab.page.locator(".jp-CodeCell", has_text=cell).locator(".jp-OutputArea").inner_text()


def field(lab: Lab, cell: str):
    lab.show_cell(cell)
    found = lab.page.locator(".jp-CodeCell", has_text=cell).locator(".picolab-guess input")
    found.wait_for()
    return found


@pytest.mark.parametrize(
    "theme", ["JupyterLab Dark", pytest.param("JupyterLab Light", marks=pytest.mark.weekly)]
)
def test_enter_is_a_guess_also_after_a_reload(jupyter, tmp_path, theme):
    name = "guess.ipynb"
    cells = {"ask-apples": ASK.format("apples"), "apples": LOOK.format("apples", 54321)}
    cells |= {"ask-stars": ASK.format("stars"), "stars": LOOK.format("stars", 87654)}
    cells |= {"aside": ASIDE, "covered": COVERED}
    write(tmp_path / name, cells)
    with jupyter.lab(tmp_path, theme=theme) as lab:
        lab.open(name)
        lab.run_all()
        lab.wait_idle()
        typed = field(lab, 'guess("a.b.apples')
        typed.fill("12")
        lab.page.keyboard.press("Tab")  # leaving the field is no guess
        lab.page.wait_for_timeout(1500)
        assert "54,321" not in under(lab, 'compare("a.b.apples')
        assert "no guess yet" in under(lab, 'guess("a.b.apples')
        typed.fill("13")
        typed.press("Enter")
        wait_until(lambda: "54,321" in under(lab, 'compare("a.b.apples'), "the table", 20)
        assert "your guess: 13" in under(lab, 'guess("a.b.apples')
        text = under(lab, "covers=")
        assert "covered until you guess" in text and "a.b.stars" in text
        assert "all of them" not in text
        lab.page.screenshot(path=tmp_path / "covered.png")

        save(lab, tmp_path / name)
        lab.open(name)
        typed = field(lab, 'compare("a.b.stars')
        assert "87,654" not in under(lab, 'compare("a.b.stars')
        typed.fill("14")
        typed.press("Enter")
        wait_until(lambda: "87,654" in under(lab, 'compare("a.b.stars'), "the table", 30)
        wait_until(lambda: "98,765" in under(lab, "shown.also("), "what goes with it", 30)
        wait_until(lambda: "all of them" in under(lab, "covers="), "the panels")
        assert "your guess: 14" in under(lab, 'guess("a.b.stars')
        lab.page.screenshot(path=tmp_path / "uncovered.png")
        for cell in ("apples", "stars", "aside", "covered"):
            assert all(WIDGET not in kinds for kinds in outputs(lab, cell)), cell
        save(lab, tmp_path / name)
        assert "87,654" in (tmp_path / name).read_text()
        assert real_errors(lab) == [] and lab.cell_errors() == []
