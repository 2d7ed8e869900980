"""Which layer in which format: the least time whose damage stays within a budget. A knapsack, and
solved exactly.

    minimise    sum of seconds(layer, format of the layer)
    subject to  sum of damage(layer, format of the layer) <= budget

fp32 does no damage, so there is always an answer. The search goes layer by layer and keeps every
(damage, seconds) so far that may still become the best: none that another one beats in both, and
none that would lose even if the remaining layers could be cut into fractions (the linear
relaxation, whose answer is greedy: what saves most seconds a damage first). What is dropped cannot
win, so the answer is that of trying everything; a test does.

Some layers are not asked: their damage is not what a gradient's cosine shows (`ALWAYS_HIGH`).

    selector = AdaptivePrecisionSelector(budget=0.01)
    decision = selector.select(costs)          # layer -> format -> Cost(seconds, damage)
    decision["layers.0.mlp.down.weight"].reason
"""

import itertools
import math
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

ALWAYS_HIGH = {
    r"head\.weight|embed\.weight": "its output is what the loss takes the exponential of",
    r".*\.router\.weight": "a choice by the larger of two near numbers, which a rounding turns",
    r".*norm\.weight": "a mean of squares over the hidden size, and no product to be faster at",
}


class Cost(NamedTuple):
    """Of one layer in one format."""

    seconds: float
    """Measured (hardware.py); or bytes, where those are to be saved."""
    damage: float
    """Measured (analyzer.py)."""


class Choice(NamedTuple):
    format: str
    reason: str


# Of a format that costs least, the gain over fp32, one that costs less: in words.
_WORDS = {
    "seconds": ("fastest", "times fp32's speed", "faster"),
    "bytes": ("smallest", "times fewer bytes than fp32", "smaller"),
}


class _Partial(NamedTuple):
    """A decision for the first layers."""

    damage: float
    seconds: float
    chosen: tuple[str, ...]


class AdaptivePrecisionSelector:
    """Decides by measured costs.

    budget: the damage of all layers together that is accepted; 0 for none, math.inf for any.
    always_high: pattern of a layer's name -> why it stays in fp32. saves: what the costs'
    `seconds` are, for the reasons. Raises ValueError for a budget that is negative or no number.
    """

    def __init__(
        self,
        budget: float,
        always_high: Mapping[str, str] = ALWAYS_HIGH,
        saves: Literal["seconds", "bytes"] = "seconds",
    ):
        number = isinstance(budget, int | float) and not isinstance(budget, bool)
        if not number or math.isnan(budget) or budget < 0:
            raise ValueError(f"budget is {budget!r}; it is a sum of damages, 0 or more")
        self.budget, self.always_high, self._words = budget, always_high, _WORDS[saves]

    def select(self, costs: Mapping[str, Mapping[str, Cost]]) -> dict[str, Choice]:
        """The format of each layer, and why. costs: layer -> format -> cost; each has fp32."""
        for layer, options in costs.items():
            if "fp32" not in options:
                raise ValueError(f"{layer} has no cost in fp32, which is what it falls back on")
            for name, cost in options.items():
                if not (cost.damage >= 0 and cost.seconds >= 0):  # (NaN is neither)
                    raise ValueError(f"{layer} in {name} costs {cost}; both are 0 or more")
        fixed = {layer: why for layer in costs if (why := self._why_high(layer))}
        open_ = {layer: of for layer, of in costs.items() if layer not in fixed}
        chosen = dict(zip(open_, self._solve(open_)))
        found = {}
        for layer in costs:
            if layer in fixed:
                found[layer] = Choice("fp32", f"always high: {fixed[layer]}")
            else:
                found[layer] = Choice(chosen[layer], self._reason(chosen[layer], costs[layer]))
        return found

    def _why_high(self, layer: str) -> str | None:
        return next((why for of, why in self.always_high.items() if re.fullmatch(of, layer)), None)

    def _solve(self, costs: Mapping[str, Mapping[str, Cost]]) -> tuple[str, ...]:
        layers = list(costs.values())
        rest = [_Relaxed(layers[i:]) for i in range(len(layers) + 1)]
        limit = rest[0].greedy(self.budget) * (1 + 1e-12)  # (sums in another order)
        partials = [_Partial(0.0, 0.0, ())]
        for i, options in enumerate(layers):
            longer = [
                _Partial(of.damage + cost.damage, of.seconds + cost.seconds, (*of.chosen, name))
                for of in partials
                for name, cost in options.items()
                if of.damage + cost.damage <= self.budget
            ]
            partials = [
                of
                for of in _not_beaten(longer)
                if of.seconds + rest[i + 1].bound(self.budget - of.damage) <= limit
            ]
        return min(partials, key=lambda of: (of.seconds, of.damage)).chosen

    def _reason(self, chosen: str, options: Mapping[str, Cost]) -> str:
        cost, exact, (least, gain, less) = options[chosen], options["fp32"], self._words
        faster = [name for name, of in options.items() if of.seconds < cost.seconds]
        if chosen == "fp32" and not faster:
            return f"no format is {less} here"
        ratio = exact.seconds / cost.seconds if cost.seconds else math.inf
        said = f"damage {cost.damage:.2g}, {ratio:.2f} {gain}"
        if not faster:
            return f"the {least}: {said}"
        best = min(faster, key=lambda name: options[name].seconds)
        return f"{said}; {best} would be {less}, and do {options[best].damage:.2g} of damage"


