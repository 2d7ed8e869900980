"""Every layout computes what one process computes: loss, gradient norm, every gradient, every
parameter.

The reference is the same model in this very process, without any process group. The batch has
labels that do not count, unequally many on each rank; the model has grouped-query attention.
Tolerances: fp64 1e-12 and fp32 2e-6 of a tensor's norm. Rounding shrinks by 2^29 from one to the
other, a bug does not.

The wrong versions this file catches, each run below and each far outside the tolerance: gradients
averaged instead of summed, the loss divided by a rank's own count, row-parallel without its
all-reduce (g), column-parallel without its (f), every shard drawn alike, a norm that counts
replicated parameters on every rank, and micro-batches that are all synchronised.
"""

from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist

import picolab as pico
from picolab import comm
from picolab.model import Transformer
from picolab.parallel import parallelize
from picolab.specs import Layout, ModelConfig

# tp4 needs four key-value heads; more query heads than that for GQA.
CONFIG = ModelConfig(hidden=32, ffn=48, layers=2, heads=8, kv_heads=4, vocab=40, seq=10)
STEPS, DP, MICRO_BATCH = 3, 4, 1  # the global micro-batch: four sequences, on whichever ranks
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}


def global_batch(step, micro):
    """(4, seq) tokens and labels. One sequence in four has 2 labels that count, the others 10, 8
    and 6.
    """
    generator = torch.Generator().manual_seed(1000 * step + micro)
    start = torch.randint(CONFIG.vocab, (DP * MICRO_BATCH, 1), generator=generator)
    data = (start + 7 * torch.arange(CONFIG.seq + 1)) % CONFIG.vocab  # something to learn
    tokens, labels = data[:, :-1], data[:, 1:].clone()
    for row, counted in enumerate((2, 10, 8, 6)):
        labels[row, counted:] = -100
    return tokens, labels


def train(layout, *, dtype=torch.float64, accumulate=2, tied=False, steps=STEPS, bucket_bytes=4000):
    """A small trainer. Runs in a rank of the layout, or alone where there is no process group."""
    layout = Layout.parse(layout)
    parallel = parallelize(
        Transformer(CONFIG.replace(tied=tied), dtype=dtype),
        layout,
        seed=7,
        bucket_bytes=bucket_bytes,
    )
    optimizer = torch.optim.AdamW(parallel.model.parameters(), lr=1e-2, eps=1e-5, weight_decay=0.1)
    found = {"loss": [], "norm": []}
    for step in range(steps):
        batches = [my_rows(global_batch(step, micro), layout) for micro in range(accumulate)]
        count = torch.stack([(labels != -100).sum() for _, labels in batches]).sum()
        total = torch.zeros((), dtype=torch.float64)
        if layout.dp > 1:
            comm.all_reduce(count, "dp", "dp: count of valid tokens")
        for micro, (tokens, labels) in enumerate(batches):
            with nullcontext() if micro == accumulate - 1 else parallel.no_sync():
                loss = parallel.model.loss(tokens, labels) / count
                loss.backward()
            total += loss.detach()
        parallel.finish_gradients()
        if layout.dp > 1:
            comm.all_reduce(total, "dp", "dp: loss")
        if step == 0:
            found["gradients"] = parallel.gradients()
        found["loss"].append(float(total))
        found["norm"].append(parallel.clip(1.0))
        optimizer.step()
        optimizer.zero_grad()
    found["state"] = parallel.state_dict()
    return found


def my_rows(batch, layout):
    index = comm.mesh().rank("dp") if layout.dp > 1 else 0
    return [tensor.chunk(layout.dp)[index] for tensor in batch]


def differences(found, expected):
    """Of each kind, the largest difference relative to the number or to the tensor's norm."""
    worst = {}
    for kind in ("loss", "norm"):
        pairs = zip(found[kind], expected[kind], strict=True)
        worst[kind] = max(abs(a - b) / abs(b) for a, b in pairs)
    for kind in ("gradients", "state"):
        assert found[kind].keys() == expected[kind].keys()
        worst[kind] = max(
            float((found[kind][name] - whole).double().norm() / whole.double().norm())
            for name, whole in expected[kind].items()
        )
    return worst


