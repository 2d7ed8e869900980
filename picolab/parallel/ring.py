"""Ring attention: queries stay, keys and values go round.

Every rank keeps its queries and passes keys and values on, c - 1 times, so that every block of them
meets every rank. K and V are one message, with their own number of heads (GQA: repeating them to
the query heads first would send N/K times as much).

    hop 0      rank r holds K,V of rank r
    hop j      ... of rank r - j (mod c), which came from the left; it is passed on to the right

**Merging.** A block of keys gives an output that is normalised over these keys only, and the
logarithm of what it was divided by, its log-sum-exp l. Two blocks together:

    out = (e^l1 out1 + e^l2 out2) / (e^l1 + e^l2) = out1 + sigmoid(l2 - l1) (out2 - out1)
    l   = log(e^l1 + e^l2)

in fp32 or better: in bf16 every merge would round again.

**Backward**, the final l and output are all that a block needs to give its share of the gradients
(attention_block.py). K and V go round once more, and behind them their gradients: whoever holds a
block adds its share to that block's dK and dV and passes them on. The owner's own share stays at
home, so dK and dV leave from the first rank that is not the owner and need c - 1 hops as well, the
last of which brings them home. They are sums over ranks and travel in fp32 (fp64 where the inputs
are).

**Overlap.** A hop is posted *before* the block at hand is computed and waited for after it, so that
the next block is on its way meanwhile; a hop of gradients is on its way during the block that
follows. Only the last hop of gradients has nothing to hide behind.

Traffic of a layer: bytes that one rank sends, with b sequences of s tokens in a micro-batch, K
key-value heads of size E, w bytes an element, and kv = 2 b K (s/c) E, the elements of one rank's K
and V:

    forward     (c-1) kv w
    backward    (c-1) kv w + (c-1) kv max(w, 4)

In messages: c - 1 forward and 2(c - 1) backward. The bytes do not shrink as c grows (they tend to
those of all of K and V); those of Ulysses do.

Source: arXiv 2310.01889, section 3. Letters in names: sequence_split.py. Twin in torch:
`F.scaled_dot_product_attention` on one process, which tests/distributed/parallel/test_context.py
compares; torch's own context parallelism has no rule for the CPU's kernel. Leaves out: dropout, and
masks of packed documents (gathered.py takes them; chapter 1 has a ring that does).
"""

import torch
from torch.autograd.function import once_differentiable

from picolab import comm
from picolab.parallel.attention_block import accumulation_dtype, attend, attend_backward
from picolab.parallel.sequence_split import Split, check_shares, visible

KEYS_VALUES = "cp: keys and values"
GRADIENTS = "cp: gradients of keys and values"


def ring_attention(
    q_BNSE: torch.Tensor,
    k_BKSE: torch.Tensor,
    v_BKSE: torch.Tensor,
    axis: str = "cp",
    split: Split = "zigzag",
) -> torch.Tensor:
    """Causal attention of this rank's queries to all ranks' keys, (B, N, S, E) in q's dtype.

    q, k, v: this rank's shares, rotated by global positions; `split`: how the sequence was cut.
    On an axis of size 1 it is `F.scaled_dot_product_attention(..., is_causal=True)`, bit for bit.
    """
    check_shares(q_BNSE, k_BKSE, v_BKSE, split)
    return _RingAttention.apply(q_BNSE, k_BKSE, v_BKSE, axis, split)


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, axis, split):
        cp, me, dtype = comm.mesh().size(axis), comm.mesh().rank(axis), accumulation_dtype(q.dtype)
        kv = torch.stack((k, v))
        for hop in range(cp):
            if hop < cp - 1:  # posted here, so that it travels while this block is computed
                arriving = comm.shift(kv, axis, KEYS_VALUES, async_op=True)
            block = visible(me, (me - hop) % cp, k.shape[2], split)
            if block is not None:
                rows, keys, causal = block
                found = attend(q[:, :, rows], *kv[:, :, :, keys], causal)
                found = [x.to(dtype) for x in found]
                if hop == 0:  # one's own block comes first and covers every query
                    out, lse = found
                else:
                    merged = merge(out[:, :, rows], lse[:, :, rows], *found)
                    out[:, :, rows], lse[:, :, rows] = merged
            if hop < cp - 1:
                kv = arriving.wait()
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.axis, ctx.split = axis, split
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        (q, k, v, out, lse), axis = ctx.saved_tensors, ctx.axis
        cp, me, dtype = comm.mesh().size(axis), comm.mesh().rank(axis), accumulation_dtype(q.dtype)
        kv = torch.stack((k, v))
        dq = torch.zeros_like(q, dtype=dtype)
        mine = torch.zeros_like(kv, dtype=dtype)  # dK and dV of one's own block, by own queries
        dkv, following = torch.zeros_like(mine), None  # those of a block that travels
        for hop in range(cp):
            if hop < cp - 1:
                arriving = comm.shift(kv, axis, KEYS_VALUES, async_op=True)
            block = visible(me, (me - hop) % cp, k.shape[2], ctx.split)
            if block is not None:
                rows, keys, causal = block
                dq_block, *dkv_block = attend_backward(
                    dout[:, :, rows],
                    q[:, :, rows],
                    *kv[:, :, :, keys],
                    out[:, :, rows],
                    lse[:, :, rows],
                    causal,
                )
                dq[:, :, rows] += dq_block
            if following is not None:  # with what the ranks before this one have added
                dkv = following.wait()
            if block is not None:
                totals = mine if hop == 0 else dkv
                for total, share in zip(totals[:, :, :, keys], dkv_block):
                    total += share
            if hop > 0:  # under way while the next block is computed
                following = comm.shift(dkv, axis, GRADIENTS, async_op=True)
            if hop < cp - 1:
                kv = arriving.wait()
        if following is not None:
            mine += following.wait()
        return *(x.to(q.dtype) for x in (dq, *mine)), None, None


def merge(
    out_BNSE: torch.Tensor, lse_BNS: torch.Tensor, other_BNSE: torch.Tensor, other_BNS: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over two sets of keys, from attention over each. All four in fp32 or better."""
    weight = torch.sigmoid(other_BNS - lse_BNS).unsqueeze(-1)
    return torch.lerp(out_BNSE, other_BNSE, weight), torch.logaddexp(lse_BNS, other_BNS)
