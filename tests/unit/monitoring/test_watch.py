"""What somebody looks at who watches a run, from events: who comes late, what was found, and when.

Wrong versions these tests catch: a panel of what the run has not told; an answer that a covered
figure gives away; a mark that does not say what it marks; an alert that is drawn as firing when it
is over; a detector that accuses a rank of silence because the view came late; a run's own words
taken for markup.
"""

import pytest
from recorded import recorded_run

from picolab.monitoring import BasicVisualization, Event, figures, watch, watch_figure
from picolab.monitoring.alert_history import Transition
from picolab.monitoring.figures import training_figure
from picolab.monitoring.history import History
from picolab.monitoring.run_state import RunState
from picolab.monitoring.watch_figure import FINDINGS, LATE, MEMORY, NORM, SCALE, drawn


def watched(events=None) -> RunState:
    return RunState(recorded_run(steps=60) if events is None else events, watch=True)


def steps(count: int = 60, **more):
    """The recorded run's, with more in each step."""
    for event in recorded_run(steps=count):
        if event.kind == "step":
            told = {k: v(event) if callable(v) else v for k, v in more.items()}
            event = Event("step", event.rank, event.t, {**event.data, **told})
        yield event


def alert(state: str, step: int, **more) -> Transition:
    about = dict(n=step, t=0.0, step=step, name="slow rank", rank=2, state=state,
                 severity="page", value=None, said="rank 2 comes late", cause=None)  # fmt: skip
    return Transition(**{**about, **more})


def test_the_straggler_is_the_dark_row():
    shown = drawn(watched())
    z = shown.traces[0]["z"]
    assert shown.traces[0]["y"] == [f"rank {rank}" for rank in range(4)]
    assert z[2].min() == pytest.approx(20.0) and z[[0, 1, 3]].max() == 0.0
    assert shown.titles[LATE] == "rank 2 comes 20 % of a step late"
    assert drawn(watched(recorded_run(steps=60, slow_s=0.0))).titles[LATE] == "no rank comes late"


def test_who_comes_late_now_and_then_is_not_said_to_come_late():
    """Every fourth step rank 2 pauses. Of 450 steps a column of the map has four, and shows the
    pause of one; whoever takes the columns for what is so now accuses it."""
    slow, fast = recorded_run(steps=450), recorded_run(steps=450, slow_s=0.0)
    told = [event.data.get("step") for event in slow]
    told = [
        event.data["entries"][-1].step if event.kind == "ledger" else step
        for event, step in zip(slow, told)
    ]
    events = [f if step is None or step % 4 else s for s, f, step in zip(slow, fast, told)]
    shown = drawn(watched(events))
    assert shown.traces[0]["z"].shape[1] < 200 and shown.traces[0]["z"][2][1:].min() > 10
    assert shown.titles[LATE] == "no rank comes late"


def test_there_is_a_panel_only_for_what_was_told():
    assert drawn(watched([])).shape is None
    assert drawn(watched()).shape.there == (LATE, NORM, FINDINGS)
    more = steps(rss_bytes=lambda e: 1e8 * (1 + e.rank), loss_scale=lambda e: 2.0 ** (e.rank + 8))
    shown = drawn(watched(more))
    assert shown.shape.there == (LATE, NORM, MEMORY, SCALE, FINDINGS)
    assert shown.titles[MEMORY] == "process memory: rank 3 has most, 400 MB"
    plain = training_figure(RunState(recorded_run(steps=60))).figure
    assert len(plain.layout.annotations) == 4 and len(plain.data) == 10


def test_a_covered_figure_says_nothing_of_it():
    covered = training_figure(watched(), covers="covered until you guess")
    assert "comes" not in covered.text and "comes" not in covered.figure.to_json()
    open_one = training_figure(watched())
    assert "comes 20 % of a step late" in open_one.text


def check_marks(state: RunState):
    figure = training_figure(state).figure
    [marks] = [trace for trace in figure.data if trace.name == "findings"]
    assert list(marks.x) == [38] and "rank 2 comes 30.0 ms late" in marks.hovertext[0]
    assert (marks.xaxis, marks.yaxis) == ("x", "y99")
    assert figure.layout.yaxis99.overlaying == "y" and figure.layout.yaxis99.fixedrange


def test_what_was_found_is_marked_on_the_loss():
    check_marks(watched())


def test_marks_without_words_are_caught(monkeypatch):
    monkeypatch.setattr(watch, "_SEVERAL", 0)
    monkeypatch.setattr(
        watch.Watch, "_mark", lambda self, step, said: self.marks.add(step, (1, ()))
    )
    with pytest.raises(AssertionError):
        check_marks(watched())


