"""What a run has said of its experts, step by step: loads, what was dropped, and for how long ranks
waited for the one with the most rows.

    loads       layer -> choices that fell on each expert, over all ranks (the event "experts")
    dropped     how many of them were beyond an expert's capacity
    evenness    the entropy of a layer's shares over ln E: 1 where all experts are asked alike, 0
                where one has all; the mean of the layers
    predicted   by how much the experts' part of a step is longer than with equal rows on all ranks
    measured    the same of the seconds

The last two are read from the ledger, in the same way. In each layer a rank has had its rows when
the exchange that brings them ends, and is done when it sends them back: between the two its experts
compute, with as many rows as go back. The next exchange begins when the slowest has come, so

    sum over the exchanges of the largest of an ep group  /  the same sum of its mean

once of rows and once of seconds, forward and backward. Without ranks of ep there is neither.

What is kept is thinned out, every second step at a time, once there are more than MOST.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from picolab.monitoring.ledger import Entry
from picolab.monitoring.step_split import arrival

MOST = 240
# Rows come, and go back when the experts have computed: forward, and backward.
_PAIRS = (
    ("ep: rows to experts", "ep: rows back"),
    ("ep: gradients of rows back", "ep: gradients of rows from experts"),
)


class SlowDown(NamedTuple):
    """Of the experts' part of a step, against ranks with equal rows; 1: none."""

    predicted: float
    """By rows."""
    measured: float
    """By seconds."""


@dataclass
class ExpertHistory:
    loads: dict[int, dict[int, list[int]]] = field(default_factory=dict)
    """step -> layer -> choices of each expert"""
    dropped: dict[int, int] = field(default_factory=dict)
    """step -> choices, of all layers"""
    slow_downs: dict[int, SlowDown] = field(default_factory=dict)
    _every: int = 1

    def __bool__(self) -> bool:
        return bool(self.loads)

    def copy(self) -> "ExpertHistory":
        loads = {step: dict(layers) for step, layers in self.loads.items()}
        return ExpertHistory(loads, dict(self.dropped), dict(self.slow_downs), self._every)

    def add(self, data: dict) -> None:
        """An event "experts". Each stage of a pipeline tells of its own layers."""
        step = data["step"]
        if step % self._every:
            return
        layers = self.loads.setdefault(step, {})
        layers.update({int(layer): load for layer, load in data["loads"].items()})
        self.dropped[step] = self.dropped.get(step, 0) + sum(data["dropped"])
        if len(self.loads) > MOST:
            self._every *= 2
            for kept in (self.loads, self.dropped, self.slow_downs):
                for other in [step for step in kept if step % self._every]:
                    del kept[other]

    def add_step(self, step: int, entries: Iterable[Entry]) -> None:
        """Everything that all ranks sent in a step."""
        if step in self.loads and (found := slow_down(entries)):
            self.slow_downs[step] = found

    @property
    def steps(self) -> list[int]:
        return sorted(self.loads)

    @property
    def layers(self) -> list[int]:
        return sorted({layer for layers in self.loads.values() for layer in layers})

    def shares(self, step: int) -> dict[int, list[float]]:
        """layer -> each expert's load over the even share: 1 where all are asked alike."""
        return {
            layer: [load * len(loads) / (sum(loads) or 1) for load in loads]
            for layer, loads in sorted(self.loads[step].items())
        }

    def evenness(self, step: int) -> float:
        """1: all experts are asked alike; 0: one has all. Mean of the layers."""
        of_layers = [_entropy(loads) for loads in self.loads[step].values()]
        return sum(of_layers) / len(of_layers)

    def dropped_share(self, step: int) -> float:
        asked = sum(sum(loads) for loads in self.loads[step].values())
        return self.dropped[step] / asked if asked else 0.0

    def busiest(self, step: int) -> float:
        """The largest load of an expert over the even share, of all layers."""
        return max(share for shares in self.shares(step).values() for share in shares)


def slow_down(entries: Iterable[Entry]) -> SlowDown | None:
    """Of one step; None where no rows travel."""
    by_rank: dict[tuple, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.axis == "ep":
            by_rank[entry.reason, entry.ranks, entry.rank].append(entry)
    sums = [[0.0, 0.0], [0.0, 0.0]]  # rows, seconds: of the largest, of the mean
    for come, back in _PAIRS:
        groups = {ranks for reason, ranks, _ in by_rank if reason == back}
        for ranks in groups:
            came = [sorted(by_rank[come, ranks, rank], key=_ended) for rank in ranks]
            gone = [sorted(by_rank[back, ranks, rank], key=arrival) for rank in ranks]
            if len({len(of) for of in (*came, *gone)}) != 1:
                continue  # a rank has not told all
            for arrived, left in zip(zip(*came), zip(*gone)):
                rows = [entry.payload_bytes for entry in left]
                seconds = [max(0.0, arrival(b) - _ended(a)) for a, b in zip(arrived, left)]
                for of, each in zip(sums, (rows, seconds)):
                    of[0] += max(each)
                    of[1] += sum(each) / len(each)
    if not all(mean for _, mean in sums):
        return None
    return SlowDown(*(most / mean for most, mean in sums))


def _ended(entry: Entry) -> float:
    return entry.start + entry.exposed_s


def _entropy(loads: Sequence[int]) -> float:
    total = sum(loads)
    if not total or len(loads) < 2:
        return 1.0
    shares = [load / total for load in loads if load]
    return -sum(share * math.log(share) for share in shares) / math.log(len(loads)) or 0.0
