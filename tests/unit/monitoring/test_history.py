"""A history of which most is on disk answers like the list of all events.

Wrong versions these catch: a history that keeps everything (its memory grows with the run), totals
that forget what was folded or count it twice, a step that is answered with the half of it that is
still in memory, a run that finds another run's events in its directory, a picture that begins in
the middle of the run, silence where events are nowhere any more.
"""

import itertools
import math
import pickle
import sys
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorded import recorded_run

from picolab.monitoring import Entry, Event, History, Ledger, history
from picolab.monitoring.event_files import lengths
from picolab.monitoring.events import start_recording, stop_recording
from picolab.monitoring.figures import run_state
from picolab.monitoring.ledger import Folded, RankLedger, Totals
from picolab.monitoring.run_state import RunState

STEPS = 40
QUESTIONS = [
    *itertools.chain.from_iterable(
        itertools.combinations(("rank", "op", "axis", "reason"), n) for n in range(5)
    ),
    ("ranks", "dtype"),
    ("step",),
    ("rank", "payload_bytes"),
]


@pytest.fixture(autouse=True)
def little_room(monkeypatch):
    """About six steps of `recorded_run` are kept whole."""
    monkeypatch.setattr(history, "KEPT", 600)


def told(events, folder):
    """A history of these events, which lie on disk as their ranks would have written them."""
    found = History(folder, lengths(folder))
    for event in events:
        if event.rank >= 0:
            with open(folder / f"events.{event.rank}.jsonl", "a") as file:
                file.write(event.to_json() + "\n")
        found.add(event)
    return found


def whole_ledger(events):
    return Ledger(e for event in events if event.kind == "ledger" for e in event.data["entries"])


def assert_same(found: dict, expected: dict) -> None:
    """Counts and bytes to the last digit; sums of n times, added in another order, to n eps."""
    assert set(found) == set(expected)
    for key, totals in expected.items():
        assert found[key][:3] == totals[:3], key
        within = totals.count * sys.float_info.epsilon
        assert found[key].seconds == pytest.approx(totals.seconds, rel=within, abs=0)


