"""Hugging Face's Llama weights, in and out, compared with `transformers` itself.

The wrong versions this file catches: rows of q and k permuted for the other pairing of rotary
positions (as Meta's own files need), a query's weights taken for the key's, a norm's epsilon or a
rotary base that is not read or is read elsewhere than transformers does, a setting that is neither
computed nor refused, a head that is not tied, a file of several that is not read, a stale copy in
another file that is; and bad folders that are read half, or silently. Splitting over ranks is
tested in tests/distributed/parallel/test_hugging_face.py. No test uses the network.
"""

import json
import os
import re
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file

from picolab.model import (
    Transformer,
    global_tensors,
    hf_config,
    hugging_face_families,
    initialise,
    load_hf,
    save_hf,
)
from picolab.model import hugging_face as hf
from picolab.specs import ModelConfig

SHAPE = dict(hidden=48, ffn=80, layers=3, heads=6, kv_heads=2, vocab=97, seq=32)
# transformers compares in fp32 too; both sides are sums of some hundred terms in another order.
TOLERANCE = 2e-6


@pytest.fixture(scope="module", autouse=True)
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def llama(tied=False, **changes):
    """A randomly initialised model of transformers, norms and all, as spread as trained ones."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = dict(
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        vocab_size=97,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
        rms_norm_eps=1e-3,
    )
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return model


TOKENS = torch.randint(97, (3, 32), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def difference(ours, theirs) -> float:
    """Of the logits, as a share of the largest."""
    expected = theirs(TOKENS).logits
    return float((ours(TOKENS) - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def saved(request, tmp_path_factory):
    """A model of transformers, and the folder it wrote."""
    model, folder = llama(request.param), tmp_path_factory.mktemp("theirs")
    model.save_pretrained(folder)
    return model, folder


def test_logits_equal_transformers(saved):
    model, folder = saved
    ours = load_hf(folder)
    assert ours.config.tied == model.config.tie_word_embeddings == hf_config(folder).tied
    assert (ours.head.weight is ours.embed.weight) == ours.config.tied
    assert difference(ours, model) <= TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [
        dict(num_key_value_heads=6),
        dict(num_key_value_heads=1),
        dict(head_dim=12),
        dict(rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
        dict(rms_norm_eps=1e-6),
    ],
)
def test_other_shapes(changes, tmp_path):
    model = llama(**changes)
    model.save_pretrained(tmp_path / "theirs")
    assert difference(load_hf(tmp_path / "theirs"), model) <= TOLERANCE


def test_several_files(saved, tmp_path):
    """As large models come: split by transformers, joined by its index."""
    model, _ = saved
    model.save_pretrained(tmp_path / "theirs", max_shard_size="30KB")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 2
    assert difference(load_hf(tmp_path / "theirs"), model) <= TOLERANCE


@pytest.mark.parametrize("file_bytes", [hf.FILE_BYTES, 30_000], ids=["one file", "several"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_transformers_reads_what_we_save(tied, file_bytes, tmp_path):
    from transformers import AutoModelForCausalLM

    ours = initialise(Transformer(ModelConfig(**SHAPE, tied=tied, rope_theta=300.0)), seed=3)
    folder = save_hf(ours, ours.config, tmp_path / "ours", file_bytes=file_bytes)
    files = [path.stat().st_size for path in folder.glob("*.safetensors")]
    assert len(files) == 1 if file_bytes == hf.FILE_BYTES else len(files) > 5 and max(files) < 32e3
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert type(theirs).__name__ == "LlamaForCausalLM"
    assert difference(ours, theirs) <= TOLERANCE
    # And back: bit for bit, from tensors as a layout's state_dict gives them.
    again = save_hf(global_tensors(load_hf(folder)), ours.config, tmp_path / "again")
    back = global_tensors(load_hf(again))
    assert back.keys() == global_tensors(ours).keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in global_tensors(ours).items())
    assert hf_config(again).replace(name="custom") == ours.config.replace(name="custom")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "ours"]


def test_into_a_model_with_values_and_another_dtype(saved):
    model, folder = saved
    ours = initialise(Transformer(hf_config(folder)), seed=9, dtype=torch.float64)
    memory = ours.embed.weight.data_ptr()
    assert load_hf(folder, ours) is ours
    assert ours.embed.weight.data_ptr() == memory and ours.embed.weight.dtype == torch.float64
    assert difference(ours.float(), model) <= TOLERANCE
    assert load_hf(folder, dtype=torch.bfloat16).norm.weight.dtype == torch.bfloat16


# -- wrong versions --


def interleaved(read):
    """Rows of q and k as if the file paired neighbours for the rotation, as Meta's own do."""

    def wrong(self, name, ranges):
        rows = read(self, name, ranges)
        if "q_proj" in name or "k_proj" in name:
            heads = rows.view(-1, 8, rows.shape[-1])
            rows = heads.unflatten(1, (2, 4)).transpose(1, 2).reshape(rows.shape)
        return rows

    return wrong


