"""Our choice for each block, beside torch's own knapsack over the operators of a compiled graph
(`torch._functorch.config.activation_memory_budget`), on one model.

Both are measured alike: bytes that are kept for backward, parameters and tokens apart, and flops of
products and attention that backward computes again. Without any again, ours keeps less: torch's
partition at budget 1 keeps what it can fuse, and ours drops all of it. Below that, torch's has the
finer grain and goes lower: it computes attention alone again, or one product of a block, and the
loss, too; our choices are of whole blocks, and keep what is outside them. (It needs a graph, which
a pipeline or a ring of our eager ranks does not have.)

Wrong version kept below: blocks that keep everything, in the place of the scheduler's plans.
"""

import itertools

import pytest
import torch
import torch._functorch.config as functorch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import picolab as pico
from picolab import costs
from picolab.memory import MemoryScheduler
from picolab.memory.scheduler import Cost, Measured
from picolab.model import Transformer

MODEL = pico.ModelConfig(hidden=64, ffn=160, layers=4, heads=4, kv_heads=2, vocab=256, seq=64)
ROWS = 4
BUDGETS = (1.0, 0.7, 0.5, 0.3, 0.1, 0.0)
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""which torch's counter of flops does not know on a CPU"""


def theirs(model, tokens, budgets=BUDGETS):
    """Of each budget: bytes kept, flops again, and the gradients."""
    found = []
    for budget in budgets:
        graphs = {}

        def keep(name, graphs=graphs):
            def compiler(graph, example):
                graphs[name] = graph
                return make_boxed_func(graph.forward)

            return compiler

        torch._dynamo.reset()
        backend = aot_autograd(
            fw_compiler=keep("forward"), bw_compiler=keep("backward"),
            partition_fn=min_cut_rematerialization_partition,
        )  # fmt: skip
        model.zero_grad()
        with functorch.patch(activation_memory_budget=budget):
            step = torch.compile(model.loss, backend=backend, fullgraph=True)
            loss = step(tokens[:, :-1], tokens[:, 1:])
            with counted() as counter:
                loss.backward()
        (output,) = (node for node in graphs["forward"].graph.nodes if node.op == "output")
        kept = [node for node in output.args[0][1:] if node.op != "placeholder"]
        nbytes = sum(bytes_of(node.meta["val"]) for node in kept)
        gradients = [p.grad.clone() for p in model.parameters()]
        found.append((nbytes, counter.get_total_flops(), gradients))
    plain = backward_flops(model, tokens)
    return [(nbytes, flops - plain, gradients) for nbytes, flops, gradients in found]


def counted():
    def attention(query, key, value, *args, out_shape=None, **kwargs):
        return sdpa_flop_count(query, key, value)

    return FlopCounterMode(display=False, custom_mapping={ATTENTION: attention})


def bytes_of(value):
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0


def backward_flops(model, tokens):
    loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    with counted() as counter:
        loss.backward()
    return counter.get_total_flops()


def ours(config=MODEL, rows=ROWS):
    """Bytes kept and flops again of the scheduler's plans, from the least bytes on."""
    tokens, e = rows * config.seq, config.head_dim
    products = config.hidden * (2 * config.heads + 2 * config.kv_heads) * e
    products += 3 * config.hidden * config.ffn - config.ffn * config.hidden  # not the last one
    attention = 4 * config.heads * e * config.seq
    again = {"keep": 0.0, "selective": 0.0, "recompute": tokens * (2 * products + attention)}
    words = {"keep": "none", "selective": "selective", "recompute": "full"}
    of = {
        choice: Cost(
            sum(costs.saved_bytes(config, micro_batch=rows, recompute=word).values()), 0,
            again[choice] + 1e-6 * (choice == "selective"),
        )
        for choice, word in words.items()
    }  # fmt: skip
    ends = sum(costs.saved_ends(config, micro_batch=rows).values())
    frontier = MemoryScheduler(Measured((of,) * config.layers)).frontier
    return [(plan.peak + ends, plan.seconds) for plan in frontier]


def least(curve, flops):
    """The fewest bytes with so many flops again."""
    return min(nbytes for nbytes, again in curve if again <= flops + 1)


def check_curve(curve, torchs):
    (most, none, _), *_ = torchs
    assert none == 0 and least(curve, 0) < most
    for (nbytes, again), (more, fewer) in itertools.pairwise(curve):
        assert nbytes < more and again > fewer


def compared():
    torch.manual_seed(0)
    model = Transformer(MODEL, device="cpu")
    tokens = torch.randint(MODEL.vocab, (ROWS, MODEL.seq + 1))
    return ours(), theirs(model, tokens)


@pytest.mark.weekly
def test_beside_torchs_knapsack(monkeypatch):
    curve, torchs = compared()
    check_curve(curve, torchs)
    for _, _, gradients in torchs[1:]:  # its partitions are of the same step
        for one, other in zip(gradients, torchs[0][2], strict=True):
            torch.testing.assert_close(one, other)
    kept = [nbytes for nbytes, *_ in torchs]
    assert kept == sorted(kept, reverse=True)
    with pytest.raises(AssertionError):
        check_curve([max(curve)], torchs)


if __name__ == "__main__":
    from picolab.show.table import Table, bytes_text

    curve, torchs = compared()
    rows = [
        [budget, bytes_text(nbytes), bytes_text(least(curve, again)), f"{again / 1e6:.1f}"]
        for budget, (nbytes, again, _) in zip(BUDGETS, torchs)
    ]
    columns = ["torch's budget", "torch keeps", "ours, with as many flops", "Mflop again"]
    print(Table(columns, rows, "Kept for backward, beside torch's knapsack"))
