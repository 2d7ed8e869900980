"""Which layouts a panel may offer, and what the formulas say about each. No widgets, no torch."""

from picolab import costs
from picolab.monitoring.guess_figure import value_text
from picolab.monitoring.table import Table
from picolab.specs import Layout, ModelConfig


def working_layouts(config: ModelConfig, max_world: int) -> dict[int, list[int]]:
    """dp -> the tp that work with it: dp x tp within max_world, and tp divides the model."""
    if isinstance(max_world, bool) or not isinstance(max_world, int) or max_world < 1:
        raise ValueError(f"max_world is a number of ranks, 1 or more, not {max_world!r}")
    works = [tp for tp in range(1, max_world + 1) if _splits(config, tp)]
    return {
        dp: [tp for tp in works if dp * tp <= max_world]
        for dp in range(1, max_world + 1)
        if any(dp * tp <= max_world for tp in works)
    }


def _splits(config: ModelConfig, tp: int) -> bool:
    try:
        Layout(tp=tp).check(config)
    except ValueError:
        return False
    return True


def formula_rows(config: ModelConfig, layout: Layout, **step) -> dict[str, tuple[int, int]]:
    """reason -> (collectives, payload bytes) of one rank and step, largest first."""
    ledger = costs.step_ledger(config, layout, **step)
    rows = {reason: (e.count, e.payload_bytes) for (_, _, reason), e in ledger.items()}
    return dict(sorted(rows.items(), key=lambda row: -row[1][1]))


def formula_table(
    config: ModelConfig,
    layout: Layout,
    measured: dict[str, tuple[float, float]] | None = None,
    **step,
) -> Table:
    """What the formulas say about one rank of this layout, beside what its last run measured.

    `step` is what `costs.step_ledger` takes; `measured` is reason -> (collectives, payload bytes).
    """
    own = sum(parameter.numel for parameter in costs.local_parameters(config, layout))
    whole = costs.parameters(config).total
    share = f" of {whole:,}" if own != whole else ""
    rows = [["parameters", f"{own:,}{share}", ""]]
    expected = formula_rows(config, layout, **step)
    for reason in [*expected, *(r for r in measured or {} if r not in expected)]:
        found = (measured or {}).get(reason)
        rows.append([reason, _traffic(expected.get(reason)), _traffic(found)])
    if not expected:
        rows.append(["collectives", "none: one rank talks to nobody", ""])
    columns = ["one rank, one step", "formula", "measured"]
    if measured is None:
        columns, rows = columns[:2], [row[:2] for row in rows]
    return Table(columns, rows, f"{layout}: {_ranks(layout.world)}")


def choices_table(config: ModelConfig, max_world: int, **step) -> Table:
    """Every layout a panel offers: ranks, parameters on a rank, bytes a step."""
    rows = []
    for dp, fitting in working_layouts(config, max_world).items():
        for tp in fitting:
            layout = Layout(dp=dp, tp=tp)
            own = sum(parameter.numel for parameter in costs.local_parameters(config, layout))
            traffic = sum(size for _, size in formula_rows(config, layout, **step).values())
            rows.append([str(layout), layout.world, own, traffic])
    columns = ["layout", "ranks", "parameters on a rank", "payload bytes a step and rank"]
    return Table(columns, rows, f"Layouts that work for {config.name} on up to {max_world} ranks")


def _traffic(row: tuple[float, float] | None) -> str:
    if row is None:
        return "none"
    count, size = row
    return f"{value_text(round(size), 'bytes')} in {count:g}"


def _ranks(world: int) -> str:
    return "1 rank" if world == 1 else f"{world} ranks"
