"""A layer of experts among the other axes: shared by the ranks of tp, its tokens spread over cp.

**Tensor parallelism.** Experts are cut like any feed-forward, gate and up by rows and down by
columns, and shared experts with them. All ranks of tp have the same tokens, choose the same experts
and send the same rows, each to the ranks that have its part of them:

    x --f--> rows --> [there] --> experts, 1/n of F --> [back] --> * f(weight), added up --g--> y
    x --> router --> weights

The router is whole on every rank. Two things are summands over tp, and are summed in backward by an
f of their own: the gradient of x by way of the experts, and that of the weights (each rank knows
what its part of an expert's output contributes). So the router's own gradient is whole on every
rank, and so is that of the balance loss, which came by no f: one f before both would multiply it by
tp.

With sequence parallelism f is an all-gather of x and g a reduce-scatter; the router sees its share
of the tokens, and the logits, which are small, are gathered. Its gradient is a summand then, like a
norm's, and is summed with them once a step.

**Context parallelism.** The pool of a router (moe/router.py) is a micro-batch's whole sequences;
`SequencePool` gathers logits over cp and puts them into the order of the sequence.

In both gathers a rank puts its own logits among those that came, so autograd gives it the gradient
of its own and no exchange is needed: every rank computes the same from them.
"""

import torch
from torch import nn

from picolab import comm
from picolab.model import meta_parameter
from picolab.parallel.sequence_split import Split, join_sequence, split_sequence
from picolab.parallel.tensor_comm import SEQUENCE, f, g, gather, scatter_sum
from picolab.parallel.vocabulary import shard

WEIGHTS = "tp: gradient of the router's weights"
LOGITS = "sp: router logits"
POOL = "cp: router logits"


def split_experts(layer: nn.Module, axis: str, sequence: bool) -> None:
    """The rule of a `moe.ExpertLayer`, for TensorParallelOptimizer's table."""
    dims = getattr(layer.experts, "cut_by_tp", None)
    if dims is None:
        raise ValueError(
            f"{type(layer.experts).__name__} does not say which dims tensor parallelism cuts; give "
            "it cut_by_tp = {parameter: dim}"
        )
    for name, dim in dims.items():
        _cut(layer.experts, name, dim, axis)
    if layer.shared is not None:
        _cut(layer.shared.gate_up, "weight", 0, axis)
        _cut(layer.shared.down, "weight", 1, axis)
    layer.enter = (lambda x: gather(x, axis)) if sequence else (lambda x: f(x, axis))
    layer.leave = (lambda y: scatter_sum(y, axis)) if sequence else (lambda y: g(y, axis))
    layer.weights = lambda weight_A: f(weight_A, axis, WEIGHTS)
    if sequence:
        layer.router.whole = lambda logits_BSE: torch.cat(
            _shares(logits_BSE, axis, LOGITS), SEQUENCE
        )


def _cut(module: nn.Module, name: str, dim: int, axis: str) -> None:
    whole = getattr(module, name)
    own = meta_parameter(tuple(shard(piece, dim, axis) for piece in whole.pieces), whole.dtype)
    setattr(module, name, own.requires_grad_(whole.requires_grad))


class SequencePool:
    """A micro-batch whose sequences are split over the ranks of an axis."""

    def __init__(self, axis: str = "cp", split: Split = "zigzag"):
        self.axis, self.split = axis, split

    def gather(self, logits_BSE: torch.Tensor) -> torch.Tensor:
        return join_sequence(_shares(logits_BSE, self.axis, POOL), SEQUENCE, self.split)

    def mine(self, pool_BSE: torch.Tensor) -> torch.Tensor:
        mesh = comm.mesh()
        rank, n = mesh.rank(self.axis), mesh.size(self.axis)
        return split_sequence(pool_BSE, rank, n, SEQUENCE, self.split)


def _shares(logits_BSE: torch.Tensor, axis: str, reason: str) -> list[torch.Tensor]:
    """Every rank's, in order; my own as they are, with what autograd knows of them."""
    mesh = comm.mesh()
    all_ranks = comm.all_gather(logits_BSE.detach().contiguous(), axis, reason)
    shares = list(all_ranks.chunk(mesh.size(axis)))
    shares[mesh.rank(axis)] = logits_BSE
    return shares