CASES = {
    "fp64": dict(),
    "fp32": dict(dtype=torch.float32),
    "no accumulation": dict(accumulate=1),
    "tied": dict(tied=True),
    "one bucket": dict(bucket_bytes=10**9),
    "a bucket each": dict(bucket_bytes=1),
}


def all_cases(layouts):
    """In a rank: every case of every layout, one after the other."""
    return {(layout, case): train(layout, **CASES[case]) for layout in layouts for case in CASES}


@pytest.fixture(scope="module")
def expected():
    return {case: train("dp1", **settings) for case, settings in CASES.items()}


@pytest.mark.parametrize(
    "layouts",
    [
        ("dp2", "tp2"),
        ("dp2tp2",),
        pytest.param(("dp4", "tp4"), marks=pytest.mark.weekly),
    ],
)
def test_a_layout_equals_one_process(expected, layouts):
    """All layouts of a size in one run, since a layout is only a mesh over the same ranks."""
    ranks = pico.run(all_cases, layouts, world_size=Layout.parse(layouts[0]).world)
    for view in (ranks[0], ranks[-1]):
        assert len(view) == len(layouts) * len(CASES)
        for (layout, case), found in view.items():
            tolerance = TOLERANCE[CASES[case].get("dtype", torch.float64)]
            worst = differences(found, expected[case])
            assert all(value < tolerance for value in worst.values()), (layout, case, worst)


def test_the_reference_trains(expected):
    """Equality of two models that stand still would say nothing; clipping must have been active
    too.
    """
    reference = expected["fp64"]
    assert reference["loss"][-1] < reference["loss"][0]
    assert all(norm > 1.0 for norm in reference["norm"])
    start = Transformer(CONFIG, device="cpu", seed=7, dtype=torch.float64).state_dict()
    assert not torch.equal(start["norm.weight"], reference["state"]["norm.weight"])


# Mutants: each patches one line of the rank's picolab and trains as above.


def mean_instead_of_sum():
    from picolab.parallel import data

    def average(bucket_owner, bucket):
        bucket.pending = comm.all_reduce(
            bucket.flat.div_(comm.mesh().size("dp")), "dp", "dp: gradient bucket", async_op=True
        )

    data.DataParallelOptimizer._start = average


def own_count_of_tokens():
    """Each rank divides by its own count and the gradients are averaged: DDP with a mean loss."""
    mean_instead_of_sum()
    reduce = comm.all_reduce

    def all_reduce(x, axis, reason, **options):
        if reason == "dp: count of valid tokens":
            return x
        if reason == "dp: loss":
            x.div_(comm.mesh().size("dp"))
        return reduce(x, axis, reason, **options)

    comm.all_reduce = all_reduce


def row_parallel_without_all_reduce():
    from picolab.parallel import tensor

    tensor.g_ = lambda x, axis: x


def column_parallel_without_f():
    from picolab.parallel import tensor

    tensor.column_linear = lambda x, w, axis, product: torch.nn.functional.linear(x, w)


def same_numbers_on_every_shard():
    from dataclasses import replace

    from picolab.model import parameters

    draw = parameters.draw
    parameters.draw = lambda piece, seed: draw(replace(piece, shape=piece.local_shape), seed)
    parameters.Piece.take = lambda piece, whole: whole


def norm_counts_replicas():
    from picolab.parallel import three_d, whole

    def square_norm(parameters):
        gradients = [p.grad for p in parameters]
        return comm.all_reduce(whole._square_sum(gradients), "tp", "tp: gradient norm")

    three_d.square_norm = square_norm


def norm_of_the_own_shard():
    from picolab.parallel import three_d, whole

    three_d.square_norm = lambda parameters: whole._square_sum([p.grad for p in parameters])


def every_micro_batch_synchronised():
    """finish() after each backward: the first micro-batches are summed over the ranks again and
    again.
    """
    from picolab.parallel import data

    def no_sync(self):
        return nullcontext()

    arrived = data.DataParallelOptimizer._arrived

    def arrive_and_finish(self, parameter):
        slot = self._slots[parameter]
        slot.summed = False  # or the second micro-batch would be refused, see test_data.py
        arrived(self, parameter)
        if all(slot.arrived for slot in self._slots.values()):
            finish(self)

    finish = data.DataParallelOptimizer.finish
    data.DataParallelOptimizer.no_sync = no_sync
    data.DataParallelOptimizer._arrived = arrive_and_finish
    data.DataParallelOptimizer.finish = lambda self: None


