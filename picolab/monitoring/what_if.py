"""What a step would have taken if: replays of its graph with other durations, and the first cause.

    free_communication  every transfer takes nothing (or those of one reason)
    free_cores          nobody waits for a core
    even_ranks          no rank works longer than the others that do the same (the same stage in
                        another replica, the other ranks of tp): those that did work as the median
                        of the others
    even_stages         every stage of the pipeline takes as long as the mean of the stages
    micro_batches=m     the same global batch, cut into m micro-batches instead: each forward and
                        backward takes m_now / m of its time, messages what they took. The graph
                        has other nodes then, so it is the measured step, and what the simulator
                        says the schedule gains between the two

A prediction is a replay of what was measured, no more: where ranks share cores, the time that one
no longer waits for them is not there for all, and a rank that works less leaves others more.

A cause is one of these changes; the causes of a step are those that would save the most, and the
first of them is the verdict. Two of them have limits of their own. `few micro-batches`: so many
that warm-up and drain are nothing. `late begin`: no rank takes longer between the last step and
this one (an observer, a checkpoint) than the quickest. Who begins late because its last step ended
late is not late, but slow, in that step as in this.
"""

import itertools
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from picolab import schedules
from picolab.monitoring.critical_path import Node, StepGraph
from picolab.monitoring.step_split import standing_still
from picolab.schedules import Span
from picolab.specs import Layout
from picolab.specs.schedule_name import ScheduleName

LEAST = 0.03
"""of the step: what would save less is not called a cause"""
_SLOWER = 1.05  # than the others that do the same: less is how times vary


@dataclass(frozen=True)
class WhatIf:
    """A prediction."""

    what: str
    step_s: float
    """what the step would take"""
    was_s: float

    @property
    def factor(self) -> float:
        """How many times faster: 1.31."""
        return self.was_s / self.step_s

    @property
    def saved_s(self) -> float:
        return self.was_s - self.step_s

    def __str__(self) -> str:
        return f"{self.what}: {1e3 * self.step_s:,.1f} ms a step, {self.factor:.2f}x"

    __repr__ = __str__


@dataclass(frozen=True)
class Cause:
    """Why the step took as long as it did, and what it would take without that."""

    name: str
    """slow rank, uneven stages, few micro-batches, communication, cores or late begin"""
    sentence: str
    without: WhatIf
    rank: int | None = None
    reason: str | None = None


