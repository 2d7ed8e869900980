"""Experts move to other ranks, so that ranks have equal loads.

A rank waits for the one whose experts have the most rows. Which experts are in demand changes
slowly, so every some steps the loads that were counted are looked at, experts are packed anew, and
what belongs to one goes with it: its matrices and the optimizer's moments of them.

    pack      largest first, each to the rank with the smallest load that has room (LPT)
    move      an all-to-all of whole experts over the ranks of the axis

**Names.** A rank has experts r*E/n ... (r+1)*E/n - 1, and everybody who reads a parameter counts on
that. So experts that change places change their numbers as well, and the router's rows (and its
bias, and their moments) are put into the same new order. The model computes what it computed: a
token goes to the same matrices under another number. Losses are the same up to the order of sums.

**Copies.** Where one expert has more rows than a rank's share, no place is right for it. `plan`
puts copies of the hottest into further slots (copies.py trains them), and `imbalance_of_ranks` says
what is left. In a run with `expert_copies` these slots are what a LoadBalancer fills anew, and no
expert moves.

Source: EPLB (deepseek-ai, 2025), whose `balanced_packing` and `replicate_experts` these are (there
copies and all else are packed together; here an expert stays at home); LPT: Graham 1969. Leaves
out: ZeRO, groups of experts.
"""

import heapq
from collections.abc import Sequence

import torch

from picolab import comm
from picolab.costs import ExpertSlots
from picolab.moe.copies import refill, with_moments
from picolab.moe.experts import ExpertLayer
from picolab.moe.strategy import MoEParallelStrategy
from picolab.monitoring import Observer, StepReport, events
from picolab.specs.expert_copies import Copies

WEIGHTS = "moe: experts move"


def pack(load_E: Sequence[float], ranks: int) -> list[int]:
    """Which expert comes to which place: order[place] is an expert, and the first E / ranks places
    are the first rank's. Without the limit of E / ranks of each, the most loaded rank has at most
    4/3 of the least that is possible (Graham)."""
    room = len(load_E) // ranks
    held: list[list[int]] = [[] for _ in range(ranks)]
    heap = [(0.0, rank) for rank in range(ranks)]
    for expert in sorted(range(len(load_E)), key=lambda e: (-load_E[e], e)):
        total, rank = heapq.heappop(heap)
        held[rank].append(expert)
        if len(held[rank]) < room:
            heapq.heappush(heap, (total + load_E[expert], rank))
    return [expert for of_rank in held for expert in sorted(of_rank)]


def plan(load_E: Sequence[float], slots: Sequence[int]) -> Copies:
    """Which experts of others each rank should have, too: rank -> experts. slots: for so many each
    has room.

    One copy after the other: the one after which the fullest rank has least, on the emptiest rank
    that has room for it. (A copy of the hottest may be worse than none: half of its rows come to a
    rank that has its own.)"""
    ranks, experts = range(len(slots)), range(len(load_E))
    if len(load_E) % len(slots) or max(slots) > len(load_E) - len(load_E) // len(slots):
        raise ValueError(
            f"{len(load_E)} experts on {len(slots)} ranks, and slots {tuple(slots)}: a rank has an "
            "equal part of the experts, and no slots for more than all others"
        )
    copies: list[tuple[int, ...]] = [() for _ in ranks]
    for _ in range(sum(slots)):
        now = ExpertSlots(len(load_E), copies)
        loads, found = now.rows_of_ranks(load_E), []
        for expert in experts:
            holders = now.holders[expert]
            room = [r for r in ranks if len(copies[r]) < slots[r] and r not in holders]
            if room:
                rank = min(room, key=lambda r: loads[r])
                after, share = list(loads), load_E[expert] / (len(holders) + 1)
                for holder in holders:
                    after[holder] -= load_E[expert] / len(holders) - share
                after[rank] += share
                found.append((sorted(after, reverse=True), expert, rank))
        _, expert, rank = min(found)
        copies[rank] = tuple(sorted((*copies[rank], expert)))
    return tuple(copies)


def imbalance_of_ranks(
    load_E: Sequence[float],
    ranks: int,
    order: Sequence[int] | None = None,
    copies: Copies | None = None,
) -> float:
    """The largest load of a rank over the mean, in this order of the experts or with these copies:
    by as much the experts' part of a step is longer than with equal loads."""
    in_order = [load_E[e] for e in order or range(len(load_E))]
    sums = ExpertSlots(len(load_E), copies or ((),) * ranks).rows_of_ranks(in_order)
    return max(sums) * ranks / total if (total := sum(sums)) else 1.0