# mutant -> (layout, what must be wrong at the first step, what cannot show it)
MUTANTS = {
    mean_instead_of_sum: ("dp2", "gradients"),
    own_count_of_tokens: ("dp2", "gradients"),
    row_parallel_without_all_reduce: ("tp2", "loss"),
    column_parallel_without_f: ("tp2", "gradients"),
    same_numbers_on_every_shard: ("tp2", "loss"),
    norm_counts_replicas: ("tp2", "norm"),
    norm_of_the_own_shard: ("tp2", "norm"),
    every_micro_batch_synchronised: ("dp2", "gradients"),
}


def mutated(mutant, layout):
    mutant()
    return train(layout, steps=1)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutants_are_caught(mutant):
    layout, kind = MUTANTS[mutant]
    result = pico.run(mutated, mutant, layout, world_size=2)
    worst = differences(result[0], train("dp1", steps=1))
    assert worst[kind] > 1e-3, worst


# What ranks of one layout must have in common, and what not.


def shards(layout):
    """The parameters of this rank, and the gradients, as held."""
    parallel = parallelize(Transformer(CONFIG, dtype=torch.float64), layout, seed=7)
    tokens, labels = my_rows(global_batch(0, 0), parallel.layout)
    parallel.model.loss(tokens, labels).backward()
    parallel.finish_gradients()
    named = list(parallel.model.named_parameters())
    return {
        "place": comm.mesh().coordinates,
        "parameters": {name: p.detach() for name, p in named},
        "gradients": {name: p.grad for name, p in named},
        "order": [(name, p.numel(), any(q.cuts for q in p.pieces)) for name, p in named],
    }


def test_shards_differ_and_replicas_agree():
    from picolab import costs

    ranks = pico.run(shards, "dp2tp2", world_size=4)
    assert [rank["place"]["tp"] for rank in ranks] == [0, 1, 0, 1]
    for name, _, sharded in ranks[0]["order"]:
        for kind in ("parameters", "gradients"):
            tensors = [rank[kind][name] for rank in ranks]
            # dp neighbours (0, 2) and (1, 3): the same, bit for bit.
            assert torch.equal(tensors[0], tensors[2]) and torch.equal(tensors[1], tensors[3]), name
            # tp neighbours: other numbers (picotron had the same), or replicas to the bit.
            assert torch.equal(tensors[0], tensors[1]) == (not sharded), name
    formula = costs.local_parameters(CONFIG, "dp2tp2")
    assert ranks[3]["order"] == [(p.name, p.numel, p.sharded) for p in formula]


# Bad input.


@pytest.mark.parametrize(
    "layout, reason",
    [
        ("dp2ep2", "ep=2 has nothing to spread, the model has no experts"),
        ("cp2", "cp=2 cuts a sequence into 2 . cp = 4 equal chunks, and seq is 10"),
        ("tp4sp", "sp splits a sequence into tp = 4 equal parts, and seq is 10"),
        ("dp2sp", "tp is 1; the nearest layout of 2 ranks that works is dp2$"),
        ("pp3", "pp=3 is more stages than the model has layers"),
        ("tp5", r"tp=5 leaves ranks with nothing of kv_heads \(4\)"),
    ],
)
def test_what_does_not_work_is_refused_before_anything_starts(layout, reason):
    with pytest.raises(ValueError, match=reason):
        parallelize(Transformer(CONFIG), layout)


def refused():
    sentences = []
    for attempt in (
        lambda: parallelize(Transformer(CONFIG), "dp4"),
        lambda: parallelize(Transformer(CONFIG, device="cpu"), "tp2"),
    ):
        with pytest.raises(ValueError) as caught:
            attempt()
        sentences.append(str(caught.value))
    return sentences


def test_a_layout_of_another_size_and_a_filled_model_are_refused():
    first, second = pico.run(refused, world_size=2)[0]
    assert "4 ranks" in first and "2 are running" in first
    assert "tensor parallelism splits a model before it has values" in second


def keeps_values():
    model = Transformer(CONFIG, device="cpu", seed=3)
    before = model.norm.weight
    parallel = parallelize(model, "dp2")
    return parallel.model.norm.weight is before, dist.get_world_size()


def test_a_filled_model_keeps_its_values_under_dp():
    assert pico.run(keeps_values, world_size=2)[1] == (True, 2)
