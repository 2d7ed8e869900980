"""What a run gives back."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from picolab.monitoring import History, Ledger


@dataclass(repr=False)
class RunResult:
    """`result[rank]` is what the function returned there.

    `.events` are all ranks' events in order of arrival (a `History`), `.ledger` all ranks'
    collectives, `.seconds` the time from the call to the last result, `.run_dir` where the logs
    are."""

    values: list
    events: History = field(default_factory=History)
    seconds: float = 0.0
    run_dir: Path | None = None
    backend: str = ""

    def __getitem__(self, rank: int):
        return self.values[rank]

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator:
        return iter(self.values)

    @property
    def world_size(self) -> int:
        return len(self.values)

    @cached_property
    def ledger(self) -> Ledger:
        return self.events.ledger

    def __repr__(self) -> str:
        how = f"in {self.seconds:.2f} s, backend {self.backend}"
        lines = [f"RunResult of {self.world_size} rank(s) {how}"]
        for rank, value in enumerate(self.values):
            text = repr(value)
            lines.append(f"  [{rank}] {text if len(text) <= 200 else text[:200] + ' ...'}")
        return "\n".join(lines)
