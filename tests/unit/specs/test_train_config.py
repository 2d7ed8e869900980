"""What a run is made of, and what is refused before a rank is started.

The wrong versions this file catches: a schedule that starts at 0 or peaks in the wrong step, a
relative path handed to ranks that have another working directory, a head_dim kept from the preset,
settings that are misspelt and ignored, a setting that its JSON lacks.
"""

import itertools
import json
import math
from dataclasses import asdict, fields, replace

import pytest

from picolab.specs import Layout, ModelConfig, TrainConfig, assemble


def test_the_schedule_rises_and_falls():
    config = TrainConfig(steps=100, lr=1.0, warmup=10)
    rates = [config.learning_rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.55)  # half way down: the middle of 1 and 0.1
    assert 0.1 < rates[-1] < 0.102


@pytest.mark.parametrize(("steps", "warmup"), [(1, None), (1, 5), (5, None), (3, 0), (20, None)])
def test_the_schedule_of_short_runs(steps, warmup):
    rates = [TrainConfig(steps=steps, warmup=warmup).learning_rate(s) for s in range(steps)]
    assert all(0 < rate <= 3e-3 and math.isfinite(rate) for rate in rates)


def test_shape_settings_change_the_model():
    config = assemble(model="tiny", hidden=256, layers=2, seq=32, ffn=None, steps=3)
    assert (config.model.hidden, config.model.layers, config.model.seq) == (256, 2, 32)
    assert config.model.head_dim == 32 and config.model.ffn == 352 and config.steps == 3
    assert assemble(model="tiny").model.name == "tiny"
    assert assemble(model=ModelConfig.preset("tiny"), layers=1).model.layers == 1


def test_a_step_in_numbers():
    config = TrainConfig(layout="dp2tp2", micro_batch=3, accumulate=5)
    assert config.layout == Layout(dp=2, tp=2)
    assert config.sequences_per_step == 30 and config.tokens_per_step == 30 * 128


def test_paths_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert TrainConfig(data="a/b.txt").data == str(tmp_path / "a" / "b.txt")
    assert TrainConfig(data="random").data == "random"