class Replays:
    """The questions that can be asked of one step's graph."""

    def __init__(self, graph: StepGraph, layout: Layout, gaps: Mapping[int, float]):
        """gaps: rank -> seconds from the end of its step before this one; empty: not known"""
        self.graph, self.layout, self.gaps = graph, layout, gaps
        self.step_s = graph.step_s

    def what_if(
        self,
        free_communication: bool | str = False,
        free_cores: bool = False,
        even_ranks: bool = False,
        even_stages: bool = False,
        micro_batches: int | None = None,
    ) -> WhatIf:
        said, nodes = [], self.graph.nodes
        work = [node.work for node in nodes]
        transfer = [node.transfer for node in nodes]
        if free_cores:
            said.append("with a core for each rank")
            work = [node.work - node.queued for node in nodes]
            transfer = [max(0.0, node.transfer - node.transfer_queued) for node in nodes]
        if free_communication:
            if free_communication is not True:
                self._check_reason(free_communication)
            which = "" if free_communication is True else f" for {free_communication!r}"
            said.append(f"with free communication{which}")
            transfer = [
                0.0 if free_communication in (True, _reason(node)) else t
                for node, t in zip(nodes, transfer)
            ]
        if even_ranks:
            said.append("with even ranks")
            for rank in self.graph.ranks:
                work = self._as_peers(rank, work) or work
        if even_stages:
            self._check_pipeline("even stages")
            said.append("with even stages")
            work = self._even(work)
        times = self.graph.replay(work, transfer)
        seconds = max(times)
        if micro_batches is not None:
            self._check_pipeline("another number of micro-batches")
            said.append(f"with {micro_batches} micro-batches")
            seconds += self._recut(times, transfer, micro_batches)
        if not said:
            raise ValueError(
                "say what should be different: free_communication, free_cores, even_ranks, "
                "even_stages or micro_batches=16"
            )
        return WhatIf(" and ".join(said), seconds, self.step_s)

    # -- causes -----------------------------------------------------------------------------------

    def causes(self) -> list[Cause]:
        """Those that would save something worth it, the greatest first."""
        found = [*self._communication(), self._cores(), *self._slow_ranks(), self._late()]
        if self.pipelined:
            found += [self._uneven(), self._few()]
        worth = [c for c in found if c and c.without.saved_s >= LEAST * self.step_s]
        return sorted(worth, key=lambda cause: -cause.without.saved_s)

    def _communication(self) -> list[Cause]:
        reasons = dict.fromkeys(filter(None, map(_reason, self.graph.nodes)))
        found = []
        for reason in reasons:
            without = self.what_if(free_communication=reason)
            sentence = f"communication for {reason!r} is slow"
            found.append(Cause("communication", sentence, without, reason=reason))
        return found

    def _cores(self) -> Cause:
        queued = sum(node.queued + node.transfer_queued for node in self.graph.nodes)
        mean = 1e3 * queued / len(self.graph.ranks)
        sentence = f"ranks wait for a core, each {mean:,.0f} ms on average"
        return Cause("cores", sentence, self.what_if(free_cores=True))

    def _slow_ranks(self) -> list[Cause]:
        found, own = [], [node.work for node in self.graph.nodes]
        for rank in self.graph.ranks:
            work = self._as_peers(rank, own)
            if work is None:
                continue
            mine, others = self._worked(rank), self._others(rank)
            sentence = (
                f"rank {rank} is slow: it works {1e3 * mine:,.0f} ms, and who does the same "
                f"{1e3 * others:,.0f} ms"
            )
            without = WhatIf(f"with rank {rank} as the others", self._seconds(work), self.step_s)
            found.append(Cause("slow rank", sentence, without, rank=rank))
        return found

    def _late(self) -> Cause | None:
        if not self.gaps:
            return None
        rank, least = max(self.gaps, key=self.gaps.get), min(self.gaps.values())
        begins = {n.rank: n.time - self.gaps[n.rank] + least for n in self._begins()}
        # (A step begins with its first rank, so that the clock is set to that one.)
        seconds = max(self.graph.replay(begins=begins)) - min(begins.values())
        sentence = (
            f"rank {rank} begins late: {1e3 * (self.gaps[rank] - least):,.0f} ms more than another "
            "go by between its last step and this one"
        )
        without = WhatIf("if none began late", seconds, self.step_s)
        return Cause("late begin", sentence, without, rank=rank)

    def _begins(self) -> list[Node]:
        return [node for node in self.graph.nodes if node.kind == "begin"]

    def _uneven(self) -> Cause:
        taken = self._stage_seconds([node.work for node in self.graph.nodes])
        stages: dict[int, float] = defaultdict(float)
        for (_, stage), seconds in taken.items():
            stages[stage] += seconds
        slowest, mean = max(stages, key=stages.get), statistics.fmean(stages.values())
        sentence = (
            f"stages are uneven: a micro-batch takes {1e3 * stages[slowest]:,.1f} ms on stage "
            f"{slowest}, and {1e3 * mean:,.1f} ms on the mean of the {len(stages)}"
        )
        return Cause("uneven stages", sentence, self.what_if(even_stages=True))

    def _few(self) -> Cause:
        # At free links: what messages add to every round is theirs, and no micro-batches hide it.
        free = [0.0] * len(self.graph.nodes)
        now = self._simulate(self.graph.measured, free, self.micro_batches)
        seconds = self.step_s - max(0.0, float(now.makespan) - max(map(float, now.busy)))
        m, p = self.micro_batches, self.layout.pp
        sentence = (
            f"there are too few micro-batches: {m} on {p} stages of a {self.layout.schedule} "
            "pipeline leave it empty while it fills and drains"
        )
        return Cause(
            "few micro-batches", sentence, WhatIf("without fill and drain", seconds, self.step_s)
        )

    # -- other durations --------------------------------------------------------------------------

    def _seconds(self, work: list[float]) -> float:
        return max(self.graph.replay(work))

    def _peers(self, rank: int) -> list[int]:
        """The ranks that do the same: all that have the same stages."""
        place = self.layout.coordinates(rank)["pp"]
        same = (r for r in self.graph.ranks if self.layout.coordinates(r)["pp"] == place)
        return [r for r in same if r != rank]

    def _worked(self, rank: int) -> float:
        """What it worked, in the time in which it had a core."""
        return sum(
            self.graph.nodes[i].work - self.graph.nodes[i].queued for i in self.graph.rows[rank]
        )

    def _others(self, rank: int) -> float | None:
        peers = self._peers(rank)
        return statistics.median(map(self._worked, peers)) if peers else None

    def _as_peers(self, rank: int, work: list[float]) -> list[float] | None:
        """If this rank works longer than its peers: the work before each node if it did not. Piece
        by piece, where all of them did the same pieces in the same order; else all alike."""
        mine, others, nodes = self._worked(rank), self._others(rank), self.graph.nodes
        if others is None or mine <= _SLOWER * others:
            return None
        row, changed = self.graph.rows[rank], list(work)
        rows = [self.graph.rows[r] for r in self._peers(rank)]
        alike = all([_piece(nodes[i]) for i in r] == [_piece(nodes[i]) for i in row] for r in rows)
        for at, i in enumerate(row):
            own = nodes[i].work - nodes[i].queued
            target = own * others / mine
            if alike:
                target = min(
                    own, statistics.median(nodes[r[at]].work - nodes[r[at]].queued for r in rows)
                )
            changed[i] -= own - target
        return changed

    def _stage_seconds(self, work: list[float]) -> dict[tuple[str, int], float]:
        """(kind, stage) -> the work of one action of it: the mean over micro-batches, the median
        over replicas."""
        taken: dict[Span, float] = defaultdict(float)
        for node, seconds in zip(self.graph.nodes, work):
            if node.span is not None:
                taken[node.span] += seconds
        return _by_stage(taken)

    def _even(self, work: list[float]) -> list[float]:
        stages = self._stage_seconds(work)
        of_kind: dict[str, list[float]] = defaultdict(list)
        for (kind, _), seconds in stages.items():
            of_kind[kind].append(seconds)
        mean = {kind: statistics.fmean(each) for kind, each in of_kind.items()}

        def factor(span: Span | None) -> float:
            if span is None or not stages[span.action.kind, span.action.stage]:
                return 1.0
            return mean[span.action.kind] / stages[span.action.kind, span.action.stage]

        return [seconds * factor(node.span) for node, seconds in zip(self.graph.nodes, work)]

    # -- micro-batches ----------------------------------------------------------------------------

    @property
    def pipelined(self) -> bool:
        return self.layout.pp > 1 and any(node.span is not None for node in self.graph.nodes)

    @property
    def micro_batches(self) -> int:
        spans = (node.span for node in self.graph.nodes if node.span is not None)
        return 1 + max(span.action.micro_batch for span in spans)

    def _recut(self, times: list[float], transfer: list[float], m: int) -> float:
        """What the pipeline takes longer with m micro-batches than with those it had."""
        if not isinstance(m, int) or isinstance(m, bool) or m < 1:
            raise ValueError(f"micro_batches is {m!r}; it is a whole number of 1 or more")
        ScheduleName.parse(self.layout.schedule).check_micro_batches(self.layout.pp, m)
        now, then = (self._simulate(times, transfer, n) for n in (self.micro_batches, m))
        return float(then.makespan) - float(now.makespan)

    def _simulate(self, times: list[float], transfer: list[float], m: int) -> schedules.Simulation:
        """The schedule with m micro-batches of the same global batch, at the costs of this step."""
        taken: dict[Span, float] = {}
        for row in self.graph.rows.values():
            for before, i in itertools.pairwise(row):
                if (span := self.graph.nodes[i].span) is not None:
                    taken[span] = taken.get(span, 0.0) + times[i] - times[before]
        costs, stages = _by_stage(taken), len(self.layout.stage_ranks)
        share = self.micro_batches / m
        f, b, w = ([costs.get((kind, s), 0.0) * share for s in range(stages)] for kind in "FBW")
        messages = [
            seconds
            for node, seconds in zip(self.graph.nodes, transfer)
            if node.kind == "wait" and node.span is None and node.entry.op == "recv"
            and standing_still(node.entry) == "bubble"
        ]  # fmt: skip
        latency = statistics.median(messages) if messages else 0.0
        schedule = schedules.make(self.layout.schedule, self.layout.pp, m)
        return schedules.simulate(
            schedule, forward=f, backward_input=b, backward_weight=w, latency=latency
        )

    # -- what cannot be asked ------------------------------------------------------------------

    def _check_pipeline(self, what: str) -> None:
        if not self.pipelined:
            raise ValueError(f"{self.layout} has no pipeline, so {what} would change nothing")

    def _check_reason(self, reason: str) -> None:
        known = sorted(set(filter(None, map(_reason, self.graph.nodes))))
        if reason not in known:
            raise ValueError(
                f"no communication of this step has the reason {reason!r}; it has "
                f"{', '.join(map(repr, known)) or 'none'}"
            )


def _reason(node: Node) -> str | None:
    return node.entry.reason if node.kind == "wait" else None


def _piece(node: Node) -> tuple:
    """What two ranks that do the same have in common at the same place."""
    about = node.entry and (node.entry.op, node.entry.axis, node.entry.reason)
    return node.kind, about, node.span and node.span.action


def _by_stage(taken: dict[Span, float]) -> dict[tuple[str, int], float]:
    ranks: dict[tuple[str, int], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for span, seconds in taken.items():
        ranks[span.action.kind, span.action.stage][span.rank].append(seconds)
    return {
        key: statistics.median(map(statistics.fmean, each.values())) for key, each in ranks.items()
    }
