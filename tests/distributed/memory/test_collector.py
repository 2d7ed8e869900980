"""Garbage by appointment: off in steps, at the same steps on all ranks, old circles found, numbers
unchanged; and leaks by the line that made them."""

import gc
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import picolab as pico
from picolab import launch
from picolab.memory import GarbageCollector, LeakFinder, MemoryMonitor, watch
from picolab.parallel import buckets
from picolab.training import TrainConfig, train_rank

CONFIG = TrainConfig(
    model=pico.ModelConfig(hidden=32, ffn=48, layers=2, heads=4, kv_heads=2, vocab=97, seq=16),
    data="random", steps=8, micro_batch=2, layout="dp2",
)  # fmt: skip


@pytest.fixture(scope="module")
def world():
    with launch.World(2, quiet=True) as made:
        yield made


class Circles(pico.Observer):
    """On rank 1 alone: circles of objects, with a tensor each. They survive two young passes, so
    that only a full one finds them."""

    def __init__(self, each):
        self.each, self.on, self.alive = each, [], []

    def gradients(self, run):
        self.on.append(gc.isenabled())
        if torch.distributed.get_rank() == 1:
            for _ in range(self.each):
                circle = [torch.zeros(10)]
                circle.append(circle)

    def step(self, run, report):
        self.alive.append(len(gc.get_objects()))


def collected(config, each, growth):
    collector, circles = GarbageCollector(every=2, growth=growth), Circles(each)
    before = gc.isenabled(), gc.get_freeze_count() > 0
    report = train_rank(config, observers=[circles, collector])
    after = gc.isenabled(), gc.get_freeze_count() > 0
    return collector.passes, circles.on, before == after, report.losses


def test_off_in_steps_at_the_same_steps_on_all_ranks_and_on_again(world):
    plain = world.run(train_rank, CONFIG)[0].losses
    ranks = world.run(collected, CONFIG, 200, 500)
    for _, on_in_steps, as_before, losses in ranks:
        assert not any(on_in_steps) and as_before
        assert losses == plain
    # The same passes on both, also of the rank that made nothing: one number decided.
    (mine, *_), (theirs, *_) = ranks
    assert [one[:2] for one in mine] == [one[:2] for one in theirs]
    assert [step for step, *_ in mine] == [1, 3, 5, 7]


def test_a_full_pass_only_where_garbage_grew(world):
    kinds = [{kind for _, kind, _ in r[0]} for r in world.run(collected, CONFIG, 0, 100_000)]
    assert kinds == [{"young"}] * 2


def alone(config):
    """Each rank asks itself."""
    from picolab import comm

    real, comm.all_reduce = comm.all_reduce, lambda x, *args, **kwargs: x
    try:
        collector = GarbageCollector(every=1, growth=200)
        run = type("Run", (), {"until_end": lambda self, c: c.__enter__()})()
        comm.build_mesh(config.layout)
        collector.start(run)
        kept = []
        if torch.distributed.get_rank() == 1:
            kept = [[i] for i in range(1000)]
        report = type("Report", (), {"step": 0})()
        collector.step(run, report)
        return collector.passes, len(kept)
    finally:
        comm.all_reduce = real
        gc.unfreeze()
        gc.enable()


def test_mutant_each_rank_for_itself(world):
    (mine, _), (theirs, _) = world.run(alone, CONFIG)
    assert [one[:2] for one in mine] != [one[:2] for one in theirs]


def test_bad_input_gets_a_sentence():
    with pytest.raises(ValueError, match="every is 0; it must be an integer of at least 1"):
        GarbageCollector(every=0)
    with pytest.raises(ValueError, match="three steps are the least"):
        LeakFinder(steps=2)


# -- leaks


KEPT = {"cache": {}, "list": [], "hooks": []}


class Leaky(pico.Observer):
    """Ten leaks of four kinds, each on a line of its own that says so."""

    def __init__(self, leaks=True):
        self.leaks, self.last = leaks, None

    def gradients(self, run):
        step = run.step
        self.last = torch.ones(500)  # replaced by every step: no leak
        if not self.leaks:
            return
        KEPT["list"].append(torch.ones(1000))  # leak 1: a list
        KEPT["list"].append(torch.ones(1001))  # leak 2
        KEPT["list"].append(torch.ones(1002))  # leak 3
        KEPT["cache"][step, 0] = torch.ones(1003)  # leak 4: a cache
        KEPT["cache"][step, 1] = torch.ones(1004)  # leak 5
        graph = torch.ones(1005, requires_grad=True) * 2  # leak 6: a graph that a loss keeps
        KEPT["list"].append(graph.exp().sum())  # leak 7
        for n in (1006, 1007):
            big = torch.ones(n)  # leak 8, 9: a closure (two tensors of one line)
            KEPT["hooks"].append(lambda big=big: big)
        circle = [torch.ones(1008)]  # leak 10: a circle
        circle.append(circle)


def found(config, leaks=True, others=()):
    for kept in KEPT.values():
        kept.clear()
    finder = LeakFinder()
    gc.disable()
    try:
        train_rank(config, observers=[*others, Leaky(leaks), finder])
    finally:
        gc.enable()
    for kept in KEPT.values():
        kept.clear()
    return [tuple(leak) for leak in finder.found]


@pytest.mark.parametrize("others", [[], [MemoryMonitor()]], ids=["alone", "beside"])
def test_ten_leaks_of_four_kinds_are_named_by_file_and_line(world, others):
    lines = Path(__file__).read_text().splitlines()
    wanted = {number for number, line in enumerate(lines, 1) if re.search(r"# leak \d", line)}
    for leaks in world.run(found, replace(CONFIG, steps=6), True, others):
        here = {line: circle for file, line, _, _, _, circle in leaks if file == __file__}
        assert set(here) == wanted, leaks
        assert [line for line, circle in here.items() if circle] == [max(wanted)]


def test_what_each_step_replaces_is_no_leak(world):
    for leaks in world.run(found, replace(CONFIG, steps=6), False):
        assert not leaks


def left_behind(configs):
    """Bytes of tensors that are there after a run and were not before it."""
    grown = []
    for config in configs:
        before = sum(nbytes_alive().values())
        train_rank(config)
        grown.append(sum(nbytes_alive().values()) - before)
    return grown


def nbytes_alive():
    gc.collect()
    storages = [tensor.untyped_storage() for tensor in watch._all_tensors()]
    return {storage._cdata: storage.nbytes() for storage in storages}


def test_a_run_leaves_nothing_behind(world):
    """A hook that held its placement kept every model that was ever trained in a process."""
    configs = [replace(CONFIG, layout=layout) for layout in ("dp2", "tp2", "pp2", "dp2zero3")]
    for grown in world.run(left_behind, configs):
        assert max(grown) < 1000, grown


def strongly(configs):
    real, buckets.weakref = buckets.weakref, SimpleNamespace(ref=lambda of: lambda: of)
    try:
        return left_behind(configs)
    finally:
        buckets.weakref = real


def test_mutant_a_hook_that_holds_its_placement(world):
    assert world.run(strongly, [CONFIG])[0][0] > 10_000
