"""The oracle passes every layout that is right: 2, 4 and 8 ranks in fp64, 4 ranks in fp32.

A comparison of two models that stand still, or without clipping, would pass whatever is wrong with
it; so what is compared is looked at too. What the oracle must not pass is in test_faults.py.
"""

import json
from contextlib import contextmanager

import pytest
import torch

from picolab.debug import main_verify, verify
from picolab.debug.faults import Fault, patched
from picolab.debug.oracle import verify_each
from picolab.parallel import TensorParallelOptimizer

# A push: each axis alone, each pair of axes in some layout (dp with pp among the three axes), an
# axis of which a rank is neither first nor last, three at once, and each stage of ZeRO. The rest is
# more of the same.
ZERO = ["dp2zero1", "dp2zero2", "dp3zero1", "dp2tp2zero2", "dp2pp2zero1", "dp4zero3shard2"]
FP64 = ["dp1", "dp2", "tp2", "pp4", "cp4", "dp2tp2pp2"]
FP64 += ["dp2cp2", "pp2cp2", "dp2tp2sp", "tp2pp2sp", "tp2cp2sp", *ZERO]
# Experts with each axis: replicas of them, tp, and cp with pp in a week.
FP64 += ["dp2tp2ep2", "dp2cp2ep4", "dp2ep2zero3"]
MORE_EXPERTS = [
    *("dp2ep2", "cp2ep2", "dp4ep2", "dp4ep4", "dp2pp2ep2", "dp2pp2ep2:zb-v", "dp2tp2ep2sp"),
    *("dp2ep2zero1", "dp4ep2zero2", "dp4ep2zero3shard2", "dp2cp2ep2zero3", "dp2tp2pp2ep2"),
]
FP32 = ["dp2tp2sp", "pp2cp2"]  # every axis once
PAIRS = ["dp2tp2", "dp2pp2", "tp2pp2", "tp2cp2"]
MORE = ["dp4", "tp4", "tp4sp", "pp4:gpipe"]
MORE_ZERO = [
    *("dp2zero3", "dp2cp2zero2", "dp3zero3", "cp2zero3", "dp2pp2zero3", "dp2pp2zero2"),
    *("dp2tp2spzero1", "dp2tp2spzero3", "dp4zero1shard2", "dp2cp2zero3"),
    *("dp2tp2pp2zero2", "dp4tp2zero3shard2"),
]
MORE_FP64 = [
    *MORE,
    *MORE_ZERO,
    *MORE_EXPERTS,
    "tp2sp",
    "pp2",
    "cp2",
    *PAIRS,
    "dp2cp2tp2",
    "tp2cp2pp2",
]
MORE_FP32 = [
    *MORE,
    *ZERO,
    "dp2tp2ep2",
    "dp2cp2ep2",
    "pp4",
    "cp4",
    *PAIRS,
    "dp2cp2",
    "tp2pp2sp",
    "tp2cp2sp",
]


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        *((layout, "fp64") for layout in FP64),
        *((layout, "fp32") for layout in FP32),
        *(pytest.param(layout, "fp64", marks=pytest.mark.weekly) for layout in MORE_FP64),
        *(pytest.param(layout, "fp32", marks=pytest.mark.weekly) for layout in MORE_FP32),
    ],
)
def test_a_layout_equals_one_process(layout, dtype):
    # Three: an update of what was updated. The five of a reader are looked at below.
    verdict = verify(layout, precision=dtype, steps=3)
    assert verdict.ok and verdict.cause is None, str(verdict)
    assert verdict.worst.allowed == {"fp64": 1e-12, "fp32": 2e-6}[dtype]
    assert {row.kind for row in verdict.rows} == {
        *("start", "loss", "gradient norm", "gradient", "parameter", "gathered")
    }


def test_what_experts_compute_is_worth_comparing():
    """Rows are dropped, biases move, the balance loss has a gradient, and ranks differ."""
    verdict = verify("cp2ep2", steps=2)
    evidence, config = verdict.evidence, verdict.evidence.recipe.config
    routed = evidence.reference.routed[0]
    asked = next(iter(routed.values())).shape[:2].numel() * config.experts_per_token
    assert any(int(mask.sum()) < asked for mask in routed.values())
    assert any(of.any() for name, of in evidence.reference.end.items() if "router.bias" in name)
    assert all(of.any() for of in evidence.reference.of_balance.values())
    assert evidence._rows(0)[0] != evidence._rows(0)[1]
    (plain,) = verdict.others
    assert plain.ok and plain.evidence.recipe.config.capacity is None


def test_what_is_compared_is_worth_comparing():
    verdict = verify("dp2")
    recipe, reference = verdict.evidence.recipe, verdict.evidence.reference
    assert len(reference.losses) == 5 and len(set(reference.losses)) == 5
    assert min(reference.norms) > 2 * recipe.training.clip
    for name, start in reference.start.items():
        assert float((reference.end[name] - start).norm() / start.norm()) > 1e-3, name
    assert reference.gradients.keys() == reference.end.keys() == reference.start.keys()
    counts = [len(verdict.evidence.ranks[r].read) for r in (0, 1)]
    assert counts == [recipe.accumulate] * 2 and recipe.counts()[0] != recipe.counts()[1]
    # Every summand of the gradient is there, and they add up to it.
    for name, whole in reference.gradients.items():
        total = sum(part[name] for part in reference.parts.values())
        assert torch.allclose(total, whole, rtol=1e-12, atol=1e-15)


def test_a_verdict_can_be_read_and_parsed():
    verdict = verify("dp2", steps=2)
    text = str(verdict)
    assert text.startswith("dp2 in fp64 equals one process") and "gradients at step 1" in text
    assert "most likely cause" not in text and bool(verdict)
    assert "dp2 in fp64 equals one process" in verdict._repr_html_()
    assert len(verdict.table().rows) == len(verdict.rows)
    told = json.loads(verdict.to_json())
    assert told["ok"] is True and told["cause"] is None and told["layout"] == "dp2"
    assert all(row["difference"] <= row["allowed"] for row in told["rows"])


def test_the_commands_function():
    text, status = main_verify("dp2", precision="fp32")
    assert status == 0 and "equals one process" in text
    told, status = main_verify("dp2", fault="dp-gradients-averaged", as_json=True)
    cause = json.loads(told)["cause"]
    assert status == 1 and (cause["where"], cause["what"]) == ("dp: gradient bucket", "averaged")


def test_a_seed_of_its_own_and_the_same_bits_twice():
    first, again, other = verify("tp2"), verify("tp2"), verify("tp2", seed=8)
    assert first.evidence.ranks[1].losses == again.evidence.ranks[1].losses
    assert other.ok and other.evidence.ranks[1].losses != first.evidence.ranks[1].losses


@contextmanager
def heads_not_shared(layout):
    """Ranks that hold the same key-value head keep the gradient of their own queries."""
    with patched(TensorParallelOptimizer, "sum_shared_heads", lambda self, parameters: None):
        yield


def test_key_value_heads_that_neighbours_share_are_compared():
    """In the second model, which alone has fewer of them than ranks of tp."""
    fault = Fault("heads", "a mutant", "here", "tp", heads_not_shared)
    right, wrong = verify_each("tp2", [None, fault], steps=2)
    assert right.ok and not wrong.ok, str(right)
    recipe = wrong.evidence.recipe
    assert not recipe.tied and recipe.config.kv_heads < recipe.layout.tp
    assert "attention.k." in wrong.worst.name or "attention.v." in wrong.worst.name
