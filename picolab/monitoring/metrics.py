"""What is measured of a run: every metric, its kind, its unit, and the event that it is read from.

A counter only ever grows (bytes, tokens): what is asked of it is by how much. A gauge is what
something is (a loss, a size). A histogram is how a gauge was spread: how many steps took up to
10 ms, up to 20, ... . All are of a rank; over ranks there are the least, the mean, the largest, and
whose it was (`OverRanks`), since a mean over ranks hides the one that is slow.
"""

import bisect
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

Kind = Literal["counter", "gauge", "histogram"]
# Read from an event: a number; numbers by label (an axis, a layer); None: it does not say.
Reading = float | Mapping[str, float] | None


class Metric(NamedTuple):
    name: str
    kind: Kind
    unit: str
    what: str
    event: str
    """The kind of event that it is read from."""
    read: Callable[[dict[str, Any]], Reading]
    label: str = ""
    """What its labels are: "axis", "layer", or nothing."""
    shared: bool = False
    """Of the whole run, so every rank tells the same: of a counter the ranks are not added up."""


class OverRanks(NamedTuple):
    """One metric at one step, over the ranks that told it."""

    min: float
    mean: float
    max: float
    min_rank: int
    max_rank: int

    @classmethod
    def of(cls, values: Mapping[int, float]) -> "OverRanks":
        least, most = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
        mean = sum(values.values()) / len(values)
        return cls(values[least], mean, values[most], least, most)


class Histogram:
    """How often a value was at most each bound; the last bucket has all."""

    BOUNDS = tuple(m * 10.0**e for e in range(-4, 3) for m in (1, 2, 5))  # 0.1 ms to 500 s

    def __init__(self) -> None:
        self.counts = [0] * (len(self.BOUNDS) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.BOUNDS, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def quantile(self, share: float) -> float:
        """An upper bound of what this share of the values was at most: the bound of the bucket in
        which it lies; infinite above the last bound."""
        rest = share * self.count
        for bound, count in zip((*self.BOUNDS, float("inf")), self.counts):
            rest -= count
            if rest <= 0:
                return bound
        return float("inf")


def _field(name: str) -> Callable[[dict], Reading]:
    return lambda data: data.get(name)


def _speed(data: dict) -> Reading:
    if not data.get("seconds") or data.get("tokens") is None:
        return None
    return data["tokens"] / data["seconds"]


def _by_axis(value: Callable[[Any], float]) -> Callable[[dict], Reading]:
    def read(data: dict) -> Reading:
        found: dict[str, float] = {}
        for entry in data["entries"]:
            if entry.step is not None:
                found[entry.axis] = found.get(entry.axis, 0.0) + value(entry)
        return found

    return read


def _largest_over_mean(data: dict) -> Reading:
    return {
        str(layer): max(loads) * len(loads) / max(1, sum(loads))
        for layer, loads in data["loads"].items()
    }


def _dropped(data: dict) -> Reading:
    return dict(zip(map(str, data["loads"]), data["dropped"]))


_STEP = (
    ("loss", "gauge", "nats", "mean over the global batch's valid tokens", _field("loss")),
    ("own_loss", "gauge", "nats", "of the rank's own tokens, unreduced", _field("own_loss")),
    ("grad_norm", "gauge", "", "of the whole gradient, unclipped", _field("grad_norm")),
    ("own_grad_norm", "gauge", "", "of the rank's own gradient", _field("own_grad_norm")),
    ("learning_rate", "gauge", "", "", _field("lr")),
    ("loss_scale", "gauge", "", "of fp16", _field("loss_scale")),
    ("tokens_per_second", "gauge", "1/s", "of the global batch", _speed),
    ("tokens", "counter", "", "trained on, by all ranks", _field("tokens")),
    ("step_seconds", "histogram", "s", "a step of the rank", _field("seconds")),
    ("data_seconds", "gauge", "s", "of it, until the batch was there", _field("data_s")),
    ("queued_seconds", "gauge", "s", "of it, waiting for a core", _field("queued_s")),
    ("cpu_seconds", "counter", "s", "of the rank's process", _field("cpu_s")),
    ("rss_bytes", "gauge", "bytes", "resident memory of the rank", _field("rss_bytes")),
    ("skipped_steps", "counter", "", "not updated, by agreement",
     lambda data: float(bool(data.get("skipped")))),
)  # fmt: skip

_SHARED = ("loss", "grad_norm", "learning_rate", "loss_scale", "tokens", "skipped_steps")
_HOST = (
    ("cpu_percent", "%", "of all cores", ""),
    ("memory_available_bytes", "bytes", "that programs could still get", ""),
    ("cpu_pressure_percent", "%", "of the last 10 s something waited for a core", ""),
    ("gpu_percent", "%", "in which a kernel ran", "gpu"),
    ("gpu_memory_bytes", "bytes", "in use", "gpu"),
    ("gpu_watts", "W", "", "gpu"),
    ("gpu_celsius", "C", "", "gpu"),
    ("gpu_sm_mhz", "MHz", "clock of its processors", "gpu"),
)

METRICS: tuple[Metric, ...] = (
    *(Metric(name, kind, unit, what, "step", read, shared=name in _SHARED)
      for name, kind, unit, what, read in _STEP),
    Metric("collectives", "counter", "", "that the rank did", "ledger",
           _by_axis(lambda entry: 1.0), "axis"),
    Metric("payload_bytes", "counter", "bytes", "of its collectives", "ledger",
           _by_axis(lambda entry: entry.payload_bytes), "axis"),
    Metric("exposed_seconds", "counter", "s", "in which it stood still in them", "ledger",
           _by_axis(lambda entry: entry.exposed_s), "axis"),
    Metric("expert_imbalance", "gauge", "", "largest load over mean load", "experts",
           _largest_over_mean, "layer"),
    Metric("expert_dropped", "counter", "", "choices beyond an expert's capacity", "experts",
           _dropped, "layer"),
    *(Metric(name, "gauge", unit, what, "host", _field(name), label)
      for name, unit, what, label in _HOST),
)  # fmt: skip
