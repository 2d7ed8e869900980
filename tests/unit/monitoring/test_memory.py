"""What a run says of its live bytes, as panels.

Wrong versions these catch: a category that is drawn nowhere, columns read in another order, a rank
that needs little drawn for the one that needs most, a budget that is said to be kept and was not,
panels of a run that nobody looked at, two histories that share what they heard.
"""

import pytest
from recorded import recorded_run

from picolab.memory.watch import CATEGORIES
from picolab.monitoring import figures
from picolab.monitoring.events import Event
from picolab.monitoring.memory import SHOWN, MemoryHistory
from picolab.monitoring.run_state import RunState

STATES = {"parameters": 2, "gathered": 1, "optimizer": 4, "pool": 1}


def told(rank=0, step=1, activations=10):
    """An event of the monitor, of MB: activations grow and shrink over what is always there."""
    at_peak = dict.fromkeys(CATEGORIES, 0) | STATES | {"activations": activations}
    timeline = []
    for moment, share in enumerate((0, 0.5, 1, 0.2)):
        alive = at_peak | {"activations": int(share * activations)}
        timeline.append([moment / 1e3, *(1_000_000 * of for of in alive.values())])
    at_peak = {name: 1_000_000 * of for name, of in at_peak.items()}
    most = at_peak | {"total": sum(at_peak.values())}
    data = {"most": most, "at_peak": at_peak, "phases": {}, "kept": {}, "timeline": timeline}
    return Event("memory", rank, 0.0, {"step": step, **data})


def planned(budget, rank=0, peak=18_000_000):
    return Event("memory plan", rank, 0.0, {"budget": budget, "peak": peak})


def heard(*events):
    history = MemoryHistory()
    for event in events:
        history.add(event.kind, event.rank, event.data)
    return history


def test_every_category_of_the_monitor_is_drawn_once():
    drawn = [name for names in SHOWN.values() for name in names]
    assert sorted(drawn) == sorted(CATEGORIES)


def test_the_rank_that_needs_most_is_drawn():
    history = heard(told(0), told(1, activations=12), told(0, step=2), told(1, 2, 20))
    assert history.highest == 1 and history.ranks == [0, 1]
    assert history.peaks == {1: {0: 18_000_000, 1: 20_000_000}, 2: {0: 18_000_000, 1: 28_000_000}}
    moments = list(history.timeline(1))
    assert [seconds for seconds, _ in moments] == [0.0, 0.001, 0.002, 0.003]
    assert moments[2][1] == {
        "parameters": 3_000_000, "optimizer": 4_000_000, "gradients": 0,
        "activations": 20_000_000, "temporaries": 0, "buffers": 1_000_000,
    }  # fmt: skip
    shown = figures.memory_figure.drawn(history)
    names = list(SHOWN)
    assert list(shown.traces[names.index("activations")]["y"]) == [0, 10, 20, 4]
    assert list(shown.traces[len(names) + 2]["x"]) == [3, 3]  # parameters, as a bar of each rank
    assert shown.titles[0] == "rank 1, step 2: peak 28 MB"
    named = "parameters 11 %, optimizer 14 %, activations 71 %, buffers 4 %"
    assert shown.titles[1] == f"at the peak, from the left: {named}"


@pytest.mark.parametrize("budget, word", [(18_000_000, "kept"), (17_999_999, "NOT kept")])
def test_whether_the_budget_was_kept(budget, word):
    shown = figures.memory(RunState([planned(budget), told()]))
    assert f"budget of 18 MB {word}" in repr(shown) and "predicted 18 MB" in repr(shown)
    lines = [trace for trace in shown.figure.data if trace.name in ("budget", "predicted peak")]
    assert [trace.y[0] for trace in lines] == [18, budget / 1e6]
    assert [trace.showlegend for trace in lines] == [True, True]


def with_memory():
    return [*recorded_run(state=None), told(0), told(1)]


def test_only_a_run_that_was_looked_at_has_the_panels():
    plain = figures.training_figure(recorded_run())
    assert "MB alive" not in repr(plain) and len(plain.figure.layout.annotations) == 4
    shown = figures.training_figure(with_memory())
    titles = [note.text.replace("<br>", " ") for note in shown.figure.layout.annotations]
    assert titles[4] == "rank 0, step 1: peak 18 MB"
    assert titles[5].endswith("optimizer 22 %, activations 56 %, buffers 6 %")
    stacked = [trace for trace in shown.figure.data if getattr(trace, "stackgroup", None)]
    assert [trace.name for trace in stacked] == list(SHOWN)
    assert "rank 1 at its peak" in repr(shown)
    covered = figures.training_figure(with_memory(), covers="covered")
    assert "MB alive" not in repr(covered) and len(covered.figure.layout.annotations) == 4
    with pytest.raises(ValueError, match="told nothing of its memory"):
        figures.memory(recorded_run())


def test_a_state_that_catches_up_has_its_own():
    state, other = RunState(), RunState(with_memory())
    state.catch_up(other)
    other.add(told(0, step=3))
    assert state.memory.reports[0]["step"] == 1 and list(state.memory.peaks) == [1]
