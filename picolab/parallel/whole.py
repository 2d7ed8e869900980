"""From what the ranks hold to what the model has: gather a tensor, all of them, or their norm.

Everything here follows from the pieces (model/parameters.py) and asks no layout. A cut over an axis
is undone by an all-gather over it, the last cut first. Squares are summed over the axes that a
piece is cut along; what is not cut along an axis is equal on all its ranks and is counted once.
Stages of a pipeline hold different pieces, so over pp all is summed, and names are collected.

`copy` pieces (a tied head on the last stage) are another rank's to answer for, and are left out.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from picolab import comm
from picolab.model import Piece, slices

TensorOf = Callable[[nn.Parameter], torch.Tensor | None]


def gather(piece: Piece, part: torch.Tensor, reason: str) -> torch.Tensor:
    """The whole global tensor, on every rank. part: this rank's slice. All ranks of the axes that
    the piece is cut along call this; `reason` is completed by the axis ("tp: gather ...")."""
    for cut in reversed(piece.cuts):
        part = gather_shards(part, cut.sizes, cut.axis, f"{cut.axis}: {reason}", cut.dim)
        if cut.copies > 1:  # neighbours gave the same
            part = torch.cat(part.split(cut.sizes, cut.dim)[:: cut.copies], cut.dim)
    return part


def gather_shards(
    x: torch.Tensor, sizes: Sequence[int], axis: str, reason: str, dim: int = 0
) -> torch.Tensor:
    """The whole tensor from shards of unequal sizes. sizes: of every rank's share of `dim`, in
    order.

    An all-gather wants the same shape of all: smaller shards are padded and cut again.
    """
    missing = max(sizes) - x.shape[dim]
    if missing:
        shape = (*x.shape[:dim], missing, *x.shape[dim + 1 :])
        x = torch.cat((x, x.new_zeros(shape)), dim)
    whole = comm.all_gather(x.contiguous(), axis, reason, dim=dim)
    if len(set(sizes)) == 1:
        return whole
    parts = whole.split(max(sizes), dim)
    return torch.cat([part.narrow(dim, 0, size) for part, size in zip(parts, sizes)], dim)


def gather_all(
    parameters: Iterable[nn.Parameter], tensor_of: TensorOf, reason: str
) -> dict[str, torch.Tensor]:
    """Global name -> whole tensor, on the CPU, on every rank: of each parameter what `tensor_of`
    returns (its values, its gradient; None: left out). All ranks call it."""
    found = {}
    for parameter in parameters:
        tensor = tensor_of(parameter)
        if tensor is not None:
            for piece, part in slices(parameter, tensor):
                if not piece.copy:
                    found[piece.name] = gather(piece, part, reason)
    if comm.axis_size("pp") > 1:
        found = _from_all_stages(found, reason)
    return {name: tensor.to("cpu", copy=True) for name, tensor in found.items()}


def _from_all_stages(mine: dict[str, torch.Tensor], reason: str) -> dict[str, torch.Tensor]:
    """Every stage tells its names and shapes, and then its tensors, one after the other."""
    listing = [
        (name, list(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in mine.items()
    ]
    found: dict[str, torch.Tensor] = {}
    for stage, listed in enumerate(comm.all_gather_json(listing, "pp", f"pp: {reason}, names")):
        for name, shape, dtype in listed:
            if stage == comm.mesh().rank("pp"):
                tensor = mine[name].contiguous()
            else:
                tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=comm.device())
            found[name] = comm.broadcast(tensor, "pp", f"pp: {reason}", source=stage)
    return found


def square_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """The square of the norm of the whole model's gradient, an fp64 scalar, the same on all ranks:
    every element counted once, on whichever ranks it is. Parameters without a gradient count as
    zero.

    One all-reduce for each axis that anything is cut along: squares of tensors that are cut along
    the same axes are added up first, and travel side by side.
    """
    alike: dict[tuple[frozenset[str], int], list[torch.Tensor]] = {}
    device = comm.device()
    for parameter in parameters:
        if parameter.grad is not None:
            for piece, part in slices(parameter, parameter.grad):
                if not piece.copy:
                    alike.setdefault((piece.axes, piece.copies), []).append(part)
    sums: dict[frozenset[str], torch.Tensor] = {}
    for (axes, copies), parts in alike.items():  # each copy answers for its share
        sums[axes] = sums.get(axes, 0) + _square_sum(parts).to(device) / copies
    for axis in sorted({axis for axes in sums for axis in axes}):
        cut = sorted((axes for axes in sums if axis in axes), key=sorted)
        squares = torch.stack([sums.pop(axes) for axes in cut])
        comm.all_reduce(squares, axis, f"{axis}: gradient norm")
        for axes, square in zip(cut, squares):
            sums[axes - {axis}] = sums.get(axes - {axis}, 0) + square
    total = sums.get(frozenset(), torch.zeros((), dtype=torch.float64, device=device))
    return comm.all_reduce(total, "pp", "pp: gradient norm") if comm.axis_size("pp") > 1 else total


def _square_sum(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Sum of squares as an fp64 scalar.

    One fp32 sum over a large matrix is wrong by some 1e-6; so norms of rows in their own dtype
    (short sums), and the rest in fp64.
    """
    rows = [torch.linalg.vector_norm(t, dim=-1).flatten() for t in tensors]
    return torch.cat(rows).double().square().sum()