def test_the_other_rotary_pairing_is_noticed(saved, monkeypatch):
    model, folder = saved
    monkeypatch.setattr(hf._Files, "read", interleaved(hf._Files.read))
    assert difference(load_hf(folder), model) > 1e-2


def test_swapped_matrices_are_noticed(saved, monkeypatch):
    """k and v, and gate and up, have the same shapes: only the logits can tell."""
    model, folder = saved
    names = hugging_face_families.LLAMA.in_layer
    k, v = names["attention.k"], names["attention.v"]
    monkeypatch.setitem(names, "attention.k", v)
    monkeypatch.setitem(names, "attention.v", k)
    assert difference(load_hf(folder), model) > 1e-2


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope"])
def test_a_setting_that_is_not_read_is_noticed(key, tmp_path):
    model = llama(rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config = {name: value for name, value in config.items() if not name.startswith(key)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert difference(load_hf(tmp_path), model) > 1e-4


# -- what config.json says --

DEFAULT = {"rope_type": "default"}
# Where theta may stand, in 4's and 5's files and in those that went through both.
THETAS = [
    {},
    dict(rope_theta=500.0),
    dict(rope_theta=500, rope_scaling=None),
    dict(rope_parameters={"rope_theta": 500.0}),
    dict(rope_parameters={**DEFAULT, "rope_theta": 500.0}, rope_theta=300.0),
    dict(rope_parameters=DEFAULT, rope_theta=500.0),
    dict(rope_parameters={**DEFAULT, "rope_theta": 500.0}, rope_scaling={}),
    dict(rope_scaling={"type": "default", "rope_theta": 500.0}),
    dict(rope_scaling={"type": "default"}, rope_theta=500.0),
    dict(rope_scaling={**DEFAULT, "rope_theta": 500.0}, rope_parameters={"rope_theta": 300.0}),
    dict(rope_scaling=DEFAULT, rope_parameters={"rope_theta": 300.0}, rope_theta=500.0),
    dict(rope_scaling=DEFAULT, rope_parameters={"rope_theta": 300.0}),  # 10,000
]
SCALED = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0}
SCALED |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8}


def says(folder, rope):
    """The folder's config.json, its rotary positions as given; and the model of transformers."""
    from transformers import LlamaForCausalLM

    kept = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in kept.items() if not key.startswith("rope")}
    (folder / "config.json").write_text(json.dumps({**kept, **rope}))
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("rope", THETAS, ids=map(str, range(len(THETAS))))
def test_theta_is_read_where_transformers_reads_it(rope, tmp_path):
    llama().save_pretrained(tmp_path)
    theirs = says(tmp_path, rope)
    assert difference(load_hf(tmp_path), theirs) <= TOLERANCE
    assert hf_config(tmp_path).rope_theta == theirs.config.rope_parameters["rope_theta"]


def parameters_win(flat):
    """As it was once: rope_scaling counts only where there are no rope_parameters."""

    def wrong(there):
        aside = ("rope_scaling",) if there.get("rope_parameters") else ()
        return flat({key: value for key, value in there.items() if key not in aside})

    return wrong


def theta_of_scaling_is_lost(flat):
    return lambda there: {k: v for k, v in flat(there).items() if k != "rope_scaling.rope_theta"}