def _not_beaten(partials: list[_Partial]) -> list[_Partial]:
    """Those that no other has at most the damage and at most the seconds of."""
    kept: list[_Partial] = []
    for of in sorted(partials, key=lambda of: (of.damage, of.seconds)):
        if not kept or of.seconds < kept[-1].seconds:
            kept.append(of)
    return kept


class _Relaxed:
    """Some layers, as if a layer could be partly in one format and partly in another."""

    def __init__(self, layers: list[Mapping[str, Cost]]):
        hulls = [_hull(options) for options in layers]
        self._most = sum(hull[0].seconds for hull in hulls)
        steps = [
            (before.seconds - after.seconds, after.damage - before.damage, at)
            for at, hull in enumerate(hulls)
            for before, after in itertools.pairwise(hull)
        ]
        # What saves most a damage first: of one layer, the hull's order.
        self._steps = sorted(steps, key=lambda step: -step[0] / step[1])

    def bound(self, budget: float) -> float:
        """The least seconds within the budget."""
        seconds = self._most
        for saved, damage, _ in self._steps:
            if damage > budget:
                return seconds - saved * budget / damage
            seconds, budget = seconds - saved, budget - damage
        return seconds

    def greedy(self, budget: float) -> float:
        """Seconds of one decision that is possible: whole steps only."""
        seconds, stopped = self._most, set()
        for saved, damage, at in self._steps:
            if at in stopped or damage > budget:
                stopped.add(at)
            else:
                seconds, budget = seconds - saved, budget - damage
        return seconds


def _hull(options: Mapping[str, Cost]) -> list[Cost]:
    """From the harmless to the fastest, those on the lower convex hull."""
    found: list[Cost] = []
    for cost in sorted(options.values(), key=lambda cost: (cost.damage, cost.seconds)):
        if found and cost.seconds >= found[-1].seconds:
            continue
        while len(found) > 1 and _slope(found[-2], found[-1]) <= _slope(found[-1], cost):
            found.pop()
        found.append(cost)
    return found


def _slope(one: Cost, other: Cost) -> float:
    """Seconds saved a damage, from one to the other."""
    return (one.seconds - other.seconds) / (other.damage - one.damage)


def brute_force(
    costs: Mapping[str, Mapping[str, Cost]], budget: float
) -> tuple[float, dict[str, str]]:
    """Every combination: the least seconds within the budget. For a handful of layers."""
    best: tuple[float, dict[str, str]] = math.inf, {}
    combinations: list[dict[str, str]] = [{}]
    for layer, options in costs.items():
        combinations = [{**of, layer: name} for of in combinations for name in options]
    for of in combinations:
        damage = sum(costs[layer][name].damage for layer, name in of.items())
        seconds = sum(costs[layer][name].seconds for layer, name in of.items())
        if damage <= budget and seconds < best[0]:
            best = seconds, of
    return best
