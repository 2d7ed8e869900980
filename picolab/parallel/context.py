"""Context parallelism as a placement: attention becomes a ring, and a rank takes its share of each
sequence. Parameters stay whole on every rank.

The mechanisms are ring attention (and Ulysses, and the gathered form) and the split of the
sequence, each in a file of its own; this one puts them into a model.
"""

from functools import partial

import torch

from picolab.model import Transformer
from picolab.model.placement import Batch, Placement
from picolab.parallel.ring import ring_attention
from picolab.parallel.sequence_split import Split, split_batch


class ContextParallelOptimizer(Placement):
    """Places each sequence on the ranks of an axis. Not a `torch.optim` optimizer.

    With it a rank computes 1/c of the tokens and sends keys and values round the ring; without it,
    all tokens, and nothing is sent.
    """

    def __init__(self, axis: str = "cp", split: Split = "zigzag"):
        self.axis, self.split_kind = axis, split

    def shard(self, model: Transformer) -> None:
        for block in model.layers:
            block.attention.attend = partial(ring_attention, axis=self.axis, split=self.split_kind)

    def split(self, batch: Batch) -> Batch:
        shares = [
            split_batch(*of_one, self.axis, self.split_kind)
            for of_one in zip(batch.tokens_MBS, batch.labels_MBS)
        ]
        tokens_MBS, labels_MBS = (torch.stack([share[i] for share in shares]) for i in (0, 1))
        return Batch(tokens_MBS, labels_MBS, shares[0][2])
