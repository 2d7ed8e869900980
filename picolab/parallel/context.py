"""Context parallelism: one sequence on many ranks, each with its share of the tokens.

Everything in a decoder but attention looks at one token at a time, so a split sequence needs
nothing new there (positions must be the global ones). In attention each query needs the keys and
values of all earlier tokens, wherever they are. Three ways to bring them together:

    ring_attention        queries stay, keys and values go round; one block of scores at a time
    ulysses_attention     all-to-all: each rank gets all tokens of some heads, and gives them back
    gathered_attention    the simple version: fetch all keys and values, compute every score, mask

**How the sequence is cut.** Causal attention gives token i the work of i + 1 scores. Cut into c
pieces in order ("contiguous"), the last rank has (2c-1)/c^2 of all work, 7/16 for c = 4, and the
others wait. Cut into 2c chunks, of which rank r takes chunks r and 2c-1-r ("zigzag"), a light one
and a heavy one, all have exactly 1/c.

    zigzag, c = 4     rank 0: 0 7    rank 1: 1 6    rank 2: 2 5    rank 3: 3 4

**Merging.** A block of keys gives an output that is normalised over these keys only, and the
logarithm of what it was divided by, its log-sum-exp l. Two blocks together:

    out = (e^l1 out1 + e^l2 out2) / (e^l1 + e^l2) = out1 + sigmoid(l2 - l1) (out2 - out1)
    l   = log(e^l1 + e^l2)

in fp32 or better: in bf16 every merge would round again. Backward, the final l and output are all a
block needs to give its share of the gradients (attention_block.py); how K, V, dK and dV travel, and
how many bytes that is, stands in context_comm.py.

Letters in names: B batch, S a rank's share of the sequence, N query heads, K key-value heads, E
size of a head. Sources: arXiv 2310.01889 (ring attention), 2311.09431 (the imbalance, and striped
attention as a cure), 2309.14509 (Ulysses); zig-zag is Megatron-LM's, and Llama 3's (arXiv
2407.21783, section 3.3.2). Twin in torch: `F.scaled_dot_product_attention` on one process, which
tests/distributed/parallel/test_context.py compares; torch's own context parallelism has no rule for
the CPU's kernel. Packed documents, several texts in one sequence of which each sees only itself,
need a mask that no rectangle of blocks has: `gathered_attention(documents_BS=)` takes it, the other
two do not (chapter 1 has a ring that does). Leaves out: dropout, sequences that do not divide.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from picolab import comm
from picolab.parallel.attention_block import accumulation_dtype, attend, attend_backward
from picolab.parallel.context_comm import (
    TO_HEADS,
    TO_SEQUENCE,
    GradientRing,
    exchange_blocks,
    gather_sequence,
    key_value_ring,
)

Split = Literal["zigzag", "contiguous"]

# How the sequence is cut.


def chunks(rank: int, cp: int, split: Split = "zigzag") -> tuple[int, ...]:
    """Which chunks a rank holds: r of c, or r and 2c-1-r of 2c. In the order of the sequence."""
    if split == "zigzag":
        return rank, 2 * cp - 1 - rank
    if split == "contiguous":
        return (rank,)
    raise ValueError(f"split is {split!r}; it is 'zigzag' or 'contiguous'")


def positions(
    rank: int, cp: int, seq: int, split: Split = "zigzag", device: torch.device | str = "cpu"
) -> torch.Tensor:
    """The global positions of a rank's tokens, (seq / cp,): what rotary embeddings need."""
    return split_sequence(torch.arange(seq, device=device), rank, cp, dim=0, split=split)


def split_sequence(
    x: torch.Tensor, rank: int, cp: int, dim: int = 1, split: Split = "zigzag"
) -> torch.Tensor:
    """A rank's share of x along `dim`, the whole sequence: tokens, labels or activations.

    Labels are cut the same way as tokens, after they have been shifted: the label of a chunk's last
    token is the first token of the next chunk, which is mostly on another rank.
    """
    size = _chunk_size(x.shape[dim], cp, split)
    return torch.cat([x.narrow(dim, i * size, size) for i in chunks(rank, cp, split)], dim)


