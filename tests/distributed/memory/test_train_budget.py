"""A budget as a reader meets it: `pico.train`, and what is said when the disk is full. (No world is
open meanwhile: jobs take turns.)"""

import os
from dataclasses import replace

import pytest

import picolab as pico
from picolab.memory import (
    BlockRunner,
    MemoryLimit,
    MemoryMonitor,
    MemoryPool,
    Offload,
    far_file,
    fitting,
    manager,
)
from picolab.monitoring import events
from picolab.training import TrainConfig, train_rank

CONFIG = TrainConfig(
    model=pico.ModelConfig(hidden=64, ffn=160, layers=4, heads=4, kv_heads=2, vocab=256, seq=64),
    data="random", steps=3, micro_batch=4,
)  # fmt: skip


class Away(pico.Observer):
    """Every block is offloaded."""

    def start(self, run):
        stays = list(run.parallel.held())
        offload = Offload(far_file(1 << 30), MemoryPool(1 << 30), stays)
        run.model.run_block = BlockRunner(run.model, ["offload"] * 4, offload=offload)


def test_train_takes_a_budget():
    result = pico.train(
        CONFIG.model, "dp1", "random", 3, micro_batch=4, memory_budget="6MB", progress=False,
        observers=[MemoryMonitor()],
    )  # fmt: skip
    (plan,) = [event.data for event in result.events if event.kind == "memory plan"]
    (seen,) = [event.data for event in result.events if event.kind == "memory"]
    assert seen["most"]["total"] <= plan["budget"] == result.config.memory_budget == 6_000_000
    peaks = [peak for peak, *_ in plan["frontier"]]
    assert peaks == sorted(peaks) and peaks[0] == plan["least"]


def offloading(config):
    """The pools of a run that offloads, as its events tell of them."""
    found, write, of = [], events.write, manager.choices_of
    events.write = lambda kind, /, **data: found.append(data) if kind == "pool" else None
    manager.choices_of = lambda config: ("keep", "offload")
    try:
        train_rank(config)
    finally:
        events.write, manager.choices_of = write, of
    return {one["name"]: one for one in found}


def test_pools_take_nothing_after_the_second_step_and_say_what_was_idle():
    config = replace(CONFIG, layout="dp1", steps=6, memory_budget="7MB")
    pools = pico.run(offloading, config, world_size=1, quiet=True)[0]
    assert {"near", "far"} <= set(pools)
    for one in pools.values():
        assert one["late"] == 0 and one["leases"] > 6 * one["slabs"] > 0
        assert one["fragmentation"] == pytest.approx(1 - one["most"] / one["held"])
        assert 0 <= one["fragmentation"] < 1
    assert pools["far"]["most"] > 0.5 * pools["far"]["held"]


def test_after_an_out_of_memory_it_is_said_what_would_have_fitted():
    """(test_limit.py runs it.)"""
    with pytest.raises(pico.RankFailure, match="It would have fitted with one of") as caught:
        pico.train(
            CONFIG.model, "dp2", "random", 2, micro_batch=4, progress=False,
            observers=[MemoryLimit("6MB")],
        )  # fmt: skip
    said = caught.value.headline()
    assert "the limit is 6,000,000 (" in said and "activations" in said
    found = fitting(replace(CONFIG, layout="dp2", steps=2), 6_000_000)
    assert len(found) == 3 and all(str(one) in said for one in found)


def test_where_nothing_fits_it_is_said():
    with pytest.raises(pico.RankFailure, match="No layout of 2 ranks fits into 1 MB") as caught:
        pico.train(
            CONFIG.model, "dp2", "random", 2, progress=False, observers=[MemoryLimit(1_000_000)]
        )  # fmt: skip
    assert "the leanest, " in str(caught.value)


def test_a_disk_that_is_full_in_a_step_ends_the_run_with_a_sentence():
    with pytest.raises(pico.RankFailure, match="the far memory is full"):
        pico.run(with_full_disk, replace(CONFIG, layout="dp1"), world_size=1, quiet=True)


def with_full_disk(config):
    real, calls = os.posix_fallocate, []

    def full(handle, offset, size):
        calls.append(size)
        if len(calls) > 20:
            raise OSError(28, "No space left on device")
        real(handle, offset, size)

    os.posix_fallocate = full
    train_rank(config, observers=[Away()])
