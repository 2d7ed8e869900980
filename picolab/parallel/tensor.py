"""Tensor parallelism: every matrix is split over the ranks of the axis, and each layer still does
what it did.

    attention   qkv by rows (a rank gets whole heads), o by columns
    MLP         gate and up by rows, down by columns
    embedding, head, loss   along the vocabulary (vocabulary.py)
    norms       on every rank (they are small, and see the whole residual stream)

    x --f--> qkv --> heads of this rank --> o --g--> + --f--> gate, up --> silu * --> down --g--> +

Two all-reduces forward (the g) and two backward (the f) a layer: q, k and v share one f because
they are one matrix, and gate and up another. Payload each: B * S * D elements. Source: Megatron-LM,
arXiv 1909.08053, section 3. Twin in torch: `torch.distributed.tensor.parallel.parallelize_module`;
tests/distributed/parallel/test_tensor.py runs both.

Sizes that the axis does not divide are dealt out as evenly as they go (`costs.even_slices`), a
key-value head always with the queries that read it; every rank must get something. Where there are
more ranks than key-value heads, neighbours hold the same head, each for its own queries
(Megatron-LM does the same). Of k and v each then has the gradient that its queries make, a summand,
so they are summed over those neighbours once a step.

**Sequence parallelism** (`sequence=True`) splits what lies between g and the next f, norms and
residual stream, along the sequence: each g becomes a reduce-scatter and each f an all-gather, the
same bytes in all (tensor_comm.py). The norms are still on every rank, but a rank now sees 1/n of
the tokens, so the gradients of their weights are summands, which are summed once a step. To forget
that is a known bug (Megatron-LM issue 1446): replicas drift apart, and the loss hardly shows it.

What a rank keeps for backward shrinks by the share (1 - 1/n) of what the norms of L layers keep, in
elements

    (2L + 1) * (1 - 1/n) * B * S * (k D + 1)

k is 2 where F.rms_norm is made of single operations (on the CPU it keeps x and the normalised x)
and 1 where it is one kernel; the 1 is 1/sqrt(mean square). The gathered inputs of the matrices are
kept whole, or gathered again in backward (`sp_inputs`, tensor_comm.py).

Source: arXiv 2205.05198, section 4.2.2. tests/distributed/parallel/test_sequence.py measures both.
"""

import re
from collections.abc import Callable, Sequence

import torch
from torch import nn

from picolab import comm
from picolab.model import Attention, Dropout, Linear, Piece, RMSNorm, SwiGLU, Transformer, slices
from picolab.model.placement import Placement
from picolab.parallel.tensor_comm import (
    Inputs,
    column_linear,
    f,
    g_,
    gather,
    gather_linear,
    scatter_sum,
)
from picolab.parallel.vocabulary import (
    VocabularyParallelEmbedding,
    VocabularyParallelLoss,
    shard,
)
from picolab.specs import Layout

NORM_GRADIENTS = "sp: gradients of the norms"
SHARED_HEADS = "tp: gradients of shared heads"
HEAD_NORMS = "tp: gradients of heads' norms"
HEAD_NORM = re.compile(r"\.attention\.[qk]_norm\.")


class ColumnParallelLinear(Linear):
    """Each part of W split along its outputs. x: (..., in), whole, or with `sequence` (B, S / n,
    in), this rank's; result: (..., out / n), this rank's.
    """

    inputs: Inputs = "keep"
    """With `sequence`: whether the gathered x is kept for backward, or gathered again."""

    def __init__(self, linear: Linear, axis: str = "tp", sequence: bool = False):
        biases = () if linear.bias is None else _pieces(linear.bias, 0, axis)
        super().__init__(_pieces(linear.weight, 0, axis), linear.weight.dtype, biases)
        for mine, whole in zip(self.parameters(), linear.parameters(), strict=True):
            mine.requires_grad_(whole.requires_grad)
        self.axis, self.sequence = axis, sequence

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # A bias is of this rank's outputs, for all tokens: its gradient is complete here.
        return self.biased(self._exchanged(x))

    def _exchanged(self, x: torch.Tensor) -> torch.Tensor:
        if self.product.splits:  # the exchange and the product apart
            whole = gather(x, self.axis) if self.sequence else f(x, self.axis)
            return self.product(whole, self.weight)
        if self.sequence:
            return gather_linear(x, self.weight, self.axis, self.inputs, self.product)
        return column_linear(x, self.weight, self.axis, self.product)


class RowParallelLinear(Linear):
    """W split along its inputs. x: (..., in / n), this rank's; result: (..., out), whole on every
    rank, or with `sequence` (B, S / n, out), this rank's tokens.
    """

    def __init__(self, linear: Linear, axis: str = "tp", sequence: bool = False):
        assert linear.bias is None, "each rank would add it to its summand"
        super().__init__(_pieces(linear.weight, 1, axis), linear.weight.dtype)
        self.weight.requires_grad_(linear.weight.requires_grad)
        self.axis, self.sequence = axis, sequence

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.product(x, self.weight)
        return scatter_sum(y, self.axis) if self.sequence else g_(y, self.axis)


def split_attention(attention: Attention, axis: str, sequence: bool) -> None:
    attention.qkv = ColumnParallelLinear(attention.qkv, axis, sequence)
    attention.o = RowParallelLinear(attention.o, axis, sequence)