@pytest.mark.parametrize(
    ("mutant", "rope"),
    [
        (parameters_win, THETAS[9]),
        (parameters_win, THETAS[10]),
        (theta_of_scaling_is_lost, THETAS[7]),
    ],
)
def test_another_order_is_noticed(mutant, rope, tmp_path, monkeypatch):
    llama().save_pretrained(tmp_path)
    theirs = says(tmp_path, rope)
    monkeypatch.setattr(hf, "_flat", mutant(hf._flat))
    assert difference(load_hf(tmp_path), theirs) > 1e-3


def test_scaling_beside_default_parameters_is_what_holds(tmp_path, monkeypatch):
    llama().save_pretrained(tmp_path)
    plain = {"rope_type": "default", "rope_theta": 500.0}
    theirs = says(tmp_path, dict(rope_parameters=plain, rope_scaling=SCALED))
    assert difference(load_hf(tmp_path), theirs) < TOLERANCE
    monkeypatch.setattr(hf, "_flat", parameters_win(hf._flat))
    assert difference(load_hf(tmp_path), theirs) > 1e-2


REFUSED = {
    'model_type: "mistral"; what is read here is llama': dict(model_type="mistral"),
    "model_type: null; what is read here is llama": dict(model_type=None),
    'architectures: ["LlamaModel"] (read here: ["LlamaForCausalLM"])': dict(
        architectures=["LlamaModel"]
    ),
    'hidden_act: "gelu" (read here: "silu")': dict(hidden_act="gelu"),
    "attention_bias: true (read here: false), mlp_bias: true": dict(
        attention_bias=True, mlp_bias=True
    ),
    "attention_dropout: 0.1 (read here: 0.0)": dict(attention_dropout=0.1),
    "pretraining_tp: 2 (read here: 1)": dict(pretraining_tp=2),
    "sliding_window: 4096 (read here: null)": dict(sliding_window=4096),
    "final_logit_softcapping: 30.0 (read here: null)": dict(final_logit_softcapping=30.0),
    "embedding_multiplier: 12.0 (read here: 1.0)": dict(embedding_multiplier=12.0),
    "residual_multiplier: 0.22 (read here: 1.0)": dict(residual_multiplier=0.22),
    "attention_multiplier: 0.0078 (not known here)": dict(attention_multiplier=0.0078),
    "use_qk_norm: true (read here: false)": dict(use_qk_norm=True),
    "partial_rotary_factor: 0.5 (read here: 1.0)": dict(partial_rotary_factor=0.5),
    "rope_parameters.partial_rotary_factor: 0.5 (read here": dict(
        rope_parameters={**DEFAULT, "partial_rotary_factor": 0.5}
    ),
    'rope_scaling.type: "linear" (read here: "default"), rope_scaling.factor: 2.0 (not': dict(
        rope_scaling={"type": "linear", "factor": 2.0}
    ),
    'rope_parameters.rope_type: "yarn" (read here: "default")': dict(
        rope_parameters={"rope_type": "yarn", "factor": 2.0}
    ),
    'rope_scaling: "linear" (not known here)': dict(rope_scaling="linear"),
    'quantization_config: {"quant_method": "gptq"} (read here: null)': dict(
        quantization_config={"quant_method": "gptq"}
    ),
    "a_new_idea: 3 (not known here)": dict(a_new_idea=3),
    "and 1 more; what is read here": dict(one=1, two=2, three=3, four=4),
}


@pytest.mark.parametrize(("sentence", "changes"), REFUSED.items(), ids=range(len(REFUSED)))
def test_what_is_not_computed_is_refused_by_name_and_value(sentence, changes, tmp_path):
    good = initialise(Transformer(ModelConfig(**SHAPE)), seed=5)
    folder = save_hf(good, good.config, tmp_path / "ours")
    load_hf(folder)
    configured(**changes)(folder)
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        load_hf(folder)
    assert "\n" not in str(error.value)


def test_what_is_not_refused_changes_the_logits(tmp_path, monkeypatch):
    """The mutant: a config of which only the shape is read."""
    model = llama(hidden_act="gelu")
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(hf, "_refuse_what_is_not_computed", lambda *_: None)
    assert difference(load_hf(tmp_path), model) > 1e-2


