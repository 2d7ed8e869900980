"""Every collective of a training step, as a thin function that takes an axis and a reason and
writes the ledger.

    comm.all_reduce(x, "tp", reason="tp: row-parallel output")

Each function does four things: says in the beacon which collective it enters, runs torch's own,
stops the clock, and records one entry. On an axis of size 1 nothing travels, so nothing is done
and nothing is recorded.

Shapes: x is any tensor, contiguous where it is written to; "n" is the size of the axis. Errors: an
unknown axis is a ValueError, and so is a tensor with gaps that would be written in place (gloo
writes into the gaps, which are another's numbers) and a result of autograd that would be. Ranks
that disagree about the shape make gloo abort the process; the launcher then compares the beacons
and names the odd rank."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.distributed as dist

from picolab.comm.mesh import mesh
from picolab.costs import ring_bytes
from picolab.monitoring.ledger import RankLedger, current

ReduceOp = Literal["sum", "avg", "max", "min", "product"]
_REDUCE = {
    "sum": dist.ReduceOp.SUM,
    "avg": dist.ReduceOp.AVG,
    "max": dist.ReduceOp.MAX,
    "min": dist.ReduceOp.MIN,
    "product": dist.ReduceOp.PRODUCT,
}
# torch's own functions, kept before `raw.watch` puts counting ones in their place.
_all_reduce = dist.all_reduce
# (torch 2.13 renamed two of them; 2.11 knows the old names only)
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_to_all = dist.all_to_all_single
_broadcast = dist.broadcast
_isend, _irecv, _batch, _P2P = dist.isend, dist.irecv, dist.batch_isend_irecv, dist.P2POp
_barrier = dist.barrier


def ledger() -> RankLedger:
    """This rank's ledger: `.snapshot().table()`, `.step`, `.flush()`."""
    return current


_after_a_wait = 0.0  # seconds


@contextmanager
def unhurried() -> Iterator[None]:
    """For who counts bytes: inside, each wait is followed by half a millisecond for the library.

    A thread of gloo first wakes whoever waits for a call and lets go of the call's tensors when it
    has the core again, which on a busy machine is late enough to be counted as alive.
    """
    global _after_a_wait
    before, _after_a_wait = _after_a_wait, 5e-4
    try:
        yield
    finally:
        _after_a_wait = before


class Pending:
    """A collective under way. `wait()` returns its `tensor`, and only then is the entry written.

    Of a shift there are two entries, and one wait covers both: the second has no time of its own.
    torch's work keeps the tensors that travel alive; not to change them until then is the
    caller's part.
    """

    def __init__(self, works, tensor: torch.Tensor, start: float, *entries: tuple, peers=(None,)):
        self._works, self.tensor, self._start = works, tensor, start
        self._entries, self._peers = entries, peers  # a peer for each entry, None of collectives
        self._call = current.go_on() if works is not None else 0

    def wait(self) -> torch.Tensor:
        if self._works is not None:
            waited = current.stand_still(self._call)
            for work in self._works:
                work.wait()
            end = current.now()
            (first, peer), *rest = zip(self._entries, self._peers)
            current.record(*first, waited, end - self._start, end - waited, peer=peer)
            for entry, peer in rest:
                current.record(*entry, end, 0.0, 0.0, leaves=False, peer=peer)
            self._works = None
            if _after_a_wait:
                time.sleep(_after_a_wait)
        return self.tensor

    def done(self) -> bool:
        """True if `wait()` would return at once."""
        return self._works is None or all(work.is_completed() for work in self._works)


def all_reduce(
    x: torch.Tensor, axis: str, reason: str, op: ReduceOp = "sum", async_op: bool = False
) -> torch.Tensor | Pending:
    """Every rank of the axis ends with the sum (or max, ...) of all their x. In place; returns x.

    With async_op, returns a `Pending` whose `wait()` gives x. Payload: bytes of x.
    """
    _check_contiguous("all_reduce", x, reason)
    m = mesh()
    if m.size(axis) == 1:
        return Pending(None, x, 0.0, ()) if async_op else x
    _refuse_what_autograd_follows("all_reduce", x)
    entry = _entry("all_reduce", axis, m, x, _bytes(x), reason)
    start = _enter(entry, x)
    if not async_op and _goes_in_pairs(m, axis, x, op):
        _exchange_and_combine(m, axis, x, op)
        return _done(entry, start, x)
    work = _all_reduce(x, op=_REDUCE[op], group=m.group(axis), async_op=async_op)
    return Pending([work], x, start, entry) if async_op else _done(entry, start, x)