def join_sequence(
    shares: Sequence[torch.Tensor], dim: int = 1, split: Split = "zigzag"
) -> torch.Tensor:
    """The whole sequence from all ranks' shares, in the order of the ranks: undoes
    `split_sequence`.
    """
    cp, found = len(shares), {}
    for rank, share in enumerate(shares):
        held = chunks(rank, cp, split)
        found |= zip(held, share.chunk(len(held), dim))
    return torch.cat([found[i] for i in range(len(found))], dim)


def split_batch(
    tokens_BS: torch.Tensor, labels_BS: torch.Tensor, axis: str = "cp", split: Split = "zigzag"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """This rank's tokens, labels and global positions: one permutation for all three.

    tokens and labels: the whole sequences, labels shifted already.
    """
    mesh, seq = comm.mesh(), tokens_BS.shape[1]
    cp, rank = mesh.size(axis), mesh.rank(axis)
    tokens, labels = (split_sequence(x, rank, cp, 1, split) for x in (tokens_BS, labels_BS))
    return tokens, labels, positions(rank, cp, seq, split, tokens_BS.device)


def _chunk_size(seq: int, cp: int, split: Split) -> int:
    pieces = cp * len(chunks(0, cp, split))
    if seq % pieces or seq == 0:
        formula = "2 * cp" if split == "zigzag" else "cp"
        below = seq - seq % pieces
        near = f"{below} or {below + pieces}" if below else str(pieces)
        raise ValueError(
            f"a sequence of {seq} cannot be cut into {formula} = {pieces} equal chunks "
            f"({split}, cp={cp}); take {near}"
        )
    return seq // pieces


# What is computed where.


class Block(NamedTuple):
    """The part of a rank's queries x an owner's keys that has to be computed, as local slices."""

    queries: slice
    keys: slice
    causal: bool  # on the diagonal: half of it is masked

    @property
    def work(self) -> float:
        rows, columns = (s.stop - s.start for s in (self.queries, self.keys))
        return rows * columns / 2 if self.causal else float(rows * columns)


def visible(rank: int, owner: int, size: int, split: Split = "zigzag") -> Block | None:
    """What the queries of `rank` see of the keys of `owner`, both with `size` tokens; None:
    nothing.

        own keys                all, causal: a rank's tokens are in the order of the sequence
        contiguous              all of an earlier rank's, nothing of a later one's
        zigzag, owner < rank    the owner's first chunk is before both of mine, its second after
        zigzag, owner > rank    both of the owner's chunks lie between mine: my second sees both

    Off the diagonal a zig-zag block is always half of the square, and never needs a mask.
    """
    everything, half = slice(0, size), size // 2
    if owner == rank:
        return Block(everything, everything, True)
    if split == "contiguous":
        return Block(everything, everything, False) if owner < rank else None
    if owner < rank:
        return Block(everything, slice(0, half), False)
    return Block(slice(half, size), everything, False)


def causal_work(rank: int, cp: int, seq: int, split: Split = "zigzag") -> float:
    """Score elements that a rank computes, for one head and sequence; seq^2 / 2 over all ranks.

    A causal block counts as half of its square (that is, an element on the diagonal as half), the
    usual convention for flops. zigzag: seq^2 / (2 cp) on every rank. contiguous: the share
    (2r + 1) / cp^2.
    """
    size = _chunk_size(seq, cp, split) * len(chunks(rank, cp, split))
    blocks = (visible(rank, owner, size, split) for owner in range(cp))
    return sum(block.work for block in blocks if block)


# Ring attention.


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
    _check(q_BNSE, k_BKSE, v_BKSE, split)
    return _RingAttention.apply(q_BNSE, k_BKSE, v_BKSE, axis, split)


def merge(
    out_BNSE: torch.Tensor, lse_BNS: torch.Tensor, other_BNSE: torch.Tensor, other_BNS: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over two sets of keys, from attention over each. All four in fp32 or better."""
    weight = torch.sigmoid(other_BNS - lse_BNS).unsqueeze(-1)
    return torch.lerp(out_BNSE, other_BNSE, weight), torch.logaddexp(lse_BNS, other_BNS)


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, axis, split):
        rank, dtype = comm.mesh().rank(axis), accumulation_dtype(q.dtype)
        for owner, k_theirs, v_theirs in key_value_ring(k, v, axis):
            block = visible(rank, owner, k.shape[2], split)
            if block is None:
                continue
            rows, keys, causal = block
            found, weight = attend(
                q[:, :, rows], k_theirs[:, :, keys], v_theirs[:, :, keys], causal
            )
            found, weight = found.to(dtype), weight.to(dtype)
            if owner == rank:  # one's own block comes first and covers every query
                out, lse = found, weight
            else:
                out[:, :, rows], lse[:, :, rows] = merge(
                    out[:, :, rows], lse[:, :, rows], found, weight
                )
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.axis, ctx.split = axis, split
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        q, k, v, out, lse = ctx.saved_tensors
        rank, dtype = comm.mesh().rank(ctx.axis), accumulation_dtype(q.dtype)
        dq = torch.zeros_like(q, dtype=dtype)
        gradients = GradientRing(k, ctx.axis, dtype)
        for owner, k_theirs, v_theirs in key_value_ring(k, v, ctx.axis):
            block = visible(rank, owner, k.shape[2], ctx.split)
            if block is None:
                gradients.add(owner, None)
                continue
            rows, keys, causal = block
            dq_block, dk, dv = attend_backward(
                dout[:, :, rows],
                q[:, :, rows],
                k_theirs[:, :, keys],
                v_theirs[:, :, keys],
                out[:, :, rows],
                lse[:, :, rows],
                causal,
            )
            dq[:, :, rows] += dq_block
            gradients.add(owner, (keys, dk, dv))
        return *(x.to(q.dtype) for x in (dq, *gradients.home())), None, None


# The two others.


def ulysses_attention(
    q_BNSE: torch.Tensor,
    k_BKSE: torch.Tensor,
    v_BKSE: torch.Tensor,
    axis: str = "cp",
    split: Split = "zigzag",
) -> torch.Tensor:
    """The same result, by exchanging heads: all tokens of N/c heads are attended to on this rank.

    Work per rank is equal under either split. With fewer key-value heads than ranks each is sent
    to c/K ranks. Raises ValueError if c does not divide N, or if of c and K neither divides the
    other.
    """
    _check(q_BNSE, k_BKSE, v_BKSE, split)
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


def gathered_attention(
    q_BNSE: torch.Tensor,
    k_BKSE: torch.Tensor,
    v_BKSE: torch.Tensor,
    axis: str = "cp",
    split: Split = "zigzag",
    documents_BS: torch.Tensor | None = None,
) -> torch.Tensor:
    """The simple version: every rank fetches all keys and values and masks by global position.

    It computes all S * c*S scores, also those that the mask throws away, and holds all of K and V.
    No order is needed: the mask compares positions, whatever the permutation. That is why Llama 3
    gathers (arXiv 2407.21783, section 3.3.2): any mask can be had, that of packed documents too.

    documents_BS: which document each token belongs to, of the *whole* sequences in their order
    (integers, the same on all ranks); a token then sees its own document only. Raises ValueError
    if it has another shape than (B, c*S).
    """
    _check(q_BNSE, k_BKSE, v_BKSE, split)
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


def _check(q_BNSE: torch.Tensor, k_BKSE: torch.Tensor, v_BKSE: torch.Tensor, split: Split) -> None:
    (b, n, s, e), (_, kv_heads, *_) = q_BNSE.shape, k_BKSE.shape
    if k_BKSE.shape != (b, kv_heads, s, e) or v_BKSE.shape != k_BKSE.shape or n % kv_heads:
        raise ValueError(
            f"q, k and v are {tuple(q_BNSE.shape)}, {tuple(k_BKSE.shape)} and "
            f"{tuple(v_BKSE.shape)}; they should be (B, N, S, E), (B, K, S, E) and (B, K, S, E), "
            "K dividing N"
        )
    if s % len(chunks(0, 1, split)):
        raise ValueError(
            f"each rank holds {s} tokens, which are not two equal chunks; a zig-zag split needs "
            "a sequence that 2 * cp divides"
        )
