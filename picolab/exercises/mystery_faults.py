"""Faults that cost time and change no number, in the style of `debug.faults`.

They are not in its catalogue: that one is for what the oracle must catch, and the oracle compares
numbers. Used in mystery runs only, by the same `with fault.applied(layout):` inside a rank.
"""

import time
from contextlib import contextmanager

import torch

from picolab import comm
from picolab.debug.faults import CATALOGUE, Fault, patched
from picolab.parallel import data
from picolab.training import trainer

LATE_S = 0.04  # far above a step's own noise on a busy laptop

OWN: dict[str, Fault] = {}


def find(name: str | None) -> Fault | None:
    """One of these, or one of the catalogue; None is no fault."""
    return None if name is None else OWN.get(name) or CATALOGUE[name]


def _fault(name: str, what: str, where_seen: str):
    def register(patch):
        OWN[name] = Fault(name, what, where_seen, "dp", contextmanager(patch))
        return patch

    return register


@_fault(
    "no-sync-forgotten",
    "the gradients of every micro-batch are summed over the replicas at once, and then added up",
    "karpathy/nanochat PR 33, pytorch/pytorch issue 43201 (accumulation without no_sync)",
)
def _no_sync_forgotten(layout):
    owner = data.DataParallelOptimizer
    real_no_sync, real_finish = owner.no_sync, owner.finish
    sums: dict[int, torch.Tensor] = {}  # of earlier micro-batches, by bucket

    @contextmanager
    def no_sync(self):
        with real_no_sync(self):
            yield
        for i, bucket in enumerate(self._buckets):
            comm.all_reduce(bucket.flat, self.axis, "dp: gradient bucket")
            sums[i] = sums[i] + bucket.flat if i in sums else bucket.flat.clone()
            bucket.flat.zero_()  # gradients are views of it: the next micro-batch starts at zero

    def finish(self):
        real_finish(self)
        for i, bucket in enumerate(self._buckets):
            bucket.flat += sums.pop(i)

    with patched(owner, "no_sync", no_sync), patched(owner, "finish", finish):
        yield


@_fault(
    "bucket-per-parameter",
    "every gradient has an all-reduce of its own",
    "arXiv 2006.15704, section 3.2.2 (why torch's DDP has buckets)",
)
def _bucket_per_parameter(layout):
    owner = data.DataParallelOptimizer
    real = owner._fill_buckets
    with patched(owner, "_fill_buckets", lambda self, bucket_bytes: real(self, 1)):
        yield


@_fault(
    "gradients-in-fp64",
    "gradients are cast to fp64, summed over the replicas, and cast back",
    "no public report; like Megatron-LM's --accumulate-allreduce-grads-in-fp32, which doubles the "
    "bytes of a bf16 model's gradients and says so",
)
def _gradients_in_fp64(layout):
    real = comm.all_reduce

    def all_reduce(x, axis, why, op="sum", async_op=False):
        if why != "dp: gradient bucket":
            return real(x, axis, why, op=op, async_op=async_op)
        x.copy_(real(x.double(), axis, why, op=op))
        return comm.Pending(None, x, 0.0, ()) if async_op else x

    with patched(comm, "all_reduce", all_reduce):
        yield


def _late(rank: int, what: str, where_seen: str) -> None:
    def patch(layout):
        real = trainer.next_batch

        def next_batch(*args):
            if torch.distributed.get_rank() == rank:
                time.sleep(LATE_S)
            return real(*args)

        with patched(trainer, "next_batch", next_batch):
            yield

    _fault(f"rank-{rank}-late", what, where_seen)(patch)


_late(
    1,
    "rank 1 takes longer to get its batch; all others wait for it in the next collective",
    "deepspeedai/DeepSpeed PR 3579 (waiting for a late rank is logged as communication)",
)
_late(
    0,
    "rank 0 does something on its own in every step; all others wait for it",
    "the same, with the rank that usually writes the logs",
)
