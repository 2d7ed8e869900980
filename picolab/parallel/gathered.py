"""The simple version of attention over a split sequence: fetch all keys and values, and mask.

The others are compared with it, and it takes any mask: packed documents, several texts in one
sequence of which each sees only itself, need one that no rectangle of blocks has. Llama 3 gathers
for that reason, too (arXiv 2407.21783, section 3.3.2).

Traffic of a layer: bytes that one rank sends, with b sequences of s tokens in a micro-batch, K
key-value heads of size E and w bytes an element:

    forward     (c-1) 2 b K (s/c) E w      an all-gather of K, and one of V
    backward    the same                   a reduce-scatter of each gradient

As many bytes as the ring's forward, but nothing is computed until all have come, and all of K and V
lie in memory.

Letters in names: sequence_split.py. Twin in torch: `F.scaled_dot_product_attention` on one process,
which tests/distributed/parallel/test_context.py and test_context_documents.py compare.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from picolab import comm
from picolab.parallel.ring import GRADIENTS, KEYS_VALUES
from picolab.parallel.sequence_split import Split, check_shares, positions


def gathered_attention(
    q_BNSE: torch.Tensor,
    k_BKSE: torch.Tensor,
    v_BKSE: torch.Tensor,
    axis: str = "cp",
    split: Split = "zigzag",
    documents_BS: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of this rank's queries to all ranks' keys, (B, N, S, E).

    It computes all S * c*S scores, also those that the mask throws away, and holds all of K and V.
    No order is needed: the mask compares global positions, whatever the permutation.

    documents_BS: which document each token belongs to, of the *whole* sequences in their order
    (integers, the same on all ranks); a token then sees its own document only. Raises ValueError
    if it has another shape than (B, c*S).
    """
    check_shares(q_BNSE, k_BKSE, v_BKSE, split)
    mesh, device = comm.mesh(), q_BNSE.device
    cp, seq = mesh.size(axis), mesh.size(axis) * q_BNSE.shape[2]
    places = [positions(rank, cp, seq, split, device) for rank in range(cp)]
    mine, all_of_them = places[mesh.rank(axis)], torch.cat(places)
    mask = mine.unsqueeze(1) >= all_of_them
    if documents_BS is not None:
        if documents_BS.shape != (len(q_BNSE), seq):
            raise ValueError(
                f"documents_BS has the shape {tuple(documents_BS.shape)}; it names a document for "
                f"each token of the whole sequences, on every rank: {(len(q_BNSE), seq)}"
            )
        same = documents_BS[:, mine].unsqueeze(2) == documents_BS[:, all_of_them].unsqueeze(1)
        mask = (mask & same).unsqueeze(1)  # (B, 1, S, c*S): the same for all heads
    k, v = (gather_sequence(x, axis) for x in (k_BKSE, v_BKSE))
    grouped = q_BNSE.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q_BNSE, k, v, attn_mask=mask, enable_gqa=grouped)


def gather_sequence(x: torch.Tensor, axis: str, dim: int = 2) -> torch.Tensor:
    """All ranks' x side by side, in the order of the ranks. Backward: the sum of all ranks'
    gradients of one's own x.
    """
    return _Gather.apply(x, axis, dim)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis, dim):
        ctx.axis, ctx.dim = axis, dim
        return comm.all_gather(x, axis, KEYS_VALUES, dim=dim)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return comm.reduce_scatter(dy, ctx.axis, GRADIENTS, dim=ctx.dim), None, None
