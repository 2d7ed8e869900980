"""Each rank's seconds of one step, without remainder: they add up to the step's wall time.

    compute         its own work, while it had a core
    waiting for a core   ready to run while no core was free (core_clock.py)
    communication   exposed, by reason: the stand-still from the moment when the last of those it
                    needs had come
    waiting         for a slower rank, by rank: until then
    bubble          the same waiting between the stages of a pipeline, in three parts

The parts of the bubble come from a replay of the same step in which every forward (backward, weight
gradient) of every stage takes the mean of all: what a rank then still waits is made by the
schedule. Until its first backward begins that is the *warm-up*, afterwards the *drain*. What it
really waited more is *imbalance*: stages, or single micro-batches, that took longer than others.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from picolab.monitoring.critical_path import StepGraph
from picolab.monitoring.step_split import standing_still
from picolab.schedules import Span


@dataclass
class RankSeconds:
    """Of one rank in one step."""

    compute_s: float = 0.0
    communication: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """reason -> exposed seconds"""
    warm_up_s: float = 0.0
    drain_s: float = 0.0
    imbalance_s: float = 0.0
    waiting: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    """rank that came last -> seconds"""
    core_s: float = 0.0

    @property
    def communication_s(self) -> float:
        return sum(self.communication.values())

    @property
    def bubble_s(self) -> float:
        return self.warm_up_s + self.drain_s + self.imbalance_s

    @property
    def waiting_s(self) -> float:
        return sum(self.waiting.values())

    @property
    def seconds(self) -> float:
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """What they are called -> seconds."""
        return {
            "compute": self.compute_s,
            "communication": self.communication_s,
            "warm-up": self.warm_up_s,
            "drain": self.drain_s,
            "imbalance": self.imbalance_s,
            "waiting for a rank": self.waiting_s,
            "waiting for a core": self.core_s,
        }


def rank_seconds(graph: StepGraph) -> dict[int, RankSeconds]:
    """rank -> its seconds."""
    bubbles = _bubbles(graph)
    return {rank: _of_rank(graph, rank, bubbles[rank]) for rank in graph.ranks}


def _of_rank(graph: StepGraph, rank: int, schedule_made: tuple[float, float]) -> RankSeconds:
    found, bubble = RankSeconds(), 0.0
    for i in graph.rows[rank]:
        node = graph.nodes[i]
        found.compute_s += node.work - node.queued
        found.core_s += node.queued
        if node.kind != "wait":
            continue
        stood, waited, whom = graph.waited(i, graph.measured)
        found.core_s += node.transfer_queued
        communication = node.time - stood - waited - node.transfer_queued
        found.communication[node.entry.reason] += communication
        if standing_still(node.entry) == "bubble":
            bubble += waited
        elif waited:
            found.waiting[whom] += waited
    up, down = schedule_made
    share = min(1.0, bubble / (up + down)) if up + down > 0 else 0.0
    found.warm_up_s, found.drain_s = share * up, share * down
    rest = bubble - found.warm_up_s - found.drain_s
    found.imbalance_s = rest if rest > 1e-9 else 0.0  # less is rounding
    found.communication, found.waiting = dict(found.communication), dict(found.waiting)
    return found


def _bubbles(graph: StepGraph) -> dict[int, tuple[float, float]]:
    """rank -> seconds of warm-up and of drain, if every action of a kind took the same."""
    work = even_actions(graph)
    times = graph.replay(work)
    found = {}
    for rank, row in graph.rows.items():
        up = down = 0.0
        backward = False
        for i in row:
            node = graph.nodes[i]
            backward = backward or (node.span is not None and node.span.action.kind == "B")
            if node.kind == "wait" and standing_still(node.entry) == "bubble":
                waited = graph.waited(i, times, work)[1]
                up, down = (up, down + waited) if backward else (up + waited, down)
        found[rank] = up, down
    return found


def span_work(graph: StepGraph) -> dict[Span, float]:
    """Each forward or backward -> the seconds that its rank worked in it."""
    found: dict[Span, float] = defaultdict(float)
    for node in graph.nodes:
        if node.span is not None:
            found[node.span] += node.work
    return found


def even_actions(graph: StepGraph) -> list[float]:
    """The work before each node if every action of a kind took the mean of all of them."""
    taken = span_work(graph)
    of_kind: dict[str, list[float]] = defaultdict(list)
    for span, seconds in taken.items():
        of_kind[span.action.kind].append(seconds)
    mean = {kind: sum(each) / len(each) for kind, each in of_kind.items()}

    def even(span: Span | None) -> float:
        return mean[span.action.kind] / taken[span] if span is not None and taken[span] else 1.0

    return [node.work * even(node.span) for node in graph.nodes]
