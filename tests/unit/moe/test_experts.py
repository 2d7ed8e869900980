"""The layer of experts in one process: against a loop, dense, and with nobody to serve.

The wrong versions this file catches: a grouped product that meets the next expert's matrix, an
expert without tokens whose gradient is None, a dropped token that is not left to the residual.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from picolab import costs
from picolab.model import Piece, SwiGLU, Transformer, initialise, meta_parameter
from picolab.moe import ExpertLayer, experts, feed_forward, grouped_linear, naive_grouped_linear
from picolab.specs import ModelConfig

SHAPE = dict(
    hidden=16, ffn=24, layers=2, heads=2, kv_heads=2, vocab=16, seq=6, experts=4,
    experts_per_token=2, expert_ffn=8,
)  # fmt: skip


def make(dtype=torch.float64, **more) -> ExpertLayer:
    return initialise(ExpertLayer(ModelConfig(**SHAPE, **more), 1, dtype), seed=1)


def dense(layer: ExpertLayer, x_BSD: torch.Tensor) -> torch.Tensor:
    """Every expert for every token, times its weight, which mostly is zero."""
    weights_TE, x_TD = layer.router(x_BSD).weights_TE, x_BSD.flatten(0, 1)
    out = torch.zeros_like(x_TD)
    for e in range(weights_TE.shape[1]):
        gate, up = layer.experts.gate_up[e]
        one = (F.silu(x_TD @ gate.T) * (x_TD @ up.T)) @ layer.experts.down[e].T
        out = out + one * weights_TE[:, e : e + 1]
    return (out if layer.shared is None else out + layer.shared(x_TD)).view_as(x_BSD)


@pytest.mark.parametrize(
    "more",
    [{}, dict(shared_experts=2), dict(capacity=0.5), dict(router_choice="expert")],
    ids=["plain", "shared", "capacity", "experts choose"],
)
def test_it_computes_what_all_experts_for_all_tokens_would(more):
    layer, x = make(**more), torch.randn(3, 6, 16, dtype=torch.float64, requires_grad=True)
    found, right = layer(x), dense(layer, x)
    torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-13)
    of = [x, *layer.parameters()]
    for one, other in zip(*(torch.autograd.grad(y.sin().sum(), of) for y in (found, right))):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_a_token_that_everybody_drops_is_left_to_the_residual():
    layer, x = make(capacity=0.25), torch.randn(1, 12, 16, dtype=torch.float64)
    nowhere = ~layer.router(x).admitted_TE.any(1)
    assert nowhere.any() and torch.equal(layer(x)[0, nowhere], torch.zeros_like(x[0, nowhere]))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    width=st.sampled_from([4, 8]),
    out=st.sampled_from([4, 12]),
)
def test_a_grouped_product_is_a_loop(rows, width, out):
    """In fp32, torch's kernel; groups may be empty, all of them too; expanded gradients."""
    x = torch.randn(sum(rows), width, requires_grad=True)
    w = torch.randn(len(rows), out, width, requires_grad=True)
    found, right = grouped_linear(x, rows, w), naive_grouped_linear(x, rows, w)
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad(y.sum(), [x, w]) for y in (found, right)]
    for one, other, like in zip(*grads, (x, w)):
        assert one.shape == like.shape
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    for number, count in enumerate(rows):
        assert count or not grads[0][1][number].any()


def test_mutant_the_next_experts_matrix(monkeypatch):
    layer, x = make(), torch.randn(2, 6, 16, dtype=torch.float64)
    right, real = dense(layer, x), experts.naive_grouped_linear
    monkeypatch.setattr(
        experts, "naive_grouped_linear", lambda x, rows, w: real(x, rows, w.roll(1, 0))
    )
    assert not torch.allclose(layer(x), right)


def test_experts_without_tokens_have_gradients_of_zero():
    for dtype in (torch.float64, torch.float32):
        layer = make(dtype)
        with torch.no_grad():  # all to the first two
            layer.router.weight.zero_()
        layer(torch.randn(2, 6, 16, dtype=dtype)).sum().backward()
        for parameter in layer.experts.parameters():
            assert parameter.grad.shape == parameter.shape
            assert parameter.grad[0].any() and not parameter.grad[2:].any()


def test_networks_of_your_own():
    class Scale(nn.Module):
        """Each expert multiplies by a number."""

        def __init__(self, config, layer, dtype):
            super().__init__()
            piece = Piece(f"layers.{layer}.mlp.experts.scale", (config.experts, 1), "ones")
            self.scale = meta_parameter((piece,), dtype)

        def forward(self, x_AD, rows):
            return x_AD * self.scale.repeat_interleave(torch.tensor(rows), 0)

    layer = initialise(ExpertLayer(ModelConfig(**SHAPE), 0, torch.float64, experts=Scale))
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x)  # weights add up to 1
    with torch.no_grad():
        layer.experts.scale.fill_(3.0)
    torch.testing.assert_close(layer(x), 3 * x)


def test_the_factory_picks_and_the_formula_counts():
    config = ModelConfig(**SHAPE, dense_layers=1, shared_experts=1, qk_norm=True)
    model = Transformer(config, feed_forward=feed_forward)
    assert [type(block.mlp) for block in model.layers] == [SwiGLU, ExpertLayer]
    assert sum(p.numel() for p in model.parameters()) == costs.parameters(config).total
    local = costs.local_parameters(config, "dp1")
    assert [p.numel() for p in model.parameters()] == [p.numel for p in local]
    with pytest.raises(ValueError, match=r"experts come from moe.feed_forward"):
        Transformer(config)
