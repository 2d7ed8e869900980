"""When to tell somebody: alert rules, as a small YAML file with a schema.

    rules:
      - name: slow rank
        anomaly: slow rank            # of the detector (anomalies.py): one name, or a list
        quiet: 30 steps               # so long without it, and it is resolved
        hides: [slow run]             # what it is the cause of: shown, and not told
      - name: memory nearly full
        metric: rss_bytes             # of the collector (metrics.py)
        over: max                     # of the ranks: min, mean, max; or each, by itself
        above: 8e9
        until: 7.5e9                  # once above, it counts as above until it is below this
        for: 8 of 10 steps            # before that it is pending, and nobody is told
        severity: page                # page: somebody has to come now; ticket: tomorrow will do

`for`, `settle` and `quiet` are durations: `10 steps`, `5 s`, `10 steps and 5 s`; `for` also `8 of
10 steps`. What they do is said in alerts.py. The rules that are used without a file are
alert_rules.yaml, beside this one.

An error budget (at most 1 % of steps are skipped, say) is watched by how fast it burns, in two
windows at once: `for: 14 of 200 steps and 3 of 20 steps` is seven times that, and still goes on.
The long window alone also fires of what is spread thinly, or is nearly over; the short one alone of
three bad steps, which are no harm (Site Reliability Workbook, chapter 5).

A mistake is told with its line and with what would be right, all mistakes of a file at once. (The
metric of a rule that never fires, since its name is not the collector's, was the original's.)
"""

import dataclasses
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import yaml

from picolab.monitoring import anomalies
from picolab.monitoring.metrics import METRICS, OverRanks
from picolab.show import yaml_file
from picolab.show.yaml_file import FileMistake, line_of

if TYPE_CHECKING:
    from picolab.monitoring.collector import MetricsCollector

DEFAULT = Path(__file__).with_suffix(".yaml")
Severity = Literal["page", "ticket"]
Over = Literal["min", "mean", "max", "each"]
Rank = int | str | None
"""Whose an alert is: a rank, a link such as "0 -> 1", or None, nobody's in particular."""


class Moment(NamedTuple):
    """When: how many steps were looked at until then, and the time in seconds."""

    tick: int
    t: float


class Hit(NamedTuple):
    """A rule holds: the value, if it has one, and what is the matter in words."""

    value: float | None
    said: str


@dataclass(frozen=True)
class Duration:
    """So many steps (of the last `of`), of which so many lately (of the last `short_of`), and so
    many seconds."""

    steps: int = 0
    of: int = 0
    seconds: float = 0.0
    short_steps: int = 0
    short_of: int = 0

    @classmethod
    def parse(cls, text: Any, share: bool = False) -> "Duration":
        windows, found = [], cls()
        for part in str(text).split(" and "):
            steps = re.fullmatch(r"\s*(?:(\d{1,6}) of )?(\d{1,6}) steps?\s*", part)
            seconds = re.fullmatch(r"\s*(\d{1,6}(?:\.\d+)?) s\s*", part)
            if steps and (share or steps[1] is None):
                of = int(steps[2])
                windows.append((of, int(steps[1] or of)))
            elif seconds and not found.seconds:
                found = dataclasses.replace(found, seconds=float(seconds[1]))
            else:
                or_of = ", 8 of 10 steps" if share else ""
                raise ValueError(f"{text!r} is no duration; write 10 steps, 5 s{or_of}, or both "
                                 "with `and`")  # fmt: skip
        for of, steps in windows:
            if steps > of:
                raise ValueError(f"{text!r}: {steps} of {of} steps cannot be")
        if len(windows) > 1 + share:
            most = "two windows" if share else "one number"
            raise ValueError(f"{text!r} has {len(windows)} times steps, and {most} is the most")
        (long, short) = (sorted(windows, reverse=True) + [(0, 0)] * 2)[:2]
        if short[1] > long[1]:
            raise ValueError(f"{text!r}: {short[1]} of {short[0]} steps are always more than "
                             f"{long[1]} of {long[0]}; leave the longer window out")  # fmt: skip
        return dataclasses.replace(
            found, steps=long[1], of=long[0], short_steps=short[1], short_of=short[0]
        )

    def passed(self, since: Moment, now: Moment, times: float = 1) -> bool:
        long = now.tick - since.tick >= self.of * times
        return long and now.t - since.t >= self.seconds * times

    def __bool__(self) -> bool:
        return bool(self.of or self.seconds)


class _Wrong(ValueError):
    """Of a rule's field."""

    def __init__(self, field: str, sentence: str):
        super().__init__(sentence)
        self.field = field


