"""Garbage by appointment: off in steps, at the same steps on all ranks, old circles found, numbers
unchanged; and leaks by the line that made them."""

import gc
from dataclasses import replace

import pytest
import torch

import picolab as pico
from picolab import launch
from picolab.memory import GarbageCollector, LeakFinder
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
    report = train_rank(config, observers=[circles, collector])
    on = gc.isenabled()
    return collector.passes, circles.on, on, report.losses, gc.get_freeze_count()


def test_off_in_steps_at_the_same_steps_on_all_ranks_and_on_again(world):
    plain = world.run(train_rank, CONFIG)[0].losses
    ranks = world.run(collected, CONFIG, 200, 500)
    for _, on_in_steps, on_after, losses, frozen in ranks:
        assert not any(on_in_steps) and on_after and frozen == 0
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
        run = type("Run", (), {"until_end": lambda self, c: None})()
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


def found(config, leaks=True):
    import inspect

    for kept in KEPT.values():
        kept.clear()
    finder = LeakFinder()
    gc.disable()
    try:
        train_rank(config, observers=[Leaky(leaks), finder])
    finally:
        gc.enable()
    lines, first = inspect.getsourcelines(Leaky)
    wanted = {first + i for i, line in enumerate(lines) if "# leak" in line}
    return [tuple(leak) for leak in finder.found], wanted, str(finder.found[:1])


def test_ten_leaks_of_four_kinds_are_named_by_file_and_line(world):
    for leaks, wanted, _ in world.run(found, replace(CONFIG, steps=6)):
        here = {line: circle for file, line, _, _, _, circle in leaks if "test_collector" in file}
        assert set(here) == wanted, (leaks, wanted)
        assert [circle for line, circle in here.items() if circle] == [True]
        assert here[max(here)]  # the last line is the circle


def test_what_each_step_replaces_is_no_leak(world):
    for leaks, *_ in world.run(found, replace(CONFIG, steps=6), False):
        assert not leaks
