"""The router against a loop over all tokens, for each way to choose, to drop and to weigh.

The wrong versions this file catches: a bias that changes weights and not only the choice, drops of
the highest scores or of the first tokens, weights that are renormalised over what was not dropped,
ties that fall by chance, a choice made again in recomputation, counts doubled by it or taken in an
evaluation.
"""

import math
from itertools import product

import pytest
import torch
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from picolab.model import initialise
from picolab.moe import Router, router, saved_choices
from picolab.specs import ModelConfig

SHAPE = dict(
    hidden=8, ffn=8, layers=1, heads=2, kv_heads=2, vocab=16, seq=6, experts=6,
    experts_per_token=2, expert_ffn=4,
)  # fmt: skip
KINDS = {
    "mixtral": {},
    "not renormalised": dict(router_renormalise=False),
    "sigmoid, scaled": dict(router_score="sigmoid", router_scale=2.5),
    "groups": dict(router_groups=3, router_groups_kept=2),
    "groups, sigmoid, bias": dict(
        router_groups=2, router_groups_kept=1, router_score="sigmoid", router_bias=0.1
    ),
    "bias": dict(router_bias=0.1),
    "capacity by score": dict(capacity=0.75),
    "capacity by position": dict(capacity=0.75, drop="position"),
    "nobody is dropped": dict(capacity=3.0),
    "experts choose": dict(router_choice="expert"),
    "bias, capacity, sigmoid": dict(router_bias=0.1, capacity=0.5, router_score="sigmoid"),
}


def make(**kind) -> Router:
    made = initialise(Router(ModelConfig(**SHAPE, **kind), 0, torch.float64), seed=3)
    if made.bias is not None:
        made.bias.copy_(torch.linspace(-0.5, 0.5, 6))
    return made


def tokens(seed=0, rows=2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 6, 8, dtype=torch.float64, generator=generator, requires_grad=True)