LLAMA_2_7B = """{"_name_or_path": "meta-llama/Llama-2-7b-hf", "architectures": ["LlamaForCausalLM"],
"bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096,
"initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096,
"model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
"num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null,
"tie_word_embeddings": false, "torch_dtype": "float16", "transformers_version": "4.31.0.dev0",
"use_cache": true, "vocab_size": 32000}"""


def test_what_changes_nothing_is_accepted(tmp_path):
    """A published file, and every key that transformers knows of."""
    (tmp_path / "config.json").write_text(LLAMA_2_7B)
    assert hf_config(tmp_path).replace(name="llama-2-7b") == ModelConfig.preset("llama-2-7b")
    whole = llama().config.to_dict()
    (tmp_path / "config.json").write_text(json.dumps(whole))
    assert hf_config(tmp_path).hidden == 48


# -- several files --


def last_file_wins(enter):
    """As it was once: the index is a list of files, and each may bring any tensor."""

    def wrong(self):
        enter(self)
        for name, file in sorted(self._open.items()):
            self._file_of |= dict.fromkeys(file.keys(), name)
        return self

    return wrong


def test_a_stale_copy_in_another_file_is_not_read(tmp_path, monkeypatch):
    good = initialise(Transformer(ModelConfig(**SHAPE)), seed=5)
    folder = save_hf(good, good.config, tmp_path / "ours", file_bytes=30_000)
    last = max(folder.glob("model-*"))
    stale = {**load_file(last), "model.embed_tokens.weight": torch.zeros(97, 48)}
    save_file(stale, last)
    assert torch.equal(load_hf(folder).embed.weight, good.embed.weight)
    monkeypatch.setattr(hf._Files, "__enter__", last_file_wins(hf._Files.__enter__))
    assert not torch.equal(load_hf(folder).embed.weight, good.embed.weight)


# -- bad folders: one sentence, and the model as it was --


