"""The two layers that are as wide as the vocabulary, split along it.

Embedding: each rank has V/n rows (the first ranks one more where n does not divide V). It looks up
the tokens that are its own, gives zero for the others, and the sum over the ranks is the embedding.

Loss: each rank has the logits of V/n tokens, (B, S, V/n), and they are never gathered (at B*S =
8,192 and V = 128,256 they are 4.2 GB in fp32). Of each position three numbers suffice:

    loss = log(sum over v of exp(x_v - m)) - (x_label - m),    m = max over v of x_v

m is one all-reduce (max); the sum of exponentials and the label's logit, which only one rank has,
are stacked and are a second one (sum). The gradient, softmax(x) - onehot(label), needs no
communication.

Letters: B batch, S sequence, V vocabulary (here always a rank's share). Source: Megatron-LM, arXiv
1909.08053, section 3. Twins in torch: `RowwiseParallel` on an embedding, and
`torch.distributed.tensor.parallel.loss_parallel`; tests/distributed/parallel/test_vocabulary.py
compares with the whole-vocabulary functions.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from picolab import comm
from picolab.model import Embedding, Piece
from picolab.model.transformer import IGNORED
from picolab.parallel.tensor_comm import g_, scatter_sum


class VocabularyParallelEmbedding(Embedding):
    """The embedding's rows [start, stop) of this rank; the output is whole on every rank, or with
    `sequence` (B, S / n, D), this rank's tokens.
    """

    def __init__(self, embedding: Embedding, axis: str = "tp", sequence: bool = False):
        weight = embedding.weight
        super().__init__(shard(weight.pieces[0], 0, axis), weight.dtype)
        self.weight.requires_grad_(weight.requires_grad)
        self.axis, self.sequence = axis, sequence

    def forward(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        (piece,) = self.weight.pieces
        # Out of range, no rank would claim the token and it would silently be the zero vector.
        _check_range(tokens_BS, (tokens_BS >= 0) & (tokens_BS < piece.shape[0]), piece.shape[0])
        row_BS, mine_BS = _mine(tokens_BS, piece.ranges[0])
        x_BSD = self.rows(row_BS).masked_fill(~mine_BS.unsqueeze(-1), 0)
        if self.sequence:
            return scatter_sum(x_BSD, self.axis, "sp: embedding output")
        return g_(x_BSD, self.axis, "tp: embedding output")


class VocabularyParallelLoss(nn.Module):
    """(logits_BSV of this rank's share [start, stop) of the vocabulary, labels_BS) -> summed loss.

    The same number, with the same gradient of each rank's share, as `model.cross_entropy` on whole
    logits; the sum is whole on every rank. In fp32 or better.
    """

    def __init__(self, vocab: int, start: int, stop: int, axis: str = "tp"):
        super().__init__()
        self.vocab, self.rows, self.axis = vocab, range(start, stop), axis

    def forward(self, logits_BSV: torch.Tensor, labels_BS: torch.Tensor) -> torch.Tensor:
        if logits_BSV.shape[-1] != len(self.rows):
            # Whole logits on every rank would each be counted n times: a loss off by log(n).
            raise ValueError(
                f"this loss wants a rank's share of the logits, {len(self.rows)} of "
                f"{self.vocab}, and was given {logits_BSV.shape[-1]}"
            )
        known = (labels_BS >= 0) & (labels_BS < self.vocab) | (labels_BS == IGNORED)
        _check_range(labels_BS, known, self.vocab)
        return _CrossEntropy.apply(logits_BSV, labels_BS, self.rows, self.axis)


def shard(piece: Piece, dim: int, axis: str) -> Piece:
    """This rank's part of a piece that is dealt out over the axis; whole blocks, at least one for
    each rank. ValueError if there are fewer."""
    mesh = comm.mesh()
    n, blocks = mesh.size(axis), piece.blocks or piece.local_shape[dim]
    if blocks < n and (n % blocks if piece.shared else (piece.finer or 0) < n):
        raise ValueError(
            f"{piece.name}: {blocks} blocks (dim {dim}) cannot be dealt out to {n} ranks, one "
            "would have none"
        )
    return piece.shard(axis, dim, mesh.rank(axis), n, blocks=blocks)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits_BSV, labels_BS, rows, axis):
        x_BSV = logits_BSV.to(torch.promote_types(logits_BSV.dtype, torch.float32))
        maximum_BS = comm.all_reduce(x_BSV.amax(-1), axis, "tp: cross entropy maximum", op="max")
        x_BSV = x_BSV - maximum_BS.unsqueeze(-1)
        column_BS, mine_BS = _mine(labels_BS, rows)
        target_BS = x_BSV.gather(-1, column_BS.unsqueeze(-1)).squeeze(-1).masked_fill(~mine_BS, 0)
        x_BSV.exp_()  # ours alone: the difference above was a new tensor
        sums = torch.stack((x_BSV.sum(-1), target_BS))
        total_BS, target_BS = comm.all_reduce(sums, axis, "tp: cross entropy sums")
        counted_BS = labels_BS != IGNORED
        ctx.save_for_backward(x_BSV.div_(total_BS.unsqueeze(-1)), column_BS, mine_BS, counted_BS)
        ctx.dtype = logits_BSV.dtype
        return (total_BS.log() - target_BS).masked_fill(~counted_BS, 0).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss):
        softmax_BSV, column_BS, mine_BS, counted_BS = ctx.saved_tensors
        dx_BSV = softmax_BSV * (counted_BS * dloss).unsqueeze(-1)
        # A label that is another rank's, or not counted, subtracts zero from column 0.
        dx_BSV.scatter_add_(-1, column_BS.unsqueeze(-1), (mine_BS * -dloss).unsqueeze(-1))
        return dx_BSV.to(ctx.dtype), None, None, None


def _mine(ids: torch.Tensor, rows: range) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids as rows of my share (0 where they are not mine), and which are mine."""
    mine = (ids >= rows.start) & (ids < rows.stop)
    return (ids - rows.start).masked_fill(~mine, 0), mine


def _check_range(ids: torch.Tensor, known: torch.Tensor, vocab: int) -> None:
    if ids.device.type != "cpu":
        torch._assert_async(known.all())  # asking for the answer would stop the device's queue
    elif not known.all():
        raise ValueError(
            f"token {int(ids[~known][0])} is outside the vocabulary of {vocab} (0 to {vocab - 1})"
        )