def brute_force(r: Router, x_BSD) -> tuple[list[dict[int, float]], list[set[int]]]:
    """Token by token, with Python's numbers: the weights, and the choice before drops."""
    c, logits = r.config, (x_BSD.detach().flatten(0, 1) @ r.weight.detach().T).tolist()
    scores = []
    for row in logits:
        if c.router_score == "softmax":
            total = sum(map(math.exp, row))
            scores.append([math.exp(z) / total for z in row])
        else:
            scores.append([1 / (1 + math.exp(-z)) for z in row])
    bias = [0.0] * c.experts if r.bias is None else r.bias.tolist()
    chosen: list[set[int]] = [set() for _ in scores]
    if c.router_choice == "expert":
        share = math.ceil(len(scores) * c.experts_per_token / c.experts)
        for expert in range(c.experts):
            order = sorted(range(len(scores)), key=lambda t: (-scores[t][expert], t))
            for token in order[:share]:
                chosen[token].add(expert)
    for token, row in enumerate(scores if c.router_choice == "token" else []):
        wanted = [s + b for s, b in zip(row, bias)]
        size = c.experts // c.router_groups
        groups = [wanted[g * size : (g + 1) * size] for g in range(c.router_groups)]
        best = [sum(sorted(group)[-2:]) for group in groups]
        kept = sorted(range(len(groups)), key=lambda g: (-best[g], g))[: c.router_groups_kept]
        allowed = [e for e in range(c.experts) if e // size in kept]
        chosen[token] = set(sorted(allowed, key=lambda e: (-wanted[e], e))[: c.experts_per_token])
    weights = []
    for row, mine in zip(scores, chosen):
        total = 1.0
        if c.router_renormalise and c.router_choice == "token":
            total = sum(row[e] for e in mine)
        weights.append({e: row[e] / total * c.router_scale for e in mine})
    if c.capacity is not None:
        limit = math.ceil(c.capacity * len(scores) * c.experts_per_token / c.experts)
        for expert in range(c.experts):
            asking = [t for t in range(len(scores)) if expert in chosen[t]]
            if c.drop == "score":
                asking.sort(key=lambda t: (-scores[t][expert], t))
            for token in asking[limit:]:
                del weights[token][expert]
    return weights, chosen


@pytest.mark.parametrize("kind", KINDS)
def test_it_does_what_a_loop_over_tokens_does(kind):
    made, dropped = make(**KINDS[kind]), 0
    for seed in range(5):
        x = tokens(seed)
        routed = made(x)
        weights, chosen = brute_force(made, x)
        for token, (mine, asked) in enumerate(zip(weights, chosen)):
            assert set(routed.admitted_TE[token].nonzero().flatten().tolist()) == set(mine)
            assert set(routed.chosen_TE[token].nonzero().flatten().tolist()) == asked
            expected = torch.zeros(6, dtype=torch.float64)
            for expert, weight in mine.items():
                expected[expert] = weight
            torch.testing.assert_close(routed.weights_TE[token], expected, rtol=1e-12, atol=1e-14)
            dropped += len(asked) - len(mine)
    assert bool(dropped) == ("capacity" in kind) and made.dropped == dropped


@pytest.mark.parametrize("kind", ["mixtral", "sigmoid, scaled", "groups", "experts choose"])
def test_the_gates_gradient_is_that_of_the_dense_formula(kind):
    made, x = make(**KINDS[kind]), tokens()
    routed = made(x)
    probe = torch.linspace(-1, 1, 72, dtype=torch.float64).view(12, 6)
    found = torch.autograd.grad((routed.weights_TE * probe).sum(), [made.weight, x])
    weight = made.weight.detach().requires_grad_()
    x2 = x.detach().requires_grad_()
    scores = router.score(x2.flatten(0, 1) @ weight.T, made.config) * routed.admitted_TE
    if made.config.router_choice == "token":
        scores = scores / scores.sum(-1, keepdim=True) * made.config.router_scale
    right = torch.autograd.grad((scores * probe).sum(), [weight, x2])
    for one, other in zip(found, right):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_one_group_is_no_group():
    one, x = make(router_groups=3, router_groups_kept=3), tokens()
    torch.testing.assert_close(one(x).weights_TE, make()(x).weights_TE, rtol=0, atol=0)


def test_a_bias_changes_the_choice_and_never_the_weights():
    plain, biased, x = make(router_renormalise=False), make(**KINDS["bias"]), tokens()
    biased = initialise(
        Router(ModelConfig(**SHAPE, router_bias=0.1, router_renormalise=False), 0, torch.float64), 3
    )
    biased.bias.copy_(torch.linspace(-0.5, 0.5, 6))
    before, after = plain(x), biased(x)
    both = before.chosen_TE & after.chosen_TE
    assert not torch.equal(before.chosen_TE, after.chosen_TE) and both.any()
    assert torch.equal(before.weights_TE[both], after.weights_TE[both])


def test_mutant_a_bias_in_the_weights(monkeypatch):
    made, x = make(router_bias=0.1), tokens()
    real = router.weigh
    monkeypatch.setattr(router, "weigh", lambda s, *rest: real(s + made.bias, *rest))
    weights, _ = brute_force(made, x)
    found = made(x).weights_TE
    assert any(
        abs(found[t, e] - w) > 1e-3 for t, mine in enumerate(weights) for e, w in mine.items()
    )


@pytest.mark.parametrize("drop", ["score", "position"])
def test_mutant_the_wrong_ones_are_dropped(monkeypatch, drop):
    made, x = make(capacity=0.75, drop=drop), tokens()
    real = router.admit

    def wrong(chosen, scores, config):
        return real(chosen.flip(0), -scores.flip(0), config).flip(0)

    right = made(x).admitted_TE
    monkeypatch.setattr(router, "admit", wrong)
    assert not torch.equal(made(x).admitted_TE, right)


def test_ties_go_to_the_first():
    made = make()
    with torch.no_grad():
        made.weight.zero_()
    routed = made(tokens())
    assert routed.chosen_TE.all(0).tolist() == [True, True, False, False, False, False]
    capped = make(capacity=0.5)
    with torch.no_grad():
        capped.weight.zero_()
    admitted = capped(tokens()).admitted_TE  # 12 tokens, 2 of 6 experts, half of 4: two each
    assert admitted.nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_an_evaluation_is_not_counted():
    made, x = make(), tokens()
    made(x)
    assert made.counts_E.sum() == 24
    with torch.no_grad():
        made(x)
    made.eval()
    made(x)
    assert made.counts_E.sum() == 24


def drifting(made):
    """A router whose second forward sees other scores: as rounding does, and more."""
    real, calls = router.score, [0]

    def score(logits, config):
        calls[0] += 1
        return real(logits if calls[0] == 1 else -logits, config)

    return score


@pytest.mark.parametrize("keep", [True, False])
def test_recomputation_keeps_the_choice_and_counts_once(monkeypatch, keep):
    made, x = make(router_renormalise=False), tokens()
    first = made(x).chosen_TE
    made.counts_E.zero_()
    monkeypatch.setattr(router, "score", drifting(made))
    seen = []
    made.register_forward_hook(lambda _, __, routed: seen.append(routed.chosen_TE))
    context = {"context_fn": saved_choices(made)} if keep else {}
    with set_checkpoint_early_stop(False):
        out = checkpoint(lambda x: made(x).weights_TE.sum(), x, use_reentrant=False, **context)
        out.backward()
    assert len(seen) == 2 and torch.equal(seen[0], first)
    assert torch.equal(seen[1], first) == keep  # without: the mutant, whose choice flips
    assert made.counts_E.sum() == (24 if keep else 48)


@pytest.mark.parametrize("keep", [True, False])
def test_recomputation_keeps_the_loads_of_the_global_batch(keep):
    """Where they are counted again, the gradient of the balance loss is another (the mutant)."""
    found = []
    for again in (False, True):
        made, x = make(aux_loss=1.0, aux_over="global batch"), tokens()
        so_far = torch.tensor([50, 0, 0, 0, 0, 0])  # of micro-batches before this one
        made.over_batch = lambda counts, n, so_far=so_far: (so_far.add_(counts).clone(), n + 25)
        context = {"context_fn": saved_choices(made)} if keep else {}
        loss = made(x).loss
        if again:
            so_far.copy_(torch.tensor([50, 0, 0, 0, 0, 0]))
            loss = checkpoint(lambda x, m=made: m(x).loss, x, use_reentrant=False, **context)
        found.append(torch.autograd.grad(loss, made.weight)[0])
    assert torch.allclose(*found) == keep


def test_logits_that_are_no_numbers_get_a_sentence():
    made, x = make(), tokens()
    with torch.no_grad():
        made.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"layers.0.mlp.router: logits are not finite.*lower lr"):
        made(x)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (dict(experts_per_token=7), r"experts_per_token is 7; .* between 1 and experts \(6\)"),
        (dict(capacity=0), "capacity is 0; it is a number above 0, or None to drop nothing"),
        (dict(capacity=-1.0), "capacity is -1.0; it is a number above 0"),
        (dict(router_groups=4), "4 router_groups do not divide 6 experts; take 3"),
        (dict(router_groups=3, router_groups_kept=4), "router_groups_kept is 4; .* router_groups"),
        (
            dict(experts_per_token=3, router_groups=3, router_groups_kept=1),
            "a token chooses 3 experts, and 1 of 3 groups have 2; keep more groups",
        ),
        (dict(router_score="relu"), "router_score is 'relu'; it is 'softmax' or 'sigmoid'"),
        (dict(aux_loss=math.nan), "aux_loss is nan; it is a number of 0 or more"),
        (dict(router_choice="expert", capacity=1.0), "each takes its even share, so capacity"),
    ],
)
def test_bad_input_gets_a_sentence(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        ModelConfig(**{**SHAPE, **wrong})


def test_every_kind_has_a_case():
    kinds = list(KINDS.values())
    for field, values in (
        ("router_score", ["sigmoid"]), ("router_choice", ["expert"]), ("drop", ["position"]),
    ):  # fmt: skip
        assert all(any(k.get(field) == v for k in kinds) for _, v in product([0], values))
