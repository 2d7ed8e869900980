"""ModelConfig: what cannot be built is refused with the cure, presets are the published shapes.

Wrong versions these tests catch: a head_dim that stays behind when hidden changes, kv heads that do
not divide the heads, an odd head_dim (rotary positions rotate pairs), a preset that cannot be found
without a hint, a bool or a float taken for a size.
"""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picolab.specs import LatentAttention, ModelConfig

SHAPE = dict(hidden=128, ffn=352, layers=4, heads=8, kv_heads=4, vocab=256, seq=128)


def test_tiny_is_the_agreed_shape():
    tiny = ModelConfig.preset("tiny")
    assert dataclasses.replace(tiny, name="custom") == ModelConfig(**SHAPE)
    assert (tiny.head_dim, tiny.tied, tiny.extensions) == (16, False, ())


@pytest.mark.parametrize("name", ModelConfig.presets())
def test_every_preset_is_valid_and_carries_its_name(name):
    config = ModelConfig.preset(name)
    assert config.name == name
    assert hash(config) == hash(ModelConfig.preset(name))


def test_extensions_say_what_is_not_a_plain_llama():
    def extensions(name):
        return ModelConfig.preset(name).extensions

    for name in ("tiny", "llama-2-7b", "llama-3-8b", "llama-3-70b", "llama-3.1-405b"):
        assert extensions(name) == ()
    assert extensions("mixtral-8x7b") == extensions("tiny-moe") == ("experts",)
    assert extensions("deepseek-v3") == ("experts", "latent attention")
    assert extensions("qwen3-235b-a22b") == ("experts", "normalised queries and keys")
    assert extensions("gpt-3-175b") == ("the GPT block",)


def test_an_unknown_preset_names_the_closest_and_all():
    with pytest.raises(ValueError, match=r"did you mean 'llama-3-8b'\?") as caught:
        ModelConfig.preset("lama3-8b")
    assert all(name in str(caught.value) for name in ModelConfig.presets())
    with pytest.raises(ValueError, match="no model is called 'zzz'; names are tiny"):
        ModelConfig.preset("zzz")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(hidden=0), "hidden is 0; it must be an integer of at least 1"),
        (dict(layers=-1), "layers is -1"),
        (dict(vocab=2.5), "vocab is 2.5"),
        (dict(seq=True), "seq is True"),
        (dict(heads=7), "7 heads do not divide hidden 128; take 8 heads, or give head_dim"),
        (dict(kv_heads=3), "3 kv_heads do not divide 8 heads; take 2 kv_heads"),
        (dict(kv_heads=16), "16 kv_heads do not divide 8 heads; take 8 kv_heads"),
        (dict(head_dim=15), "head_dim 15 is odd"),
        (dict(hidden=8), "head_dim 1 is odd"),
        (dict(norm_eps=0.0), "norm_eps is 0.0; it must be positive"),
        (dict(rope_theta=-1.0), "rope_theta is -1.0"),
        (
            dict(family="gpt", experts=8, experts_per_token=2, expert_ffn=64),
            "experts are described for the family 'llama' only",
        ),
        (dict(family="bert"), "families are 'llama' and 'gpt'"),
        (dict(expert_ffn=64), "expert_ffn is given but experts is 0"),
        (dict(experts=8), "expert_ffn is 0"),
        (dict(experts=8, expert_ffn=64), "experts_per_token is 0; it must be between 1"),
        (dict(experts=8, expert_ffn=64, experts_per_token=9), "between 1 and experts .8."),
        (
            dict(experts=8, expert_ffn=64, experts_per_token=2, dense_layers=4),
            "dense_layers is 4 of 4 layers, so no layer has experts",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        ModelConfig(**{**SHAPE, **changes})


def test_latent_attention_is_checked_too():
    sizes = dict(q_rank=8, kv_rank=8, nope_dim=8, rope_dim=4, value_dim=8)
    assert ModelConfig(**SHAPE, latent=LatentAttention(**sizes)).latent.rope_dim == 4
    with pytest.raises(ValueError, match="rope_dim 5 is odd"):
        LatentAttention(**{**sizes, "rope_dim": 5})
    with pytest.raises(ValueError, match="q_rank is 0"):
        LatentAttention(**{**sizes, "q_rank": 0})


def test_replace_moves_the_derived_head_dim_along():
    tiny = ModelConfig.preset("tiny")
    wider = tiny.replace(hidden=256)
    assert (wider.head_dim, wider.name) == (32, "tiny (changed)")
    assert dataclasses.replace(tiny, hidden=256).head_dim == 16  # the wrong version
    assert tiny.replace(heads=4, kv_heads=2).head_dim == 32
    assert tiny.replace(hidden=256, head_dim=16).head_dim == 16
    # A head_dim that was given (Qwen3: 64 heads of 128 in a hidden size of 4096) stays.
    assert ModelConfig.preset("qwen3-235b-a22b").replace(layers=2).head_dim == 128


def test_replace_keeps_the_name_only_if_nothing_changed():
    tiny = ModelConfig.preset("tiny")
    assert tiny.replace() == tiny == tiny.replace(layers=4)
    assert tiny.replace(layers=2).replace(seq=64).name == "tiny (changed)"
    assert ModelConfig(**SHAPE).replace(layers=2).name == "custom"
    assert tiny.replace(layers=2, name="short").name == "short"
    with pytest.raises(ValueError, match="no field 'hiden'; did you mean 'hidden'"):
        tiny.replace(hiden=3)


@given(
    heads=st.integers(1, 48), kv_heads=st.integers(1, 48), half_dim=st.integers(1, 40),
    ffn=st.integers(1, 999), vocab=st.sampled_from([1, 2, 97, 256, 50_257]),
)  # fmt: skip
def test_a_shape_is_accepted_exactly_when_kv_heads_divide_heads(
    heads, kv_heads, half_dim, ffn, vocab
):
    shape = dict(
        hidden=heads * 2 * half_dim, ffn=ffn, layers=1, heads=heads, kv_heads=kv_heads,
        vocab=vocab, seq=1,
    )  # fmt: skip
    if heads % kv_heads == 0:
        assert ModelConfig(**shape).head_dim == 2 * half_dim
        return
    with pytest.raises(ValueError, match="do not divide") as caught:
        ModelConfig(**shape)
    cure = int(str(caught.value).split("take ")[1].split()[0])
    assert ModelConfig(**{**shape, "kv_heads": cure}).kv_heads == cure
