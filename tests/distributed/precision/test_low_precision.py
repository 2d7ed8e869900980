"""bf16 and fp16 with fp32 masters, in every layout: the oracle's numbers within the format's
rounding, the formula's bytes to the byte; skipped steps that all ranks agree on, and a scale that a
checkpoint remembers.

The wrong versions this file catches: a rank that skips alone, gradients that travel in bf16,
working copies that outlive an update, and (by the oracle's own faults) reductions that are
missing.
"""

from dataclasses import replace

import pytest
import torch

import picolab as pico
from picolab import comm, costs
from picolab.debug import verify
from picolab.debug.oracle import verify_layouts
from picolab.precision.scaler import LossScaler
from picolab.training import TrainConfig, precision, train_rank

SHAPE = dict(hidden=32, ffn=48, layers=2, heads=4, kv_heads=2, vocab=256, seq=16)
CONFIG = TrainConfig(
    model=pico.ModelConfig(**SHAPE), steps=4, eps=1e-5, products="rounded", micro_batch=2,
    accumulate=2, precision="bf16",
)  # fmt: skip
# Each axis, each stage of ZeRO, a split backward; a week adds pairs.
FIRST = ["dp2", "dp2ep2", "tp2", "tp2sp", "pp2"]
LAYOUTS = [*FIRST, "cp2", "cp2ep2", "dp2zero2", "dp2zero3", "pp2:zb-h1"]
PAIRS = ["dp2tp2", "tp2pp2", "dp2pp2zero1", "dp2cp2", "tp2cp2sp", "dp4zero3shard2", "tp4"]


def equal_one_process(layouts, name):
    for verdict in verify_layouts(layouts, precision=name, steps=3):
        assert verdict.ok, verdict


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_a_layout_equals_one_process_up_to_the_formats_rounding(name):
    """Gradients, norms and parameters; and the formula's ledger, in which activations are short and
    gradients are not."""
    equal_one_process(LAYOUTS if name == "bf16" else FIRST, name)


@pytest.mark.weekly
@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_so_do_two_axes(name):
    equal_one_process(PAIRS, name)
    equal_one_process(LAYOUTS[len(FIRST) :], "fp16")


def test_a_missing_reduction_is_seen_through_the_rounding():
    for layout, fault in (("tp2", "tp-row-output-missing"), ("dp2", "dp-gradients-missing")):
        verdict = verify(layout, precision="bf16", fault=fault, steps=2)
        assert not verdict.ok, fault


def trained(configs, observers=()):
    """One rank's reports of one run after the other."""
    found = []
    for config in configs:
        before = len(comm.ledger().snapshot())
        report = train_rank(config, observers=observers)
        entries = comm.ledger().snapshot().entries[before:]
        seen = pico.monitoring.Ledger(e for e in entries if e.step == 0)
        seen = {k: (t.count, t.payload_bytes) for k, t in seen.by("op", "axis", "reason").items()}
        dtypes = {e.dtype for e in entries if "gradient bucket" in e.reason}
        found.append((report, seen, dtypes))
    return found


@pytest.mark.weekly
def test_experts_that_choose_for_themselves_train_in_short_formats_too():
    """Nearly as in fp32, up to choices that a rounding changes (the oracle plants them); with the
    formula's bytes; and the balance loss is scaled like the other."""
    moe = CONFIG.model.replace(experts=4, experts_per_token=2, expert_ffn=24, aux_loss=0.1)
    configs = [
        replace(CONFIG, model=moe, precision=name, layout="dp2ep2", steps=3, micro_batch=1)
        for name in ("fp32", "bf16", "fp16")
    ]
    ranks = pico.run(trained, configs, world_size=2, quiet=True)
    (exact, _, _), *others = ranks[0]
    for config, (report, seen, dtypes) in zip(configs[1:], others):
        assert report.losses == pytest.approx(exact.losses, rel=0.01)
        assert report.grad_norms == pytest.approx(exact.grad_norms, rel=0.05)
        assert dtypes == {"float32"} and not report.skipped
        formula = costs.step_ledger(
            config.model, config.layout, micro_batch=1, accumulate=2, precision=config.precision
        )
        fixed = {key for key in formula if "rows" not in key[2]}  # those depend on choices
        assert {k: formula[k][:2] for k in fixed} == {k: seen[k] for k in fixed}


