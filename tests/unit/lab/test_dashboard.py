"""Following real runs: live, ended, failed, stopped, from a directory.

Wrong versions these tests catch: a last picture that comes after `job.result()` returned, a
painter that outlives its run or paints for every event, a failure without its cause, a directory
reader that trips over half a line.
"""

import itertools
import json
import sys
import threading
import time
from pathlib import Path

import pytest

import picolab as pico
from picolab.lab import dashboard as show
from picolab.lab.follower import PERIOD_S, Follower, RunDirectory
from picolab.lab.live_view import LiveView
from picolab.monitoring import Event
from picolab.monitoring.figures import panels, run_state, training_figure
from picolab.monitoring.run_state import RunState, decimate
from picolab.show.picture import LabFigure

sys.path.insert(0, str(Path(__file__).parents[1] / "monitoring"))
from recorded import recorded_run
from test_step_split import entry


def talk(steps, pause_s=0.0, fail_at=None):
    for step in range(steps):
        if step == fail_at:
            raise ValueError("no more")
        pico.emit(step=step, loss=5.0 - step / 100)
        time.sleep(pause_s)


def painters():
    return [t for t in threading.enumerate() if t.name == "picolab-dashboard"]


def test_a_result_is_shown_at_once():
    result = pico.run(talk, 5, world_size=2, quiet=True)
    shown = show(result)
    assert isinstance(shown.figure, LabFigure)
    assert repr(shown).startswith("5 steps, loss 4.960")
    assert shown.state.state == "done"


def test_the_last_picture_is_there_when_the_result_is():
    for _ in range(3):
        job = pico.run(talk, 5, world_size=2, quiet=True, wait=False)
        shown = show(job)
        job.result()
        assert shown.state.state == "done" and max(shown.state.losses) == 4
        assert painters() == []  # headless there is none at all


def test_an_end_that_comes_later_is_noticed(monkeypatch):
    """The mutant: the last picture is left to the thread that looks now and then."""
    monkeypatch.setattr(Follower, "_on_event", lambda self, event: None)
    job = pico.run(talk, 5, world_size=2, quiet=True, wait=False)
    shown = show(job)
    job.result()
    assert shown.state.state != "done"


def test_two_results_are_laid_over_one_another():
    one = pico.run(talk, 5, world_size=1, quiet=True)
    other = pico.run(talk, 4, world_size=1, quiet=True)
    shown = show(one, other)
    assert [state.losses[3] for state in shown.states] == [4.97, 4.97]
    assert "run (2)" in repr(shown) and "0.0e+00 apart at most" in repr(shown)
    assert len(shown.figure.figure.data) == 4
    with pytest.raises(ValueError, match="covers and beside are for the dashboard of one run"):
        show(one, other, covers="x")
    with pytest.raises(ValueError, match="a job, a result or a run directory"):
        show(one, 3)
    job = pico.run(talk, 1000, 0.05, world_size=1, quiet=True, wait=False)
    with pytest.raises(ValueError, match="when all have ended"):
        show(one, job)
    job.stop()


def test_live_paints_are_few_and_end_with_the_run():
    painted, ended = [], []
    job = pico.run(talk, 150, 0.01, world_size=2, quiet=True, wait=False)
    Follower(job, lambda state: painted.append(time.monotonic()), ended.append)
    job.result()
    assert len(ended) == 1 and max(ended[0].losses) == 149
    # 300 events were said; what bounds the paints is the pause between them.
    assert 1 <= len(painted) < 50
    assert all(b - a >= PERIOD_S * 0.99 for a, b in itertools.pairwise(painted))
    deadline = time.monotonic() + 5
    while painters() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert painters() == []


