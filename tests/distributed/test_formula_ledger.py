"""The formula ledger and the measured one are equal, in count and payload, to the byte.

`costs.step_ledger` says which collectives one rank does in one optimizer step, and why. Here a step
is run and every entry is compared; an entry too many fails as one too few does. The wrong versions
this file catches: a collective more or less than the formula knows (one f a matrix instead of one a
layer half, an all-reduce in every micro-batch, a gradient norm reduced twice), other payloads,
other buckets, other reasons.
"""

from contextlib import nullcontext

import pytest
import torch

import picolab as pico
from picolab import comm, costs
from picolab.model import Transformer
from picolab.parallel import parallelize
from picolab.specs import Layout, ModelConfig

CONFIG = ModelConfig(hidden=32, ffn=48, layers=2, heads=8, kv_heads=4, vocab=40, seq=10)
DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}
CASES = [
    dict(accumulate=1),
    dict(accumulate=3, bucket_bytes=4000),
    dict(accumulate=2, micro_batch=3, seq=7, bucket_bytes=1),
    dict(accumulate=2, dtype="fp64", bucket_bytes=20_000),
    dict(accumulate=1, dtype="bf16", bucket_bytes=2000),
    dict(accumulate=2, tied=True, bucket_bytes=10_000),
]


def one_step(layout, *, accumulate, micro_batch=2, seq=10, dtype="fp32", tied=False, **options):
    """One optimizer step as the trainer does it; what the ledger gained, by (op, axis, reason)."""
    layout = Layout.parse(layout)
    model = Transformer(CONFIG.replace(tied=tied), dtype=DTYPES[dtype])
    parallel = parallelize(model, layout, **options)
    before = len(comm.ledger().snapshot())
    count = torch.tensor(accumulate * micro_batch * seq)
    comm.all_reduce(count, "dp", "dp: count of valid tokens")
    total = torch.zeros((), dtype=torch.float64)
    for micro in range(accumulate):
        data = torch.randint(CONFIG.vocab, (micro_batch, seq + 1))
        with nullcontext() if micro == accumulate - 1 else parallel.no_sync():
            loss = model.loss(data[:, :-1], data[:, 1:]) / count
            loss.backward()
        total += loss.detach()
    parallel.finish_gradients()
    comm.all_reduce(total, "dp", "dp: loss")
    parallel.clip(1.0)
    entries = comm.ledger().snapshot().entries[before:]
    return pico.monitoring.Ledger(entries).by("op", "axis", "reason")


def steps(layouts):
    return {
        (layout, i): one_step(layout, **CASES[i]) for layout in layouts for i in range(len(CASES))
    }


@pytest.fixture(scope="module")
def measured():
    two = pico.run(steps, ["dp2", "tp2"], world_size=2)
    four = pico.run(steps, ["dp4", "tp4", "dp2tp2"], world_size=4)
    return [{**two[0], **four[0]}, {**two[1], **four[3]}]


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("layout", ["dp2", "dp4", "tp2", "tp4", "dp2tp2"])
def test_formula_equals_measurement(measured, layout, case):
    options = dict(micro_batch=2, seq=10) | CASES[case]
    config = CONFIG.replace(tied=options.pop("tied", False))
    formula = costs.step_ledger(config, layout, **options)
    for rank in measured:
        found = rank[layout, case]
        assert found.keys() == formula.keys()
        for key, totals in found.items():
            expected = formula[key]
            assert (totals.count, totals.payload_bytes) == (
                expected.count,
                expected.payload_bytes,
            ), key
            assert totals.ring_bytes == pytest.approx(expected.ring_bytes, rel=1e-12), key


def twice_as_often(layout):
    """Mutants: a step whose gradients are synchronised in every micro-batch, and one without
    fusion.
    """
    from picolab.parallel import data, tensor, tensor_comm

    if layout == "dp2":
        naive = data.naive_sync
        data.DataParallelOptimizer._start = lambda self, bucket: None
        data.DataParallelOptimizer.finish = lambda self: naive(self.model)
    else:
        tensor.ColumnParallelLinear.forward = lambda self, x: torch.cat(
            [tensor_comm.column_linear(x, w) for w in self.weight.split(self.sizes)], dim=-1
        )
    return one_step(layout, accumulate=1)


@pytest.mark.parametrize("layout", ["dp2", "tp2"])
def test_mutants_do_not_match_the_formula(layout):
    found = pico.run(twice_as_often, layout, world_size=2)[0]
    formula = costs.step_ledger(CONFIG, layout, micro_batch=2)
    assert {k: t.count for k, t in found.items()} != {k: e.count for k, e in formula.items()}