@dataclass(frozen=True)
class Rule:
    """One rule, checked. See above."""

    name: str
    about: str = ""
    """what to do when it fires"""
    severity: Severity = "ticket"
    anomaly: tuple[str, ...] = ()
    metric: str = ""
    label: str = ""
    """of a metric that has several (an axis, a layer): which; "": whichever is worst"""
    over: Over = "max"
    above: float | None = None
    below: float | None = None
    until: float | None = None
    held: Duration = Duration()
    """`for` in the file"""
    settle: Duration = Duration()
    """and then so long until it is told, in which a cause may be found that hides it"""
    quiet: Duration = Duration(30, 30)
    hides: tuple[str, ...] = ()
    hides_same_rank: tuple[str, ...] = ()
    group: str = ""
    """rules of one group that fire at once are told in one message; "": its own"""

    def __post_init__(self):
        if not isinstance(self.name, str) or not re.fullmatch(r"[\w -]{1,60}", self.name):
            raise _Wrong("name", f"{self.name!r} is no name: letters, digits, spaces and -")
        for field, kinds in (("severity", Severity), ("over", Over)):
            if getattr(self, field) not in get_args(kinds):
                among = " or ".join(get_args(kinds))
                raise _Wrong(field, f"{field} is {getattr(self, field)!r}; it is {among}")
        if bool(self.anomaly) == bool(self.metric):
            raise _Wrong("name", "a rule is on an `anomaly` or on a `metric`, and this one on "
                         + ("both" if self.metric else "none"))  # fmt: skip
        for name in self.anomaly:
            if name not in anomalies.NAMES:
                raise _Wrong("anomaly", _unknown("anomaly", name, anomalies.NAMES))
        if not self.quiet:
            raise _Wrong("quiet", "quiet is nothing, so it would be resolved as soon as it fires; "
                         "write 30 steps")  # fmt: skip
        limits = [self.above is not None, self.below is not None]
        if self.anomaly and (any(limits) or self.until is not None or self.label):
            raise _Wrong("anomaly", "an anomaly has no above, below, until or label: the detector "
                         "has judged already")  # fmt: skip
        if self.metric and sum(limits) != 1:
            raise _Wrong("metric", "say `above` or `below` what the metric counts, and not both")
        known = next((metric for metric in METRICS if metric.name == self.metric), None)
        if self.label and known is not None and not known.label:
            raise _Wrong("label", f"{self.metric} has no labels, so it would never fire for "
                         f"{self.label!r}")  # fmt: skip
        if self.until is not None and (
            self.until > self.above if self.below is None else self.until < self.below
        ):
            side = "above" if self.below is None else "below"
            raise _Wrong("until", f"until is {self.until:g}, on the wrong side of {side} "
                         f"{getattr(self, side):g}: it would be over before it began")  # fmt: skip

    def hits(
        self, collector: "MetricsCollector", step: int, active: Collection[Rank]
    ) -> dict[Rank, Hit]:
        """Of a rule on a metric: where it holds at this step. active: whose alert is on, for whom
        `until` counts."""
        metric = collector.metrics[self.metric]
        at = None if metric.event == "host" else step  # (the host knows no steps: its newest)
        every = [""] if not metric.label else collector.labels(self.metric)
        found: dict[Rank, Hit] = {}
        for label in [self.label] if self.label else every:
            by_rank = collector.of_ranks(self.metric, at, label)
            for rank, value, whose in self._over(by_rank):
                limit = self.above if self.below is None else self.below
                if rank in active and self.until is not None:
                    limit = self.until
                sign, side = (1, "above") if self.below is None else (-1, "below")
                worst = found.get(rank)
                if sign * value > sign * limit and (
                    worst is None or sign * value > sign * worst.value
                ):
                    named = f"{self.metric}{{{metric.label}={label}}}" if label else self.metric
                    unit = f" {metric.unit}" if metric.unit else ""
                    said = f"{named} is {value:.4g}{unit}{whose}, {side} {limit:.4g}"
                    found[rank] = Hit(value, said)
        return found

    def _over(self, by_rank: Mapping[int, float]) -> Iterator[tuple[Rank, float, str]]:
        if self.over == "each":
            for rank, value in sorted(by_rank.items()):
                yield (rank if rank >= 0 else None), value, ""
        elif by_rank:
            over = OverRanks.of(by_rank)
            whose = {"min": over.min_rank, "max": over.max_rank}.get(self.over, -1)
            of = f" on rank {whose}" if whose >= 0 else ""
            yield (
                None,
                getattr(over, self.over),
                of or " in the mean of the ranks" * (len(by_rank) > 1),
            )


def ranks_of(rank: Rank) -> set[int]:
    """The ranks that it is about: of a link both."""
    return set() if rank is None else {int(part) for part in str(rank).split(" -> ")}


def whose(anomaly: anomalies.Anomaly) -> list[Rank]:
    """Each rank by itself, a link as one, and None for nobody's."""
    if anomaly.name == "slow link":
        return [" -> ".join(map(str, anomaly.ranks))]
    return list(anomaly.ranks) or [None]


