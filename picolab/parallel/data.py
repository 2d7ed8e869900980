"""Data parallelism: the same model on every rank, each with other samples, and the gradients are
summed.

    gradient of the sum over all samples = sum over the ranks of the gradients of their own samples

The loss is divided by the *global* number of valid tokens before it is differentiated, so here
gradients are summed. (Dividing by each rank's own count and then averaging is wrong as soon as the
counts differ.) Two versions stand side by side:

    naive_sync(model)       after backward, one all-reduce a parameter: right, and slow
    DataParallelOptimizer   the same sums in few large pieces, sent while backward still runs

The second keeps the gradients of a group of parameters (a bucket) in one flat buffer:
`parameter.grad` is a view into it. When backward has finished the last gradient of a bucket, the
bucket's all-reduce is started and backward goes on. Buckets are filled in reverse order of the
parameters, which is about the order in which backward finishes them.

Buckets are always *started* in the same order on all ranks, also where they were filled in another:
collectives are matched by their order, and a parameter that one rank did not use would otherwise
pair bucket 3 with bucket 4. Gradients of parameters that this rank did not use count as zero.

Source: arXiv 2006.15704 (torch's DDP). Twin: `torch.nn.parallel.DistributedDataParallel`, which
averages instead and sends rank 0's weights at the start (here all ranks draw the same, see
model/parameters.py); tests/distributed/parallel/test_data.py compares. Leaves out: ZeRO, gradient
compression.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from picolab import comm, costs


def naive_sync(model: nn.Module, axis: str = "dp") -> None:
    """After backward: sum every gradient over the axis, one all-reduce after the other."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:  # not used here, perhaps elsewhere
                parameter.grad = torch.zeros_like(parameter)
            comm.all_reduce(parameter.grad, axis, "dp: gradient of one parameter")


@dataclass
class _Slot:
    """A parameter's place in its bucket."""

    parameter: nn.Parameter
    view: torch.Tensor
    bucket: "_Bucket"
    arrived: bool = False  # its gradient is complete, in the micro-batch that is synchronised
    summed: bool = False  # the view holds a sum over the ranks, to which nothing may be added


@dataclass
class _Bucket:
    flat: torch.Tensor
    slots: list[_Slot] = field(default_factory=list)
    missing: int = 0  # gradients that have not arrived
    pending: comm.Pending | None = None


