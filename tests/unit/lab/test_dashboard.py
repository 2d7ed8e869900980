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
    with pytest.raises(ValueError, match="covers, beside and watch are for the dashboard of one"):
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
    """Without those that only some runs have; nor the earlier runs, which are last."""
    return [trace for trace in figure.data[:-1] if int(trace.xaxis[1:] or 1) <= 5]


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


def test_a_page_that_still_draws_is_not_told_more(monkeypatch):
    """The mutants: a page that is told whatever there is; one that is waited for though it is gone;
    a page that is waited for before it has said that it is there."""
    from picolab.lab import live_figure

    state, view = RunState(world_size=1), LiveView()
    figure = view.figure

    def next_loss(step):
        state.add(Event("values", 0, 0.0, {"step": step, "loss": 5.0 - step}))
        return view.paint(state), len(figure.data[0].y)

    def page(**said):
        figure._heard(figure, said, [])

    assert next_loss(0) == (True, 1) and next_loss(1) == (True, 2)  # no page has asked for it yet
    page(can_draw=True)
    assert next_loss(2) == (True, 3)
    assert next_loss(3) == (False, 3) and "loss 2.000" in view.sentence.value
    page(drawn=figure.paints - 1)  # what it was told before that
    assert next_loss(4) == (False, 3)
    page(drawn=figure.paints)
    assert next_loss(5) == (True, 6)
    page(can_draw=True)  # another page, or this one again: it has just been told everything
    assert next_loss(6) == (True, 7) and next_loss(7) == (False, 7)
    # It does not answer any more: closed, or a cell keeps the kernel from hearing it.
    monkeypatch.setattr(live_figure, "ANSWER_S", 0.0)
    assert next_loss(8) == (True, 9) and next_loss(9) == (True, 10)
    monkeypatch.undo()
    assert next_loss(10) == (True, 11)
    page(drawn=figure.paints)
    assert next_loss(11) == (True, 12) and next_loss(12) == (False, 12)

    monkeypatch.setattr(live_figure.LiveFigure, "draws", False)
    assert next_loss(13) == (True, 14)


def test_what_a_page_could_not_take_is_painted_later():
    """The mutant: the news was looked at, so there is nothing to paint until there is more."""
    job = pico.run(talk, 3, world_size=1, quiet=True, wait=False)
    job.result()

    class Silent:
        """Like a job that has said all it will say, and goes on."""

        events, world_size, done = job.events, 1, False

        def on_event(self, _):
            return lambda: None

    answers, seen = iter([False, False, True]), []
    done = threading.Event()

    def paint(state):
        seen.append(max(state.losses))
        answer = next(answers)
        if answer:
            done.set()
        return answer

    follower = Follower(Silent(), paint, lambda state: None)
    assert done.wait(20)
    time.sleep(3 * PERIOD_S)
    follower.close()
    assert seen == [2, 2, 2]


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


# -- watched --


def painted(steps: int, **more):
    """A live view of the recorded run, and its state."""
    state = RunState(recorded_run(steps=steps, state=None), world_size=4, watch=True)
    view = LiveView(watch=True, **more)
    view.paint(state)
    return view, state


def test_a_watched_view_paints_what_the_last_picture_shows():
    view, state = painted(60, again=lambda: None)
    final, live = training_figure(state).figure, view.figure.layout
    assert live.height - live.margin.t == final.layout.height - final.layout.margin.t
    assert [note.text for note in live.annotations] == [n.text for n in final.layout.annotations]
    for axis in ("x13", "x14", "x"):
        [*shown] = [t for t in view.figure.data if t.xaxis == axis and len(t.x)]
        [*right] = [t for t in final.data if t.xaxis == axis and len(t.x)]
        assert [list(t.x) for t in shown] == [list(t.x) for t in right]
    assert live.xaxis17.range == final.layout.xaxis17.range == (0, 60)


def test_a_paused_picture_stands_while_the_run_goes_on():
    due = []
    view, state = painted(10, again=lambda: due.append(1))
    assert len(view.figure.data[0].y) == 10
    view.pause.value = True
    for event in recorded_run(steps=20, state=None)[-80:]:
        state.add(event)
    view.paint(state)
    assert len(view.figure.data[0].y) == 10 and "10 of" in view.sentence.value and not due
    view.pause.value = False
    assert due == [1]  # somebody is asked to paint what was missed
    view.paint(state)
    assert len(view.figure.data[0].y) == 20 and "20 of" in view.sentence.value