def test_a_run_is_told_whole_in_json():
    config = TrainConfig(layout="dp2tp2", clip=None, eval_every=5)
    told = json.loads(json.dumps(asdict(config)))
    assert list(told) == [field.name for field in fields(TrainConfig)]
    assert told["eval_every"] == 5 and told["clip"] is None and told["betas"] == [0.9, 0.95]
    assert ModelConfig(**told["model"]) == config.model
    assert Layout(**told["layout"]) == config.layout


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (dict(layout="dp2ep2"), r"ep=2 has nothing to spread, the model has no experts"),
        (dict(layout="dp3ep3", model="tiny-moe"), r"ep=3 does not divide experts \(8\)"),
        (dict(layout="tp5"), r"tp=5 leaves ranks with nothing of kv_heads .* nearest layout"),
        (dict(layout="pp5"), r"pp=5 is more stages than .* layers .* nearest layout"),
        (dict(layout="cp3"), r"cp=3 cuts a sequence into 2 \* cp = 6 equal chunks"),
        (dict(layout="cp2", seq=6), r"seq is 6 \(take 4 or 8\)"),
        (dict(layout="dp2sp"), r"tp is 1; the nearest layout of 2 ranks that works is dp2$"),
        (dict(layout="dp2xx3"), r"'xx' is not an axis"),
        (
            dict(layout="tp2pp2sp:zb-h1", sp_inputs="gather"),
            r"zb-h1 keeps that input for its weight gradient; take sp_inputs='keep'",
        ),
        (dict(model="deepseek-v3"), r"deepseek-v3 has latent attention, which cannot be trained"),
        (dict(model="tinny"), r"did you mean 'tiny'"),
        (dict(model=3), r"model is 3"),
        (dict(steps=0), r"steps is 0; it must be an integer of at least 1"),
        (dict(micro_batch=0), r"micro_batch is 0"),
        (dict(accumulate=1.5), r"accumulate is 1.5"),
        (dict(seed=-1), r"seed is -1"),
        (dict(warmup=-1), r"warmup is -1"),
        (dict(precision="fp12"), r"precision is 'fp12'; training takes fp64, fp32, bf16"),
        (dict(precision="bf16", dtype="fp64"), r"parameters in fp32, and dtype is 'fp64'"),
        (dict(products="fast"), r"products is 'fast'; it is 'auto', 'native' or 'rounded'"),
        (dict(dtype="fp16"), r"dtype is 'fp16'; it is the older spelling of precision"),
        (dict(lr=0), r"lr is 0; it must be a number above 0"),
        (dict(lr=math.nan), r"lr is nan"),
        (dict(clip=-1.0), r"clip is -1.0"),
        (dict(weight_decay=-0.1), r"weight_decay is -0.1"),
        (dict(betas=(0.9,)), r"AdamW takes two numbers"),
        (dict(betas=(0.9, 1.0)), r"betas is 1.0; it must be a number at least 0 and below 1"),
        (dict(eval_every=0), r"eval_every is 0; it must be an integer of at least 1"),
        (dict(stage_cost_s=0.1), r"stage_cost_s is 0.1; give seconds of a forward and a backward"),
        (dict(stage_cost_s=(0.1, -1)), r"stage_cost_s is -1; it must be a number 0 or more"),
        (dict(lr="0.1"), r"lr is '0.1'; it must be a number above 0"),
        (dict(tied=1), r"tied is 1; it is True or False"),
        (dict(rope_theta="big"), r"rope_theta is 'big'; it must be positive"),
        (dict(data=7), r"data is 7"),
        (dict(heads=7), r"7 heads do not divide hidden"),
        (dict(step=5), r"no setting 'step'; did you mean 'steps'"),
        (dict(zzzz=5), r"no setting 'zzzz'; it has accumulate"),
    ],
)
def test_what_cannot_be_trained_is_a_sentence(settings, says):
    with pytest.raises(ValueError, match=says) as error:
        assemble(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "precision", "dtype", "activations"),
    [
        ({}, "fp32", "fp32", "fp32"),
        (dict(dtype="fp64"), "fp64", "fp64", "fp64"),
        (dict(dtype="bf16"), "bf16-pure", "bf16", "bf16"),
        (dict(precision="bf16"), "bf16", "fp32", "bf16"),
        (dict(precision="fp16"), "fp16", "fp32", "fp16"),
        (dict(precision="fp64", dtype="fp64"), "fp64", "fp64", "fp64"),
    ],
)
def test_dtype_is_the_older_spelling_of_precision(settings, precision, dtype, activations):
    config = TrainConfig(**settings)
    assert (config.precision, config.dtype) == (precision, dtype)
    assert config.numbers.activations == activations and config.numbers.parameters == dtype
    again = replace(config, steps=3)  # both spellings are known by then, and agree
    assert (again.precision, again.dtype) == (precision, dtype)


def test_a_memory_budget_is_bytes():
    for given, nbytes in (("40MB", 40_000_000), ("38 MiB", 38 * 2**20), (10**7, 10**7), ("1e", 0)):
        if nbytes:
            assert TrainConfig(memory_budget=given).memory_budget == nbytes
            continue
        with pytest.raises(ValueError, match="memory_budget is '1e'; it is a number of bytes"):
            TrainConfig(memory_budget=given)
    with pytest.raises(ValueError, match="a memory budget is planned once"):
        TrainConfig(memory_budget="40MB", precision="adaptive")
    for schedule in ("zb-h1", "zb-v", "interleaved-v2", "interleaved"):
        with pytest.raises(ValueError, match=r"keeps other things .* 1f1b or gpipe"):
            TrainConfig(memory_budget="40MB", layout=f"pp2:{schedule}", accumulate=4)
    for schedule in ("1f1b", "gpipe"):
        TrainConfig(memory_budget="40MB", layout=f"pp2:{schedule}", accumulate=4)
