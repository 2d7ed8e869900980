"""How a sequence that is split over ranks talks: keys and values go round, or heads are exchanged.

**Ring.** Every rank keeps its queries and passes keys and values on, c - 1 times, so that every
block meets every rank. K and V are one message, with their own number of heads (GQA: repeating
them to the query heads first would send N/K times as much).

    hop 0      rank r holds K,V of rank r
    hop j      ... of rank r - j (mod c), which came from the left; it is passed on to the right

Backward they go round again, and behind them the gradients: whoever holds a block adds its share to
that block's dK and dV and passes them on with it. The owner's own share stays at home, so dK and dV
leave from the first rank that is not the owner and need c - 1 hops as well, the last of which
brings them home. They are sums over ranks and travel in fp32 (fp64 where the inputs are).

**Ulysses.** One all-to-all turns "all heads of 1/c of the sequence" into "1/c of the heads of all
of the sequence", and another turns the result back.

Traffic of a layer: bytes that one rank sends, with b sequences of s tokens in a micro-batch, N
query and K key-value heads of size E, w bytes an element, and kv = 2 b K (s/c) E, the elements of
one rank's K and V:

    ring, forward       (c-1) kv w
    ring, backward      (c-1) kv w + (c-1) kv max(w, 4)
    Ulysses, forward    (c-1)/c * b (s/c) E (N + 2 K') w  +  (c-1)/c * b (s/c) E N w
    Ulysses, backward   the same
    all-gather          (c-1) kv w in each direction, and all of K and V in memory

K' is K, or c where there are fewer key-value heads than ranks. In messages: c - 1 forward and
2(c - 1) backward round the ring, 2 and 2 all-to-alls. The ring's bytes do not shrink as c grows
(they tend to those of all of K and V); Ulysses' do.

Sources: ring attention, arXiv 2310.01889, section 3; DeepSpeed Ulysses, arXiv 2309.14509, section
3. Leaves out the overlap: `comm.shift` returns when both messages are through, so a transfer and
the block's compute come one after the other. `key_value_ring` asks for the next block before it
hands out the present one, which is where an asynchronous exchange would go.
"""

from collections.abc import Iterator

import torch
from torch.autograd.function import once_differentiable

from picolab import comm

KEYS_VALUES = "cp: keys and values"
GRADIENTS = "cp: gradients of keys and values"
TO_HEADS = "cp: sequence to heads"
TO_SEQUENCE = "cp: heads to sequence"


def pass_on(x: torch.Tensor, axis: str, reason: str) -> torch.Tensor:
    """Give x to the right and return what comes from the left (the same shape on every rank)."""
    return comm.shift(x, axis, reason)


def key_value_ring(
    k_BKTE: torch.Tensor, v_BKTE: torch.Tensor, axis: str
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """(owner, k, v) of every rank of the axis, one's own first, then the left neighbour's, ..."""
    mesh = comm.mesh()
    n, me = mesh.size(axis), mesh.rank(axis)
    kv = torch.stack((k_BKTE, v_BKTE)) if n > 1 else (k_BKTE, v_BKTE)
    for hop in range(n):
        # Before the yield: while the caller computes, the next block could be on its way.
        arriving = pass_on(kv, axis, KEYS_VALUES) if hop < n - 1 else None
        yield (me - hop) % n, *kv
        kv = arriving


class GradientRing:
    """dK and dV, which follow their K and V one step behind and end with the owner.

    `add` once for each block, in the order of `key_value_ring`; then `home()` gives this rank's dK
    and dV.
    """

    def __init__(self, like_BKTE: torch.Tensor, axis: str, dtype: torch.dtype):
        self._axis, self._me = axis, comm.mesh().rank(axis)
        self._mine = like_BKTE.new_zeros((2, *like_BKTE.shape), dtype=dtype)
        self._travelling = torch.zeros_like(self._mine)

    def add(self, owner: int, block: tuple[slice, torch.Tensor, torch.Tensor] | None) -> None:
        """block: which of the owner's keys were seen, with their dk and dv; None if none were."""
        if owner == self._me:
            self._accumulate(self._mine, block)
            return
        self._accumulate(self._travelling, block)
        self._travelling = pass_on(self._travelling, self._axis, GRADIENTS)

    def home(self) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(self._mine + self._travelling)

    @staticmethod
    def _accumulate(gradients_2BKTE, block) -> None:
        if block is not None:
            keys, dk, dv = block
            gradients_2BKTE[0, :, :, keys] += dk
            gradients_2BKTE[1, :, :, keys] += dv


def gather_sequence(x: torch.Tensor, axis: str, dim: int = 2) -> torch.Tensor:
    """All ranks' x side by side, in the order of the ranks. Backward: the sum of all ranks'
    gradients of one's own x.
    """
    return _Gather.apply(x, axis, dim)


def exchange_blocks(x: torch.Tensor, axis: str, reason: str, back: str) -> torch.Tensor:
    """x: (c, ...), one block for each rank; result[i] is what rank i had for this one.

    An even all-to-all is its own transpose, so backward is the same exchange of the gradients, with
    the reason `back`.
    """
    return _AllToAll.apply(x, axis, reason, back)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis, dim):
        ctx.axis, ctx.dim = axis, dim
        return comm.all_gather(x, axis, KEYS_VALUES, dim=dim)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return comm.reduce_scatter(dy, ctx.axis, GRADIENTS, dim=ctx.dim), None, None


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis, reason, back):
        ctx.axis, ctx.back = axis, back
        return comm.all_to_all(x.contiguous(), axis, reason)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return comm.all_to_all(dy.contiguous(), ctx.axis, ctx.back), None, None, None
