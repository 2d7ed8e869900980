"""The whole monitor on a recorded run: what it found, whom it told, and a second one that goes on.

The wrong versions these catch: a monitor that hears a run again and tells everything twice, and one
whose alert of a slow rank is resolved while the rank is still slow.
"""

import json
import warnings
from types import SimpleNamespace

import pytest
from recorded import recorded_run

from picolab.monitoring import AlertManager, BasicMonitoringSystem, Event
from picolab.monitoring.alert_history import read_history
from picolab.monitoring.event_files import start_line

QUIET = {"samples": False, "notify": []}


class Told:
    def __init__(self):
        self.all = []

    def tell(self, notification):
        self.all += [(notification.state, a.name, a.rank) for a in notification.alerts]

    def close(self):
        pass


def write(folder, events, run="1"):
    for rank in range(4):
        with open(folder / f"events.{rank}.jsonl", "a") as file:
            file.write(start_line(run, rank, 4, 0.0))
    for event in events:
        if event.rank >= 0:
            with open(folder / f"events.{event.rank}.jsonl", "a") as file:
                file.write(event.to_json() + "\n")


@pytest.fixture(scope="module")
def recorded():
    """Rank 2 is slow from the beginning to step 120, of 240."""
    slow = recorded_run(steps=240)
    fast = recorded_run(steps=240, slow_s=0.0)
    step = lambda event: event.data.get("step", 0) if event.kind == "step" else _of(event)  # noqa: E731
    return [s if step(s) < 120 else f for s, f in zip(slow, fast)]


def _of(event):
    return event.data["entries"][-1].step if event.kind == "ledger" else 0


def job(events, folder):
    return SimpleNamespace(events=list(events), done=True, run_dir=folder, world_size=4)


def watched(events, folder, **settings):
    told = Told()
    system = BasicMonitoringSystem(QUIET | {"notify": [told]} | settings)
    system.watch(job(events, folder))
    system._thread.join()
    system.close()
    return system, told.all


def test_a_slow_rank_is_told_once_and_resolved_when_it_has_ended(recorded, tmp_path):
    system, told = watched(recorded, tmp_path)
    assert told == [("firing", "slow rank", 2), ("resolved", "slow rank", 2)]
    fired, resolved = system.alerts.history
    # The finding is told once, at its beginning; what goes on keeps the alert.
    assert fired.step < 45 and 120 <= resolved.step < 170
    assert system.report().rows[0][1] == "slow rank" and "resolved" in repr(system)
    assert "<table" in system._repr_html_() and system.troubles == []
    assert read_history(tmp_path) == list(system.alerts.history)


def test_a_monitor_that_starts_again_goes_on(recorded, tmp_path):
    """Killed in the middle of the slow time, after it, and before anything: the history is the
    same, and nobody is told twice."""
    (tmp_path / "whole").mkdir()
    whole, told = watched(recorded, tmp_path / "whole")
    for share in (0.05, 0.3, 0.9, 1.0):
        folder = tmp_path / str(share)
        folder.mkdir()
        _, before = watched(recorded[: int(share * len(recorded))], folder)
        second, after = watched(recorded, folder)
        assert before + after == told, share
        assert list(second.alerts.history) == list(whole.alerts.history)
        assert second.anomalies == whole.anomalies  # those it finds again


def test_the_mutant_that_forgets_what_goes_on(recorded, tmp_path, monkeypatch):
    from picolab.monitoring.anomalies import AnomalyDetector

    monkeypatch.setattr(AnomalyDetector, "going_on", [])
    system, _ = watched(recorded, tmp_path)
    assert system.alerts.history[-1].step < 100  # "resolved", twenty steps before it was


def test_a_folder_is_followed_and_read(recorded, tmp_path):
    write(tmp_path, recorded)
    (tmp_path / "run.json").write_text(json.dumps({"world_size": 4, "state": "done"}))
    read = BasicMonitoringSystem(QUIET).read(tmp_path)
    assert not (tmp_path / "alerts.jsonl").exists()  # a look afterwards leaves nothing behind
    told = Told()
    system = BasicMonitoringSystem(QUIET | {"notify": [told]}).follow(tmp_path)
    system._thread.join()
    system.close()
    assert told.all == [("firing", "slow rank", 2), ("resolved", "slow rank", 2)]
    states = [(t.step, t.name, t.rank, t.state) for t in system.alerts.history]
    assert states == [(t.step, t.name, t.rank, t.state) for t in read.alerts.history]
    assert len(read_history(tmp_path)) == 2
    with pytest.raises(ValueError, match="there is no run directory"):
        BasicMonitoringSystem(QUIET).follow(tmp_path / "none")


def test_a_second_run_in_the_folder_is_not_taken_for_the_first(recorded, tmp_path):
    write(tmp_path, recorded[:400])
    system = BasicMonitoringSystem(QUIET | {"history": False})
    system.follow(tmp_path)
    heard = system.collector
    while not heard.series("loss"):
        system._thread.join(0.01)
    write(tmp_path, recorded[:50], run="2")
    for rank in range(4):  # (its clock is later)
        path = tmp_path / f"events.{rank}.jsonl"
        path.write_text(path.read_text().replace('"t": 0.0, "data": {"run": "2"', '"t": 9e9, "data": {"run": "2"'))  # fmt: skip  # noqa: E501
    system._thread.join(20)
    assert not system._thread.is_alive()
    system.close()