# Up to this size two ranks do better to swap their tensors than to run gloo's all-reduce: measured
# on two cores, CPU ms a rank, 128 KB 0.06 against 0.11, 512 KB 0.12 against 0.16, 1 MB 0.46 against
# 0.23 (tests/benchmarks/pairs.py prints the table).
PAIR_BYTES = 512 * 1024


def _goes_in_pairs(m, axis: str, x: torch.Tensor, op: str) -> bool:
    return (
        m.size(axis) == 2
        and op in ("sum", "max")
        and _bytes(x) <= PAIR_BYTES
        and x.device.type == "cpu"
        and x.numel() > 0
    )


def _exchange_and_combine(m, axis: str, x: torch.Tensor, op: str) -> None:
    """An all-reduce between two ranks: each gives the other its x (the bytes a ring would send,
    too) and combines. a + b is b + a to the last bit, so both end with the same."""
    # As torch's collectives do it: in place, without telling autograd (the caller does that).
    flat = x.data.view(-1)
    theirs = torch.empty_like(flat)
    second = dist.get_rank() == m.ranks(axis)[1]
    sizes = [flat.numel(), 0] if second else [0, flat.numel()]
    _all_to_all(theirs, flat, sizes, sizes, group=m.group(axis))
    if op == "sum":
        flat += theirs
    else:
        torch.maximum(flat, theirs, out=flat)


def _swap(m, axis: str, mine: torch.Tensor, both: torch.Tensor, async_op: bool, copy: bool):
    """An all-gather between two ranks: each gives the other its shard, the bytes of a ring, in half
    the CPU time of gloo's (1.3 ms against 2.3 for 1.4 MB, while something is computed)."""
    second = dist.get_rank() == m.ranks(axis)[1]
    first_half, second_half = both.split(mine.numel())
    own, theirs = (second_half, first_half) if second else (first_half, second_half)
    if copy:
        own.copy_(mine)
    sizes = [mine.numel(), 0] if second else [0, mine.numel()]
    return _all_to_all(theirs, mine, sizes, sizes, group=m.group(axis), async_op=async_op)


def all_gather(
    x: torch.Tensor, axis: str, reason: str, dim: int = 0, async_op: bool = False, own: bool = True
) -> torch.Tensor | Pending:
    """The n shards of the axis, concatenated along `dim`. x: this rank's shard (the same shape on
    every rank). own False: its place in the result may be left unwritten, where that saves a copy.

    With async_op (along dim 0), returns a `Pending` whose `wait()` gives them. Payload: bytes of
    the result.
    """
    assert dim == 0 or not async_op
    m = mesh()
    n = m.size(axis)
    if n == 1:
        return Pending(None, x, 0.0, ()) if async_op else x
    out = x.new_empty((n * x.shape[0], *x.shape[1:]) if x.dim() else (n,))
    entry = _entry("all_gather", axis, m, out, _bytes(out), reason)
    start = _enter(entry, x)
    if n == 2 and x.device.type == "cpu" and x.numel() > 0:
        work = _swap(m, axis, x.data.contiguous().view(-1), out.view(-1), async_op, own)
    else:
        work = _all_gather(out, x.contiguous(), group=m.group(axis), async_op=async_op)
    if async_op:
        return Pending([work], out, start, entry)
    _done(entry, start, out)
    if dim == 0 or x.dim() == 0:
        return out
    return torch.cat(out.chunk(n), dim=dim)


