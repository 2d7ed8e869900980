"""Shapes from a config.json: the published ones give the published counts."""

import json

import pytest

from picolab import costs
from picolab.specs import ModelConfig
from picolab.specs.hugging_face_config import read_config

LLAMA = dict(
    model_type="llama", hidden_size=8192, intermediate_size=28_672, num_hidden_layers=80,
    num_attention_heads=64, num_key_value_heads=8, vocab_size=128_256, rms_norm_eps=1e-5,
    max_position_embeddings=131_072, tie_word_embeddings=False,
    rope_scaling={"rope_type": "llama3", "factor": 8.0}, attention_bias=False, mlp_bias=False,
)  # fmt: skip
# From the checkpoints' config.json, the keys that bear on the shape.
PUBLISHED = {
    "llama-3-70b": LLAMA,
    "mixtral-8x7b": dict(
        model_type="mixtral", hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, vocab_size=32_000, rms_norm_eps=1e-5,
        max_position_embeddings=32_768, num_local_experts=8, num_experts_per_tok=2,
        sliding_window=None,
    ),
    "qwen3-235b-a22b": dict(
        model_type="qwen3_moe", hidden_size=4096, intermediate_size=12_288, num_hidden_layers=94,
        num_attention_heads=64, num_key_value_heads=4, vocab_size=151_936, rms_norm_eps=1e-6,
        max_position_embeddings=32_768, head_dim=128, num_experts=128, num_experts_per_tok=8,
        moe_intermediate_size=1536, decoder_sparse_step=1, mlp_only_layers=[],
        attention_bias=False,
    ),
    "deepseek-v3": dict(
        model_type="deepseek_v3", hidden_size=7168, intermediate_size=18_432, num_hidden_layers=61,
        num_attention_heads=128, num_key_value_heads=128, vocab_size=129_280, rms_norm_eps=1e-6,
        max_position_embeddings=163_840, q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128,
        qk_rope_head_dim=64, v_head_dim=128, n_routed_experts=256, num_experts_per_tok=8,
        moe_intermediate_size=2048, n_shared_experts=1, first_k_dense_replace=3, moe_layer_freq=1,
    ),
}  # fmt: skip
QWEN2 = dict(
    model_type="qwen2", hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28,
    num_attention_heads=28, num_key_value_heads=4, vocab_size=152_064, rms_norm_eps=1e-6,
    max_position_embeddings=131_072, tie_word_embeddings=False, use_sliding_window=False,
    sliding_window=131_072, max_window_layers=28,
)  # fmt: skip


def written(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_have_the_published_counts(name, tmp_path):
    read = read_config(written(tmp_path, PUBLISHED[name]))
    preset = ModelConfig.preset(name)
    assert costs.parameters(read).per_layer == costs.parameters(preset).per_layer
    assert costs.parameters(read).total == costs.parameters(preset).total
    assert read.name == tmp_path.name and read.extensions == preset.extensions


def test_qwen2_has_its_biases(tmp_path):
    """Qwen2-7B: 7,615,616,512 parameters, of which 28 * (3584 + 2 * 512) are biases."""
    read = read_config(written(tmp_path, QWEN2))
    assert read.qkv_bias and costs.parameters(read).total == 7_615_616_512
    without = costs.parameters(read.replace(qkv_bias=False)).total
    assert without == 7_615_616_512 - 28 * (3584 + 2 * 512)


def test_the_file_itself_may_be_named(tmp_path):
    written(tmp_path, LLAMA)
    assert read_config(tmp_path / "config.json") == read_config(tmp_path)


def without(key):
    return {name: value for name, value in LLAMA.items() if name != key}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (without("hidden_size"), "does not say hidden_size, which the shape needs"),
        ({**LLAMA, "model_type": "gemma"}, 'says model_type: "gemma"; families .* llama, mistral'),
        ({**LLAMA, "attention_bias": True}, "says attention_bias: true, which is not described"),
        ([1], "is not a JSON object"),
    ],
)
def test_what_cannot_be_read_gets_a_sentence(config, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        read_config(written(tmp_path, config))


def test_a_folder_without_one(tmp_path):
    with pytest.raises(ValueError, match=r"there is no config.json in .*, so it holds no model"):
        read_config(tmp_path)