def lose_a_name(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def add_a_name(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(48)
    save_file(tensors, folder / "model.safetensors")


def change_a_shape(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(47)
    save_file(tensors, folder / "model.safetensors")


def truncate(folder):
    size = (folder / "model.safetensors").stat().st_size
    os.truncate(folder / "model.safetensors", size - 100)


def empty(folder):
    os.truncate(folder / "model.safetensors", 0)


def only_a_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def index_of_nothing(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / hf.INDEX).write_text(json.dumps(index))


def index_that_climbs(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (folder / hf.INDEX).write_text(json.dumps(index))


def half_an_index(folder):
    (folder / "model.safetensors").unlink()
    (folder / hf.INDEX).write_text('{"weight_map": {"model.norm')


def half_a_config(folder):
    (folder / "config.json").write_text('{"model_type": "lla')


def no_config(folder):
    (folder / "config.json").unlink()


def configured(**changes):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        config = {name: value for name, value in {**config, **changes}.items() if value != "no"}
        (folder / "config.json").write_text(json.dumps(config))

    return change


def two_heads(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = torch.zeros(97, 48)
    save_file(tensors, folder / "model.safetensors")
    configured(tie_word_embeddings=True)(folder)


def split(folder):
    """The same weights in several files, and their index."""
    model = load_hf(folder)
    (folder / "model.safetensors").unlink()
    for path in save_hf(model, model.config, folder / "split", file_bytes=30_000).glob("model*"):
        path.rename(folder / path.name)
    return json.loads((folder / hf.INDEX).read_text())


def move_in_the_index(folder):
    index = split(folder)
    index["weight_map"]["model.norm.weight"] = index["weight_map"]["model.embed_tokens.weight"]
    (folder / hf.INDEX).write_text(json.dumps(index))


def forget_in_the_index(folder):
    index = split(folder)
    del index["weight_map"]["model.norm.weight"]
    (folder / hf.INDEX).write_text(json.dumps(index))


def leave_a_shard_beside_one_file(folder):
    save_file({"model.norm.weight": torch.zeros(48)}, folder / "model-00008-of-00008.safetensors")


def leave_a_shard(folder):
    split(folder)
    leave_a_shard_beside_one_file(folder)


BAD = [
    (lose_a_name, "lacks model.layers.1.mlp.up_proj.weight; its weights are not complete"),
    (add_a_name, "has model.layers.0.self_attn.q_proj.bias, for which"),
    (change_a_shape, r"model.norm.weight .* is \(47,\).* should be \(48,\)"),
    (truncate, "is not a complete safetensors file"),
    (empty, "is not a complete safetensors file"),
    (only_a_pickle, "pytorch_model.bin is a pickle"),
    (index_of_nothing, "lacks model-00001-of-00002.safetensors, which its index names"),
    (index_that_climbs, "does not map tensors to files beside it"),
    (half_an_index, "does not map tensors to files beside it"),
    (half_a_config, "is not a JSON object"),
    (no_config, "there is no config.json"),
    (configured(hidden_size="no"), "does not say hidden_size"),
    (configured(tie_word_embeddings="false"), 'tie_word_embeddings: "false", which is of another'),
    (configured(rope_parameters={"rope_theta": "5e5"}), 'rope_theta: "5e5", which is of another'),
    (move_in_the_index, r"model-00001.* lacks model.norm.weight, which the index says is there"),
    (forget_in_the_index, r"holds model.norm.weight, which the index does not name"),
    (leave_a_shard, r"also has model-00008-of-00008.safetensors, which is none of its weights'"),
    (leave_a_shard_beside_one_file, r"has model-00008-of-.*its weights' files \(model.safetensors"),
    (configured(num_hidden_layers=4), "of another model: layers is 4 there and 3 here"),
    (two_heads, "of another model: tied is True there and False here"),
]


@pytest.mark.parametrize(("damage", "says"), BAD, ids=[says[:30] for _, says in BAD])
def test_a_bad_folder_is_one_sentence_and_the_model_untouched(damage, says, tmp_path):
    good = initialise(Transformer(ModelConfig(**SHAPE, norm_eps=1e-3)), seed=5)
    folder = save_hf(good, good.config, tmp_path / "ours")
    damage(folder)
    model = initialise(Transformer(good.config), seed=6)
    before = global_tensors(model)
    with pytest.raises(ValueError, match=says) as error:
        load_hf(folder, model)
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[name], t) for name, t in global_tensors(model).items())


def test_a_tied_model_with_two_heads(tmp_path):
    """Some tied files hold the head too: fine where it is the embedding, and else a contradiction
    that nobody should resolve silently."""
    good = initialise(Transformer(ModelConfig(**SHAPE, tied=True)), seed=5)
    folder = save_hf(good, good.config, tmp_path / "ours")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # Llama 2's files
    save_file(tensors, folder / "model.safetensors")
    assert torch.equal(load_hf(folder).embed.weight, good.embed.weight)
    tensors["lm_head.weight"][-1, -1] += 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="tied, and holds two that differ"):
        load_hf(folder)


def test_what_cannot_be_saved_leaves_nothing(tmp_path):
    model = initialise(Transformer(ModelConfig(**SHAPE)))
    tensors = global_tensors(model)
    for wrong, says in (
        ({**tensors, "extra": torch.ones(1)}, "have extra too many"),
        ({n: t for n, t in tensors.items() if n != "norm.weight"}, "lack norm.weight"),
        ({**tensors, "norm.weight": torch.ones(3)}, r"norm.weight should be \(48,\)"),
    ):
        with pytest.raises(ValueError, match=says):
            save_hf(wrong, model.config, tmp_path / "ours")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("dear")
    with pytest.raises(ValueError, match="is there already"):
        save_hf(model, model.config, tmp_path / "full")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert (tmp_path / "full" / "mine").read_text() == "dear"


def test_a_disk_that_takes_no_more_leaves_nothing(tmp_path):
    """The system's own limit on a file's size stands for a full disk."""
    model = initialise(Transformer(ModelConfig(**SHAPE)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot be written to .*ours: .*unharmed"):
            save_hf(model, model.config, tmp_path / "ours")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_taken(tmp_path):
    model = initialise(Transformer(ModelConfig(**SHAPE)))
    (tmp_path / "ours").mkdir()
    save_hf(model, model.config, tmp_path / "ours")
    assert load_hf(tmp_path / "ours").config.hidden == 48
