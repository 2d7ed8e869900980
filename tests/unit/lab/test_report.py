"""A run as one page: whole, offline, and safe whatever the run says of itself.

Wrong versions these tests catch: a page that asks the network for plotly, markup out of a run's own
words, half a page in the place of the last one, a failure without its verdict, a traceback for a
folder of another version.
"""

import json
import re
import sys
from pathlib import Path

import pytest

import picolab as pico
from picolab import cli
from picolab.lab import report
from picolab.monitoring import Event
from picolab.monitoring.alert_history import Transition
from picolab.show import files

sys.path.insert(0, str(Path(__file__).parents[1] / "monitoring"))
from recorded import recorded_run

HOSTILE = "</script><script>alert(1)</script>\x1b]0;owned\x07<img src=x onerror=alert(2)>"


def folder(tmp_path: Path, events=None, **about) -> Path:
    """What a run leaves, with the events in their ranks' files."""
    place = tmp_path / "20261130-010101-0001-train"
    place.mkdir()
    for event in recorded_run(steps=60) if events is None else events:
        if event.rank >= 0:
            with open(place / f"events.{event.rank}.jsonl", "a") as file:
                file.write(event.to_json() + "\n")
    told = {"state": "done", "world_size": 4, "started": 1.8e9, "ended": 1.8e9 + 60, **about}
    (place / "run.json").write_text(json.dumps(told))
    return place


def without_plotly(page: str) -> str:
    """plotly's script is one line of its own."""
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, flags=re.S)
    longest = max(scripts, key=len)
    assert len(longest) > 3_000_000
    return page.replace(longest, "")


def test_the_page_has_everything_and_asks_nobody(tmp_path):
    settings = {"settings": {"steps": 60, "lr": 0.003}, "flops_per_token": 1e5}
    events = [Event("settings", 0, 0.0, settings), *recorded_run(steps=60)]
    page = report(folder(tmp_path, events), tmp_path / "run.html", peak_flops=1e9).read_text()
    own = without_plotly(page)
    for said in (
        "comes 20 % of a step late",
        "60 of 60 steps",
        "MFU 17.1",
        "rank 2 comes 30.0 ms",
        "0.003",
        "dp2tp2",
        "dp: gradient bucket",
        "prefers-color-scheme",
        "gradient norm",
    ):
        assert said in own, said
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", own)
    assert "default-src 'none'" in own and own.count("<html") == 1


def test_a_runs_own_words_are_text(tmp_path):
    events = []
    for event in recorded_run(steps=60):
        if event.kind == "ledger":
            entries = [e._replace(reason=HOSTILE) for e in event.data["entries"]]
            event = Event("ledger", event.rank, event.t, {"entries": entries})
        events.append(event)
    events.append(Event("settings", 0, 0.0, {"settings": {HOSTILE: HOSTILE}}))
    place = folder(tmp_path, events, name=HOSTILE, note=HOSTILE)
    told = Transition(1, 0.0, 5, HOSTILE, 2, "firing", "page", None, HOSTILE, None)
    (place / "alerts.jsonl").write_text(told.to_json() + "\n")
    own = without_plotly(report(place, tmp_path / "run.html").read_text())
    assert "<script>alert" not in own and "<img src=x" not in own
    assert "\x1b" not in own and "\x07" not in own and "&lt;script&gt;alert(1)" in own


def test_words_that_are_not_escaped_are_caught(tmp_path, monkeypatch):
    from picolab.lab import report as function

    module = sys.modules[function.__module__]
    monkeypatch.setattr(module, "_text", lambda text: text)
    monkeypatch.setattr("picolab.show.table.html.escape", lambda text, quote=True: text)
    with pytest.raises(AssertionError):
        test_a_runs_own_words_are_text(tmp_path)


def test_the_last_page_stands_until_the_new_one_is_whole(tmp_path, monkeypatch):
    target = tmp_path / "run.html"
    target.write_text("the last one")
    monkeypatch.setattr(files.Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        report(folder(tmp_path), target)
    assert target.read_text() == "the last one"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["20261130-010101-0001-train", "run.html"]


def test_a_failed_run_has_its_verdict(tmp_path):
    def fails():
        pico.emit(step=0, loss=5.0)
        raise ValueError(HOSTILE)

    job = pico.run(fails, world_size=1, quiet=True, wait=False, run_dir=tmp_path / "failed")
    with pytest.raises(pico.RankFailure):
        job.result()
    for source in (job, tmp_path / "failed"):
        own = without_plotly(report(source, tmp_path / "run.html").read_text())
        assert "class=verdict role=alert" in own and "rank 0" in own
        assert "<script>alert" not in own


def test_a_run_that_goes_on_is_drawn_as_far_as_it_is(tmp_path):
    def talks():
        import time

        for step in range(10_000):
            pico.emit(step=step, loss=5.0)
            time.sleep(0.02)

    job = pico.run(talks, world_size=1, quiet=True, wait=False, run_dir=tmp_path / "going")
    try:
        while not job.events or job.events[-1].kind != "values":
            pass
        page = report(tmp_path / "going", tmp_path / "run.html").read_text()
    finally:
        job.stop()
    assert "It was going on when this page was made" in page and "loss 5.000" in page


def test_what_cannot_be_told_is_one_sentence(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there is nothing of a run in"):
        report(tmp_path / "empty")
    silent = report(folder(tmp_path, []), tmp_path / "silent.html").read_text()
    assert "It has told of no step" in silent
    with pytest.raises(ValueError, match="should end in"):
        report(tmp_path / "20261130-010101-0001-train", tmp_path / "run.pdf")
    with pytest.raises(ValueError, match="of a job, a result or a run directory"):
        report(42)
    other = tmp_path / "other"
    other.mkdir()
    event = Event("step", 0, 0.0, {"number": 3, "loss": 1.0})
    (other / "events.0.jsonl").write_text(event.to_json() + "\n")
    assert cli.main(["report", str(other), "-o", str(tmp_path / "x.html")]) == 2
    assert "not as this version of picolab writes them" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path / "nowhere")]) == 2
    target = tmp_path / "cli.html"
    assert (
        cli.main(["report", str(tmp_path / "20261130-010101-0001-train"), "-o", str(target)]) == 0
    )
    assert capsys.readouterr().out.strip() == str(target) and target.is_file()
