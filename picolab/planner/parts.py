"""What a candidate's places hold, and the rates of the device: what memory and time both ask."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from picolab import costs
from picolab.costs.parameters import has_experts
from picolab.planner.request import Request
from picolab.specs import Layout


class Counts(NamedTuple):
    """How many layers of a kind keep everything, recompute selectively, and recompute."""

    none: int
    selective: int
    full: int

    def __str__(self) -> str:
        words = zip(("keep", "selective", "recompute"), self)
        return ", ".join(f"{count} {word}" for word, count in words if count) or "no layers"


class Mix(NamedTuple):
    """Of one place on pp: of its dense layers, and of those with experts."""

    dense: Counts
    sparse: Counts

    def __str__(self) -> str:
        return str(Counts(*map(sum, zip(*self))))


class Candidate(NamedTuple):
    """A layout, and how its step is cut and what it recomputes: all layers the same, or each place
    on pp a mix."""

    layout: Layout
    micro_batch: int
    recompute: costs.activations.Recompute | tuple[Mix, ...]

    def __str__(self) -> str:
        recompute = "" if self.recompute == "none" else f", {self.recomputes} recompute"
        return f"{self.layout}, micro-batch {self.micro_batch}{recompute}"

    @property
    def recomputes(self) -> str:
        return self.recompute if isinstance(self.recompute, str) else "mixed"


class Part(NamedTuple):
    """What one place on pp holds."""

    dense: int
    """layers with a dense MLP"""
    sparse: int
    """layers with experts"""
    first: bool
    """the embedding"""
    last: bool
    """the last norm, the head and the loss"""


def uniform(part: Part, recompute: str) -> Mix:
    """The mix in which all layers do the same."""
    at = costs.RECOMPUTE.index(recompute)
    return Mix(*(Counts(*(n if i == at else 0 for i in range(3))) for n in part[:2]))


class once:
    """A method that computes each of its results once: `functools.cache`, for each object its own.
    What candidates share is found in there, a million times in a search."""

    def __init__(self, method: Callable):
        self.method = method

    def __get__(self, of: object | None, owner: type):
        if of is None:
            return self
        # In the object's own dict, which from here on is looked at first.
        found = of.__dict__[self.method.__name__] = functools.cache(self.method.__get__(of))
        return found


class Parts:
    """A request's model in parts. What candidates share is computed once."""

    def __init__(self, request: Request):
        self.request = request
        self.config, self.hardware = request.model, request.hardware
        self.practice, self.efficiency = request.practice, request.efficiency

    @once
    def _places(self, pp: int, schedule: str, stages: tuple[int, ...]) -> tuple[Part, ...]:
        layout = Layout(pp=pp, schedule=schedule, stages=stages)
        last = len(layout.stage_ranks) - 1
        found = []
        for place in range(pp):
            dealt = costs.rank_stages(self.config.layers, layout, place)
            layers = [layer for held in dealt.values() for layer in held]
            sparse = sum(has_experts(self.config, layer) for layer in layers)
            found.append(Part(len(layers) - sparse, sparse, 0 in dealt, last in dealt))
        return tuple(found)

    def whole(self) -> Part:
        """All of the model."""
        return self._places(1, "1f1b", ())[0]

    @once
    def parameters(self, part: Part, tp: int, ep: int) -> costs.HeldParameters:
        layers = [layer for count, layer in self._kinds(part) for _ in range(count)]
        return costs.held_parameters(
            self.config, layers, tp=tp, ep=ep, first=part.first, last=part.last
        )

    def holds(self, layout: Layout, m: int) -> bool:
        """Whether the schedule can have m micro-batches, and its bubble a closed form."""
        return layout.pp == 1 or self._holds(layout.schedule, layout.pp, m) == "yes"

    @once
    def _holds(self, schedule: str, pp: int, m: int) -> str:
        try:
            costs.bubble(schedule, pp, m)
            return "yes"
        except ValueError:
            return "no"

    def least_micro_batches(self, layout: Layout) -> int:
        """The smallest number of micro-batches for which it holds."""
        return next(m for m in range(1, 4 * layout.pp + 1) if self.holds(layout, m))

    def micro_batches(self, candidate: Candidate) -> int:
        """Of one replica, in one step."""
        return self.request.global_batch // (candidate.layout.dp * candidate.micro_batch)

    def mixes(self, where: tuple, recompute) -> tuple[tuple["Part", Mix], ...]:
        """What each place on pp holds, and what its layers recompute."""
        places = self._places(*where)
        if not isinstance(recompute, str):
            return tuple(zip(places, recompute, strict=True))
        return tuple((part, uniform(part, recompute)) for part in places)

    def _kinds(self, part: Part) -> tuple[tuple[int, int], ...]:
        """How many layers of a kind, and one of them."""
        return (part.dense, 0), (part.sparse, self.config.layers - 1)

    def _kept(self, layer, tp, sp, cp, micro_batch, recompute) -> float:
        """Bytes that a layer keeps of a micro-batch."""
        over_tp, between = self._token_bytes(layer, recompute)
        tokens = micro_batch * self.request.seq / cp
        return tokens * (over_tp / tp + between / (tp if sp else 1))

    @once
    def _token_bytes(self, layer, recompute) -> tuple[float, float]:
        practice = self.practice
        return costs.token_bytes(
            self.config, layer, seq=self.request.seq, recompute=recompute, dtype=practice.dtype,
            attention=practice.attention, dropout=practice.dropout,
        )  # fmt: skip

    def _loss(self, tp, sp, cp, micro_batch) -> float:
        return costs.end_activation_bytes(
            self.config, micro_batch=micro_batch, seq=self.request.seq, tp=tp, sp=sp, cp=cp,
            dtype=self.practice.dtype,
        )  # fmt: skip