@pytest.fixture
def events():
    """With collectives before, between and after the steps."""
    events = recorded_run(steps=STEPS)
    extra = [
        entry._replace(step=None, reason="gather", payload_bytes=size)
        for entry, size in zip(whole_ledger(events[:3]), range(1, 4))
    ]
    for at in (2, len(events) // 2, len(events) - 1):
        events.insert(at, Event("ledger", 0, 0.0, {"entries": extra}))
    return [event._replace(t=float(at)) for at, event in enumerate(events)]


@pytest.fixture
def long(events, tmp_path):
    found = told(events, tmp_path)
    assert found.older > len(events) / 2
    return found


def test_a_short_run_is_kept_whole():
    events = recorded_run(steps=3)
    found = History()
    for event in events:
        found.add(event)
    assert found.older == 0 and repr(found) == repr(events)
    assert list(found) == events and len(found) == len(events) and found[-1] == events[-1]
    assert found.ledger.entries == whole_ledger(events).entries
    assert not History() and not History()[:]


def test_a_long_run_reads_like_the_list_of_all_its_events(events, long, tmp_path):
    assert list(long) == events and len(long) == len(events)
    assert repr(long).endswith(f"are in memory, all of them in {tmp_path}")
    assert [event.data for event in long.where("step", 1)] == [
        event.data for event in events if event.kind == "step" and event.data["step"] == 1
    ]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_part_of_it(events, long, data):
    part = data.draw(st.slices(len(events)))
    assert long[part] == events[part]
    place = data.draw(st.integers(-len(events), len(events) - 1))
    assert long[place] == events[place]


def test_a_place_that_is_not_there(long):
    with pytest.raises(IndexError):
        long[len(long)]


@pytest.mark.parametrize("names", QUESTIONS, ids=" ".join)
def test_totals_of_the_whole_run_are_exact(events, long, names):
    assert_same(long.ledger.by(*names), whole_ledger(events).by(*names))


def test_questions_to_the_ledger_of_a_long_run(events, long):
    ledger, whole = long.ledger, whole_ledger(events)
    assert len(ledger) == len(whole) and list(ledger) == ledger.entries == whole.entries
    for fields in (
        {"rank": 2},
        {"rank": 0, "reason": "dp: loss"},
        {"step": None},
        {"axis": "pp"},
        {"payload_bytes": 8},
        {"step": 1},
        {"step": STEPS - 1},
        {"step": STEPS},
        {"rank": 3, "step": 7, "op": "all_reduce"},
    ):
        found, expected = ledger.where(**fields), whole.where(**fields)
        assert len(found) == len(expected), fields
        assert_same({(): found.total()}, {(): expected.total()})
        assert found.entries == expected.entries, fields
    assert len(ledger.in_steps()) == len(whole) - 9
    assert_same(ledger.in_steps().rank(0).by("reason"), whole.in_steps().rank(0).by("reason"))
    assert [row[:6] for row in ledger.table().rows] == [row[:6] for row in whole.table().rows]
    assert repr(ledger).startswith(repr(whole)) and "newest" in repr(ledger)
    assert "newest" not in repr(ledger.step(1))


def test_a_step_that_is_half_in_memory_is_whole(events, long):
    """Where the line between disk and memory goes through a step. The mutant asks memory only."""
    halved = long._folded.last_step
    newest = [event for event in long[long.older :] if event.kind == "ledger"]
    in_memory = len(whole_ledger(newest).step(halved))
    assert 0 < in_memory < len(whole_ledger(events).step(halved))
    assert len(long.ledger.step(halved)) == len(whole_ledger(events).step(halved))


@pytest.mark.parametrize(
    "times", [pytest.param(0, id="forgets"), pytest.param(2, id="counts twice")]
)
def test_wrong_totals_are_noticed(events, tmp_path, monkeypatch, times):
    add = Folded.add
    monkeypatch.setattr(Folded, "add", lambda self, entries: add(self, [*entries] * times))
    with pytest.raises(AssertionError):
        assert_same(told(events, tmp_path).ledger.by("rank"), whole_ledger(events).by("rank"))


def test_a_picture_that_is_asked_for_late_shows_the_whole_run(events, long):
    late, always = RunState(world_size=4), RunState(events, world_size=4)
    assert long.tell(late) and not long.tell(late)
    assert vars(late) == vars(always)
    assert len(run_state(long).losses) == STEPS
    followed = RunState(world_size=4)
    growing = History(long.run_dir)
    for number, event in enumerate(events):
        growing.add(event)
        if number % 50 == 0:
            assert growing.tell(followed)
    growing.tell(followed)
    assert vars(followed) == vars(always)
    # Mutant: what is in memory is all that there is.
    assert len(RunState(long[long.older :]).losses) < STEPS


def test_a_run_that_left_its_events(events, long, tmp_path):
    left = History.read(tmp_path)
    assert list(left) == [event for event in events if event.rank >= 0] and left.older
    assert_same(left.ledger.by("rank", "reason"), whole_ledger(events).by("rank", "reason"))
    assert len(left.ledger.step(1)) == len(whole_ledger(events).step(1))


def test_another_runs_events_in_the_same_directory_are_not_ours(events, long, tmp_path):
    later = [event._replace(t=event.t + 1) for event in events]
    again = told(later, tmp_path)
    assert list(again) == later and len(again.ledger.step(1)) == len(long.ledger.step(1))
    again._skip = {}  # the mutant, which reads from the beginning of the files
    assert list(again) != later


def test_events_that_are_nowhere_are_asked_for(events, long, tmp_path):
    path = tmp_path / "events.1.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:10]))
    assert_same(long.ledger.by("rank"), whole_ledger(events).by("rank"))
    for ask in (lambda: list(long), lambda: long.ledger.step(1), lambda: long[200]):
        with pytest.raises(LookupError, match=r"older events of rank 1 only 10 are left in"):
            ask()
    path.unlink()
    with pytest.raises(LookupError, match="only 0 are left"):
        list(long.ledger)
    assert len(long.ledger.step(STEPS - 1)) == 4 * 19  # still in memory


def test_it_can_be_sent_and_stored(events, long):
    again = pickle.loads(pickle.dumps(long))
    assert list(again) == events and again.ledger.total() == long.ledger.total()
    again.add(events[-1])
    assert len(again) == len(long) + 1


def grown(folder, steps=(300, 600)) -> int:
    """Bytes by which a history grows between these two steps, the losses of all steps included."""
    found, template = History(folder), recorded_run(steps=1, state=None)[1:]
    sizes = []
    tracemalloc.start()
    try:
        for step in range(steps[-1]):
            for event in template:
                data = dict(event.data, step=step)
                if event.kind == "ledger":
                    data = {"entries": [Entry(e[0], step, *e[2:]) for e in event.data["entries"]]}
                found.add(event._replace(data=data))
            if step + 1 in steps:
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    return sizes[1] - sizes[0]


def test_memory_does_not_grow_with_the_run(tmp_path, monkeypatch):
    """Of each step there stay its loss and its speed, in RunState: two dictionary entries and the
    numbers, under 500 bytes. Of what is kept whole, 600 items of under 500 bytes, an eighth comes
    and goes."""
    allowed = 300 * 500 + 600 * 500 // 8
    assert grown(tmp_path) < allowed
    monkeypatch.setattr(history, "KEPT", math.inf)  # the mutant, which keeps everything
    assert grown(tmp_path) > 10 * allowed


def record(ledger, count, step=None, reason="r"):
    ledger.step = step
    for i in range(count):
        ledger.record("all_reduce", "tp", (0, 1), "float32", i, 0.5 * i, reason, 0.0, 1.0, 0.25)


def test_a_rank_keeps_its_newest_collectives_and_the_totals_of_the_others(monkeypatch):
    monkeypatch.setattr(RankLedger, "KEPT", 50)
    ledger, seen = RankLedger(), []
    start_recording(0, seen.append)
    try:
        for step in range(100):
            record(ledger, 10, step)
            ledger.flush()
            assert len(ledger.kept) < 100
            assert len(ledger.snapshot().step(step)) == 10  # an observer looks at the last one
        before = ledger.snapshot()
        record(ledger, 1_000)  # outside of steps nobody flushes
        ledger.flush()
    finally:
        stop_recording()
    sent = [entry for event in seen for entry in event.data["entries"]]
    assert len(sent) == 2_000 and max(len(event.data["entries"]) for event in seen) == 50
    assert before.total() == Ledger(sent[:1_000]).total() == Totals(1_000, 4_500, 2_250.0, 250.0)
    assert ledger.snapshot().total() == Ledger(sent).total()
    assert ledger.snapshot().in_steps().total() == Ledger(sent[:1_000]).total()
    with pytest.raises(LookupError, match=r"newest 50 collectives.*result\.ledger"):
        ledger.snapshot().step(3)


def test_a_rank_that_forgets_without_totals_is_noticed(monkeypatch):
    monkeypatch.setattr(RankLedger, "KEPT", 50)
    monkeypatch.setattr(Folded, "add", lambda self, entries: None)
    ledger = RankLedger()
    record(ledger, 300)
    assert ledger.snapshot().total().count != 300
