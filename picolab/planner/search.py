"""Every layout of so many devices, each with a verdict.

Splits are taken in the order of their bound, so that the ten best are found early and the rest can
be told from the bound alone (`bounds.py`). Nothing is dropped: the table has a row for each layout
that was judged, one for each split that no choice of zero, sp and schedule could save, and one for
each choice of sp and schedule that no zero could.

Two things are judged (`--layout`) and not searched. DualPipeV, whose bubble has a closed form for
F = B = W alone, so that beside schedules with the model's own F, B and W it would win or lose by
that; and `shard`, which has as many values as dp has divisors, for each of them: from where ZeRO
over all replicas is dominated by dp, try a shard group of a node by hand.
"""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from picolab.planner.bounds import Split, bounds
from picolab.planner.costing import Costing
from picolab.planner.request import Request
from picolab.planner.verdict import Killed, Verdict, judge, objection, too_slow
from picolab.specs import Layout
from picolab.specs.layout import divisors, factorisations

SCHEDULES = ("1f1b", "gpipe", "interleaved", "interleaved-v4", "zb-h1", "zb-v")
BEST = 10


@dataclass(frozen=True, eq=False)
class Searched:
    """All verdicts of a request."""

    costing: Costing
    verdicts: tuple[Verdict, ...]

    @property
    def request(self) -> Request:
        return self.costing.request

    @cached_property
    def living(self) -> list[Verdict]:
        """Those that were found to fit, the fastest first."""
        return sorted((v for v in self.verdicts if v.fits), key=order)

    @cached_property
    def slower(self) -> list[Verdict]:
        """Those that need not be looked at, by what they take at least."""
        found = (v for v in self.verdicts if v.at_least_s is not None)
        return sorted(found, key=lambda v: (v.at_least_s, str(v.layout)))

    @cached_property
    def dead(self) -> list[Verdict]:
        """By constraint, those that miss memory by least first."""
        found = (v for v in self.verdicts if v.killed_by)
        kinds = ("memory", "schedule", "batch", "layout")
        return sorted(
            found,
            key=lambda v: (
                kinds.index(v.killed_by.constraint), v.killed_by.number / v.killed_by.limit,
                str(v.layout),
            ),
        )  # fmt: skip

    @property
    def best(self) -> list[Verdict]:
        return self.living[:BEST]


def order(verdict: Verdict) -> tuple:
    """Fast before slow, and of equally fast ones the leaner, the simpler."""
    text = str(verdict.layout)
    return verdict.step_s, verdict.memory_bytes, len(text), text


def splits(request: Request) -> Iterator[Split]:
    for dp, tp, pp, cp in factorisations(request.gpus, 4):
        experts = request.model.experts
        for ep in divisors(math.gcd(dp * cp, experts)) if experts else (1,):
            yield Split(dp, tp, pp, cp, ep)


def pipelines(split: Split, schedules: tuple[str, ...] = SCHEDULES) -> Iterator[Layout]:
    """The layouts of a split without ZeRO."""
    for sp in (False, True) if split.tp > 1 else (False,):
        for schedule in schedules if split.pp > 1 else ("1f1b",):
            yield Layout(**split._asdict(), sp=sp, schedule=schedule)


def with_zero(pipeline: Layout) -> Iterator[Layout]:
    """A layout, and the same with each stage of ZeRO."""
    yield pipeline
    for zero in (1, 2, 3) if pipeline.dp * pipeline.cp > 1 else ():
        yield replace(pipeline, zero=zero)


def variants(split: Split, schedules: tuple[str, ...] = SCHEDULES) -> Iterator[Layout]:
    """The layouts of a split."""
    for pipeline in pipelines(split, schedules):
        yield from with_zero(pipeline)


def search(request: Request, *, prune: bool = True) -> Searched:
    """Judge them all. Without pruning every candidate is computed: the same ten best."""
    costing = Costing(request)
    verdicts, open_splits = [], []
    for split in splits(request):
        plain = Layout(**split._asdict())
        if (killed := objection(costing, plain)) is not None:
            verdicts.append(Verdict(plain, killed_by=killed))
        elif prune:
            found = list(bounds(costing, split, request.memory_bytes))
            fitting = [bound.seconds for bound in found if bound.bytes <= request.memory_bytes]
            if fitting:
                open_splits.append((min(fitting), split))
            else:
                killed = _too_large(min(bound.bytes for bound in found), request.memory_bytes)
                verdicts.append(Verdict(plain, killed_by=killed))
        else:
            open_splits.append((0.0, split))

    fastest: list[float] = []  # the ten best so far, negated: the slowest of them on top
    for least, split in sorted(open_splits):
        limit = -fastest[0] if prune and len(fastest) == BEST else None
        if limit is not None and least > limit:
            verdicts.append(Verdict(Layout(**split._asdict()), at_least_s=least))
            continue
        for pipeline in pipelines(split):
            limit = -fastest[0] if prune and len(fastest) == BEST else math.inf
            if (verdict := too_slow(costing, pipeline, limit)) is not None:
                verdicts.append(verdict)
                continue
            for layout in with_zero(pipeline):
                limit = -fastest[0] if prune and len(fastest) == BEST else None
                verdict = judge(costing, layout, limit_s=limit)
                verdicts.append(verdict)
                if verdict.fits:
                    heapq.heappush(fastest, -verdict.step_s)
                    if len(fastest) > BEST:
                        heapq.heappop(fastest)
    return Searched(costing, tuple(verdicts))


def _too_large(needed: float, room: float) -> Killed:
    sentence = (
        f"needs {needed / 1e9:.1f} GB of {room / 1e9:.1f} GB at the very least, with states "
        "sharded over all replicas and full recomputation"
    )
    return Killed("memory", needed, room, sentence)
