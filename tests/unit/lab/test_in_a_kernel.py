"""The lab in real kernels: papermill, which has no front end, and one that is spoken to as
JupyterLab does.

Wrong versions these tests catch: widgets made headless (5 MB in the saved notebook, an empty chart
in its viewers), a live dashboard that blocks or stays empty under papermill, a dashboard whose last
picture is lost between two cells, a front end that is not recognised.
"""

import json
import time

import nbformat
import papermill
import pytest
from jupyter_client.manager import start_new_kernel

PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"

CELLS = {
    "guess": "import picolab as pico\n"
    "pico.guess('c.t.n', 'How many?', default=3)\n"
    "pico.guess('c.t.open', 'And here?')",
    "live": "small = dict(seq=32, layers=1, wait=False, progress=False)\n"
    "job = pico.train(layout='dp2', steps=3, **small)\n"
    "pico.dashboard(job)",
    "result": "result = job.result()",
    "between": "import time\n"
    "job = pico.train(steps=2, **small)\n"
    "early = pico.dashboard(job)\n"
    "while not job.done: time.sleep(0.01)",
    "compare": "pico.compare('c.t.n', formula=4, measured=4)\n"
    "pico.compare('c.t.open', formula=77, measured=77)",
    "panel": "pico.panel(steps=2, max_world=2, seq=32, layers=1, autorun=True)",
    "board": "pico.scoreboard()",
    "widgets": "import sys; print('ipywidgets' in sys.modules)",
}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("headless")
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in CELLS.values()]
    nbformat.write(notebook, folder / "in.ipynb")
    done = papermill.execute_notebook(
        str(folder / "in.ipynb"), str(folder / "out.ipynb"), progress_bar=False
    )
    cells = [cell for cell in done.cells if cell.cell_type == "code"]
    return dict(zip(CELLS, cells, strict=True)), done


def kinds(cell):
    return [sorted(out.get("data", {})) for out in cell.outputs if "data" in out]


def text(cell):
    return "\n".join(
        out.get("text", "") or out.get("data", {}).get("text/plain", "") for out in cell.outputs
    )


def test_headless_no_widget_is_made(executed):
    cells, notebook = executed
    assert "widgets" not in notebook.metadata
    assert WIDGET not in json.dumps(notebook)
    assert text(cells["widgets"]).strip() == "False"
    assert len(json.dumps(notebook)) < 100_000


def test_headless_the_last_picture_is_in_the_notebook(executed):
    cells, _ = executed
    assert [PLOTLY, "text/plain"] in kinds(cells["live"])
    assert "3 of 3 steps" in text(cells["live"])
    assert "running; its picture comes here" not in text(cells["live"])
    assert "2 of 2 steps" in text(cells["between"])


def test_headless_guesses(executed):
    cells, _ = executed
    assert "guess: 3 (the default)" in text(cells["guess"])
    assert "no guess yet" in text(cells["guess"])
    assert "guess (default)" in text(cells["compare"]) and "equal" in text(cells["compare"])
    assert "77" not in text(cells["compare"])
    assert "1 guess (all by default): 0 within 10 %" in text(cells["board"])


def test_headless_panel_ran_once(executed):
    cells, _ = executed
    assert "measured" in text(cells["panel"]) and "2 of 2 steps" in text(cells["panel"])
    assert len(kinds(cells["panel"])) == 2  # shown once, though it is the cell's last line


