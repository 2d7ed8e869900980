"""`BasicMonitoringSystem({})`: collector, detector, timer and alerts on one run, live or later.

    system = BasicMonitoringSystem({"webhook": "http://127.0.0.1:9000/alerts"})
    job = pico.train(layout="dp4", wait=False, observers=[pico.training.Probe()])
    system.watch(job)
    ...
    system.anomalies               # what was found, newest last
    system.alerts                  # what somebody was told of it: firing, hidden, history
    system.collector               # every metric, see MetricsCollector
    system.close()

    BasicMonitoringSystem({}).follow(RUN_DIRECTORY)     # of a run that another program started
    BasicMonitoringSystem({}).read(RUN_DIRECTORY)       # a post-mortem: the same, of what is left

Of a run that is watched the history of alerts is in its directory. A second monitor, after the
first has ended (or was killed), goes on with it: it hears the run again from its beginning, and
tells nobody what was told.

It only listens. A thread looks ten times a second for what ranks have said, so a run goes as fast
with it as without; and a run that hangs, or whose ranks are gone, is still told about, because
nothing of the monitor is in it.
"""

import html
import json
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from picolab.monitoring import notifiers
from picolab.monitoring.alerts import AlertManager, history_table
from picolab.monitoring.anomalies import Anomaly, AnomalyDetector
from picolab.monitoring.collector import MetricsCollector
from picolab.monitoring.event_files import RunFiles, event_files
from picolab.monitoring.events import Event
from picolab.monitoring.hang import who_hangs
from picolab.monitoring.history import History
from picolab.monitoring.host import Host
from picolab.monitoring.rules import Silence
from picolab.monitoring.trace import trace_of_run, write_trace
from picolab.show.files import private
from picolab.show.table import Table
from picolab.specs import Layout

PERIOD_S = 0.1
SETTINGS: dict[str, tuple[Any, str]] = {
    "silence_s": (5.0, "a run that says nothing for so many seconds hangs (or for 20 steps)"),
    "kept": (10_000, "steps of which single values are kept"),
    "samples": (True, "look at the machine, too: cores, memory, GPUs"),
    "sample_s": (1.0, "seconds from one such look to the next"),
    "flops_per_token": (None, "of training, `pico.costs.flops_per_token(model)`: for the MFU"),
    "peak_flops": (None, "a second, of one rank's device: for the MFU"),
    "metrics_port": (None, "serve OpenMetrics on this port of 127.0.0.1 (0: one that is free)"),
    "rules": (None, "of alerts: a YAML file (alert_rules.py), or a list of Rule"),
    "notify": ("auto", "who is told: notebook, terminal, notifiers, a list of these; [] nobody"),
    "log": (None, "a file to which alerts are appended"),
    "webhook": (None, "an address to which alerts are posted"),
    "history": (True, "keep the alerts of a run that is watched in its directory"),
}
ENDED = ("done", "failed", "stopped")


