"""Packed documents on a split sequence, against torch's SDPA with a block-diagonal causal mask.

The wrong versions this file catches (kept below as mutants): document boundaries that are ignored
(axolotl issue 3608: a loss 1.83 times too large, and no error), ids that are taken in the order of
the cut instead of by global position, and a mask of documents without causality.
"""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import picolab as pico
from picolab import comm
from picolab.parallel import gathered, ring
from picolab.parallel.sequence_split import split_sequence

WORLD, SEQ = 4, 32
NAMES = ("out", "dq", "dk", "dv")
EXACT = 1e-12  # fp64, relative to the largest element: sums of at most SEQ terms in another order
SPLITS = ("zigzag", "contiguous")


def cp_rank() -> int:
    return comm.mesh().rank("cp")


def packings(lengths_of_rows):
    """documents_BS from the lengths of each row's documents."""
    return torch.stack(
        [torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths_of_rows]
    )


def inputs(rows, seed=0):
    """q, k, v and the gradient of the output, of the whole sequences: 4 heads share 2."""
    drawn = torch.Generator().manual_seed(seed)
    shapes = [(rows, heads, SEQ, 8) for heads in (4, 2, 2, 4)]
    return [torch.randn(shape, dtype=torch.float64, generator=drawn) for shape in shapes]


def differentiate(attention, q, k, v, dout):
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = attention(*leaves)
    out.backward(dout)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def on_one_process(documents, tensors):
    same = documents.unsqueeze(2) == documents.unsqueeze(1)
    mask = (same & torch.ones(SEQ, SEQ, dtype=torch.bool).tril()).unsqueeze(1)
    return differentiate(
        partial(F.scaled_dot_product_attention, attn_mask=mask, enable_gqa=True), *tensors
    )


def differences(attention, all_packings):
    """For each packing and split, the relative differences of out, dq, dk, dv on this rank."""
    comm.build_mesh(pico.Layout(cp=WORLD))
    me, found = cp_rank(), []
    for documents in all_packings:
        tensors = inputs(len(documents))
        expected = on_one_process(documents, tensors)
        for split in SPLITS:
            cut = partial(split_sequence, rank=me, cp=WORLD, dim=2, split=split)
            way = partial(attention, split=split, documents_BS=documents)
            mine = differentiate(way, *map(cut, tensors))
            apart = [
                float((a - cut(b)).abs().max() / b.abs().max()) for a, b in zip(mine, expected)
            ]
            found.append(dict(zip(NAMES, apart)))
    return found


def test_one_document_is_causal_attention():
    """The control: with one document in each row nothing changes, to the bit."""

    def both():
        comm.build_mesh(pico.Layout(cp=WORLD))
        shares = [split_sequence(x, cp_rank(), WORLD, 2) for x in inputs(2)[:3]]
        one = torch.zeros(2, SEQ, dtype=torch.long)
        masked = gathered.gathered_attention(*shares, documents_BS=one)
        return torch.equal(masked, gathered.gathered_attention(*shares))

    assert all(pico.run(both, world_size=WORLD, backend="gloo"))


def lengths_between(cuts: set[int]) -> list[int]:
    ends = [0, *sorted(cuts), SEQ]
    return [b - a for a, b in itertools.pairwise(ends)]


lengths = st.sets(st.integers(1, SEQ - 1), max_size=SEQ - 1).map(lengths_between)


@settings(max_examples=3)
@given(st.lists(st.lists(lengths, min_size=2, max_size=2), min_size=8, max_size=8))
def test_any_packing_equals_one_process(rows_of_lengths):
    """Documents of one token, of a whole row, across chunks and ranks: outputs and gradients."""
    fixed = [[[SEQ], [1] * SEQ], [[7, 9, 16], [3, 26, 3]]]
    packed = [packings(rows) for rows in fixed + rows_of_lengths]
    ranks = pico.run(
        differences, gathered.gathered_attention, packed, world_size=WORLD, backend="gloo"
    )
    for found in ranks:
        for of_case in found:
            assert max(of_case.values()) < EXACT, of_case


def forgets_documents(*qkv, split, documents_BS):
    return gathered.gathered_attention(*qkv, split=split)


def ids_in_the_order_of_the_cut(*qkv, split, documents_BS):
    shares = [split_sequence(documents_BS, r, WORLD, 1, split) for r in range(WORLD)]
    return gathered.gathered_attention(*qkv, split=split, documents_BS=torch.cat(shares, 1))


def ring_that_knows_positions_only(*qkv, split, documents_BS):
    return ring.ring_attention(*qkv, split=split)


def looks_ahead_in_its_document(q, k, v, split, documents_BS):
    k, v = (gathered.gather_sequence(x, "cp") for x in (k, v))
    shares = [split_sequence(documents_BS, r, WORLD, 1, split) for r in range(WORLD)]
    same = shares[cp_rank()].unsqueeze(2) == torch.cat(shares, 1).unsqueeze(1)
    mask = same.unsqueeze(1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


@pytest.mark.parametrize(
    "mutant",
    [
        forgets_documents,
        ids_in_the_order_of_the_cut,
        ring_that_knows_positions_only,
        looks_ahead_in_its_document,
    ],
)
def test_a_wrong_mask_is_noticed(mutant):
    packed = [packings([[7, 9, 16], [3, 26, 3]])]
    ranks = pico.run(differences, mutant, packed, world_size=WORLD, backend="gloo")
    wrong = [of_case["out"] > 1e-3 for found in ranks for of_case in found]
    assert any(wrong)


def test_ids_of_a_share_are_refused():
    def short():
        comm.build_mesh(pico.Layout(cp=WORLD))
        shares = [split_sequence(x, cp_rank(), WORLD, 2) for x in inputs(1)[:3]]
        try:
            ids = torch.zeros(1, SEQ // WORLD, dtype=torch.long)
            gathered.gathered_attention(*shares, documents_BS=ids)
        except ValueError as error:
            return str(error)

    for said in pico.run(short, world_size=WORLD, backend="gloo"):
        assert "(1, 8)" in said and "(1, 32)" in said and "whole sequences" in said
