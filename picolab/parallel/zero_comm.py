"""How shards of several parameters travel together.

Of each parameter a rank has some rows; a collective wants one tensor, and as much from every rank:

    rank 0   [ its rows of a | its rows of b | its rows of c ]
    rank 1   [ its rows of a | of b | of c |   padding       ]

So shards are laid side by side, shorter ones padded. What a reduce-scatter takes and an all-gather
gives is one such line for each rank; to make whole parameters of it, or it of whole gradients, rows
are copied from place to place. (FSDP2 does the same, and calls it copy-in and copy-out.) Of a
gather only the others' lines are copied: one's own rows need not travel, and shards that lie one
behind the other in memory (`side_by_side`) are a line already.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from picolab import comm
from picolab.parallel.buckets import Buffer


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


def pack(
    members: Sequence[Sharded], tensors: Sequence[torch.Tensor], buffer: Buffer
) -> torch.Tensor:
    """Tensors of the wholes' shapes, such as gradients, as a line for each rank."""
    length, parts = line(members), []
    for index in range(len(members[0].ends) - 1):
        parts += [of.rows(tensor, index).reshape(-1) for of, tensor in zip(members, tensors)]
        parts.append(tensors[0].new_zeros(length - sum(of.numel(index) for of in members)))
    return torch.cat(parts, out=buffer(tensors[0], length * (len(members[0].ends) - 1)))


def side_by_side(members: Sequence[Sharded]) -> torch.Tensor:
    """Move the shards into one memory, one behind the other; returns it."""
    flat = torch.cat([of.shard.detach().reshape(-1) for of in members])
    for of, part in zip(members, flat.split([of.shard.numel() for of in members])):
        of.shard.data = part.view_as(of.shard)
    return flat


class Line:
    """Shards that are gathered together.

    flat: their memory, where they lie side by side. apart: the shards are no views of the wholes,
    whose own rows then have to be copied too.
    """

    def __init__(
        self, members: Sequence[Sharded], flat: torch.Tensor | None = None, apart: bool = False
    ):
        me, ranks = members[0].index, range(len(members[0].ends) - 1)
        self._mine = [of.shard.detach().view(-1) for of in members] if flat is None else [flat]
        missing = line(members) - sum(part.numel() for part in self._mine)
        if missing:
            self._mine.append(self._mine[0].new_zeros(missing))
        self._sizes = []  # of the parts of all lines
        self._from, self._to = [], []  # which part of them goes where
        for index in ranks:
            for of in members:
                # By .data: what autograd remembers of a parameter stays valid, its values are the
                # same.
                place = of.whole.data[of.ends[index] : of.ends[index + 1]].view(-1)
                if index != me and place.numel():
                    self._from.append(len(self._sizes))
                    self._to.append(place)
                self._sizes.append(of.numel(index))
            self._sizes.append(line(members) - sum(of.numel(index) for of in members))
        self._own = []  # from where, and to where
        for of in members if apart else ():
            place = of.whole.data[of.ends[me] : of.ends[me + 1]].view(-1)
            self._own.append((of.shard.detach().view(-1), place))

    def gather(self, axis: str, reason: str) -> comm.Pending:
        """Every rank's line, under way."""
        mine = self._mine[0] if len(self._mine) == 1 else torch.cat(self._mine)
        return comm.all_gather(mine, axis, reason, async_op=True, own=False)

    def unpack(self, lines: torch.Tensor) -> None:
        """What `gather` gave, into the wholes."""
        parts = lines.split(self._sizes)
        sources = [parts[i] for i in self._from] + [mine for mine, _ in self._own]
        places = self._to + [place for _, place in self._own]
        if places:
            torch._foreach_copy_(places, sources)
