"""Operations a token, against the published closed forms.

Wrong versions these tests catch, kept below as mutants: the embedding look-up counted as a product,
the head forgotten, attention's square counted with half its width, all experts counted.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picolab import costs
from picolab.specs import ModelConfig


def gpt(heads, head_dim, layers, vocab):
    hidden = heads * head_dim
    return ModelConfig(
        hidden=hidden, ffn=4 * hidden, layers=layers, heads=heads, kv_heads=heads, vocab=vocab,
        seq=2048, tied=True, family="gpt",
    )  # fmt: skip


def check_megatron(flops_per_token, config, seq):
    """arXiv 2104.04473, section 5.1: 96 s l h^2 (1 + s/(6h) + V/(16 l h)) a sequence, in which the
    layers (not the head) go forward twice: 4 parts of 4, where 3 do without recomputing."""
    h, layers = config.hidden, config.layers
    layer = 96 * h * h + 16 * h * seq
    head = 6 * h * config.vocab
    assert flops_per_token(config, seq) == layers * layer * 3 // 4 + head


sizes = st.integers(1, 16)


@given(heads=sizes, head_dim=sizes, layers=sizes, vocab=st.integers(1, 999), seq=sizes)
def test_a_gpt_block_is_the_papers_formula(heads, head_dim, layers, vocab, seq):
    check_megatron(costs.flops_per_token, gpt(heads, head_dim, layers, vocab), seq)


def embedding_counted(config, seq):
    return costs.flops_per_token(config, seq) + 6 * config.vocab * config.hidden


def head_forgotten(config, seq):
    return costs.flops_per_token(config, seq) - 6 * config.vocab * config.hidden


def only_scores(config, seq):
    return costs.flops_per_token(config, seq) - 6 * config.layers * config.hidden * seq


def all_parameters(config, seq):
    return 6 * costs.parameters(config).total + 12 * config.layers * config.hidden * seq


@pytest.mark.parametrize("wrong", [embedding_counted, head_forgotten, only_scores, all_parameters])
def test_a_wrong_count_is_caught(wrong):
    with pytest.raises(AssertionError):
        check_megatron(wrong, gpt(heads=8, head_dim=16, layers=4, vocab=256), 128)


def test_tiny_by_hand():
    tiny = ModelConfig.preset("tiny")
    matrices = 4 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 352) + 256 * 128
    assert costs.flops_per_token(tiny, 64) == 6 * matrices + 12 * 4 * 128 * 64
    assert costs.flops_per_token(tiny) == costs.flops_per_token(tiny, tiny.seq)


@given(st.sampled_from(["tiny", "llama-3-8b"]), st.integers(1, 10**5))
def test_a_tied_head_costs_what_an_untied_one_does(name, seq):
    config = ModelConfig.preset(name)
    assert costs.flops_per_token(config.replace(tied=True), seq) == costs.flops_per_token(
        config, seq
    )


@pytest.mark.parametrize("name", ["tiny-moe", "mixtral-8x7b", "deepseek-v3", "qwen3-235b-a22b"])
def test_only_active_experts_count(name):
    """6 for each active parameter in a matrix: all but the embedding and the norms."""
    config = ModelConfig.preset(name)
    count = costs.parameters(config)
    matrices = count.active - count.embedding - count.norm
    attention = costs.flops_per_token(config, 2) - costs.flops_per_token(config, 1)
    assert costs.flops_per_token(config, 1) == 6 * matrices + attention
    everyone = config.replace(
        experts_per_token=config.experts, router_groups=1, router_groups_kept=1
    )
    assert costs.flops_per_token(everyone, 1) > costs.flops_per_token(config, 1)


def test_an_empty_sequence_is_refused():
    with pytest.raises(ValueError, match="seq is 0; a sequence has at least 1 token"):
        costs.flops_per_token(ModelConfig.preset("tiny"), 0)
