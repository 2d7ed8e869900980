"""The micro-batches of a step where there is no pipeline: one after the other, gradients added up.

    count = count_valid(labels_MBS).all          # over all replicas: what every loss is divided by
    total = run(model, batch, count, no_sync)    # forward and backward of each micro-batch

Each loss is divided by the *global* count before it is differentiated, so gradients are plain sums,
over micro-batches (autograd adds) as over replicas (the buckets), and nothing depends on how the
batch was cut.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch

from picolab import comm
from picolab.model import Transformer
from picolab.model.placement import Batch
from picolab.model.transformer import IGNORED


def run(
    model: Transformer,
    batch: Batch,
    count: float,
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
) -> torch.Tensor:
    """The sum of the divided losses (fp64 scalar); gradients are left in the parameters. no_sync
    wraps all backward passes but the last: gradients travel once a step, while that one runs."""
    total = torch.zeros((), dtype=torch.float64, device=batch.tokens_MBS.device)
    last = len(batch.tokens_MBS) - 1
    for m, (tokens_BS, labels_BS) in enumerate(zip(batch.tokens_MBS, batch.labels_MBS)):
        with nullcontext() if m == last else no_sync():
            loss = model.loss(tokens_BS, labels_BS, batch.positions_S) / count
            loss.backward()
        total += loss.detach()
    return total


@torch.no_grad()
def forward_only(model: Transformer, batch: Batch, count: int) -> torch.Tensor:
    """The same sum, without a backward pass."""
    losses = [
        model.loss(tokens_BS, labels_BS, batch.positions_S).double() / count
        for tokens_BS, labels_BS in zip(batch.tokens_MBS, batch.labels_MBS)
    ]
    return torch.stack(losses).sum()


class Valid(NamedTuple):
    """How many labels count."""

    own: torch.Tensor
    """Of this replica's sequences (whole ones: ranks of cp count the same)."""
    all: int
    """Of the global batch, and 1 if none does: what losses are divided by."""


def count_valid(labels_MBS: torch.Tensor) -> Valid:
    own = count = (labels_MBS != IGNORED).sum()
    if comm.axis_size("dp") > 1:
        count = comm.all_reduce(own.clone(), "dp", "dp: count of valid tokens")
    return Valid(own, max(1, int(count)))
