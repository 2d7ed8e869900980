"""From events to the series, tables and the sentence of a run.

Wrong versions these tests catch: drawing a step that only some ranks have told, dividing traffic by
ranks or steps twice, naming a slowest rank where nobody waits, decimation that loses a spike, a
state that grows with the length of the run, a failure without its cause in the sentence.
"""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import entry, recorded_run

from picolab.monitoring import Event, History
from picolab.monitoring.figures import panels, run_state
from picolab.monitoring.run_state import WINDOW, RunState, decimate


def test_a_whole_run():
    state = RunState(recorded_run())
    assert sorted(state.losses) == list(range(20))
    assert state.speed() == pytest.approx(1024 / 0.15)
    assert state.traffic() == {
        "tp: column-parallel input gradient": (9, 9 * 262_144),
        "tp: row-parallel output": (8, 8 * 262_144),
        "dp: gradient bucket": (1, 1_900_000),
        "dp: loss": (1, 8),
    }


def test_the_split_names_the_slow_rank():
    state = RunState(recorded_run(slow_rank=2, slow_s=0.030))
    split = state.split()
    assert split[2].waiting_s == pytest.approx(0, abs=1e-9)
    assert split[2].compute_s == pytest.approx(split[0].compute_s + 0.030)
    for rank in (0, 1, 3):
        assert split[rank].waiting_s == pytest.approx(0.030)
    assert state.slowest() == (2, pytest.approx(0.030))
    assert "the others wait 30 ms for rank 2" in state.sentence()


def test_nobody_is_named_if_nobody_waits():
    state = RunState(recorded_run(slow_s=0.0))
    assert state.slowest() is None
    assert "no rank is much slower" in state.sentence()


@pytest.mark.parametrize("slow", range(4))
def test_any_rank_can_be_the_slow_one(slow):
    assert RunState(recorded_run(steps=3, slow_rank=slow)).slowest()[0] == slow


def test_a_step_counts_once_every_rank_has_told_it():
    events = recorded_run(steps=2, state=None)
    state = RunState(world_size=4)
    counted = []
    for event in events:
        state.add(event)
        counted.append(len(state.complete_steps()))
    # 1 state event, then a ledger and a step event for each of 4 ranks
    assert counted == [0] * 8 + [1] * 8 + [2]
    state = RunState(events[:8], world_size=4)
    assert state.traffic() == {} and state.split() == {}


def test_the_sentence_from_beginning_to_end():
    state = RunState()
    assert state.sentence() == "waiting for the first event"
    state.add(Event("status", -1, 0.0, {"text": "waiting for job 2"}))
    assert state.sentence() == "waiting for job 2"
    for event in recorded_run(steps=3, state=None):
        state.add(event)
    assert state.sentence().startswith("3 of 3 steps, loss ")
    failed = {"state": "failed", "error": "rank 1 failed: ValueError: no\n\nTraceback ..."}
    state.add(Event("state", -1, 0.0, failed))
    assert state.sentence().startswith("failed after 3 of 3 steps")
    assert state.sentence().endswith(": rank 1 failed: ValueError: no")


def test_a_run_that_ends_before_its_first_step():
    stopped = RunState([Event("state", -1, 0.0, {"state": "stopped"})])
    assert stopped.sentence() == "stopped before the first step"
    assert stopped.is_empty


def test_emitted_values_are_drawn_too():
    said = [Event("values", 3, 0.0, {"step": i, "loss": 5.0 - i, "other": "x"}) for i in range(3)]
    state = RunState(said)
    assert state.losses == {0: 5.0, 1: 4.0, 2: 3.0}
    assert state.sentence() == "3 steps, loss 3.000"


def test_collectives_outside_steps_are_a_ranks_totals():
    entries = [entry(r, None, "all_reduce", "world", (0, 1), 400, 1.0, 0.1, "x") for r in (0, 1)]
    events = [Event("ledger", e.rank, 0.0, {"entries": [e]}) for e in entries]
    state = RunState(events, world_size=2)
    assert state.traffic() == {"x": (1, 400)}
    assert state.sentence() == "400 B in collectives per rank"


def test_entries_that_were_written_as_json():
    events = [Event.from_json(event.to_json()) for event in recorded_run(steps=3)]
    assert RunState(events).split() == RunState(recorded_run(steps=3)).split()


def test_memory_does_not_grow_with_the_run():
    state = RunState(recorded_run(steps=4 * WINDOW, state=None))
    assert len(state._entries) <= WINDOW + 1
    assert len(state.complete_steps()) == WINDOW
    assert len(state.losses) == 4 * WINDOW


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200))
def test_decimation_keeps_the_extremes(values):
    x, y = decimate(list(range(len(values))), values, limit=20)
    assert len(x) <= 20
    assert max(y) == max(values) and min(y) == min(values)
    assert x == sorted(set(x)) and all(values[i] == v for i, v in zip(x, y))


