"""What a run has said of its live bytes: of each rank the newest step that was looked at, and the
budget that it has.

    plans     rank -> budget, predicted peak, the choice for each block ("memory plan")
    reports   rank -> what the newest "memory" event of the rank says
    peaks     step -> rank -> the most bytes that were alive

A timeline has a column for each category; they are in the order of the event's `most`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SHOWN = {
    "parameters": ("parameters", "gathered", "copies"),
    "optimizer": ("optimizer",),
    "gradients": ("gradients",),
    "activations": ("activations",),
    "temporaries": ("temporaries",),
    "buffers": ("communication", "pool", "other"),
}
"""What is drawn as one. tests/unit/monitoring/test_memory.py: every category of the monitor is."""


@dataclass
class MemoryHistory:
    plans: dict[int, dict[str, Any]] = field(default_factory=dict)
    reports: dict[int, dict[str, Any]] = field(default_factory=dict)
    peaks: dict[int, dict[int, int]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.reports)

    def copy(self) -> "MemoryHistory":
        peaks = {step: dict(of) for step, of in self.peaks.items()}
        return MemoryHistory(dict(self.plans), dict(self.reports), peaks)

    def add(self, kind: str, rank: int, data: dict[str, Any]) -> None:
        """An event "memory" or "memory plan"."""
        if kind == "memory plan":
            self.plans[rank] = data
            return
        self.reports[rank] = data
        self.peaks.setdefault(data["step"], {})[rank] = data["most"]["total"]

    @property
    def ranks(self) -> list[int]:
        return sorted(self.reports)

    @property
    def highest(self) -> int:
        """The rank whose peak is the highest."""
        return max(self.ranks, key=lambda rank: self.reports[rank]["most"]["total"])

    @property
    def budget(self) -> int | None:
        return next((plan["budget"] for plan in self.plans.values()), None)

    def at_peak(self, rank: int) -> dict[str, int]:
        """What is drawn -> bytes, when this rank had most."""
        return _together(self.reports[rank]["at_peak"])

    def timeline(self, rank: int) -> Iterator[tuple[float, dict[str, int]]]:
        """(seconds, what is drawn -> bytes)"""
        report = self.reports[rank]
        names = [name for name in report["most"] if name != "total"]
        for seconds, *alive in report["timeline"]:
            yield seconds, _together(dict(zip(names, alive, strict=True)))


def _together(alive: dict[str, int]) -> dict[str, int]:
    return {shown: sum(alive.get(name, 0) for name in names) for shown, names in SHOWN.items()}
