"""How what is split is dealt out: layers, heads, rows and columns by one rule, the chunks of a
sequence, and the sequences of a step.
"""

from typing import Literal

Split = Literal["contiguous", "zigzag"]


def even_slices(size: int, n: int, blocks: int | None = None) -> list[range]:
    """[0, size) in n contiguous slices, as even as they go, the larger ones first.

    blocks: [0, size) consists of so many equal blocks that stay whole (the rows of one head); then
    blocks are dealt out. Without it, single rows are. Slices beyond `blocks` (or `size`) are empty;
    who cannot use an empty one refuses it beforehand (`Layout.check`).

    Twin: `torch.tensor_split`. Raises ValueError if the blocks would not be equal.
    """
    blocks = size if blocks is None else blocks
    if n < 1:
        raise ValueError(f"{size} cannot be dealt out to {n}; it takes 1 or more")
    if blocks < 1 or size % blocks:
        raise ValueError(f"{size} does not consist of {blocks} equal blocks")
    unit, (each, spare) = size // blocks, divmod(blocks, n)
    ends = [unit * ((i + 1) * each + min(i + 1, spare)) for i in range(n)]
    return [range(start, stop) for start, stop in zip([0, *ends], ends)]


def head_slices(heads: int, kv_heads: int, tp: int, tp_rank: int) -> tuple[range, range]:
    """Which query heads and which key-value heads a rank of tp has: whole groups, or, of more ranks
    than key-value heads, an equal share of the queries and the one head that they read (which
    neighbours then have too)."""
    if tp <= kv_heads:
        group, held = heads // kv_heads, even_slices(kv_heads, tp)[tp_rank]
        return range(held.start * group, held.stop * group), held
    mine = even_slices(heads, tp)[tp_rank]
    kv = tp_rank * kv_heads // tp
    return mine, range(kv, kv + 1)


def zigzag_chunks(rank: int, cp: int) -> tuple[int, int]:
    """Which two of a sequence's 2 * cp equal chunks a rank of cp holds: a light one and a heavy one
    of causal attention, so that all ranks have the same work.
    """
    return rank, 2 * cp - 1 - rank


def causal_share(rank: int, cp: int, split: Split = "contiguous") -> float:
    """Which share of all scores of causal attention falls to a rank of cp.

        contiguous   (2r + 1) / cp^2, so (2cp - 1) / cp^2 for the last: 7/16 of cp = 4
        zigzag       1 / cp

    Of n equal chunks of the sequence, the queries of chunk j see j whole chunks and half of their
    own: 2j + 1 of n^2 parts. (A score on the diagonal counts as a half of one.) Source: arXiv
    2311.09431. `parallel.sequence_split.causal_work` counts it block by block.
    """
    if not 0 <= rank < cp:
        raise ValueError(f"rank is {rank}, and the ranks of cp{cp} are 0 to {cp - 1}")
    n, own = (cp, (rank,)) if split == "contiguous" else (2 * cp, zigzag_chunks(rank, cp))
    return sum(2 * j + 1 for j in own) / n**2


def replica_sequences(
    position: int, dp_rank: int, dp_size: int, micro_batch: int, accumulate: int
) -> list[int]:
    """The places of one replica's sequences in a global batch that begins at `position`."""
    first = [position + (m * dp_size + dp_rank) * micro_batch for m in range(accumulate)]
    return [f + b for f in first for b in range(micro_batch)]