class BasicMonitoringSystem:
    """See above. settings: `{}`, or some of SETTINGS. One system is for one run."""

    def __init__(self, settings: Mapping[str, Any] | None = None):
        given = dict(settings or {})
        for name in given:
            if name not in SETTINGS:
                close = get_close_matches(str(name), SETTINGS, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(SETTINGS)}"
                raise ValueError(f"monitoring has no setting {name!r}; {hint}")
        self.settings = {name: default for name, (default, _) in SETTINGS.items()} | given
        _check(self.settings)
        self.collector = MetricsCollector(kept=int(self.settings["kept"]))
        per_token, peak = self.settings["flops_per_token"], self.settings["peak_flops"]
        if peak is not None:
            mfu = _mfu(per_token, peak)
            self.collector.register("mfu", mfu, what="model flops over the devices' peak")
        self.detector = AnomalyDetector()
        rules = self.settings["rules"]
        self.alerts = AlertManager(rules, metrics=self.collector.metrics, save_s=1.0)
        told = (self.settings[name] for name in ("notify", "log", "webhook"))
        self._notifiers = notifiers.made(*told)
        self._ticked: int | None = None  # the newest step that the alerts have heard
        self._told_before = 0  # steps that they heard in an earlier life
        self._hang: Anomaly | None = None
        self._trouble: str | None = None
        self.anomalies: list[Anomaly] = []
        self.served = None
        self._callbacks: list[Callable[[Anomaly], None]] = []
        self._silence = Silence(at_least_s=float(self.settings["silence_s"]))
        self._step: int | None = None
        self._source: Any = None
        self._run: History | None = None
        self._heard = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._host = Host() if self.settings["samples"] else None
        self._sampled = 0.0
        if self.settings["metrics_port"] is not None:
            self.served = self.collector.serve(self.settings["metrics_port"])

    def on_anomaly(self, callback: Callable[[Anomaly], None]) -> None:
        """Called with each, in the thread that found it."""
        self._callbacks.append(callback)

    def add(self, event: Event) -> list[Anomaly]:
        """One event; what it shows."""
        self.collector.add(event)
        if event.kind == "step":
            self._step = event.data["step"]
        found = self.detector.add(event)
        self._tell(found)
        self._tick(event.t)
        return found

    def _tick(self, t: float) -> None:
        """Each step that has been told by all ranks, to the alerts."""
        judged = self.detector.judged
        if self._ticked is None:
            if judged < 0:
                return
            self._ticked = judged - 1  # (of a run that goes on from a checkpoint, say)
        for step in range(min(self._ticked, judged) + 1, judged + 1):
            if self._told_before:
                self._told_before -= 1
            else:
                self.alerts.tick(step, t, self.going_on, self.collector)
        self._ticked = judged

    @property
    def going_on(self) -> list[Anomaly]:
        """What was found and has not ended."""
        return self.detector.going_on + ([] if self._hang is None else [self._hang])

    def _tell(self, found: list[Anomaly]) -> None:
        self.anomalies += found
        if not self._told_before:
            self.alerts.hear(found)
        for anomaly in found:
            for callback in self._callbacks:
                try:
                    callback(anomaly)
                except Exception as error:  # somebody's own: the monitor goes on
                    said = f"{callback!r} failed of {anomaly.name}: {error!r}"
                    warnings.warn(said, stacklevel=2)

    # -- of a run that is over --

    def read(self, run: Any) -> "BasicMonitoringSystem":
        """All events of a run directory, or of a result (whatever has `.events`)."""
        if isinstance(run, str | Path):
            run = History.read(_directory(run))
        self._run = getattr(run, "events", run)
        last = 0.0
        for event in self._run:
            self.add(event)
            last = max(last, event.t)
        self.alerts.look(last)
        return self

    @property
    def troubles(self) -> list[str]:
        """What could not be written or told."""
        found = [self._trouble, self.alerts.trouble]
        found += [getattr(notifier, "trouble", None) for notifier in self._notifiers]
        return [trouble for trouble in found if trouble]

    # -- of one that goes --

    def watch(self, job: Any) -> "BasicMonitoringSystem":
        """Follow a job (or a RunDirectory: whatever has events, done, run_dir, world_size)."""
        if self._thread is not None:
            raise ValueError("this system watches a run already; make another one for another run")
        self._source = job
        if self.settings["history"]:
            self.alerts.keep_in(job.run_dir)
            self._told_before = self.alerts.ticks
        self.alerts.notifiers += self._notifiers
        for notifier in self._notifiers:
            if hasattr(notifier, "start"):  # (somebody's own may have none)
                notifier.start()
        self.detector.world_size = getattr(job, "world_size", None)
        self._thread = threading.Thread(target=self._follow, name="picolab-monitor", daemon=True)
        self._thread.start()
        return self

    def follow(self, run_dir: str | Path) -> "BasicMonitoringSystem":
        """Watch a run that another program has started, by what its ranks write into its
        directory; to its end, or until `close`."""
        return self.watch(_Folder(_directory(run_dir)))

    def close(self) -> None:
        """Stop following, having heard everything that was said until now; the run goes on."""
        self._ended.set()
        if self._thread not in (None, threading.current_thread()):  # (a callback may close it)
            self._thread.join()
        self.alerts.close()
        for trouble in self.troubles:
            warnings.warn(trouble, stacklevel=2)
        if self.served is not None:
            self.served.close()

    def _follow(self) -> None:
        last = False
        while not last:
            last = self._ended.is_set() or self._source.done
            try:
                self._look()
            except Exception as error:  # a run of another version, say, or its files are gone
                said = str(error) if isinstance(error, ValueError) else repr(error)
                self._trouble = f"the monitor has stopped: {said}"
                return
            self._ended.wait(0 if last else PERIOD_S)

    def _look(self) -> None:
        now, events = time.monotonic(), self._source.events
        self._run, fresh = events, events[self._heard :]
        self._heard += len(fresh)
        for event in fresh:
            self.add(event)
            if event.rank >= 0:
                self._silence.hear(now, event.data["seconds"] if event.kind == "step" else None)
                self._hang = None
        quiet = self._silence.overdue(now)
        new = quiet is not None and self._hang is None and self._step is not None
        if new and not self._source.done:
            of = self._source.run_dir, self._source.world_size
            self._hang = who_hangs(*of, quiet, self._step + 1)
            self._tell([self._hang])
        self.alerts.look(time.time(), [] if self._hang is None else [self._hang])
        if self._host is not None and now - self._sampled >= self.settings["sample_s"]:
            self._sampled = now
            self.collector.add(Event("host", -1, time.time(), self._host.sample()))

    # -- what is said --

    def write_trace(self, path: str | Path, steps: int = 20) -> Path:
        """The newest steps of the run that is watched or was read as a Chrome trace, for Perfetto;
        see monitoring/trace.py."""
        if self._run is None or self._step is None:
            raise ValueError("no step of a run has been heard yet, so there is nothing to trace")
        first = max(0, self._step + 1 - steps)
        told = [s for s in range(first, self._step + 1) if any(self._run.where("step", s))]
        return write_trace(path, trace_of_run(self._run, told))

    def report(self) -> Table:
        """What was found. (What somebody was told of it: `alerts.history`.)"""
        rows = [
            ["" if a.step is None else a.step, a.name, ", ".join(map(str, a.ranks)), a.text]
            for a in self.anomalies
        ]
        return Table(["step", "what", "rank", "in words"], rows)

    def _said(self) -> list[str | Table]:
        count, told = len(self.anomalies), history_table(self.alerts.history)
        if not count and not told.rows:
            return ["BasicMonitoringSystem: nothing out of the ordinary so far", *self.troubles]
        return [f"BasicMonitoringSystem: {count} finding(s)", self.report(), "alerts:", told,
                *self.troubles]  # fmt: skip

    def __repr__(self) -> str:
        return "\n".join(part if isinstance(part, str) else repr(part) for part in self._said())

    def _repr_html_(self) -> str:
        return "".join(
            f"<p>{html.escape(part)}</p>" if isinstance(part, str) else part._repr_html_()
            for part in self._said()
        )