def test_decimation_that_takes_every_nth_is_noticed():
    values = [0.0] * 3000
    values[1234] = 9.0
    every_nth = values[:: len(values) // 600]
    assert max(every_nth) == 0.0 and max(decimate(list(range(3000)), values)[1]) == 9.0


def test_decimation_survives_losses_that_are_not_numbers():
    values = [math.nan] * 1000
    x, y = decimate(list(range(1000)), values)
    assert 0 < len(x) <= 600 and all(math.isnan(v) for v in y)


def pipeline_run(slow_s=0.0, told=("1f1b", 8)):
    """One step of four stages that compute a second (the last `slow_s` more) and stand still for
    0.3 s: a part of it in a receive, the rest in the sum of the loss."""
    events = []
    for rank in range(4):
        late = slow_s if rank == 3 else 0.0
        begin, end = 0.3 - 0.1 * rank + slow_s - late, 1.4 + slow_s
        entries = [
            entry(
                rank, 0, "all_reduce", "pp", range(4), 8, end - 0.1 * rank, 0.1 * rank, "pp: loss"
            )
        ]
        if rank < 3:
            got = entry(rank, 0, "recv", "pp", range(4), 8, 1.0, begin, "pp: gradients")
            entries.append(got._replace(peer=rank + 1))
        if rank:
            sent = entry(
                rank, 0, "send", "pp", range(4), 8, 1.3 + slow_s, 0.0, "pp: gradients", exposed=0.0
            )
            entries.append(sent._replace(peer=rank - 1))
        events.append(Event("ledger", rank, 0.0, {"entries": entries}))
        if told:
            spans = [(kind, rank, m, 0.0, 1.0) for kind in "FB" for m in range(told[1])]
            events.append(
                Event("spans", rank, 0.0, {"step": 0, "spans": spans, "schedule": told[0]})
            )
        data = {"step": 0, "loss": 1.0, "seconds": 1.3 + slow_s, "layout": "pp4"}
        events.append(Event("step", rank, 0.0, data))
    return events


def test_stages_of_a_pipeline_wait_without_any_of_them_being_slow():
    """All compute equally long and wait for one another in turn: nobody is slow."""
    state = RunState(pipeline_run())
    split = state.split()
    assert [split[rank].bubble_s for rank in range(4)] == pytest.approx([0.3] * 4)
    assert [split[rank].waiting_s for rank in range(4)] == [0] * 4
    assert state.slowest() is None
    share, formula = state.bubble()
    assert share == pytest.approx(0.3 / 1.3) and formula == pytest.approx(3 / 11)
    assert state.sentence().endswith("loss 1.000, bubble 23 % of the step (formula 27 %)")
    assert panels(state).titles[2] == "bubble 23 % of the step (formula 27 %)"


def test_a_slow_stage_is_named_and_the_bubble_as_well():
    state = RunState(pipeline_run(slow_s=0.4))
    rank, waited = state.slowest()
    assert rank == 3 and waited == pytest.approx(0.4)
    assert "the others wait 400 ms for rank 3, bubble 35 % of the step" in state.sentence()
    title = panels(state).titles[2]
    assert title == "400 ms a step waiting for rank 3; bubble 35 %"


def test_a_run_that_tells_no_schedule_has_no_formula():
    assert RunState(pipeline_run(told=None)).sentence().endswith("bubble 23 % of the step")


def test_without_a_pipeline_nothing_is_said_of_a_bubble():
    assert RunState(recorded_run()).bubble() is None


def test_events_of_a_time_when_messages_named_no_peer_still_load(tmp_path):
    """Two ranks of a pipeline, as the ranks wrote them: an entry had twelve fields, and a step did
    not tell when it began. Nothing is invented: a receive is communication, and no bubble is
    measured that would stand beside the formula's."""
    ledger = (
        '{"kind": "ledger", "rank": %d, "t": 1.0, "data": {"entries": [[%d, 0, "%s", "pp", [0, 1], '
        '"float32", 512, 512.0, "pp: activations", %f, 0.5, %f], [%d, 0, "all_reduce", "pp", '
        '[0, 1], "float64", 8, 8.0, "pp: loss", %f, 0.2, 0.2]]}}\n'
    )
    step = (
        '{"kind": "step", "rank": %d, "t": 2.0, "data": {"step": 0, "steps": 1, "loss": 1.0, '
        '"tokens": 64, "seconds": 2.0, "layout": "pp2"}}\n'
    )
    for rank, op, start, exposed, meets in (
        (0, "send", 10.9, 0.0, 11.0),
        (1, "recv", 10.4, 0.5, 11.1),
    ):
        text = ledger % (rank, rank, op, start, exposed, rank, meets) + step % rank
        (tmp_path / f"events.{rank}.jsonl").write_text(text)
    history = History.read(tmp_path)
    assert [entry.peer for entry in history.ledger] == [None] * 4
    state = run_state(history)
    split = state.split()
    assert split[1].communication_s == pytest.approx(0.7) and split[1].bubble_s == 0
    assert split[0].bubble_s == pytest.approx(0.1)  # of the sum, whose ranks it does tell
    assert state.bubble() is None and "bubble" not in state.sentence()
    found = state.activity()
    assert found.messages == [] and panels(state).activity is None
    assert found.split()[1] == pytest.approx(split[1])
