"""What learners bring beyond a plain Llama: Llama 3's stretched positions, Qwen2's biases and dense
Qwen3, compared with `transformers`; what is like them and is not computed, refused by name.

Wrong versions these catch: frequencies that are not stretched or not blended, heads' norms that are
not read, biases that are left out or swapped, a default that is another family's, folders that
transformers refuses.
"""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

import picolab as pico
from picolab.model import Transformer, hf_config, initialise, layers, load_hf, save_hf
from picolab.parallel import parallelize
from picolab.specs import ModelConfig
from picolab.specs.hugging_face_config import read_config
from picolab.specs.model_config import Llama3Rope

transformers = pytest.importorskip("transformers")

SHAPE = dict(
    hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=2, vocab_size=97, max_position_embeddings=64,
)  # fmt: skip
ROPE = dict(
    rope_type="llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip
KINDS = {
    "Llama": dict(rope_parameters=ROPE),
    "Qwen2": dict(use_sliding_window=False, sliding_window=16, max_window_layers=1),
    "Qwen3": dict(tie_word_embeddings=True),
}
TOKENS = torch.randint(97, (2, 48), generator=torch.Generator().manual_seed(0))
OURS = ModelConfig(hidden=48, ffn=80, layers=2, heads=6, kv_heads=2, vocab=97, seq=32)


@pytest.fixture(scope="module", params=KINDS)
def theirs(request, tmp_path_factory):
    """A folder that transformers wrote, and its logits."""
    torch.manual_seed(1)
    config = getattr(transformers, f"{request.param}Config")(**SHAPE, **KINDS[request.param])
    model = getattr(transformers, f"{request.param}ForCausalLM")(config).float().eval()
    with torch.no_grad():  # as spread as trained ones: else positions and norms hardly matter
        for parameter in model.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.dim() == 1 else parameter.normal_(0, 0.2)
        folder = tmp_path_factory.mktemp("theirs")
        model.save_pretrained(folder)
        return folder, model(TOKENS).logits


def off(found, right) -> float:
    return float((found - right).abs().max() / right.abs().max())


@torch.no_grad()
def test_logits_are_those_of_transformers_and_weights_go_back(theirs, tmp_path):
    folder, logits = theirs
    model = load_hf(folder)
    assert off(model(TOKENS), logits) < 1e-5
    back = save_hf(model, model.config, tmp_path / "back")
    again = transformers.AutoModelForCausalLM.from_pretrained(back).eval()
    assert torch.equal(again(TOKENS).logits, logits)
    assert hf_config(back).replace(name="") == hf_config(folder).replace(name="")


@torch.no_grad()
def test_mutants_give_other_logits(theirs, monkeypatch):
    folder, logits = theirs
    if hf_config(folder).qk_norm:
        monkeypatch.setattr(layers.RMSNorm, "forward", unweighted)
        assert off(load_hf(folder)(TOKENS), logits) > 1e-2
        return
    if hf_config(folder).qkv_bias:
        biases = {
            "none": lambda self, y: y,
            "twice": lambda self, y: y if self.bias is None else y + 2 * self.bias,
            "swapped": lambda self, y: y if self.bias is None else y + self.bias.flip(0),
        }
        for wrong in biases.values():
            monkeypatch.setattr(layers.Linear, "biased", wrong)
            assert off(load_hf(folder)(TOKENS), logits) > 1e-2
        return
    for mutant in (
        lambda frequencies, scaling: frequencies,
        lambda frequencies, scaling: frequencies / scaling.factor,
        lambda f, s: torch.where(s.original_seq * f / 6.283185 < s.low, f / s.factor, f),
    ):
        monkeypatch.setattr(layers, "stretched", mutant)
        assert off(load_hf(folder)(TOKENS), logits) > 1e-4


def unweighted(self, x):
    return torch.nn.functional.rms_norm(x, x.shape[-1:], None, self.eps)


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3", "Mixtral", "Qwen3Moe"])
def test_where_config_json_is_silent_the_familys_own_defaults_hold(kind, tmp_path):
    """Each key left out in turn; null for the key-value heads is not the same as silence."""
    config = getattr(transformers, f"{kind}Config")(**SHAPE)
    config.architectures = [f"{kind}ForCausalLM"]
    config.save_pretrained(tmp_path)
    path, full = tmp_path / "config.json", json.loads((tmp_path / "config.json").read_text())
    needed = {*SHAPE, "model_type"} - {"num_key_value_heads", "max_position_embeddings"}
    for key in full.keys() - needed:
        path.write_text(json.dumps({k: v for k, v in full.items() if k != key}))
        theirs, ours = transformers.AutoConfig.from_pretrained(tmp_path), None
        try:
            ours = hf_config(tmp_path)
        except ValueError as error:
            assert "does not say" in str(error) or "do not divide" in str(error), error
            continue
        assert ours.rope_theta == theirs.rope_parameters["rope_theta"], key
        assert ours.norm_eps == theirs.rms_norm_eps and ours.kv_heads == theirs.num_key_value_heads
        assert ours.seq == theirs.max_position_embeddings
        assert ours.tied == theirs.tie_word_embeddings
        assert ours.head_dim == (getattr(theirs, "head_dim", None) or 48 // 6), key
        if ours.experts:
            assert ours.experts_per_token == theirs.num_experts_per_tok
    path.write_text(json.dumps({**full, "num_key_value_heads": None}))
    assert hf_config(tmp_path).kv_heads == 6


def test_a_bias_where_no_family_has_one_is_not_written(tmp_path):
    for more in (dict(qk_norm=True), dict(experts=2, experts_per_token=1, expert_ffn=80)):
        config = OURS.replace(qkv_bias=True, **more)
        with pytest.raises(ValueError, match="has qkv_bias = True, which no model"):
            save_hf({}, config, tmp_path / "no")


def losses(folder, layouts):
    found = []
    for layout in layouts:
        model = Transformer(hf_config(folder), dtype=torch.float64)
        parallel = parallelize(model, layout, seed=9)
        load_hf(folder, parallel.model)
        mine = TOKENS
        if parallel.layout.dp > 1:
            mine = TOKENS.chunk(parallel.layout.dp)[pico.comm.mesh().rank("dp")]
        found.append(float(parallel.evaluate(mine[None], mine[None])))
    return found


def test_in_every_layout(theirs):
    folder, _ = theirs
    right = float(load_hf(folder, dtype=torch.float64).loss(TOKENS, TOKENS).detach())
    layouts = ["dp2", "tp2", "tp2sp", "pp2", "cp2", "dp2zero1", "dp2zero3"]
    for found in pico.run(losses, folder, layouts, world_size=2):
        assert found == pytest.approx([right / TOKENS.numel()] * len(layouts), rel=1e-12)


REFUSED = {
    'model_type: "gemma"; what is read here is llama, qwen2, qwen3': dict(model_type="gemma"),
    "use_sliding_window: true (read here: false)": dict(use_sliding_window=True),
    'model_type: "mistral"; what is read': dict(model_type="mistral", sliding_window=4096),
    "attention_bias: true (read here: false)": dict(attention_bias=True),
    "sliding_window: 4096 (read here: null)": dict(sliding_window=4096),
    'layer_types: ["full_attention", "sliding_attention"] (read': dict(
        layer_types=["full_attention", "sliding_attention"]
    ),
    "rope_interleaved: true (read here: false)": dict(rope_interleaved=True),
    "rope_scaling: [1] (not known here)": dict(rope_scaling=[1]),
    'rms_norm_eps: "1e-5", which is of another type': dict(rms_norm_eps="1e-5"),
    'num_hidden_layers: "2", which is of another type': dict(num_hidden_layers="2"),
    "vocab_size: true, which is of another type": dict(vocab_size=True),
    "llama3 and not rope_scaling.low_freq_factor": dict(
        rope_scaling={"rope_type": "llama3", "factor": 8.0}
    ),
    "rope_scaling: Llama3Rope: low is 4.0 and high 1.0": dict(
        rope_scaling={**ROPE, "low_freq_factor": 4.0, "high_freq_factor": 1.0}
    ),
    "rope_parameters.full_attention: {": dict(rope_parameters={"full_attention": ROPE}),
}


def test_what_is_not_computed_is_refused_by_name(tmp_path):
    model = initialise(Transformer(OURS))
    folder = save_hf(model, OURS, tmp_path / "ours")
    plain = json.loads((folder / "config.json").read_text())
    for sentence, changes in REFUSED.items():
        (folder / "config.json").write_text(json.dumps({**plain, **changes}))
        with pytest.raises(ValueError, match=re.escape(sentence)) as error:
            load_hf(folder)
        assert "\n" not in str(error.value)


def test_a_pointer_of_git_lfs_is_told(tmp_path):
    folder = save_hf(initialise(Transformer(OURS)), OURS, tmp_path / "ours")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (folder / "model.safetensors").write_text(pointer)
    with pytest.raises(ValueError, match=r"pointer of git-lfs .* `git lfs pull`"):
        load_hf(folder)
    kept = (folder / "config.json").read_text()
    (folder / "config.json").write_text(pointer)
    for read in (load_hf, read_config):
        with pytest.raises(ValueError, match=r"config\.json is a pointer of git-lfs"):
            read(folder)
    (folder / "config.json").write_text(kept)
    save_file({}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="lacks model"):
        load_hf(folder)


def test_what_transformers_would_refuse_is_not_written_so(tmp_path):
    config = OURS.replace(norm_eps=1, rope_theta=10_000)
    folder = save_hf(initialise(Transformer(config)), config, tmp_path / "integers")
    assert transformers.AutoModelForCausalLM.from_pretrained(folder).config.rms_norm_eps == 1.0
    config = OURS.replace(heads=5, kv_heads=5, head_dim=8)
    with pytest.raises(ValueError, match="5 heads do not divide hidden 48, and transformers"):
        save_hf(initialise(Transformer(config)), config, tmp_path / "heads")
    assert not (tmp_path / "heads").exists()


def test_a_stretch_that_cannot_be_gets_a_sentence():
    for wrong, says in (({"factor": 0}, "factor is 0"), ({"original_seq": 1.5}, "original_seq")):
        with pytest.raises(ValueError, match=says):
            Llama3Rope(**{"factor": 8.0, "low": 1.0, "high": 4.0, "original_seq": 16, **wrong})
