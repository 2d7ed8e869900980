"""Balance: the loss is the formula's, the bias evens out loads and changes no weight."""

import pytest
import torch

from picolab.model import initialise
from picolab.moe import ExpertLayer, Router, balance
from picolab.moe.strategy import forget_counts, update_bias
from picolab.specs import ModelConfig

SHAPE = dict(
    hidden=8, ffn=8, layers=1, heads=2, kv_heads=2, vocab=16, seq=6, experts=4,
    experts_per_token=2, expert_ffn=4,
)  # fmt: skip
X = torch.randn(3, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_hand(scores_BSE, chosen_BSE, config) -> float:
    """E * sum f P with loops; over a sequence, the mean of theirs."""
    if config.router_score == "sigmoid":
        scores_BSE = scores_BSE / scores_BSE.sum(-1, keepdim=True)
    pools = [(s, c) for s, c in zip(scores_BSE, chosen_BSE)]
    if config.aux_over != "sequence":
        pools = [(scores_BSE.flatten(0, 1), chosen_BSE.flatten(0, 1))]
    total = 0.0
    for scores, chosen in pools:
        for expert in range(config.experts):
            f = sum(bool(row[expert]) for row in chosen) / (len(chosen) * config.experts_per_token)
            p = sum(float(row[expert]) for row in scores) / len(scores)
            total += config.experts * f * p / len(pools)
    return total


@pytest.mark.parametrize("over", ["micro-batch", "sequence", "global batch"])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_the_loss_is_the_formula(over, score):
    config = ModelConfig(**SHAPE, aux_loss=0.5, z_loss=0.25, aux_over=over, router_score=score)
    router = initialise(Router(config, 0, torch.float64), seed=2)
    routed = router(X)
    logits = X @ router.weight.T
    scores = logits.softmax(-1) if score == "softmax" else logits.sigmoid()
    z = sum(float(row.exp().sum().log()) ** 2 for row in logits.detach().flatten(0, 1)) / 18
    right = 0.5 * by_hand(scores.detach(), routed.chosen_TE.view(3, 6, 4), config) + 0.25 * z
    assert float(routed.loss.detach()) == pytest.approx(right, rel=1e-12)


def test_even_loads_give_one_and_one_expert_for_all_gives_as_many_as_there_are():
    config = ModelConfig(**{**SHAPE, "experts_per_token": 1}, aux_loss=1.0)
    even = torch.full((1, 4, 4), 0.25, dtype=torch.float64)
    assert float(balance.aux_loss(even, torch.eye(4, dtype=torch.bool)[None], config)) == 1
    one = torch.eye(4, dtype=torch.float64)[[0, 0, 0, 0]][None]
    assert float(balance.aux_loss(one, one.bool(), config)) == 4


def test_an_identity_adds_the_gradient_wherever_backward_comes_by():
    config = ModelConfig(**SHAPE, aux_loss=0.3)
    layer = initialise(ExpertLayer(config, 0, torch.float64), seed=2)
    layer.loss_share = 0.25
    found = torch.autograd.grad(layer(X).sin().sum(), layer.router.weight)[0]
    plain = initialise(ExpertLayer(config.replace(aux_loss=0.0), 0, torch.float64), seed=2)
    right = torch.autograd.grad(plain(X).sin().sum(), plain.router.weight)[0]
    alone = torch.autograd.grad(layer.router(X).loss, layer.router.weight)[0]
    assert alone.any()
    torch.testing.assert_close(found, right + 0.25 * alone, rtol=1e-11, atol=1e-13)


def test_a_bias_evens_out_a_skewed_gate_and_changes_no_weight():
    config = ModelConfig(
        **SHAPE, router_bias=0.01, router_score="sigmoid", router_renormalise=False
    )
    layer = initialise(ExpertLayer(config, 0, torch.float64), seed=2)
    x = torch.randn(64, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 0.5
    with torch.no_grad():
        layer.router.weight[0] += 0.3  # everybody likes the first one
    first, loads = layer.router(x), []
    for _ in range(200):
        forget_counts(layer)
        routed = layer.router(x)
        loads.append(balance.imbalance(layer.router.counts_E))
        update_bias(layer, layer.router.counts_E)
    assert loads[0] > 1.3 and max(loads[-20:]) < 1.1
    both = first.chosen_TE & routed.chosen_TE
    assert torch.equal(first.weights_TE[both], routed.weights_TE[both])
    assert abs(float(layer.router.bias.mean())) < 1e-12


def test_mutant_a_bias_that_moves_the_other_way(monkeypatch):
    bias, load = torch.zeros(4), torch.tensor([10, 2, 2, 2])
    assert balance.move_bias(bias, load, 0.1)[0] < 0 < balance.move_bias(bias, load, 0.1)[1]
    assert balance.move_bias(bias, load, -0.1)[0] > 0
