"""The selector: as good as trying everything, and it looks at what it decides by.

The wrong versions this file catches: one that ignores its input, one that exceeds the budget, one
that takes what saves most first and never looks back, and one that forgets the list of layers that
are not asked.
"""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picolab.precision import selector
from picolab.precision.selector import AdaptivePrecisionSelector, Cost, brute_force

size = st.integers(1, 40).map(float)
options = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("bf16", "fp16", "fp8"), st.tuples(size, size))
)


@st.composite
def problems(draw):
    layers = {}
    for i in range(draw(st.integers(1, 5))):
        of = {name: Cost(*cost) for name, cost in draw(options).items()}
        layers[f"layer {i}"] = {"fp32": Cost(draw(size), 0.0), **of}
    return layers, draw(st.integers(0, 120).map(float))


def total(decision, costs):
    of = [costs[layer][choice.format] for layer, choice in decision.items()]
    return sum(c.seconds for c in of), sum(c.damage for c in of)


@given(problems())
def test_it_is_as_good_as_trying_everything(problem):
    costs, budget = problem
    decision = AdaptivePrecisionSelector(budget).select(costs)
    seconds, damage = total(decision, costs)
    assert seconds == brute_force(costs, budget)[0] and damage <= budget


def test_a_mutant_that_never_looks_back_is_caught():
    """Greedy takes what saves 60 a damage, and has no room left for what saves 100 in all."""
    costs = {
        "a": {"fp32": Cost(60, 0), "fp8": Cost(0, 1)},
        "b": {"fp32": Cost(100, 0), "fp8": Cost(0, 2)},
    }
    decision = AdaptivePrecisionSelector(2).select(costs)
    assert {layer: of.format for layer, of in decision.items()} == {"a": "fp32", "b": "fp8"}
    assert selector._Relaxed(list(costs.values())).greedy(2) == 100


def model(layers=40, seed=0):
    """As a model's: many alike, damages over two powers of ten."""
    draw = random.Random(seed)
    return {
        f"layers.{i}.mlp.down.weight": {
            "fp32": Cost(1.0, 0.0),
            "bf16": Cost(draw.uniform(0.4, 0.6), 10 ** draw.uniform(-6, -4)),
            "fp8": Cost(draw.uniform(0.25, 0.5), 10 ** draw.uniform(-4, -2)),
        }
        for i in range(layers)
    }


def test_no_budget_is_all_fp32_and_any_budget_is_the_fastest():
    costs = model()
    none = AdaptivePrecisionSelector(0).select(costs)
    assert {of.format for of in none.values()} == {"fp32"}
    every = AdaptivePrecisionSelector(math.inf).select(costs)
    fastest = {layer: min(of, key=lambda name: of[name].seconds) for layer, of in costs.items()}
    assert {layer: of.format for layer, of in every.items()} == fastest


def test_more_budget_is_never_slower():
    costs = model()
    budgets = (0, 1e-4, 1e-3, 1e-2, 0.1, 1)
    seconds = [total(AdaptivePrecisionSelector(b).select(costs), costs)[0] for b in budgets]
    assert seconds == sorted(seconds, reverse=True) and len(set(seconds)) > 3


def follows_its_input(select):
    costs = model()
    names = list(costs)
    moved = dict(zip(names, random.Random(5).sample(names, len(names))))
    first = select(costs)
    second = select({name: costs[moved[name]] for name in names})
    assert {moved[name]: second[name].format for name in names} == {
        name: of.format for name, of in first.items()
    }
    assert len({of.format for of in first.values()}) > 1


def test_permuted_statistics_permute_the_decision():
    follows_its_input(AdaptivePrecisionSelector(0.01).select)


def test_a_mutant_that_ignores_its_input_is_caught():
    decided = AdaptivePrecisionSelector(0.01).select(model())
    with pytest.raises(AssertionError):
        follows_its_input(lambda costs: decided)


def test_some_layers_are_not_asked_and_every_layer_has_a_reason():
    free = {"fp32": Cost(1.0, 0.0), "bf16": Cost(0.1, 0.0)}
    names = ["head.weight", "layers.3.mlp.router.weight", "layers.0.mlp.gate.weight"]
    found = AdaptivePrecisionSelector(1).select(dict.fromkeys(names, free))
    assert [of.format for of in found.values()] == ["fp32", "fp32", "bf16"]
    assert "the loss takes the exponential" in found["head.weight"].reason
    assert "a choice by the larger" in found["layers.3.mlp.router.weight"].reason
    assert found["layers.0.mlp.gate.weight"].reason == (
        "the fastest: damage 0, 10.00 times fp32's speed"
    )


def test_slower_formats_are_not_taken_and_dear_ones_are_named():
    costs = {
        "slow": {"fp32": Cost(1.0, 0.0), "fp8": Cost(3.0, 0.0)},
        "dear": {"fp32": Cost(1.0, 0.0), "bf16": Cost(0.5, 0.001), "fp8": Cost(0.3, 0.5)},
    }
    found = AdaptivePrecisionSelector(0.01).select(costs)
    assert found["slow"] == ("fp32", "no format is faster here")
    assert found["dear"].format == "bf16"
    assert found["dear"].reason.endswith("fp8 would be faster, and do 0.5 of damage")


@pytest.mark.parametrize("budget", [-1, math.nan, None, "much", True])
def test_a_budget_that_is_none(budget):
    with pytest.raises(ValueError, match="it is a sum of damages, 0 or more"):
        AdaptivePrecisionSelector(budget)


def test_costs_that_cannot_be():
    with pytest.raises(ValueError, match="a has no cost in fp32"):
        AdaptivePrecisionSelector(1).select({"a": {"bf16": Cost(1, 0)}})
    with pytest.raises(ValueError, match=r"a in bf16 costs .*both are 0 or more"):
        broken = {"fp32": Cost(1, 0), "bf16": Cost(1, math.nan)}
        AdaptivePrecisionSelector(1).select({"a": broken})
    assert AdaptivePrecisionSelector(1).select({}) == {}
