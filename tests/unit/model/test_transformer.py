"""The model equals an implementation that shares no line with it: one head, one position, one label
at a time.

The wrong versions this file catches (each is run below and must differ): no causal mask, rotary
pairs of neighbours instead of halves, key-value heads shared in the wrong order, rotary tables in
bf16 (picotron does so for every dtype), a loss that counts ignored labels.
"""

import math

import pytest
import torch

from picolab.model import (
    RotaryTables,
    Transformer,
    cross_entropy,
    global_tensors,
    slices,
    transformer,
)
from picolab.specs import ModelConfig

CONFIG = ModelConfig(hidden=24, ffn=40, layers=2, heads=4, kv_heads=2, vocab=29, seq=12)
EPS64 = torch.finfo(torch.float64).eps


def batch(config=CONFIG, seed=0, size=3, ignored=True):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(config.vocab, (size, config.seq), generator=generator)
    labels = torch.randint(config.vocab, (size, config.seq), generator=generator)
    if ignored:
        labels[0, :5] = -100
        labels[-1] = -100
    return tokens, labels


# The independent implementation: W are the global tensors by name, all loops, no batching.


def plain_loss(W, config, tokens_BS, labels_BS, mutant=None):
    total = torch.zeros((), dtype=torch.float64)
    for tokens_S, labels_S in zip(tokens_BS, labels_BS):
        x = [W["embed.weight"][token] for token in tokens_S]
        for i in range(config.layers):
            name = f"layers.{i}"
            h = [plain_norm(v, W[f"{name}.attention_norm.weight"], config.norm_eps) for v in x]
            x = [
                v + a for v, a in zip(x, plain_attention(W, f"{name}.attention", config, h, mutant))
            ]
            h = [plain_norm(v, W[f"{name}.mlp_norm.weight"], config.norm_eps) for v in x]
            for s, v in enumerate(h):
                gate = W[f"{name}.mlp.gate.weight"] @ v
                up = W[f"{name}.mlp.up.weight"] @ v
                x[s] = x[s] + W[f"{name}.mlp.down.weight"] @ (gate * torch.sigmoid(gate) * up)
        head = W.get("head.weight", W["embed.weight"])
        for v, label in zip(x, labels_S):
            if label != -100 or mutant == "counts ignored labels":
                logits = head @ plain_norm(v, W["norm.weight"], config.norm_eps)
                total = total + torch.log(torch.exp(logits).sum()) - logits[max(label, 0)]
    return total


def plain_norm(v, w, eps):
    return w * v / torch.sqrt((v * v).sum() / len(v) + eps)


def plain_attention(W, name, config, h, mutant):
    size, shared = config.head_dim, config.heads // config.kv_heads
    outputs = []
    for s in range(len(h)):
        heads = []
        for n in range(config.heads):
            k = n % config.kv_heads if mutant == "wrong kv head" else n // shared
            q_rows, k_rows = slice(n * size, (n + 1) * size), slice(k * size, (k + 1) * size)
            query = plain_rotate(W[f"{name}.q.weight"][q_rows] @ h[s], s, config, mutant)
            seen = range(len(h) if mutant == "not causal" else s + 1)
            keys = [
                plain_rotate(W[f"{name}.k.weight"][k_rows] @ h[t], t, config, mutant) for t in seen
            ]
            scores = torch.stack([query @ key / math.sqrt(size) for key in keys])
            weights = torch.exp(scores) / torch.exp(scores).sum()
            values = torch.stack([W[f"{name}.v.weight"][k_rows] @ h[t] for t in seen])
            heads.append(weights @ values)
        outputs.append(W[f"{name}.o.weight"] @ torch.cat(heads))
    return outputs


def plain_rotate(v, position, config, mutant):
    half, out = len(v) // 2, list(v)
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if mutant == "neighbours" else (i, i + half)
        angle = position * config.rope_theta ** (-2 * i / len(v))
        cos, sin = math.cos(angle), math.sin(angle)
        if mutant == "bf16 tables":
            cos, sin = (float(torch.tensor(t, dtype=torch.bfloat16)) for t in (cos, sin))
        out[a], out[b] = v[a] * cos - v[b] * sin, v[b] * cos + v[a] * sin
    return torch.stack(out)


