"""The chapter's figures, its switchboard and its night on call: each says what is so.

Wrong versions these catch: an area that is not a chance, a fault that is on before its step or on
another rank, a score that counts another rank's finding.
"""

import json
import math

import pytest

import picolab as pico
from picolab.chapters import c06_monitoring as chapter
from picolab.chapters.c06_monitoring import night
from picolab.chapters.c06_monitoring.live_faults import FAULTS, Switched
from picolab.chapters.c06_monitoring.night import KINDS, Case, Scored
from picolab.monitoring import Event
from picolab.monitoring.anomalies import Anomaly

SMALL = dict(layers=1, seq=16, hidden=16, heads=2, kv_heads=2, ffn=24, micro_batch=2, data="random")


def test_the_area_is_the_chance_that_a_faulty_window_has_more():
    quiet, faulty = [1, 2, 3, 4], [2.5, 3.5, 4.5, 5.5]
    points = [
        (sum(q > limit for q in quiet) / 4, sum(f > limit for f in faulty) / 4)
        for limit in (0, 1.5, 2.2, 2.7, 3.2, 3.7, 4.2, 5, 6)
    ]
    chance = sum(f > q for f in faulty for q in quiet) / 16
    assert chapter.area(points) == pytest.approx(chance)
    assert chapter.area([(0.5, 0.5)]) == 0.5


def test_the_slider_moves_a_point_on_each_curve():
    curves = {"a": [(1.0, 1.0), (0.2, 0.9)], "b": [(1.0, 1.0), (0.1, 0.5)]}
    shown = chapter.roc_figure([1.0, 1.1], curves)
    assert "a: 0.850 of the area; b: 0.700 of the area" in repr(shown)
    [slider] = shown.figure.layout.sliders
    data, which = slider.steps[1].args
    assert (data["x"], data["y"], list(which)) == ([[0.2], [0.1]], [[0.9], [0.5]], [2, 3])
    assert [shown.figure.data[i].mode for i in which] == ["markers", "markers"]
    with pytest.raises(ValueError, match="a point at each threshold"):
        chapter.roc_figure([1.0], curves)


def step_event(rank: int, step: int, loss: float) -> Event:
    said = {"step": step, "own_loss": loss, "own_grad_norm": 0.5, "seconds": 0.02, "data_s": 0.001}
    return Event("step", rank, float(step), said)


def test_a_case_shows_each_ranks_own_numbers():
    events = [step_event(r, s, 3.0 + r) for s in range(40) for r in (0, 1)]
    events[-1] = step_event(1, 39, math.nan)
    shown = night.case_figure(events, "Run 7")
    assert "Run 7" in repr(shown)
    assert [trace.name for trace in shown.figure.data] == ["rank 0"] * 4 + ["rank 1"] * 4
    assert list(shown.figure.data[4].y[:38]) == [4.0] * 38
    assert list(shown.figure.data[2].y[:2]) == [20.0, 20.0]  # ms, in no collective


SLOW = Anomaly("slow rank", 45, (2,), "")


@pytest.mark.parametrize(
    "found, right, accused",
    [
        ([SLOW], True, 0),
        ([SLOW._replace(ranks=(1,))], False, 1),
        ([SLOW._replace(step=10)], False, 0),
        ([SLOW._replace(name="late data")], False, 0),
        ([SLOW, Anomaly("leak", 50, (0,), "")], True, 1),
        ([Anomaly("busy host", 12, (), "")], False, 0),
    ],
    ids=["right", "another rank", "before it began", "another name", "and another", "nobody"],
)
def test_a_finding_is_scored_by_name_rank_and_step(found, right, accused):
    case = Case("slow pace", rank=2, at=40, anomalies=tuple(found))
    assert (case.right, case.accused) == (right, accused)


def test_where_nothing_is_wrong_nobody_is_to_be_named():
    assert Case(None, 0, 0, anomalies=(Anomaly("busy host", 3, (), ""),)).right
    assert not Case(None, 0, 0, anomalies=(SLOW,)).right


