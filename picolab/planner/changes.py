"""What would save a layout that died: the three smallest changes with which it lives.

A change is small if it moves few settings by little: factors of two on the axes (what tp loses dp
gains, which is one move), stages of ZeRO, sp, the schedule; and, where they were given, micro-batch
and recomputation. A change that contains a smaller one which is enough already is not named.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from picolab import costs
from picolab.planner.costing import Costing
from picolab.planner.request import Request
from picolab.planner.search import SCHEDULES, order, splits, variants
from picolab.planner.verdict import Verdict, judge
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
        (moved, len(_differences(layout, near)), str(near), near)
        for moved, near in _near(costing.request, layout)
    )
    for *_, near in sorted(near_ones, key=lambda one: one[:3]):
        verdict = judge(costing, near)
        if not verdict.fits:
            continue
        settings = _differences(layout, near)
        for name, given, new in (
            ("micro-batch", micro_batch, verdict.candidate.micro_batch),
            ("recompute", recompute, verdict.candidate.recompute),
        ):
            if given is not None and given != new:
                settings[name] = (given, new)
        smaller = (change.settings.items() for change in found)
        if settings and not any(items <= settings.items() for items in smaller):
            found.append(Change(settings, verdict))
        if len(found) == count:
            break
    return found


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
    leanest = _leanest(costing)
    if leanest is None:
        return f"{of} with {request.global_batch:,} sequences a step{_fewer(costing)}"
    needed = leanest.memory_bytes
    sentence = (
        f"{of} at seq {request.seq:,}: the leanest, {leanest.candidate}, needs {needed / 1e9:.1f} "
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


def _leanest(costing: Costing) -> Verdict | None:
    """The layout that needs least memory; None if there is no layout at all."""
    verdicts = (
        judge(costing, layout, recompute=costs.RECOMPUTE[-1])
        for split in splits(costing.request)
        for layout in variants(split, ("1f1b",))
    )
    return min((v for v in verdicts if v.candidate), key=lambda v: v.memory_bytes, default=None)