def plain_gradients(model, tokens, labels, mutant=None):
    W = {name: t.double().requires_grad_() for name, t in global_tensors(model).items()}
    loss = plain_loss(W, model.config, tokens, labels, mutant)
    loss.backward()
    return float(loss.detach()), {name: t.grad for name, t in W.items()}


def model_gradients(model, tokens, labels):
    model.zero_grad()
    loss = model.loss(tokens, labels)
    loss.backward()
    gradients = {}
    for parameter in model.parameters():
        start = 0
        for piece in parameter.pieces:
            gradients[piece.name] = parameter.grad[start : start + piece.shape[0]]
            start += piece.shape[0]
    return float(loss.detach()), gradients


def worst(found, expected):
    """The largest difference, relative to its tensor's norm."""
    assert found.keys() == expected.keys()
    return max(
        float(torch.linalg.vector_norm(found[n].double() - expected[n]))
        / float(torch.linalg.vector_norm(expected[n]))
        for n in expected
    )


@pytest.mark.parametrize(
    "changes", [{}, {"tied": True}, {"kv_heads": 4}, {"kv_heads": 1, "head_dim": 10}]
)
def test_loss_and_gradients_equal_the_plain_implementation(changes):
    config = CONFIG.replace(**changes)
    model = Transformer(config, device="cpu", dtype=torch.float64, seed=1)
    tokens, labels = batch(config)
    loss, gradients = model_gradients(model, tokens, labels)
    expected_loss, expected = plain_gradients(model, tokens, labels)
    # Some hundred roundings a value, each EPS64 = 2.2e-16 of it.
    assert loss == pytest.approx(expected_loss, rel=1e3 * EPS64)
    assert worst(gradients, expected) < 1e4 * EPS64


@pytest.mark.parametrize(
    "mutant", ["not causal", "neighbours", "wrong kv head", "bf16 tables", "counts ignored labels"]
)
def test_mutants_of_the_plain_implementation_differ(mutant):
    model = Transformer(CONFIG, device="cpu", dtype=torch.float64, seed=1)
    tokens, labels = batch()
    _, gradients = model_gradients(model, tokens, labels)
    _, expected = plain_gradients(model, tokens, labels, mutant)
    assert worst(gradients, expected) > 1e-5


def test_fp32_is_within_fp32_of_fp64():
    tokens, labels = batch()
    loss, gradients = model_gradients(Transformer(CONFIG, device="cpu"), tokens, labels)
    # The same fp32 values, computed in fp64.
    double = Transformer(CONFIG, device="cpu", dtype=torch.float64)
    expected_loss, expected = model_gradients(double, tokens, labels)
    assert loss == pytest.approx(expected_loss, rel=2e-6)
    assert worst(gradients, expected) < 2e-6


def test_bf16_loss_is_computed_in_fp32():
    logits = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.arange(10).view(2, 5)
    loss = cross_entropy(logits, labels)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(cross_entropy(logits.double(), labels)), rel=1e-6)


def test_no_label_counts():
    logits = torch.randn(1, 3, 7, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 3), -100))
    loss.backward()
    assert float(loss.detach()) == 0.0 and not logits.grad.any()


@pytest.mark.parametrize(
    "dtype, table, error",
    [
        (torch.bfloat16, torch.float32, 1e-7),
        (torch.float32, torch.float32, 1e-7),
        (torch.float64, torch.float64, 1e-15),
    ],
)
def test_rotary_tables_are_exact_far_out(dtype, table, error):
    """fp32 angles would be wrong by 1e-3 at position 20,000, and bf16 tables by 2e-3 everywhere."""
    position = 20_000
    tables = RotaryTables(8, 10_000.0)
    cos, sin = tables(1, torch.device("cpu"), dtype, torch.tensor([position]))
    for i in range(4):
        angle = position * 10_000.0 ** (-2 * i / 8)
        # fp64 itself places an angle of 20,000 within 20,000 * eps.
        assert abs(float(cos[0, 0, i]) - math.cos(angle)) < error + position * EPS64
        assert abs(float(sin[0, 0, i + 4]) - math.sin(angle)) < error + position * EPS64
    assert cos.dtype == table and cos.shape == (1, 1, 8)


