"""What a run has told of its experts, and the figure of it.

Wrong versions these catch: an average of ranks for the slowest, ranks of several ep groups mixed,
seconds that have the exchange in them, layers of a later pipeline stage that replace those of an
earlier one, a history that grows for ever, panels for a run without experts.
"""

import pytest
from recorded import recorded_run

from picolab.monitoring import experts as module
from picolab.monitoring import figures
from picolab.monitoring.events import Event
from picolab.monitoring.experts import ExpertHistory, slow_down
from picolab.monitoring.ledger import Entry
from picolab.monitoring.run_state import RunState

THERE, BACK = "ep: rows to experts", "ep: rows back"


def entry(rank, reason, start, exposed, payload, ranks=(0, 1), step=0):
    """A blocking exchange."""
    return Entry(
        rank, step, "all_to_all", "ep", ranks, "float32", payload, payload / 2, reason, start,
        exposed, exposed,
    )  # fmt: skip


def exchanges(rows, seconds, ranks=(0, 1)):
    """Rows have come at 1.0 on all ranks, who send them back when they are done."""
    told = []
    for rank, payload, took in zip(ranks, rows, seconds):
        told.append(entry(rank, THERE, 0.5, 0.5, 7, ranks))
        told.append(entry(rank, BACK, 1.0 + took, max(seconds) - took + 0.1, payload, ranks))
    return told


def test_the_slowest_rank_against_the_mean():
    found = slow_down(exchanges([300, 100], [0.6, 0.2]))
    assert found.predicted == pytest.approx(1.5) and found.measured == pytest.approx(1.5)
    even = slow_down(exchanges([200, 200], [0.3, 0.5]))
    assert even.predicted == 1 and even.measured == pytest.approx(1.25)


def test_groups_are_told_apart():
    both = exchanges([300, 100], [0.6, 0.2]) + exchanges([100, 100], [0.2, 0.2], (2, 3))
    found = slow_down(both)
    assert found.predicted == pytest.approx((300 + 100) / (200 + 100))
    assert found.measured == pytest.approx((0.6 + 0.2) / (0.4 + 0.2))


def test_without_ranks_of_ep_or_half_told_there_is_none():
    assert slow_down([]) is None
    assert slow_down(exchanges([300, 100], [0.6, 0.2])[:-1]) is None


def told(step, loads, dropped=0, rank=0):
    data = dict(step=step, loads=loads, dropped=[dropped] * len(loads), imbalance=[])
    return Event("experts", rank, 0.0, data)


def test_loads_of_all_stages_and_what_they_say():
    history = ExpertHistory()
    history.add(told(0, {0: [4, 0, 0, 0]}, 1).data)
    history.add(told(0, {"2": [1, 1, 1, 1]}, 3).data)  # keys are words in a file
    assert history.layers == [0, 2]
    assert history.shares(0) == {0: [4, 0, 0, 0], 2: [1, 1, 1, 1]}
    assert history.evenness(0) == pytest.approx(0.5)  # of 0 and 1
    assert history.busiest(0) == 4 and history.dropped_share(0) == 0.5


def test_a_long_run_is_thinned_out(monkeypatch):
    monkeypatch.setattr(module, "MOST", 8)
    history = ExpertHistory()
    for step in range(100):
        history.add(told(step, {0: [1, 1]}).data)
    assert 4 <= len(history.steps) <= 8
    gaps = {b - a for a, b in zip(history.steps, history.steps[1:])}
    assert len(gaps) == 1 and set(history.dropped) == set(history.steps)


def with_experts(steps=4):
    found = []
    for event in recorded_run(steps=steps):
        if event.kind == "step" and event.rank == 0:
            found.append(told(event.data["step"], {0: [6, 2], 1: [4, 4]}, dropped=1))
        found.append(event)
    return found


def test_only_a_run_with_experts_has_the_panels():
    plain = figures.training_figure(recorded_run())
    assert "experts" not in repr(plain) and len(plain.figure.layout.annotations) == 4
    assert "xaxis6" not in plain.figure.layout.to_plotly_json()
    shown = figures.training_figure(with_experts())
    titles = [note.text for note in shown.figure.layout.annotations]
    assert len(titles) == 7 and "busiest expert: 1.5 times" in titles[4].replace("<br>", " ")
    assert "dropped 12.5 %" in titles[5] and "rows stay here" in titles[6].replace("<br>", " ")
    heat = [trace for trace in shown.figure.data if trace.type == "heatmap"]
    first, second, between, *others = (list(row) for row in heat[0].z)
    assert first == [1.5] * 4 and second == [0.5] * 4 and others == [[1] * 4, [1] * 4]
    assert all(value is None for value in between)  # nothing: it parts the layers
    assert "busiest expert / even" in repr(shown)
    covered = figures.training_figure(with_experts(), covers="covered")
    assert "busiest" not in repr(covered) and len(covered.figure.layout.annotations) == 4


def test_a_state_that_catches_up_has_its_own():
    state, other = RunState(), RunState(with_experts())
    state.catch_up(other)
    other.add(told(4, {0: [1, 1], 1: [1, 1]}))
    assert state.experts.steps == [0, 1, 2, 3] and other.experts.steps[-1] == 4


def test_the_figure_alone():
    shown = figures.experts(with_experts())
    assert [trace.type for trace in shown.figure.data] == ["heatmap", *["scatter"] * 4]
    assert shown.figure.layout.yaxis.ticktext == ("layer 0", "layer 1")
    with pytest.raises(ValueError, match="told of no experts"):
        figures.experts(recorded_run())
