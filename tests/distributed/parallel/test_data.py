"""Data parallelism: buckets, hooks and their traps.

The wrong versions this file catches: a hook that reduces the weights instead of the gradients
(picotron), buckets started in the order in which they fill (a parameter that one rank does
not use then pairs wrong buckets), a bucket that waits for an unused or frozen parameter for ever,
stale gradients of an unused parameter, all-reduces in every micro-batch, and sums that are summed
again.
"""

from itertools import pairwise

import pytest
import torch
from torch import nn

import picolab as pico
from picolab import comm
from picolab.model import Transformer
from picolab.parallel import DataParallelOptimizer, naive_sync
from picolab.specs import ModelConfig


def mlp(seed=0, sizes=(6, 10, 8, 4)):
    torch.manual_seed(seed)
    layers = [nn.Linear(a, b, dtype=torch.float64) for a, b in pairwise(sizes)]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.Tanh())])


def samples(seed, n=5, width=6):
    return torch.randn(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def loss_of(model, seed):
    return model(samples(seed)).square().sum()


def gradients(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def worst(found, expected):
    """Largest difference relative to the norm; fp64 sums of two to four summands differ by a few
    1e-16.
    """
    assert [g is None for g in found] == [g is None for g in expected]
    pairs = [(a, b) for a, b in zip(found, expected) if b is not None]
    return max(float((a - b).norm() / b.norm().clamp_min(1e-300)) for a, b in pairs)


def dp_entries():
    return comm.ledger().snapshot().where(reason="dp: gradient bucket")


# Three ways to the same sum.


def three_ways(world):
    me = comm.mesh().rank("dp")
    summed = mlp()  # one process on all ranks' samples
    sum(loss_of(summed, seed) for seed in range(world)).backward()

    naive = mlp()
    loss_of(naive, me).backward()
    naive_sync(naive)

    found = {"naive": worst(gradients(naive), gradients(summed))}
    for bucket_bytes in (1, 300, 10**9):
        model = mlp()
        data = DataParallelOptimizer(model, bucket_bytes=bucket_bytes)
        before = len(dp_entries())
        loss_of(model, me).backward()
        data.finish()
        found[bucket_bytes] = worst(gradients(model), gradients(summed))
        found[bucket_bytes, "count"] = len(dp_entries()) - before

    # torch's DDP averages, so its loss is multiplied.
    ddp = nn.parallel.DistributedDataParallel(mlp())
    (world * loss_of(ddp, me)).backward()
    found["ddp"] = worst(gradients(model), gradients(ddp))
    naive_entries = comm.ledger().snapshot().where(reason="dp: gradient of one parameter")
    return found, len(naive_entries)


@pytest.mark.parametrize("world", [2, 4])
def test_naive_bucketed_and_ddp_are_the_same_sum(world):
    for found, naive_count in pico.run(three_ways, world, world_size=world):
        assert naive_count == 6
        # 480, 80, 640, 64, 256 and 32 bytes: from the back, only 32 and 256 share 300 bytes.
        assert (found[1, "count"], found[300, "count"], found[10**9, "count"]) == (6, 5, 1)
        for way in ("naive", 1, 300, 10**9, "ddp"):
            assert found[way] < 1e-14, way


def weights_instead_of_gradients():
    """Mutant: picotron's naive hook. `register_post_accumulate_grad_hook` hands over the
    parameter.
    """
    model, me = mlp(), comm.mesh().rank("dp")

    def average(gradient):  # it is not: it is the parameter
        comm.all_reduce(gradient.data, "dp", "mutant").div_(2)

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(average)
    loss_of(model, me).backward()
    reference = mlp()
    sum(loss_of(reference, seed) for seed in range(2)).backward()
    return worst(gradients(model), gradients(reference))


def test_mutant_reducing_weights_is_caught():
    assert pico.run(weights_instead_of_gradients, world_size=2)[0] > 0.1


# Buffers.


def buffers():
    model, me = mlp(), comm.mesh().rank("dp")
    data = DataParallelOptimizer(model, bucket_bytes=10**9)
    loss_of(model, me).backward()
    data.finish()
    one_memory = {p.grad.untyped_storage().data_ptr() for p in model.parameters()}
    first, views = gradients(model), [p.grad for p in model.parameters()]

    torch.optim.SGD(model.parameters(), lr=0.0).zero_grad()  # set_to_none: drops the views
    dropped = all(p.grad is None for p in model.parameters())
    loss_of(model, me).backward()
    data.finish()
    same_views = all(p.grad is view for p, view in zip(model.parameters(), views))
    return len(one_memory), dropped, same_views, worst(gradients(model), first)


def test_gradients_are_views_of_one_buffer_and_survive_zero_grad():
    assert pico.run(buffers, world_size=2)[0] == (1, True, True, 0.0)


def overlap():
    """When the first layer's gradient arrives, which is the last, how many buckets are under
    way?
    """
    model = mlp()
    data = DataParallelOptimizer(model, bucket_bytes=300)
    under_way = []
    model[0].weight.register_hook(
        lambda _: under_way.append(sum(bucket.pending is not None for bucket in data._buckets))
    )
    loss_of(model, 0).backward()
    data.finish()
    return under_way


def test_buckets_leave_while_backward_runs():
    assert pico.run(overlap, world_size=2)[0] in ([3], [4])  # weight and bias come in either order


# Accumulation.


def accumulated(micro_batches):
    model, me = mlp(), comm.mesh().rank("dp")
    data = DataParallelOptimizer(model, bucket_bytes=300)
    counts = []
    for micro in range(micro_batches):
        if micro < micro_batches - 1:
            with data.no_sync():
                loss_of(model, 10 * me + micro).backward()
        else:
            loss_of(model, 10 * me + micro).backward()
            data.finish()
        counts.append(len(dp_entries()))
    reference = mlp()
    seeds = [10 * rank + micro for rank in range(2) for micro in range(micro_batches)]
    sum(loss_of(reference, seed) for seed in seeds).backward()
    return counts, worst(gradients(model), gradients(reference))


def test_accumulation_synchronises_once():
    for counts, difference in pico.run(accumulated, 4, world_size=2):
        assert counts == [0, 0, 0, 5]
        assert difference < 1e-14


# Unused and frozen parameters.


class Branches(nn.Module):
    """Two branches of equal size, used in the order that is asked for, or not."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(6, 6, bias=False, dtype=torch.float64)
        self.b = nn.Linear(6, 6, bias=False, dtype=torch.float64)
        self.never = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.ones(3, dtype=torch.float64), requires_grad=False)

    def forward(self, x, order):
        for name in order:
            x = torch.tanh(getattr(self, name)(x))
        return x * self.frozen[0]


ORDERS = ["ab", "ba", "a"]  # rank 0 finishes b first, rank 1 a, rank 2 never b


def branches(find_unused, as_filled=False):
    if as_filled:  # the mutant: a bucket is started when it is full, whatever the others do

        def start_when_full(self, parameter):
            slot = self._slots[parameter]
            slot.view.copy_(parameter.grad)
            parameter.grad = slot.view
            self._start(slot.bucket)

        def finish(self):
            for bucket in self._buckets:
                if bucket.pending is None:
                    for slot in bucket.slots:
                        slot.parameter.grad = slot.view.zero_()
                    self._start(bucket)
            for bucket in self._buckets:
                bucket.pending.wait()
                bucket.pending = None

        DataParallelOptimizer._arrived, DataParallelOptimizer.finish = start_when_full, finish
    me, world = comm.mesh().rank("dp"), comm.mesh().size("dp")
    model = Branches()
    data = DataParallelOptimizer(model, bucket_bytes=1, find_unused=find_unused)
    reference = Branches()
    results = []
    for step in range(2):  # the second step would see stale numbers in the buffers
        data.zero_grad()
        reference.zero_grad()
        model(samples(me), ORDERS[(me + step) % 3]).square().sum().backward()
        data.finish()
        for rank in range(world):
            reference(samples(rank), ORDERS[(rank + step) % 3]).square().sum().backward()
        expected = gradients(reference)
        if not find_unused:
            expected[0] = torch.zeros_like(model.never)  # `never` is the first parameter
        results.append(worst(gradients(model), expected))
    bitmaps = comm.ledger().snapshot().where(reason="dp: which parameters were used")
    return results, [(entry.payload_bytes, entry.op) for entry in bitmaps], len(dp_entries())


def test_unused_parameters_count_as_zero():
    for results, bitmaps, buckets in pico.run(branches, False, world_size=3):
        assert max(results) < 1e-14
        assert not bitmaps and buckets == 2 * 3


def test_a_parameter_unused_everywhere_keeps_no_gradient():
    for results, bitmaps, buckets in pico.run(branches, True, world_size=3):
        assert max(results) < 1e-14
        # one byte a trainable parameter, once a step
        assert bitmaps == [(3, "all_reduce")] * 2 and buckets == 2 * 3


def test_mutant_starting_buckets_as_they_fill_is_caught():
    results, _, _ = pico.run(branches, False, True, world_size=2)[0]
    assert max(results) > 0.1


def frozen_layers():
    """The embedding and the first block frozen, as in fine-tuning; equal to one process."""
    config = ModelConfig(hidden=16, ffn=24, layers=2, heads=2, kv_heads=1, vocab=20, seq=6)
    me = comm.mesh().rank("dp")
    tokens = torch.randint(20, (2, 7), generator=torch.Generator().manual_seed(0))

    def build():
        model = Transformer(config, device="cpu", dtype=torch.float64)
        model.embed.requires_grad_(False)
        model.layers[0].requires_grad_(False)
        return model

    model, reference = build(), build()
    data = DataParallelOptimizer(model)
    model.loss(tokens[me : me + 1, :-1], tokens[me : me + 1, 1:]).backward()
    data.finish()
    reference.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    trainable = sum(p.numel() * 8 for p in reference.parameters() if p.requires_grad)
    payload = dp_entries().total().payload_bytes
    difference = worst(gradients(model), gradients(reference))
    model.embed.requires_grad_(True)
    data.zero_grad()
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    with pytest.raises(RuntimeError, match="was frozen when DataParallelOptimizer was made"):
        data.finish()
    data = DataParallelOptimizer(model)  # what that sentence says
    data.zero_grad()
    model.loss(tokens[me : me + 1, :-1], tokens[me : me + 1, 1:]).backward()
    data.finish()
    reference.embed.requires_grad_(True)
    reference.zero_grad()
    reference.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    difference = max(difference, worst(gradients(model), gradients(reference)))
    return difference, payload == trainable


def test_frozen_parameters_are_left_out():
    for difference, exact in pico.run(frozen_layers, world_size=2):
        assert difference < 1e-13 and exact


# Uneven sizes, in one run: primes, single elements, two dtypes, any bucket size.


def many_sizes():
    generator = torch.Generator().manual_seed(0)
    me, world, worst_of_all = comm.mesh().rank("dp"), comm.mesh().size("dp"), 0.0
    for trial in range(30):
        shapes = torch.randint(
            1, 14, (int(torch.randint(1, 9, (), generator=generator)), 2), generator=generator
        )
        bucket_bytes = int(torch.randint(1, 2000, (), generator=generator))
        dtypes = [
            torch.float32 if trial % 3 == 0 and i % 2 else torch.float64 for i in range(len(shapes))
        ]
        model = nn.ParameterList(
            nn.Parameter(torch.zeros(*shape, dtype=dtype))
            for shape, dtype in zip(shapes.tolist(), dtypes)
        )
        data = DataParallelOptimizer(model, bucket_bytes=bucket_bytes)
        # d/dp of sum(p * (i + 1) * (rank + 1)) is the same number everywhere: sums are exact.
        sum((p.double() * ((i + 1) * (me + 1))).sum() for i, p in enumerate(model)).backward()
        data.finish()
        ranks = world * (world + 1) // 2
        for i, p in enumerate(model):
            worst_of_all = max(worst_of_all, float((p.grad - (i + 1) * ranks).abs().max()))
    return worst_of_all


def test_any_sizes_and_bucket_bytes():
    assert pico.run(many_sizes, world_size=3).values == [0.0, 0.0, 0.0]


# Misuse gets a sentence.


def misuse():
    sentences = []

    def build():
        model = mlp()
        return model, DataParallelOptimizer(model, bucket_bytes=300)

    def refused(call):
        with pytest.raises((RuntimeError, ValueError)) as caught:
            call()
        sentences.append(str(caught.value))

    model, data = build()
    loss_of(model, 0).backward()
    refused(lambda: loss_of(model, 0).backward())
    data.finish()

    model, data = build()
    loss_of(model, 0).backward()
    data.finish()
    refused(lambda: loss_of(model, 0).backward())

    model, data = build()
    loss_of(model, 0).backward()
    data.finish()
    torch.optim.SGD(model.parameters(), lr=0.1).zero_grad(set_to_none=False)
    refused(lambda: loss_of(model, 0).backward())

    model, data = build()
    loss_of(model, 0).backward()
    data.finish()
    refused(data.finish)

    model, data = build()
    del data
    refused(lambda: loss_of(model, 0).backward())

    refused(lambda: DataParallelOptimizer(nn.Linear(2, 2, device="meta")))
    refused(lambda: DataParallelOptimizer(mlp(), bucket_bytes=0))
    refused(lambda: DataParallelOptimizer(mlp(), axis="dq"))
    return sentences


def test_misuse_is_refused_with_a_sentence():
    sentences = pico.run(misuse, world_size=2)[0]
    expected = [
        "a second backward before finish()",
        "would be added to a sum over all ranks",
        "would be added to a sum over all ranks",
        "finish() was called twice",
        "who sums the gradients of this model is gone",
        "the model has no values yet",
        "bucket_bytes is 0",
        "no axis 'dq'",
    ]
    assert len(sentences) == len(expected)
    for sentence, part in zip(sentences, expected):
        assert part in sentence


def alone():
    """On an axis of one rank nothing is hooked and nothing travels."""
    comm.build_mesh("tp2")
    model = mlp()
    data = DataParallelOptimizer(model)
    for _ in range(2):
        loss_of(model, 0).backward()
    data.finish()
    data.finish()
    reference = mlp()
    (2 * loss_of(reference, 0)).backward()
    return worst(gradients(model), gradients(reference)), len(comm.ledger().snapshot())


def test_an_axis_of_one_rank_costs_nothing():
    assert pico.run(alone, world_size=2)[0] == (0.0, 0)
