"""What a run has said so far: events in, and out the few series and tables that figures and
sentences need.

`RunState` is fed one event at a time and is cheap to feed: a live view feeds it from a queue, a
finished run from a list, and both draw the same figure. It keeps every step's loss and speed, but
ledger entries of the last `WINDOW` steps only, so that a long run does not grow without bound. Each
step is split once, and a series thins itself as it grows: what a picture costs does not depend on
how long the run has been going on (tests/benchmarks/dashboard.py).

With `watch=True` it also keeps what a monitor looks at (watch.py); whoever only trains does not pay
for it.

A step counts for the split and the ledger once every rank has reported it, so that no half-told
step is drawn. (A rank tells a step's collectives before it tells the step.)
"""

import math
import statistics
from bisect import insort
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from operator import is_

from picolab.monitoring import blame
from picolab.monitoring.activity import Activity, activity
from picolab.monitoring.events import Event
from picolab.monitoring.experts import ExpertHistory
from picolab.monitoring.ledger import Entry, Totals
from picolab.monitoring.memory import MemoryHistory
from picolab.monitoring.precision import PrecisionHistory
from picolab.monitoring.series import Series
from picolab.monitoring.step_split import StepSplit, mean_split, step_split
from picolab.monitoring.watch import Watch
from picolab.schedules import make, simulate
from picolab.show.table import bytes_text
from picolab.specs import Layout

WINDOW = 50
ENDED = ("done", "failed", "stopped")
_NOTICEABLE = 0.05  # of a step: less waiting than this names no slowest rank


