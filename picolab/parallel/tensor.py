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

Leaves out: sequence parallelism, and sizes that the axis does not divide (refused with a sentence).
"""

import torch
import torch.nn.functional as F

from picolab import comm
from picolab.model import Linear, SwiGLU, Transformer
from picolab.parallel.tensor_comm import column_linear, g_
from picolab.parallel.vocabulary import VocabularyParallelEmbedding, VocabularyParallelLoss
from picolab.specs import Layout


class ColumnParallelLinear(Linear):
    """Each part of W split along its outputs. x: (..., in), whole; result: (..., out / n), this
    rank's.
    """

    def __init__(self, linear: Linear, axis: str = "tp"):
        super().__init__(*_shard(linear, 0, axis))
        self.weight.requires_grad_(linear.weight.requires_grad)
        self.axis = axis

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return column_linear(x, self.weight, self.axis)


class RowParallelLinear(Linear):
    """W split along its inputs. x: (..., in / n), this rank's; result: (..., out), whole on every
    rank.
    """

    def __init__(self, linear: Linear, axis: str = "tp"):
        super().__init__(*_shard(linear, 1, axis))
        self.weight.requires_grad_(linear.weight.requires_grad)
        self.axis = axis

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return g_(F.linear(x, self.weight), self.axis)


class TensorParallelOptimizer:
    """Places one model on the ranks of an axis: puts the parallel versions of its layers into it.

    The model must still be on the meta device. Afterwards `initialise` gives each rank its slices
    of the same global values. With it a rank holds 1/n of every matrix and does two all-reduces a
    layer in each direction; without it, all of every matrix and none. Not a `torch.optim`
    optimizer.

    Raises ValueError if the axis does not divide heads, kv_heads, ffn or vocab, or the model has
    values already.
    """

    def __init__(self, model: Transformer, axis: str = "tp"):
        size = comm.mesh().size(axis)
        Layout(tp=size).check(model.config)
        if not all(parameter.is_meta for parameter in model.parameters()):
            raise ValueError(
                "tensor parallelism splits a model before it has values: build it on the meta "
                "device, Transformer(config), split it, and then initialise it"
            )
        self.model, self.axis = model, axis
        if size == 1:
            return
        model.embed = VocabularyParallelEmbedding(model.embed, axis)
        for block in model.layers:
            if not isinstance(block.mlp, SwiGLU):
                raise ValueError(f"there is no rule to split a {type(block.mlp).__name__}")
            block.attention.qkv = ColumnParallelLinear(block.attention.qkv, axis)
            block.attention.o = RowParallelLinear(block.attention.o, axis)
            block.mlp.gate_up = ColumnParallelLinear(block.mlp.gate_up, axis)
            block.mlp.down = RowParallelLinear(block.mlp.down, axis)
        model.head = ColumnParallelLinear(model.head, axis)
        if model.config.tied:
            model.head.weight = model.embed.weight
        (piece,) = model.head.weight.pieces
        model.cross_entropy = VocabularyParallelLoss(
            model.config.vocab, piece.start, piece.stop, axis
        )


def _shard(linear: Linear, dim: int, axis: str):
    """The pieces of this rank, and their dtype."""
    mesh, weight = comm.mesh(), linear.weight
    pieces = [piece.shard(dim, mesh.rank(axis), mesh.size(axis)) for piece in weight.pieces]
    return pieces, weight.dtype
