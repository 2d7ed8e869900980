"""What somebody who watches a run looks at, beside its loss and speed: what was noticed, who comes
late, the gradient's norm, the loss scale, the processes' memory, and the alerts.

    state = RunState(events, watch=True)
    state.watch.findings()        # the alerts if an alert manager has left some, else the anomalies

A part of `RunState`, fed with the same events. Everything that is drawn is bounded: a picture costs
the same at any length. The findings in words are all kept; a run that has thousands of them has
another problem.
"""

import itertools
import math
from typing import NamedTuple

from picolab.monitoring.alert_history import Transition
from picolab.monitoring.anomalies import AnomalyDetector
from picolab.monitoring.events import Event
from picolab.monitoring.series import Binned, Series, largest_of_each
from picolab.show.plain import visible

COLUMNS = 200
MARKS = 200
NOTICED = "noticed"
_SEVERAL = 3  # findings whose words a mark shows; of more it says how many


class Finding(NamedTuple):
    """An alert, or an anomaly: from when to when, and what it says."""

    name: str
    rank: int | str | None
    state: str
    """of an alert as in alert_history.py; NOTICED: of one moment"""
    begin: int | None
    """step; None: of none, such as how the run ended"""
    fired: int | None
    """step from which it counts"""
    end: int | None
    """step at which it was over"""
    said: str
    cause: str = ""
    """of one that was held back: by what"""


class Watch:
    def __init__(self):
        self.detector = AnomalyDetector()
        self.grad_norms, self.loss_scales, self.overflows = Series(), Series(), Series()
        self.scaled = False
        """Was the loss ever multiplied by something?"""
        self.resident = Binned(COLUMNS, largest_of_each)
        """by step, rank -> resident bytes of its process"""
        self.marks = Binned(MARKS, _both)
        """by step, what was noticed then: (how many, the first few in words)"""
        self._alerts: dict[tuple, Finding] = {}
        self._count = itertools.count()
        self._from = -math.inf  # steps before this one were not heard whole

    def add(self, event: Event) -> None:
        """Whatever `RunState` hears."""
        data = event.data
        if event.kind == "step":
            self._step(event.rank, data)
        elif event.kind == "went back" and data.get("to") is not None:
            for series in (self.grad_norms, self.loss_scales, self.overflows):
                series.forget(data["to"])
        if self._judges(event):
            for found in self.detector.add(event):
                self._mark(found.step, str(found))

    def missed(self, step: int) -> None:
        """Some events were not heard, of steps up to this one: nothing of those is judged."""
        self._from = step + 2  # the next one's collectives may have been among them
        before, self.detector = self.detector, AnomalyDetector(self.detector.world_size)
        self.detector.found, self.detector.late = before.found, before.late
        self.detector.late_now = before.late_now

    def _judges(self, event: Event) -> bool:
        """Those of other programs and older versions may have too little to judge by."""
        data = event.data
        if event.kind == "step":
            return data["step"] >= self._from and None not in map(data.get, ("seconds", "layout"))
        if event.kind == "ledger":
            told = [entry.step for entry in data["entries"] if entry.step is not None]
            return not told or told[-1] >= self._from
        return True

    def _step(self, rank: int, data: dict) -> None:
        step = data["step"]
        for series, name in ((self.grad_norms, "grad_norm"), (self.loss_scales, "loss_scale")):
            if data.get(name) is not None:
                series.add(step, float(data[name]))
        self.scaled = self.scaled or data.get("loss_scale") not in (None, 1)
        if data.get("skipped") and data.get("loss_scale") is not None:
            self.overflows.add(step, float(data["loss_scale"]))
        if data.get("rss_bytes"):
            self.resident.add(step, {rank: data["rss_bytes"]})

    def _mark(self, step: int | None, said: str) -> None:
        if step is not None:
            self.marks.add(step, (1, (visible(said),)))

    def alert(self, told: Transition) -> None:
        """What has become of an alert."""
        key, step = (told.name, told.rank), told.step
        known = self._alerts.get(key)
        if known is None or known.end is not None:
            if known is not None:  # it comes again: another row
                self._alerts[*key, next(self._count)] = self._alerts.pop(key)
            known = Finding(*key, told.state, step, None, None, "")
        words = {"said": visible(told.said), "cause": visible(told.cause or "")}
        known = known._replace(state=told.state, **words)
        if told.state == "firing" and known.fired is None:
            known = known._replace(fired=step)
            self._mark(step, f"step {step}: {known.said}")
        if told.state in ("resolved", "passed"):
            known = known._replace(end=step)
        self._alerts[key] = known

    def findings(self) -> list[Finding]:
        """The alerts, if an alert manager has left some; else the anomalies. Oldest first."""
        found = list(self._alerts.values()) or [
            Finding(a.name, a.ranks[0] if len(a.ranks) == 1 else None, NOTICED,
                    a.step, a.step, a.step, visible(a.text))
            for a in self.detector.found
        ]  # fmt: skip
        return sorted(found, key=lambda f: math.inf if f.begin is None else f.begin)


def _both(one: tuple, other: tuple) -> tuple:
    return one[0] + other[0], (*one[1], *other[1])[:_SEVERAL]