class DataParallelOptimizer:
    """Sums gradients over an axis, in buckets, while backward runs. Not a `torch.optim` optimizer.

        with data.no_sync():              # all micro-batches but the last
            loss(...).backward()
        loss(...).backward()              # the last one starts the all-reduces
        data.finish()                     # and here they have arrived

    bucket_bytes: a bucket is closed when the next gradient would make it larger. find_unused: ask
    all ranks which parameters were used at all (one small all-reduce a step), so that a parameter
    which no rank used keeps `grad` None and the optimizer leaves it alone; otherwise its gradient
    is zero. Parameters that do not require gradients when this is made are left out.

    `optimizer.zero_grad()` is fine (the next gradient is put back into the bucket). What would add
    to a sum that was already taken is refused with a RuntimeError: a second backward without
    no_sync, a backward after finish without zero_grad, a second finish.

    With it, a step does one all-reduce a bucket on the axis and all ranks end with equal gradients;
    without it, none, and they differ.
    """

    def __init__(
        self,
        model: nn.Module,
        axis: str = "dp",
        bucket_bytes: int = costs.DEFAULT_BUCKET_BYTES,
        find_unused: bool = False,
    ):
        if any(parameter.is_meta for parameter in model.parameters()):
            raise ValueError("the model has no values yet; initialise it before data parallelism")
        self.model, self.axis, self.find_unused = model, axis, find_unused
        self._trainable = [p for p in model.parameters() if p.requires_grad]
        self._frozen = [p for p in model.parameters() if not p.requires_grad]
        self._buckets: list[_Bucket] = []
        self._slots: dict[nn.Parameter, _Slot] = {}
        self._next = 0  # the first bucket that is not started
        self._syncing = True
        if comm.mesh().size(axis) > 1:
            self._fill_buckets(bucket_bytes)
            for parameter in self._trainable:
                parameter.register_post_accumulate_grad_hook(self._arrived)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Gradients of the backward passes inside are only added up here, not over the ranks."""
        before, self._syncing = self._syncing, False
        try:
            yield
        finally:
            self._syncing = before

    def finish(self) -> None:
        """Start what is left, wait for all of it; then every gradient is the sum over the ranks."""
        if not self._buckets:
            return
        if any(parameter.requires_grad for parameter in self._frozen):
            raise RuntimeError(
                "a parameter that was frozen when DataParallelOptimizer was made requires gradients"
                " now, and nobody would sum them; make a new DataParallelOptimizer after unfreezing"
            )
        if any(slot.summed and slot.parameter.grad is slot.view for slot in self._slots.values()):
            raise RuntimeError(
                "finish() was called twice; gradients are summed already, call zero_grad() first"
            )
        used_here = [parameter.grad is not None for parameter in self._trainable]
        for slot in self._slots.values():
            if slot.parameter.grad is None:
                slot.parameter.grad = slot.view.zero_()
        for bucket in self._buckets[self._next :]:
            self._start(bucket)
        # Only now: ranks arrive here with different numbers of buckets started, and collectives
        # are matched by their order.
        used = self._used_anywhere(used_here) if self.find_unused else None
        for bucket in self._buckets:
            bucket.pending.wait()
            bucket.pending, bucket.missing = None, len(bucket.slots)
        for slot in self._slots.values():
            slot.arrived, slot.summed = False, True
        self._next = 0
        if used is not None:
            for parameter, anywhere in zip(self._trainable, used):
                if not anywhere:
                    parameter.grad = None

    def zero_grad(self) -> None:
        """Drop all gradients. Costs nothing: the buffers stay, and the next backward overwrites."""
        for parameter in self._trainable:
            parameter.grad = None

    def _used_anywhere(self, used_here: list[bool]) -> list[int]:
        used = torch.tensor(used_here, dtype=torch.uint8, device=self._buckets[0].flat.device)
        return comm.all_reduce(used, self.axis, "dp: which parameters were used", op="max").tolist()

    def _fill_buckets(self, bucket_bytes: int) -> None:
        kinds: dict[tuple, list[nn.Parameter]] = {}  # a buffer has one dtype and one device
        for parameter in self._trainable:
            kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
        for parameters in kinds.values():
            sizes = [parameter.numel() * parameter.element_size() for parameter in parameters]
            for group in costs.buckets(sizes, bucket_bytes):
                members = [parameters[index] for index in group]
                flat = members[0].new_zeros(sum(parameter.numel() for parameter in members))
                bucket = _Bucket(flat.detach(), missing=len(members))
                views = bucket.flat.split([parameter.numel() for parameter in members])
                for parameter, view in zip(members, views):
                    slot = _Slot(parameter, view.view_as(parameter), bucket)
                    bucket.slots.append(slot)
                    self._slots[parameter] = slot
                self._buckets.append(bucket)

    def _arrived(self, parameter: nn.Parameter) -> None:
        """Called by autograd when it has added a gradient to `parameter.grad`.

        The argument is the parameter, not its gradient: averaging the argument averages weights.
        """
        slot = self._slots[parameter]
        if parameter.grad is not slot.view:
            # The first gradient since zero_grad: autograd made a tensor of its own for it.
            slot.view.copy_(parameter.grad)
            parameter.grad = slot.view
        elif slot.summed:
            raise RuntimeError(
                "this gradient would be added to a sum over all ranks; call zero_grad() after each "
                "finish() (set_to_none=False cannot be told from forgetting it)"
            )
        slot.summed = False
        if not self._syncing:
            return
        if slot.arrived:
            raise RuntimeError(
                "a second backward before finish(): its all-reduces are under way; wrap all "
                "micro-batches but the last in no_sync()"
            )
        slot.arrived = True
        slot.bucket.missing -= 1
        while self._next < len(self._buckets) and self._buckets[self._next].missing == 0:
            self._start(self._buckets[self._next])
            self._next += 1

    def _start(self, bucket: _Bucket) -> None:
        bucket.pending = comm.all_reduce(
            bucket.flat, self.axis, "dp: gradient bucket", async_op=True
        )
