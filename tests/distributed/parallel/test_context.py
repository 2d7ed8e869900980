"""Attention over a sequence that is split (ring, Ulysses, all-gather), against torch's SDPA on one
process.

The wrong versions this file catches (kept below as mutants): merging blocks in the input's dtype
(picotron does softmax and log-sum-exp in bf16), contiguous positions with zig-zag data,
K and V repeated to all query heads before they are sent (picotron as well), a log-sum-exp that is
not corrected when blocks are merged, dK and dV that are not sent home in the last hop, masking by
local instead of global order, and labels that are cut before they are shifted.
"""

import itertools
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import picolab as pico
from picolab import comm, costs
from picolab.model.layers import RotaryTables, rotate
from picolab.monitoring.ledger import Ledger
from picolab.parallel import attention_block, gathered, ring, ulysses
from picolab.parallel.sequence_split import (
    causal_work,
    chunks,
    join_sequence,
    positions,
    split_batch,
    split_sequence,
    visible,
)

WAYS = {
    "ring": ring.ring_attention,
    "ulysses": ulysses.ulysses_attention,
    "gathered": gathered.gathered_attention,
}
SPLITS = ("zigzag", "contiguous")
NAMES = ("out", "dq", "dk", "dv")
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def inputs(dtype, batch=2, heads=4, kv_heads=2, seq=64, size=16, seed=0):
    """q, k, v and the gradient of the output, of the whole sequence."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, n, seq, size, dtype=torch.float64, generator=generator).to(dtype)
        for n in (heads, kv_heads, kv_heads, heads)
    ]


def differentiate(attention, q, k, v, dout):
    """out, dq, dk, dv."""
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = attention(*leaves)
    out.backward(dout)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def sdpa(q, k, v, dout):
    grouped = q.shape[1] != k.shape[1]
    return differentiate(
        lambda *x: F.scaled_dot_product_attention(*x, is_causal=True, enable_gqa=grouped),
        *(q, k, v, dout),
    )


def sharded(way, tensors, split):
    """out, dq, dk, dv of this rank's share."""
    m = comm.mesh()
    shares = [split_sequence(x, m.rank("cp"), m.size("cp"), 2, split) for x in tensors]
    return differentiate(lambda *x: WAYS[way](*x, split=split), *shares)


def difference(mine, whole, split):
    """The largest difference of a share, relative to the largest element of the whole tensor."""
    m = comm.mesh()
    share = split_sequence(whole, m.rank("cp"), m.size("cp"), 2, split)
    assert mine.shape == share.shape and mine.dtype == share.dtype
    return float((mine - share).abs().max() / whole.abs().max())


# How the sequence is cut.


@given(st.integers(1, 6), st.integers(1, 4), st.sampled_from(SPLITS), st.integers(0, 2))
def test_join_undoes_split_and_positions_are_what_was_cut(cp, size, split, dim):
    seq = 2 * cp * size
    shape = [3, 2, 5]
    shape[dim] = seq
    x = torch.arange(torch.Size(shape).numel()).reshape(shape)
    shares = [split_sequence(x, rank, cp, dim, split) for rank in range(cp)]
    assert torch.equal(join_sequence(shares, dim, split), x)
    for rank, share in enumerate(shares):
        places = positions(rank, cp, seq, split)
        assert torch.equal(x.index_select(dim, places), share)
        assert torch.equal(places, places.sort().values), "local order is global order"


def test_who_holds_what():
    assert [chunks(r, 4) for r in range(4)] == [(0, 7), (1, 6), (2, 5), (3, 4)]
    assert positions(1, 2, 8).tolist() == [2, 3, 4, 5]
    assert positions(0, 2, 8).tolist() == [0, 1, 6, 7]
    assert positions(1, 2, 8, "contiguous").tolist() == [4, 5, 6, 7]