def test_a_live_view_shows_the_run_while_it_goes():
    job = pico.run(talk, 100_000, 0.01, world_size=2, quiet=True, wait=False)
    shown = show(job, live=True)
    view = shown._view
    deadline = time.monotonic() + 60
    while not len(view.figure.data[0].y):
        assert time.monotonic() < deadline, view.sentence.value
        time.sleep(0.02)
    assert not job.done and "loss" in view.sentence.value
    job.stop()
    view.paint(shown.state)
    losses = [5.0 - step / 100 for step in range(len(shown.state.losses))]
    x, y = decimate(list(range(len(losses))), losses)
    assert list(view.figure.data[0].x) == x
    assert list(view.figure.data[0].y) == pytest.approx(y)
    title = view.figure.layout.annotations[0].text.replace("<br>", " ")
    assert title == panels(shown.state).titles[0]
    assert title.startswith("loss 5.000 → ") and title.endswith(f" in {len(losses)} steps")
    assert shown._view is None  # replaced by the static picture


def test_a_live_view_draws_each_step_of_a_pipeline_in_time():
    """A fifth panel opens with the first step that is complete; from then on it is the newest
    step's. Painted live, the panels are those of the picture at the end."""

    def events(step, seconds):
        ends = {"op": "send", "peer": 1, "exposed": 0.0}, {"op": "recv", "peer": 0}
        for rank, about in enumerate(ends):
            for n in range(step + 1):  # a message more in each step
                told = entry(rank, 10.0 + n, 0.5, axis="pp", **about)._replace(step=step)
                yield Event("ledger", rank, 0.0, {"entries": [told]})
            data = {"step": step, "loss": 1.0, "seconds": seconds, "began": 9.0}
            yield Event("step", rank, 0.0, data)

    state, view = RunState(world_size=2), LiveView()
    view.paint(state)
    four = view.figure.layout.height
    assert not view.figure.layout.yaxis5.visible
    for step, seconds in ((0, 4.0), (1, 6.0)):
        for event in events(step, seconds):
            state.add(event)
        view.paint(state)
        final = training_figure(state).figure
        live = view.figure.layout  # its heading stands above it, in a widget of its own
        assert live.height - live.margin.t == final.layout.height - final.layout.margin.t
        assert live.height > four
        assert view.figure.layout.yaxis5.visible
        assert view.figure.layout.xaxis5.range == final.layout.xaxis5.range == (0, 1e3 * seconds)
        assert [note.text for note in view.figure.layout.annotations] == [
            note.text for note in final.layout.annotations
        ]
        drawn = panels_of_every_run(view.figure)
        for shown, right in zip(drawn, final.data, strict=True):
            assert list(shown.x) == pytest.approx(list(right.x), nan_ok=True)
            assert list(shown.y) == pytest.approx(list(right.y), nan_ok=True)
            if shown.type == "bar" and right.base is not None:
                assert list(shown.base) == list(right.base)
        assert list(drawn[-1].marker.size) == [0, 8, 0] * (step + 1)


def panels_of_every_run(figure) -> list:
    """Without experts, formats and bytes; nor the earlier runs, which are last."""
    others = {f"x{number}" for number in range(6, 13)}
    return [trace for trace in figure.data[:-1] if trace.xaxis not in others]


def test_a_live_view_draws_experts_once_a_run_has_told_of_some():
    def events(step):
        data = {"step": step, "loads": {0: [6, 2], 1: [4, 4]}, "dropped": [1, 0], "imbalance": []}
        yield Event("experts", 0, 0.0, data)
        yield Event("step", 0, 0.0, {"step": step, "loss": 1.0, "seconds": 1.0, "layout": "dp1"})

    state, view = RunState(world_size=1), LiveView()
    view.paint(state)
    four = view.figure.layout.height
    assert not view.figure.layout.yaxis6.visible and not view.figure.layout.yaxis8.visible
    for step in range(3):
        for event in events(step):
            state.add(event)
        view.paint(state)
        final, live = training_figure(state).figure, view.figure.layout
        assert live.height > four and live.yaxis6.visible and live.yaxis8.visible
        assert live.height - live.margin.t == final.layout.height - final.layout.margin.t
        assert [note.text for note in live.annotations] == [
            note.text for note in final.layout.annotations
        ]
        [shown] = [of for of in view.figure.data if of.xaxis == "x6" and of.type == "heatmap"]
        [right] = [trace for trace in final.data if trace.type == "heatmap"]
        for one, other in zip(shown.z, right.z, strict=True):
            assert list(one) == pytest.approx(list(other), nan_ok=True)
        assert len(shown.z[0]) == step + 1


