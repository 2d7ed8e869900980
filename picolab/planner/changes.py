"""What would save a layout that died: the three smallest changes with which it lives.

A change is small if it moves few settings by little: factors of two on the axes (what tp loses dp
gains, which is one move), stages of ZeRO, sp, the schedule. Where micro-batch and recomputation
were given, they are changed first, by factors of two and by more of it: no layout has to be moved
for that. A change that contains a smaller one which is enough already is not named.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from picolab import costs
from picolab.planner.costing import Costing
from picolab.planner.request import Request
from picolab.planner.search import SCHEDULES, order, splits, variants
from picolab.planner.verdict import Verdict, cuts, judge, objection
from picolab.specs import Layout

AXES = ("dp", "tp", "pp", "cp")
SETTINGS = (*AXES, "ep", "zero", "sp", "schedule")


@dataclass(frozen=True)
class Change:
    """Settings that are changed, old and new, and the verdict on what comes of it."""

    settings: dict[str, tuple]
    verdict: Verdict

    def __str__(self) -> str:
        words = []
        for name, (old, new) in self.settings.items():
            if name == "sp":
                words.append("with sp" if new else "without sp")
            else:
                words.append(f"{name} {new} instead of {old}")
        return ", ".join(words)


def smallest_changes(
    costing: Costing,
    layout: Layout,
    *,
    micro_batch: int | None = None,
    recompute: str | None = None,
    count: int = 3,
) -> list[Change]:
    """The smallest changes of a layout that dies; fewer than `count` if there are no more."""
    found: list[Change] = []
    near_ones = (
        (moved, further, len(_differences(layout, near)), str(near), near, size, mode)
        for moved, near in _near(costing.request, layout)
        for further, size, mode in _cuts(costing, near, micro_batch, recompute)
    )
    for *_, near, size, mode in sorted(near_ones, key=lambda one: one[:4]):
        verdict = judge(costing, near, micro_batch=size, recompute=mode)
        if not verdict.fits:
            continue
        settings = _differences(layout, near)
        for name, given, new in (
            ("micro-batch", micro_batch, verdict.candidate.micro_batch),
            ("recompute", recompute, verdict.candidate.recompute),
        ):
            if given is not None and given != new:
                settings[name] = (given, new)
        if settings and not any(_within(change.settings, settings) for change in found):
            found.append(Change(settings, verdict))
        if len(found) == count:
            break
    return found


def _within(smaller: dict[str, tuple], larger: dict[str, tuple]) -> bool:
    """Whether all that one changes is changed by the other, by as much or more: a yet smaller
    micro-batch is no other idea."""
    return all(
        name in larger and (larger[name] == pair or name in ("micro-batch", "recompute"))
        for name, pair in smaller.items()
    )


def _cuts(
    costing: Costing, near: Layout, micro_batch: int | None, recompute: str | None
) -> Iterator[tuple[float, int | None, str | None]]:
    """Micro-batches and recomputations of a layout, where they were given, and how far they are."""
    sizes: list[tuple[float, int | None]] = [(0, None)]
    modes: list[tuple[float, str | None]] = [(0, None)]
    if micro_batch is not None and objection(costing, near) is None:
        sizes = [(abs(math.log2(size / micro_batch)), size) for size in cuts(costing, near)]
    if recompute is not None:
        given = costs.RECOMPUTE.index(recompute)
        modes = [(abs(costs.RECOMPUTE.index(mode) - given), mode) for mode in costing.modes(near)]
    for (smaller, size), (more, mode) in itertools.product(sizes, modes):
        yield smaller + more, size, mode


def _differences(old: Layout, new: Layout) -> dict[str, tuple]:
    pairs = {name: (getattr(old, name), getattr(new, name)) for name in SETTINGS}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _near(request: Request, layout: Layout) -> Iterator[tuple[float, Layout]]:
    """All layouts of as many ranks, and how far they are."""
    schedules = (layout.schedule, *SCHEDULES)
    for split in splits(request):
        moved = sum(abs(math.log2(getattr(split, a) / getattr(layout, a))) for a in AXES) / 2
        moved += abs(math.log2(split.ep / layout.ep))
        for near in variants(split, tuple(dict.fromkeys(schedules))):
            yield (
                moved
                + abs(near.zero - layout.zero)
                + (near.sp != layout.sp)
                + (near.schedule != layout.schedule and layout.pp > 1 and near.pp > 1),
                near,
            )


def remedy(costing: Costing) -> str:
    """Where nothing lives: what the leanest layout lacks, and the least that would help."""
    request = costing.request
    config, device, room = request.model, request.hardware, request.memory_bytes
    of = f"no layout of {request.gpus:,} x {device.name} trains {config.name}"
    least = leanest(costing)
    if least is None:
        return f"{of} with {request.global_batch:,} sequences a step{_fewer(costing)}"
    needed = least.memory_bytes
    sentence = (
        f"{of} at seq {request.seq:,}: the leanest, {least.candidate}, needs {needed / 1e9:.1f} "
        f"GB of {room / 1e9:.1f} GB; "
    )
    bigger = f"devices of {math.ceil(needed / (1 - request.practice.reserved) / 1e9)} GB would"
    for doublings in range(1, 10):
        more = request.replace(gpus=request.gpus * 2**doublings)
        if first := first_that_fits(Costing(more)):
            return f"{sentence}{more.gpus:,} devices would do ({first.candidate}), or {bigger}"
    return f"{sentence}{bigger} do"


def _fewer(costing: Costing) -> str:
    """The largest number of devices that something can be done with."""
    for gpus in range(costing.request.gpus - 1, 0, -1):
        if first := first_that_fits(Costing(costing.request.replace(gpus=gpus))):
            return f"; {gpus:,} devices would do ({first.candidate})"
    return " in any way, on fewer devices neither"


def first_that_fits(costing: Costing) -> Verdict | None:
    """Some layout that lives, the plainest split first."""
    for split in sorted(splits(costing.request), key=lambda split: (split.cp, split.pp, split.tp)):
        verdicts = (
            judge(costing, layout, recompute="full") for layout in variants(split, ("1f1b",))
        )
        living = [verdict for verdict in verdicts if verdict.fits]
        if living:
            return min(living, key=order)
    return None


def leanest(costing: Costing) -> Verdict | None:
    """The layout that needs least memory; None if there is no layout at all."""
    verdicts = (
        judge(costing, layout, recompute=costs.RECOMPUTE[-1])
        for split in splits(costing.request)
        for layout in variants(split, ("1f1b",))
    )
    return min((v for v in verdicts if v.candidate), key=lambda v: v.memory_bytes, default=None)
