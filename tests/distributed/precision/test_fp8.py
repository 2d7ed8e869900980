"""fp8 in layouts: it trains what bf16 trains, up to its rounding, with bf16's bytes; and delayed
scaling has one scale for all ranks that hold a part of the same tensor.

The wrong version this file catches: an amax that is reduced over the replicas alone, after which
ranks of tp have scales of their own.
"""

from dataclasses import replace

import pytest

import picolab as pico
from picolab import comm, costs
from picolab.training import TrainConfig, precision, train_rank

SHAPE = dict(hidden=32, ffn=48, layers=2, heads=4, kv_heads=2, vocab=256, seq=16)
CONFIG = TrainConfig(
    model=pico.ModelConfig(**SHAPE), steps=4, eps=1e-5, products="rounded", micro_batch=2,
    accumulate=2, precision="fp8",
)  # fmt: skip
LAYOUTS = ["dp2", "tp2", "pp2:zb-h1", "dp2zero3", "tp2sp"]


def trained(configs):
    found = []
    for config in configs:
        before = len(comm.ledger().snapshot())
        losses = train_rank(config).losses
        entries = comm.ledger().snapshot().entries[before:]
        seen = pico.monitoring.Ledger(e for e in entries if e.step == 0)
        found.append((losses, seen.by("op", "axis", "reason")))
    return found


def test_it_trains_in_layouts_with_the_bytes_of_bf16():
    configs = [replace(CONFIG, layout=layout) for layout in LAYOUTS]
    high = [replace(config, precision="fp32") for config in configs]
    ranks = pico.run(trained, [*configs, *high], world_size=2, quiet=True)
    for rank, found in enumerate(ranks):
        for config, (losses, seen), (exact, _) in zip(configs, found, found[len(configs) :]):
            assert losses == pytest.approx(exact, rel=0.02) and losses != exact
            formula = costs.step_ledger(
                config.model,
                config.layout,
                micro_batch=2,
                accumulate=2,
                precision="bf16",
                rank=rank,
            )
            assert {k: (t.count, t.payload_bytes) for k, t in seen.items()} == {
                key: expected[:2] for key, expected in formula.items()
            }


def histories(configs, axes=None):
    if axes is not None:
        precision.amax_axes = lambda layout: axes
    found = []
    for config in configs:
        delayed = precision.Fp8Precision(config, "delayed")
        losses = train_rank(config, precision=delayed).losses
        scales = [tuple(product.scales.values()) for product in delayed.fp8_products]
        found.append((scales, [p.history[0].tolist() for p in delayed.fp8_products], losses))
    return found


def test_delayed_scales_are_the_same_on_all_ranks_and_those_of_one_process():
    """In one process a step's batch is one: there amaxes are those of all replicas together."""
    configs = [replace(CONFIG, layout=layout) for layout in ("dp2", "tp2", "cp2")]
    ranks = pico.run(histories, configs, world_size=2, quiet=True)
    alone = [replace(CONFIG, layout="dp1", micro_batch=m) for m in (4, 2, 2)]
    (right,) = pico.run(histories, alone, world_size=1, quiet=True)
    for here, there, one in zip(*ranks, right):
        assert here[:2] == there[:2] and here[2] == there[2]
        for mine, whole in zip(here[1], one[1]):  # amaxes of the first step
            assert mine == pytest.approx(whole, rel=0.15)  # (of fp8: an eighth)
    for losses in (ranks[0][1][2], ranks[0][2][2]):
        assert losses == pytest.approx(right[1][2], rel=0.02)


def test_mutant_an_amax_over_the_wrong_group():
    config = replace(CONFIG, layout="tp2")
    here, there = pico.run(histories, [config], ["dp"], world_size=2, quiet=True)
    assert here[0][0] != there[0][0] or here[0][1] != there[0][1]