class FrontEnd:
    """Speaks to a kernel as a front end does: each request names its cell."""

    def __init__(self):
        self.manager, self.client = start_new_kernel()

    def run(self, code, names_its_cell=True):
        """The messages that the cell's execution published."""
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
        metadata = {"cellId": "a-cell"} if names_its_cell else {}
        message = self.client.session.msg("execute_request", content, metadata=metadata)
        self.client.shell_channel.send(message)
        published = []
        while True:
            found = self.client.get_iopub_msg(timeout=120)
            published.append(found)
            idle = found["content"].get("execution_state") == "idle"
            if idle and found["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                return published

    def until(self, holds, timeout_s=60):
        """Messages published outside cells, up to the first one of which this holds."""
        deadline, published = time.monotonic() + timeout_s, []
        while not published or not holds(published[-1]):
            published.append(self.client.get_iopub_msg(timeout=deadline - time.monotonic()))
        return published

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def front_end(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    made = FrontEnd()
    yield made
    made.close()


def of(messages, kind):
    return [m["content"] for m in messages if m["msg_type"] == kind]


ENDLESS = """
import picolab as pico, time

def talk():
    for step in range(100_000):
        pico.emit(step=step, loss=5.0)
        time.sleep(0.02)

job = pico.run(talk, world_size=2, wait=False)
shown = pico.dashboard(job)
"""


def test_with_a_front_end_it_is_live_and_then_static(front_end):
    said = front_end.run(ENDLESS)
    assert of(said, "comm_open")
    (display,) = [c for c in of(said, "display_data") if WIDGET in c["data"]]
    # The cell has returned, and the figure is painted: an update is a comm message.
    painted = front_end.until(
        lambda m: m["msg_type"] == "comm_msg" and "_py2js_update" in str(m["content"].get("data"))
    )
    assert of(painted, "update_display_data") == []
    stopped = front_end.run("print(job.stop())")
    replaced = [
        c["data"]
        for c in of(stopped, "update_display_data")
        if c["transient"]["display_id"] == display["transient"]["display_id"]
    ]
    assert len(replaced) == 1 and PLOTLY in replaced[0] and WIDGET not in replaced[0]
    assert replaced[0]["text/plain"].startswith("stopped after ")


def test_a_paint_is_few_messages_and_an_equal_one_none(front_end):
    front_end.run(
        "import picolab as pico\n"
        "from picolab.monitoring import Event\n"
        "from picolab.monitoring.run_state import RunState\n"
        "from picolab.lab.live_view import LiveView\n"
        "said = [Event('values', 0, 0.0, dict(step=i, loss=9.0 - i)) for i in range(9)]\n"
        "view = LiveView()\n"
        "made = view.figure"
    )
    paint = "view.paint(RunState(said))"
    first = of(front_end.run(paint), "comm_msg")
    assert 1 <= len(first) <= 6  # without a batch it would be one for each attribute
    arrays = [m for m in front_end.run("view.paint(RunState(said[:5]))") if m["buffers"]]
    assert arrays  # numpy arrays travel as bytes, not as lists
    front_end.run(paint)
    assert of(front_end.run(paint), "comm_msg") == []


def test_a_form_is_shown_and_a_comparison_uncovers_itself(front_end):
    said = front_end.run(
        "import picolab as pico\n"
        "g = pico.guess('c.t.n', 'How many?')\n"
        "c = pico.compare('c.t.n', formula=4, measured=4)"
    )
    assert any(WIDGET in c["data"] for c in of(said, "display_data"))
    covered = of(said, "display_data")[-1]
    assert "covered until you guess" in covered["data"]["text/plain"]
    (update,) = of(front_end.run("g.answer(5)"), "update_display_data")
    assert update["transient"] == covered["transient"]
    assert "+25 %" in update["data"]["text/plain"]


def test_what_goes_with_a_comparison_is_uncovered_in_its_own_cell(front_end):
    front_end.run(
        "import picolab as pico\n"
        "g = pico.guess('c.t.n', 'How many?')\n"
        "c = pico.compare('c.t.n', formula=4, measured=4)"
    )
    beside = "c.also(pico.monitoring.Table(['', 'count'], [['in all', 4321]]))"
    (covered,) = of(front_end.run(beside), "display_data")  # once, though it ends the cell
    assert "4,321" not in covered["data"]["text/plain"]
    updates = of(front_end.run("g.answer(5)"), "update_display_data")
    assert updates[1]["transient"] == covered["transient"]
    assert "4,321" in updates[1]["data"]["text/plain"]


def test_what_a_notebook_without_its_kernel_needs_is_saved_with_it(front_end):
    """Under the cell that imports picolab, run once or again, and under no other."""
    for code, there in {"import picolab as pico": 1, "import picolab ": 1, "1 + 1": 0}.items():
        styles = [c["data"]["text/html"] for c in of(front_end.run(code), "display_data")]
        assert len(styles) == there and all("needs its kernel" in style for style in styles)


def test_the_same_kernel_without_cells_makes_no_widgets(front_end):
    said = front_end.run(
        "import picolab as pico\ng = pico.guess('c.t.n', 'How many?')", names_its_cell=False
    )
    assert of(said, "display_data") and not of(said, "comm_open")
