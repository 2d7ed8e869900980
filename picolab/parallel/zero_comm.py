"""How shards of several parameters travel together.

Of each parameter a rank has some rows; a collective wants one tensor, and as much from every rank:

    rank 0   [ its rows of a | its rows of b | its rows of c ]
    rank 1   [ its rows of a | of b | of c |   padding       ]

So shards are laid side by side, shorter ones padded. What a reduce-scatter takes and an all-gather
gives is one such line for each rank; to make whole parameters of it, or it of whole gradients, rows
are copied from place to place, once. (FSDP2 does the same, and calls it copy-in and copy-out.)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from picolab import comm


@dataclass(eq=False)
class Sharded:
    """One parameter: as it is computed with, and the rows of it that this rank keeps."""

    whole: nn.Parameter
    shard: nn.Parameter
    ends: tuple[int, ...]
    """Rank i keeps rows ends[i] ... ends[i+1]-1 of the whole."""
    index: int
    """My place on the axis."""

    def rows(self, tensor: torch.Tensor, index: int) -> torch.Tensor:
        """The rows of a tensor of the whole's shape that a rank keeps (a view)."""
        return tensor[self.ends[index] : self.ends[index + 1]]

    def mine(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.rows(tensor, self.index)

    def numel(self, index: int) -> int:
        """How many numbers a rank keeps."""
        return (self.ends[index + 1] - self.ends[index]) * math.prod(self.whole.shape[1:])


def line(members: Sequence[Sharded]) -> int:
    """Numbers in one rank's line: those of the first, which has the most."""
    return sum(of.numel(0) for of in members)


def pack(members: Sequence[Sharded], tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors of the wholes' shapes, such as gradients, as a line for each rank."""
    length, parts = line(members), []
    for index in range(len(members[0].ends) - 1):
        parts += [of.rows(tensor, index).reshape(-1) for of, tensor in zip(members, tensors)]
        parts.append(tensors[0].new_zeros(length - sum(of.numel(index) for of in members)))
    return torch.cat(parts)


def gather(members: Sequence[Sharded], axis: str, reason: str) -> comm.Pending:
    """Every rank's line of shards, under way."""
    mine = [of.shard.detach().reshape(-1) for of in members]
    padding = mine[0].new_zeros(line(members) - sum(part.numel() for part in mine))
    return comm.all_gather(torch.cat([*mine, padding]), axis, reason, async_op=True)


def unpack(members: Sequence[Sharded], lines: torch.Tensor) -> None:
    """What `gather` gave, into the wholes."""
    ranks = len(members[0].ends) - 1
    sizes = [[of.numel(index) for of in members] for index in range(ranks)]
    length = line(members)
    parts = [
        of_rank.split([*mine, length - sum(mine)])
        for of_rank, mine in zip(lines.split(length), sizes)
    ]
    for i, of in enumerate(members):
        # By .data: what autograd remembers of a parameter stays valid, its values are the same.
        torch.cat([of_rank[i] for of_rank in parts], out=of.whole.data.view(-1))
