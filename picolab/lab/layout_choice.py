"""Which layouts a panel may offer, and what the formulas say about each. No widgets, no torch.

Layouts are compared on the same global batch. Unless it is told how many micro-batches a replica
takes, a step has MICRO_BATCHES of them over all replicas: a number that 1, 2, 3, 4 and 6 replicas
divide evenly, and with which four pipeline stages are busy most of the time.
"""

import dataclasses
import itertools
import math

from picolab import costs
from picolab.show.guess_figure import value_text
from picolab.show.table import Table
from picolab.specs import Layout, ModelConfig

SLIDERS = ("dp", "tp", "pp", "cp")
MICRO_BATCHES = 12


def working_layouts(
    config: ModelConfig, max_world: int, like: Layout | str = "dp1"
) -> dict[tuple[int, ...], Layout]:
    """(dp, tp, pp, cp) -> every layout of at most max_world ranks that can split the model.

    like: where schedule and sp come from (sp only where tp is more than 1).
    """
    if isinstance(max_world, bool) or not isinstance(max_world, int) or max_world < 1:
        raise ValueError(f"max_world is a number of ranks, 1 or more, not {max_world!r}")
    like, found = Layout.parse(like), {}
    for sizes in itertools.product(range(1, max_world + 1), repeat=len(SLIDERS)):
        if math.prod(sizes) > max_world:
            continue
        axes = dict(zip(SLIDERS, sizes))
        layout = dataclasses.replace(like, **axes, sp=like.sp and axes["tp"] > 1)
        try:
            layout.check(config)
        except ValueError:
            continue
        found[sizes] = layout
    return found


def nearest(
    layouts: dict[tuple[int, ...], Layout], now: Layout, axis: str, size: int
) -> Layout | None:
    """The layout with that size of the axis that is nearest to the present one; None if none has
    it.

    Nearest as `Layout.check` has it: the smallest sum of |log(new / old)| over the axes, and of two
    equally near ones the one with more of what comes first.
    """
    place, old = SLIDERS.index(axis), [getattr(now, name) for name in SLIDERS]

    def distance(sizes: tuple[int, ...]) -> tuple:
        moved = sum(abs(math.log2(new / was)) for new, was in zip(sizes, old))
        return round(moved, 9), *(-new for new in sizes)

    fitting = [sizes for sizes in layouts if sizes[place] == size]
    return layouts[min(fitting, key=distance)] if fitting else None


def accumulated(layout: Layout, given: int | None = None) -> int:
    """Micro-batches of one replica in a step: as given, or its part of MICRO_BATCHES. At least one
    for each stage: with fewer, some stage never has anything to do.
    """
    return given or max(layout.pp, MICRO_BATCHES // layout.dp)


def formula_rows(
    config: ModelConfig, layout: Layout, *, accumulate: int | None = None, **step
) -> dict[str, tuple[float, float]]:
    """reason -> (operations, payload bytes) of one rank and step, largest first: the mean over the
    ranks, since the stages of a pipeline differ. What is sent and what is received count alike.
    """
    totals: dict[str, tuple[float, float]] = {}
    for rank in range(layout.world):
        ledger = costs.step_ledger(
            config, layout, rank=rank, accumulate=accumulated(layout, accumulate), **step
        )
        for (_, _, reason), expected in ledger.items():
            count, size = totals.get(reason, (0, 0))
            totals[reason] = count + expected.count, size + expected.payload_bytes
    rows = {r: (count / layout.world, size / layout.world) for r, (count, size) in totals.items()}
    return dict(sorted(rows.items(), key=lambda row: -row[1][1]))


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
    each = accumulated(layout, accumulate)
    rows = [["parameters", _parameters(config, layout), ""]]
    if layout.pp > 1:
        bubble = 100 * costs.bubble_of_total(layout.pp, each)
        rows.append(["pipeline bubble, of the total", f"{bubble:.1f} %, {each} micro-batches", ""])
    expected = formula_rows(config, layout, accumulate=each, **step)
    for reason in [*expected, *(r for r in measured or {} if r not in expected)]:
        found = (measured or {}).get(reason)
        rows.append([reason, _traffic(expected.get(reason)), _traffic(found)])
    if not expected:
        rows.append(["collectives", "none: one rank talks to nobody", ""])
    whose = "one step, mean of the ranks" if layout.pp > 1 else "one rank, one step"
    columns = [whose, "formula", "measured"]
    if measured is None:
        columns, rows = columns[:2], [row[:2] for row in rows]
    sequences = layout.dp * each * step["micro_batch"]
    title = f"{layout}: {_ranks(layout.world)}, {sequences} sequences a step"
    return Table(columns, rows, title)


def choices_table(config: ModelConfig, layouts: dict[tuple[int, ...], Layout], **step) -> Table:
    """Every layout a panel offers: ranks, parameters on a rank, bytes a step."""
    rows = []
    for layout in sorted(layouts.values(), key=lambda layout: layout.world):
        traffic = sum(size for _, size in formula_rows(config, layout, **step).values())
        rows.append(
            [str(layout), layout.world, max(_held(config, layout)), round(traffic)],
        )
    most = max(layout.world for layout in layouts.values())
    columns = ["layout", "ranks", "parameters on a rank", "payload bytes a step and rank"]
    return Table(columns, rows, f"Layouts that work for {config.name} on up to {most} ranks")


def _held(config: ModelConfig, layout: Layout) -> list[int]:
    """Parameters of each rank."""
    return [
        sum(parameter.numel for parameter in costs.local_parameters(config, layout, rank))
        for rank in range(layout.world)
    ]


def _parameters(config: ModelConfig, layout: Layout) -> str:
    held, whole = _held(config, layout), costs.parameters(config).total
    least, most = min(held), max(held)
    own = f"{most:,}" if least == most else f"{least:,} to {most:,}"
    return own if least == whole else f"{own} of {whole:,}"


def _traffic(row: tuple[float, float] | None) -> str:
    if row is None:
        return "none"
    count, size = row
    return f"{value_text(round(size), 'bytes')} in {count:g}"


def _ranks(world: int) -> str:
    return "1 rank" if world == 1 else f"{world} ranks"
