"""Mixtral's and Qwen3-MoE's weights: in, out, and the logits of transformers.

The wrong versions this file catches: gate and up swapped, weights that are renormalised where the
config says they are not, heads' norms left out or applied after the rotation.
"""

import pytest
import torch

import picolab as pico
from picolab.model import hf_config, layers, load_hf, save_hf, slices
from picolab.model import hugging_face_families as families
from picolab.parallel import parallelize
from picolab.specs import ModelConfig
from picolab.training.build import build

transformers = pytest.importorskip("transformers")

SHAPE = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=4, vocab_size=64, max_position_embeddings=32, num_experts_per_tok=2,
)  # fmt: skip
KINDS = {
    "mixtral": ("Mixtral", dict(num_local_experts=4)),
    "qwen3": (
        "Qwen3Moe",
        dict(num_experts=6, moe_intermediate_size=24, head_dim=8, norm_topk_prob=True),
    ),
    "qwen3, not renormalised": (
        "Qwen3Moe",
        dict(num_experts=4, moe_intermediate_size=24, head_dim=8, norm_topk_prob=False),
    ),
}
WEEKLY = pytest.mark.weekly
TOKENS = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(
    scope="module",
    params=["mixtral", "qwen3", pytest.param("qwen3, not renormalised", marks=WEEKLY)],
)
def theirs(request, tmp_path_factory):
    """A folder that transformers wrote, and its logits."""
    name, more = KINDS[request.param]
    torch.manual_seed(1)
    config = getattr(transformers, f"{name}Config")(**SHAPE, **more)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():  # norms of ones hide whether they are read
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
        folder = tmp_path_factory.mktemp("theirs")
        model.save_pretrained(folder)
        return folder, model(TOKENS).logits


def off(found, right):
    return float((found - right).abs().max() / right.abs().max())


@torch.no_grad()
def test_logits_are_those_of_transformers_and_weights_go_back(theirs, tmp_path):
    folder, logits = theirs
    model = load_hf(folder, build=build)
    assert off(model(TOKENS), logits) <= 2e-6
    back = save_hf(model, model.config, tmp_path / "back", build=build)
    name = type(transformers.AutoConfig.from_pretrained(back)).__name__.removesuffix("Config")
    again = getattr(transformers, f"{name}ForCausalLM").from_pretrained(back).eval()
    assert torch.equal(again(TOKENS).logits, logits)
    assert hf_config(back).replace(name="") == hf_config(folder).replace(name="")


@torch.no_grad()
@pytest.mark.parametrize("what", ["gate and up", "renormalised", "heads' norms"])
def test_mutants_give_other_logits(theirs, monkeypatch, what):
    folder, logits = theirs
    model = load_hf(folder, build=build)
    if what == "gate and up":
        for block in model.layers:
            block.mlp.experts.gate_up.copy_(block.mlp.experts.gate_up.flip(1))
    elif what == "renormalised":
        for block in model.layers:
            other = not block.mlp.config.router_renormalise
            block.mlp.router.config = block.mlp.config.replace(router_renormalise=other)
    elif model.config.qk_norm:
        monkeypatch.setattr(layers.RMSNorm, "forward", lambda self, x: x)
    else:
        pytest.skip("Mixtral has no norms of heads that could be left out")
    assert off(model(TOKENS), logits) > 1e-3


@pytest.mark.parametrize("layout", ["tp2", pytest.param("cp2ep2", marks=WEEKLY)])
def test_each_rank_reads_its_experts_and_its_part_of_them(theirs, layout):
    folder, _ = theirs
    tokens = TOKENS[:, :16]
    model = load_hf(folder, build=build, dtype=torch.float64)
    right = float(model.loss(tokens[:, :-1], tokens[:, 1:]).detach()) / 30
    if layout == "cp2ep2":
        tokens = tokens[:, :13]
        right = float(model.loss(tokens[:, :-1], tokens[:, 1:]).detach()) / 24

    def run(folder, layout, tokens):
        parallel = parallelize(build(hf_config(folder), torch.float64), layout, seed=9)
        load_hf(folder, parallel.model, build=build)
        loss = parallel.evaluate(tokens[None, :, :-1], tokens[None, :, 1:])
        return float(loss), parallel.state_dict()

    for loss, state in pico.run(run, folder, layout, tokens, world_size=2):
        assert loss == pytest.approx(right, rel=1e-12)
        for parameter in model.parameters():
            for piece, part in slices(parameter):
                assert torch.equal(state[piece.name], part), piece.name


def test_what_no_family_has_is_not_written(tmp_path):
    config = ModelConfig.preset("tiny-moe").replace(layers=1, router_score="sigmoid")
    with pytest.raises(
        ValueError, match="router_score = 'sigmoid', which no model of the families"
    ):
        save_hf({}, config, tmp_path / "x", build=build)
    assert families.family_of(ModelConfig.preset("tiny")) is families.LLAMA