class Overflow(pico.Observer):
    """Of one rank the gradient of one step is infinite."""

    def __init__(self, rank, step):
        self.rank, self.at = rank, step

    def gradients(self, run):
        if torch.distributed.get_rank() == self.rank and run.step == self.at:
            next(p for p in run.parallel.parameters() if p.grad is not None).grad.fill_(torch.inf)


def skips_alone():
    precision.agreed = lambda mine: mine


def with_overflow(config, patch=None):
    if patch:
        patch()
    objecting = precision.ScaledPrecision(config, LossScaler(interval=2))
    report = train_rank(config, observers=[Overflow(1, 1)], precision=objecting)
    return report.skipped, objecting.scaler.scale, report.losses


def several(configs):
    return [with_overflow(config) for config in configs]


def test_all_ranks_skip_what_one_objects_to():
    layouts = ["dp2", "tp2", "pp2", "dp2zero1", "dp2zero3"]
    configs = [replace(CONFIG, precision="fp16", layout=layout) for layout in layouts]
    ranks = pico.run(several, configs, world_size=2, quiet=True)
    for config, *found in zip(configs, *ranks):
        # Step 1 is skipped, the scale halved; steps 2 and 3 are taken, and it is doubled.
        assert [of[:2] for of in found] == [([1], 2.0**16)] * 2, config.layout
        assert found[0][2] == found[1][2]


def test_mutant_one_rank_skips_alone():
    """It goes on with other parameters, or in another collective than the other rank."""
    config = replace(CONFIG, precision="fp16", layout="dp2")
    skipped = [of[0] for of in pico.run(with_overflow, config, skips_alone, world_size=2)]
    assert skipped[0] != skipped[1]


def test_an_overflow_that_no_scale_cures_ends_the_run():
    config = replace(CONFIG, precision="fp16", layout="dp2")
    with pytest.raises(pico.RankFailure, match="not finite although the loss is scaled by 1 only"):
        pico.run(always, config, world_size=2, quiet=True)


def always(config):
    scaled = precision.ScaledPrecision(config, LossScaler(scale=1))
    return train_rank(config, observers=[Overflow(0, 0)], precision=scaled)


def test_a_working_copy_that_outlives_the_update_is_seen():
    """Kept, the masters would learn and the products would not."""
    right, stale = pico.run(kept_or_not, world_size=1, quiet=True)[0]
    assert right[0] == stale[0] and abs(right[-1] - stale[-1]) > 0.02


def kept_or_not():
    config = replace(CONFIG, layout="dp1", lr=1e-2, steps=6)
    right = train_rank(config).losses
    precision.forget = lambda products: None
    return right, train_rank(config).losses


def test_going_on_from_a_checkpoint_is_bit_for_bit(tmp_path):
    """The loss scale and its streak are part of it."""
    settings = dict(
        **SHAPE, precision="fp16", products="rounded", layout="dp2", micro_batch=2, progress=False
    )
    whole = pico.train(steps=4, **settings, checkpoint=tmp_path / "a", save_every=2)
    on = pico.train(steps=4, **settings, resume=tmp_path / "a" / "step-2")
    assert on.losses == whole.losses[2:] and on.skipped == [s for s in whole.skipped if s >= 2]
    with pytest.raises(ValueError, match="dtype is 'fp32' there and 'bf16' here"):
        pico.train(steps=6, **{**settings, "precision": "bf16-pure"}, resume=tmp_path / "a")
    assert pico.train(steps=5, **{**settings, "precision": "bf16"}, resume=tmp_path / "a").losses


def test_the_products_of_a_run_are_told_and_the_same_on_all_ranks():
    found = pico.train(**SHAPE, precision="bf16", layout="tp2", steps=2, progress=False)
    (told,) = [event for event in found.events if event.kind == "products"]
    assert told.data["products"].keys() == {"32x32", "32x48", "24x32", "16x32", "32x128"}
    assert all(of.keys() == {"y", "dx", "dw"} for of in told.data["products"].values())
    # The masters are the parameters: what is kept between steps is what fp32 keeps.
    states = costs.rank_states(found.config.model, "tp2", dtype=found.config.dtype)
    assert {kind: found.memory[0][kind] for kind in states} == states
    again = pico.train(**SHAPE, precision="bf16", layout="tp2", steps=2, progress=False)
    assert again.losses == found.losses
