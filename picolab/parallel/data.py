"""Data parallelism: the same model on every rank, each with other samples, and the gradients are
summed.

    gradient of the sum over all samples = sum over the ranks of the gradients of their own samples

The loss is divided by the *global* number of valid tokens before it is differentiated, so here
gradients are summed. (Dividing by each rank's own count and then averaging is wrong as soon as the
counts differ.) Two versions stand side by side:

    naive_sync(model)       after backward, one all-reduce a parameter: right, and slow
    DataParallelOptimizer   the same sums in few large pieces, sent while backward still runs

How gradients get into the pieces, and when a piece may go, is told in buckets.py.

Source: arXiv 2006.15704 (torch's DDP). Twin: `torch.nn.parallel.DistributedDataParallel`, which
averages instead and sends rank 0's weights at the start (here all ranks draw the same, see
model/parameters.py); tests/distributed/parallel/test_data.py compares. Leaves out: ZeRO, gradient
compression.
"""

import torch
from torch import nn

from picolab import comm, costs
from picolab.parallel.buckets import Bucket, GradientBuckets, Only

GRADIENTS = "dp: gradient bucket"


def naive_sync(model: nn.Module, axis: str = "dp") -> None:
    """After backward: sum every gradient over the axis, one all-reduce after the other."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:  # not used here, perhaps elsewhere
                parameter.grad = torch.zeros_like(parameter)
            comm.all_reduce(parameter.grad, axis, "dp: gradient of one parameter")


class DataParallelOptimizer(GradientBuckets):
    """Sums gradients over an axis, in buckets, while backward runs. Not a `torch.optim` optimizer.

        with data.no_sync():              # all micro-batches but the last
            loss(...).backward()
        loss(...).backward()              # the last one starts the all-reduces
        data.finish()                     # and here they have arrived

    model: it is attached at once; None: `parallelize` does it when the model has values.
    bucket_bytes: a bucket is closed when the next gradient would make it larger. find_unused: ask
    all ranks which parameters were used at all (one small all-reduce a step), so that a parameter
    which no rank used keeps `grad` None and the optimizer leaves it alone; otherwise its gradient
    is zero. Parameters that do not require gradients when this is made are left out. only: which
    parameters these are; None: all. reason: what the ledger calls it.

    `optimizer.zero_grad()` is fine (the next gradient is put back into the bucket).

    With it, a step does one all-reduce a bucket on the axis and all ranks end with equal gradients;
    without it, none, and they differ.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        axis: str = "dp",
        bucket_bytes: int = costs.DEFAULT_BUCKET_BYTES,
        find_unused: bool = False,
        only: Only | None = None,
        reason: str = GRADIENTS,
    ):
        self.axis, self.bucket_bytes, self.find_unused = axis, bucket_bytes, find_unused
        self.only, self.reason = only, reason
        if model is not None:
            self.attach(model)

    def _start(self, bucket: Bucket) -> None:
        bucket.pending = comm.all_reduce(bucket.flat, self.axis, self.reason, async_op=True)
