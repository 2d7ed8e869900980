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

`replicas` and `imbalance_of_ranks` tell what more would be won with several copies of hot experts,
as servers have them (EPLB); in training each copy's gradient would have to be summed.

Source: EPLB (deepseek-ai, 2025), whose `balanced_packing` and `replicate_experts` these are; LPT:
Graham 1969. Leaves out: copies that are trained, ZeRO, groups of experts.
"""

import heapq
from collections.abc import Sequence

import torch

from picolab import comm
from picolab.moe.experts import ExpertLayer
from picolab.moe.strategy import MoEParallelStrategy
from picolab.monitoring import Observer, StepReport, events

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


def replicas(load_E: Sequence[float], slots: int) -> list[int]:
    """How many copies each expert should have, of `slots` in all: one each, and every further one
    where the load of a copy is largest."""
    if slots < len(load_E):
        raise ValueError(f"{slots} slots are too few: each of {len(load_E)} experts needs one")
    copies = [1] * len(load_E)
    for _ in range(slots - len(load_E)):
        hot = max(range(len(load_E)), key=lambda e: (load_E[e] / copies[e], -e))
        copies[hot] += 1
    return copies


def imbalance_of_ranks(
    load_E: Sequence[float], ranks: int, order: Sequence[int] | None = None
) -> float:
    """The largest load of a rank over the mean, in this order of the experts: by as much the
    experts' part of a step is longer than with equal loads."""
    order = range(len(load_E)) if order is None else order
    each = len(load_E) // ranks
    sums = [sum(load_E[e] for e in order[r * each : (r + 1) * each]) for r in range(ranks)]
    return max(sums) * ranks / total if (total := sum(sums)) else 1.0


class LoadBalancer(Observer):
    """Moves experts every so many steps, where the ranks' loads then are more even.

    pico.train("tiny-moe", "dp2ep2", observers=[LoadBalancer(every=10)])

    at_least: by how much the imbalance of the ranks must shrink for a move to be worth it. `moved`
    lists (step, layer, imbalance before, imbalance expected after).

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
            load_E = self._loads[layer.number].tolist()
            order = pack(load_E, ranks)
            now, then = imbalance_of_ranks(load_E, ranks), imbalance_of_ranks(load_E, ranks, order)
            if now - then >= self.at_least:
                move(layer, order, optimizer, axis)
                self.moved.append((step, layer.number, now, then))
                events.write("experts moved", step=step, layer=layer.number, order=order)


@torch.no_grad()
def move(
    layer: ExpertLayer, order: Sequence[int], optimizer: torch.optim.Optimizer, axis: str = "ep"
) -> None:
    """Put the experts of a layer into this order, on all ranks of the axis. All of them call it."""
    places = torch.tensor(list(order))
    for parameter in layer.experts.parameters():
        for tensor in _with_moments(parameter, optimizer):
            tensor.copy_(_exchanged(tensor, order, axis))
    for parameter in layer.router.parameters():
        for tensor in _with_moments(parameter, optimizer):
            tensor.copy_(tensor[places.to(tensor.device)])


def _with_moments(parameter, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The values, and what the optimizer keeps of each of them."""
    kept = optimizer.state.get(parameter, {}).values()
    alike = [t for t in kept if isinstance(t, torch.Tensor) and t.shape == parameter.shape]
    return [parameter.data, *alike]


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
