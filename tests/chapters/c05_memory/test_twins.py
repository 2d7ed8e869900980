"""The solutions beside what they are twins of: torch's own, and the package's.

The judges find out what is right by running torch without the mechanism, or by trying everything;
that the answers agree with what people use is asked here. Wrong versions these catch, kept as
mutants: parameters that count, a greedy plan, storages that travel as often as they are kept.
"""

import itertools
import random

import pytest
import torch
import torch.nn.functional as F

import picolab as pico
from picolab import costs
from picolab.chapters.c05_memory import (
    checkpoint_function,
    collect_aligned,
    offload_hooks,
    plan_knapsack,
    pool_lease,
    saved_operator,
)
from picolab.memory import MemoryPool, MemoryScheduler, Offload
from picolab.memory.offload import LEAST, Parcel
from picolab.memory.scheduler import Cost, Measured
from picolab.specs import ModelConfig
from tests.chapters.c05_memory.mutants import offload_hooks as offload_mutants
from tests.chapters.c05_memory.mutants import plan_knapsack as plan_mutants
from tests.chapters.c05_memory.mutants import saved_operator as saved_mutants

TINY = ModelConfig.preset("tiny")


def check_mlp(learner) -> None:
    """SwiGLU as our block has it, in the package's formula."""
    t, h, f = TINY.seq, TINY.hidden, TINY.ffn
    values = {
        "x": {"shape": (t, h), "itemsize": 4, "grad": True, "parameter": False},
        "gate_up": {"shape": (2 * f, h), "itemsize": 4, "grad": True, "parameter": True},
        "down": {"shape": (h, f), "itemsize": 4, "grad": True, "parameter": True},
    }
    steps = [
        ("linear", ("x", "gate_up"), "both", (t, 2 * f)),
        ("view", ("both",), "gate", (t, f)),
        ("view", ("both",), "up", (t, f)),
        ("silu", ("gate",), "s", (t, f)),
        ("mul", ("s", "up"), "m", (t, f)),
        ("linear", ("m", "down"), "y", (t, h)),
    ]
    names = ("operator", "operands", "result", "shape")
    steps = [dict(zip(names, step), itemsize=4) for step in steps]
    formula = costs.saved_bytes(TINY)
    assert learner(values, steps) == t * h * 4 + formula["mlp.gate_up"] + formula["mlp"]


def test_what_an_mlp_keeps_is_the_packages_formula():
    check_mlp(saved_operator.solution)


def test_mutant_parameters_count():
    with pytest.raises(AssertionError):
        check_mlp(saved_mutants.parameters_too)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_is_torchs(reentrant):
    weight = torch.randn(30, 30, dtype=torch.float64, requires_grad=True)

    def function(x):
        return F.dropout(torch.tanh(x @ weight), 0.3)

    def torchs(function, inputs):
        return torch.utils.checkpoint.checkpoint(function, *inputs, use_reentrant=reentrant)

    found = []
    for run in (torchs, checkpoint_function.solution):
        weight.grad = None
        x = torch.linspace(-1, 1, 600, dtype=torch.float64).view(20, 30).requires_grad_()
        torch.manual_seed(3)
        run(function, (x * 2,)).square().sum().backward()
        found.append((x.grad, weight.grad, torch.rand(2)))
    assert all(map(torch.equal, *found))


def check_offload(learner) -> None:
    """Beside `save_on_cpu` (gradients) and the package (bytes that travel)."""
    make = offload_hooks._of_views
    setup, theirs, packages = make(), make(), make()
    far = offload_hooks.Far({of.untyped_storage().data_ptr() for of in setup.stays})
    far.keep = [0, 1, 2]
    (setup_y := learner(setup.blocks, setup.x, far, setup.stays)).sum().backward()
    x = theirs.x
    with torch.autograd.graph.save_on_cpu():
        for block in theirs.blocks:
            x = block(x)
    x.sum().backward()
    assert torch.equal(setup_y, x) and torch.equal(setup.x.grad, theirs.x.grad)
    for mine, other in zip(setup.parameters.values(), theirs.parameters.values()):
        assert torch.equal(mine.grad, other.grad)
    offload, x, parcel = Offload(MemoryPool(1 << 24), None, packages.stays), packages.x, None
    for block in packages.blocks:
        parcel = Parcel(parcel)
        with offload.saving(parcel):
            x = block(x)
    moved = sum(place.nbytes for place in far.places if place.nbytes >= LEAST)
    # What two blocks keep travels once here, and once for each in the package.
    assert offload.moved - 2 * setup.x.nbytes <= moved <= offload.moved


