"""How a sequence is cut over ranks, and what that leaves each of them to compute.

Context parallelism gives every rank a share of the tokens of *one* sequence. Everything in a
decoder but attention looks at one token at a time, so a split sequence needs nothing new there
(positions must be the global ones). In attention each query needs the keys and values of all
earlier tokens, wherever they are. Three ways to bring them together, each in a file of its own:

    ring.py        queries stay, keys and values go round; one block of scores at a time
    ulysses.py     all-to-all: each rank gets all tokens of some heads, and gives them back
    gathered.py    the simple version: fetch all keys and values, compute every score, mask

**The cut.** Causal attention gives token i the work of i + 1 scores. Cut into c pieces in order
("contiguous"), the last rank has (2c-1)/c^2 of all work, 7/16 for c = 4, and the others wait. Cut
into 2c chunks, of which rank r takes chunks r and 2c-1-r ("zigzag"), a light one and a heavy one,
all have exactly 1/c.

    zigzag, c = 4     rank 0: 0 7    rank 1: 1 6    rank 2: 2 5    rank 3: 3 4

Letters in names: B batch, S a rank's share of the sequence, N query heads, K key-value heads, E
size of a head. Sources: arXiv 2311.09431 (the imbalance, and striped attention as a cure); zig-zag
is Megatron-LM's, and Llama 3's (arXiv 2407.21783, section 3.3.2). Leaves out: sequences that do not
divide.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from picolab import comm
from picolab.costs import zigzag_chunks

Split = Literal["zigzag", "contiguous"]

# How the sequence is cut.


def chunks(rank: int, cp: int, split: Split = "zigzag") -> tuple[int, ...]:
    """Which chunks a rank holds: r of c, or r and 2c-1-r of 2c. In the order of the sequence."""
    if split == "zigzag":
        return zigzag_chunks(rank, cp)
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


def check_shares(
    q_BNSE: torch.Tensor, k_BKSE: torch.Tensor, v_BKSE: torch.Tensor, split: Split
) -> None:
    """ValueError for shapes that are no attention's, or no share of such a split."""
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
