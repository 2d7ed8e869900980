"""Ranks that hold the same slice of the same parameter start from the same numbers, or are told so.

Summed gradients move replicas by the same amount, so what differs at the start differs for ever,
and no loss shows it: each rank reports the mean over models that are not one model. It happens
where a model with values is handed in (`Transformer(config, seed=rank)`), or seeds differ. torch's
DDP sends the first rank's numbers to all others; here they are compared, since who seeds by rank
means one model, and should hear that there were several.

Of each piece a rank computes one integer, the checksum of its bits: sums of rows and of columns,
weighted by their places, modulo 2^64. It costs a pass over the parameters, and along each axis that
a piece is not cut along, one all-reduce of two integers a piece: the maximum of c, and of not c,
which is that of the smallest c. Are the two alike, all ranks have the same.
"""

from collections.abc import Iterator

import torch

from picolab import comm
from picolab.model import Piece, Transformer, slices

REASON = "start: checksums of parameters"
SEED = "the seed"
_NONE = -(2**63)  # the maximum of this and of anything is the other


def check_same_start(model: Transformer, data_axis: str, seed: int | None = None) -> None:
    """All ranks call it, when there are values. data_axis: of the layout. seed: that they were
    drawn from; shards and stages tell nothing of it. ValueError, on every rank of a group whose
    members differ, with the first parameter and the ranks."""
    mesh = comm.mesh()
    sums = {
        piece: checksum(part)
        for parameter in model.parameters()
        for piece, part in slices(parameter)
    }
    of_axis: dict[str, list[Piece]] = {}
    for piece in sums:
        for axis in _copies(piece, data_axis):
            of_axis.setdefault(axis, []).append(piece)
    for axis in sorted(of_axis):
        pieces = of_axis[axis]
        names, found = [piece.name for piece in pieces], [sums[piece] for piece in pieces]
        _compare(axis, [SEED, *names], [seed, *found])
    if mesh.size("pp") > 1:
        tied = model.config.tied
        table = [c for piece, c in sums.items() if piece.name == "embed.weight" and tied]
        _compare("pp", [SEED, "embed.weight"], [seed, *(table or [None])])


def checksum(x: torch.Tensor) -> int:
    """An integer of 64 bits that follows from the bits of x and their places."""
    of_size = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = x.detach().contiguous().view(of_size[x.element_size()])
    bits = bits.unsqueeze(0) if bits.dim() < 2 else bits.flatten(1)
    total = 0
    for dim in (0, 1):
        line = bits.sum(dim, dtype=torch.int64)
        places = torch.arange(1, len(line) + 1, device=line.device)
        total = total * 1_000_003 + int((line * (places * 0x5851F42D4C957F2D + 1)).sum())
    return (total + 2**63) % 2**64 - 2**63


def _copies(piece: Piece, data_axis: str) -> Iterator[str]:
    """The axes along which all ranks hold this slice. (ZeRO's third stage has cut it already.)"""
    data = "edp" if "ep" in piece.axes else data_axis
    if "shard" in piece.axes:
        yield "replica"
    elif data not in piece.axes:
        yield data
    if "tp" not in piece.axes:
        yield "tp"
    for cut in piece.cuts:
        if cut.copies > 1:
            yield f"{cut.axis}_copies{cut.copies}"


def _compare(axis: str, names: list[str], sums: list[int | None]) -> None:
    """None: this rank does not hold it."""
    mesh = comm.mesh()
    if mesh.size(axis) == 1:
        return
    found = [(_NONE, _NONE) if c is None else (c, ~c) for c in sums]
    extremes = torch.tensor(found, dtype=torch.int64, device=comm.device())
    comm.all_reduce(extremes, axis, REASON, op="max")
    wrong = [
        name
        for name, (most, least) in zip(names, extremes.tolist())
        if most != ~least and (most, least) != (_NONE, _NONE)
    ]
    if not wrong:
        return
    mine = sums[names.index(wrong[0])]
    of_ranks = dict(zip(mesh.ranks(axis), comm.all_gather_json(mine, axis, REASON)))
    of_ranks = {rank: c for rank, c in of_ranks.items() if c is not None}
    first, *others = of_ranks
    unlike = [rank for rank in others if of_ranks[rank] != of_ranks[first]]
    if wrong[0] == SEED:
        told = ", ".join(f"{c} on rank {rank}" for rank, c in of_ranks.items())
        raise ValueError(
            f"the seed is {told}; these ranks make up one model (axis {axis}), and so all of them "
            "draw it from the same seed"
        )
    more = f", and {len(wrong) - 1} more parameters," if len(wrong) > 1 else ""
    raise ValueError(
        f"{wrong[0]}{more} should start alike on ranks {', '.join(map(str, of_ranks))}, which hold "
        f"copies of it (axis {axis}), and on {_ranks(unlike)} it has other numbers than on rank "
        f"{first}; give all ranks the same seed or the same weights"
    )


def _ranks(ranks: list[int]) -> str:
    return f"rank{'' if len(ranks) == 1 else 's'} {', '.join(map(str, ranks))}"