class LoadBalancer(Observer):
    """Moves experts every so many steps, where the ranks' loads then are more even.

    pico.train("tiny-moe", "dp2ep2", observers=[LoadBalancer(every=10)])

    at_least: by how much the imbalance of the ranks must shrink for a move to be worth it. `moved`
    lists (step, layer, imbalance before, imbalance expected after). In layers with `expert_copies`
    nothing moves, and the slots for copies get what is hot now.

    With it ranks of ep have nearly equal loads, and one's experts are others than before; without
    it, loads are as the numbers of the experts happen to fall.
    """

    def __init__(self, every: int = 10, at_least: float = 0.01):
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"every is {every!r}; it is a number of steps, 1 or more")
        self.every, self.at_least = every, at_least
        self.moved: list[tuple[int, int, float, float]] = []
        self._loads: dict[int, torch.Tensor] = {}

    def start(self, run) -> None:
        found = [p for p in run.parallel.placements if isinstance(p, MoEParallelStrategy)]
        if not found:
            raise ValueError(
                f"{run.config.model.name} has no experts that a LoadBalancer could move"
            )
        if run.config.layout.zero or run.config.model.router_groups > 1:
            raise ValueError(
                "a LoadBalancer moves whole experts between any two ranks; leave zero and "
                "router_groups out"
            )
        if run.config.expert_copies and run.config.numbers.watched:
            raise ValueError(
                f"precision {run.config.precision!r} may take steps back, to copies of other "
                "experts; leave the LoadBalancer or expert_copies out"
            )
        (self._strategy,) = found

    def step(self, run, report: StepReport) -> None:
        if report.skipped:
            return
        for layer, load_E in self._strategy.loads.items():
            self._loads[layer] = self._loads.get(layer, 0) + load_E
        if (report.step + 1) % self.every == 0:
            self._rebalance(run.optimizer, report.step)
            self._loads = {}

    def _rebalance(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        axis = self._strategy.axis
        ranks = comm.axis_size(axis)
        for layer in self._strategy.layers if ranks > 1 else ():
            load_E, slots = self._loads[layer.number].tolist(), layer.communication.slots
            if slots is None:
                act, told, there, new = move, "order", None, pack(load_E, ranks)
            else:
                act, told, there, new = refill, "copies", slots.copies, plan(load_E, slots.copied)
            now, then = (imbalance_of_ranks(load_E, ranks, **{told: of}) for of in (there, new))
            if now - then >= self.at_least:
                act(layer, new, optimizer, axis)
                self.moved.append((step, layer.number, now, then))
                what = {"order": "experts moved", "copies": "experts copied"}[told]
                events.write(what, step=step, layer=layer.number, **{told: new})


@torch.no_grad()
def move(
    layer: ExpertLayer, order: Sequence[int], optimizer: torch.optim.Optimizer, axis: str = "ep"
) -> None:
    """Put the experts of a layer into this order, on all ranks of the axis. All of them call it."""
    places = torch.tensor(list(order))
    for parameter in layer.experts.parameters():
        for tensor in with_moments(parameter, optimizer):
            tensor.copy_(_exchanged(tensor, order, axis))
    for parameter in layer.router.parameters():
        for tensor in with_moments(parameter, optimizer):
            tensor.copy_(tensor[places.to(tensor.device)])


def _exchanged(tensor: torch.Tensor, order: Sequence[int], axis: str) -> torch.Tensor:
    """This rank's experts of the new order. tensor: those of the old one, along dim 0."""
    mesh = comm.mesh()
    me, each = mesh.rank(axis), len(tensor)
    by_rank = [order[r * each : (r + 1) * each] for r in range(mesh.size(axis))]
    leaving = [[e for e in theirs if e // each == me] for theirs in by_rank]
    coming = [[e for e in by_rank[me] if e // each == r] for r in range(mesh.size(axis))]
    rows = [e - me * each for of_rank in leaving for e in of_rank]
    came = comm.all_to_all(
        tensor[torch.tensor(rows, dtype=torch.int64, device=tensor.device)].flatten(1),
        axis,
        WEIGHTS,
        [len(of_rank) for of_rank in coming],
        [len(of_rank) for of_rank in leaving],
    )
    arrived = [e for of_rank in coming for e in of_rank]
    places = [arrived.index(e) for e in by_rank[me]]
    return came.view(each, *tensor.shape[1:])[torch.tensor(places, device=tensor.device)]
