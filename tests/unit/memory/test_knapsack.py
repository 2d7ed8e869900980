"""Our choice for each block, beside torch's own knapsack over the operators of a compiled graph
(`torch._functorch.config.activation_memory_budget`), on one model.

Both are measured alike: the peak of live bytes over forward and backward, above what was there
before (parameters and tokens), counted by the package's `Watch`, which sees the operators of
torch's two graphs as it sees ours; and flops of products and attention that backward computes
again. The graphs are run operator by operator, each value let go after its last use; no fusion of
elementwise operators, for either. What is *kept* for backward is shown, too, since that is what
torch's budget is a share of: it keeps less and less as the budget falls, to nothing, and its peak
does not follow, since what it computes again in one piece is alive in one piece. (Nor does its
solver count attention's flops on a CPU: it takes attention for free, and drops it first.)

It is one model, four blocks, and a choice is for whole blocks or halves: with two blocks a step
from one plan to the next is too large to be below torch's at 0.7, and in a block that is computed
again all that comes of it is alive at once, where torch's has each result just before it is used.

Wrong versions kept below: blocks that keep everything, in the place of the scheduler's plans; all
blocks computed again as one piece, which is what torch's budget of 0 comes to; and choices of whole
blocks only.
"""

import itertools
from typing import NamedTuple

import pytest
import torch
import torch._functorch.config as functorch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import picolab as pico
from picolab.memory import MemoryScheduler, manager
from picolab.memory.scheduler import BlockRunner, Cost, Measured
from picolab.memory.watch import Watch
from picolab.model import Transformer
from picolab.model.transformer import run_block

MODEL = pico.ModelConfig(hidden=64, ffn=160, layers=4, heads=4, kv_heads=2, vocab=256, seq=64)
SMALL = MODEL.replace(layers=2)
ROWS = 4
BUDGETS = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, 0.0)
CHOICES = ("keep", "selective", "mlp", "recompute")
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""which torch's counter of flops does not know on a CPU"""


class Came(NamedTuple):
    """What a plan, or a budget, came to."""

    peak: int
    again: int
    """flops"""
    gradients: list[torch.Tensor]
    kept: int = 0
    planned: int = 0


def came(model, loss, **more) -> Came:
    """`loss()` is run twice with its backward: for bytes, and for flops (which hold tensors)."""
    model.zero_grad()
    with Watch() as watch:
        before = watch.live
        loss().backward()
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad()
    return Came(max(watch.totals) - before, backward_flops(loss), gradients, **more)


def backward_flops(loss) -> int:
    def attention(query, key, value, *args, out_shape=None, **kwargs):
        return sdpa_flop_count(query, key, value)

    of = loss()
    with FlopCounterMode(display=False, custom_mapping={ATTENTION: attention}) as counter:
        of.backward()
    return counter.get_total_flops()


def allocated(loss) -> int:
    """The peak by another judge: torch's allocator, as its profiler hears it."""
    with torch.profiler.profile(profile_memory=True) as profile:
        loss().backward()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


# -- theirs


def compiled(model, x, y, budget):
    """The step by torch's partition for this budget, and bytes that it keeps for backward."""
    graphs, calls = {}, []

    def interpreted(name):
        def compiler(graph, example):
            graphs[name] = graph

            def run(args):  # the list is emptied, so that nobody else holds what backward is given
                return torch.fx.Interpreter(graph).boxed_run(args)

            run._boxed_call = True
            return run

        return compiler

    partitioned = aot_autograd(
        fw_compiler=interpreted("forward"), bw_compiler=interpreted("backward"),
        partition_fn=min_cut_rematerialization_partition,
    )  # fmt: skip

    def backend(graph, example):
        step = partitioned(graph, example)

        def call(*args):
            calls.append((step, [a if a.requires_grad else a.detach() for a in args]))
            return step(*args)

        return call

    torch._dynamo.reset()
    model.zero_grad()
    with functorch.patch(activation_memory_budget=budget):
        torch.compile(model.loss, backend=backend, fullgraph=True)(x, y).backward()
    (output,) = (node for node in graphs["forward"].graph.nodes if node.op == "output")
    kept = [node.meta["val"] for node in output.args[0][1:] if node.op != "placeholder"]
    nbytes = sum(of.numel() * of.element_size() for of in kept if isinstance(of, torch.Tensor))
    ((step, args),) = calls  # without dynamo, which refuses to run under a mode that looks on
    return (lambda: step(*args)[0]), nbytes


def theirs(model, x, y, budgets=BUDGETS) -> list[Came]:
    model.run_block = run_block
    found = []
    for budget in budgets:
        loss, kept = compiled(model, x, y, budget)
        found.append(came(model, loss, kept=kept))
    return since(model, x, y, found)


def since(model, x, y, found):
    """With flops that a backward has anyway taken off."""
    model.run_block = run_block
    plain = backward_flops(lambda: model.loss(x, y))
    return [of._replace(again=of.again - plain) for of in found]


# -- ours