def test_any_of_the_newest_steps_can_be_asked_for():
    shown = show(Kept(recorded_run(steps=4)))
    assert repr(shown.activity()).startswith("step 3: ")
    assert repr(shown.activity(1)).startswith("step 1: ")
    with pytest.raises(ValueError, match="of step 9 nothing can be drawn: there are 0 to 3"):
        shown.activity(9)


class Kept:
    """Like a result."""

    world_size, done = 4, True

    def __init__(self, events):
        self.events = events


def test_before_the_first_event_a_live_view_says_that_ranks_start():
    """Also when it is painted meanwhile; then what the run says, and it turns no more."""
    assert "waiting for the first event" in LiveView().sentence.value
    view, state = LiveView("starting 2 ranks ..."), RunState(world_size=2)
    state.add(Event("state", -1, 0.0, {"state": "running"}))
    view.paint(state)
    assert "starting 2 ranks ..." in view.sentence.value and "rotate" in view.sentence.value
    state.add(Event("values", 0, 0.0, {"step": 0, "loss": 5.0}))
    view.paint(state)
    assert "starting" not in view.sentence.value and "rotate" not in view.sentence.value


def test_a_failed_run_leaves_its_cause():
    job = pico.run(talk, 9, fail_at=3, world_size=2, quiet=True, wait=False)
    shown = show(job)
    with pytest.raises(pico.RankFailure):
        job.result()
    assert repr(shown).startswith("failed after 3 steps")
    assert "ValueError: no more" in repr(shown).splitlines()[0]
    title = shown.figure.figure.layout.title.text.replace("<br>", " ")
    assert "ValueError: no more" in title


def test_a_run_that_fails_at_once_is_a_sentence_and_not_an_empty_figure():
    job = pico.run(talk, 9, fail_at=0, world_size=1, quiet=True, wait=False)
    shown = show(job)
    with pytest.raises(pico.RankFailure):
        job.result()
    assert repr(shown).startswith("failed before the first step: rank 0 failed: ValueError")
    assert "\n" not in repr(shown)


def test_a_stopped_run():
    job = pico.run(talk, 10_000, 0.01, world_size=1, quiet=True, wait=False)
    shown = show(job)
    deadline = time.monotonic() + 30
    while not job.events or job.events[-1].kind != "values":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.stop()
    assert repr(shown).startswith("stopped after ")


def test_a_run_directory():
    result = pico.run(talk, 5, world_size=2, quiet=True)
    assert repr(show(result.run_dir)) == repr(show(result))
    assert repr(show(str(result.run_dir))) == repr(show(result))


def line(step):
    return Event("values", 0, float(step), {"step": step, "loss": 5.0}).to_json() + "\n"


def test_a_directory_that_is_being_written(tmp_path):
    source, path = RunDirectory(tmp_path), tmp_path / "events.0.jsonl"
    assert not source.events and not source.done
    path.write_text(line(0) + line(1)[:10])
    assert [e.data["step"] for e in source.events] == [0]  # half a line is left for later
    path.write_text(line(0) + line(1) + line(2))
    assert [e.data["step"] for e in source.events] == [0, 1, 2]
    (tmp_path / "run.json").write_text(json.dumps({"state": "stopped", "world_size": 1}))
    assert source.events[-1].data == {"state": "stopped"} and source.done
    assert len(source.events) == 4  # the end is told once


def test_a_directory_is_followed_to_its_end(tmp_path):
    path, ended = tmp_path / "events.0.jsonl", threading.Event()
    path.write_text(line(0))
    painted = []
    follower = Follower(
        RunDirectory(tmp_path), lambda s: painted.append(len(s.losses)), lambda s: ended.set()
    )
    with open(path, "a") as file:
        file.write(line(1))
    time.sleep(3 * PERIOD_S)
    (tmp_path / "run.json").write_text(json.dumps({"state": "done"}))
    assert ended.wait(10)
    assert painted[-1] == 2 and follower.state.state == "done"


