"""What the planner says of one layout: what its step costs, or what kills it first."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from picolab.planner.costing import Candidate, Costing
from picolab.specs import Layout

MICRO_BATCHES = (1, 2, 4, 8, 16)
"""sizes that are tried, where the batch can be cut into them"""


@dataclass(frozen=True)
class Killed:
    """The first constraint that a layout does not meet, and by how much."""

    constraint: Literal["layout", "batch", "schedule", "memory"]
    number: float
    limit: float
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """One layout, judged. Seconds and bytes are of `candidate`: the fastest that fits, or, where
    all need too much memory, the one that needs least."""

    layout: Layout
    candidate: Candidate | None = None
    micro_batches: int = 0
    killed_by: Killed | None = None
    costing: Costing | None = None
    """what the candidate's bytes and seconds come from: a search has thousands of dead layouts, and
    shows a few"""
    at_least_s: float | None = None
    """It was not looked at closer: no step of it is faster than this, and ten layouts are."""

    @property
    def fits(self) -> bool | None:
        """None: not looked at, since it is too slow in any case."""
        if self.killed_by:
            return False
        return True if self.at_least_s is None else None

    @cached_property
    def memory(self) -> dict[str, float] | None:
        """On the rank that needs most, by category."""
        return self.costing.memory(self.candidate) if self.costing else None

    @cached_property
    def seconds(self) -> dict[str, float] | None:
        """Of a step, by term."""
        return self.costing.seconds(self.candidate) if self.costing else None

    @property
    def memory_bytes(self) -> float:
        return sum(self.memory.values())

    @property
    def step_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def dominated_by(self) -> str:
        """The term that takes longest."""
        return max(self.seconds, key=self.seconds.get)

    @property
    def lost_to(self) -> str | None:
        """The term that takes longest apart from compute; None if nothing else takes time."""
        others = {term: s for term, s in self.seconds.items() if term != "compute" and s > 0}
        return max(others, key=others.get) if others else None


def objection(costing: Costing, layout: Layout) -> Killed | None:
    """Why a layout cannot work at all, before any memory is counted."""
    config, batch = costing.config, costing.request.global_batch
    for reason in layout.objections(config):
        return Killed("layout", *_numbers(layout, config), reason)
    if batch % layout.dp:
        reason = (
            f"dp={layout.dp} replicas cannot share {batch:,} sequences (the global batch) evenly"
        )
        return Killed("batch", layout.dp, batch, reason)
    return None


def _numbers(layout: Layout, config) -> tuple[float, float]:
    """What is too many, and what there is of it."""
    for number, limit in (
        (layout.tp, config.heads),
        (len(layout.stage_ranks), config.layers),
        (layout.ep, max(1, config.experts)),
    ):
        if number > limit:
            return number, limit
    return layout.cp * layout.tp, config.seq


def cuts(costing: Costing, layout: Layout) -> Iterator[int]:
    """The micro-batches that the layout and its schedule can have, small ones first."""
    sequences = costing.request.global_batch // layout.dp
    for size in MICRO_BATCHES:
        if sequences % size == 0 and costing.holds(layout, sequences // size):
            yield size


def too_slow(costing: Costing, layout: Layout, limit_s: float) -> Verdict | None:
    """If no micro-batch, recomputation or stage of ZeRO makes a step as short as that. Most are
    told from this alone, before memory is counted."""
    if limit_s == math.inf or objection(costing, layout):
        return None
    sizes = cuts(costing, layout)
    least = min((costing.least_seconds(layout, size) for size in sizes), default=0.0)
    return Verdict(layout, at_least_s=least) if least > limit_s else None


def judge(
    costing: Costing,
    layout: Layout,
    *,
    micro_batch: int | None = None,
    recompute: str | None = None,
    limit_s: float | None = None,
) -> Verdict:
    """The verdict on a layout, over micro-batches and recomputation unless they are given.

    limit_s: who is slower need not be looked at closer. More recomputation is never faster, so
    that of one micro-batch the first that fits is the fastest; a larger micro-batch never needs
    less memory, so that a layout whose smallest does not fit is dead.
    """
    killed = objection(costing, layout)
    if killed:
        return Verdict(layout, killed_by=killed)
    sizes = list(cuts(costing, layout)) if micro_batch is None else [micro_batch]
    if not sizes:
        return Verdict(layout, killed_by=_no_schedule(costing, layout))
    modes = costing.modes(layout) if recompute is None else (recompute,)
    room = costing.request.memory_bytes
    smallest = [Candidate(layout, sizes[0], mode) for mode in modes]
    too_large = []
    for i, candidate in enumerate(smallest):
        needed = costing.total_bytes(candidate)
        if needed <= room:
            break
        too_large.append((needed, i))
    else:
        return _too_large(costing, smallest[min(too_large)[1]])
    best = skipped = None
    for size in sizes:
        least = sum(costing.seconds(Candidate(layout, size, modes[0])).values())
        if limit_s is not None and least > limit_s:
            skipped = least if skipped is None else min(skipped, least)
            continue
        for mode in modes:
            candidate = Candidate(layout, size, mode)
            needed = costing.total_bytes(candidate)
            if needed <= room:
                took = sum(costing.seconds(candidate).values()), needed
                if best is None or took < best[0]:
                    best = took, candidate
                break
    if skipped is not None and (best is None or best[0][0] > limit_s):
        return Verdict(layout, at_least_s=min(skipped, best[0][0]) if best else skipped)
    assert best is not None, "the smallest fits, so that something is fast or skipped"
    return Verdict(layout, best[1], costing.micro_batches(best[1]), None, costing)


def _too_large(costing: Costing, candidate: Candidate) -> Verdict:
    memory, room = costing.memory(candidate), costing.request.memory_bytes
    needed = sum(memory.values())
    sentence = (
        f"needs {needed / 1e9:.1f} GB of {room / 1e9:.1f} GB even with micro-batch "
        f"{candidate.micro_batch} and {candidate.recompute} recompute; most of it "
        f"{max(memory, key=memory.get)}"
    )
    return Verdict(
        candidate.layout, candidate, costing.micro_batches(candidate),
        Killed("memory", needed, room, sentence), costing,
    )  # fmt: skip


def _no_schedule(costing: Costing, layout: Layout) -> Killed:
    sequences = costing.request.global_batch // layout.dp
    least = costing.least_micro_batches(layout)
    return Killed(
        "schedule", sequences, least,
        f"{layout.schedule} on {layout.pp} stages needs micro-batches in another number than "
        f"{sequences:,} sequences a replica can be cut into: at least {least}"
        + (f", a multiple of {layout.pp}" if layout.schedule.startswith("interleaved") else ""),
    )  # fmt: skip
