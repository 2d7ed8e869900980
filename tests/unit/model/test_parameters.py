"""Initial values follow the global name and nothing else.

The wrong versions this file catches: every shard drawn with its local shape from one seed (picotron
does so, and trains tp copies of the same shard), values that depend on the order of
construction, on dtype or on device, and a buffer that loses its values on the way from the meta
device.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from picolab.model import (
    Piece,
    Transformer,
    global_tensors,
    initialise,
    load,
    meta_parameter,
    slices,
)
from picolab.model.parameters import draw
from picolab.specs import ModelConfig

CONFIG = ModelConfig(hidden=32, ffn=48, layers=2, heads=4, kv_heads=2, vocab=40, seq=16)


def holder(*pieces: Piece) -> nn.Module:
    module = nn.Module()
    module.weight = meta_parameter(pieces, torch.float64)
    return module


def shards_of(piece: Piece, dim: int, n: int, seed: int = 0) -> list[torch.Tensor]:
    return [
        initialise(holder(piece.shard("tp", dim, i, n)), seed).weight.detach() for i in range(n)
    ]


@given(
    n=st.sampled_from([1, 2, 3, 4]),
    per_shard=st.integers(1, 5),
    other=st.integers(1, 7),
    dim=st.sampled_from([0, 1]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40)
def test_every_sharding_starts_from_the_same_global_tensor(n, per_shard, other, dim, seed):
    shape = (n * per_shard, other) if dim == 0 else (other, n * per_shard)
    piece = Piece("layers.3.mlp.down.weight", shape, std=0.3)
    whole = initialise(holder(piece), seed).weight.detach()
    assert torch.equal(torch.cat(shards_of(piece, dim, n, seed), dim), whole)


def test_shards_differ_from_each_other_and_the_local_draw_would_not():
    piece = Piece("layers.0.attention.q.weight", (64, 32), std=0.1)
    first, second = shards_of(piece, 0, 2)
    assert (first != second).all(dim=1).all()

    # The mutant: each rank draws its local shape from a generator seeded alike (picotron, bug 1).
    local = Piece(piece.name, (32, 32), std=piece.std)
    mutants = [draw(local, seed=0) for _ in range(2)]
    assert torch.equal(*mutants)


def test_names_seeds_and_nothing_else_decide():
    a = draw(Piece("layers.0.mlp.gate.weight", (8, 8)), 0)
    assert torch.equal(a, draw(Piece("layers.0.mlp.gate.weight", (8, 8)), 0))
    assert not torch.equal(a, draw(Piece("layers.1.mlp.gate.weight", (8, 8)), 0))
    assert not torch.equal(a, draw(Piece("layers.0.mlp.gate.weight", (8, 8)), 1))
    torch.manual_seed(123)  # the global generator plays no part
    assert torch.equal(a, draw(Piece("layers.0.mlp.gate.weight", (8, 8)), 0))


def test_dtype_changes_the_rounding_only():
    models = {
        d: Transformer(CONFIG, device="cpu", dtype=d) for d in (torch.float64, torch.bfloat16)
    }
    reference = global_tensors(Transformer(CONFIG, device="cpu"))
    for dtype, model in models.items():
        for name, tensor in global_tensors(model).items():
            assert tensor.dtype == dtype
            assert torch.equal(tensor, reference[name].to(dtype)), name


def test_initial_values_have_the_documented_size():
    config = CONFIG.replace(hidden=256, ffn=512, heads=8, kv_heads=8, vocab=1024, layers=3)
    std = {
        name: float(t.std())
        for name, t in global_tensors(Transformer(config, device="cpu")).items()
    }
    expected = {
        "embed.weight": 1.0,
        "layers.1.attention.k.weight": 256**-0.5,
        "layers.2.attention.o.weight": (256 * 2 * 3) ** -0.5,
        "layers.0.mlp.up.weight": 256**-0.5,
        "layers.1.mlp.down.weight": (512 * 2 * 3) ** -0.5,
        "head.weight": 256**-0.5,
    }
    for name, value in expected.items():
        # The standard error of a std over m samples is std / sqrt(2 m); m is 65,536 or more.
        assert std[name] == pytest.approx(value, rel=5 / (2 * 65_536) ** 0.5), name
    tied = global_tensors(Transformer(config.replace(tied=True), device="cpu"))
    assert "head.weight" not in tied
    assert float(tied["embed.weight"].std()) == pytest.approx(256**-0.5, rel=0.01)


def test_fused_parameters_have_the_values_of_their_unfused_pieces():
    model = Transformer(CONFIG, device="cpu")
    tensors = global_tensors(model)
    fused = model.layers[1].attention.qkv.weight
    names = [f"layers.1.attention.{part}.weight" for part in "qkv"]
    assert torch.equal(fused, torch.cat([tensors[name] for name in names]))
    assert [piece.name for piece, _ in slices(fused)] == names


def test_load_is_the_inverse_of_global_tensors():
    tensors = global_tensors(Transformer(CONFIG, device="cpu", seed=5))
    again = global_tensors(load(Transformer(CONFIG), tensors))
    assert tensors.keys() == again.keys()
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)
    # Into a model that has values already: in place, so an optimizer keeps its parameters.
    model = Transformer(CONFIG, device="cpu", seed=6)
    before = model.embed.weight
    load(model, tensors)
    assert model.embed.weight is before and torch.equal(before, tensors["embed.weight"])


def test_load_says_what_is_wrong():
    tensors = global_tensors(Transformer(CONFIG, device="cpu"))
    missing = {name: t for name, t in tensors.items() if name != "layers.1.mlp.up.weight"}
    with pytest.raises(ValueError, match=r"no tensor 'layers.1.mlp.up.weight' among the 20"):
        load(Transformer(CONFIG), missing)
    with pytest.raises(ValueError, match=r"norm.weight should be \(32,\), but is \(33,\)"):
        load(Transformer(CONFIG), {**tensors, "norm.weight": torch.ones(33)})


def test_tied_weights_stay_one_parameter():
    model = initialise(Transformer(CONFIG.replace(tied=True)))
    assert model.head.weight is model.embed.weight
    assert "head.weight" not in dict(model.named_parameters())


def test_requires_grad_survives():
    model = Transformer(CONFIG)
    model.embed.weight.requires_grad_(False)
    assert not initialise(model).embed.weight.requires_grad


def test_a_buffer_survives_or_is_refused():
    class WithBuffer(nn.Module):
        def __init__(self, device):
            super().__init__()
            self.register_buffer("table", torch.arange(3.0, device=device))

    assert torch.equal(initialise(WithBuffer("cpu")).table, torch.arange(3.0))
    with pytest.raises(ValueError, match="the buffer 'table' of WithBuffer is on the meta device"):
        initialise(WithBuffer("meta"))
    # The rotary tables are right after the whole model was built under a meta device context.
    with torch.device("meta"):
        model = Transformer(CONFIG)
    initialise(model)
    tokens = torch.arange(10).unsqueeze(0)
    assert torch.equal(model(tokens), Transformer(CONFIG, device="cpu")(tokens))


def test_a_parameter_without_pieces_is_refused():
    with pytest.raises(ValueError, match="'weight' of Linear does not say what it holds"):
        initialise(nn.Linear(2, 2, bias=False))