@given(st.integers(1, 6), st.integers(1, 3), st.sampled_from(SPLITS))
def test_blocks_cover_what_the_mask_lets_through_and_nothing_twice(cp, size, split):
    """Every (query, key) with key <= query is in exactly one rank's block, no other is in any."""
    seq = 2 * cp * size
    seen = torch.zeros(seq, seq, dtype=torch.long)
    for rank, owner in itertools.product(range(cp), repeat=2):
        block = visible(rank, owner, seq // cp, split)
        if block is None:
            continue
        rows = positions(rank, cp, seq, split)[block.queries]
        columns = positions(owner, cp, seq, split)[block.keys]
        computed = torch.ones(len(rows), len(columns), dtype=torch.long)
        seen[rows.unsqueeze(1), columns] += computed.tril() if block.causal else computed
    assert torch.equal(seen, torch.ones(seq, seq, dtype=torch.long).tril())


@given(st.integers(1, 8), st.integers(1, 5))
def test_zigzag_work_is_exactly_equal_and_contiguous_work_is_not(cp, size):
    seq = 2 * cp * size
    zigzag = [causal_work(rank, cp, seq) for rank in range(cp)]
    assert zigzag == [seq**2 / 2 / cp] * cp
    contiguous = [causal_work(rank, cp, seq, "contiguous") for rank in range(cp)]
    assert [Fraction(work) / sum(map(Fraction, contiguous)) for work in contiguous] == [
        Fraction(2 * rank + 1, cp**2) for rank in range(cp)
    ]
    assert sum(contiguous) == sum(zigzag) == seq**2 / 2
    for split, works in (("zigzag", zigzag), ("contiguous", contiguous)):
        for rank, work in enumerate(works):  # counted: the diagonal's elements as halves
            places = positions(rank, cp, seq, split)
            pairs = int((places + 1).sum())
            assert work == pairs - len(places) / 2
            share = costs.causal_share(rank, cp, split)
            assert abs(share - work / (seq**2 / 2)) < 1e-12


def test_the_last_of_four_has_seven_sixteenths():
    assert causal_work(3, 4, 64, "contiguous") / (64**2 / 2) == 0.4375


def test_bad_input_gets_a_sentence():
    with pytest.raises(ValueError, match=r"of 12 .* 2 \* cp = 8 equal chunks .*; take 8 or 16$"):
        split_sequence(torch.zeros(1, 12), 0, 4)
    with pytest.raises(ValueError, match=r"of 6 .* 2 \* cp = 8 .*; take 8$"):
        positions(0, 4, 6)
    with pytest.raises(ValueError, match=r"of 13 .* cp = 4 .*contiguous.* take 12 or 16"):
        causal_work(0, 4, 13, "contiguous")
    with pytest.raises(ValueError, match="'spiral'; it is 'zigzag' or 'contiguous'"):
        split_sequence(torch.zeros(1, 8), 0, 2, split="spiral")

    def on_a_rank():
        comm.build_mesh("cp2")
        q, k, v, _ = inputs(torch.float32, seq=6)
        for way in WAYS.values():
            with pytest.raises(ValueError, match="holds 3 tokens"):
                way(*(x[:, :, :3] for x in (q, k, v)))
            with pytest.raises(ValueError, match=r"should be \(B, N, S, E\)"):
                way(q, k, v[:, :1])
            with pytest.raises(ValueError, match="K dividing N"):
                way(q[:, :3], k, v)
        q, k, v, _ = inputs(torch.float32, heads=3, kv_heads=3)
        with pytest.raises(ValueError, match="cp=2 must divide the 3 query heads"):
            ulysses.ulysses_attention(q, k, v)
        q, k, v, _ = inputs(torch.float32, heads=6, kv_heads=3)
        with pytest.raises(ValueError, match="divide the 3 key-value heads or be a multiple"):
            ulysses.ulysses_attention(q, k, v)
        return len(comm.ledger().snapshot())

    assert pico.run(on_a_rank, world_size=2).values == [0, 0], "refused before anything is sent"


# One block.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [True, False])
def test_the_kernel_is_the_formula(dtype, causal):
    """The flash kernel and the formulas beside it agree, in both directions; bf16 to its rounding
    (2^-8, and a few roundings deep)."""
    q, k, v, dout = inputs(dtype, seq=24, size=6)
    if not causal:
        k, v = k[:, :, :10], v[:, :, :10]
    tolerance = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2e-2}[dtype]

    def computed(saved=None):
        """out, log-sum-exp, dq, dk, dv by the kernel; the same by the formulas."""
        flash, formula = (
            f(q, k, v, causal) for f in (attention_block.attend, attention_block.math_attend)
        )
        back = [
            f(dout, q, k, v, *(saved or formula), causal)
            for f in (attention_block.attend_backward, attention_block.math_attend_backward)
        ]
        return (*flash, *back[0]), (*formula, *back[1])

    flash, formula = computed()
    for i, (a, b) in enumerate(zip(flash, formula)):
        assert a.dtype == b.dtype and a.shape == b.shape
        off = float((a - b).abs().max() / b.abs().max())
        if not off < tolerance:  # seen once, in fp64, of many thousands: which of the two was it?
            same = [
                torch.equal(x[i], y[i]) for x, y in zip((flash, formula), computed(formula[:2]))
            ]
            raise AssertionError(
                f"number {i} is off by {off}, {torch.get_num_threads()} threads; computed again, "
                f"(kernel, formula) are the same: {same}"
            )
    assert flash[1].dtype == attention_block.accumulation_dtype(dtype)


