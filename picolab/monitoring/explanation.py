"""Why is it slow? One real step, explained from what its ranks told: `result.explain()`, and
`pico.explain(RUN_DIRECTORY)` for a run that is over.

    critical_path.py   the step's graph, replays of it, the longest way through it
    rank_seconds.py    each rank's seconds, without remainder
    what_if.py         what it would have taken if, and the causes in the order of what they cost
    here               which step, what is said, and what cannot be explained

Needed are the ledger's entries of the step, the `step` event of each rank (when it began, how long
it took) and, of a pipeline, the spans. All of them are in a run directory.
"""

import html
import json
import statistics
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from picolab.monitoring.activity import Activity, activity
from picolab.monitoring.critical_path import Part, StepGraph, step_graph, with_tails
from picolab.monitoring.event_files import event_files
from picolab.monitoring.history import History
from picolab.monitoring.rank_seconds import RankSeconds, rank_seconds
from picolab.monitoring.what_if import Cause, Replays, WhatIf
from picolab.schedules import Action, Span
from picolab.show.picture import LabFigure
from picolab.show.table import Table
from picolab.specs import Layout


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """Of one step. Printed: the verdict, each rank's seconds, and what would help."""

    step: int
    layout: Layout
    graph: StepGraph
    activity: Activity
    """The same step, moment by moment."""
    gaps: dict[int, float]
    """rank -> seconds from the end of its step before this one; empty if that is not known"""
    cores_told: bool
    """Whether the system told how long ranks waited for a core; where not, that is in compute."""

    @property
    def step_s(self) -> float:
        """From the first rank's begin to the last one's end."""
        return self.graph.step_s

    @cached_property
    def split(self) -> dict[int, RankSeconds]:
        """rank -> its seconds, which add up to its step's."""
        return rank_seconds(self.graph)

    @cached_property
    def path(self) -> list[Part]:
        """The critical path, in the order of time."""
        return self.graph.path()

    @cached_property
    def causes(self) -> list[Cause]:
        """What would save the most first; empty where nothing stands out."""
        return self._replays.causes()

    @property
    def first(self) -> Cause | None:
        """The first cause."""
        return self.causes[0] if self.causes else None

    @cached_property
    def _replays(self) -> Replays:
        return Replays(self.graph, self.layout, self.gaps)

    def what_if(
        self,
        *,
        free_communication: bool | str = False,
        free_cores: bool = False,
        even_ranks: bool = False,
        even_stages: bool = False,
        micro_batches: int | None = None,
    ) -> WhatIf:
        """What this step would have taken with these changes, by replaying it: `.step_s`,
        `.factor`.

        free_communication  True, or the reason of what should travel at once
        free_cores          nobody waits for a core
        even_ranks          no rank works longer than those that do the same
        even_stages         every stage takes the mean of the stages
        micro_batches       the same global batch cut into so many

        ValueError for what the layout has not. What a replay leaves out: monitoring/what_if.py.
        """
        return self._replays.what_if(
            free_communication, free_cores, even_ranks, even_stages, micro_batches
        )

    def sentence(self) -> str:
        """The verdict."""
        took = f"Step {self.step} on {self.layout} took {1e3 * self.step_s:,.0f} ms"
        if self.first is None:
            work = statistics.fmean(of.compute_s for of in self.split.values()) / self.step_s
            return f"{took}, and no single cause stands out: {100 * work:.0f} % of it is compute."
        without = self.first.without
        return (
            f"{took}, first of all because {self.first.sentence}. Without that it would take "
            f"{1e3 * without.step_s:,.0f} ms ({without.factor:.2f}x)."
        )

    def heading(self) -> str:
        """The verdict in a line, for a figure."""
        took = f"Step {self.step} on {self.layout}, {1e3 * self.step_s:,.0f} ms"
        if self.first is None:
            return f"{took}: no single cause stands out"
        about = self.first.reason or ("" if self.first.rank is None else f"rank {self.first.rank}")
        name = {"cores": "waiting for cores"}.get(self.first.name, self.first.name)
        cause = f"{name} ({about})" if about else name
        return f"{took}: first of all {cause}; {self.first.without.factor:.2f}x without"

    def table(self) -> Table:
        """Each rank's milliseconds, by what they went to; the last column is their sum."""
        on_path: dict[int, float] = defaultdict(float)
        for part in self.path:
            on_path[part.rank] += part.seconds
        used = [
            n for n in RankSeconds().parts() if any(of.parts()[n] > 0 for of in self.split.values())
        ]
        rows = [
            [f"rank {rank}", *(1e3 * of.parts()[name] for name in used), 1e3 * of.seconds,
             1e3 * on_path[rank]]
            for rank, of in self.split.items()
        ]  # fmt: skip
        return Table(["ms of", *used, "step", "on the critical path"], rows)

    def communication(self) -> Table:
        """Exposed communication by reason: the mean of the ranks and the most of one, in ms."""
        reasons = dict.fromkeys(r for of in self.split.values() for r in of.communication)
        rows = []
        for reason in reasons:
            each = [1e3 * of.communication.get(reason, 0.0) for of in self.split.values()]
            rows.append([reason, statistics.fmean(each), max(each)])
        rows.sort(key=lambda row: -row[1])
        return Table(["exposed communication for", "mean ms", "most ms"], rows)

    def remedies(self) -> Table:
        """Each cause, and what the step would take without it."""
        rows = [
            [cause.name, cause.sentence, 1e3 * cause.without.step_s, f"{cause.without.factor:.2f}x"]
            for cause in self.causes
        ]
        return Table(["cause", "what is seen", "ms without it", "factor"], rows)

    def figure(self) -> LabFigure:
        """Each rank's step in time with the critical path through it, and beneath it the split."""
        from picolab.monitoring.explanation_figure import explanation_figure

        return explanation_figure(self)

    def to_json(self) -> str:
        return json.dumps(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        ranks = {
            rank: {**of.parts(), "by_reason": of.communication, "waiting_for": of.waiting}
            for rank, of in self.split.items()
        }
        path = [
            {"rank": p.rank, "kind": p.kind, "start": p.start, "end": p.end,
             "reason": p.node.entry.reason if p.kind == "communication" else None}
            for p in self.path
        ]  # fmt: skip
        causes = [
            {"cause": c.name, "sentence": c.sentence, "rank": c.rank, "reason": c.reason,
             "step_s": c.without.step_s, "factor": c.without.factor}
            for c in self.causes
        ]  # fmt: skip
        return {
            "step": self.step, "layout": str(self.layout), "step_s": self.step_s,
            "verdict": self.sentence(), "ranks": ranks, "critical_path": path, "causes": causes,
        }  # fmt: skip

    def _shown(self) -> list:
        shown = [self.sentence(), self.table()]
        if self.causes:
            shown.append(self.remedies())
        if not self.cores_told:
            shown.append(
                "This system does not tell how long a thread waits for a core: it is in compute."
            )
        return shown

    def __rich__(self):
        from rich.console import Group

        return Group(*self._shown())

    def __repr__(self) -> str:
        return "\n\n".join(map(str, self._shown()))

    def _repr_html_(self) -> str:
        return "".join(
            part._repr_html_() if isinstance(part, Table) else f"<p>{html.escape(part)}</p>"
            for part in self._shown()
        )


def explain(run_dir: str | Path, step: int | None = None) -> Explanation:
    """Of a run that left its events in this directory (`picolab runs ls`); `result.explain()` is
    the same for a result at hand. step: None for the one of median length, without the first.

    ValueError if there is nothing to explain.
    """
    run_dir = Path(run_dir).expanduser()
    if not run_dir.is_dir():
        raise ValueError(f"there is no run directory {run_dir}; `picolab runs ls` lists the runs")
    if not event_files(run_dir):
        raise ValueError(f"{run_dir} holds no events of ranks, so there is nothing to explain")
    try:
        events = History.read(run_dir)
    except (TypeError, ValueError, KeyError, AttributeError):
        raise _of_another_version(run_dir) from None
    return explain_events(events, step, str(run_dir))


def explain_events(events: History, step: int | None = None, name: str = "this run") -> Explanation:
    """Of events that are here."""
    said: dict[int, dict[int, dict]] = defaultdict(dict)
    for event in events:
        if event.kind == "step":
            said[event.data.get("step")][event.rank] = event.data
    if not said:
        raise ValueError(f"{name} has no training steps, so there is nothing to explain")
    try:
        layout = Layout.parse(next(iter(said[min(said)].values()))["layout"])
        whole = {s: of for s, of in said.items() if len(of) == layout.world}
        chosen = _choose(whole, step, name)
        ranks = whole[chosen]
        begins = {rank: float(data["began"]) for rank, data in ranks.items()}
        seconds = {rank: float(data["seconds"]) for rank, data in ranks.items()}
        queued = {rank: data.get("queued_s") for rank, data in ranks.items()}
        before = whole.get(chosen - 1, {})
        ends = {rank: data["began"] + data["seconds"] for rank, data in before.items()}
    except (KeyError, TypeError):
        raise _of_another_version(name) from None
    spans = [
        Span(event.rank, Action(kind, stage, micro_batch), start, end)
        for event in events.where("spans", chosen)
        for kind, stage, micro_batch, start, end in event.data["spans"]
    ]
    entries = list(events.ledger.step(chosen))
    told = None not in queued.values()
    graph = step_graph(entries, seconds, begins, spans)
    graph = with_tails(graph, queued if told else {})
    gaps = {rank: begins[rank] - end for rank, end in ends.items()}
    moments = activity(chosen, entries, seconds, begins)
    return Explanation(chosen, layout, graph, moments, gaps, told)


def _choose(whole: dict[int, dict], step: int | None, name: str) -> int:
    """The step to explain, of those that all ranks have told."""
    if step is not None:
        if step not in whole:
            known = f"it has {min(whole)} to {max(whole)}" if whole else "it has none"
            raise ValueError(f"there is no step {step!r} of all ranks in {name}: {known}")
        return step
    after = sorted(whole)[1:]
    if not after:
        raise ValueError(
            f"{name} is too short to explain: it has {len(whole)} whole step"
            f"{'s' * (len(whole) != 1)}, and the first warms up; train 3 or more, or say step=0"
        )
    length = {s: max(data["seconds"] for data in whole[s].values()) for s in after}
    return sorted(after, key=lambda s: (length[s], s))[(len(after) - 1) // 2]


def _of_another_version(name: str | Path) -> ValueError:
    return ValueError(
        f"{name} was written by another version of picolab, which did not tell what an explanation "
        "needs; train again with this one"
    )
