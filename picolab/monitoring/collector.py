"""`MetricsCollector`: events in, metrics out, by step and rank.

    collector = MetricsCollector()
    for event in result.events:
        collector.add(event)
    collector.over_ranks("step_seconds")       # OverRanks(min, mean, max, min_rank, max_rank)
    collector.total("payload_bytes", "tp")     # a counter, of all ranks
    collector.register("loss_in_bits", lambda data: data["loss"] / math.log(2), unit="bits")
    collector.to_csv("run.csv")

It collects in the kernel, from what ranks say anyway: nothing is sent for it, no rank waits for it,
and no collective is in it. Which metrics there are is listed in metrics.py, and what can be made of
them in exporters.py. Of each, the newest `kept` steps are there one by one; counters and histograms
are of the whole run.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from picolab.monitoring import exporters
from picolab.monitoring.events import Event
from picolab.monitoring.metrics import METRICS, Histogram, Kind, Metric, OverRanks, Reading
from picolab.show.table import Table

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


class Row(NamedTuple):
    """One value, as exporters see it."""

    step: int
    rank: int
    metric: str
    label: str
    value: float


class MetricsCollector:
    """See above. `add` is called by one thread, the rest by any."""

    def __init__(self, kept: int = 10_000):
        self.kept = kept
        self.metrics: dict[str, Metric] = {}
        self._of_kind: dict[str, list[Metric]] = defaultdict(list)
        self._values: dict[tuple[str, str], dict[int, dict[int, float]]] = defaultdict(dict)
        self._totals: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
        self._histograms: dict[tuple[str, str], dict[int, Histogram]] = defaultdict(dict)
        self._samples = 0
        for metric in METRICS:
            self._take(metric)

    def register(
        self,
        name: str,
        read: Callable[[dict], Reading],
        *,
        event: str = "step",
        kind: Kind = "gauge",
        unit: str = "",
        what: str = "",
        label: str = "",
    ) -> None:
        """Another metric, read from events of this kind: `read(event.data)` gives a number, numbers
        by label, or None."""
        if not isinstance(name, str) or not _NAME.match(name):
            raise ValueError(
                f"a metric's name is of small letters, digits and _, such as loss_in_bits; "
                f"{name!r} is not"
            )
        if name in self.metrics:
            raise ValueError(f"there is a metric {name!r} already; take another name")
        if kind not in ("counter", "gauge", "histogram"):
            raise ValueError(f"a metric is a counter, a gauge or a histogram, and no {kind!r}")
        if not callable(read):
            raise ValueError(f"{name}: read is a function of an event's data, and no {read!r}")
        self._take(Metric(name, kind, unit, what, event, read, label))

    def _take(self, metric: Metric) -> None:
        self.metrics[metric.name] = metric
        self._of_kind[metric.event].append(metric)

    def add(self, event: Event) -> None:
        metrics = self._of_kind.get(event.kind, ())
        step = self._step(event) if metrics else -1
        for metric in metrics:
            try:
                found = metric.read(event.data)
            except Exception as error:
                raise ValueError(
                    f"metric {metric.name!r} cannot be read from an event {event.kind!r} with "
                    f"{', '.join(event.data)}: {error!r}"
                ) from error
            if found is None:
                continue
            labelled = found.items() if isinstance(found, dict) else (("", found),)
            for label, value in labelled:
                self._put(metric, label, step, event.rank, float(value))

    def _step(self, event: Event) -> int:
        if event.kind == "ledger":
            steps = [entry.step for entry in event.data["entries"] if entry.step is not None]
            return steps[-1] if steps else -1
        if "step" in event.data:
            return event.data["step"]
        self._samples += 1  # of the host, which knows no steps
        return self._samples

    def _put(self, metric: Metric, label: str, step: int, rank: int, value: float) -> None:
        key = metric.name, label
        if metric.kind == "counter":
            totals = self._totals[key]
            totals[rank] = totals.get(rank, 0.0) + value
        elif metric.kind == "histogram":
            self._histograms[key].setdefault(rank, Histogram()).add(value)
        by_step = self._values[key]
        by_step.setdefault(step, {})[rank] = value
        if len(by_step) > self.kept:
            del by_step[next(iter(by_step))]

    # -- what is asked --

    def _known(self, name: str) -> Metric:
        if name not in self.metrics:
            raise ValueError(f"there is no metric {name!r}; there are {', '.join(self.metrics)}")
        return self.metrics[name]

    def labels(self, name: str) -> list[str]:
        return [label for metric, label in self._values if metric == self._known(name).name]

    def series(self, name: str, label: str = "", rank: int | None = None) -> dict[int, float]:
        """step -> value; of this rank, or of the lowest rank that told it."""
        self._known(name)
        found = {}
        for step, of_ranks in list(self._values.get((name, label), {}).items()):
            whose = min(of_ranks) if rank is None else rank
            if whose in of_ranks:
                found[step] = of_ranks[whose]
        return found

    def over_ranks(self, name: str, step: int | None = None, label: str = "") -> OverRanks | None:
        """At this step (None: the newest); None if no rank told it."""
        by_rank = self.of_ranks(name, step, label)
        return OverRanks.of(by_rank) if by_rank else None

    def of_ranks(self, name: str, step: int | None = None, label: str = "") -> dict[int, float]:
        """rank -> value at this step (None: the newest), of the ranks that told it."""
        self._known(name)
        by_step = self._values.get((name, label), {})
        if step is None and by_step:
            step = max(by_step)
        return dict(by_step.get(step, {}))

    def total(self, name: str, label: str = "", rank: int | None = None) -> float:
        """Of a counter, over the whole run: of this rank, or of all together (of what every rank
        tells for all, such as tokens: that)."""
        if self._known(name).kind != "counter":
            raise ValueError(f"{name} is a {self._known(name).kind}, and only counters add up")
        totals = self._totals.get((name, label), {})
        if rank is not None:
            return totals.get(rank, 0.0)
        return max(totals.values(), default=0.0) if self._known(name).shared else sum(
            totals.values()
        )  # fmt: skip

    def histogram(self, name: str, rank: int, label: str = "") -> Histogram:
        """Of this rank, over the whole run."""
        if self._known(name).kind != "histogram":
            raise ValueError(f"{name} is a {self._known(name).kind}, which has no histogram")
        return self._histograms.get((name, label), {}).get(rank, Histogram())

    def rows(self) -> Iterator[Row]:
        """All values that are kept, by metric, step and rank."""
        for (name, label), by_step in list(self._values.items()):
            for step, of_ranks in list(by_step.items()):
                for rank, value in sorted(of_ranks.items()):
                    yield Row(step, rank, name, label, value)

    def table(self) -> Table:
        """The newest of each metric, over the ranks."""
        rows = []
        for name, label in list(self._values):
            found, metric = self.over_ranks(name, None, label), self.metrics[name]
            rows.append([
                f"{name}{{{metric.label}={label}}}" if label else name,
                metric.unit, found.min, found.mean, found.max, found.max_rank,
            ])  # fmt: skip
        return Table(["metric", "unit", "min", "mean", "max", "rank with the most"], rows)

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    # -- out --

    def to_jsonl(self, path: str | Path) -> Path:
        return exporters.to_jsonl(self.rows(), path)

    def to_csv(self, path: str | Path) -> Path:
        return exporters.to_csv(self.rows(), path)

    def to_parquet(self, path: str | Path) -> Path:
        return exporters.to_parquet(self.rows(), path)

    def to_tensorboard(self, folder: str | Path) -> Path:
        return exporters.to_tensorboard(self.rows(), folder)

    def serve(self, port: int = 0) -> "exporters.Served":
        return exporters.serve(self, port)
