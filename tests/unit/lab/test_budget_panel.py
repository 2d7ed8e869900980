"""The slider of budgets, with real widgets and real runs.

Wrong versions these catch: a budget that cannot be kept is offered, the reason of another plan, a
callback that waits for its run, a second press that starts a second run, a stop that needs
something to stop, a run that is said to have kept a budget it passed.
"""

import time

import pytest

import picolab as pico
from picolab.lab import budget_panel as module_or_function
from picolab.lab.budget_panel import BudgetPanel, _against_budget
from picolab.monitoring.run_state import RunState

FAST = dict(layers=2, hidden=32, heads=4, kv_heads=2, ffn=48, seq=32, micro_batch=4, data="random")


def until(holds, what, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def shown():
    return pico.budget_panel("tiny", steps=3, live=True, **FAST)


def test_it_is_a_function():
    assert module_or_function is pico.budget_panel and callable(pico.budget_panel)


def test_only_budgets_that_can_be_kept_are_offered(shown):
    (stage,) = shown.stages
    offered = [budget for _, budget in shown._widgets.slider.options]
    assert offered == shown.budgets and offered == sorted(offered)
    assert offered[0] == stage.frontier[0][0] and offered[-1] == stage.frontier[-1][0]
    for budget in offered:
        shown.choose(budget)
    with pytest.raises(ValueError, match="the least is"):
        shown.choose(offered[0] - 1)


def test_the_plan_and_why_it_is_no_faster_one(shown):
    (stage,) = shown.stages
    shown._widgets.slider.value = shown.budgets[-1]
    assert "everything is kept" in shown.table().title
    assert [row[1] for row in shown.table().rows] == ["keep", "keep"]
    shown._widgets.slider.value = shown.budgets[0]
    table = shown.table()
    assert [row[1] for row in table.rows] == stage.frontier[0][2]
    assert "the next faster plan" in table.title and "too much" in table.title
    assert table._repr_html_() == shown._widgets.plan.value


def test_run_watch_and_stop(shown):
    assert shown.stop() == "nothing is running"
    shown.choose(shown.budgets[6])
    shown._widgets.run.click()
    assert "a run is still going" in shown.run() or shown.job.done
    until(lambda: not shown._busy, "the run")
    shown.wait()
    assert f"the budget of {pico.show.table.bytes_text(shown.budgets[6])} was kept" in shown.message
    assert shown.result.config.memory_budget == shown.budgets[6]
    assert shown._widgets.stop.disabled
    shown._settings["steps"] = 4000
    shown.run()
    assert not shown._widgets.stop.disabled
    until(lambda: shown.job.events, "its first event")
    shown._widgets.stop.click()
    until(lambda: not shown._busy, "the stop")
    assert shown.job.state == "stopped" and shown.result is None
    shown._settings["steps"] = 3


def test_without_a_front_end_it_is_a_table():
    shown = pico.budget_panel("tiny", "pp2", steps=2, autorun=True, accumulate=2, **FAST)
    assert isinstance(shown, BudgetPanel) and shown._widgets is None
    assert "K keeps, S recomputes" in repr(shown) and "stage 0: peak" in repr(shown)
    assert len(shown.stages) == 2 and "was kept" in shown.message
    with pytest.raises(ValueError, match="the panel's slider chooses"):
        pico.budget_panel("tiny", memory_budget="40MB")


def test_a_budget_that_was_passed_is_not_called_kept():
    state = RunState()
    assert _against_budget(state, 100) == ""
    state.memory.peaks = {1: {0: 90, 1: 101}}
    assert "NOT kept" in _against_budget(state, 100)
    assert "was kept" in _against_budget(state, 101)