def split_mlp(mlp: SwiGLU, axis: str, sequence: bool) -> None:
    mlp.gate_up = ColumnParallelLinear(mlp.gate_up, axis, sequence)
    mlp.down = RowParallelLinear(mlp.down, axis, sequence)


def replicate(module: nn.Module, axis: str, sequence: bool) -> None:
    """Every rank holds it whole."""


Rule = Callable[[nn.Module, str, bool], None]
# What a block consists of, and how each is split. A new type of layer is a row here.
RULES: dict[type[nn.Module], Rule] = {
    Attention: split_attention,
    SwiGLU: split_mlp,
    RMSNorm: replicate,
    Dropout: replicate,
}


class TensorParallelOptimizer(Placement):
    """Places one model on the ranks of an axis: puts the parallel versions of its layers into it.

    model: it is split at once; None: `parallelize` does it. It must still be on the meta device.
    Afterwards `initialise` gives each rank its slices of the same global values. With it a rank
    holds 1/n of every matrix and does two all-reduces a layer in each direction; without it, all of
    every matrix and none. Not a `torch.optim` optimizer.

    sequence: activations between the matrices are split along the sequence too; then
    `sum_norm_gradients` must be called once a step; sp_inputs: "keep" the matrices' gathered inputs
    for backward, or "gather" them again there. rules: how each type of layer is split. Raises
    ValueError if a rank would be without key-value heads, ffn or vocabulary, the model has values
    already, or there is no rule for a layer.
    """

    def __init__(
        self,
        model: Transformer | None = None,
        axis: str = "tp",
        sequence: bool = False,
        rules: dict[type[nn.Module], Rule] = RULES,
        sp_inputs: Inputs = "keep",
    ):
        self.axis, self.sequence, self.rules = axis, sequence, rules
        self.sp_inputs = sp_inputs
        if model is not None:
            self.shard(model)

    def shard(self, model: Transformer) -> None:
        axis, sequence, size = self.axis, self.sequence, comm.mesh().size(self.axis)
        Layout(tp=size).check(model.config)
        if not all(parameter.is_meta for parameter in model.parameters()):
            raise ValueError(
                "tensor parallelism splits a model before it has values: build it on the meta "
                "device, Transformer(config), split it, and then initialise it"
            )
        self.model = model
        copies = Layout(tp=size).head_copies(model.config)
        self._copies = comm.mesh().neighbours(axis, copies) if copies > 1 else None
        if size == 1:
            return
        model.embed = VocabularyParallelEmbedding(model.embed, axis, sequence)
        for module in [part for block in model.layers for part in block.children()]:
            if type(module) not in self.rules:
                raise ValueError(f"there is no rule to split a {type(module).__name__}")
            self.rules[type(module)](module, axis, sequence)
        model.head = ColumnParallelLinear(model.head, axis, sequence)
        for module in model.modules():
            if isinstance(module, ColumnParallelLinear):
                module.inputs = self.sp_inputs
        if model.config.tied:
            model.head.weight = model.embed.weight
        rows = model.head.weight.pieces[0].ranges[0]
        vocab = model.config.vocab
        model.cross_entropy = VocabularyParallelLoss(vocab, rows.start, rows.stop, axis)
        model.sequence_shares = size if sequence else 1

    def finish_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        self.sum_shared_heads(parameters)
        self.sum_head_norms(parameters)
        self.sum_norm_gradients(parameters)

    def sum_shared_heads(self, parameters: Sequence[nn.Parameter]) -> None:
        """Once a step, where neighbours hold the same key-value head: the gradients of k and v."""
        if self._copies is None:
            return
        _sum_together(
            [
                part
                for parameter in parameters
                if parameter.grad is not None
                for piece, part in slices(parameter, parameter.grad)
                if piece.copies > 1
            ],
            self._copies,
            SHARED_HEADS,
        )

    def sum_head_norms(self, parameters: Sequence[nn.Parameter]) -> None:
        """Once a step, where heads' queries and keys are normalised: every rank has those norms and
        their gradients from its own heads only. (With `sequence` they are summed with all norms.)
        """
        if self.sequence or comm.mesh().size(self.axis) == 1:
            return
        gradients = [
            parameter.grad
            for parameter in parameters
            if parameter.grad is not None and HEAD_NORM.search(parameter.pieces[0].name)
        ]
        _sum_together(gradients, self.axis, HEAD_NORMS)

    def sum_norm_gradients(self, parameters: Sequence[nn.Parameter] | None = None) -> None:
        """Once a step, with `sequence`: the gradients of replicated parameters, which every rank
        has from its own tokens only, are summed over the axis in one all-reduce. parameters: None
        for the model's.
        """
        if not self.sequence:
            return
        gradients = [
            parameter.grad
            for parameter in (self.model.parameters() if parameters is None else parameters)
            if parameter.grad is not None
            and not any(p.axes & {self.axis} for p in parameter.pieces)
        ]
        _sum_together(gradients, self.axis, NORM_GRADIENTS)


def _sum_together(gradients: list[torch.Tensor], axis: str, reason: str) -> None:
    """Sum these over the axis, in one all-reduce, in place: a gradient may be a view into a
    data-parallel bucket."""
    if sum(gradient.numel() for gradient in gradients) == 0:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    comm.all_reduce(flat, axis, reason)
    for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(total.view_as(gradient))


def _pieces(parameter: nn.Parameter, dim: int, axis: str) -> list[Piece]:
    """What this rank has of a parameter that is split along a dim."""
    return [shard(piece, dim, axis) for piece in parameter.pieces]
