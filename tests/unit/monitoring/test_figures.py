"""The figures of a run: the finding in the title, units on the axes, the same data in picture and
text.

Wrong versions these tests catch: a title that only names the panel, waiting without its hatch,
ranks from bottom to top, an axis without a unit, live arrays in another order than the traces, a
picture that needs a kernel.
"""

import pytest
from recorded import recorded_run

from picolab.monitoring import figures
from picolab.monitoring.figures import panels, training_figure
from picolab.monitoring.run_state import RunState

BUILDERS = {
    figures.loss_figure: ("loss 6.800 → 2.610 in 20 steps", "step", "loss (nats per token)"),
    figures.throughput_figure: ("6,827 tokens/s (median)", "step", "tokens/s"),
    figures.split_figure: ("30 ms a step waiting for rank 2", "ms per step", None),
    figures.ledger_figure: ("payload 6.36 MB a step and rank", "payload bytes", None),
}


@pytest.mark.parametrize("build", BUILDERS)
def test_each_figure_says_what_it_found(build):
    title, x, y = BUILDERS[build]
    shown = build(recorded_run())
    assert shown.figure.layout.title.text == title
    assert repr(shown).startswith(title)
    assert shown.figure.layout.xaxis.title.text == x
    assert shown.figure.layout.yaxis.title.text == y
    assert shown.figure.layout.height and shown.figure.layout.width is None


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("events", [[], recorded_run(steps=1), recorded_run()[:3]])
def test_each_figure_can_be_drawn_at_any_moment(build, events):
    assert build(events)._repr_mimebundle_()


def test_waiting_is_hatched_and_rank_0_is_on_top():
    figure = figures.split_figure(recorded_run()).figure
    bars = {trace.name: trace for trace in figure.data}
    assert list(bars) == ["compute", "communication", "waiting", "bubble"]
    assert bars["bubble"].marker.pattern.shape == "\\"
    assert bars["waiting"].marker.pattern.shape == "/"
    assert bars["compute"].marker.pattern.shape == ""
    assert list(bars["waiting"].y) == ["rank 0", "rank 1", "rank 2", "rank 3"]
    assert figure.layout.yaxis.autorange == "reversed"
    assert list(bars["waiting"].x) == pytest.approx([30, 30, 0, 30], abs=1e-6)
    assert figure.layout.barmode == "stack"


def test_the_training_figure_has_four_findings_and_one_sentence():
    shown = training_figure(recorded_run())
    titles = [note.text for note in shown.figure.layout.annotations]
    assert titles == [title for title, _, _ in BUILDERS.values()]
    assert shown.figure.layout.title.text.startswith("20 of 20 steps, loss 2.610, 6,827 tokens/s")
    for title in titles:
        assert title in repr(shown)
    assert "dp: gradient bucket" in repr(shown) and "1,900,000" in repr(shown)
    assert len(shown.figure.to_json()) < 40_000


def test_arrays_fit_the_traces_and_are_numpy():
    import numpy

    drawn = panels(recorded_run())
    figure = training_figure(recorded_run()).figure
    assert len(drawn.traces) == len(figure.data)
    for trace, data in zip(figure.data, drawn.traces):
        assert list(trace.x) == list(data["x"]) and list(trace.y) == list(data["y"])
        assert isinstance(data["x"], numpy.ndarray)


def test_arrays_in_another_order_are_noticed(monkeypatch):
    swapped = figures._traces()[::-1]
    monkeypatch.setattr(figures, "_traces", lambda: swapped)
    with pytest.raises((AssertionError, ValueError)):
        test_waiting_is_hatched_and_rank_0_is_on_top()
        test_the_training_figure_has_four_findings_and_one_sentence()


def test_many_reasons_are_summed_and_nothing_is_lost():
    state = RunState(recorded_run(steps=2))
    rows = {f"reason {i}": (1.0, 100.0 * (20 - i)) for i in range(20)}
    state.traffic = lambda: rows
    bars = panels(state).traces[-2]
    assert len(bars["x"]) == 8
    assert sum(bars["x"]) == sum(size for _, size in rows.values())


def test_long_runs_are_thinned_and_smoothed():
    drawn = panels(RunState(recorded_run(steps=300)))
    raw, smooth = drawn.traces[:2]
    assert len(raw["x"]) == len(smooth["x"]) == 300
    assert smooth["y"][0] == pytest.approx(raw["y"][0])  # bias-corrected: not pulled to zero
    assert drawn.titles[0] == f"loss 6.800 → {smooth['y'][-1]:.3f} (smoothed) in 300 steps"


def test_a_result_is_done_and_a_job_is_not():
    class Kept:
        events = recorded_run(steps=2, state=None)
        world_size = 4

    assert figures.run_state(Kept()).state == "done"
    Kept.state = "running"
    assert figures.run_state(Kept()).state == "running"


def test_earlier_runs_stand_in_grey_behind_the_loss():
    beside = {"dp1": {0: 6.0, 1: 5.0, 2: 4.0}, "tp2": {0: 6.5, 1: 5.5}}
    shown = training_figure(recorded_run(), beside=beside)
    ghosts = shown.figure.data[-1]
    assert len(shown.figure.data) == 1 + len(training_figure(recorded_run()).figure.data)
    drawn = {(x, y) for x, y in zip(ghosts.x, ghosts.y) if x == x}
    assert drawn == {point for losses in beside.values() for point in losses.items()}
    assert [i for i, x in enumerate(ghosts.x) if x != x] == [3, 6]  # a gap behind each line
    assert [text for text in ghosts.text if text] == ["dp1", "tp2"]
    assert ghosts.zorder < 0 < ghosts.line.width
    assert (ghosts.xaxis, ghosts.yaxis) == ("x", "y")
    assert "earlier runs" in repr(shown) and "tp2" in repr(shown)
    assert "earlier runs" not in repr(training_figure(recorded_run()))