def test_many_findings_are_few_marks_and_none_is_lost():
    state = watched([])
    for step in range(5_000):
        state.watch._mark(step, f"step {step}: something")
    shown = watch_figure.marks(state.watch)
    assert len(shown["x"]) <= watch.MARKS and "and 29 more" in shown["hovertext"][0]
    assert sum(count for _, (count, _) in state.watch.marks.items()) == 5_000


def test_an_alert_is_pending_then_firing_then_over():
    state = watched()
    state.watch.alert(alert("pending", 30))
    assert [f.state for f in state.watch.findings()] == ["pending"]  # in place of the anomalies
    state.watch.alert(alert("firing", 40))
    bars = dict(zip(watch_figure._STATES, drawn(state).traces[5:9]))
    assert list(bars["pending"]["x"])[:2] == [30, 40] and list(bars["firing"]["x"])[:2] == [40, 59]
    assert drawn(state).titles[FINDINGS] == "1 alert firing, 1 in all"
    state.watch.alert(alert("resolved", 50))
    bars = dict(zip(watch_figure._STATES, drawn(state).traces[5:9]))
    assert list(bars["over"]["x"])[:2] == [40, 50] and not len(bars["firing"]["x"])
    state.watch.alert(alert("firing", 55))  # again: another row
    assert [(f.begin, f.end) for f in state.watch.findings()] == [(30, 50), (55, None)]
    state.watch.alert(alert("inhibited", 56, name="slow run", rank=None, cause="slow rank, rank 2"))
    words = drawn(state).traces[-1]["hovertext"][-1].replace("<br>", " ")
    assert words.endswith("(held back: slow rank, rank 2)")


def test_a_view_that_comes_late_accuses_nobody(monkeypatch):
    """What a long run's history has folded is known, and not heard: nothing of it is judged."""
    from picolab.monitoring import history

    monkeypatch.setattr(history, "KEPT", 2_000)
    events = recorded_run(steps=120, slow_s=0.0, state=None)
    half = len(events) // 2 + 3  # within a step

    def late_view():
        told = History("somewhere")
        for event in events[:half]:
            told.add(event)
        assert told.older
        state = RunState(watch=True, world_size=4)
        told.tell(state)
        for event in events[half:]:
            state.add(event)
        return state

    assert late_view().watch.findings() == []
    monkeypatch.setattr(watch.Watch, "missed", lambda self, step: None)
    assert late_view().watch.findings() != []  # the mutant: the half-heard steps are judged


def test_events_of_other_programs_do_no_harm():
    told = [{"step": 0, "loss": 1.0}, {"step": 1, "seconds": 1.0}]
    state = watched([Event("step", 0, 0.0, data) for data in told])
    assert state.losses == {0: 1.0} and state.watch.findings() == []


def test_words_of_a_run_are_no_markup():
    state = watched()
    state.watch.alert(alert("firing", 30, said="<a href='x'>click</a>\x1b[31m <b>now</b>"))
    page = training_figure(state).figure.to_json()
    assert "<b>" not in page and "\\u001b" not in page and "&lt;a href" in page


def test_each_panel_alone():
    shown = BasicVisualization(recorded_run(steps=60), peak_flops=1e9)
    firsts = {
        shown.lateness: "rank 2 comes 20 % of a step late",
        shown.gradient_norm: "gradient norm 1",
        shown.findings: "1 finding",
        shown.loss: "loss 6.800",
        shown.throughput: "6,827 tokens/s",
        shown.split: "30 ms a step waiting for rank 2",
        shown.ledger: "payload 6.36 MB",
        shown.everything: "60 of 60 steps",
    }
    for panel, said in firsts.items():
        found = panel()
        assert found.text.startswith(said), found.text[:60]
        assert len(found.figure.data)
    assert any(trace.name == "findings" for trace in shown.loss().figure.data)
    with pytest.raises(ValueError, match="precision='fp16' does that"):
        shown.loss_scale()
    with pytest.raises(ValueError, match="it is above 0"):
        BasicVisualization([], peak_flops=0)


def test_the_mfu_is_of_what_the_run_and_its_reader_have_told():
    """1,024 tokens in 0.15 s are 6,827 a second; x 1e5 operations, over 4 devices of 1e9."""
    settings = Event("settings", 0, 0.0, {"settings": {"steps": 60}, "flops_per_token": 1e5})
    state = watched([settings, *recorded_run(steps=60)])
    assert state.mfu() is None and state.settings == {"steps": 60}
    state.peak_flops = 1e9
    assert state.mfu() == pytest.approx(1024 / 0.15 * 1e5 / 4e9)
    title = figures.throughput_figure(state).text.splitlines()[0]
    assert title.replace("\xa0", " ") == "6,827 tokens/s (median), MFU 17.1 %"
