"""Which layouts a panel may offer, and what the formulas say about each. No widgets, no torch.

Layouts are compared on the same global batch. Unless it is told how many micro-batches a replica
takes, a step has MICRO_BATCHES of them over all replicas: a number that 1, 2, 3, 4 and 6 replicas
divide evenly, and with which four pipeline stages are busy most of the time.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from picolab import costs, schedules
from picolab.show.guess_figure import value_text
from picolab.show.table import Table
from picolab.specs import Layout, ModelConfig
from picolab.specs.schedule_name import ScheduleName

CHOSEN = ("dp", "tp", "pp", "cp")
ZERO_STAGES = (0, 1, 2, 3)
MICRO_BATCHES = 12


def working_layouts(
    config: ModelConfig,
    max_world: int,
    like: Layout | str = "dp1",
    axes: Sequence[str] = CHOSEN,
) -> dict[tuple[int, ...], Layout]:
    """(dp, tp, pp, cp) -> every layout of at most max_world ranks that can split the model.

    like: where schedule, sp, ep and ZeRO's stage come from (sp only where tp is more than 1).
    axes: those that may be more than 1.
    """
    if isinstance(max_world, bool) or not isinstance(max_world, int) or max_world < 1:
        raise ValueError(f"max_world is a number of ranks, 1 or more, not {max_world!r}")
    like, found = Layout.parse(like), {}
    ranges = [range(1, max_world + 1) if axis in axes else (1,) for axis in CHOSEN]
    for sizes in itertools.product(*ranges):
        if math.prod(sizes) > max_world:
            continue
        try:
            layout = like.resized(**dict(zip(CHOSEN, sizes)))
            layout.check(config)
        except ValueError:
            continue
        found[sizes] = layout
    return found


def nearest(
    layouts: dict[tuple[int, ...], Layout],
    now: Layout,
    axis: str | None = None,
    size: int | None = None,
) -> Layout | None:
    """The layout with that size of the axis (None: any) that is nearest to the present one; None if
    none has it.

    Nearest as `Layout.check` has it: the smallest sum of |log(new / old)| over the axes, and of two
    equally near ones the one with more of what comes first.
    """
    old = [getattr(now, name) for name in CHOSEN]

    def distance(sizes: tuple[int, ...]) -> tuple:
        moved = sum(abs(math.log2(new / was)) for new, was in zip(sizes, old))
        return round(moved, 9), *(-new for new in sizes)

    fitting = [sizes for sizes in layouts if axis is None or sizes[CHOSEN.index(axis)] == size]
    return layouts[min(fitting, key=distance)] if fitting else None


def accumulated(layout: Layout, given: int | None = None) -> int:
    """Micro-batches of one replica in a step: as given, or its part of MICRO_BATCHES. At least one
    for each rank of pp: with fewer, some stage never has anything to do; and as many more as the
    schedule asks for.
    """
    least = given or max(layout.pp, MICRO_BATCHES // layout.dp)
    return ScheduleName.parse(layout.schedule).micro_batches(layout.pp, least)


class Traffic(NamedTuple):
    """What is sent and received for one reason; means over ranks, so counts may be broken."""

    count: float
    payload_bytes: float
    unit: str = "collective"

    def __str__(self) -> str:
        """ "786,432 bytes (786 kB) in 12 messages"."""
        plural = "" if self.count == 1 else "s"
        size = value_text(round(self.payload_bytes), "bytes")
        return f"{size} in {self.count:g} {self.unit}{plural}"


def formula_traffic(
    config: ModelConfig, layout: Layout, *, accumulate: int | None = None, **step
) -> dict[str, Traffic]:
    """reason -> `Traffic` of one rank and step, largest first: the mean over the ranks, since the
    stages of a pipeline differ. What is sent and what is received count alike.
    """
    totals: dict[str, Traffic] = {}
    for rank in range(layout.world):
        ledger = costs.step_ledger(
            config, layout, rank=rank, accumulate=accumulated(layout, accumulate), **step
        )
        for (op, _, reason), expected in ledger.items():
            unit = "message" if op in ("send", "recv") else "collective"
            count, size, _ = totals.get(reason, (0, 0, ""))
            totals[reason] = Traffic(count + expected.count, size + expected.payload_bytes, unit)
    world = layout.world
    rows = {r: Traffic(n / world, size / world, unit) for r, (n, size, unit) in totals.items()}
    return dict(sorted(rows.items(), key=lambda row: -row[1].payload_bytes))


def whole_facts(
    config: ModelConfig, layout: Layout, accumulate: int | None = None
) -> list[tuple[str, str]]:
    """What the formulas say besides traffic: (name, value)."""
    each, facts = accumulated(layout, accumulate), [("parameters", _parameters(config, layout))]
    if layout.zero:
        states = [costs.rank_states(config, layout, rank) for rank in range(layout.world)]
        largest = max(states, key=lambda held: sum(held.values()))
        for name, size in largest.items():
            facts.append((f"{name}, in fp32", value_text(size, "bytes")))
    if layout.pp > 1:
        schedule = schedules.make(layout.schedule, layout.pp, each)
        bubble = 100 * float(schedules.simulate(schedule).bubble_of_total)
        facts.append(("pipeline bubble, of the total", f"{bubble:.1f} %, {each} micro-batches"))
    return facts


def title(layout: Layout, micro_batch: int, accumulate: int | None = None) -> str:
    sequences = layout.dp * accumulated(layout, accumulate) * micro_batch
    return f"{layout}: {_ranks(layout.world)}, {sequences} sequences a step"


def formula_table(
    config: ModelConfig,
    layout: Layout,
    measured: dict[str, tuple[float, float]] | None = None,
    *,
    accumulate: int | None = None,
    **step,
) -> Table:
    """What the formulas say about a rank of this layout, beside what its last run measured.

    `step` is what `costs.step_ledger` takes; `measured` is reason -> (operations, payload bytes),
    means over the ranks.
    """
    rows = [[*fact, ""] for fact in whole_facts(config, layout, accumulate)]
    expected = formula_traffic(config, layout, accumulate=accumulate, **step)
    for reason in [*expected, *(r for r in measured or {} if r not in expected)]:
        formula, found = expected.get(reason), (measured or {}).get(reason)
        unit = formula.unit if formula else "collective"
        told = Traffic(*found, unit) if found else None
        rows.append([reason, *("none" if t is None else str(t) for t in (formula, told))])
    if not expected:
        rows.append(["collectives", "none: one rank talks to nobody", ""])
    whose = "one step, mean of the ranks" if layout.pp > 1 else "one rank, one step"
    columns = [whose, "formula", "measured"]
    if measured is None:
        columns, rows = columns[:2], [row[:2] for row in rows]
    return Table(columns, rows, title(layout, step["micro_batch"], accumulate))


def choices_table(config: ModelConfig, layouts: dict[tuple[int, ...], Layout], **step) -> Table:
    """Every layout a panel offers: ranks, parameters on a rank, bytes a step."""
    rows = []
    for layout in sorted(layouts.values(), key=lambda layout: layout.world):
        traffic = sum(t.payload_bytes for t in formula_traffic(config, layout, **step).values())
        rows.append(
            [str(layout), layout.world, max(_held(config, layout)), round(traffic)],
        )
    most = max(layout.world for layout in layouts.values())
    columns = ["layout", "ranks", "parameters on a rank", "payload bytes a step and rank"]
    return Table(columns, rows, f"Layouts that work for {config.name} on up to {most} ranks")


def _held(config: ModelConfig, layout: Layout) -> list[int]:
    """Parameters that each rank keeps."""
    kept = costs.zero_shards if layout.zero == 3 else costs.local_parameters
    return [
        sum(parameter.numel for parameter in kept(config, layout, rank))
        for rank in range(layout.world)
    ]


def _parameters(config: ModelConfig, layout: Layout) -> str:
    held, whole = _held(config, layout), costs.parameters(config).total
    least, most = min(held), max(held)
    own = f"{most:,}" if least == most else f"{least:,} to {most:,}"
    return own if least == whole else f"{own} of {whole:,}"


def _ranks(world: int) -> str:
    return "1 rank" if world == 1 else f"{world} ranks"
