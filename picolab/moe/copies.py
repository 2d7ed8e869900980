"""Hot experts on several ranks of an ep group: copies that are trained.

A rank waits for the one whose experts have the most rows. Where one expert alone has more than a
rank's share, no packing helps, and it is put on several ranks:

    forward      a sender shares out an expert's rows among its h holders, as evenly as they go
                 (`costs.ExpertSlots` says which go where): each has a 1/h of the rows
    backward     each holder's gradient is of its own rows. A copy's goes to the owner, which adds
                 it to its own, in the order of the ranks; and the sum goes to every copy
    step         same numbers, same gradient, same optimizer: copies stay bit-identical, and so do
                 the moments. Nothing else keeps them equal

The owner is the rank that has the expert anyhow, at its place among the E / ep. A copy is a piece
of the same parameter, behind the rank's own experts, and is marked as a copy (`Piece.copy`): the
gradient norm, `state_dict` and checkpoints pass it by.

The two exchanges of gradients are all-to-alls of whole experts, once a step, after the sums over
edp (which each of the holders has taken for itself; all ranks of an edp group have the same
copies). With h holders the owner sends and gets h - 1 times an expert's bytes. All-reduces over the
holders would be a group for each set of them, and other groups after each change of the plan.

`refill` puts other experts into the slots, with what the optimizer keeps of them. Source: EPLB
(deepseek-ai, 2025), for servers; in training FasterMoE (PPoPP 2022), hot experts on all ranks, and
arXiv 2504.19925, which also deals out the optimizer's state. Leaves out: ZeRO, sums that are under
way while backward runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from picolab import comm
from picolab.costs import ExpertSlots
from picolab.model import Piece
from picolab.model.parameters import Cut
from picolab.moe.experts import ExpertLayer

GRADIENTS, SUMS = "ep: gradients of copies", "ep: sums of copies' gradients"
FILL = "moe: copies of experts"

Rows = list[torch.Tensor]  # of one expert each: views
Tensors = Callable[[ExpertLayer], Sequence[torch.Tensor]]  # of a layer, slots along their first dim


def copy_of(piece: Piece, axis: str, expert: int) -> Piece:
    """Of the tensor of all experts the slice that is this one, as a copy."""
    cut = Cut(axis, 0, tuple(range(piece.shape[0] + 1)), expert)
    return replace(piece, cuts=(*piece.cuts, cut), copy=True)


def sum_gradients(layers: Sequence[ExpertLayer], axis: str) -> None:
    """Every holder's gradient becomes the sum over all holders. All ranks of the axis call it."""
    layers = [layer for layer in layers if layer.communication.slots is not None]
    if not layers:
        return
    to_owners, at_owners = _pairs(layers, axis, _gradients)
    sample = next(layers[0].experts.parameters())
    came = _exchanged(to_owners, at_owners, sample, axis, GRADIENTS)
    for of_rank, theirs in zip(at_owners, came):  # in the order of the ranks, whoever was faster
        for own, other in zip(of_rank, theirs):
            own += other
    _put(to_owners, _exchanged(at_owners, to_owners, sample, axis, SUMS))


@torch.no_grad()
def refill(
    layer: ExpertLayer,
    copies: Sequence[Sequence[int]],
    optimizer: torch.optim.Optimizer,
    axis: str = "ep",
) -> None:
    """Let the slots for copies hold these experts (rank of the axis -> experts), as many as before:
    their numbers and the optimizer's, from the owners. Between steps; all ranks of the axis call
    it."""
    slots = ExpertSlots(layer.config.experts, copies)
    assert slots.sizes == layer.communication.slots.sizes, "a parameter keeps its size"
    layer.communication.slots = slots
    for parameter in layer.experts.parameters():
        own = next(piece for piece in parameter.pieces if not piece.copy)
        whole = replace(own, cuts=own.cuts[:-1])
        here = slots.copies[comm.mesh().rank(axis)]
        parameter.pieces = (own, *(copy_of(whole, axis, expert) for expert in here))
    in_slots, at_owners = _pairs(
        [layer],
        axis,
        lambda of: [t for p in of.experts.parameters() for t in with_moments(p, optimizer)],
    )
    sample = next(layer.experts.parameters())
    _put(in_slots, _exchanged(at_owners, in_slots, sample, axis, FILL))


def with_moments(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The values, and what the optimizer keeps of each of them."""
    kept = optimizer.state.get(parameter, {}).values()
    alike = [t for t in kept if isinstance(t, torch.Tensor) and t.shape == parameter.shape]
    return [parameter.data, *alike]


def _gradients(layer: ExpertLayer) -> list[torch.Tensor]:
    trained = [parameter for parameter in layer.experts.parameters() if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:  # not used here, perhaps elsewhere
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in trained]


def _pairs(
    layers: Sequence[ExpertLayer], axis: str, tensors: Tensors
) -> tuple[list[Rows], list[Rows]]:
    """Rank -> what of this rank's copies that rank owns; and rank -> what this rank owns of that
    rank's copies. Both sides list them in the same order."""
    me, n = comm.mesh().rank(axis), comm.mesh().size(axis)
    copied: list[Rows] = [[] for _ in range(n)]
    owned: list[Rows] = [[] for _ in range(n)]
    for layer in layers:
        slots = layer.communication.slots
        for tensor in tensors(layer):
            for rank, experts in enumerate(slots.copies):
                for expert in experts:
                    owner = slots.owner(expert)
                    if rank == me:
                        copied[owner].append(tensor[slots.held[me].index(expert)])
                    if owner == me:
                        owned[rank].append(tensor[slots.held[me].index(expert)])
    return copied, owned


def _exchanged(
    leaving: list[Rows], like: list[Rows], sample: torch.Tensor, axis: str, reason: str
) -> list[Rows]:
    """Rank -> what it sent: as many tensors, of the shapes, as `like` has of it. sample: of their
    dtype and device."""
    flat = [row.flatten() for rows in leaving for row in rows]
    sizes, came = ([sum(row.numel() for row in rows) for rows in of] for of in (leaving, like))
    flat = torch.cat(flat) if flat else sample.detach().new_empty(0)
    arrived = comm.all_to_all(flat, axis, reason, came, sizes)
    parts = iter(arrived.split([row.numel() for rows in like for row in rows]))
    return [[next(parts).view(row.shape) for row in rows] for rows in like]


def _put(into: list[Rows], values: list[Rows]) -> None:
    for rows, theirs in zip(into, values):
        for row, value in zip(rows, theirs):
            row.copy_(value)
