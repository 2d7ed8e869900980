"""Buckets: gradients of several parameters in one flat buffer, sent while backward still runs.

    backward           ... layer 3        layer 2        layer 1        layer 0
    bucket 0 (3, 2)                       [ its collective ........ ]
    bucket 1 (1, 0)                                                     [ its collective ....

`parameter.grad` is a view into a bucket. When backward has finished the last gradient of a bucket,
the bucket's collective is started and backward goes on. Buckets are filled in reverse order of the
parameters, which is about the order in which backward finishes them.

Buckets are always *started* in the same order on all ranks, also where they were filled in another:
collectives are matched by their order, and a parameter that one rank did not use would otherwise
pair bucket 3 with bucket 4. Gradients of parameters that this rank did not use count as zero.

What is done with a full bucket is the subclass's (`_start`): data.py sums it over the replicas,
zero.py lets each rank sum its own rows, and keeps gradients elsewhere (`_put`).
Source: arXiv 2006.15704, section 3.2 (torch's DDP).
"""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from picolab import comm, costs
from picolab.model.placement import Placement

ADDED_TO_A_SUM = (
    "this gradient would be added to a sum over all ranks; call zero_grad() after each "
    "finish() (set_to_none=False cannot be told from forgetting it)"
)
GONE = (
    "who sums the gradients of this model is gone; keep what parallelize or DataParallelOptimizer "
    "returned as long as the model is trained"
)


# Which parameters a placement looks after, where the replicas of some are not those of others.
Only = Callable[[nn.Parameter], bool]
# Where numbers that travel lie: so many, like a tensor's. A pool of memory may be put there.
Buffer = Callable[[torch.Tensor, int], torch.Tensor]


@dataclass
class Slot:
    """A parameter's place in its bucket."""

    parameter: nn.Parameter
    view: torch.Tensor | None
    bucket: "Bucket"
    arrived: bool = False  # its gradient is complete, in the micro-batch that is synchronised
    summed: bool = False  # the view holds a sum over the ranks, to which nothing may be added


@dataclass
class Bucket:
    flat: torch.Tensor | None
    slots: list[Slot] = field(default_factory=list)
    missing: int = 0  # gradients that have not arrived
    pending: comm.Pending | None = None


def fill_buckets(parameters: list[nn.Parameter], bucket_bytes: int) -> list[Bucket]:
    """Buckets for the gradients of these parameters, each with its memory."""
    buckets = []
    for members in in_groups(parameters, bucket_bytes):
        flat = members[0].new_zeros(sum(parameter.numel() for parameter in members))
        bucket = Bucket(flat.detach(), missing=len(members))
        views = bucket.flat.split([parameter.numel() for parameter in members])
        bucket.slots = [
            Slot(parameter, view.view_as(parameter), bucket)
            for parameter, view in zip(members, views)
        ]
        buckets.append(bucket)
    return buckets


def in_groups(parameters: list[nn.Parameter], bucket_bytes: int) -> list[list[nn.Parameter]]:
    """Which parameters share a bucket. It is closed when the next gradient would make it larger
    than bucket_bytes; it has one dtype and one device."""
    kinds: dict[tuple, list[nn.Parameter]] = {}
    for parameter in parameters:
        kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    groups = []
    for of_kind in kinds.values():
        sizes = [parameter.numel() * parameter.element_size() for parameter in of_kind]
        groups += [[of_kind[i] for i in group] for group in costs.buckets(sizes, bucket_bytes)]
    return groups


