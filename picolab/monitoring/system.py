"""`BasicMonitoringSystem({})`: collector, detector and timer on one run, live or afterwards.

    system = BasicMonitoringSystem({})
    job = pico.train(layout="dp4", wait=False, observers=[pico.training.Probe()])
    system.watch(job)
    ...
    system.anomalies               # what was found, newest last
    system.collector               # every metric, see MetricsCollector
    system.close()

    BasicMonitoringSystem({}).read(RUN_DIRECTORY)       # a post-mortem: the same, of what is left

It only listens. A thread looks ten times a second for what ranks have said, so a run goes as fast
with it as without; and a run that hangs, or whose ranks are gone, is still told about, because
nothing of the monitor is in it.
"""

import threading
import time
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from picolab.monitoring.anomalies import Anomaly, AnomalyDetector
from picolab.monitoring.collector import MetricsCollector
from picolab.monitoring.events import Event
from picolab.monitoring.hang import who_hangs
from picolab.monitoring.history import History
from picolab.monitoring.host import Host
from picolab.monitoring.rules import Silence
from picolab.monitoring.trace import trace_of_run, write_trace
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
}


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
        for name in ("silence_s", "sample_s", "kept"):
            value = self.settings[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{name} is {value!r}; it must be a number above 0")
        self.collector = MetricsCollector(kept=int(self.settings["kept"]))
        per_token, peak = self.settings["flops_per_token"], self.settings["peak_flops"]
        if (per_token is None) != (peak is None):
            raise ValueError("the MFU needs both flops_per_token and peak_flops")
        if peak is not None:
            mfu = _mfu(per_token, peak)
            self.collector.register("mfu", mfu, what="model flops over the devices' peak")
        self.detector = AnomalyDetector()
        self.anomalies: list[Anomaly] = []
        self.served = None
        self._callbacks: list[Callable[[Anomaly], None]] = []
        self._silence = Silence(at_least_s=float(self.settings["silence_s"]))
        self._step: int | None = None
        self._hang_told = False
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
        return found

    def _tell(self, found: list[Anomaly]) -> None:
        self.anomalies += found
        for anomaly in found:
            for callback in self._callbacks:
                callback(anomaly)

    # -- of a run that is over --

    def read(self, run: Any) -> "BasicMonitoringSystem":
        """All events of a run directory, or of a result (whatever has `.events`)."""
        if isinstance(run, str | Path):
            directory = Path(run).expanduser()
            if not directory.is_dir():
                raise ValueError(
                    f"there is no run directory {directory}; `picolab runs ls` lists the runs"
                )
            run = History.read(directory)
        self._run = getattr(run, "events", run)
        for event in self._run:
            self.add(event)
        return self

    # -- of one that goes --

    def watch(self, job: Any) -> "BasicMonitoringSystem":
        """Follow a job (or a RunDirectory: whatever has events, done, run_dir, world_size)."""
        if self._thread is not None:
            raise ValueError("this system watches a run already; make another one for another run")
        self._source = job
        self.detector.world_size = getattr(job, "world_size", None)
        self._thread = threading.Thread(target=self._follow, name="picolab-monitor", daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop following, having heard everything that was said until now; the run goes on."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self.served is not None:
            self.served.close()

    def _follow(self) -> None:
        while True:
            last = self._ended.is_set() or self._source.done
            self._look()
            if last:
                return
            self._ended.wait(PERIOD_S)

    def _look(self) -> None:
        now, events = time.monotonic(), self._source.events
        self._run, fresh = events, events[self._heard :]
        self._heard += len(fresh)
        for event in fresh:
            self.add(event)
            if event.rank >= 0:
                self._silence.hear(now, event.data["seconds"] if event.kind == "step" else None)
                self._hang_told = False
        quiet = self._silence.overdue(now)
        new = quiet is not None and not self._hang_told and self._step is not None
        if new and not self._source.done:
            self._hang_told = True
            of = self._source.run_dir, self._source.world_size
            self._tell([who_hangs(*of, quiet, self._step + 1)])
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
        rows = [
            ["" if a.step is None else a.step, a.name, ", ".join(map(str, a.ranks)), a.text]
            for a in self.anomalies
        ]
        return Table(["step", "what", "rank", "in words"], rows)

    def __repr__(self) -> str:
        if not self.anomalies:
            return "BasicMonitoringSystem: nothing out of the ordinary so far"
        return f"BasicMonitoringSystem: {len(self.anomalies)} finding(s)\n{self.report()!r}"

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()


def _mfu(flops_per_token: float, peak_flops: float) -> Callable[[dict], float | None]:
    """Model flops utilization (arXiv 2204.02311, appendix B): the flops of forward and backward of
    the tokens that were trained on, without recomputation, over what the devices could do."""

    def read(data: dict) -> float | None:
        if not data.get("seconds") or data.get("tokens") is None:
            return None
        world = Layout.parse(data["layout"]).world
        return flops_per_token * data["tokens"] / data["seconds"] / (world * peak_flops)

    return read