def ours(model, x, y, choices=CHOICES) -> list[Came]:
    """Every plan of the scheduler's, from the least bytes on, really run."""
    found = []
    for plan in MemoryScheduler(measured(model, x, y, choices)).frontier:
        model.run_block = BlockRunner(model, plan.choices)
        found.append(came(model, lambda: model.loss(x, y), planned=plan.peak))
    return since(model, x, y, found)


def measured(model, x, y, choices) -> Measured:
    """As `SmartMemoryManager` measures, with flops for seconds: the same on every machine."""
    blocks, found, plain = len(model.layers), {}, 0
    for choice in choices:
        model.zero_grad()
        with Watch(model) as watch:
            model.run_block = BlockRunner(model, [choice] * blocks, listen=manager._Marks(watch))
            before = watch.live
            watch.mark("begin")
            model.loss(x, y).backward()
            watch.mark("over")
        seen = manager._Seen(watch, manager._Missing(-before, 0), 0)
        model.zero_grad()
        model.run_block = BlockRunner(model, [choice] * blocks)
        flops = backward_flops(lambda: model.loss(x, y))
        if choice == "keep":
            plain, end, ends, rest = flops, seen.end(blocks), seen.ends(blocks), seen.rest(blocks)
        again = (flops - plain) / blocks + (choice == "selective")  # nothing is free
        found[choice] = [Cost(kept, work, again) for kept, work in zip(*seen.blocks(blocks))]
    return Measured(tuple(dict(zip(found, of)) for of in zip(*found.values())), end, ends, rest)


# -- side by side


def least(curve, again) -> int:
    """The smallest peak with so many flops again."""
    return min((of.peak for of in curve if of.again <= again), default=1 << 60)


def check_curve(curve, torchs):
    """Monotone, of the planned bytes, bit for bit the same; everywhere below torch's."""
    for one, other in itertools.pairwise(curve):
        assert one.peak < other.peak and one.again >= other.again
    for of in curve:
        assert of.peak == of.planned
        assert all(map(torch.equal, of.gradients, curve[-1].gradients))
    for of in torchs:
        assert least(curve, of.again) < of.peak, (of.peak, of.again)


def model_and_text(config):
    torch.manual_seed(0)
    tokens = torch.randint(config.vocab, (ROWS, config.seq + 1))
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    model = Transformer(config, device="cpu")
    model.loss(x, y)  # makes its rotary tables, once
    return model, x, y


def check_mutants(model, x, y, curve, torchs):
    """Keeping all of it; and all of it again as one piece."""
    model.run_block = run_block
    kept = came(model, lambda: model.loss(x, y))
    piece = came(model, lambda: checkpoint(model.loss, x, y, use_reentrant=False))
    assert piece.peak >= kept.peak > curve[0].peak
    for wrong in since(model, x, y, [kept, piece]):
        with pytest.raises(AssertionError):
            check_curve([wrong._replace(planned=wrong.peak)], torchs)
    return kept.peak


def test_below_torchs_knapsack_that_keeps_nothing():
    """Whose peak is, to the byte, that of keeping everything."""
    step = model_and_text(SMALL)
    curve, torchs = ours(*step), theirs(*step, (0.0,))
    check_curve(curve, torchs)
    assert torchs[0].kept == 0
    assert torchs[0].peak == check_mutants(*step, curve, torchs)


@pytest.mark.weekly
def test_so_it_is_at_every_budget_of_a_deeper_model():
    model, x, y = step = model_and_text(MODEL)
    curve, torchs = ours(*step), theirs(*step)
    check_curve(curve, torchs)
    assert check_mutants(*step, curve, torchs) == torchs[-1].peak
    coarse = ours(*step, [choice for choice in CHOICES if choice != "mlp"])
    with pytest.raises(AssertionError):  # it takes the finer grain
        check_curve(coarse, torchs)
    for of in torchs[1:]:  # its partitions are of the same step
        for one, other in zip(of.gradients, torchs[0].gradients, strict=True):
            torch.testing.assert_close(one, other)
    kept = [of.kept for of in torchs]
    assert kept == sorted(kept, reverse=True) and kept[-1] == 0
    # What the watch counts is what the allocator gives, for theirs and for ours.
    loss, _ = compiled(model, x, y, BUDGETS[2])
    model.zero_grad()
    assert allocated(loss) == torchs[2].peak
    model.zero_grad()
    model.run_block = BlockRunner(model, ["recompute"] * len(model.layers))
    assert allocated(lambda: model.loss(x, y)) == curve[0].peak


if __name__ == "__main__":
    from picolab.show.table import Table, bytes_text

    step = model_and_text(MODEL)
    curve, torchs = ours(*step), theirs(*step)
    rows = [
        [budget, bytes_text(of.kept), f"{of.peak:,}", f"{least(curve, of.again):,}",
         f"{of.again / 1e6:.1f}"]
        for budget, of in zip(BUDGETS, torchs)
    ]  # fmt: skip
    columns = ["torch's budget", "it keeps", "its peak", "ours, with as many flops", "Mflop again"]
    print(Table(columns, rows, "Peak of forward and backward, beside torch's knapsack"))
    rows = [[f"{of.peak:,}", f"{of.again / 1e6:.1f}"] for of in curve]
    print(Table(["our peak", "Mflop again"], rows, "Our curve"))
