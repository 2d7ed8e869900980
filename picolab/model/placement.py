"""What every way of placing a model has in common, so that they compose without knowing each other.

    tensor = TensorParallelOptimizer(axis="tp")    # nothing yet: a description
    tensor.shard(model)                            # on the meta device: cutting costs nothing
    initialise(model)                              # each rank its slices of the same global values
    tensor.attach(model)                           # hooks and buffers, which need real tensors

Tensor, expert, pipeline, context and data parallelism are placements, in the rooms above this one;
`parallel/three_d.py` orders them, lets all of them shard, initialises, lets all of them attach, and
calls the rest of these methods in each step. A new axis is a new placement in that list and changes
no loop. Each of them does nothing here.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn


class Batch(NamedTuple):
    """The micro-batches of a step, as this rank computes them. M micro-batches of B sequences."""

    tokens_MBS: torch.Tensor
    labels_MBS: torch.Tensor
    positions_S: torch.Tensor | None = None
    """Each token's place in its sequence, where that is not 0 ... S-1."""
    scale: float = 1.0
    """Gradients are those of so many times the loss."""


class Placement:
    """Where one mechanism puts (part of) a model, and what it has to do in a step for that."""

    def shard(self, model: nn.Module) -> None:
        """Cut the model, which is on the meta device: only shapes and pieces change."""

    def attach(self, model: nn.Module) -> None:
        """Once there are values: hooks, buffers, anything that needs the final parameters."""

    def split(self, batch: Batch) -> Batch:
        """This rank's part of the batch, where the mechanism splits it further."""
        return batch

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Around all micro-batches of a step but the last: gradients are only added up."""
        yield

    def finish_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """After the last backward pass: make every gradient that of the global batch. parameters:
        what the optimizer steps."""

    def parameters(self, mine: list[nn.Parameter]) -> list[nn.Parameter]:
        """What the optimizer steps, given what the placements before this one would have it
        step."""
        return mine

    def after_step(self) -> None:
        """After the optimizer's step."""

    def after_load(self) -> None:
        """After `parameters` were given other values: make what follows from them follow."""

    def zero_grad(self) -> None:
        """Drop gradients of parameters that are not the model's own."""

    def held(self) -> list[torch.Tensor]:
        """Parameters that are not the model's own, for whoever counts memory."""
        return []