def reduce_scatter(
    x: torch.Tensor,
    axis: str,
    reason: str,
    dim: int = 0,
    op: ReduceOp = "sum",
    async_op: bool = False,
) -> torch.Tensor | Pending:
    """The sum of all ranks' x, of which this rank gets its 1/n along `dim`. Payload: bytes of x.

    With async_op, returns a `Pending` whose `wait()` gives it. gloo makes it of an all-reduce and
    moves twice a ring's bytes (pytorch issue 118911), which test_wire.py shows.
    """
    m = mesh()
    n = m.size(axis)
    if n == 1:
        return Pending(None, x, 0.0, ()) if async_op else x
    if x.shape[dim] % n:
        raise ValueError(
            f"reduce_scatter cannot split {x.shape[dim]} rows (dim {dim}) over {n} ranks"
        )
    whole = (x if dim == 0 else torch.cat(x.chunk(n, dim=dim))).contiguous()
    out = whole.new_empty((whole.shape[0] // n, *whole.shape[1:]))
    entry = _entry("reduce_scatter", axis, m, whole, _bytes(whole), reason)
    start = _enter(entry, x)
    work = _reduce_scatter(out, whole, op=_REDUCE[op], group=m.group(axis), async_op=async_op)
    return Pending([work], out, start, entry) if async_op else _done(entry, start, out)


def all_to_all(
    x: torch.Tensor,
    axis: str,
    reason: str,
    output_splits: list[int] | None = None,
    input_splits: list[int] | None = None,
    async_op: bool = False,
) -> torch.Tensor | Pending:
    """Rank i's j-th block of rows goes to rank j. Splits are rows; without them x is cut evenly.

    With async_op, returns a `Pending` whose `wait()` gives what came. Payload: bytes of this rank's
    input.
    """
    m = mesh()
    if m.size(axis) == 1:
        return Pending(None, x, 0.0, ()) if async_op else x
    rows = x.shape[0] if output_splits is None else sum(output_splits)
    out = x.new_empty((rows, *x.shape[1:]))
    entry = _entry("all_to_all", axis, m, x, _bytes(x), reason)
    start = _enter(entry, x)
    work = _all_to_all(
        out, x.contiguous(), output_splits, input_splits, group=m.group(axis), async_op=async_op
    )
    return Pending([work], out, start, entry) if async_op else _done(entry, start, out)


def broadcast(x: torch.Tensor, axis: str, reason: str, source: int = 0) -> torch.Tensor:
    """Every rank ends with the x of the axis's rank `source`. In place; returns x."""
    _check_contiguous("broadcast", x, reason)
    m = mesh()
    if m.size(axis) == 1:
        return x
    _refuse_what_autograd_follows("broadcast", x)
    entry = _entry("broadcast", axis, m, x, _bytes(x), reason)
    start = _enter(entry, x)
    _broadcast(x, src=m.ranks(axis)[source], group=m.group(axis))
    return _done(entry, start, x)


def send(
    x: torch.Tensor, to: int, axis: str, reason: str, async_op: bool = False
) -> Pending | None:
    """Give x to the rank with index `to` along the axis; returns once it may be changed again.

    With async_op it returns at once, and x may be changed after the `Pending`'s `wait()`.
    """
    m = mesh()
    peer = m.ranks(axis)[to]
    entry = _entry("send", axis, m, x, _bytes(x), reason)
    start = _enter(entry, x, f" to {peer}", ("send", axis, peer))
    work = _isend(x.contiguous(), peer, group=m.group(axis))
    if async_op:
        return Pending([work], x, start, entry, peers=(peer,))
    work.wait()
    _done(entry, start, x, peer)
    return None


def recv(x: torch.Tensor, source: int, axis: str, reason: str) -> torch.Tensor:
    """Fill x with what the rank with index `source` along the axis sends. In place; returns x."""
    _check_contiguous("recv", x, reason)
    m = mesh()
    peer = m.ranks(axis)[source]
    entry = _entry("recv", axis, m, x, _bytes(x), reason)
    start = _enter(entry, x, f" from {peer}", ("recv", axis, peer))
    _irecv(x, peer, group=m.group(axis)).wait()
    return _done(entry, start, x, peer)


def exchange(
    outgoing: torch.Tensor, to: int, incoming: torch.Tensor, source: int, axis: str, reason: str
) -> torch.Tensor:
    """Send one tensor and receive another at the same time, which a ring needs: were all to send
    first, all would wait.

    Indices are along the axis. Fills and returns `incoming`; two entries, a send and a recv.
    """
    _check_contiguous("exchange", incoming, reason)
    m = mesh()
    sent = _entry("send", axis, m, outgoing, _bytes(outgoing), reason)
    received = _entry("recv", axis, m, incoming, _bytes(incoming), reason)
    ranks, group = m.ranks(axis), m.group(axis)
    start = _enter(sent, outgoing, f" to {ranks[to]} while receiving from {ranks[source]}")
    both = [
        _P2P(_isend, outgoing.contiguous(), ranks[to], group=group),
        _P2P(_irecv, incoming, ranks[source], group=group),
    ]
    for work in _batch(both):
        work.wait()
    end = current.now()
    # One wait covers both; the receive is booked with no time of its own, so that times still add
    # up.
    current.record(*sent, start, end - start, end - start, peer=ranks[to])
    current.record(*received, end, 0.0, 0.0, leaves=False, peer=ranks[source])
    return incoming


def shift(
    x: torch.Tensor, axis: str, reason: str, async_op: bool = False
) -> torch.Tensor | Pending:
    """Every rank of the axis gives x to its right neighbour; returns what came from the left.

    With async_op, returns a `Pending` whose `wait()` gives what came; until then x may be read and
    not changed.

    The same shape on every rank. Two entries, a send and a recv, as of `exchange`; but all ranks of
    the axis must call it, and so it can be an all-to-all whose other blocks are empty. gloo does
    that with a third of the CPU time of a send and a receive (0.2 to 0.5 ms against 0.8 to 2.8 ms
    for 256 KB between two ranks); why its threads burn any while they wait, io_threads.py says.
    """
    m = mesh()
    n, me, ranks = m.size(axis), m.rank(axis), m.ranks(axis)
    if n == 1:
        return Pending(None, x, 0.0, ()) if async_op else x
    right, left = (me + 1) % n, (me - 1) % n
    outgoing = x.contiguous().view(-1)
    incoming = torch.empty_like(outgoing)
    sizes = {right: outgoing.numel()}, {left: incoming.numel()}
    to, source = ([size.get(rank, 0) for rank in range(n)] for size in sizes)
    sent = _entry("send", axis, m, outgoing, _bytes(outgoing), reason)
    received = _entry("recv", axis, m, incoming, _bytes(incoming), reason)
    start = _enter(sent, x, f" to {ranks[right]} while receiving from {ranks[left]}")
    work = _all_to_all(incoming, outgoing, source, to, group=m.group(axis), async_op=async_op)
    incoming = incoming.view_as(x)
    if async_op:
        peers = ranks[right], ranks[left]
        return Pending([work], incoming, start, sent, received, peers=peers)
    _done(sent, start, None, ranks[right])
    current.record(*received, current.now(), 0.0, 0.0, leaves=False, peer=ranks[left])
    return incoming


def barrier(axis: str = "world", reason: str = "barrier") -> None:
    """No rank of the axis leaves before all have entered."""
    m = mesh()
    if m.size(axis) == 1:
        return
    entry = ("barrier", axis, m.ranks(axis), "", 0, 0.0, reason)
    start = current.enter(f"barrier over {axis} of ranks {m.ranks(axis)} ({reason})", axis)
    _barrier(group=m.group(axis))
    _done(entry, start, None)


def _check_contiguous(op: str, x: torch.Tensor, reason: str) -> None:
    if not x.is_contiguous():
        raise ValueError(
            f"{op} writes into a tensor of shape {tuple(x.shape)} that is not contiguous (strides "
            f"{x.stride()}; {reason}), and would write over its neighbours in memory; give it "
            "x.contiguous(), and copy the result back"
        )


def _bytes(x: torch.Tensor) -> int:
    if x is None:
        raise ValueError(
            "None cannot be sent, only a tensor; is it the .grad of a tensor that did not require "
            "one when it was used?"
        )
    return x.numel() * x.element_size()


_DTYPE_NAMES: dict[torch.dtype, str] = {}
_RANKS_TEXT: dict[tuple[int, ...], str] = {}


def _entry(op, axis, m, x, payload, reason) -> tuple:
    """The fields of a ledger entry that are known before the collective runs."""
    name = _DTYPE_NAMES.get(x.dtype)
    if name is None:
        name = _DTYPE_NAMES[x.dtype] = str(x.dtype).removeprefix("torch.")
    ranks = m.ranks(axis)
    return op, axis, ranks, name, payload, ring_bytes(op, payload, len(ranks)), reason


def _refuse_what_autograd_follows(op: str, x: torch.Tensor) -> None:
    """Written over in place, behind autograd's back, such a tensor has the sum and the gradient of
    the summand: right by chance at most (torch itself only warns)."""
    if x.grad_fn is not None and torch.is_grad_enabled():
        raise ValueError(
            f"{op} changes a tensor that autograd follows, in place, and autograd does not learn "
            "of it: call it in an `autograd.Function` that says what backward does, or on a tensor "
            "that was detached"
        )


def _enter(
    entry: tuple, x: torch.Tensor, detail: str = "", among: str | tuple | None = None
) -> float:
    """among: which calls it is numbered with; None: those of its axis."""
    op, axis, ranks, dtype, _, _, reason = entry
    where = _RANKS_TEXT.get(ranks)
    if where is None:
        where = _RANKS_TEXT[ranks] = f"ranks ({', '.join(map(str, ranks))})"
    what = f"{op} over {axis} of {where}: {dtype}{[*x.shape]}{detail} ({reason})"
    return current.enter(what, axis if among is None else among)


def _done(entry: tuple, start: float, result, peer: int | None = None):
    end = current.now()
    current.record(*entry, start, end - start, end - start, peer=peer)
    if _after_a_wait:
        time.sleep(_after_a_wait)
    return result
