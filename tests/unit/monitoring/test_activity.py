"""One step of all ranks in time, and the same as a Chrome trace.

Wrong versions these tests catch (kept below as mutants where they are code): intervals that overlap
or leave gaps, seconds that are not those of the split, waiting drawn after the transfer, an arrow
between the wrong two messages or from the wait instead of the issue of a send, slices that overlap
by rounding, half a file.
"""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import recorded_run
from test_step_split import entry, hop

from picolab.monitoring import Event, step_split
from picolab.monitoring import activity as module
from picolab.monitoring.activity import KINDS, activity
from picolab.monitoring.activity_figure import activity_figure
from picolab.monitoring.figures import panels, training_figure
from picolab.monitoring.run_state import RunState
from picolab.monitoring.trace import PIPELINE, RUN, chrome_trace, write_trace


def two_stages():
    """Rank 0 computes until 1.0 and sends; rank 1 stands in the receive from 0.2 on, and has it at
    1.1. It sends a gradient at 2.0, which rank 0 has at 2.3, having stood there since 1.0."""
    entries = [
        entry(0, 2.4, 1.4, op="send", axis="pp", peer=1, exposed=0.0),  # issued at 1.0
        entry(0, 1.0, 1.3, op="recv", axis="pp", peer=1),
        entry(1, 0.2, 0.9, op="recv", axis="pp", peer=0),
        entry(1, 2.3, 0.3, op="send", axis="pp", peer=0, exposed=0.0),  # issued at 2.0
    ]
    return activity(7, entries, {0: 3.0, 1: 3.0}, {0: 0.0, 1: 0.0})


def test_what_each_rank_did_when():
    found = [(i.rank, i.kind, round(i.start, 9), round(i.end, 9)) for i in two_stages().intervals]
    assert found == [
        (0, "compute", 0.0, 1.0),
        (0, "bubble", 1.0, 2.0),
        (0, "communication", 2.0, 2.3),
        (0, "compute", 2.3, 3.0),
        (1, "compute", 0.0, 0.2),
        (1, "bubble", 0.2, 1.0),
        (1, "communication", 1.0, 1.1),
        (1, "compute", 1.1, 3.0),
    ]


def test_a_message_goes_from_the_issue_of_its_send_to_the_end_of_its_receive():
    found = [m[:2] + tuple(round(t, 9) for t in m[-2:]) for m in two_stages().messages]
    assert found == [(0, 1, 1.0, 1.1), (1, 0, 2.0, 2.3)]


def test_a_rings_hop_is_a_message_to_the_right():
    entries = [*hop(0, 1.0, 1.2, 1.9), *hop(1, 1.0, 1.3, 1.9), *hop(2, 1.8, 1.8, 1.9)]
    found = step_split.messages_of(entries)
    assert {(m.source, m.target) for m in found} == {(0, 1), (1, 2), (2, 0)}
    assert all(m.received == pytest.approx(1.9) for m in found)


def test_a_message_of_which_one_end_is_unknown_is_not_drawn():
    old = [
        entry(0, 1.0, 0.1, op="send", axis="pp"),
        entry(1, 0.2, 0.9, op="recv", axis="pp"),
    ]
    assert step_split.messages_of(old) == []
    assert {i.kind for i in activity(0, old, {0: 2.0, 1: 2.0}).intervals} == {
        "compute",
        "communication",
    }


def check(found, seconds, split):
    """Nothing overlaps, nothing is missing, and the seconds are those of the split."""
    for rank, (start, end) in found.bounds.items():
        mine = [i for i in found.intervals if i.rank == rank]
        assert mine[0].start == start and mine[-1].end == end
        assert all(a.end == b.start for a, b in pairwise(mine))
        assert sum(i.seconds for i in mine) == pytest.approx(seconds[rank], abs=1e-9)
    for rank, parts in found.split().items():
        assert parts == pytest.approx(split[rank], abs=1e-9)


stays = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8)


@given(stays, stays, st.floats(0.001, 1))
def test_intervals_follow_one_another_and_add_up_to_the_split(left, right, rest):
    entries, seconds = [], {}
    for rank, of_rank in enumerate((left, right)):
        at = 5.0
        for computes, stands in of_rank:
            at += computes
            entries.append(entry(rank, at, stands))
            at += stands
        seconds[rank] = at + rest - 5.0
    found = activity(0, entries, seconds, {0: 5.0, 1: 5.0})
    check(found, seconds, step_split.step_split(entries, seconds))


def test_the_recorded_run():
    state = RunState(recorded_run())
    found = state.activity(3)
    seconds = state._seconds[3]
    # It does not say when a step began: its first collective is taken for that, and what it
    # computed before it comes at the end.
    check(found, seconds, step_split.step_split(state._entries[3], seconds))
    assert state.activity(99) is None and RunState().activity() is None
    assert panels(state).activity is None  # no pipeline: the dashboard has four panels


def test_a_transfer_that_is_drawn_before_the_wait_is_noticed(monkeypatch):
    monkeypatch.setattr(
        module,
        "waiting_of",
        lambda es: [(e, e.exposed_s - w) for e, w in step_split.waiting_of(es)],
    )
    with pytest.raises(AssertionError):
        test_what_each_rank_did_when()
    with pytest.raises(AssertionError):
        test_the_recorded_run()


def test_the_text_form_has_a_row_a_rank():
    shown = activity_figure(two_stages())
    lines = repr(shown).splitlines()
    assert lines[0] == "step 7: 3,000 ms, 63 % compute, 7 % communication, 30 % bubble; 2 messages"
    row = lines[1].removeprefix("rank 0 |").removesuffix("|")
    assert len(row) == 100
    assert row.count("#") == pytest.approx(57, abs=1) and row.count("=") == 10
    assert row.startswith("#" * 33) and row[34:66].isspace()


