"""Events, beacon, ledger and tables, without torch and without ranks.

Wrong versions these catch: an emit that does something outside a rank, a beacon that tears (a
long line overrunning the counters), a ledger that sends entries twice."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picolab.monitoring import Entry, Event, Ledger, Table, emit, events
from picolab.monitoring.beacon import KEPT, Beacon, read, read_calls
from picolab.monitoring.ledger import RankLedger
from picolab.show.table import bytes_text, show


def entry(rank=0, step=None, op="all_reduce", axis="tp", payload=100, reason="why", exposed=0.5):
    return Entry(
        rank, step, op, axis, (0, 1), "float32", payload, payload, reason, 0.0, 1.0, exposed
    )


def test_an_event_survives_its_json_line():
    event = Event("step", 3, 12.5, {"loss": 1.25, "step": 7})
    assert Event.from_json(event.to_json()) == event


def test_values_that_json_does_not_know_are_written_all_the_same():
    line = Event("values", 0, 0.0, {"what": {1, 2}.__class__, "n": float("inf")}).to_json()
    assert "class" in json.loads(line)["data"]["what"]


def test_emit_is_a_no_op_until_somebody_records():
    emit(loss=1.0)
    seen = []
    events.start_recording(2, seen.append)
    try:
        emit(loss=1.0, kind="a name of the learner's", rank="another")
    finally:
        events.stop_recording()
    emit(loss=2.0)
    (event,) = seen
    assert (event.kind, event.rank, event.data["loss"]) == ("values", 2, 1.0)
    assert event.data["kind"] == "a name of the learner's"


@given(st.lists(st.text(max_size=700), max_size=20))
def test_the_beacon_shows_the_last_line_and_the_counts(lines):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "beacon.0"
        assert read(path) == (0, 0, "", 0)  # not there yet
        beacon = Beacon(path)
        for i, line in enumerate(lines, start=1):
            beacon.enter(line)
            reading = read(path)
            assert reading.entered == i and reading.inside and reading.left == i - 1
            shown = line.encode()[:490].split(b"\0")[0].decode(errors="ignore")
            assert reading.text.startswith(shown)
            beacon.leave()
            assert not read(path).inside


def test_questions_to_a_ledger():
    ledger = Ledger(
        [
            entry(0, 0, payload=100, reason="small"),
            entry(0, 1, payload=300, reason="large"),
            entry(1, 0, payload=100, reason="small", op="send"),
        ]
    )
    assert len(ledger) == 3 and len(ledger.rank(0)) == 2 and len(ledger.step(0)) == 2
    total = ledger.total(rank=0)
    assert (total.count, total.payload_bytes, total.seconds) == (2, 400, 1.0)
    assert list(ledger.by_reason()) == ["large", "small"]
    text, shown = repr(ledger.by_reason()), ledger.by_reason()._repr_html_()
    assert "Totals" not in text and text.split("\n")[2].startswith("large") and "<table" in shown
    assert str(ledger.by_reason()) == text  # what print shows
    assert ledger.by("op", "reason")[("send", "small")].count == 1
    rows = ledger.table().rows
    assert rows[0][:5] == ["all_reduce", "tp", "large", 1, 300] and len(rows) == 3
    with pytest.raises(ValueError, match="has no field"):
        ledger.where(size=3)
    assert "3 collectives of 2 rank(s)" in repr(ledger)
    assert "0 collectives" in repr(Ledger())


def test_a_flush_sends_what_is_new_once():
    ledger, seen = RankLedger(), []
    events.start_recording(0, seen.append)
    try:
        for i in range(3):
            start = ledger.enter("x")
            ledger.record("all_reduce", "tp", (0, 1), "float32", i, 0.0, "r", start, 0.0, 0.0)
            ledger.flush()
            ledger.flush()
    finally:
        events.stop_recording()
    assert [len(event.data["entries"]) for event in seen] == [1, 1, 1]
    assert [e.payload_bytes for e in ledger.snapshot()] == [0, 1, 2]
    # Mutant: a flush that always sends everything would have sent 1, 2, 3 entries.


def test_a_table_reads_the_same_as_text_and_as_html():
    table = Table(["name", "bytes"], [["a <b>", 1_234_567], ["c", None]], "a title")
    assert repr(table).splitlines() == [
        "a title",
        "name       bytes",
        "------ ---------",
        "a <b>  1,234,567",
        "c",
    ]
    html = table._repr_html_()
    assert "a &lt;b&gt;" in html and "1,234,567" in html and "<b>" not in html
    floats = [0.123456, 999.5, 2730.7, 12_345.6]  # thousands are set apart in every column
    assert [show(value) for value in floats] == ["0.1235", "999.5", "2,731", "12,346"]
    assert [bytes_text(n) for n in (0, 999, 3_200_000, 2.5e9)] == [
        "0 B",
        "999 B",
        "3.2 MB",
        "2.5 GB",
    ]


@pytest.mark.parametrize("mutant", [False, True])
def test_two_entries_of_one_collective_leave_it_once(mutant, tmp_path):
    """An exchange is entered once and recorded twice. Mutant: counting both."""
    ledger, entry = RankLedger(), ("cp", (0, 1), "float32", 4, 4.0, "r")
    ledger.attach(0, Beacon(tmp_path / "beacon"))
    start = ledger.enter("a hop", "cp")
    ledger.record("send", *entry, start, 0.0, 0.0)
    ledger.record("recv", *entry, start, 0.0, 0.0, leaves=mutant)
    assert read(tmp_path / "beacon").left == (2 if mutant else 1)


@pytest.mark.parametrize("mutant", [False, True])
def test_a_rank_is_inside_a_call_while_it_stands_still_in_it(mutant, tmp_path):
    """Two hops under way: whoever issues one and computes is in none, and whoever waits is in the
    one that it waits for, though it entered another since. Mutant: inside is whatever is under
    way, so a rank that loops for ever beside a bucket that travels is as innocent as the others."""
    path, ledger = tmp_path / "beacon", RankLedger()
    entry = ("cp", (0, 1), "float32", 4, 4.0, "r")
    ledger.attach(0, Beacon(path))
    ledger.step = 7

    def inside():
        reading = read(path)
        return reading.entered > reading.left if mutant else reading.inside

    start = ledger.enter("the first hop", "cp")
    assert inside()
    first = ledger.go_on()
    ledger.enter("another hop", "cp")
    ledger.go_on()
    assert inside() is mutant and read(path).text == "another hop"
    ledger.stand_still(first)
    assert inside() and read(path).text == "the first hop" and read(path).waits == 1
    ledger.record("send", *entry, start, 0.0, 0.0)
    assert inside() is mutant
    calls = [(call.place, call.number, call.step) for call in read_calls(path)]
    assert calls == [(1, 1, 7), (2, 2, 7)]


def test_calls_are_numbered_in_their_group_and_the_newest_are_kept(tmp_path):
    ledger = RankLedger()
    ledger.attach(0, Beacon(tmp_path / "beacon"))
    for i in range(70):
        ledger.enter(f"call {i}", "tp" if i % 2 else "dp")
    ledger.enter("a batch")
    calls = read_calls(tmp_path / "beacon")
    assert len(calls) == KEPT and calls[-1] == (71, 0, None, "a batch")
    assert calls[-2] == (70, 35, None, "call 69") and calls[0].place == 71 - KEPT + 1