def load(path: str | Path | None = None, metrics: Iterable[str] | None = None) -> tuple[Rule, ...]:
    """The rules of a file (None: the default ones), causes before what they hide. metrics: the
    names that there are; None: the collector's own."""
    path = DEFAULT if path is None else Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no file of alert rules {path}")
    root, data = yaml_file.read(path)
    if not isinstance(data, dict) or not isinstance(data.get("rules"), list) or len(data) != 1:
        raise FileMistake(
            f"{path.name}, line 1: a file of alert rules is `rules:` and below it a list, each "
            "with a name and an anomaly or a metric"
        )
    rules, wrong = [], []
    for i, entry in enumerate(data["rules"]):
        try:
            rules.append(_rule(entry, line_node(root, i), _known(metrics)))
        except _Wrong as mistake:
            wrong.append((line_of(root, ("rules", i, mistake.field)), str(mistake)))
    if wrong:
        raise FileMistake("\n".join(f"{path.name}, line {n}: {said}" for n, said in wrong))
    try:
        return in_order(rules, metrics)
    except _Wrong as mistake:
        name, _, sentence = str(mistake).partition(": ")
        last = max(i for i, rule in enumerate(rules) if rule.name == name)
        line = line_of(root, ("rules", last, mistake.field))
        raise FileMistake(f"{path.name}, line {line}: {name}: {sentence}") from None


def line_node(root: yaml.Node, i: int) -> yaml.Node:
    [(_, rules)] = root.value
    return rules.value[i]


def _rule(entry: Any, node: yaml.Node, metrics: list[str]) -> Rule:
    if not isinstance(entry, dict):
        raise _Wrong("", f"{entry!r} is no rule; a rule has a name and an anomaly or a metric")
    names = {f.name: f.name for f in dataclasses.fields(Rule)}
    names = {("for" if name == "held" else name): name for name in names}
    written = [key.value for key, _ in node.value]
    given: dict[str, Any] = {}
    for key, value in entry.items():
        if key not in names:
            raise _Wrong(str(key), _unknown("field of a rule", key, names))
        if written.count(key) > 1:
            raise _Wrong(key, f"`{key}` is there twice")
        given[names[key]] = _value(key, value)
    if "name" not in given:
        raise _Wrong("", "a rule needs a `name`, by which its alerts are called")
    _has_metric(given.get("metric", ""), metrics)
    return Rule(**given)


def _known(metrics: Iterable[str] | None) -> list[str]:
    return [metric.name for metric in METRICS] if metrics is None else list(metrics)


def _has_metric(name: str, metrics: list[str]) -> None:
    if name and name not in metrics:
        raise _Wrong("metric", _unknown("metric", name, metrics))


def _value(key: str, value: Any) -> Any:
    """A field as the rule has it."""
    if key in ("for", "settle", "quiet"):
        try:
            return Duration.parse(value, share=key == "for")
        except ValueError as error:
            raise _Wrong(key, f"{key}: {error}") from None
    if key in ("anomaly", "hides", "hides_same_rank"):
        several = [value] if isinstance(value, str) else value
        if not isinstance(several, list) or not all(isinstance(name, str) for name in several):
            raise _Wrong(key, f"{key} is {value!r}; it is a name, or a list of names in brackets")
        return tuple(several)
    if key in ("above", "below", "until"):
        try:  # (YAML takes 8e9 for a word)
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise _Wrong(key, f"{key} is {value!r}; it is a number, such as 0.5 or 8e9")
        return number
    if not isinstance(value, str):
        raise _Wrong(key, f"{key} is {value!r}; it is a text")
    return value


def in_order(rules: Iterable[Rule], metrics: Iterable[str] | None = None) -> tuple[Rule, ...]:
    """Causes before what they hide; ValueError where that cannot be."""
    rules = tuple(rules)
    for rule in rules:
        _has_metric(rule.metric, _known(metrics))
    by_name = {rule.name: rule for rule in rules}
    for i, rule in enumerate(rules):
        if any(other.name == rule.name for other in rules[:i]):
            raise _Wrong("name", f"{rule.name}: there is a rule of this name already")
        for field in ("hides", "hides_same_rank"):
            for name in getattr(rule, field):
                if name not in by_name:
                    text = _unknown("rule", name, by_name)
                    raise _Wrong(field, f"{rule.name}: it hides what is not here: {text}")
    causes = {name: [] for name in by_name}
    for rule in rules:
        for name in (*rule.hides, *rule.hides_same_rank):
            causes[name].append(rule.name)
    try:
        return tuple(by_name[name] for name in TopologicalSorter(causes).static_order())
    except CycleError as error:
        ring = error.args[1]
        hides = " hides ".join(reversed(ring))
        sentence = f"{ring[0]}: {hides}: they would hide each other, and nobody be told"
        raise _Wrong("hides", sentence) from None


def _unknown(what: str, name: Any, known: Collection[str]) -> str:
    close = get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
    return f"there is no {what} {name!r}; {hint}"
