"""After an out-of-memory: the three smallest changes that would have fitted.

The planner searches near the run's settings (planner/changes.py): a smaller micro-batch, blocks
that recompute, ZeRO, sp, other axes for the same ranks. The global batch stays, so that
micro-batches are added up instead. Each change comes with its predicted peak: states, what modules
keep, and what is alive for a moment, by the formulas of `costs`, which count eager operators as a
`MemoryMonitor` sees them (tests/distributed/memory/test_limit.py compares, and runs the changes
under the limit). An upper bound: gradients are counted whole, though backward makes room for them.

"Recompute" is a run's memory_budget: which blocks do, its scheduler chooses, from bytes that it
measures in a pass that keeps everything. On a GPU that pass, before there are moments, has to fit.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from picolab import costs
from picolab.memory.limit import LimitPassed
from picolab.memory.prediction import boundary_bytes
from picolab.monitoring import events
from picolab.planner import PRACTICES, Request
from picolab.planner.blocks import mixed
from picolab.planner.changes import Change, leanest, smallest_changes
from picolab.planner.costing import Costing
from picolab.show.table import bytes_text
from picolab.specs import Hardware, TrainConfig

LEFT_OUT = 1 / 500
"""Of a peak, the most that formulas do not count: a ring's tables, scalars, sums of sp."""
SEARCHED = 12
"""changes of the planner's, of which some are the same setting of a run, or none that it has"""


@dataclass(frozen=True)
class Fitting:
    """Settings of `pico.train` that would have fitted, and the peak that is predicted for them."""

    settings: dict[str, Any]
    peak: int

    def __str__(self) -> str:
        words = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"{words}: a peak of {bytes_text(self.peak)} ({self.peak:,} bytes) is predicted"


def fitting(config: TrainConfig, limit: int, count: int = 3) -> list[Fitting]:
    """The smallest changes of a run with which no rank needs more than the limit; fewer than
    `count` if there are no more."""
    costing, found = _costing(config, round(limit * (1 - LEFT_OUT))), []
    near = smallest_changes(
        costing, config.layout, micro_batch=config.micro_batch, recompute="none", count=SEARCHED
    )
    for change in near:
        one = _as_settings(costing, config, change, limit)
        if one is not None and not any(f.settings.items() <= one.settings.items() for f in found):
            found.append(one)
    return found[:count]


def advise(config: TrainConfig, error: torch.OutOfMemoryError, step: int) -> None:
    """Add to an out-of-memory what would have fitted, and write it as an event."""
    limit = error.limit if isinstance(error, LimitPassed) else device_limit()
    found = fitting(config, limit)
    alive = error.alive if isinstance(error, LimitPassed) else {}
    events.write(
        "out of memory", step=step, limit=limit, alive=alive,
        changes=[{"settings": one.settings, "peak": one.peak} for one in found],
    )  # fmt: skip
    if found:
        lines = [f"  {number}. {one}" for number, one in enumerate(found, 1)]
        error.add_note("\n".join(["It would have fitted with one of", *lines]))
    else:
        least = leanest(_costing(config, limit))
        error.add_note(
            f"No layout of {config.layout.world} ranks fits into {bytes_text(limit)} with any "
            f"micro-batch; the leanest, {least.candidate}, needs {bytes_text(least.memory_bytes)}"
        )


def device_limit() -> int:
    """What this process may have of its GPU."""
    share = torch.cuda.get_per_process_memory_fraction()
    return int(torch.cuda.get_device_properties().total_memory * share)


def _costing(config: TrainConfig, limit: int) -> Costing:
    """The planner's, for a device of that memory. Its rates order what is near alike, no more."""
    practice = PRACTICES["picolab"]
    if config.precision != "fp32":
        products = "native" if config.products == "native" else "rounded"
        practice = replace(
            PRACTICES[f"picolab-{config.precision}"],
            copies=costs.copy_bytes(config.precision, products),
        )
    device = Hardware(
        name="this device", peak_flops=5e10, memory_bytes=limit, memory_bytes_per_s=1e10,
        link_bytes_per_s=2e9, network_bytes_per_s=2e9, link_alpha_s=1e-4, measured=True,
        source="a limit",
    )  # fmt: skip
    request = Request(
        model=config.model, gpus=config.layout.world, hardware=device,
        global_batch=config.sequences_per_step, practice=practice,
    )  # fmt: skip
    return Costing(request)


def _as_settings(
    costing: Costing, config: TrainConfig, change: Change, limit: int
) -> Fitting | None:
    """The same as settings of a run; None if it has no such settings."""
    candidate = change.verdict.candidate
    settings = {
        "layout": str(candidate.layout),
        "micro_batch": candidate.micro_batch,
        "accumulate": costing.micro_batches(candidate),
    }
    if candidate.recompute != "none":
        settings["memory_budget"] = limit
        # The scheduler leaves room for what a collective lets go of late.
        candidate = mixed(costing, candidate, limit - _late_bytes(config, candidate.layout))
    if candidate is None:
        return None
    try:
        replace(config, **settings)
    except ValueError:
        return None
    were = {name: getattr(config, name) for name in settings} | {"layout": str(config.layout)}
    settings = {name: value for name, value in settings.items() if value != were[name]}
    return Fitting(settings, round(costing.total_bytes(candidate)))


def _late_bytes(config: TrainConfig, layout) -> int:
    """What `manager.let_go_late` comes to, about: two calls, each with what it is given and what it
    fills; under ZeRO a bucket."""
    if layout.zero:
        return config.bucket_bytes
    if layout.tp * layout.cp * layout.pp * layout.ep > 1:
        times = config.model.experts_per_token if layout.ep > 1 else 1
        times *= config.layout.tp if config.layout.sp else 1  # gathered before a block
        return 4 * boundary_bytes(config) * times
    return 0
