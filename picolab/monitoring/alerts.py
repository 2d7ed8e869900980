"""`AlertManager`: from what is found to what somebody is told. The life of an alert:

                      holds for `for`,            nothing for `quiet`
    (none) --> pending -----------------> firing ---------------------> resolved
                  |     then for `settle`  |  ^
                  | nothing for `for`      v  | its cause ended, and it holds again
               passed                    inhibited, silenced

    alerts = AlertManager(rules="my_rules.yaml", notify=[Terminal()], folder=RUN_DIRECTORY)
    alerts.hear(detector.add(event))                  # anomalies, as they are found
    alerts.tick(step, t, going_on, collector)         # after each step
    alerts.firing, alerts.hidden, alerts.table()
    alerts.silence("slow rank", rank=2, steps=500, why="its fan is being replaced")

A key, which is (rule, rank), has one alert, so what is found again only counts up. Somebody is told
when it fires and when it is resolved: two messages an episode, however often it was found. Of what
is told, most of the work is in what is not:

* `for`      a value that was too high once is pending, and passes.
* inhibition a rank that is slow makes the run slow: the rule of the cause says what it `hides`.
             Hidden is not lost: the alert is there with its cause, and in the history.
* `settle`   a symptom may be found before its cause. So it waits a little with its message.
* hysteresis it takes `quiet` without a hit to be resolved, and where a rule says `until`, the value
             has to come back as far as that.
* damping    what fires again soon after it was resolved needs twice the quiet, and twice that, ...
* silences   somebody knows already. A silence has an end.
* grouping   what fires at once and belongs together is one message.

Steps are counted as they are looked at, and a look without a new step (`look`) only hears what was
found: a run that hangs has no steps. The history survives the manager: see alert_history.py.
"""

import math
import threading
import time
import warnings
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from picolab.monitoring.alert_history import (
    KEPT,
    AlertHistory,
    State,
    Transition,
    named,
    read_history,
)
from picolab.monitoring.alert_rules import (
    Duration,
    Hit,
    Moment,
    Rank,
    Rule,
    Severity,
    in_order,
    load,
    ranks_of,
    whose,
)
from picolab.monitoring.anomalies import Anomaly
from picolab.show.table import Table

if TYPE_CHECKING:
    from picolab.monitoring.collector import MetricsCollector

Key = tuple[str, Rank]
HIDDEN = ("inhibited", "silenced")
SOON, MOST = 4, 3
"""times its quiet, within which it fires again soon; and how often its quiet is doubled"""


@dataclass
class Alert:
    """One key's, now. What was of its earlier episodes is in the history."""

    name: str
    rank: Rank
    state: State = "passed"
    value: float | None = None
    said: str = ""
    cause: str | None = None
    count: int = 0
    """how often it was found in this episode"""
    began: Moment | None = None
    last: Moment | None = None
    """found"""
    holds: Moment | None = None
    """since when at every look"""
    recent: list[bool] = field(default_factory=list)
    """found at each of the last looks, as many as `for` is about"""
    ready: Moment | None = None
    """it has held for `for`"""
    told: bool = False
    """somebody was told in this episode"""
    again: int = 0
    """how often it fired again soon"""
    resolved: Moment | None = None

    @property
    def open(self) -> bool:
        return self.state not in ("resolved", "passed")

    @property
    def active(self) -> bool:
        """It holds, whether told or hidden."""
        return self.state in ("firing", *HIDDEN)

    def __str__(self) -> str:
        cause = f" by {self.cause}" if self.cause else ""
        return f"{named(self.name, self.rank)}: {self.state}{cause}: {self.said}"


class Notification(NamedTuple):
    """One message: what fires, or is resolved, at once and belongs together."""

    state: Literal["firing", "resolved"]
    severity: Severity
    alerts: tuple[Transition, ...]
    about: str
    """what to do"""

    @property
    def text(self) -> str:
        head = "resolved" if self.state == "resolved" else f"{self.severity}"
        lines = [
            f"{head}: {named(a.name, a.rank)}"
            + (f" (step {a.step})" if a.step is not None else "")
            + f": {a.said}"
            for a in self.alerts
        ]
        return "\n".join(lines)