def test_the_score_is_of_what_was_guessed_when_it_is_looked_at():
    case = Case("slow pace", rank=2, at=40, anomalies=(SLOW,))
    asked = pico.guess("test.call.1", "?", choices=list(KINDS.values()))
    scored = Scored([case], [asked])
    assert "You: 0 of 1. The monitor: 1" in repr(scored)
    asked.answer(KINDS["slow pace"])
    assert "You: 1 of 1. The monitor: 1" in repr(scored)
    assert scored.table().rows[0][4:] == ["right", 5, 0]


def test_a_night_is_drawn_by_its_seed(monkeypatch):
    monkeypatch.setattr(night, "_happens", lambda *_: None)

    def drawn(seed):
        return [(c.fault, c.rank, c.at) for c in chapter.on_call(seed, "dp4").cases]

    assert drawn(1) == drawn(1) != drawn(2)
    assert len({fault for fault, *_ in drawn(1)}) == 5


@pytest.fixture
def at_step(monkeypatch):
    from types import SimpleNamespace

    from picolab.chapters.c06_monitoring import live_faults
    from picolab.debug import run_faults

    ledger = SimpleNamespace(step=None)
    for module in (live_faults, run_faults):
        monkeypatch.setattr(module.comm, "ledger", lambda: ledger)
    monkeypatch.setattr(run_faults.dist, "get_rank", lambda: 1)

    def go(step):
        ledger.step = step

    return go


def test_a_fault_is_on_from_its_step_and_on_its_rank(tmp_path, at_step):
    order = tmp_path / "order.json"
    order.write_text("{}")
    fault = Switched("slow pace", order, 0.01)
    seen = []
    for step in range(8):
        at_step(step)
        seen.append((fault.mine and fault.since, fault.mine and fault.now))
        if step == 2:
            order.write_text(json.dumps({"fault": "slow pace", "rank": 1, "step": 4}))
        if step == 5:
            order.write_text("{}")
    assert [since for since, _ in seen] == [False] * 4 + [True] * 2 + [False] * 2
    assert [now for _, now in seen] == [False] * 4 + [True] + [False] * 3
    for other in ({"fault": "late data", "rank": 1, "step": 0},
                  {"fault": "slow pace", "rank": 0, "step": 0}):  # fmt: skip
        order.write_text(json.dumps(other))
        at_step(9 + other["rank"])
        assert not (fault.mine and fault.since)


def test_a_press_reaches_a_run_that_is_going_on():
    board = chapter.switchboard("dp2", steps=2000, pace_s=0.02, **SMALL)
    assert set(FAULTS) > {"slow pace", "dead rank"}
    for wrong, says in ((("leak", 0), "has no button"), (("slow pace", 2), "ranks 0 to 1")):
        with pytest.raises(ValueError, match=says):
            board.press(*wrong)
    assert board.press("dead rank", 1).startswith("kill on rank 1, from step")
    with pytest.raises(pico.RankFailure, match="rank 1"):
        board.job.result()
    assert "monitor: dead rank" in repr(board.report())
    assert "has ended" in board.press("slow pace", 0)


def test_one_bit_of_one_weight_is_found():
    flip = chapter.nudged("layers.0.mlp.down.weight", rank=1, at=1)
    observers = [flip, pico.trace_step(2)]
    run = pico.train("tiny", "dp2", steps=3, observers=observers, progress=False, **SMALL)
    found = pico.compare_steps(run)
    assert not found and found.first.point.name == "layers.0.mlp.down.weight"
    with pytest.raises(ValueError, match="the number of a step"):
        chapter.nudged("norm.weight", rank=0, at=-1)


def test_a_cell_that_is_run_again_finds_the_function_again(monkeypatch):
    """(A module of the same name would take its place as soon as it is imported.)"""
    monkeypatch.setattr(night, "_happens", lambda *_: None)
    for _ in range(2):
        chapter.on_call(1), chapter.nudged("a", rank=0, at=0)
    assert all(callable(getattr(chapter, name)) for name in chapter.__all__ if name != "CHAPTER")
