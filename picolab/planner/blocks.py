"""Recomputation layer by layer: the least time within the memory.

All or nothing wastes what lies between: where keeping everything needs a little too much, a few
layers that recompute are enough. The layers of a kind are alike, so of a place on pp only counts
matter: of each kind, how many keep, recompute selectively, and recompute. For each number of those
that recompute, the fewest selective ones that fit are the fastest; and so few counts are tried that
all are. Each place gets its own, since the first ones of a pipeline keep more micro-batches.

It is what `picolab.memory.MemoryScheduler` chooses block by block, by a dynamic programme over
measured numbers (tests/unit/planner/test_blocks.py gives both the same numbers).
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace

from picolab import costs
from picolab.planner.costing import Costing
from picolab.planner.parts import Candidate, Counts, Mix, Part
from picolab.planner.verdict import Verdict, cuts
from picolab.show.table import Table


def mixed(costing: Costing, candidate: Candidate, room: float | None = None) -> Candidate | None:
    """The candidate with the fastest mix at each place on pp, whatever it recomputes itself; None
    if none fits. room: None, what the request's device has."""
    room = costing.request.memory_bytes if room is None else room
    layout, keeping = candidate.layout, candidate._replace(recompute="none")
    if costing.total_bytes(keeping) <= room:
        return keeping
    where = layout.pp, layout.schedule, layout.stages
    chosen = []
    for place, (part, _) in enumerate(costing.mixes(where, "none")):
        fitting = (
            (longer_s(costing, candidate, mix), mix)
            for mix in _fewest_selective(costing, candidate, part, place, room)
        )
        best = min(fitting, default=None)
        if best is None:
            return None
        chosen.append(best[1])
    return candidate._replace(recompute=tuple(chosen))


def refined(verdict: Verdict, micro_batch: int | None = None) -> Verdict:
    """The verdict on a layout that lives, with the fastest mix; never slower than it was."""
    costing, layout = verdict.costing, verdict.layout
    if not verdict.fits:
        return verdict
    found = [(verdict.step_s, verdict.memory_bytes, verdict.candidate)]
    for size in cuts(costing, layout) if micro_batch is None else (micro_batch,):
        candidate = mixed(costing, Candidate(layout, size, "none"))
        if candidate is not None:
            step = sum(costing.seconds(candidate).values())
            found.append((step, costing.total_bytes(candidate), candidate))
    *_, best = min(found, key=lambda one: one[:2])
    return replace(verdict, candidate=best, micro_batches=costing.micro_batches(best))


def longer_s(costing: Costing, candidate: Candidate, mix: Mix) -> float:
    """Seconds of a micro-batch more than if all layers of a place kept everything."""
    layout, micro_batch, _ = candidate
    options = layout.tp, layout.sp, layout.cp, layout.ep, micro_batch
    found = 0.0
    for (_, layer), counts in zip(costing._kinds(Part(1, 1, False, False)), mix):
        if sum(counts):
            none, *others = (costing._layer(layer, *options, r).total for r in costs.RECOMPUTE)
            found += sum(n * (took - none) for n, took in zip(counts[1:], others))
    return found


def _fewest_selective(
    costing: Costing, candidate: Candidate, part: Part, place: int, room: float
) -> Iterator[Mix]:
    """For each number of layers that recompute, the mix with the fewest selective ones that fits;
    of two kinds of layers, for each number of selective ones of the first, too."""
    modes = costing.modes(candidate.layout)
    fulls = [range(n + 1) if "full" in modes else (0,) for n in part[:2]]
    for dense, sparse in itertools.product(*fulls):
        first = range(part.dense - dense + 1) if "selective" in modes and part.sparse else (0,)
        last = part.sparse - sparse if part.sparse else part.dense - dense
        for some in first:
            least, most = 0, last if "selective" in modes else 0

            def mix(count: int, dense=dense, sparse=sparse, some=some) -> Mix:
                a, b = (some, count) if part.sparse else (count, 0)
                return Mix(
                    Counts(part.dense - dense - a, a, dense),
                    Counts(part.sparse - sparse - b, b, sparse),
                )

            if costing.place_bytes(candidate, place, mix(most)) > room:
                continue
            while least < most:
                middle = (least + most) // 2
                if costing.place_bytes(candidate, place, mix(middle)) <= room:
                    most = middle
                else:
                    least = middle + 1
            yield mix(most)


def table(costing: Costing, candidate: Candidate) -> Table:
    """What each place on pp does with its layers, from the first to the last."""
    held = costing.memory_by_place(candidate)
    layout = candidate.layout
    where = layout.pp, layout.schedule, layout.stages
    rows = []
    for place, (_, mix) in enumerate(costing.mixes(where, candidate.recompute)):
        none, selective, full = map(sum, zip(*mix))
        longer = longer_s(costing, candidate, mix)
        rows.append([place, full, selective, none, sum(held[place].values()) / 1e9, 1e3 * longer])
    return Table(
        ["stage", "recompute", "selectively", "keep", "GB", "ms a micro-batch more"],
        rows,
        title="What the layers of each stage do, the first ones of a kind recomputing:",
    )