def test_a_head_whose_numbers_are_not_adjacent_is_copied_first():
    q, k, v, _ = inputs(torch.float64)
    strided = q.mT.contiguous().mT
    assert strided.stride(-1) != 1
    assert torch.equal(*(attention_block.attend(x, k, v, False)[0] for x in (q, strided)))
    mutant = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(strided, k, v)[0]
    assert float((mutant - attention_block.attend(q, k, v, False)[0]).abs().max()) > 0.1


# Against one process.

SHAPES = [  # heads, kv heads, sequence, head size, batch
    (4, 2, 64, 16, 2),
    (4, 4, 16, 6, 1),
    (4, 1, 8, 8, 3),  # one key-value head; at cp 4, one token a chunk
]


def against_one_process(world):
    comm.build_mesh(f"cp{world}")
    found = {}
    for dtype, shape, way, split in itertools.product(DTYPES[:2], SHAPES, WAYS, SPLITS):
        heads, kv_heads, seq, size, batch = shape
        tensors = inputs(dtype, batch, heads, kv_heads, seq, size)
        mine, whole = sharded(way, tensors, split), sdpa(*tensors)
        found[dtype, shape, way, split] = [difference(a, b, split) for a, b in zip(mine, whole)]
    return found


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_way_equals_one_process(world):
    """Relative to the largest element of each whole tensor. fp64: 1e-12. fp32: 5e-7 forward (4
    units in the last place), 5e-6 backward (sums over up to 64 queries, in another order)."""
    for rank in pico.run(against_one_process, world, world_size=world):
        for (dtype, shape, way, split), errors in rank.items():
            limits = [1e-12] * 4 if dtype == torch.float64 else [5e-7] + [5e-6] * 3
            for name, error, limit in zip(NAMES, errors, limits):
                assert error <= limit, (dtype, shape, way, split, name)
            if world == 1 and way == "ring":
                assert errors == [0.0] * 4, "on one rank it is SDPA itself"


