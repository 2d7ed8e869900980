"""What ranks wrote is read to the last event, whatever happened to the files; and what is in an
event is written down.

Wrong versions these catch: a reader that stops at a torn line (or takes half of it), one that sorts
by a clock that was set back, one that mixes two runs of a folder, one that waits in silence for a
rank that never writes; a field that is written and documented nowhere.
"""

import ast
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import picolab
from picolab.lab.follower import Follower, RunDirectory
from picolab.monitoring import Event, History, event_files
from picolab.monitoring.event_files import RunFiles, ends_whole, first_events, in_order, start_line
from picolab.monitoring.event_kinds import KINDS, table


def write(folder, rank, *events, run=None, world=2, t=0.0):
    """As rank.py does it: a line for the run, then one an event. `events` are numbers or events."""
    with open(folder / f"events.{rank}.jsonl", "a") as file:
        if run is not None:
            file.write(start_line(run, rank, world, t))
        for x in events:
            event = x if isinstance(x, Event) else Event("values", rank, t + x, {"x": x})
            file.write(event.to_json() + "\n")


def numbers(events):
    return [event.data["x"] for event in events]


def test_a_line_that_was_cut_off_costs_itself(tmp_path):
    write(tmp_path, 0, 0, 1, 2)
    path = tmp_path / "events.0.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:20] + "\n" + lines[2] + lines[0][:20])
    files = RunFiles(tmp_path)
    assert numbers(files.poll()) == [0, 2] and files.torn == 1
    with open(path, "a") as file:
        file.write(lines[0][20:])
    assert numbers(files.poll()) == [0] and not list(files.poll())
    assert numbers(History.read(tmp_path)) == [0, 2, 0]


@given(cut=st.integers(0, 200))
def test_a_killed_run_is_readable_to_its_last_whole_event(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("killed")
    write(folder, 0, 0, 1, 2, run="a")
    path = folder / "events.0.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - cut])
    expected = [n for n in range(3) if json.dumps({"x": n}).encode() + b"}\n" in path.read_bytes()]
    assert numbers(RunFiles(folder).poll()) == expected
    left = path.read_bytes()
    assert ends_whole(path) == (left == b"" or left.endswith(b"\n"))


def test_older_events_are_counted_without_the_torn_ones(tmp_path):
    write(tmp_path, 0, 0, 1, 2, 3, run="a")
    path = tmp_path / "events.0.jsonl"
    begin, *lines = path.read_text().splitlines(keepends=True)
    path.write_text(begin + lines[0] + lines[1][:30] + "\n" + "".join(lines[2:]))
    found = first_events(path, 0, 2, lambda line: b'"x": 2' in line)
    assert [event and event.data["x"] for event in found] == [None, 2]


def test_a_clock_that_was_set_back_moves_nothing(tmp_path):
    """Rank 0's clock is set back by an hour after its second event."""
    before, after = [Event("values", 0, float(t), {"x": t}) for t in (1, 2)], []
    after = [Event("values", 0, t - 3600.0, {"x": t}) for t in (3, 4)]
    other = [Event("values", 1, t + 0.5, {"x": t + 0.5}) for t in (1, 2, 3)]
    assert numbers(in_order([[*before, *after], other])) == [1, 1.5, 2, 3, 2.5, 4, 3.5]
    write(tmp_path, 0, *before, *after, run="a")
    write(tmp_path, 1, *other, run="a")
    read = list(History.read(tmp_path))
    assert [e.data["x"] for e in read if e.rank == 0] == [1, 2, 3, 4] and len(read) == 7
    # The mutant, which sorts by the clock, has step 3 before step 1.
    by_clock = [e.data["x"] for e in sorted(read, key=lambda e: e.t) if e.rank == 0]
    assert by_clock == [3, 4, 1, 2]


@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=6), max_size=4))
def test_whatever_clocks_do_no_event_is_lost_and_ranks_keep_their_order(clocks):
    told = [
        [Event("values", rank, t, {"x": (rank, i)}) for i, t in enumerate(times)]
        for rank, times in enumerate(clocks)
    ]
    found = numbers(in_order(told))
    assert sorted(found) == [(r, i) for r, times in enumerate(clocks) for i in range(len(times))]
    for rank, times in enumerate(clocks):
        assert [i for r, i in found if r == rank] == list(range(len(times)))


