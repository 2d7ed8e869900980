"""Where each rank was when a run stood still or failed: kept in the run directory, as `where.json`.

A rank can be asked as long as it lives, and a run that hangs is ended at some time. So the launcher
writes down, before it kills the ranks, what a diagnosis needs, which may be made at once
or a week later (who_waits.py): of each rank the newest calls that its beacon has, in which of them
it stood, its stack, and what torch's flight recorder has under way. That is 64 calls and `STACK`
letters of stack at most, some ten thousand bytes a rank.

A run whose kernel was killed has no such file, but its beacons are still there: `left_in` reads
them. So does whoever looks at a run that goes on.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from picolab.monitoring import blame
from picolab.monitoring.beacon import Call, Reading, read, read_calls
from picolab.show.files import private, write_beside

NAME, VERSION = "where.json", 1
STACK = 20_000
NOTHING = Reading(0, 0, "")
State = Literal["running", "returned", "stopped", "gone"]


class OtherVersion(ValueError):
    """The file was written by a picolab that knew other things."""


@dataclass
class RankThen:
    """One rank, as it was found."""

    reading: Reading = NOTHING
    calls: tuple[Call, ...] = ()
    """The newest ones, oldest first."""
    state: State = "running"
    stack: str = ""
    """As `launch/stacks.py` gives it; "" where nobody asked."""
    in_torch: bool = False
    """Whether the stack ends in a call of torch.distributed."""
    flight: list[dict[str, Any]] | None = None
    """The newest entries of torch's flight recorder; None where it did not answer."""

    @classmethod
    def of_beacon(cls, path: Path, **about) -> "RankThen":
        return cls(read(path), read_calls(path), **about)

    @property
    def standing(self) -> Call | None:
        """The call in which it stands still."""
        return blame.standing(self.reading, self.calls)

    def hear(self, flight: list[dict[str, Any]]) -> None:
        """What torch's flight recorder tells. If the rank stands in torch, in a call of which the
        beacon knows nothing (DDP's reducer makes such ones), it stands in that."""
        self.flight = flight
        known = self.reading.entered - self.reading.left
        under_way = [entry for entry in flight if not entry["done"]]
        frames = [line for line in self.stack.splitlines() if line.startswith("  File ")]
        ends_in_torch = bool(frames) and "/torch/" in frames[-1]
        if self.standing is not None or not ends_in_torch or len(under_way) <= known:
            return
        first, place = under_way[known], self.reading.entered + 1
        ranks = ", ".join(map(str, first["ranks"]))
        text = (
            f"{first['op']} over {first['group']} of ranks ({ranks}): "
            f"{first['dtype']}{first['shape']} (as torch's flight recorder has it)"
        )
        self.calls = (*self.calls, Call(place, 0, None, text))
        self.reading = Reading(place, self.reading.left, text, place)

    @property
    def last(self) -> Call | None:
        """That, or else the newest one that it entered."""
        return self.standing or (self.calls[-1] if self.calls else None)


@dataclass
class Standstill:
    ranks: dict[int, RankThen]
    failure: str = ""
    """How the run ended, as `RankFailure.kind`; "" where it has not, or was stopped."""
    rank: int | None = None
    """Whose failure it was."""
    what: str = ""
    """It in one line."""
    quiet_s: float | None = None
    """For how long nothing had moved."""
    t: float = field(default_factory=time.time)

    def blamed(self) -> blame.Blame:
        """Whom the others wait for."""
        at = self.ranks.items()
        return blame.of_hang(
            {rank: then.reading for rank, then in at},
            returned={rank for rank, then in at if then.state in ("returned", "gone")},
            stopped={rank for rank, then in at if then.state == "stopped"},
            calling={rank for rank, then in at if then.in_torch},
            calls={rank: then.calls for rank, then in at},
        )

    def save(self, run_dir: Path) -> None:
        ranks = {
            str(rank): {**vars(then), "stack": then.stack[-STACK:]}
            for rank, then in self.ranks.items()
        }
        about = {**vars(self), "ranks": ranks, "version": VERSION}
        write_beside(run_dir / NAME, json.dumps(about), mode=0o600)


def load(run_dir: Path) -> Standstill | None:
    """What was kept of a run; None if nothing was."""
    try:
        with open(run_dir / NAME, opener=private) as file:
            about = json.load(file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{run_dir / NAME} is damaged: {error}") from None
    version = about.pop("version", None) if isinstance(about, dict) else None
    if version != VERSION:
        raise OtherVersion(
            f"{run_dir / NAME} was written by another version of picolab (its format is "
            f"{version}, this one reads {VERSION}); look at it with that one, or run again"
        )
    about["ranks"] = {
        int(rank): RankThen(
            Reading(*of.pop("reading")), tuple(Call(*call) for call in of.pop("calls")), **of
        )
        for rank, of in about["ranks"].items()
    }
    return Standstill(**about)


def left_in(run_dir: Path, world_size: int) -> Standstill | None:
    """What the beacons say: of a run that goes on, or whose kernel was killed. None without any."""
    paths = {rank: run_dir / f"beacon.{rank}" for rank in range(world_size)}
    if not any(path.exists() for path in paths.values()):
        return None
    return Standstill({rank: RankThen.of_beacon(path) for rank, path in paths.items()})
