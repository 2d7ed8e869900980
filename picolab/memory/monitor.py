"""Where a rank's bytes go in a step: by category, by phase, by module, and over time.

    result = pico.train("tiny", "dp2", observers=[MemoryMonitor()])
    found = MemoryReport.of(result.events)[0]           # of rank 0, step 1
    found.most["activations"], found.at_peak, found.kept["layers.0.mlp.gate_up"]

An observer: it enters a `Watch` (watch.py) at the end of the step before the one that it looks at,
and says what it saw in an event. Each operator passes through Python meanwhile, so such a step is
slow; others are not. Of the first step the moments of the optimizer are born late, so by default
the second is looked at.

    most       the most that a category had at any time of the step, and "total": the peak
    at_peak    what each had when the total was largest: sums to `most["total"]`
    phases     the largest total of forward, backward, recompute (a forward that is run again in
               backward) and between (sums over the ranks, the update)
    kept       bytes that each module's operators left for the backward pass, of one micro-batch
               after the other, added up
    timeline   [seconds, bytes of each category], thinned out; the peak stays

Where a budget gave a run pools of buffers, `fragmentation` has of each the share of its bytes that
was of no use when most was lent (`MemoryPool.told`); a pool that nobody used is not named.
"""

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch

from picolab.memory.watch import CATEGORIES, PHASES, Watch
from picolab.model import Linear
from picolab.monitoring import Observer, events
from picolab.show.table import Table, bytes_text

POINTS = 200
"""of a timeline"""


@dataclass(frozen=True)
class MemoryReport:
    """Of one rank and one step."""

    rank: int
    step: int
    most: dict[str, int]
    at_peak: dict[str, int]
    phases: dict[str, int]
    kept: dict[str, int]
    timeline: list[list[float]] = field(repr=False)
    fragmentation: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, events: Iterable[Any]) -> list["MemoryReport"]:
        """Those among a run's events, by step and rank."""
        seen, pools = [], {}
        for event in events:
            if event.kind == "memory":
                seen.append(event)
            elif event.kind == "pool":
                of_rank = pools.setdefault(event.rank, {})
                of_rank[event.data["name"]] = event.data["fragmentation"]
        found = [
            cls(event.rank, **event.data, fragmentation=pools.get(event.rank, {})) for event in seen
        ]
        return sorted(found, key=lambda report: (report.step, report.rank))

    def table(self, predicted: dict[str, int] | None = None) -> Table:
        """Each category's most, and its part of the peak; beside what was predicted."""
        columns = ["category", "at the peak", "most"] + ["formula"] * bool(predicted)
        rows = []
        for name in (*CATEGORIES, "total"):
            here = self.at_peak.get(name, self.most["total"])
            row = [name, bytes_text(here), bytes_text(self.most[name])]
            if predicted:
                row.append(bytes_text(predicted[name]) if name in predicted else "")
            if self.most[name] or name in (predicted or ()):
                rows.append(row)
        title = f"memory of rank {self.rank} in step {self.step}"
        idle = [f"{name} {100 * share:.1f} %" for name, share in self.fragmentation.items()]
        return Table(columns, rows, f"{title}; idle in pools: {', '.join(idle)}" if idle else title)


class MemoryMonitor(Observer):
    """Looks at these steps of a run.

    With it a run has "memory" events; without it, none. Numbers of the run are the same.
    """

    def __init__(self, steps: Sequence[int] = (1,)):
        self.steps = tuple(steps)
        if not all(isinstance(step, int) and step >= 0 for step in self.steps):
            raise ValueError(f"steps are {steps!r}; they are numbers of steps, from 0")
        self._watch: Watch | None = None

    def start(self, run) -> None:
        run.until_end(closing(self))
        self._begin(run, run.first_step)

    def gradients(self, run) -> None:
        if self._watch is not None:
            self._watch.mark("gradients")
            call_copies(self._watch, run.model)

    def step(self, run, report) -> None:
        self._finish(run, report.step)
        self._begin(run, report.step + 1)

    def back(self, run, report) -> None:
        self._finish(run, None)
        self._begin(run, report.back_to)

    def end(self, run) -> None:
        self.close()

    def close(self) -> None:
        """The run is over, however it ended: nothing is watched any more."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.__exit__(None, None, None)

    def _begin(self, run, step: int) -> None:
        if step in self.steps:
            self._watch = RunWatch(run).__enter__()

    def _finish(self, run, step: int | None) -> None:
        watch, self._watch = self._watch, None
        if watch is None:
            return
        call_states(watch, run.optimizer)
        watch.__exit__(None, None, None)
        if step is not None:
            events.write("memory", step=step, **told(watch))


class RunWatch(Watch):
    """Knows what a run's tensors are for."""

    def __init__(self, run):
        super().__init__(run.model)
        self.run, self.begin = run, 0

    def __enter__(self) -> "RunWatch":
        super().__enter__()
        run = self.run
        self.call({*run.model.parameters(), *run.parallel.parameters()}, "parameters")
        held = [of for of in run.parallel.held() if not of.is_meta]
        self.call(held, "gathered")  # what is none of these: whole while it is used
        call_states(self, run.optimizer)
        gradients = [of.grad for of in {*held, *run.parallel.parameters()} if of.grad is not None]
        self.call(gradients, "gradients")  # of the step before
        # What is in front of autograd: of ZeRO 3 the whole ones, and not their shards.
        self.follow_gradients(dict.fromkeys(of for of in held if of.requires_grad))
        self.begin = len(self.totals)
        return self


def call_states(watch: Watch, optimizer: torch.optim.Optimizer) -> None:
    states = [value for state in optimizer.state.values() for value in state.values()]
    watch.call((value for value in states if isinstance(value, torch.Tensor)), "optimizer")


def call_copies(watch: Watch, model: torch.nn.Module) -> None:
    """Working copies of weights, which live until the update."""
    for module in model.modules():
        if isinstance(module, Linear):
            watch.call(module.product.copies(), "copies")


def told(watch: RunWatch) -> dict[str, Any]:
    """What a watch saw, as an event says it."""
    most, at_peak, timeline = dict.fromkeys(CATEGORIES, 0), {}, []
    phases, peak, top = dict.fromkeys(PHASES, 0), 0, 0
    begin = watch.begin
    every = max(1, (len(watch.changes) - begin) // POINTS)
    first = watch.changes[begin][3] if len(watch.changes) > begin else 0.0
    for at, (alive, phase, when) in enumerate(watch.by_category()):
        if at < begin - 1:
            continue
        total = watch.totals[at]
        for name, nbytes in alive.items():
            most[name] = max(most[name], nbytes)
        phases[phase] = max(phases[phase], total)
        if total > peak:
            peak, at_peak = total, dict(alive)
        starts = not timeline or (at - begin) % every == 0
        if starts or total > top:  # of so many changes in a row, the one with most alive
            top, point = total, [round(when - first, 6), *alive.values()]
            timeline[len(timeline) - (not starts) :] = [point]
    kept: dict[str, int] = {}
    for life, grown, _, _ in watch.changes[begin:]:
        if grown > 0 and life.category == "activations":
            kept[life.module] = kept.get(life.module, 0) + grown
    return {
        "most": {**most, "total": peak},
        "at_peak": at_peak,
        "phases": phases,
        "kept": kept,
        "timeline": timeline,
    }
