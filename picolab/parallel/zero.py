"""ZeRO: replicas hold the same numbers n times over. Let each hold 1/n, and fetch the rest when it
is needed.

Of every parameter a rank *keeps* some rows, its shard; its optimizer steps only these. What else it
holds is the stage:

    stage   parameters   gradients   optimizer     what travels in a step, of N numbers
    0       whole        whole       whole         all-reduce N
    1       whole        whole       its rows      reduce-scatter N, all-gather N
    2       whole        its rows    its rows      the same
    3       its rows     its rows    its rows      the same, and all-gathers in each micro-batch

Stages 1 and 2 send what an all-reduce sends, for it is a reduce-scatter and an all-gather; between
the halves stands the optimizer. Stage 3 is told in zero_gather.py. Two versions stand side by side:

    naive_reduce, naive_gather    one parameter after the other: all-reduce the gradient, step your
                                  rows, all-gather them: right, and slow
    ZeroOptimizer                 the same in buckets, sent while backward still runs

**Which rows.** The rows of a parameter are dealt out as evenly as they go (`costs.even_slices`),
the first ranks one more; a rank may get none of a small one. Several pieces that are stacked in one
parameter (q, k, v) are cut where the border happens to fall, so that a shard is one view of the
whole, without a copy. Each piece is still a rectangle and says so (`Cut`): the norm, gathering,
checkpoints and weights read it like any other cut, over tensor parallelism's too. FSDP2 cuts rows
as well. The other way is one flat buffer of all parameters, cut into n equal ranges wherever they
end (Megatron-LM's distributed optimizer, DeepSpeed): never a row more on one rank than on another,
no padding, and nothing that reads a parameter can do with a range without a table beside it.

**Gradients** are added up whole, in every stage, until the last micro-batch; then they travel, once
a step. (The other choice from stage 2 on: reduce each micro-batch's into the shard. It never holds
whole gradients, and sends them as often as there are micro-batches.) A bucket is packed rank by
rank when its last gradient has come, and shorter shards are padded, since a reduce-scatter wants
equal parts: the payload is up to a row of each parameter larger than the gradients. Stage 2 frees
the whole gradients at that moment.

**Hybrid** (`replica_axis`): shards inside a group of ranks, groups that are copies. Gradients are
scattered inside the group, and shards summed over the groups: what is large stays inside a node.

Source: arXiv 1910.02054, section 5. Twins: `torch.distributed.optim.ZeroRedundancyOptimizer`
(stage 1, whole parameters dealt out), `torch.distributed.fsdp.fully_shard` (2 and 3);
tests/distributed/parallel/test_zero.py compares. Leaves out: flat ranges, an optimizer that is
kept in another memory.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from picolab import comm, costs
from picolab.model import Piece
from picolab.model.parameters import Cut
from picolab.parallel import zero_comm
from picolab.parallel.buckets import (
    ADDED_TO_A_SUM,
    Bucket,
    GradientBuckets,
    Only,
    Slot,
    in_groups,
)
from picolab.parallel.whole import gather_shards
from picolab.parallel.zero_comm import Line, Sharded
from picolab.parallel.zero_gather import GatheredModel, take_shards


def row_ends(rows: int, n: int) -> tuple[int, ...]:
    """Where each rank's rows end: rank i keeps rows ends[i] ... ends[i+1]-1."""
    return (0, *(part.stop for part in costs.even_slices(rows, n)))


def cut_rows(
    pieces: Sequence[Piece], axis: str, index: int, n: int
) -> tuple[tuple[Piece, ...], tuple[int, ...]]:
    """The pieces of one parameter, stacked as they are, cut by rows over the n ranks of an axis,
    for the index-th of them; and where in the parameter each rank's rows end."""
    ends = row_ends(sum(piece.local_shape[0] for piece in pieces), n)
    found, first = [], 0
    for piece in pieces:
        held = piece.ranges[0]
        inside = tuple(held.start + min(max(end - first, 0), len(held)) for end in ends)
        cut = Cut(axis, 0, inside, index)
        found.append(replace(piece, cuts=(*piece.cuts, cut)))
        first += len(held)
    return tuple(found), ends