def test_after_a_pause_it_is_painted_also_if_nothing_new_was_said():
    painted_at, ended = [], threading.Event()
    job = pico.run(talk, 3, 0.0, world_size=1, quiet=True, wait=False)
    job.result()

    class Silent:
        """A run that hangs."""

        world_size, done, events = 1, False, job.events
        on_event = staticmethod(lambda callback: lambda: None)

    follower = Follower(Silent(), lambda state: painted_at.append(1), lambda state: ended.set())
    deadline = time.monotonic() + 20
    while not painted_at and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(2 * PERIOD_S)
    assert len(painted_at) == 1
    follower.paint_again()
    while len(painted_at) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    follower.close()
    assert len(painted_at) == 2


def check_zoom():
    """A reader has zoomed into the traffic, and then there is a reason more: another layout."""
    view, state = painted(10, again=lambda: None)
    layout = view.figure.layout
    layout.yaxis4.range, layout.xaxis.range = (1.5, 0.5), (3, 7)  # as the page tells it
    told = entry(0, 30.0, 0.5, axis="tp")._replace(reason="a new reason")
    for rank in range(4):
        data = {"step": 10, "loss": 1.0, "seconds": 1.0, "layout": "dp2tp2"}
        state.add(Event("ledger", rank, 0.0, {"entries": [told._replace(rank=rank, step=10)]}))
        state.add(Event("step", rank, 0.0, data))
    height = layout.height
    view.paint(state)
    assert layout.height > height
    assert layout.yaxis4.range == (1.5, 0.5) and layout.xaxis.range == (3, 7)


def test_what_a_reader_has_zoomed_into_stays():
    check_zoom()


def test_a_paint_that_sets_every_range_is_caught(monkeypatch):
    monkeypatch.setattr(LiveView, "_set_ranges", lambda self, layout: None)
    with pytest.raises(AssertionError):
        check_zoom()


def check_nothing_lies_over_the_panels(figure):
    """An axis that is not seen takes the mouse all the same, and plotly gives one without length
    the whole figure."""
    layout = figure.layout.to_plotly_json()
    seen = {name: axis for name, axis in layout.items() if name.startswith("yaxis")}
    lowest = min(a["domain"][0] for a in seen.values() if a.get("visible", True) and "domain" in a)
    for axis in (a for a in seen.values() if not a.get("visible", True) and "domain" in a):
        low, high = axis["domain"]
        assert high - low > 1 / 4096 and high <= lowest


def test_hidden_panels_are_out_of_the_way():
    check_nothing_lies_over_the_panels(LiveView().figure)
    check_nothing_lies_over_the_panels(painted(60, again=lambda: None)[0].figure)


def test_alerts_are_read_as_they_are_written(tmp_path):
    from picolab.monitoring.alert_history import AlertHistory, Transition

    path = tmp_path / "events.0.jsonl"
    path.write_text(line(0))
    follower = Follower(
        RunDirectory(tmp_path), None, lambda state: None, lambda: RunState(watch=True)
    )
    follower._read()
    assert follower.state.watch.findings() == []
    told = Transition(1, 0.0, 3, "slow rank", 2, "firing", "page", None, "rank 2 is late", None)
    AlertHistory(tmp_path).append([told])
    assert follower._read() and not follower._read()
    [found] = follower.state.watch.findings()
    assert (found.name, found.state, found.begin) == ("slow rank", "firing", 3)
    follower.close()
    again = show(tmp_path, watch=True)  # and of the folder alone
    assert "rank 2 is late" in repr(again)


def test_a_long_runs_folder_is_read_from_its_beginning(tmp_path, monkeypatch):
    """In memory is its end; what was found at its beginning is found again."""
    from picolab.monitoring import history

    for event in recorded_run(steps=60):
        if event.rank >= 0:
            with open(tmp_path / f"events.{event.rank}.jsonl", "a") as file:
                file.write(event.to_json() + "\n")
    monkeypatch.setattr(history, "KEPT", 2_000)
    assert "rank 2 comes 30.0 ms late" in repr(show(tmp_path, watch=True))
    # The mutant, the newest events alone: what was usual is not known to them.
    assert run_state(RunDirectory(tmp_path), watch=True).watch.findings() == []


def check_the_page_takes_nothing_away(figure):
    """What a page says that was loaded again and draws an older moment: it has found these names
    (none yet) by itself."""
    uid = figure.data[4].uid
    delta = {"uid": uid, "y": [], "x": []}
    about = {"trace_deltas": [delta], "trace_edit_id": figure._last_trace_edit_id}
    figure._js2py_traceDeltas = about
    assert list(figure.data[4].y) == ["rank 0", "rank 1", "rank 2", "rank 3"]
    assert list(figure.get_state()["_widget_data"][4]["y"]) == list(figure.data[4].y)


def test_a_page_takes_nothing_away():
    """The mutant is plotly's own widget."""
    import plotly.graph_objects as go

    figure = painted(10, again=lambda: None)[0].figure
    check_the_page_takes_nothing_away(figure)
    with pytest.raises((AssertionError, KeyError, TypeError)):
        check_the_page_takes_nothing_away(go.FigureWidget(figure))