def test_a_hang_fires_while_there_is_no_step_and_is_resolved_by_some(tmp_path, monkeypatch):
    from picolab.monitoring import system as module

    now, told = [100.0], Told()
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    system = BasicMonitoringSystem(QUIET | {"silence_s": 2.0, "notify": [told], "history": False})
    system.alerts.notifiers += system._notifiers
    source = SimpleNamespace(events=[], done=False, run_dir=tmp_path, world_size=2)
    system._source = source

    def say(step):
        data = {"step": step, "layout": "dp2", "seconds": 0.01, "loss": 2.0}
        source.events += [Event("step", rank, now[0], data) for rank in range(2)]
        system._look()

    for step in range(3):
        say(step)
    for _ in range(5):
        now[0] += 3.0
        system._look()
    assert told.all == [("firing", "hang", None)]
    for step in range(3, 9):
        say(step)
    assert told.all == [("firing", "hang", None), ("resolved", "hang", None)]


def test_a_run_of_another_version(recorded, tmp_path):
    for line in (
        '{"kind": "step", "rank": 0, "t": 1.0, "data": {}, "host": "a"}',
        '{"kind": "ledger", "rank": 0, "t": 1.0, "data": {"entries": [[1, 2]]}}',
        '{"kind": "step", "rank": 0, "time": 1.0, "data": {}}',
    ):
        (tmp_path / "events.0.jsonl").write_text(line + "\n")
        with pytest.raises(ValueError, match="this run was written by another version of picolab"):
            BasicMonitoringSystem(QUIET).read(tmp_path)
        followed = BasicMonitoringSystem(QUIET | {"history": False}).follow(tmp_path)
        followed._thread.join(20)
        with pytest.warns(UserWarning, match="the monitor has stopped: this run was written by an"):
            followed.close()
    (tmp_path / "alerts.jsonl").write_text('{"v": 99}\n')
    with pytest.raises(ValueError, match="written by another version of picolab"):
        BasicMonitoringSystem(QUIET).watch(job([], tmp_path))


def test_a_dead_webhook_is_said_at_the_end_and_holds_nothing_up(recorded, tmp_path):
    told = Told()
    settings = {"notify": [told], "webhook": "http://127.0.0.1:9/nobody"}  # (the discard port)
    system = BasicMonitoringSystem(QUIET | settings)
    system._notifiers[1].close_s = system._notifiers[1].wait_s = 0.05
    system.watch(job(recorded, tmp_path))
    system._thread.join()
    with pytest.warns(UserWarning, match=r"alert\(s\) were not told: http://127.0.0.1:9"):
        system.close()
    assert len(told.all) == 2


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"samples": 1}, "samples is 1; it is True or False"),
        ({"history": "yes"}, "history is 'yes'"),
        ({"rules": 7}, "rules is 7; it is the path of a file"),
        ({"rules": "none.yaml"}, "there is no file of alert rules none.yaml"),
        ({"log": 7}, "log is 7"),
        ({"notify": "pager"}, "notify has 'pager'"),
        ({"webhook": "example.org"}, "a webhook is an address"),
        ({"peak_flops": "fast", "flops_per_token": 1}, "peak_flops is 'fast'; it is a number"),
        ({"flops_per_token": 1e9}, "the MFU needs both"),
        ({"webhok": ""}, "no setting 'webhok'; did you mean 'webhook'"),
    ],
)
def test_settings_that_cannot_be(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        BasicMonitoringSystem(QUIET | settings)


def test_rules_on_the_systems_own_metrics_and_a_log(recorded, tmp_path):
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "rules:\n  - name: slow\n    metric: step_seconds\n    over: max\n    above: 0.01\n"
        "    for: 5 steps\n  - name: idle\n    metric: mfu\n    below: 2.0\n    over: mean\n"
    )
    system = BasicMonitoringSystem(
        QUIET | {"rules": rules, "flops_per_token": 1e6, "peak_flops": 1e12}
    )
    system.read(job(recorded, tmp_path))
    assert {(a.name, a.state) for a in system.alerts.firing} == {
        ("slow", "firing"),
        ("idle", "firing"),
    }
    log = tmp_path / "log"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watched(recorded, tmp_path, log=str(log))
    assert len(log.read_text().splitlines()) == 2


def test_a_callback_that_fails_does_not_end_the_monitor(recorded, tmp_path):
    """Nor one that closes it, which the thread that calls it cannot wait for."""
    system, heard = BasicMonitoringSystem(QUIET), []
    system.on_anomaly(lambda anomaly: 1 / 0)
    system.on_anomaly(heard.append)
    with pytest.warns(UserWarning, match="failed of slow rank: ZeroDivisionError"):
        system.watch(job(recorded, tmp_path))
        system._thread.join()
    assert heard == system.anomalies and heard[0].ranks == (2,)
    assert system.detector.judged == 239 and system.troubles == []
    system.close()

    system = BasicMonitoringSystem(QUIET | {"history": False})
    system.on_anomaly(lambda anomaly: system.close())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        system.watch(job(recorded, tmp_path))
        system._thread.join()
    assert system.anomalies and system.troubles == []


def test_a_run_that_cannot_be_read_any_more_is_said(tmp_path):
    class Gone:
        run_dir, world_size, done = tmp_path, 4, True

        @property
        def events(self):
            raise LookupError("only 3 are left")

    system = BasicMonitoringSystem(QUIET | {"history": False}).watch(Gone())
    system._thread.join()
    assert system.troubles == ["the monitor has stopped: LookupError('only 3 are left')"]
    with pytest.warns(UserWarning, match="only 3 are left"):
        system.close()


def test_the_names():
    import picolab.monitoring

    assert picolab.monitoring.AlertManager is AlertManager