def rows_of(parameter: nn.Parameter, axis: str) -> Sharded:
    """This rank's rows of a parameter that it holds whole, as a view: what the optimizer steps
    there is stepped here."""
    index, n = comm.mesh().rank(axis), comm.mesh().size(axis)
    pieces, ends = cut_rows(parameter.pieces, axis, index, n)
    view = parameter.detach()[ends[index] : ends[index + 1]]
    shard = nn.Parameter(view, requires_grad=parameter.requires_grad)
    shard.pieces = pieces
    return Sharded(parameter, shard, ends, index)


def naive_reduce(sharded: Sequence[Sharded], axis: str = "dp") -> None:
    """After backward: sum every gradient over the axis, one all-reduce after the other, and keep
    your rows of it."""
    for of in sharded:
        if of.whole.requires_grad:
            if of.whole.grad is None:  # not used here, perhaps elsewhere
                of.whole.grad = torch.zeros_like(of.whole)
            comm.all_reduce(of.whole.grad, axis, "zero: gradient of one parameter")
            of.shard.grad = of.mine(of.whole.grad)


@torch.no_grad()
def naive_gather(sharded: Sequence[Sharded], axis: str = "dp") -> None:
    """After the optimizer's step on your rows: everybody's, one parameter after the other."""
    for of in sharded:
        sizes = [stop - start for start, stop in zip(of.ends, of.ends[1:])]
        whole = gather_shards(of.shard.detach(), sizes, axis, "zero: one updated parameter")
        of.whole.copy_(whole)


