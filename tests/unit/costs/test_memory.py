"""State memory: ZeRO's published figure, the 16, 18 and 20 bytes, and dtypes.

Wrong versions these tests catch, kept below as mutants: stages that shard one category too many or
too few, moments counted once instead of twice, the master copy not sharded.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picolab import costs
from picolab.specs.precision import PRECISIONS


def check_figure_1(total):
    """arXiv 1910.02054, figure 1: 7.5 B parameters on 64 ranks, GB as printed."""
    printed = {0: 120, 1: 31.4, 2: 16.6, 3: 1.9}
    for stage, gb in printed.items():
        digits = 0 if stage == 0 else 1
        assert round(total(7.5e9, zero=stage, dp=64) / 1e9, digits) == gb, stage


def test_the_figure_of_the_zero_paper():
    check_figure_1(lambda params, **kw: costs.state_bytes(params, **kw).total)


def one_moment(params, **kw):
    return costs.state_bytes(params, moment_bytes=4, **kw).total


def one_stage_too_far(params, *, zero, dp):
    return costs.state_bytes(params, zero=min(3, zero + 1), dp=dp).total


def one_stage_short(params, *, zero, dp):
    return costs.state_bytes(params, zero=max(0, zero - 1), dp=dp).total


def master_not_sharded(params, *, zero, dp):
    states = costs.state_bytes(params, zero=zero, dp=dp)
    return states.total - states.master + 4 * params


@pytest.mark.parametrize(
    "wrong", [one_moment, one_stage_too_far, one_stage_short, master_not_sharded]
)
def test_a_wrong_formula_is_caught(wrong):
    with pytest.raises(AssertionError):
        check_figure_1(wrong)


# recipe -> bytes a parameter for the stages, as (constant, numerator over dp)
TABLE = {
    "BYTES_16_BF16": [(16, 0), (4, 12), (2, 14), (0, 16)],
    "BYTES_18_FP32_GRADIENTS": [(18, 0), (6, 12), (2, 16), (0, 18)],
    "BYTES_20_FP16": [(20, 0), (4, 16), (2, 18), (0, 20)],
    "BYTES_16_FP32": [(16, 0), (8, 8), (4, 12), (0, 16)],
}


@pytest.mark.parametrize("dp", [1, 2, 8, 64])
@pytest.mark.parametrize("recipe", TABLE)
def test_bytes_a_parameter(recipe, dp):
    for stage, (constant, shared) in enumerate(TABLE[recipe]):
        states = costs.state_bytes(1, **getattr(costs, recipe), zero=stage, dp=dp)
        assert states.total == constant + shared / dp


def test_the_recipes_have_names_and_cannot_be_changed():
    assert sorted(sum(recipe.values()) for recipe in costs.RECIPES.values()) == [16, 16, 18, 20]
    with pytest.raises(TypeError):
        costs.BYTES_16_BF16["param_bytes"] = 4


def test_what_training_keeps_of_a_parameter_by_precision():
    sums = {name: sum(costs.trained_bytes(name).values()) for name in PRECISIONS}
    assert sums == {
        "fp64": 32, "fp32": 16, "bf16": 16, "bf16-pure": 8, "fp16": 16, "fp8": 16, "adaptive": 28
    }  # fmt: skip
    copied = {name: costs.copy_bytes(name) for name in PRECISIONS if costs.copy_bytes(name)}
    assert copied == {"bf16": 2, "fp16": 2, "fp8": 2, "adaptive": 2}
    assert costs.copy_bytes("bf16", "rounded") == 4


@given(st.integers(0, 10**12), st.integers(1, 4096))
def test_stages_only_ever_save(params, dp):
    totals = [costs.state_bytes(params, zero=zero, dp=dp).total for zero in range(4)]
    assert totals == sorted(totals, reverse=True)
    assert totals[0] == 16 * params
    assert totals[3] * dp == pytest.approx(totals[0], rel=1e-15 * 4)  # four roundings


def test_categories_and_rows():
    states = costs.state_bytes(10, dp=1)
    assert (states.parameters, states.gradients, states.master, states.moments) == (20, 20, 40, 80)
    assert states.optimizer == 120
    labels = ["parameters", "gradients", "master", "moments", "total"]
    assert states.rows() == [list(row) for row in zip(labels, (20, 20, 40, 80, 160), strict=True)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (dict(zero=4), "zero is 4; ZeRO stages are 0"),
        (dict(dp=0), "dp is 0; it must be 1 or more"),
        (dict(params=-1), "params is -1"),
    ],
)
def test_bad_input_gets_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        costs.state_bytes(**{"params": 1, **arguments})


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        ("fp64", 8), ("float64", 8), ("int64", 8), ("fp32", 4), ("float32", 4), ("bf16", 2),
        ("bfloat16", 2), ("fp16", 2), ("torch.float16", 2), ("BF16", 2), ("int8", 1),
    ],
)  # fmt: skip
def test_dtype_bytes(dtype, size):
    assert costs.dtype_bytes(dtype) == size


def test_torchs_dtypes_have_the_size_that_torch_gives_them():
    import torch

    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int8", "bool"):
        dtype = getattr(torch, name)
        assert costs.dtype_bytes(dtype) == dtype.itemsize == costs.dtype_bytes(name)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="'fp17' is not a dtype known here; known are fp64"):
        costs.dtype_bytes("fp17")
