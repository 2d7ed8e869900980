"""A budget is kept: measured by the monitor, at every budget that is tried, in every kind of layout
that shares blocks, with the numbers of a run that keeps everything.

Wrong versions kept below: the pool's buffers forgotten, micro-batches in flight forgotten, work
beside a block forgotten; and a second forward of ZeRO 3 that frees what backward is about to use.
"""

from dataclasses import replace

import pytest

import picolab as pico
from picolab import launch
from picolab.memory import MemoryMonitor
from picolab.monitoring import events
from picolab.training import TrainConfig, train_rank

CONFIG = TrainConfig(
    model=pico.ModelConfig(
        hidden=64, ffn=160, layers=4, heads=4, kv_heads=2, vocab=256, seq=64
    ),
    data="random", steps=3, micro_batch=4,
)  # fmt: skip
EXPERTS = dict(experts=4, experts_per_token=2, expert_ffn=48, aux_loss=0.01)


@pytest.fixture(scope="module")
def world():
    with launch.World(2, quiet=True) as made:
        yield made


def at_budgets(config, shares, patch=None):
    """Run without a budget; then, at each share of the way from the least to that run's peak, with
    one. Returns what each came to: (budget, peak, choices, losses, norms)."""
    if patch:
        patch()
    plain = one(config)
    found = [(None, *plain)]
    try:
        one(replace(config, memory_budget=1))
    except ValueError as error:
        least = int(str(error).split("(")[-1].split(" bytes")[0].replace(",", ""))
    for share in shares:
        budget = round(least + share * max(0, plain[0] - least))
        found.append((budget, *one(replace(config, memory_budget=budget))))
    return found


def one(config):
    said, write = {}, events.write

    def keep(kind, /, **data):
        said[kind] = data
        write(kind, **data)

    events.write = keep
    try:
        report = train_rank(config, observers=[MemoryMonitor(steps=(1, 2))])
    finally:
        events.write = write
    plan = said.get("memory plan", {})
    peak = said["memory"]["most"]["total"]
    return peak, plan.get("choices"), report.losses, report.grad_norms


def check_kept(found):
    (_, _, _, losses, norms), *others = found
    for budget, peak, choices, mine, my_norms in others:
        assert peak <= budget, (budget, peak, choices)
        assert (mine, my_norms) == (losses, norms), choices
    return [choices for _, _, choices, _, _ in others]


SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
LAYOUTS = ["dp2", "tp2", "pp2", "cp2", "dp2zero1", "dp2zero3"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_peak_is_within_every_budget(world, layout):
    config = replace(CONFIG, layout=layout, accumulate=3 if layout == "pp2" else 1)
    for found in world.run(at_budgets, config, SHARES):
        chosen = check_kept(found)
        assert len({tuple(choices) for choices in chosen}) > 1