def two_runs(folder, back=0.0):
    """A run of three ranks, and in the same folder a newer one of two. back: by how much the clock
    was set back between them."""
    for rank in range(3):
        write(folder, rank, 0, 1, run="old", world=3, t=100.0)
    for rank in range(2):
        write(folder, rank, 10, 11, run="new", t=200.0 - back)


@pytest.mark.parametrize("back", [0.0, 150.0])
def test_of_two_runs_in_a_folder_the_newer_is_read(tmp_path, back, monkeypatch):
    two_runs(tmp_path, back)
    files = RunFiles(tmp_path)
    assert sorted(numbers(files.poll())) == [10, 10, 11, 11] and files.run == "new"
    assert files.silent(2) == [] and files.silent(3) == [2]
    history = History.read(tmp_path)
    assert sorted(numbers(history)) == [10, 10, 11, 11]
    # What the totals of a long run are read again from begins there, too.
    path = tmp_path / "events.1.jsonl"
    start = files.starts[path.name]
    assert numbers(first_events(path, start, 2, lambda line: True)) == [10, 11]
    # Mutants: all that is there; the newest by the time alone, which a clock set back fools.
    monkeypatch.setattr(event_files, "_BEGINS", b"no line begins so")
    assert len(list(RunFiles(tmp_path).poll())) > 4
    if back:
        assert sorted([("old", 100.0), ("new", 200.0 - back)], key=lambda x: x[1])[-1][0] == "old"


def test_a_view_of_a_folder_goes_over_to_the_run_that_begins_in_it(tmp_path):
    step = lambda n, rank: Event("step", rank, 1.0, {"step": n, "loss": 2.0 + n, "seconds": 1.0})  # noqa: E731
    write(tmp_path, 0, *(step(n, 0) for n in range(5)), run="old", world=1)
    directory = RunDirectory(tmp_path)
    follower = Follower(directory, None, lambda state: None)
    follower._read()
    assert set(follower.state.losses) == {0, 1, 2, 3, 4}
    write(tmp_path, 0, step(0, 0), run="new", world=1, t=300.0)
    follower._read()
    assert follower.state.losses == {0: 2.0} and len(directory.events) == 1
    follower.close()


def test_a_file_of_an_older_version_says_no_run_and_is_read(tmp_path):
    write(tmp_path, 0, 1, 2)
    files = RunFiles(tmp_path)
    assert numbers(files.poll()) == [1, 2] and files.run is None and files.silent(2) == [1]


# -- the schema --


def told() -> set[tuple[str, str]]:
    """(kind, field) of every event that the package writes, from its source."""
    found, root = set(), Path(picolab.__file__).parent
    for path in root.rglob("*.py"):
        if "chapters" in path.parts:
            continue  # a chapter may have kinds of its own
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name, first = ast.unparse(node.func), node.args[0]
            if name in ("events.write", "_tell") and isinstance(first, ast.Constant):
                fields = [keyword.arg for keyword in node.keywords if keyword.arg]
                fields += ["step"] if name == "_tell" else []
                fields += ["own_loss"] if first.value == "not finite" else []
                found |= {(first.value, field) for field in fields}
    return found


def test_every_field_that_is_written_is_documented():
    documented = {(kind, field) for kind, (_, fields) in KINDS.items() for field in fields}
    assert len(told()) > 30 and told() <= documented
    assert {kind for kind, _ in documented - told()} <= {
        "pool",
        "values",
        "state",
        "status",
        "not finite",
        "host",
        "experts moved",
        "experts copied",
        "memory",
    }
    assert len(table().rows) == len(documented)
