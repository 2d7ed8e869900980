"""A dry run: one process that is rank 0 of thousands, which do not exist.

    pico.dry_run(fn, "dp128tp8")        # fn as in pico.run; the mesh is built before it is called

torch's fake process group returns from every collective at once and moves nothing. So what is
true of a dry run is what does not depend on values: shapes, bytes of the parameters a rank holds,
and which collectives it enters, how often and with how many bytes. Values (losses, gradients) are
meaningless, and the result says so.

Twin: `torch.testing._internal.distributed.fake_pg`, which this uses. `costs.step_ledger` predicts
the same ledger of a step without running anything; a test compares."""

from dataclasses import dataclass, field
from typing import Any

from picolab import comm, launch
from picolab.monitoring import Ledger
from picolab.specs import Layout

MAX_WORLD = 65_536


@dataclass(repr=False)
class DryRun:
    """`.value` is what the function returned (no value in it means anything), `.ledger` what rank 0
    would have taken part in.
    """

    layout: Layout
    value: Any
    ledger: Ledger = field(default_factory=Ledger)

    def __repr__(self) -> str:
        head = f"Dry run of {self.layout}: rank 0 of {self.layout.world:,}, of which the others do"
        note = f"{head} not exist. Shapes and counts are true, values are not."
        return f"{note}\n{self.ledger.table()!r}" if len(self.ledger) else note


def dry_run(fn, layout: Layout | str, *args, timeout: float = 120, **kwargs) -> DryRun:
    """Call `fn(*args, **kwargs)` in one process as rank 0 of the layout, its mesh built.

    Raises ValueError for a layout beyond sense or with ep, RankFailure if the function fails.
    """
    layout = Layout.parse(layout)
    if layout.world > MAX_WORLD:
        raise ValueError(f"{layout} has {layout.world:,} ranks; a dry run goes up to {MAX_WORLD:,}")
    if layout.ep > 1:
        raise ValueError(
            f"{layout} spreads experts, and which rows travel depends on the values of the tokens, "
            "which a dry run does not have; leave ep out, or take costs.step_ledger"
        )
    run = launch.run(
        _as_rank_zero,
        fn,
        layout,
        args,
        kwargs,
        world_size=1,
        pretend=layout.world,
        timeout=timeout,
        name="dry-run",
    )
    return DryRun(layout, run[0], run.ledger)


def _as_rank_zero(fn, layout: Layout, args: tuple, kwargs: dict):
    comm.build_mesh(layout)
    return fn(*args, **kwargs)
