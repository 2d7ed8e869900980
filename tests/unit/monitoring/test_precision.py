"""What a run has told of its layers' formats, and the figure of it.

Wrong versions these catch: a change that holds from the step in which it was decided, a step that
was taken back and still counts, shares by layers instead of by their size, panels for a run without
adaptive precision, two histories that share what they heard.
"""

import pytest
from recorded import recorded_run

from picolab.monitoring import figures
from picolab.monitoring import precision as told_by
from picolab.monitoring.events import Event
from picolab.monitoring.precision import PrecisionHistory
from picolab.monitoring.run_state import RunState
from picolab.precision import adaptive

LAYERS = {"layers.0.mlp.down.weight": ["fp8", "fine"], "head.weight": ["fp32", "always"]}
DOWN = "layers.0.mlp.down.weight"


def decided(step=0):
    data = dict(step=step, layers=LAYERS, below_fp32=0.75)
    data |= dict(sizes={DOWN: 300, "head.weight": 100}, numbers={DOWN: 600, "head.weight": 200})
    return Event("precision", 0, 0.0, data)


def back(step, to, layers):
    return Event("went back", 0, 0.0, dict(step=step, to=to, why="a norm", layers=layers))


def heard(*events) -> PrecisionHistory:
    history = PrecisionHistory()
    for event in events:
        history.add(event.kind, event.data)
    history.last = 9
    return history


def test_formats_hold_from_the_step_that_is_computed_in_them():
    lowered = Event("lowered", 0, 0.0, dict(step=7, layer=DOWN, format="fp8"))
    history = heard(decided(), back(5, 4, {DOWN: "bf16"}), lowered)
    assert history.formats(0)[DOWN] == "fp32" and history.formats(3)[DOWN] == "fp8"
    assert [history.formats(step)[DOWN] for step in (4, 7, 8)] == ["bf16", "bf16", "fp8"]
    assert history.went_back == [(5, 4, "a norm")] and history.now["head.weight"] == "fp32"
    accepted = heard(decided(), back(5, None, {DOWN: "bf16"}))
    assert [accepted.formats(step)[DOWN] for step in (5, 6)] == ["fp8", "bf16"]
    assert accepted.went_back == []


def test_shares_are_of_operations_and_of_bytes():
    history = heard(decided())
    assert history.below_fp32(0) == 0 and history.bytes_share(0) == 1
    assert history.below_fp32(1) == 0.75
    assert history.bytes_share(1) == pytest.approx((600 + 4 * 200) / (4 * 800))


def test_the_ladder_is_the_precision_rooms():
    assert told_by.LADDER == adaptive.LADDER and told_by.BYTES == adaptive.BYTES


def with_precision(steps=8):
    """dp2tp2, which goes back from step 5 to 4 and does 4 and 5 again, with another loss."""
    found, again = [], []
    for event in recorded_run(steps=steps, state=None):
        step = event.data.get("step", -1)
        if event.kind == "step" and step == 0 and event.rank == 0:
            found.append(decided())
        if event.kind == "step" and step in (4, 5):
            again.append(event._replace(data={**event.data, "loss": 77.0 + step}))
        if event.kind == "step" and step == 6 and event.rank == 0:
            found += [back(5, 4, {DOWN: "fp8-blocks"}), *again]
        found.append(event)
    return found


def test_what_was_taken_back_is_told_again():
    state = RunState(with_precision())
    assert state.losses[4] == 81.0 and state.losses[5] == 82.0
    assert state.losses[3] < 10 and state.losses[6] < 10
    assert state.precision.last == 7


def test_only_an_adaptive_run_has_the_panels():
    plain = figures.training_figure(recorded_run())
    assert "fp32" not in repr(plain) and len(plain.figure.layout.annotations) == 4
    assert "xaxis9" not in plain.figure.layout.to_plotly_json()
    shown = figures.training_figure(with_precision())
    titles = [note.text.replace("<br>", " ") for note in shown.figure.layout.annotations]
    assert len(titles) == 6
    assert titles[4] == "layers: 1 in fp8-blocks, 1 in fp32 (dark: fewest bits); 1 x taken back ▼"
    assert titles[5].startswith("75 % of operations below fp32")
    [heat] = [trace for trace in shown.figure.data if trace.type == "heatmap"]
    down, head = (list(row) for row in heat.z)
    assert down == [3, 0, 0, 0, 1, 1, 1, 1] and head == [3] * 8
    assert "step 5 was taken back to 4: a norm" in repr(shown)
    covered = figures.training_figure(with_precision(), covers="covered")
    assert "taken back" not in repr(covered) and len(covered.figure.layout.annotations) == 4


def test_a_state_that_catches_up_has_its_own():
    state, other = RunState(), RunState(with_precision())
    state.catch_up(other)
    other.add(back(7, 6, {DOWN: "fp32"}))
    assert state.precision.now[DOWN] == "fp8-blocks" and other.precision.now[DOWN] == "fp32"


def test_the_figure_alone():
    shown = figures.precision(with_precision())
    assert [trace.type for trace in shown.figure.data] == ["heatmap", *["scatter"] * 3]
    assert shown.figure.layout.yaxis.ticktext == ("0 mlp.down", "head")
    with pytest.raises(ValueError, match="told of no formats"):
        figures.precision(recorded_run())


def test_a_long_run_has_few_columns():
    history = heard(decided())
    history.last = 5000
    steps = figures.precision_figure._columns(history)
    assert steps[0] == 0 and steps[-1] == 5000 and len(steps) <= figures.precision_figure.MOST + 1
