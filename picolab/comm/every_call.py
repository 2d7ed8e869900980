"""Sees every way in which a rank communicates, down to torch's dispatcher.

    with EveryCall():
        learner(x)              # whatever it calls is in the ledger

`picolab.comm` writes the ledger, and `raw.watch` does so for the common functions of
`torch.distributed`. Around them there are many more ways: `gather`, `scatter`, `reduce`, those
for objects, `torch.distributed.nn`, functional collectives, methods of a process group, and
names that were imported before anybody watched. All of them end in an operator of torch's
dispatcher, c10d::... or _c10d_functional::..., and there they are seen. Not seen is what a thread
of the function's own does, and DDP's reducer, which has no Python above it (its constructor is
seen). Each torch operator passes through Python meanwhile, so this is for the judge of an
exercise and not for training.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from picolab.costs import ring_bytes
from picolab.monitoring.ledger import current

# Operators without the _ of those that work in place -> op in the ledger.
_OPS = {
    "allreduce": "all_reduce",
    "allreduce_coalesced": "all_reduce",
    "all_reduce": "all_reduce",
    "all_reduce_coalesced": "all_reduce",
    "allgather": "all_gather",
    "_allgather_base": "all_gather",
    "allgather_coalesced": "all_gather",
    "allgather_into_tensor_coalesced": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "all_gather_into_tensor_out": "all_gather",
    "all_gather_into_tensor_coalesced": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "_reduce_scatter_base": "reduce_scatter",
    "reduce_scatter_tensor": "reduce_scatter",
    "reduce_scatter_tensor_out": "reduce_scatter",
    "reduce_scatter_tensor_coalesced": "reduce_scatter",
    "alltoall": "all_to_all",
    "alltoall_base": "all_to_all",
    "all_to_all_single": "all_to_all",
    "broadcast": "broadcast",
    "send": "send",
    "recv": "recv",
    "recv_any_source": "recv",
    "barrier": "barrier",
    "monitored_barrier": "barrier",
}  # any other has its own name: reduce, gather, scatter, and what torch will add
_SPACES = ("c10d", "_c10d_functional", "_c10d_functional_autograd")
_LOCAL = ("wait_tensor", "_wrap_tensor_autograd")  # operators there that send nothing
_ON_THE_WIRE = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send")
_HERE = str(Path(__file__).parent)
_TORCHS = str(Path(dist.__file__).parent)


class EveryCall(TorchDispatchMode):
    """While it is entered, calls that nobody else writes down are entries with the axis "raw".

    `followed`: the names of those that wrote into a result of autograd, which does not learn of it.
    """

    def __init__(self):
        super().__init__()
        self.followed: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if func.namespace not in _SPACES or name in _LOCAL:
            return func(*args, **kwargs)
        called, counted = _who_called()
        if name.endswith("_") and torch.is_grad_enabled():
            tensors = _tensors([*args, *kwargs.values()])
            self.followed += [called or name] * any(not tensor.is_leaf for tensor in tensors)
        if counted:
            return func(*args, **kwargs)
        op = _OPS.get(name.removesuffix("_"), name.removesuffix("_"))
        if "object" in called:
            op = called
        ranks = _ranks((*args, *kwargs.values()))
        start = current.enter(
            f"{called or op} of ranks {ranks} (torch.distributed)", ("raw", ranks)
        )
        result = func(*args, **kwargs)
        sizes = [_bytes(one) for one in (*args, *kwargs.values(), result)]
        dtypes = [str(t.dtype).removeprefix("torch.") for one in args for t in _tensors(one)]
        payload = 0 if op == "barrier" else max(sizes)
        sent = ring_bytes(op, payload, len(ranks)) if op in _ON_THE_WIRE else 0.0
        dtype, reason = (dtypes or [""])[0], f"torch.distributed.{called or name}"
        what = (op, "raw", ranks, dtype, payload, sent, reason)
        current.record(*what, start, 0.0, 0.0, peer=_peer(name, args, ranks))
        return result


def _who_called() -> tuple[str, bool]:
    """The function of torch.distributed that was called first, and whether one of `picolab.comm`
    stands above it, which writes its own entry.
    """
    called, frame = "", sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_HERE) and file != __file__:
            return called, True
        if file.startswith(_TORCHS) and frame.f_code.co_name != "wrapper":
            called = frame.f_code.co_name
        frame = frame.f_back
    return called, False


def _peer(name: str, args: tuple, ranks: tuple[int, ...]) -> int | None:
    """Of a message, the global rank at its other end: (tensors, group, index in the group, tag)."""
    return ranks[args[2]] if name in ("send", "recv_") else None


def _ranks(values: tuple) -> tuple[int, ...]:
    """Of the group that is among the operator's arguments."""
    group = group_of(values)
    ranks = range(dist.get_world_size()) if group is None else dist.get_process_group_ranks(group)
    return tuple(ranks)


def group_of(values: Iterable) -> dist.ProcessGroup | None:
    """The group that is among the arguments of a c10d operator, itself or by its name."""
    for value in values:
        if isinstance(value, torch.ScriptObject) and "ProcessGroup" in str(value._type()):
            return dist.ProcessGroup.unbox(value)
        if isinstance(value, str):
            try:
                return torch._C._distributed_c10d._resolve_process_group(value)
            except (ValueError, RuntimeError):
                continue  # the name of a reduction
    return None


def _tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for one in value for tensor in _tensors(one)]
    return []


def _bytes(value) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(value))