class RunState:
    def __init__(
        self, events: Iterable[Event] = (), world_size: int | None = None, watch: bool = False
    ):
        self.world_size = world_size
        self.state = "waiting"  # waiting, running, done, failed, stopped
        self.status = ""  # what the run says about itself, such as "waiting for job 2"
        self.error = ""  # of a failed run: its first line is which rank failed and how
        self.layout = ""
        self.steps: int | None = None  # how many there will be
        self.losses = Series()
        self.eval_losses: dict[int, float] = {}  # steps done -> loss on held-out text
        self.tokens_per_s = Series()
        self._speeds: list[float] = []  # in order of size, without the first step's
        self.ranks: set[int] = set()
        self.pipeline: tuple[str, int] | None = None  # its schedule and how many micro-batches
        self._seconds: dict[int, dict[int, float]] = defaultdict(dict)  # step -> rank -> seconds
        self._began: dict[int, dict[int, float]] = defaultdict(dict)  # step -> rank -> its start
        self._entries: dict[int, list[Entry]] = defaultdict(list)  # step -> entries of all ranks
        self._loose: dict[str, Totals] = defaultdict(Totals)  # outside steps, by reason
        self.experts = ExpertHistory()
        self.precision = PrecisionHistory()
        self.watch = Watch() if watch else None
        self._splits: dict[int, dict[int, StepSplit]] = {}  # step of the window -> its split
        self._traffic: dict[int, dict[str, Totals]] = {}
        self._mean: tuple[list, dict[int, StepSplit]] = ([], {})  # of the splits that it is of
        self.settings: dict[str, object] = {}
        """What the run was started with, if it has told."""
        self.flops_per_token: float | None = None
        self.peak_flops: float | None = None
        """Of one rank's device, if whoever draws has said it."""
        self.memory = MemoryHistory()
        self.heard = 0
        for event in events:
            self.add(event)

    def catch_up(self, other: "RunState") -> None:
        """Know what `other` does, which has heard the same events, and more of them."""
        kept = dict(vars(other), world_size=self.world_size)
        kept["losses"], kept["tokens_per_s"] = other.losses.copy(), other.tokens_per_s.copy()
        kept["_speeds"], kept["_splits"], kept["_traffic"] = list(other._speeds), {}, {}
        kept["watch"], kept["peak_flops"] = self.watch, self.peak_flops
        if self.watch is not None:
            self.watch.missed(other.last_step)
        kept["ranks"], kept["_loose"] = set(other.ranks), other._loose.copy()
        seconds = {step: dict(of_rank) for step, of_rank in other._seconds.items()}
        entries = {step: list(told) for step, told in other._entries.items()}
        began = {step: dict(of_rank) for step, of_rank in other._began.items()}
        kept["_seconds"], kept["_entries"] = defaultdict(dict, seconds), defaultdict(list, entries)
        kept["_began"] = defaultdict(dict, began)
        kept["experts"], kept["precision"] = other.experts.copy(), other.precision.copy()
        kept["memory"] = other.memory.copy()
        vars(self).update(kept)

    def add(self, event: Event) -> None:
        self.heard += 1
        data = event.data
        if self.watch is not None:
            self.watch.add(event)
        if event.kind == "state":
            self.state = data.get("state", self.state)
            self.error = str(data.get("error") or self.error)
            return
        if event.kind == "status":
            self.status = str(next(iter(data.values()), ""))
            return
        if self.state == "waiting":
            self.state = "running"
        self.ranks.add(event.rank)
        if event.kind == "step":
            self._add_step(event.rank, data)
        elif event.kind == "eval":
            self.eval_losses[data["step"]] = float(data["loss"])
        elif event.kind == "spans":
            micro_batches = {span[2] for span in data["spans"]}
            self.pipeline = data["schedule"], len(micro_batches)
        elif event.kind == "experts":
            self.experts.add(data)
        elif event.kind in ("precision", "went back", "lowered"):
            self.precision.add(event.kind, data)
            if data.get("to") is not None:
                self._forget(data["to"])
        elif event.kind == "settings":
            self.settings = dict(data["settings"])
            self.flops_per_token = data.get("flops_per_token")
        elif event.kind in ("memory", "memory plan"):
            self.memory.add(event.kind, event.rank, data)
        elif event.kind == "values":
            self._add_values(data)
        elif event.kind == "ledger":
            self._add_entries(data.get("entries", ()))

    def _add_step(self, rank: int, data: dict) -> None:
        step = data["step"]
        self.steps = data.get("steps", self.steps)
        self.layout = data.get("layout", self.layout)
        seconds = data.get("seconds")
        self.precision.last = max(self.precision.last, step)
        # The first rank to say it is enough: the loss and the tokens are of the whole step.
        if data.get("loss") is not None:
            self.losses.add(step, float(data["loss"]))
        if seconds and data.get("tokens") is not None:
            self._add_speed(step, data["tokens"] / seconds)
        if seconds is not None:
            self._seconds[step][rank] = seconds
            self._splits.pop(step, None)
            if data.get("began") is not None:
                self._began[step][rank] = data["began"]
            if self.experts and len(self._seconds[step]) == Layout.parse(self.layout).world:
                self.experts.add_step(step, self._entries[step])
            while len(self._seconds) > WINDOW + 1:
                oldest = min(self._seconds)
                self._seconds.pop(oldest)
                for of_step in (self._entries, self._began, self._splits, self._traffic):
                    of_step.pop(oldest, None)

    def _add_speed(self, step: int, value: float) -> None:
        if step not in self.tokens_per_s and step > 0 and math.isfinite(value):
            insort(self._speeds, value)
        self.tokens_per_s.add(step, value)

    def _forget(self, step: int) -> None:
        """The run went back to this step: what it does again, it tells again."""
        self.losses.forget(step)
        self.tokens_per_s.forget(step)
        self._speeds = sorted(v for s, v in self.tokens_per_s.items() if s > 0 and math.isfinite(v))
        for of_step in (self._seconds, self._began, self._entries, self._splits, self._traffic):
            for other in [other for other in of_step if other >= step]:
                del of_step[other]
        for done in [done for done in self.eval_losses if done > step]:
            del self.eval_losses[done]

    def _add_values(self, data: dict) -> None:
        told = ((self.losses, "loss", self.losses.add),
                (self.tokens_per_s, "tokens_per_s", self._add_speed))  # fmt: skip
        for series, name, add in told:
            if isinstance(data.get(name), int | float):
                step = data.get("step")
                add(step if isinstance(step, int | float) else len(series), float(data[name]))

    def _add_entries(self, entries) -> None:
        oldest = min(self._seconds, default=-1)
        for entry in entries:
            entry = entry if isinstance(entry, Entry) else Entry(*entry)
            if entry.step is None:
                self._loose[entry.reason] = self._loose[entry.reason].add(entry)
            elif entry.step >= oldest:
                self._entries[entry.step].append(entry)
                self._splits.pop(entry.step, None)
                self._traffic.pop(entry.step, None)

    def complete_steps(self) -> list[int]:
        """The steps of the window that every rank has told everything about, oldest first."""
        world = self.world_size or len(self.ranks)
        return sorted(s for s, seconds in self._seconds.items() if len(seconds) >= world)[-WINDOW:]

    def split(self) -> dict[int, StepSplit]:
        """The mean step of each rank over the window; without the first step, which is all warm-
        up, if there are more.
        """
        steps = self.complete_steps()
        if len(steps) > 1 and steps[0] == 0:
            steps = steps[1:]
        for step in [step for step in steps if step not in self._splits]:
            self._splits[step] = step_split(self._entries[step], self._seconds[step])
        of_steps = [self._splits[step] for step in steps]
        if not (len(of_steps) == len(self._mean[0]) and all(map(is_, of_steps, self._mean[0]))):
            self._mean = of_steps, mean_split(of_steps)
        return self._mean[1]

    def activity(self, step: int | None = None) -> Activity | None:
        """What each rank did when in this step of the window (None: the newest that is complete);
        None if there is no such step."""
        steps = self.complete_steps()
        step = steps[-1] if step is None and steps else step
        if step not in steps:
            return None
        return activity(step, self._entries[step], self._seconds[step], self._began[step])

    def traffic(self) -> dict[str, tuple[float, float]]:
        """reason -> (collectives, payload bytes) of one rank in one step, largest first: means
        over ranks and window.

        Of a run without steps, one rank's totals.
        """
        steps, ranks = self.complete_steps(), self.world_size or len(self.ranks) or 1
        totals: dict[str, Totals] = defaultdict(Totals)
        for step in steps:
            if step not in self._traffic:
                self._traffic[step] = defaultdict(Totals)
                for entry in self._entries[step]:
                    self._traffic[step][entry.reason] = self._traffic[step][entry.reason].add(entry)
            for reason, of_step in self._traffic[step].items():
                totals[reason] = totals[reason].plus(of_step)
        share = ranks * len(steps)
        if not steps and not self._seconds:
            totals, share = self._loose, ranks
        rows = {r: (t.count / share, t.payload_bytes / share) for r, t in totals.items()}
        return dict(sorted(rows.items(), key=lambda row: -row[1][1]))

    @property
    def has_steps(self) -> bool:
        return bool(self._seconds)

    def speed(self) -> float | None:
        """Median tokens per second, without the first step if there are more."""
        if self._speeds:
            middle = len(self._speeds) // 2
            return (self._speeds[middle] + self._speeds[-middle - 1]) / 2
        return next(iter(self.tokens_per_s.values()), None)

    def mfu(self) -> float | None:
        """Model flops utilization at that speed, where it is known what the devices can do."""
        speed, world = self.speed(), self.world_size or len(self.ranks)
        if None in (speed, self.flops_per_token, self.peak_flops) or not world:
            return None
        return speed * self.flops_per_token / (world * self.peak_flops)

    @property
    def last_step(self) -> int:
        """The highest that was told; -1 before."""
        told = [self.losses.last, self.tokens_per_s.last, max(self._seconds, default=-1)]
        return int(max(-1, *told))

    def slowest(self) -> tuple[int, float] | None:
        """The rank that the others wait for and how much longer than itself they do in a step, if
        it is noticeable.

        It must compute noticeably longer than they do: stages of a pipeline wait for one another
        without any of them being slow.
        """
        split = self.split()
        if len(split) < 2:
            return None
        rank = max(split, key=lambda r: split[r].compute_s)
        others = [parts.held_up_s for r, parts in split.items() if r != rank]
        waited = sum(others) / len(others) - split[rank].held_up_s
        typical = statistics.median(p.compute_s for r, p in split.items() if r != rank)
        excess = min(waited, split[rank].compute_s - typical)
        mean = sum(parts.seconds for parts in split.values()) / len(split)
        return (rank, waited) if excess > _NOTICEABLE * mean else None

    def bubble(self) -> tuple[float, float | None] | None:
        """The share of a pipeline's step in which a stage is idle, over all ranks and the window,
        and the formula's share; None without a pipeline. The formula is for stages of equal cost,
        and unknown of a run that tells no schedule. Nothing is said of events that are so old that
        a message does not name its other end.
        """
        split = self.split()
        idle = sum(parts.bubble_s for parts in split.values())
        if not idle or not self._messages_match():
            return None
        share = idle / sum(parts.seconds for parts in split.values())
        if self.pipeline is None or not self.layout:
            return share, None
        schedule, micro_batches = self.pipeline
        return share, _formula(schedule, Layout.parse(self.layout).pp, micro_batches)

    def pipeline_step(self) -> Activity | None:
        """The newest step in time, if messages went between stages in it."""
        steps = self.complete_steps()
        if not steps or all(entry.axis != "pp" for entry in self._entries[steps[-1]]):
            return None
        found = self.activity()
        return found if any(message.axis == "pp" for message in found.messages) else None

    def _messages_match(self) -> bool:
        entries = (e for step in self.complete_steps() for e in self._entries[step])
        return all(e.peer is not None for e in entries if e.axis == "pp" and e.op == "recv")

    def bubble_text(self) -> str:
        """ "bubble 27 % of the step (formula 27 %)", or nothing."""
        if (found := self.bubble()) is None:
            return ""
        share, formula = found
        beside = "" if formula is None else f" (formula {100 * formula:.0f} %)"
        return f"bubble {100 * share:.0f} % of the step{beside}"

    @property
    def is_empty(self) -> bool:
        """True as long as there is nothing to draw."""
        return not (self.losses or self._seconds or self.traffic())

    def sentence(self, covered: bool = False) -> str:
        """One plain sentence: where the run is, and what went wrong if something did. covered:
        without what tells where a step goes.
        """
        text = self._progress(covered)
        if self.state in ENDED and self.state != "done":
            text = f"{self.state} after {text}" if text else f"{self.state} before the first step"
        elif not text:
            text = "done" if self.state == "done" else self.status or "waiting for the first event"
        return f"{text}: {self.error.splitlines()[0]}" if self.error else text

    def _progress(self, covered: bool) -> str:
        if not self.losses and not self._seconds:
            moved = sum(payload for _, payload in self.traffic().values())
            return f"{bytes_text(moved)} in collectives per rank" if moved else ""
        count = self.last_step + 1
        of = f" of {self.steps}" if self.steps else ""
        parts = [f"{count}{of} {'step' if (self.steps or count) == 1 else 'steps'}"]
        if self.losses:
            parts.append(f"loss {self.losses[self.losses.last]:.3f}")
        if (speed := self.speed()) is not None:
            parts.append(f"{speed:,.0f} tokens/s")
        if covered:
            return ", ".join(parts)
        world = self.world_size or 0
        if count > 3 and 0 < len(self.ranks) < world:
            silent = [rank for rank in range(world) if rank not in self.ranks]
            parts.append(f"nothing was heard of {blame.ranks(silent)}")
        if (slowest := self.slowest()) is not None:
            rank, waited = slowest
            parts.append(f"the others wait {waited * 1e3:.0f} ms for rank {rank}")
        if bubble := self.bubble_text():
            parts.append(bubble)
        elif slowest is None and len(self.ranks) > 1 and self.complete_steps():
            parts.append("no rank is much slower")
        return ", ".join(parts)


@cache
def _formula(schedule: str, ranks: int, micro_batches: int) -> float:
    return float(simulate(make(schedule, ranks, micro_batches)).bubble_of_total)


def decimate(x: list, y: list, limit: int = 600) -> tuple[list, list]:
    """At most `limit` points that keep every spike: the smallest and the largest of each bin."""
    if len(x) <= limit:
        return list(x), list(y)
    bins = limit // 2
    keep: set[int] = set()
    for b in range(bins):
        here = range(b * len(x) // bins, (b + 1) * len(x) // bins)
        finite = [i for i in here if math.isfinite(y[i])] or list(here)
        keep |= {min(finite, key=y.__getitem__), max(finite, key=y.__getitem__)}
    kept = sorted(keep)
    return [x[i] for i in kept], [y[i] for i in kept]
