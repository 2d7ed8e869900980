"""Calls of `torch.distributed` that do not go through `picolab.comm` are counted too.

An exercise may call `dist.all_reduce` itself, and a rank that hangs in one should be able to say
so. So in each rank torch's Python functions are replaced by ones that write the same ledger
entry, with the axis "raw" and the reason "torch.distributed.NAME". What torch calls from C++
(DDP's reducer) is not seen."""

import functools

import torch
import torch.distributed as dist

from picolab.comm.collectives import Pending
from picolab.costs import ring_bytes
from picolab.monitoring.ledger import current

# name -> (op in the ledger, position and name of the tensor whose bytes are the payload)
_WATCHED = {
    "all_reduce": ("all_reduce", 0, "tensor"),
    "all_gather_into_tensor": ("all_gather", 0, "output_tensor"),
    "reduce_scatter_tensor": ("reduce_scatter", 1, "input"),
    "all_to_all_single": ("all_to_all", 1, "input"),
    "broadcast": ("broadcast", 0, "tensor"),
    "send": ("send", 0, "tensor"),
    "isend": ("send", 0, "tensor"),
    "recv": ("recv", 0, "tensor"),
    "irecv": ("recv", 0, "tensor"),
    "barrier": ("barrier", None, None),
    "all_gather": ("all_gather", 0, "tensor_list"),
    "all_gather_single": ("all_gather", 0, "output_tensor"),  # torch 2.13's names
    "reduce_scatter_single": ("reduce_scatter", 1, "input"),
}


class _PendingWork(Pending):
    """A watched asynchronous call: waits like torch's Work and passes every other question on to
    it.
    """

    def wait(self, *args, **kwargs):
        super().wait()
        return True

    def __getattr__(self, name):
        return getattr(self.__dict__["_work"], name)


def watch() -> None:
    """Put the counting functions in place. Called once in each rank, before its function; twice
    changes nothing.
    """
    for name, (op, position, keyword) in _WATCHED.items():
        original = getattr(dist, name, None)
        if original is not None and not hasattr(original, "_picolab_original"):
            setattr(dist, name, _counting(original, name, op, position, keyword))
    if dist.P2POp is _P2POp:
        dist.P2POp, dist.batch_isend_irecv = _UnwrappedP2POp, _batch_isend_irecv


_P2POp, _batch = dist.P2POp, dist.batch_isend_irecv


class _UnwrappedP2POp(_P2POp):
    """torch checks that the operation is its own isend or irecv."""

    def __new__(cls, op, *args, **kwargs):
        return _P2POp.__new__(cls, getattr(op, "_picolab_original", op), *args, **kwargs)

    def __init__(self, op, *args, **kwargs):
        super().__init__(getattr(op, "_picolab_original", op), *args, **kwargs)


def _batch_isend_irecv(operations):
    """Counts each operation of a batch when it is issued; its time is that of the issue."""
    for one in operations:
        op = "send" if one.op is _P2POp_isend else "recv"
        x, name = one.tensor, f"batch_isend_irecv ({op})"
        payload = x.numel() * x.element_size()
        ranks = tuple(dist.get_process_group_ranks(one.group or dist.group.WORLD))
        dtype = str(x.dtype).removeprefix("torch.")
        start = current.enter(f"{name}: {dtype}{[*x.shape]} (torch.distributed)")
        sent = ring_bytes(op, payload, len(ranks))
        reason = "torch.distributed.batch_isend_irecv"
        what = (op, "raw", ranks, dtype, payload, sent, reason)
        current.record(*what, start, 0.0, 0.0, peer=one.peer)
    return _batch(operations)


_P2POp_isend = dist.isend


def _peer(op: str, ranks: tuple[int, ...], args: tuple, kwargs: dict) -> int | None:
    """The global rank at the other end of a message; None of collectives, and where any may send.

    It is the second argument, called dst or src; or group_dst or group_src, within the group.
    """
    if op not in ("send", "recv"):
        return None
    within = kwargs.get("group_dst", kwargs.get("group_src"))
    if within is not None:  # (torch itself refuses one that is not there)
        return ranks[within] if within in range(len(ranks)) else None
    return args[1] if len(args) > 1 else kwargs.get("dst", kwargs.get("src"))


def _counting(original, name, op, position, keyword):
    @functools.wraps(original)
    def call(*args, **kwargs):
        x = None
        if position is not None:
            x = args[position] if len(args) > position else kwargs.get(keyword)
        tensors = x if isinstance(x, list | tuple) else [x] if isinstance(x, torch.Tensor) else []
        payload = sum(t.numel() * t.element_size() for t in tensors)
        dtype = str(tensors[0].dtype).removeprefix("torch.") if tensors else ""
        shape = list(tensors[0].shape) if tensors else ""
        group = kwargs.get("group")
        ranks = tuple(dist.get_process_group_ranks(group or dist.group.WORLD))
        entry = (op, "raw", ranks, dtype, payload, ring_bytes(op, payload, len(ranks)))
        entry = (*entry, f"torch.distributed.{name}")
        where = f"ranks ({', '.join(map(str, ranks))})"
        peer = _peer(op, ranks, args, kwargs)
        end = "" if peer is None else f" {'to' if op == 'send' else 'from'} {peer}"
        what = f"{name} of {where}: {dtype}{shape}{end} (torch.distributed.{name})"
        start = current.enter(what, ("raw", ranks) if peer is None else ("raw", ranks, op, peer))
        work = original(*args, **kwargs)
        if kwargs.get("async_op") or name in ("isend", "irecv"):
            works = [work] if work is not None else []
            pending = _PendingWork(works, x, start, entry, peers=(peer,))
            pending.__dict__["_work"] = work
            return pending
        end = current.now()
        current.record(*entry, start, end - start, end - start, peer=peer)
        return work

    call._picolab_original = original
    return call