class ZeroOptimizer(GradientBuckets):
    """Shards the states of replicas over the ranks of an axis. Not a `torch.optim` optimizer.

        optimizer = AdamW(zero.parameters([]))    # of this rank's rows
        loss(...).backward()                      # starts the reduce-scatters
        zero.finish()                             # and here every shard has its gradient
        optimizer.step()
        zero.after_step()                         # stages 1 and 2: fetch the other ranks' rows
        zero.zero_grad()

    model: it is placed at once, with the values it has; None: `parallelize` does it. stage, axis:
    as above. replica_axis: hybrid, the axis over which shard groups are copies. bucket_bytes,
    find_unused, only: as of `DataParallelOptimizer`, and so is what is refused. of: whose these
    are, for the ledger.

    With it a rank holds 1/n of AdamW's moments (and of gradients, and of parameters); without it,
    all of them.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        axis: str = "dp",
        stage: int = 1,
        *,
        replica_axis: str | None = None,
        bucket_bytes: int = costs.DEFAULT_BUCKET_BYTES,
        find_unused: bool = False,
        only: Only | None = None,
        of: str = "zero",
    ):
        self.axis, self.stage, self.replica_axis = axis, stage, replica_axis
        self.bucket_bytes, self.find_unused, self.only = bucket_bytes, find_unused, only
        self.of = of
        if model is not None:
            self.shard(model)
            self.attach(model)

    def shard(self, model: nn.Module) -> None:
        if self.stage == 3:
            place = self.axis, comm.mesh().rank(self.axis), comm.mesh().size(self.axis)
            self._owners = take_shards(model, lambda pieces: cut_rows(pieces, *place), self.only)

    def attach(self, model: nn.Module) -> None:
        self._gathered: GatheredModel | None = None
        if self.stage == 3:
            self._gathered = GatheredModel(model, self._owners, self.axis, self.of)
            self.sharded = self._gathered.sharded
        else:
            mine = [p for p in model.parameters() if self.only is None or self.only(p)]
            self.sharded = [rows_of(parameter, self.axis) for parameter in mine]
        self._of = {of.whole: of for of in self.sharded}
        super().attach(model)

    def parameters(self, mine: list[nn.Parameter]) -> list[nn.Parameter]:
        """The shards, in the place of what they are of; another's stay."""
        own = {tensor for of in self.sharded for tensor in (of.whole, of.shard)}
        return [*(p for p in mine if p not in own), *(of.shard for of in self.sharded)]

    def held(self) -> list[torch.Tensor]:
        return [tensor for of in self.sharded for tensor in (of.whole, of.shard)]

    def finish(self) -> None:
        super().finish()
        if self._gathered is not None:
            self._gathered.free()

    def after_step(self) -> None:
        """Everybody's rows of everything that was stepped."""
        if self.stage < 3:  # else they are gathered when they are needed
            self._fetch(self._lines, f"{self.of}: updated parameters")

    def after_load(self) -> None:
        if self.stage < 3:
            everything = in_groups([of.whole for of in self.sharded], self.bucket_bytes)
            lines = [Line([self._of[whole] for whole in group]) for group in everything]
            self._fetch(lines, f"{self.of}: loaded parameters")

    @torch.no_grad()
    def _fetch(self, lines: list[Line], reason: str) -> None:
        """All travel at the same time, and one is unpacked while the next is under way."""
        pending = [one.gather(self.axis, reason) for one in lines]
        for one, under_way in zip(lines, pending):
            one.unpack(under_way.wait())

    def zero_grad(self) -> None:
        for of in self.sharded:
            of.whole.grad = of.shard.grad = None
        for slot in self._slots.values():  # or it would hold the old gradient until the new one
            slot.view, slot.summed = None, False

    # -- what becomes of gradients --

    def _watch(self, parameters: list[nn.Parameter]) -> None:
        super()._watch([of.whole for of in self.sharded])

    def _fill_buckets(self, bucket_bytes: int) -> None:
        """No memory yet: gradients stay where autograd puts them until they travel."""
        self._buckets, self._lines = [], []
        for members in in_groups(self._trainable, bucket_bytes):
            bucket = Bucket(None, missing=len(members))
            bucket.slots = [Slot(parameter, None, bucket) for parameter in members]
            self._buckets.append(bucket)
            if self.stage < 3:
                self._lines.append(Line([self._of[parameter] for parameter in members]))
        self._slots = {slot.parameter: slot for bucket in self._buckets for slot in bucket.slots}

    def _put(self, slot: Slot) -> None:
        old = slot.view is not None and slot.parameter.grad is slot.view
        if old or self._of[slot.parameter].shard.grad is not None:
            raise RuntimeError(ADDED_TO_A_SUM)
        slot.view = None

    def _put_nothing(self, slot: Slot) -> None:
        slot.parameter.grad = torch.zeros_like(slot.parameter)

    def _start(self, bucket: Bucket) -> None:
        members = [self._of[slot.parameter] for slot in bucket.slots]
        flat = zero_comm.pack(members, [of.whole.grad for of in members], self.buffer)
        bucket.pending = comm.reduce_scatter(
            flat, self.axis, f"{self.of}: gradient bucket", async_op=True
        )
        if self.stage > 1:
            for of in members:
                of.whole.grad = None

    @torch.no_grad()
    def _wait(self) -> None:
        for bucket in self._buckets:
            bucket.flat = bucket.pending.wait()
            if self.replica_axis is not None:
                bucket.pending = comm.all_reduce(
                    bucket.flat, self.replica_axis, f"{self.of}: gradient shards", async_op=True
                )
        for bucket in self._buckets:
            flat, bucket.flat, at = bucket.pending.wait(), None, 0
            for slot in bucket.slots:
                of = self._of[slot.parameter]
                mine = flat[at : at + of.shard.numel()].view_as(of.shard)
                at += of.shard.numel()
                if self.stage == 1:
                    slot.view = of.whole.grad
                    of.shard.grad = of.mine(of.whole.grad).copy_(mine)
                else:
                    of.shard.grad = mine.clone()  # and the bucket, with its padding, is let go

    def _drop(self, slot: Slot) -> None:
        of = self._of[slot.parameter]
        of.whole.grad = of.shard.grad = None