class GradientBuckets(Placement, ABC):
    """The bookkeeping of buckets: what has arrived, which may be started, what is refused.

    A subclass says in `_start` what is sent. What would add to a sum that was already taken is
    refused with a RuntimeError: a second backward without no_sync, a backward after finish without
    zero_grad, a second finish.
    """

    axis: str
    bucket_bytes: int
    find_unused: bool
    only: Only | None
    model: nn.Module
    buffer: Buffer = staticmethod(torch.Tensor.new_empty)
    before_sum: Callable[[Sequence[torch.Tensor]], None] | None = None
    """Called with this rank's own gradients, a bucket at a time, before they travel."""

    @abstractmethod
    def _start(self, bucket: Bucket) -> None:
        """Start the bucket's collective, and leave it in `bucket.pending`."""

    def attach(self, model: nn.Module) -> None:
        if any(parameter.is_meta for parameter in model.parameters()):
            raise ValueError("the model has no values yet; initialise it before data parallelism")
        self.model = model
        self._watch([p for p in model.parameters() if self.only is None or self.only(p)])

    def _watch(self, parameters: list[nn.Parameter]) -> None:
        """Buckets for the gradients of these, and a hook on each."""
        self._trainable = [p for p in parameters if p.requires_grad]
        self._frozen = [p for p in parameters if not p.requires_grad]
        self._buckets: list[Bucket] = []
        self._slots: dict[nn.Parameter, Slot] = {}
        self._next = 0  # the first bucket that is not started
        self._syncing = True
        if comm.mesh().size(self.axis) > 1:
            self._fill_buckets(self.bucket_bytes)
            # torch keeps such a hook where Python's collector does not look: a strong reference
            # back to the parameter, by way of this object, would keep the model for ever.
            me = weakref.ref(self)
            for parameter in self._trainable:
                if hasattr(parameter, "summed_by"):  # an older placement, which this one replaces
                    parameter.summed_by.remove()
                parameter.summed_by = parameter.register_post_accumulate_grad_hook(
                    lambda of: _there(me())._arrived(of)
                )

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
        slots = [self._slots[parameter] for parameter in self._trainable]
        used_here = [slot.arrived or slot.parameter.grad is not None for slot in slots]
        for slot in slots:
            if not slot.arrived and slot.parameter.grad is None:
                self._put_nothing(slot)
        for bucket in self._buckets[self._next :]:
            self._go(bucket)
        # Only now: ranks arrive here with different numbers of buckets started, and collectives
        # are matched by their order.
        used = self._used_anywhere(used_here) if self.find_unused else None
        self._wait()
        for bucket in self._buckets:
            bucket.pending, bucket.missing = None, len(bucket.slots)
        for slot in slots:
            slot.arrived, slot.summed = False, True
        self._next = 0
        for slot, anywhere in zip(slots, used or ()):
            if not anywhere:
                self._drop(slot)

    def finish_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        self.finish()

    @property
    def watched(self) -> list[nn.Parameter]:
        """The parameters whose gradients are summed here."""
        return list(self._slots)

    def zero_grad(self) -> None:
        """Drop all gradients. Costs nothing: the buffers stay, and the next backward overwrites."""
        for parameter in self._trainable:
            parameter.grad = None

    def _used_anywhere(self, used_here: list[bool]) -> list[int]:
        used = torch.tensor(used_here, dtype=torch.uint8, device=comm.device())
        return comm.all_reduce(used, self.axis, "dp: which parameters were used", op="max").tolist()

    def _fill_buckets(self, bucket_bytes: int) -> None:
        self._buckets = fill_buckets(self._trainable, bucket_bytes)
        self._slots = {slot.parameter: slot for bucket in self._buckets for slot in bucket.slots}

    def _arrived(self, parameter: nn.Parameter) -> None:
        """Called by autograd when it has added a gradient to `parameter.grad`.

        The argument is the parameter, not its gradient: averaging the argument averages weights.
        """
        slot = self._slots[parameter]
        self._put(slot)
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
            self._go(self._buckets[self._next])
            self._next += 1

    def _go(self, bucket: Bucket) -> None:
        if self.before_sum is not None:
            whole = [bucket.flat] if bucket.flat is not None else None
            self.before_sum(whole or [slot.parameter.grad for slot in bucket.slots])
        self._start(bucket)

    def _put(self, slot: Slot) -> None:
        """A gradient has come: into its bucket with it. Refuses to add it to a finished sum."""
        parameter = slot.parameter
        if parameter.grad is not slot.view:
            # The first gradient since zero_grad: autograd made a tensor of its own for it.
            slot.view.copy_(parameter.grad)
            parameter.grad = slot.view
        elif slot.summed:
            raise RuntimeError(ADDED_TO_A_SUM)

    def _put_nothing(self, slot: Slot) -> None:
        """This rank did not use the parameter: zero."""
        slot.parameter.grad = slot.view.zero_()

    def _wait(self) -> None:
        """Until every bucket has arrived, and is where the optimizer looks for it."""
        for bucket in self._buckets:
            bucket.pending.wait()

    def _drop(self, slot: Slot) -> None:
        """No rank used the parameter: no gradient."""
        slot.parameter.grad = None


def _there(placement: GradientBuckets | None) -> GradientBuckets:
    if placement is None:
        raise RuntimeError(GONE)
    return placement
