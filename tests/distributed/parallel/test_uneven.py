"""Sizes that do not divide: vocabulary, key-value heads, ffn and layers, each dealt out unevenly,
and every layout still computes what one process computes.

The wrong versions this file catches, each run below: the remainder of a division dropped (the last
rows belong to nobody), shards padded to equal size whose padding takes part in the softmax
(Megatron-LM issue 1754: the loss is wrong as soon as tp does not divide the vocabulary), padding
left in what is gathered, and query heads dealt out apart from their key-value heads.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import picolab as pico
from picolab import comm, costs
from picolab.model import Embedding, Linear, Piece, Transformer, cross_entropy, initialise
from picolab.parallel import (
    ColumnParallelLinear,
    VocabularyParallelEmbedding,
    VocabularyParallelLoss,
    parallelize,
)
from picolab.parallel.vocabulary import shard
from picolab.parallel.whole import gather, gather_shards
from picolab.specs import Layout, ModelConfig

CONFIGS = {
    "three kv heads": ModelConfig(
        hidden=24, ffn=50, layers=3, heads=6, kv_heads=3, vocab=37, seq=12
    ),
    "tied, seven kv heads": ModelConfig(
        hidden=28, ffn=31, layers=5, heads=14, kv_heads=7, head_dim=2, vocab=41, seq=12, tied=True
    ),
}
LAYOUTS = {
    "three kv heads": {
        2: ["tp2", "tp2sp", "pp2"],
        3: ["tp3", "pp3"],
        4: ["dp2tp2", "tp2pp2", "tp2cp2"],
    },
    "tied, seven kv heads": {2: ["tp2", "pp2"], 4: ["tp4", "tp4sp", "pp4", "tp2pp2"]},
}
ROWS, MICRO_BATCHES, STEPS = 2, 3, 3


def train(config, layout, steps=STEPS):
    """Loss and norm of every step, the first gradients and the last parameters, in fp64."""
    layout = Layout.parse(layout)
    parallel = parallelize(
        Transformer(config, dtype=torch.float64), layout, seed=7, bucket_bytes=4000
    )
    optimizer = torch.optim.AdamW(parallel.model.parameters(), lr=1e-2, eps=1e-5)
    replica = comm.mesh().rank("dp") if layout.dp > 1 else 0
    found = {"loss": [], "norm": []}
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        shape = (MICRO_BATCHES, ROWS, config.seq)
        tokens, labels = torch.randint(config.vocab, (2, *shape), generator=generator)
        labels[torch.rand(shape, generator=generator) < 0.4] = -100
        tokens[0, :, 0] = labels[0, :, 1] = config.vocab - 1  # the last row is somebody's
        tokens, labels = (x.chunk(layout.dp, dim=1)[replica] for x in (tokens, labels))
        found["loss"].append(float(parallel.forward_backward(tokens, labels)))
        if step == 0:
            found["gradients"] = parallel.gradients()
        found["norm"].append(parallel.clip(0.5))
        optimizer.step()
        parallel.zero_grad()
    found["state"] = parallel.state_dict()
    return found


def largest_difference(found, expected):
    """Relative to the number or to the tensor's norm; infinite if a shape differs."""
    pairs = [(torch.tensor(found[kind]), torch.tensor(expected[kind])) for kind in ("loss", "norm")]
    for kind in ("gradients", "state"):
        assert found[kind].keys() == expected[kind].keys()
        pairs += [(found[kind][name], whole) for name, whole in expected[kind].items()]
    return max(
        float((a - b).norm() / b.norm()) if a.shape == b.shape else float("inf") for a, b in pairs
    )


def all_of(config, layouts):
    return {layout: train(config, layout) for layout in layouts}


@pytest.mark.parametrize(
    ("name", "world"),
    [
        *(("three kv heads", world) for world in (2, 3, 4)),
        ("tied, seven kv heads", 2),
        pytest.param("tied, seven kv heads", 4, marks=pytest.mark.weekly),
    ],
)
def test_an_uneven_layout_equals_one_process(name, world):
    expected = train(CONFIGS[name], "dp1")
    for rank in pico.run(all_of, CONFIGS[name], LAYOUTS[name][world], world_size=world):
        for layout, found in rank.items():
            assert largest_difference(found, expected) < 1e-12, layout


def held(config, layout):
    model = parallelize(Transformer(config), layout).model
    return [parameter.numel() for parameter in model.parameters()]


@pytest.mark.parametrize("name", CONFIGS)
def test_each_rank_holds_what_the_formula_says(name):
    ranks = pico.run(held, CONFIGS[name], "tp2pp2", world_size=4)
    for rank, sizes in enumerate(ranks):
        formula = costs.local_parameters(CONFIGS[name], "tp2pp2", rank)
        assert sizes == [parameter.numel for parameter in formula]
    assert len({tuple(sizes) for sizes in ranks}) == 4, "nothing here is even"


# Mutants: each patches one line of the rank's picolab and trains as above.


def remainder_dropped():
    from picolab.model import parameters

    def floor(size, n, blocks=None):
        each = (blocks or size) // n * (size // (blocks or size))
        return [range(i * each, (i + 1) * each) for i in range(n)]

    parameters.even_slices = floor


def padding_in_the_softmax():
    """The last rank's logits get a column of zeros, so that all ranks have equally many."""
    from picolab.parallel import vocabulary

    loss = vocabulary._CrossEntropy.apply

    def padded(logits_BSV, labels_BS, rows, axis):
        return loss(F.pad(logits_BSV, (0, 19 - len(rows))), labels_BS, rows, axis)

    vocabulary._CrossEntropy = type("Padded", (), {"apply": staticmethod(padded)})


