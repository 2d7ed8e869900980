"""Ulysses: a split sequence's attention by exchanging heads.

Heads do not look at each other. So one all-to-all turns "all heads of 1/c of the sequence" into
"1/c of the heads of all of the sequence", each rank attends as if nothing were split, and another
all-to-all turns the result back.

Traffic of a layer: bytes that one rank sends, with b sequences of s tokens in a micro-batch, N
query and K key-value heads of size E, and w bytes an element:

    forward     (c-1)/c * b (s/c) E (N + 2 K') w  +  (c-1)/c * b (s/c) E N w
    backward    the same

K' is K, or c where there are fewer key-value heads than ranks. In messages: 2 all-to-alls forward
and 2 backward. Unlike the ring's, the bytes shrink as c grows; but c is bounded by the heads.

Source: arXiv 2309.14509 (DeepSpeed Ulysses), section 3. Letters in names: sequence_split.py. Twin
in torch: `F.scaled_dot_product_attention` on one process, which
tests/distributed/parallel/test_context.py compares.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from picolab import comm
from picolab.parallel.sequence_split import Split, check_shares, join_sequence, split_sequence

TO_HEADS = "cp: sequence to heads"
TO_SEQUENCE = "cp: heads to sequence"


def ulysses_attention(
    q_BNSE: torch.Tensor,
    k_BKSE: torch.Tensor,
    v_BKSE: torch.Tensor,
    axis: str = "cp",
    split: Split = "zigzag",
) -> torch.Tensor:
    """Causal attention of this rank's queries to all ranks' keys, (B, N, S, E): all tokens of N/c
    heads are attended to here.

    Work per rank is equal under either split. With fewer key-value heads than ranks each is sent
    to c/K ranks. Raises ValueError if c does not divide N, or if of c and K neither divides the
    other.
    """
    check_shares(q_BNSE, k_BKSE, v_BKSE, split)
    cp, heads, kv_heads = comm.mesh().size(axis), q_BNSE.shape[1], k_BKSE.shape[1]
    if heads % cp or (kv_heads % cp and cp % kv_heads):
        raise ValueError(
            f"Ulysses gives each rank whole heads: {axis}={cp} must divide the {heads} query "
            f"heads, and divide the {kv_heads} key-value heads or be a multiple of them; ring "
            "attention has no such limit"
        )
    if kv_heads < cp:
        k_BKSE, v_BKSE = (x.repeat_interleave(cp // kv_heads, 1) for x in (k_BKSE, v_BKSE))
    # (c, B, heads each, S, E): what goes to each rank side by side, so that q, k and v are one
    # message.
    each = [x.unflatten(1, (cp, -1)).movedim(1, 0) for x in (q_BNSE, k_BKSE, v_BKSE)]
    sizes = [x.shape[2] for x in each]
    parts = exchange_blocks(torch.cat(each, 2), axis, TO_HEADS, TO_SEQUENCE)
    whole = join_sequence(list(parts), dim=2, split=split)  # (B, heads each, c * S, E)
    q, k, v = whole.split(sizes, dim=1)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=sizes[0] != sizes[1])
    shares = torch.stack([split_sequence(out, rank, cp, 2, split) for rank in range(cp)])
    return exchange_blocks(shares, axis, TO_SEQUENCE, TO_HEADS).movedim(0, 1).flatten(1, 2)


def exchange_blocks(x: torch.Tensor, axis: str, reason: str, back: str) -> torch.Tensor:
    """x: (c, ...), one block for each rank; result[i] is what rank i had for this one.

    An even all-to-all is its own transpose, so backward is the same exchange of the gradients, with
    the reason `back`.
    """
    return _AllToAll.apply(x, axis, reason, back)


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis, reason, back):
        ctx.axis, ctx.back = axis, back
        return comm.all_to_all(x.contiguous(), axis, reason)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return comm.all_to_all(dy.contiguous(), ctx.axis, ctx.back), None, None, None