def test_the_picture_has_a_bar_trace_a_kind_and_arrows_across_the_gap():
    figure = activity_figure(two_stages()).figure
    by_name = {trace.name: trace for trace in figure.data}
    assert list(by_name) == ["compute", "communication", "bubble", "message"]
    assert list(by_name["bubble"].base) == [1000, 200] and list(by_name["bubble"].y) == [0, 1]
    assert list(by_name["bubble"].x) == pytest.approx([1000, 800])
    arrows = by_name["message"]
    assert list(arrows.x[:2]) == pytest.approx([1000, 1100])
    assert 0 < arrows.y[0] < arrows.y[1] < 1 and 0 < arrows.y[4] < arrows.y[3] < 1
    assert list(arrows.marker.size[:3]) == [0, 8, 0]


def pipeline_events():
    entries = [i.entry for i in two_stages().intervals if i.kind == "communication"]
    sends = [
        entry(0, 2.4, 1.4, op="send", axis="pp", peer=1, exposed=0.0),
        entry(1, 2.3, 0.3, op="send", axis="pp", peer=0, exposed=0.0),
    ]
    events = [Event("ledger", e.rank, 0.0, {"entries": [e]}) for e in [*entries, *sends]]
    for rank in range(2):
        data = {"step": 0, "loss": 1.0, "seconds": 3.0, "began": 0.0, "layout": "pp2"}
        events.append(Event("step", rank, 0.0, data))
    return events


def test_the_dashboard_has_a_fifth_panel_for_a_pipeline():
    state = RunState(pipeline_events(), world_size=2)
    shown = training_figure(state)
    figure = shown.figure
    assert len(figure.data) == 15
    assert figure.layout.annotations[4].text.startswith("step 0: 3,000 ms")
    assert [t.yaxis for t in figure.data[10:]] == ["y5"] * 5
    lower, upper = figure.layout.yaxis5.domain
    assert 0 < lower < upper < figure.layout.yaxis3.domain[0] < figure.layout.yaxis.domain[0] < 1
    four = training_figure(recorded_run()).figure
    assert figure.layout.height > four.layout.height and len(four.data) == 10
    assert "rank 0 |###" in repr(shown)


# -- the trace


def slices(trace, category, rank, pid=RUN):
    return [
        e
        for e in trace["traceEvents"]
        if e["ph"] == "X" and (e["cat"], e["tid"], e["pid"]) == (category, rank, pid)
    ]


def check_trace(trace, found):
    """Slices of a thread follow one another or lie in each other, to the nanosecond; their
    durations are the split's; flows begin and end as the messages do."""
    for rank, parts in found.split().items():
        inner = []
        for kind, seconds in zip(KINDS, parts):
            mine = slices(trace, kind, rank)
            inner += mine
            assert sum(e["dur"] for e in mine) == pytest.approx(1e6 * seconds, abs=1e-3 * len(mine))
        inner.sort(key=lambda e: e["ts"])
        assert all(round(1e3 * (a["ts"] + a["dur"] - b["ts"])) == 0 for a, b in pairwise(inner))
        (step,) = slices(trace, "step", rank)
        assert step["ts"] == inner[0]["ts"]
        assert step["dur"] == pytest.approx(sum(e["dur"] for e in inner), abs=1e-6)
    ends = {}
    for event in trace["traceEvents"]:
        if event["ph"] in "sf":
            ends.setdefault(event["id"], {})[event["ph"]] = event["tid"], event["ts"]
    assert len(ends) == len(found.messages)
    for ends_of, message in zip(ends.values(), found.messages):
        for (rank, ts), (who, time) in zip(
            (ends_of["s"], ends_of["f"]),
            ((message.source, message.sent), (message.target, message.received)),
        ):
            assert rank == who and ts == pytest.approx(1e6 * (time - found.start), abs=1e-3)
            around = (e for e in slices(trace, "step", rank))
            assert any(e["ts"] <= ts <= e["ts"] + e["dur"] for e in around)


def test_the_trace_has_the_durations_and_the_messages():
    found = two_stages()
    trace = chrome_trace([found], [(0, "F", 0, 0, 0.0, 1.0)], name="tiny on pp2")
    check_trace(trace, found)
    named = {(e["name"], e["pid"], e["tid"]): e["args"]["name"] for e in trace["traceEvents"][:5]}
    assert named["process_name", RUN, 0] == "tiny on pp2"
    assert named["thread_name", RUN, 1] == "rank 1"
    (forward,) = slices(trace, "forward", 0, PIPELINE)
    assert (forward["name"], forward["ts"], forward["dur"]) == ("F0", 0, 1e6)
    # Mutant: an arrow whose ends are swapped.
    for event in trace["traceEvents"]:
        event["ph"] = {"s": "f", "f": "s"}.get(event["ph"], event["ph"])
    with pytest.raises(AssertionError):
        check_trace(trace, found)


def test_a_trace_is_written_whole_or_not_at_all(tmp_path):
    trace = chrome_trace([two_stages()])
    path = write_trace(tmp_path / "run.json", trace)
    assert json.loads(path.read_text()) == trace
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]
    with pytest.raises(TypeError):
        write_trace(path, {"traceEvents": [object()]})
    assert json.loads(path.read_text()) == trace
    with pytest.raises(ValueError, match=r"run\.html\.json"):
        write_trace(tmp_path / "run.html", trace)
