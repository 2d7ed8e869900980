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
key-value head always with the queries that read it; every rank must get something.

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
kept whole (tensor_comm.py says what else could be done).

Source: arXiv 2205.05198, section 4.2.2. tests/distributed/parallel/test_sequence.py measures both.
"""

import torch
import torch.nn.functional as F

from picolab import comm
from picolab.model import Linear, SwiGLU, Transformer
from picolab.parallel.tensor_comm import column_linear, g_, gather_linear, scatter_sum
from picolab.parallel.vocabulary import VocabularyParallelEmbedding, VocabularyParallelLoss
from picolab.specs import Layout

NORM_GRADIENTS = "sp: gradients of the norms"


class ColumnParallelLinear(Linear):
    """Each part of W split along its outputs. x: (..., in), whole, or with `sequence` (B, S / n,
    in), this rank's; result: (..., out / n), this rank's.
    """

    def __init__(self, linear: Linear, axis: str = "tp", sequence: bool = False):
        super().__init__(*_shard(linear, 0, axis))
        self.weight.requires_grad_(linear.weight.requires_grad)
        self.axis, self.sequence = axis, sequence

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.sequence:
            return gather_linear(x, self.weight, self.axis)
        return column_linear(x, self.weight, self.axis)


class RowParallelLinear(Linear):
    """W split along its inputs. x: (..., in / n), this rank's; result: (..., out), whole on every
    rank, or with `sequence` (B, S / n, out), this rank's tokens.
    """

    def __init__(self, linear: Linear, axis: str = "tp", sequence: bool = False):
        super().__init__(*_shard(linear, 1, axis))
        self.weight.requires_grad_(linear.weight.requires_grad)
        self.axis, self.sequence = axis, sequence

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.linear(x, self.weight)
        return scatter_sum(y, self.axis) if self.sequence else g_(y, self.axis)


class TensorParallelOptimizer:
    """Places one model on the ranks of an axis: puts the parallel versions of its layers into it.

    The model must still be on the meta device. Afterwards `initialise` gives each rank its slices
    of the same global values. With it a rank holds 1/n of every matrix and does two all-reduces a
    layer in each direction; without it, all of every matrix and none. Not a `torch.optim`
    optimizer.

    sequence: activations between the matrices are split along the sequence too; then
    `sum_norm_gradients` must be called once a step. Raises ValueError if a rank would be without
    key-value heads, ffn or vocabulary, or the model has values already.
    """

    def __init__(self, model: Transformer, axis: str = "tp", sequence: bool = False):
        size = comm.mesh().size(axis)
        Layout(tp=size).check(model.config)
        if not all(parameter.is_meta for parameter in model.parameters()):
            raise ValueError(
                "tensor parallelism splits a model before it has values: build it on the meta "
                "device, Transformer(config), split it, and then initialise it"
            )
        self.model, self.axis, self.sequence = model, axis, sequence
        if size == 1:
            return
        model.embed = VocabularyParallelEmbedding(model.embed, axis, sequence)
        for block in model.layers:
            if not isinstance(block.mlp, SwiGLU):
                raise ValueError(f"there is no rule to split a {type(block.mlp).__name__}")
            block.attention.qkv = ColumnParallelLinear(block.attention.qkv, axis, sequence)
            block.attention.o = RowParallelLinear(block.attention.o, axis, sequence)
            block.mlp.gate_up = ColumnParallelLinear(block.mlp.gate_up, axis, sequence)
            block.mlp.down = RowParallelLinear(block.mlp.down, axis, sequence)
        model.head = ColumnParallelLinear(model.head, axis, sequence)
        if model.config.tied:
            model.head.weight = model.embed.weight
        (piece,) = model.head.weight.pieces
        model.cross_entropy = VocabularyParallelLoss(
            model.config.vocab, piece.start, piece.stop, axis
        )

    def sum_norm_gradients(self) -> None:
        """Once a step, with `sequence`: the gradients of replicated parameters, which every rank
        has from its own tokens only, are summed over the axis in one all-reduce.
        """
        if not self.sequence:
            return
        gradients = [
            parameter.grad
            for parameter in self.model.parameters()
            if parameter.grad is not None and all(piece.dim is None for piece in parameter.pieces)
        ]
        if not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        comm.all_reduce(flat, self.axis, NORM_GRADIENTS)
        # Written in place: a gradient may be a view into a data-parallel bucket.
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients])):
            gradient.copy_(total.view_as(gradient))


def _shard(linear: Linear, dim: int, axis: str):
    """The pieces of this rank, and their dtype."""
    mesh, weight = comm.mesh(), linear.weight
    pieces = [piece.shard(dim, mesh.rank(axis), mesh.size(axis)) for piece in weight.pieces]
    return pieces, weight.dtype