def test_rotary_tables_are_computed_once_a_length():
    tables = RotaryTables(8, 10_000.0)
    first = tables(5, torch.device("cpu"), torch.float32)
    assert tables(5, torch.device("cpu"), torch.float32)[0] is first[0]
    assert tables(6, torch.device("cpu"), torch.float32)[0].shape[0] == 6
    assert tables(5, torch.device("cpu"), torch.float64)[0].dtype == torch.float64
    assert not list(tables.buffers()) and not tables.state_dict()


def test_positions_are_global_positions():
    """The second half of a sequence with its own positions attends as at those positions: only
    differences of positions matter, so a shift changes nothing, and a stretch does."""
    model = Transformer(CONFIG, device="cpu", dtype=torch.float64)
    tokens, _ = batch(ignored=False)
    positions = torch.arange(CONFIG.seq)
    plain = model(tokens)
    assert torch.equal(model(tokens, positions), plain)
    assert torch.allclose(model(tokens, positions + 1000), plain, rtol=0, atol=1e-9)
    assert not torch.allclose(model(tokens, positions * 2), plain, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"positions should be \(12,\)"):
        model(tokens, positions[:-1])


def test_only_the_past_is_seen():
    model = Transformer(CONFIG, device="cpu", dtype=torch.float64)
    tokens, _ = batch(ignored=False)
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % CONFIG.vocab
    assert torch.equal(model(tokens)[:, :7], model(changed)[:, :7])
    assert not torch.equal(model(tokens)[:, 7:], model(changed)[:, 7:])


def test_parameters_have_the_order_and_the_sizes_of_the_formula():
    from picolab import costs

    for config in (CONFIG, CONFIG.replace(tied=True), ModelConfig.preset("tiny")):
        model = Transformer(config)
        measured = [(name, p.numel()) for name, p in model.named_parameters()]
        assert measured == [(p.name, p.numel) for p in costs.local_parameters(config, "dp1")]
        assert sum(numel for _, numel in measured) == costs.parameters(config).total


def test_meta_model_has_shapes_and_no_memory():
    config = ModelConfig.preset("llama-3.1-405b")
    model = Transformer(config)
    assert all(p.is_meta for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == 405_853_388_800


def test_a_feed_forward_can_be_supplied():
    class Nothing(torch.nn.Module):
        def __init__(self, config, layer, dtype):
            super().__init__()
            self.layer = layer

        def forward(self, x_BSD):
            return torch.zeros_like(x_BSD)

    model = Transformer(CONFIG, feed_forward=Nothing, device="cpu")
    assert [block.mlp.layer for block in model.layers] == [0, 1]
    assert not any("mlp." in name for name, _ in model.named_parameters())
    tokens, _ = batch()
    assert model(tokens).shape == (3, 12, 29)


def test_models_that_are_only_described_are_refused():
    with pytest.raises(ValueError, match="deepseek-v3 has experts and latent attention"):
        Transformer(ModelConfig.preset("deepseek-v3"))
    with pytest.raises(ValueError, match="gpt-3-175b has the GPT block"):
        Transformer(ModelConfig.preset("gpt-3-175b"))


def test_a_bias_that_stays_fp32_leaves_short_numbers_short():
    linear = Transformer(CONFIG.replace(qkv_bias=True), device="cpu").layers[0].attention.qkv
    x = torch.ones((1, CONFIG.hidden), dtype=torch.bfloat16)
    y = (x.float() @ linear.weight.T).bfloat16()
    found = linear.biased(y)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, (y.float() + linear.bias).bfloat16())  # rounded once, after the sum


def test_what_is_added_to_all_keys_is_seen_through_rotation_only(monkeypatch):
    """Why the oracle has biases in fp64 alone: the gradient of keys' is a sum that would be 0."""
    config = CONFIG.replace(qkv_bias=True)
    sizes = []
    for rotated in (True, False):
        if not rotated:
            monkeypatch.setattr(transformer, "rotate", lambda x, cos, sin: x)
        model = Transformer(config, device="cpu", dtype=torch.float64)
        tokens = torch.randint(config.vocab, (2, 12), generator=torch.Generator().manual_seed(0))
        model.loss(tokens, tokens.roll(1)).backward()
        bias = model.layers[0].attention.qkv.bias
        q, k, _ = (part.norm() for _, part in slices(bias, bias.grad))
        sizes.append(float(k / q))
    assert sizes[0] > 1e-2 and sizes[1] < 1e-12