class _Folder:
    """A run of another program, with the face of a job."""

    def __init__(self, run_dir: Path):
        self.run_dir, self._files = run_dir, RunFiles(run_dir)
        self._history = History(run_dir, self._files.starts)
        self._over = False  # another run has begun there

    @property
    def events(self) -> History:
        before, fresh = self._files.run, self._files.poll()
        self._over |= before is not None and self._files.run != before
        if not self._over:
            for event in fresh:
                self._history.add(event)
        return self._history

    @property
    def world_size(self) -> int:
        return self._about().get("world_size") or len(event_files(self.run_dir))

    @property
    def done(self) -> bool:
        """By its run.json. (Where nobody writes one, it is followed until it is closed.)"""
        return self._over or self._about().get("state") in ENDED

    def _about(self) -> dict:
        try:
            with open(self.run_dir / "run.json", opener=private) as file:
                about = json.load(file)
        except (OSError, ValueError):
            return {}
        return about if isinstance(about, dict) else {}


def _directory(run: str | Path) -> Path:
    directory = Path(run).expanduser()
    if not directory.is_dir():
        raise ValueError(f"there is no run directory {directory}; `picolab runs ls` lists the runs")
    return directory


def _check(settings: Mapping[str, Any]) -> None:
    """A sentence for each that cannot be. (Rules and receivers check themselves.)"""
    for name in ("silence_s", "sample_s", "kept"):
        value = settings[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"{name} is {value!r}; it must be a number above 0")
    for name in ("samples", "history"):
        if not isinstance(settings[name], bool):
            raise ValueError(f"{name} is {settings[name]!r}; it is True or False")
    for name in ("flops_per_token", "peak_flops"):
        value = settings[name]
        if value is not None and (isinstance(value, bool) or not (
            isinstance(value, int | float) and value > 0
        )):  # fmt: skip
            raise ValueError(f"{name} is {value!r}; it is a number above 0")
    if (settings["flops_per_token"] is None) != (settings["peak_flops"] is None):
        raise ValueError("the MFU needs both flops_per_token and peak_flops")
    for name in ("rules", "log"):
        if settings[name] is not None and not isinstance(settings[name], str | Path | list | tuple):
            raise ValueError(f"{name} is {settings[name]!r}; it is the path of a file")


def _mfu(flops_per_token: float, peak_flops: float) -> Callable[[dict], float | None]:
    """Model flops utilization (arXiv 2204.02311, appendix B): the flops of forward and backward of
    the tokens that were trained on, without recomputation, over what the devices could do."""

    def read(data: dict) -> float | None:
        if not data.get("seconds") or data.get("tokens") is None:
            return None
        world = Layout.parse(data["layout"]).world
        return flops_per_token * data["tokens"] / data["seconds"] / (world * peak_flops)

    return read
