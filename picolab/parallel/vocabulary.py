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

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from picolab import comm
from picolab.model import Embedding
from picolab.model.transformer import IGNORED
from picolab.parallel.tensor_comm import g_, scatter_sum


class VocabularyParallelEmbedding(Embedding):
    """The embedding's rows [start, stop) of this rank; the output is whole on every rank, or with
    `sequence` (B, S / n, D), this rank's tokens.
    """

    def __init__(self, embedding: Embedding, axis: str = "tp", sequence: bool = False):
        mesh, weight = comm.mesh(), embedding.weight
        (piece,) = weight.pieces
        super().__init__(piece.shard(0, mesh.rank(axis), mesh.size(axis)), weight.dtype)
        self.weight.requires_grad_(weight.requires_grad)
        self.axis, self.sequence = axis, sequence

    def forward(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        (piece,) = self.weight.pieces
        # Out of range, no rank would claim the token and it would silently be the zero vector.
        _check_range(tokens_BS, (tokens_BS >= 0) & (tokens_BS < piece.shape[0]), piece.shape[0])
        row_BS, mine_BS = _mine(tokens_BS, piece.start, piece.stop)
        x_BSD = F.embedding(row_BS, self.weight).masked_fill(~mine_BS.unsqueeze(-1), 0)
        if self.sequence:
            return scatter_sum(x_BSD, self.axis, "sp: embedding output")
        return g_(x_BSD, self.axis, "tp: embedding output")


@dataclass(frozen=True)
class VocabularyParallelLoss:
    """(logits_BSV of this rank's share [start, stop) of the vocabulary, labels_BS) -> summed loss.

    The same number, with the same gradient of each rank's share, as `model.cross_entropy` on whole
    logits; the sum is whole on every rank. In fp32 or better.
    """

    vocab: int
    start: int
    stop: int
    axis: str = "tp"

    def __call__(self, logits_BSV: torch.Tensor, labels_BS: torch.Tensor) -> torch.Tensor:
        if logits_BSV.shape[-1] != self.stop - self.start:
            # Whole logits on every rank would each be counted n times: a loss off by log(n).
            raise ValueError(
                f"this loss wants a rank's share of the logits, {self.stop - self.start} of "
                f"{self.vocab}, and was given {logits_BSV.shape[-1]}"
            )
        known = (labels_BS >= 0) & (labels_BS < self.vocab) | (labels_BS == IGNORED)
        _check_range(labels_BS, known, self.vocab)
        return _CrossEntropy.apply(logits_BSV, labels_BS, self.start, self.stop, self.axis)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits_BSV, labels_BS, start, stop, axis):
        x_BSV = logits_BSV.to(torch.promote_types(logits_BSV.dtype, torch.float32))
        maximum_BS = comm.all_reduce(x_BSV.amax(-1), axis, "tp: cross entropy maximum", op="max")
        x_BSV = x_BSV - maximum_BS.unsqueeze(-1)
        column_BS, mine_BS = _mine(labels_BS, start, stop)
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
        return dx_BSV.to(ctx.dtype), None, None, None, None


def _mine(ids: torch.Tensor, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids as rows of my share (0 where they are not mine), and which are mine."""
    mine = (ids >= start) & (ids < stop)
    return (ids - start).masked_fill(~mine, 0), mine


def _check_range(ids: torch.Tensor, known: torch.Tensor, vocab: int) -> None:
    if ids.device.type != "cpu":
        torch._assert_async(known.all())  # asking for the answer would stop the device's queue
    elif not known.all():
        raise ValueError(
            f"token {int(ids[~known][0])} is outside the vocabulary of {vocab} (0 to {vocab - 1})"
        )
