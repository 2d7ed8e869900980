"""What a layer keeps: Korthikanti's table, and what autograd keeps of our own model, to the byte.

Wrong versions these tests catch, kept below as mutants: scores forgotten, a mask of two bytes,
tensors between the matrices cut without sp, silu's input not kept.
"""

import pytest

from picolab import costs
from picolab.costs import activations
from picolab.specs import ModelConfig

# arXiv 2205.05198, section 6: 22B, 175B, 530B and 1T.
SHAPES = [(64, 6144, 48), (96, 12288, 96), (128, 20480, 105), (160, 25600, 128)]


def gpt(heads, hidden, layers):
    return ModelConfig(
        hidden=hidden, ffn=4 * hidden, layers=layers, heads=heads, kv_heads=heads, vocab=51_200,
        seq=2048, tied=True, family="gpt",
    )  # fmt: skip


def check_table_2(tensors):
    """arXiv 2205.05198, table 2, by the sum of the operators; statistics are not in the table."""
    s, b, t = 2048, 3, 8
    for a, h, layers in SHAPES:
        listed = [kept for kept in tensors(gpt(a, h, layers)) if not kept.statistics]
        for tp, sp, per_token in (
            (1, False, 34 * h + 5 * a * s),
            (t, False, 10 * h + (24 * h + 5 * a * s) / t),
            (t, True, (34 * h + 5 * a * s) / t),
        ):
            shares = {"tp": tp, "sp": tp if sp else 1}
            total = s * b * sum(k.numbers * (k.bytes or 2) / shares[k.split] for k in listed)
            assert total == s * b * per_token


def with_scores(config):
    return activations.kept(config, attention="scores", dropout=True)


def test_the_table_is_the_sum_of_the_operators():
    check_table_2(with_scores)


def without_scores(config):
    return activations.kept(config, attention="flash", dropout=True)


def masks_of_two_bytes(config):
    return [kept._replace(bytes=None) for kept in with_scores(config)]


def all_cut_by_tp(config):
    return [kept._replace(split="tp") for kept in with_scores(config)]


@pytest.mark.parametrize("wrong", [without_scores, masks_of_two_bytes, all_cut_by_tp])
def test_a_wrong_list_is_caught(wrong):
    with pytest.raises(AssertionError):
        check_table_2(wrong)


def test_selective_and_full_recomputation():
    """34 sbh/t without scores (section 5, of which we also drop the norms' outputs and GELU's), and
    2 sbh for the layer's input."""
    config = gpt(96, 12288, 96)
    sbh = 2048 * 12288
    arguments = dict(attention="scores", dropout=True)
    none, selective, full = (
        costs.layer_activation_bytes(config, recompute=recompute, **arguments)
        for recompute in costs.RECOMPUTE
    )
    statistics = 2048 * 2 * 2 * 4
    assert none == 34 * sbh + 5 * 96 * 2048**2 + statistics
    assert selective == sbh * (34 - 2 - 2 - 8) + statistics
    assert full == 2 * sbh
    split = costs.layer_activation_bytes(config, recompute="full", tp=8, sp=True, cp=2)
    assert split == full / 16


# ---- what autograd keeps of our own model


def measured(config, batch, seq, dtype):
    """Bytes of all storages that backward has a hold on, without the parameters'."""
    import torch

    from picolab.model import Transformer

    model = Transformer(config, dtype=dtype, device="cpu")
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    # Tables, tokens and labels are there in any case.
    tokens = torch.zeros((batch, seq), dtype=torch.int64)
    own.add(tokens.untyped_storage().data_ptr())
    tables = model.rotary(seq, tokens.device, dtype)
    own |= {table.untyped_storage().data_ptr() for table in tables}
    found, alive = {}, []

    def hold(tensor):
        storage = tensor.untyped_storage()
        alive.append(tensor)  # or its address would be used again
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        model.loss(tokens, tokens)
    return sum(found.values())


def check_measured(layer_bytes):
    import torch

    shape = dict(hidden=48, ffn=80, heads=6, kv_heads=3, vocab=97, seq=32)
    for dtype in (torch.float32, torch.float64):
        one, two = (
            measured(ModelConfig(layers=layers, **shape), 2, 32, dtype) for layers in (1, 2)
        )
        arguments = dict(micro_batch=2, dtype=dtype)
        assert two - one == layer_bytes(ModelConfig(layers=2, **shape), **arguments)


def our_layer(config, *, micro_batch, dtype):
    """The list, and two tensors that a fused kernel would not keep: torch's RMSNorm on a CPU keeps
    its input over its root mean square as well, and the values are a view of the one product that
    gives q, k and v, which therefore stays whole."""
    size = costs.dtype_bytes(dtype)
    listed = activations.kept(config)
    per_token = sum(k.numbers * (max(size, 4) if k.statistics else size) for k in listed)
    per_token += 2 * config.hidden * size
    per_token += (config.heads + config.kv_heads) * config.head_dim * size
    return micro_batch * config.seq * per_token


def test_our_model_keeps_what_the_list_says():
    check_measured(our_layer)


def silu_not_kept(config, *, micro_batch, dtype):
    unkept = micro_batch * config.seq * config.ffn * costs.dtype_bytes(dtype)
    return our_layer(config, micro_batch=micro_batch, dtype=dtype) - unkept


def statistics_forgotten(config, *, micro_batch, dtype):
    unkept = micro_batch * config.seq * (2 + config.heads) * costs.dtype_bytes(dtype)
    return our_layer(config, micro_batch=micro_batch, dtype=dtype) - unkept


@pytest.mark.parametrize("wrong", [silu_not_kept, statistics_forgotten])
def test_a_wrong_layer_is_caught(wrong):
    with pytest.raises(AssertionError):
        check_measured(wrong)


def test_the_ends_of_our_model():
    """One layer, less that layer: the last norm, the head and the loss."""
    import torch

    config = ModelConfig(hidden=48, ffn=80, layers=1, heads=6, kv_heads=3, vocab=97, seq=32)
    ends = measured(config, 2, 32, torch.float32) - our_layer(
        config, micro_batch=2, dtype=torch.float32
    )
    predicted = costs.end_activation_bytes(config, micro_batch=2, dtype="fp32")
    assert ends - predicted == 2 * 32 * 48 * 4 + 4  # the norm's, as in a layer; the loss itself


def test_every_preset_has_a_list():
    for name in ModelConfig.presets():
        config = ModelConfig.preset(name)
        for layer in (0, config.layers - 1):
            sizes = [
                costs.layer_activation_bytes(config, layer, seq=1024, recompute=recompute)
                for recompute in costs.RECOMPUTE
            ]
            assert sizes == sorted(sizes, reverse=True)


def test_experts_keep_what_their_tokens_pass():
    """mixtral: two experts of ffn 14,336 a token, and the tokens there and back."""
    config = ModelConfig.preset("mixtral-8x7b")
    dense = config.replace(experts=0, experts_per_token=0, expert_ffn=0)
    sparse, plain = (
        costs.layer_activation_bytes(one, seq=1, dtype="fp32") / 4 for one in (config, dense)
    )
    assert sparse - plain == 8 + 2 * 2 * 4096 + 4 * 14_336


def test_bad_input_gets_a_sentence():
    with pytest.raises(ValueError, match="recompute 'some' is not known; it is none, selective"):
        costs.layer_activation_bytes(ModelConfig.preset("tiny"), recompute="some")