def test_closing_leaves_the_run_alone():
    job = pico.run(talk, 100, 0.01, world_size=1, quiet=True, wait=False)
    shown = show(job)
    shown.close()
    assert len(job.result()) == 1


@pytest.mark.parametrize("source", [42, None, "no/such/directory"])
def test_what_cannot_be_shown_is_refused(source):
    with pytest.raises(ValueError, match="run directory"):
        show(source)


def check_covering(covered):
    """A dashboard whose lower panels would answer a question that is open."""
    from picolab.lab import guess

    result = pico.run(send, world_size=2, quiet=True, backend="gloo")
    shown = covered(result)
    asked = guess("c.t.bytes", "How many bytes?", unit="bytes")
    for text in (repr(shown), shown.figure.text, shown.figure.figure.to_json()):
        assert "400" not in text and "my reason" not in text and "c.t.bytes" in text
    asked.skip()
    assert "my reason" in repr(shown) and "c.t.bytes" not in repr(shown)


def send():
    import torch

    pico.comm.all_reduce(torch.zeros(100), "world", "my reason")
    pico.emit(step=0, loss=5.0)


@pytest.fixture
def no_guesses(monkeypatch, tmp_path):
    from picolab.lab import guesses

    monkeypatch.setattr(guesses, "_guesses", {})
    monkeypatch.setattr(guesses, "_waiting", {})


def test_what_is_asked_stays_covered(no_guesses):
    check_covering(lambda result: show(result, covers="c.t.bytes"))


def test_a_dashboard_that_covers_nothing_is_caught(no_guesses):
    with pytest.raises(AssertionError):
        check_covering(show)


def test_a_page_that_is_loaded_again_is_told_the_present():
    """The mutant: plotly's own state, which is that of the first moment."""
    import plotly.graph_objects as go

    view = LiveView()
    figure = view.figure
    view.paint(run_state([Event("values", 0, 0.0, {"step": 0, "loss": 5.0})]))
    assert "after the first step" in str(figure.get_state()["_widget_layout"])
    assert figure.get_state()["_widget_data"][0]["x"]["shape"] == (1,)
    first = go.FigureWidget.get_state(figure)
    assert "no step yet" in str(first["_widget_layout"])
    assert len(str(figure.get_state())) < 100_000  # and plotly itself is not part of it


def test_earlier_runs_are_drawn_behind():
    one = pico.run(talk, 5, world_size=1, quiet=True)
    shown = show(pico.run(talk, 5, world_size=1, quiet=True), beside={"the first": one})
    assert "earlier runs" in repr(shown.figure) and "the first" in repr(shown.figure)
    ghosts = shown.figure.figure.data[-1]
    assert "the first" in ghosts.text and list(ghosts.y[:5]) == [5.0, 4.99, 4.98, 4.97, 4.96]


def test_a_live_view_draws_formats_once_a_run_has_told_of_some():
    name = "layers.0.mlp.down.weight"

    def events(step):
        if step == 0:
            data = {"layers": {name: ["fp8", "why"]}, "sizes": {name: 4}, "numbers": {name: 8}}
            yield Event("precision", 0, 0.0, {"step": 0, "below_fp32": 1.0, **data})
        yield Event("step", 0, 0.0, {"step": step, "loss": 1.0, "seconds": 4.0})

    state, view = RunState(world_size=1), LiveView()
    view.paint(state)
    low = view.figure.layout.height
    assert not view.figure.layout.yaxis9.visible
    for step in range(3):
        for event in events(step):
            state.add(event)
        view.paint(state)
    layout, final = view.figure.layout, training_figure(state).figure.layout
    assert layout.yaxis9.visible and layout.height > low
    assert layout.height - layout.margin.t == final.height - final.margin.t
    [heat] = [
        trace for trace in view.figure.data if trace.xaxis == "x9" and trace.type == "heatmap"
    ]
    assert [list(row) for row in heat.z] == [[3, 0, 0]]