def test_offload_is_torchs_and_the_packages():
    check_offload(offload_hooks.solution)


def test_mutant_each_tensor_travels():
    with pytest.raises(AssertionError):
        check_offload(offload_mutants.each_tensor_travels)


def test_a_lease_is_refused_where_the_packages_is():
    least, cap = 4096, 5 * 4096  # powers of two are classes of both
    source, package = pool_lease.Source(cap), MemoryPool(cap, least=least)
    mine, draw, out, refused = pool_lease.solution(cap, least, source), random.Random(1), [], 0
    for _ in range(300):
        if out and draw.random() < 0.45:
            for lease in out.pop(draw.randrange(len(out))):
                lease.free()
            continue
        nbytes, both = least * draw.choice([1, 2, 4]), []
        for pool in (mine, package):
            try:
                both.append(pool.lease(nbytes))
            except MemoryError:
                refused += 1
        assert len(both) in (0, 2)
        out += [both] if both else []
    assert refused > 20 and source.held <= cap and not source.problems


def check_plan(learner) -> None:
    draw = random.Random(2)
    for blocks in _blocks(draw):
        end, pool = draw.randrange(50), draw.randrange(60)
        costs_of = tuple({name: Cost(*of) for name, of in block.items()} for block in blocks)
        package = MemoryScheduler(Measured(costs_of, end, 0, 0, pool))
        for plan in package.frontier:
            mine = learner(blocks, end, pool, plan.peak)
            assert plan_knapsack._micros(blocks, mine) == plan.seconds
        with pytest.raises(ValueError, match=str(package.least)):
            learner(blocks, end, pool, package.least - 1)


def _blocks(draw):
    for n, _ in itertools.product((1, 4, 9), range(3)):
        yield [
            {
                "keep": (kept, kept + draw.randrange(30), 0),
                "recompute": (kept // 8, kept + draw.randrange(60), 10 + draw.randrange(50)),
                "offload": (0, kept + draw.randrange(20), 5 + draw.randrange(70)),
            }
            for kept in (draw.randrange(20, 120) for _ in range(n))
        ]


def test_a_plan_is_the_packages_at_every_budget():
    check_plan(plan_knapsack.solution)


def test_mutant_a_greedy_plan():
    with pytest.raises(AssertionError):
        check_plan(plan_mutants.most_bytes_first)


def _collects(grows: list[list[int]], every: int, growth: int) -> list[list[int]]:
    """On this rank, of objects that live: what mine and the package's collector do."""
    import gc
    from types import SimpleNamespace

    import torch.distributed as dist

    from picolab.memory import GarbageCollector

    mine, held = grows[dist.get_rank()], []
    pico.comm.all_reduce(torch.zeros(1), "world", "warm")  # what is made once is made

    def step(i):
        held.append([[] for _ in range(mine[i])])

    passes = collect_aligned.solution(step, len(mine), every, growth)
    held.clear()
    collector = GarbageCollector(every, growth)
    with _until_end() as run:
        collector.start(run)
        for i in range(len(mine)):
            step(i)
            collector.step(run, SimpleNamespace(step=i))
    assert gc.isenabled()
    return [passes, [at for at, kind, _ in collector.passes if kind == "full"]]


def _until_end():
    from contextlib import ExitStack

    class Run(ExitStack):
        def until_end(self, context):
            self.enter_context(context)

    return Run()


def test_full_passes_are_after_the_packages_steps():
    """Of objects that live: of young garbage the package's young passes take some away."""
    grows = [[0, 90_000, 0, 0, 60_000, 0, 0, 0], [0, 0, 70_000, 70_000, 0, 0, 0, 150_000]]
    for mine, packages in pico.run(_collects, grows, 2, 100_000, world_size=2):
        assert mine == packages == [3, 7]
