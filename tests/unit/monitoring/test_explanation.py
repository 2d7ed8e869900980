"""An explanation from what lies in a run directory, and what cannot be explained.

Catches: a verdict that needs the run's process, a directory of another version that ends in a
traceback, a figure that says something else than the text, and sleep that counts as waiting for a
core.
"""

import json
import time

import pytest

import picolab as pico
from picolab.cli import main
from picolab.monitoring.core_clock import CoreClock
from picolab.monitoring.events import Event
from picolab.monitoring.explanation import explain, explain_events
from picolab.monitoring.history import History
from picolab.monitoring.ledger import Entry

SLOW = 2


def entry(step, rank, start, end):
    about = (rank, step, "all_reduce", "dp", (0, 1, 2), "fp32", 8, 8.0, "dp: loss")
    return Entry(*about, start, end - start, end - start, None, 0.0, 0.0)


def recorded(steps=5, length=0.2, slow_s=0.1, queued_s=0.0):
    """Three ranks that compute and then sum the loss; one of them computes longer."""
    events, at = [], 10.0
    for step in range(steps):
        comes = [at + length + (slow_s if rank == SLOW else 0.0) for rank in range(3)]
        end = max(comes) + 0.01
        for rank in range(3):
            entries = [entry(step, rank, comes[rank], end)]
            data = {"step": step, "began": at, "seconds": end - at, "layout": "dp3"}
            if queued_s is not None:
                data["queued_s"] = queued_s
            events.append(Event("ledger", rank, end, {"entries": entries}))
            events.append(Event("step", rank, end, data))
        at = end
    return events


def written(folder, events):
    for rank in range(3):
        lines = [event.to_json() for event in events if event.rank == rank]
        (folder / f"events.{rank}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def here(events):
    history = History()
    for event in events:
        history.add(event)
    return explain_events(history)


def test_a_directory_says_what_the_run_would_have_said(tmp_path, capsys):
    events = recorded()
    found = explain(written(tmp_path, events))
    assert found.sentence() == here(events).sentence()
    assert found.sentence() == (
        "Step 2 on dp3 took 310 ms, first of all because rank 2 is slow: it works 300 ms, and who "
        "does the same 200 ms. Without that it would take 210 ms (1.48x)."
    )
    assert found.table().columns == [
        "ms of", "compute", "communication", "waiting for a rank", "step", "on the critical path",
    ]  # fmt: skip
    for row, ms in zip(found.table().rows, [(200, 10, 100), (200, 10, 100), (300, 10, 0)]):
        assert row[1:5] == pytest.approx([*ms, 310])
    assert [part.kind for part in found.path] == ["compute", "communication"]
    assert found.path[0].rank == SLOW
    assert found.what_if(even_ranks=True).step_s == pytest.approx(0.21)
    assert str(found.what_if(even_ranks=True)) == "with even ranks: 210.0 ms a step, 1.48x"
    told = json.loads(found.to_json())
    assert told["causes"][0]["rank"] == SLOW
    assert told["ranks"]["0"]["waiting_for"] == pytest.approx({"2": 0.1})
    assert repr(found) in repr(found.figure()) and "<table>" in found._repr_html_()
    assert main(["explain", str(tmp_path), "--even-ranks"]) == 0
    printed = capsys.readouterr().out
    assert found.sentence() in printed and "with even ranks: 210.0 ms a step, 1.48x" in printed
    assert main(["explain", str(tmp_path), "--json", "--step", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 4


def test_nothing_stands_out():
    quiet = here(recorded(slow_s=0.0, length=1.0))
    assert quiet.first is None and "no single cause stands out: 99 %" in quiet.sentence()
    assert "no single cause stands out" in quiet.heading()


def test_the_figure_marks_the_path_and_draws_the_split():
    found = here(recorded())
    figure = found.figure().figure
    names = {trace.name: trace for trace in figure.data if trace.showlegend is not False}
    path = names["critical path"]
    assert list(path.y[:2]) == [SLOW, SLOW] and path.x[-1] == pytest.approx(310)
    assert "slow rank (rank 2); 1.48x without" in figure.layout.title.text.replace("<br>", " ")
    waits = names["waiting for a rank"]
    assert list(waits.x) == pytest.approx([100, 100, 0])
    drawn = [sum(t.x[row] for t in figure.data if t.xaxis == "x2") for row in range(3)]
    assert drawn == pytest.approx([310, 310, 310])


def test_what_was_waited_for_a_core_is_taken_from_the_work():
    split = here(recorded(queued_s=0.05)).split
    assert split[0].core_s == 0  # after the last collective nothing was done
    untold = here(recorded(queued_s=None))
    assert not untold.cores_told and "does not tell how long a thread waits" in repr(untold)


def cut(events, **without):
    return [
        event._replace(data={k: v for k, v in event.data.items() if k not in without})
        if event.kind == "step"
        else event
        for event in events
    ]


def fewer_fields(events):
    return [
        event._replace(data={"entries": [tuple(e)[:6] for e in event.data["entries"]]})
        if event.kind == "ledger"
        else event
        for event in events
    ]


def more_fields(events):
    return [
        event._replace(data={"entries": [(*e, 1, 2) for e in event.data["entries"]]})
        if event.kind == "ledger"
        else event
        for event in events
    ]


CANNOT = [
    (recorded(1), "too short to explain: it has 1 whole step, and the first warms up; train 3"),
    (recorded(2)[:-1], "too short to explain: it has 1 whole step,"),
    (cut(recorded(), began=1), "was written by another version of picolab"),
    (cut(recorded(), layout=1), "was written by another version of picolab"),
    (fewer_fields(recorded()), "was written by another version of picolab"),
    (more_fields(recorded()), "was written by another version of picolab"),
    ([e for e in recorded() if e.kind != "step"], "has no training steps"),
]


@pytest.mark.parametrize(("events", "sentence"), CANNOT, ids=[c[1][:24] for c in CANNOT])
def test_what_cannot_be_explained_is_one_sentence(events, sentence, tmp_path, capsys):
    written(tmp_path, events)
    with pytest.raises(ValueError, match=sentence):
        explain(tmp_path)
    assert main(["explain", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_no_such_step_run_or_events(tmp_path, capsys, monkeypatch):
    with pytest.raises(ValueError, match="holds no events of ranks"):
        explain(tmp_path)
    with pytest.raises(ValueError, match=r"there is no run directory .*gone"):
        explain(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"no step 9 of all ranks in .*: it has 0 to 4"):
        explain(written(tmp_path, recorded()), step=9)
    assert explain(tmp_path, step=0).step == 0  # who asks for the first gets it
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for words, sentence in (
        (["explain"], "there is no run in"),
        (["explain", "gone"], "there is no run directory"),
        (["train", "--explain", "--steps", "1"], "--explain needs --steps 2 or more"),
    ):
        assert main(words) == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.skipif(CoreClock().read() is None, reason="the system does not tell")
def test_sleep_is_no_wait_for_a_core():
    clock = CoreClock()
    before = clock.read()
    time.sleep(0.3)
    assert clock.read() - before < 0.15


def test_the_names_are_public():
    assert pico.explain is explain and callable(pico.tune)