def with_rotary(world, claimed):
    """The share's queries and keys are rotated by the positions of a `claimed` split."""
    m, seq = comm.build_mesh(f"cp{world}"), 64
    tables, whole = RotaryTables(16, 10000.0), inputs(torch.float64, seq=seq)

    def attention(q, k, v, places, attend):
        cos_sin = tables(len(places), q.device, q.dtype, places)
        q, k = (rotate(x.transpose(1, 2), *cos_sin).transpose(1, 2) for x in (q, k))
        return attend(q, k, v)

    def plain(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    rank = m.rank("cp")
    shares = [split_sequence(x, rank, world, 2) for x in whole]
    places = positions(rank, world, seq, claimed)
    mine = differentiate(
        lambda *x: attention(*x, places, ring.ring_attention),
        *shares,
    )
    reference = differentiate(lambda *x: attention(*x, torch.arange(seq), plain), *whole)
    return [difference(a, b, "zigzag") for a, b in zip(mine, reference)]


def test_rotary_embeddings_take_global_positions():
    for errors in pico.run(with_rotary, 4, "zigzag", world_size=4):
        assert max(errors) < 1e-12


def test_mutant_contiguous_positions_with_zigzag_data_is_caught():
    assert max(max(e) for e in pico.run(with_rotary, 4, "contiguous", world_size=4)) > 0.01


def batch_of(world, shift_first):
    comm.build_mesh(f"cp{world}")
    text = torch.arange(33).expand(2, 33) * torch.tensor([[1], [3]])
    if shift_first:
        return split_batch(text[:, :-1], text[:, 1:])
    tokens, _, places = split_batch(text[:, :-1], text[:, 1:])
    return tokens, tokens.roll(-1, 1), places  # the mutant


def test_tokens_labels_and_positions_are_cut_alike():
    for tokens, labels, places in pico.run(batch_of, 4, True, world_size=4):
        assert torch.equal(tokens, places * torch.tensor([[1], [3]]))
        assert torch.equal(labels, (places + 1) * torch.tensor([[1], [3]]))


def test_mutant_labels_shifted_on_each_rank_are_caught():
    for _, labels, places in pico.run(batch_of, 4, False, world_size=4):
        assert not torch.equal(labels, (places + 1) * torch.tensor([[1], [3]]))


# bf16.


def squared_errors(world, merge_in):
    """Sums over this rank's share of squared errors, against fp64: the ring's and SDPA's own."""
    m = comm.build_mesh(f"cp{world}")
    if merge_in is not None:
        ring.accumulation_dtype = lambda dtype: merge_in
        kernel = ring.attend_backward  # which takes no log-sum-exp in bf16
        ring.attend_backward = lambda *x: kernel(*x[:5], x[5].float(), x[6])
    tensors = inputs(torch.bfloat16, seq=256, size=32)
    exact = sdpa(*(x.double() for x in tensors))
    own, found = sdpa(*tensors), {}
    for split in SPLITS:

        def share(x, split=split):
            return split_sequence(x, m.rank("cp"), world, 2, split).double()

        found[split] = [
            [float((a.double() - share(b)).square().sum()) for a, b in zip(those, exact)]
            for those in (sharded("ring", tensors, split), map(share, own))
        ]
    return found


def bf16_ratios(world, merge_in=None):
    """Root mean square error of the ring over that of SDPA, for each split: out, dq, dk, dv."""
    ranks = pico.run(squared_errors, world, merge_in, world_size=world).values
    return {
        split: [
            (sum(r[split][0][i] for r in ranks) / sum(r[split][1][i] for r in ranks)) ** 0.5
            for i in range(4)
        ]
        for split in SPLITS
    }


@pytest.mark.parametrize("world", [2, 4])
def test_bf16_is_hardly_worse_than_sdpa(world):
    """Each block's output is rounded to bf16 once more than SDPA's; the merging adds nothing."""
    for ratios in bf16_ratios(world).values():
        assert max(ratios) <= 1.2


def test_mutant_merging_in_bf16_is_caught():
    for ratios in bf16_ratios(4, torch.bfloat16).values():
        assert max(ratios) > 1.5


# Wrong versions of the mathematics and of the way home.


def with_mutant(world, mutant):
    comm.build_mesh(f"cp{world}")
    if mutant == "lse":  # the output is merged, its weight is not
        merge = ring.merge
        ring.merge = lambda out, lse, *other: (merge(out, lse, *other)[0], lse)
    elif mutant == "home":  # the last hop is left out: gradients stay with the left neighbour
        shift = comm.shift
        hops = itertools.count(1)

        def stay(x, axis, reason, async_op):
            if reason == ring.GRADIENTS and next(hops) == world - 1:
                return comm.Pending(None, torch.zeros_like(x), 0.0)
            return shift(x, axis, reason, async_op)

        comm.shift = stay
    elif mutant == "order":  # zig-zag data, masked as if they were contiguous
        ring.visible = lambda rank, owner, size, split: visible(rank, owner, size, "contiguous")
    tensors = inputs(torch.float64)
    mine, whole = sharded("ring", tensors, "zigzag"), sdpa(*tensors)
    return [difference(a, b, "zigzag") for a, b in zip(mine, whole)]


@pytest.mark.parametrize("world", [2, 4])
def test_mutants_of_the_ring_are_caught(world):
    def worst(mutant):
        ranks = pico.run(with_mutant, world, mutant, world_size=world)
        return [max(errors) for errors in zip(*ranks)]

    assert max(worst(None)) < 1e-12
    out, *gradients = worst("lse")
    assert min(gradients) > 1e-3
    # Two blocks need one merge, whose output is right: only the gradients tell.
    assert out < 1e-12 if world == 2 else out > 1e-3
    out, dq, dk, dv = worst("home")
    assert max(out, dq) < 1e-12 and min(dk, dv) > 1e-3
    assert min(worst("order")) > 1e-3


# When it is sent.


def order_of(world, mutant):
    """What one rank does, forward and backward, in order; and how far its results are off."""
    comm.build_mesh(f"cp{world}")
    order, shift = [], comm.shift

    def noted(x, axis, reason, async_op=False):
        what = "gradients" if reason == ring.GRADIENTS else "keys"
        order.append(f"post {what}")
        pending = shift(x, axis, reason, async_op=True)
        wait = pending.wait
        pending.wait = lambda: (order.append(f"wait {what}"), wait())[1]
        return pending if async_op else pending.wait()

    class Late:  # the mutant: the hop is posted when somebody asks for what it brings
        def __init__(self, *hop):
            self.hop = hop

        def wait(self):
            return noted(*self.hop)

    def late(x, axis, reason, async_op):
        return Late(x, axis, reason)

    comm.shift = late if mutant else noted

    def noting(kernel):
        return lambda *arguments: (order.append("block"), kernel(*arguments))[1]

    ring.attend, ring.attend_backward = noting(ring.attend), noting(ring.attend_backward)
    tensors = inputs(torch.float64, seq=8 * world)
    mine = sharded("ring", tensors, "zigzag")
    return order, [difference(a, b, "zigzag") for a, b in zip(mine, sdpa(*tensors))]


def test_a_hop_is_posted_before_the_block_and_waited_for_after_it():
    """cp3: three blocks and two hops forward, and as many backward with the gradients behind."""
    hop = ["post keys", "block", "wait keys"]
    forward = [*hop, *hop, "block"]
    backward = [
        *hop,
        *("post keys", "block", "post gradients", "wait keys"),
        *("block", "wait gradients", "post gradients"),  # in flight during this block
        "wait gradients",  # what comes home
    ]
    for order, errors in pico.run(order_of, 3, False, world_size=3):
        assert order == forward + backward and max(errors) < 1e-12


def test_mutant_posting_after_the_block_is_caught():
    """Its results are right; only the order tells."""
    for order, errors in pico.run(order_of, 3, True, world_size=3):
        assert order[:4] == ["block", "post keys", "wait keys", "block"] and max(errors) < 1e-12


# What is sent, and what is computed.


def counted(world, way, dtype, split, shape, repeat=False):
    """Entries by (direction, op, reason): [count, payload]; and the score elements of each
    direction."""
    comm.build_mesh(f"cp{world}")
    work = {"attend": 0.0, "attend_backward": 0.0}

    def counting(name, first):
        kernel = getattr(ring, name)

        def counted_kernel(*arguments):
            q, k, causal = arguments[first], arguments[first + 1], arguments[-1]
            work[name] += q.shape[2] * k.shape[2] / (2 if causal else 1)
            return kernel(*arguments)

        return counted_kernel

    heads, kv_heads, seq, size, batch = shape
    q, k, v, dout = inputs(dtype, batch, heads, kv_heads, seq, size)
    m = comm.mesh()
    q, k, v, dout = (split_sequence(x, m.rank("cp"), world, 2, split) for x in (q, k, v, dout))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    if repeat:  # the mutant: all query heads' K and V are made before they are sent
        arguments = [leaves[0], *(x.repeat_interleave(heads // kv_heads, 1) for x in leaves[1:])]
    else:
        arguments = leaves
    before = len(comm.ledger().snapshot())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring, "attend", counting("attend", 0))
        patch.setattr(ring, "attend_backward", counting("attend_backward", 1))
        out = WAYS[way](*arguments, split=split)
        forward = len(comm.ledger().snapshot())
        out.backward(dout)
    entries = list(comm.ledger().snapshot())
    found = {}
    parts = ("forward", entries[before:forward]), ("backward", entries[forward:])
    for direction, part in parts:
        for entry in Ledger(part):
            total = found.setdefault((direction, entry.op, entry.reason), [0, 0, 0.0])
            for i, more in enumerate((1, entry.payload_bytes, entry.ring_bytes)):
                total[i] += more
    return found, work


def counted_each(world, cases, shape):
    """Of every case in turn, on the same ranks."""
    return [counted(world, *case, shape) for case in cases]


def formula(world, way, dtype, shape):
    """One layer's ledger, as the docstrings of ring.py, ulysses.py and gathered.py have it."""
    c, w = world, dtype.itemsize
    heads, kv_heads, seq, size, batch = shape
    row = batch * seq // c * size * w  # one head of a rank's share
    kv, wide = 2 * kv_heads * row, 2 * kv_heads * row // w * max(w, 4)
    if way == "ring":
        expected = {}
        for direction, reason, message in (
            ("forward", "cp: keys and values", kv),
            ("backward", "cp: keys and values", kv),
            ("backward", "cp: gradients of keys and values", wide),
        ):
            total = (c - 1) * message
            expected[direction, "send", reason] = [c - 1, total, float(total)]
            expected[direction, "recv", reason] = [c - 1, total, 0.0]
        return expected
    if way == "gathered":
        return {
            ("forward", "all_gather", "cp: keys and values"): [2, c * kv, (c - 1) * kv],
            ("backward", "reduce_scatter", "cp: gradients of keys and values"): [
                *(2, c * kv, (c - 1) * kv)
            ],
        }
    sent = max(kv_heads, c)
    inward, outward = (heads + 2 * sent) * row, heads * row
    return {
        ("forward", "all_to_all", "cp: sequence to heads"): [1, inward, inward * (c - 1) / c],
        ("forward", "all_to_all", "cp: heads to sequence"): [1, outward, outward * (c - 1) / c],
        ("backward", "all_to_all", "cp: sequence to heads"): [1, outward, outward * (c - 1) / c],
        ("backward", "all_to_all", "cp: heads to sequence"): [1, inward, inward * (c - 1) / c],
    }


@pytest.mark.parametrize("world", [2, 4])
def test_the_ledger_is_the_formula_to_the_byte(world):
    shape = (8, 2, 64, 16, 3)
    ways = [
        ("ring", "zigzag"),
        ("ring", "contiguous"),
        ("ulysses", "zigzag"),
        ("gathered", "zigzag"),
    ]
    cases = [(way, dtype, split) for way, split in ways for dtype in DTYPES]
    for rank, each in enumerate(pico.run(counted_each, world, cases, shape, world_size=world)):
        for (way, dtype, split), (found, work) in zip(cases, each, strict=True):
            assert found == formula(world, way, dtype, shape), (way, dtype, split)
            if way == "ring":
                expected = causal_work(rank, world, 64, split)
                assert work == {"attend": expected, "attend_backward": expected}, (dtype, split)


def test_on_one_rank_nothing_is_sent():
    for way in WAYS:
        found, _ = pico.run(counted, 1, way, torch.float32, "zigzag", SHAPES[0], world_size=1)[0]
        assert found == {}


def test_mutant_repeating_keys_and_values_before_the_ring_is_caught():
    shape, dtype = (8, 2, 64, 16, 3), torch.bfloat16
    found, _ = pico.run(counted, 2, "ring", dtype, "zigzag", shape, True, world_size=2)[0]
    expected = formula(2, "ring", dtype, shape)
    assert {key: total[1] for key, total in found.items()} == {
        key: 4 * total[1] for key, total in expected.items()
    }
