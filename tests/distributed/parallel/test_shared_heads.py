"""More ranks of tp than key-value heads: neighbours hold the same head, and compute what one
process computes.

With four ranks and two heads, and with two ranks and one; with sequence parallelism, with ZeRO on
top, with a sequence that is split. Every collective is the formula's. The wrong versions this file
catches, each run below: gradients of k and v that stay each neighbour's own (the loss of the first
step is right), and a norm that counts a shared head once for each rank that has it.
"""

import pytest
import torch

import picolab as pico
from picolab import comm, costs
from picolab.model import Piece, Transformer
from picolab.parallel import parallelize, tensor
from picolab.specs import Layout, ModelConfig

CONFIGS = {
    2: ModelConfig(hidden=24, ffn=31, layers=2, heads=8, kv_heads=2, head_dim=4, vocab=29, seq=8),
    1: ModelConfig(
        hidden=24, ffn=31, layers=2, heads=4, kv_heads=1, head_dim=4, vocab=29, seq=8, qkv_bias=True
    ),
}
CASES = [
    *(("tp4", 2), ("tp4sp", 2), ("tp4", 1), ("dp2tp2zero1", 1), ("dp2tp2zero3", 1)),
    *(("tp2cp2", 1), ("tp2pp2", 1)),
]
STEPS, ROWS = 2, 4


def train(layout, kv_heads):
    layout, config = Layout.parse(layout), CONFIGS[kv_heads]
    parallel = parallelize(Transformer(config, dtype=torch.float64), layout, seed=5)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-2, eps=1e-5)
    replica = comm.mesh().rank("dp") if layout.dp > 1 else 0
    found = {"loss": [], "norm": []}
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        data = torch.randint(config.vocab, (2, ROWS, config.seq + 1), generator=generator)
        data = data.chunk(layout.dp, dim=1)[replica]
        parallel.zero_grad()
        before = len(comm.ledger().snapshot()) if layout.world > 1 else 0
        found["loss"].append(float(parallel.forward_backward(data[..., :-1], data[..., 1:])))
        if step == 0:
            found["gradients"] = parallel.gradients()
        found["norm"].append(parallel.clip(0.5))
        optimizer.step()
        parallel.after_step()
        booked = len(comm.ledger().snapshot()) if layout.world > 1 else 0
    found["state"] = parallel.state_dict()
    if layout.world > 1:
        found["axes"] = {p.name: p.copies for q in parallel.parameters() for p in q.pieces}
        found["ledger"] = ledger_of(before, booked)
    return found


def ledger_of(before, booked):
    entries = comm.ledger().snapshot().entries[before:booked]
    by = pico.monitoring.Ledger(entries).by("op", "axis", "reason")
    return {key: (total.count, total.payload_bytes) for key, total in by.items()}


def worst(found, right, *kinds):
    numbers = [
        abs(a - b) / abs(b)
        for kind in {"loss", "norm"} & set(kinds)
        for a, b in zip(found[kind], right[kind], strict=True)
    ]
    tensors = [
        float((found[kind][name] - whole).norm() / whole.norm())
        for kind in {"gradients", "state"} & set(kinds)
        for name, whole in right[kind].items()
    ]
    return max(numbers + tensors)


def several(cases):
    return {case: train(*case) for case in cases}


@pytest.fixture(scope="module")
def alone():
    return {kv_heads: train("dp1", kv_heads) for kv_heads in CONFIGS}


def test_equals_one_process_and_the_formula(alone):
    ranks = list(pico.run(several, CASES, world_size=4))
    for rank, found in enumerate(ranks):
        for (layout, kv_heads), result in found.items():
            off = worst(result, alone[kv_heads], "loss", "norm", "gradients", "state")
            assert off < 1e-12, (layout, kv_heads, off)
            copies = Layout.parse(layout).tp // kv_heads
            assert result["axes"].get("layers.1.attention.k.weight", copies) == copies > 1
            micro = ROWS // Layout.parse(layout).dp
            formula = costs.step_ledger(
                CONFIGS[kv_heads], layout, micro_batch=micro, accumulate=2, dtype="fp64", rank=rank
            )
            right = {key: tuple(expected[:2]) for key, expected in formula.items()}
            assert result["ledger"] == right, layout
            key = ("all_reduce", f"tp_copies{copies}", "tp: gradients of shared heads")
            assert key in right or "zero" in layout  # whose rows may all be of q


def not_summed(layout, kv_heads):
    tensor.TensorParallelOptimizer.sum_shared_heads = lambda self, parameters: None
    return train(layout, kv_heads)


def counted_on_every_rank(layout, kv_heads):
    Piece.copies = property(lambda self: 1)
    real, tensor.TensorParallelOptimizer.sum_shared_heads = (
        tensor.TensorParallelOptimizer.sum_shared_heads,
        lambda self, parameters: summed(self, parameters),
    )

    def summed(self, parameters):
        Piece.copies = property(lambda piece: max([1, *(cut.copies for cut in piece.cuts)]))
        real(self, parameters)
        Piece.copies = property(lambda self: 1)

    return train(layout, kv_heads)


MUTANTS = [(not_summed, "gradients"), (counted_on_every_rank, "norm")]


@pytest.mark.parametrize(("mutant", "kind"), MUTANTS)
def test_mutants_are_caught(mutant, kind, alone):
    for found in pico.run(mutant, "tp2", 1, world_size=2):
        assert worst(found, alone[1], kind) > 1e-3
        assert abs(found["loss"][0] - alone[1]["loss"][0]) < 1e-12