class Notifier(Protocol):
    """Whoever tells somebody. See notifiers.py."""

    def tell(self, notification: Notification) -> None: ...

    def close(self) -> None: ...


class Silence(NamedTuple):
    name: str | None
    rank: Rank
    tick: int | None
    """it ends before this look, or this time"""
    t: float | None
    why: str

    def over(self, now: Moment) -> bool:
        by_step = self.tick is not None and now.tick >= self.tick
        return by_step or (self.t is not None and now.t >= self.t)

    def is_of(self, alert: Alert) -> bool:
        return self.name in (None, alert.name) and self.rank in (None, alert.rank)


class AlertManager:
    """See above. Any thread may ask; one hears and ticks.

    rules    a file, a list of `Rule`, or None: the default ones
    notify   those who are told
    folder   where the history is kept (a run directory), and gone on with; None: in memory only
    save_s   what was counted between two transitions is saved once in so many seconds; whoever
             starts again can tell it again from there on (`ticks`)"""

    def __init__(
        self,
        rules: str | Path | Sequence[Rule] | None = None,
        notify: Iterable[Notifier] = (),
        folder: str | Path | None = None,
        metrics: Iterable[str] | None = None,
        save_s: float = 0.0,
    ):
        from_file = rules is None or isinstance(rules, str | Path)
        self.rules = load(rules, metrics) if from_file else in_order(rules, metrics)
        self.notifiers = list(notify)
        self.alerts: dict[Key, Alert] = {}
        self.history: deque[Transition] = deque(maxlen=KEPT)
        """the newest transitions, oldest first"""
        self.silences: list[Silence] = []
        self.ticks, self.step = 0, None
        self._t = 0.0
        self._file: AlertHistory | None = None
        self._save_s, self._saved_at = save_s, -math.inf
        self._heard: dict[Key, Hit] = {}
        self._lock = threading.RLock()  # (what asks may ask for more)
        self._rule = {rule.name: rule for rule in self.rules}
        self._place = {name: i for i, name in enumerate(self._rule)}
        self._of_anomaly: dict[str, list[Rule]] = defaultdict(list)
        for rule in self.rules:
            for name in rule.anomaly:
                self._of_anomaly[name].append(rule)
        if folder is not None:
            self.keep_in(folder)

    # -- what is heard --

    def hear(self, found: Iterable[Anomaly]) -> None:
        """Anomalies; they count at the next tick or look."""
        with self._lock:
            self._heard |= self._hits_of(found)

    def tick(
        self,
        step: int | None,
        t: float,
        going_on: Iterable[Anomaly] = (),
        collector: "MetricsCollector | None" = None,
    ) -> list[Transition]:
        """A step is over. going_on: anomalies that were found before and have not ended."""
        hits = self._hits_of(going_on)
        if collector is not None:
            for rule in self.rules:
                if rule.metric:
                    active = {a.rank for a in self._open() if a.name == rule.name}
                    of_rule = rule.hits(collector, step, active)
                    hits |= {(rule.name, rank): hit for rank, hit in of_rule.items()}
        return self.observe(hits, step, t)

    def look(self, t: float, going_on: Iterable[Anomaly] = ()) -> list[Transition]:
        """Time has passed, and perhaps nothing else."""
        with self._lock:
            hits = self._hits_of(going_on)
            waiting = any(alert.ready and not alert.active for alert in self._open())
            if not hits and not self._heard and not waiting:
                return []
            return self.observe(hits, self.step, t, new_step=False)

    def observe(
        self, hits: Mapping[Key, Hit], step: int | None, t: float, new_step: bool = True
    ) -> list[Transition]:
        """What all of the above comes down to: where rules hold now."""
        with self._lock:
            hits = self._heard | dict(hits)
            self._heard = {}
            if not self.ticks and not self._t:  # a silence from before the first look begins now
                self.silences = [s._replace(t=s.t and s.t + t) for s in self.silences]
            self.ticks += new_step
            self.step, self._t = step, max(self._t, t)
            now = Moment(self.ticks, self._t)
            keys = {*hits, *((a.name, a.rank) for a in self._open())}
            # Causes first: what they hide is then hidden in the same look.
            made = [
                transition
                for key in sorted(keys, key=lambda key: (self._place[key[0]], str(key[1])))
                for transition in self._advance(key, hits.get(key), now, new_step)
            ]
            self.history += [transition for transition, _ in made]
            if self._file is not None:
                self._file.append(transition for transition, _ in made)
                self._save(at_once=bool(made))
        self._tell([transition for transition, told in made if told])
        return [transition for transition, _ in made]

    def _hits_of(self, found: Iterable[Anomaly]) -> dict[Key, Hit]:
        return {
            (rule.name, rank): Hit(None, anomaly.text)
            for anomaly in found
            for rule in self._of_anomaly.get(anomaly.name, ())
            for rank in whose(anomaly)
        }

    # -- the machine --

    def _advance(
        self, key: Key, hit: Hit | None, now: Moment, new_step: bool
    ) -> Iterator[tuple[Transition, bool]]:
        """One key, one look. Each transition, and whether somebody is to be told."""
        rule, alert = self._rule[key[0]], self.alerts.setdefault(key, Alert(*key))
        opens = hit is not None and not alert.open
        if opens:
            self._begin(alert, now)
        elif hit is not None and alert.state in HIDDEN and self._hidden(alert, now) is None:
            opens = True  # what hid it has ended, and it goes on
            self._holds_anew(alert)
        _count(alert, rule, hit, now, new_step or opens)
        if alert.state == "pending":
            yield from self._pending(alert, rule, now, new_step, opens)
        elif new_step and self._quiet(alert, now):
            yield self._resolve(alert, now)
        elif (hidden := self._hidden(alert, now)) and hidden[0] != alert.state:
            yield self._become(alert, hidden[0], now, hidden[1]), False

    def _pending(self, alert, rule, now, new_step, opens) -> Iterator[tuple[Transition, bool]]:
        if alert.ready is None and _has_held(alert, rule.held, now):
            alert.ready = now
        if alert.ready is not None and rule.settle.passed(alert.ready, now):
            state, cause = self._hidden(alert, now) or ("firing", None)
            tell = state == "firing" and not alert.told
            alert.told |= tell
            yield self._become(alert, state, now, cause), tell
        elif opens:
            yield self._become(alert, "pending", now), False
        elif alert.told and new_step and self._quiet(alert, now):
            yield self._resolve(alert, now)  # it had fired, was hidden, and did not come back
        elif not (alert.told or alert.ready) and new_step and rule.held.passed(alert.last, now):
            yield self._become(alert, "passed", now), False

    def _quiet(self, alert: Alert, now: Moment) -> bool:
        return self._rule[alert.name].quiet.passed(alert.last, now, 2**alert.again)

    def _resolve(self, alert: Alert, now: Moment) -> tuple[Transition, bool]:
        told, alert.told, alert.resolved = alert.told, False, now
        over = self._become(alert, "resolved", now)
        after = f"over after {now.tick - alert.began.tick} steps: {over.said}"
        return over._replace(said=after), told

    def _begin(self, alert: Alert, now: Moment) -> None:
        quiet = self._rule[alert.name].quiet
        before = alert.resolved
        if before is not None:
            soon = not quiet.passed(before, now, SOON * 2**alert.again)
            alert.again = min(MOST, alert.again + 1) if soon else 0
        alert.began, alert.count, alert.told = now, 0, False
        self._holds_anew(alert)

    @staticmethod
    def _holds_anew(alert: Alert) -> None:
        alert.state, alert.cause = "pending", None
        alert.recent, alert.holds, alert.ready = [], None, None

    def _hidden(self, alert: Alert, now: Moment) -> tuple[State, str] | None:
        """By what, if by anything: a cause that holds itself, or a silence."""
        for other in self.alerts.values():
            rule = self._rule[other.name]
            same = alert.name in rule.hides_same_rank and (
                ranks_of(alert.rank) & ranks_of(other.rank)
            )
            if other.active and (alert.name in rule.hides or same):
                return "inhibited", named(other.name, other.rank)
        self.silences = [silence for silence in self.silences if not silence.over(now)]
        silence = next((s for s in self.silences if s.is_of(alert)), None)
        return silence and ("silenced", f"a silence: {silence.why}")

    def _become(
        self, alert: Alert, state: State, now: Moment, cause: str | None = None
    ) -> Transition:
        alert.state, alert.cause = state, cause
        severity = self._rule[alert.name].severity
        return Transition(
            now.tick, now.t, self.step, alert.name, alert.rank, state, severity, alert.value,
            alert.said, cause,
        )  # fmt: skip

    def _open(self) -> list[Alert]:
        return [alert for alert in self.alerts.values() if alert.open]

    # -- who is told --

    def _tell(self, told: list[Transition]) -> None:
        groups: dict[tuple[str, str], list[Transition]] = defaultdict(list)
        for transition in told:
            rule = self._rule[transition.name]
            groups[transition.state, rule.group or rule.name].append(transition)
        for (state, _), alerts in groups.items():
            worst = "page" if any(a.severity == "page" for a in alerts) else "ticket"
            about = dict.fromkeys(self._rule[a.name].about for a in alerts)
            notification = Notification(state, worst, tuple(alerts), "; ".join(filter(None, about)))
            for notifier in self.notifiers:
                try:
                    notifier.tell(notification)
                except Exception as error:  # somebody's own: the others are told all the same
                    warnings.warn(f"{notifier!r} could not tell of an alert: {error!r}",
                                  stacklevel=2)  # fmt: skip

    def silence(
        self,
        name: str | None = None,
        rank: Rank = None,
        *,
        steps: int | None = None,
        seconds: float | None = None,
        why: str,
    ) -> None:
        """Tell nobody of this rule's alerts (None: of any), of this rank (None: of any), for so
        many steps or seconds from now. They are shown, and told afterwards if they still hold."""
        if name is not None and name not in self._rule:
            raise ValueError(f"there is no rule {name!r}; there are {', '.join(self._rule)}")
        if (steps is None) == (seconds is None) or not (steps or seconds or 0) > 0:
            raise ValueError("a silence has an end: say steps=... or seconds=..., above 0")
        with self._lock:
            until = None if steps is None else self.ticks + steps
            t = None if seconds is None else self._t + seconds
            self.silences.append(Silence(name, rank, until, t, why))
            self._save(at_once=True)

    def close(self) -> None:
        """Let those who tell finish (each takes a bounded time for it), and the history go."""
        for notifier in self.notifiers:
            notifier.close()
        if self._file is not None:
            self._file.close()

    # -- what survives --

    def keep_in(self, folder: str | Path) -> None:
        """Write the history there; go on with what is there of an earlier manager."""
        if self._file is not None or self.ticks:
            raise ValueError("this AlertManager has begun; make another one for another folder")
        file = AlertHistory(folder)
        saved, newer = file.state()
        self.ticks, self.step = saved.get("ticks", 0), saved.get("step")
        self._t = saved.get("t", 0.0)
        self.silences = [Silence(*silence) for silence in saved.get("silences", ())]
        for told in saved.get("alerts", ()):
            times = ("began", "last", "holds", "ready", "resolved")
            alert = Alert(**told | {name: told[name] and Moment(*told[name]) for name in times})
            self.alerts[alert.name, alert.rank] = alert
        for line in newer:
            self._again(line)
        self.history += read_history(folder)
        self._file = file
        for key in [key for key in self.alerts if key[0] not in self._rule]:
            del self.alerts[key]  # of a rule that is no more

    def _again(self, line: Transition) -> None:
        """What the line says has become of an alert. (The last manager had no time to save it.)"""
        now = Moment(line.n, line.t)
        alert = self.alerts.setdefault((line.name, line.rank), Alert(line.name, line.rank))
        if line.name in self._rule:
            if not alert.open:
                self._begin(alert, now)
            self.ticks, self.step, self._t = line.n, line.step, max(self._t, line.t)
            alert.state, alert.value, alert.said, alert.cause = (
                line.state, line.value, line.said, line.cause,
            )  # fmt: skip
            alert.last = alert.holds = now
            alert.recent = [True]
            alert.ready = now if _has_held(alert, self._rule[line.name].held, now) else None
            alert.told = alert.open and (alert.told or line.state == "firing")
            if line.state == "resolved":
                alert.resolved = now

    def _save(self, at_once: bool) -> None:
        now = time.monotonic()
        if self._file is None or (not at_once and now - self._saved_at < self._save_s):
            return
        self._saved_at = now
        self._file.save({
            "ticks": self.ticks, "step": self.step, "t": self._t, "silences": self.silences,
            "alerts": [asdict(alert) for alert in self.alerts.values()],
        })  # fmt: skip

    @property
    def trouble(self) -> str | None:
        """Why the history is not written, if it is not."""
        return self._file and self._file.trouble

    # -- what is asked --

    def _in(self, *states: State) -> list[Alert]:
        with self._lock:
            return [alert for alert in self.alerts.values() if alert.state in states]

    @property
    def pending(self) -> list[Alert]:
        return self._in("pending")

    @property
    def firing(self) -> list[Alert]:
        return self._in("firing")

    @property
    def hidden(self) -> list[Alert]:
        """Those that hold and are not told: inhibited by their cause, or silenced."""
        return self._in(*HIDDEN)

    def table(self) -> Table:
        """What holds now."""
        return now_table(self._in("firing", *HIDDEN, "pending"), self._rule)

    def __repr__(self) -> str:
        return repr(self.table()) if self._open() else "AlertManager: no alert"

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def _count(alert: Alert, rule: Rule, hit: Hit | None, now: Moment, counts: bool) -> None:
    if hit is not None:
        alert.value, alert.said = hit
        alert.last, alert.holds = now, alert.holds or now
        alert.count += 1
    elif counts:
        alert.holds = None
    if counts:
        alert.recent = [*alert.recent, hit is not None][-max(1, rule.held.of) :]


def _has_held(alert: Alert, held: Duration, now: Moment) -> bool:
    if alert.holds is None and held.seconds:
        return False
    long = not held.seconds or now.t - alert.holds.t >= held.seconds
    lately = sum(alert.recent[-held.short_of :]) >= held.short_steps
    return sum(alert.recent) >= held.steps and lately and long


def now_table(alerts: Iterable[Alert], rules: Mapping[str, Rule]) -> Table:
    rows = [
        [a.name, "" if a.rank is None else str(a.rank), a.state, rules[a.name].severity, a.count,
         a.cause or "", a.said]
        for a in sorted(alerts, key=lambda a: (a.began, a.name))
    ]  # fmt: skip
    return Table(["alert", "rank", "is", "severity", "found", "hidden by", "in words"], rows)


def history_table(history: Iterable[Transition]) -> Table:
    rows = [
        ["" if a.step is None else a.step, a.name, "" if a.rank is None else str(a.rank), a.state,
         a.severity, a.cause or "", a.said]
        for a in history
    ]  # fmt: skip
    return Table(["step", "alert", "rank", "became", "severity", "hidden by", "in words"], rows)