def padding_left_in():
    from picolab.parallel import whole

    def padded(x, sizes, axis, reason, dim=0):
        rows = [max(sizes) - x.shape[dim] if i == dim else 0 for i in range(x.dim())]
        pad = [size for i in reversed(range(x.dim())) for size in (0, rows[i])]
        return comm.all_gather(F.pad(x, pad), axis, reason, dim=dim)

    whole.gather_shards = padded


@pytest.mark.parametrize("mutant", [remainder_dropped, padding_in_the_softmax, padding_left_in])
def test_mutants_are_caught(mutant):
    config = CONFIGS["three kv heads"]

    def mutated():
        mutant()
        return train(config, "tp2", steps=1)

    found = pico.run(mutated, world_size=2)[0]
    assert largest_difference(found, train(config, "dp1", steps=1)) > 1e-6


def apart():
    """Two ranks, three kv heads, six query heads: 3 and 3 queries, but 2 and 1 keys."""
    from picolab.model import parameters

    slices = parameters.even_slices
    parameters.even_slices = lambda size, n, blocks=None: slices(
        size, n, 6 if size == 24 else blocks
    )
    return train(CONFIGS["three kv heads"], "tp2", steps=1)


def test_mutant_queries_apart_from_their_keys_does_not_even_run():
    with pytest.raises(pico.RankFailure, match="heads in key and value must divide"):
        pico.run(apart, world_size=2, quiet=True)


# The parts by themselves.


def parts(vocab):
    """Embedding, head and loss of a vocabulary, against the whole ones: largest differences."""
    generator = torch.Generator().manual_seed(vocab)
    tokens = torch.randint(vocab, (2, 5), generator=generator)
    labels = torch.randint(vocab, (2, 5), generator=generator)
    labels[0, 0], labels[0, 1] = -100, vocab - 1
    piece = Piece("embed.weight", (vocab, 3), std=0.5)
    embeddings = [initialise(Embedding(piece, torch.float64))]
    embeddings.append(initialise(VocabularyParallelEmbedding(Embedding(piece, torch.float64))))
    heads = [initialise(Linear([Piece("head.weight", (vocab, 3))], torch.float64))]
    heads.append(ColumnParallelLinear(Linear([Piece("head.weight", (vocab, 3))], torch.float64)))
    (share,) = initialise(heads[1]).weight.pieces
    rows = share.ranges[0]
    losses = [cross_entropy, VocabularyParallelLoss(vocab, rows.start, rows.stop)]
    found = []
    for embed, head, loss_of in zip(embeddings, heads, losses):
        loss = loss_of(head(embed(tokens)), labels)
        loss.backward()
        found.append([loss.detach(), embed.weight.grad, head.weight.grad])
    found[1][1:] = [gather(share, x, "check") for x in found[1][1:]]
    return max(float((a - b).abs().max()) for a, b in zip(*found))


def vocabularies(sizes):
    comm.build_mesh(f"tp{torch.distributed.get_world_size()}")
    return {vocab: parts(vocab) for vocab in sizes}


@pytest.mark.parametrize("world", [2, 4])
def test_any_vocabulary_with_a_row_for_each_rank(world):
    sizes = [*range(world, 3 * world + 1), 37, 64]
    for rank in pico.run(vocabularies, sizes, world_size=world):
        assert max(rank.values()) < 1e-13, rank


def gathered(cases):
    comm.build_mesh("tp4")
    me = comm.mesh().rank("tp")
    for size, dim, blocks in cases:
        whole = torch.arange(2.0 * size * 3).reshape((size, 6) if dim == 0 else (6, size))
        cuts = costs.even_slices(size, 4, blocks)
        mine = whole.narrow(dim, cuts[me].start, len(cuts[me]))
        sizes = [len(cut) for cut in cuts]
        assert torch.equal(gather_shards(mine, sizes, "tp", "check", dim), whole)
    return True


def test_shards_of_any_size_are_gathered():
    """Empty ones too, which no layout makes but the function takes."""
    cases = [(s, d, None) for s in (1, 3, 4, 5, 7, 8) for d in (0, 1)] + [(12, 1, 6), (10, 0, 5)]
    assert pico.run(gathered, cases, world_size=4).values == [True] * 4


@given(
    unit=st.integers(1, 5), blocks=st.integers(1, 30), n=st.integers(1, 9), dim=st.integers(0, 1)
)
@settings(max_examples=50)
def test_pieces_cut_between_blocks_and_cover_the_tensor(unit, blocks, n, dim):
    size = unit * blocks
    piece = Piece("w", (size, 2) if dim == 0 else (2, size), blocks=blocks)
    cuts = [piece.shard("tp", dim, i, n, blocks=blocks).ranges[dim] for i in range(n)]
    assert [i for cut in cuts for i in cut] == list(range(size))
    assert all(cut.start % unit == cut.stop % unit == 0 for cut in cuts)
    assert all(len(a) >= len(b) for a, b in itertools.pairwise(cuts))


def dealt_out_to_two(piece):
    comm.build_mesh("tp2")
    with pytest.raises(ValueError, match="one would have none"):
        shard(piece, 0, "tp")
    return True


def test_a_rank_without_a_block_is_refused():
    piece = Piece("layers.0.attention.k.weight", (24, 32), blocks=1)
    assert pico.run(dealt_out_to_two, piece, world_size=2).values == [True] * 2
