"""Adaptive precision in runs: decisions that all ranks share, a spike that is taken back, and the
way to it reproduced bit for bit.

The wrong versions this file catches: a rank that goes back alone, moments or a place in the data
that are not put back, and a state that is kept although its step was bad.
"""

import math
from dataclasses import replace

import pytest
import torch

import picolab as pico
from picolab import comm, costs
from picolab.training import TrainConfig, snapshot, train_rank
from picolab.training import adaptive as adaptive_run
from picolab.training.adaptive import AdaptivePrecision

SHAPE = dict(hidden=32, ffn=48, layers=2, heads=4, kv_heads=2, vocab=256, seq=16)
CONFIG = TrainConfig(
    model=pico.ModelConfig(**SHAPE), steps=8, eps=1e-5, products="rounded", micro_batch=2,
    precision="adaptive", layout="dp2",
)  # fmt: skip
EARLY = {"least": 2, "cool_down": 2, "clean": 50, "every": 2}
CULPRIT = "layers.1.mlp.down.weight"
BAD = 5


class Spike(pico.Observer):
    """Of one rank the gradient of one layer is `factor` times as large, the first `times` that step
    BAD is tried; and what parameters and gradients were is written down."""

    def __init__(self, rank=None, factor=1e4, times=1):
        self.rank, self.factor, self.times = rank, factor, times
        self.sums, self.formats = {}, {}

    def gradients(self, run):
        mine = run.parallel.parameters()
        self.sums.setdefault(run.step, []).append(
            [float(p.double().sum()) for p in mine] + [float(p.grad.double().sum()) for p in mine]
        )
        if run.step != BAD or not self.times or comm.mesh().rank("world") != self.rank:
            return
        self.times -= 1
        for parameter in mine:
            if parameter.pieces[0].name == CULPRIT:
                parameter.grad *= self.factor

    def end(self, run):
        self.formats = run.precision.adaptive.adjuster.formats


class Broken(Spike):
    """An update goes wrong, once: the next step's loss tells."""

    def gradients(self, run):
        pass

    def step(self, run, report):
        if report.step == BAD - 1 and self.times:
            self.times -= 1
            run.model.head.weight.data.mul_(100)


def ran(config, settings, spike, mutant=None):
    if mutant is not None:
        mutant()
    precision = AdaptivePrecision(config, {**EARLY, **settings})
    report = train_rank(config, observers=[spike], precision=precision)
    return {
        "losses": report.losses,
        "went back": report.went_back,
        "sums": spike.sums,
        "formats": spike.formats,
        "state": None if report.state is None else report.state,
        "memory": report.memory,
    }


def several(cases):
    return [ran(*case) for case in cases]


def on_two(*cases):
    return list(zip(*pico.run(several, cases, world_size=2, quiet=True)))


def same(one, other):
    return all(torch.equal(one["state"][name], other["state"][name]) for name in one["state"])


FP32 = {"budget": 0}


def test_a_spike_is_taken_back_and_the_run_is_as_if_it_had_not_been():
    """Nothing can be raised, so the whole trajectory, before and after, is the clean one's, bit for
    bit; one rank's spike takes both back. And a clean run of budget 0 is fp32's."""
    plain = replace(CONFIG, precision="fp32")
    zero = replace(CONFIG, layout="dp2zero2")
    (clean, _), (spiked, other), (_, nan), (z, _), (zs, _) = on_two(
        (CONFIG, FP32, Spike()),
        (CONFIG, FP32, Spike(rank=1)),
        (CONFIG, FP32, Spike(rank=0, factor=math.nan)),
        (zero, FP32, Spike()),
        (zero, FP32, Spike(rank=1)),
    )
    assert clean["went back"] == [] and spiked["went back"] == other["went back"] == [(5, 4)]
    assert nan["went back"] == [(5, 4)]
    for found in (spiked, other, nan):
        assert found["losses"] == clean["losses"]
        for step, tries in found["sums"].items():  # parameters and gradients, each time
            assert all(sums == clean["sums"][step][0] for sums in tries)
        assert {step: len(of) for step, of in found["sums"].items() if len(of) > 1} == {4: 2, 5: 2}
    assert same(spiked, clean)
    assert zs["went back"] == [(5, 4)] and zs["losses"] == z["losses"] and same(zs, z)
    (exact, _) = pico.run(train_rank, plain, world_size=2, quiet=True)
    assert clean["losses"] == exact.losses
    assert all(torch.equal(clean["state"][n], t) for n, t in exact.state.items())
    for config, found in ((CONFIG, clean), (zero, z)):
        states = costs.rank_states(config.model, config.layout, precision="adaptive")
        assert {kind: found["memory"][kind] for kind in states} == states


def test_the_culprit_is_raised_on_all_ranks_and_the_way_to_the_last_good_state_is_kept():
    (clean, _), (spiked, other), (again, _) = on_two(
        (CONFIG, {}, Spike()),
        (CONFIG, {}, Spike(rank=1)),
        (CONFIG, {}, Spike(rank=1, times=2)),
    )
    low = {name: "fp8" for name in clean["formats"]} | {"head.weight": "fp32"}
    assert clean["formats"] == low and clean["went back"] == []
    assert spiked["went back"] == [(5, 4)]
    assert spiked["formats"] == other["formats"] == low | {CULPRIT: "fp8-blocks"}
    assert spiked["losses"][:4] == clean["losses"][:4]
    for step in range(BAD):
        assert spiked["sums"][step][0] == clean["sums"][step][0]
    half = len(clean["sums"][4][0]) // 2  # the parameters that it began with are step 4's
    assert spiked["sums"][4][1][:half] == clean["sums"][4][0][:half]
    assert spiked["losses"][-1] == pytest.approx(clean["losses"][-1], rel=0.02)
    assert again["went back"] == [(5, 4), (5, 4)]
    assert set(again["formats"].values()) == {"fp32"}
    assert again["losses"][:4] == clean["losses"][:4]


def rank_alone():
    """Once the formats are decided, each rank asks itself only."""
    real = adaptive_run._everybodys
    adaptive_run.agreed = lambda mine: mine
    adaptive_run._everybodys = lambda value: [value] if comm.ledger().step else real(value)


def without_moments():
    real = snapshot._tensors
    snapshot._tensors = lambda run: {k: t for k, t in real(run).items() if k[1] in ("", "step")}


def without_place():
    snapshot.Moment.of = classmethod(lambda cls, run: cls(run.step, 0, snapshot._random_states()))


def always_kept():
    """The state is taken before its step has been judged."""
    real = AdaptivePrecision.before_step

    def before_step(self, run):
        real(self, run)
        self.snapshot.take(run, self._moment)

    AdaptivePrecision.before_step = before_step


def test_a_wrong_update_is_seen_by_the_next_loss_and_undone():
    config = replace(CONFIG, layout="dp1")
    cases = [(config, FP32, Spike()), (config, FP32, Broken())]
    ((clean, broken),) = pico.run(several, cases, world_size=1, quiet=True)
    assert broken["went back"] == [(5, 4)]
    assert broken["losses"] == clean["losses"] and same(broken, clean)
    mutants = [
        (without_moments, Spike(rank=0)),
        (without_place, Spike(rank=0)),
        (always_kept, Broken()),
    ]
    for mutant, spike in mutants:
        (wrong,) = pico.run(ran, config, FP32, spike, mutant, world_size=1, quiet=True)
        assert wrong["went back"]
        assert wrong["losses"] != clean["losses"] or not same(wrong, clean), mutant


def test_mutant_a_rank_that_goes_back_alone():
    with pytest.raises(pico.RankFailure, match="rank 0 returned, and rank 1 still waits"):
        pico.run(ran, CONFIG, FP32, Spike(rank=1), rank_alone, world_size=2, quiet=True)


def test_what_no_precision_cures_ends_the_run():
    config = replace(CONFIG, layout="dp1")
    with pytest.raises(pico.RankFailure, match="nan at step 5, also with every layer in fp32"):
        pico.run(ran, config, {}, Spike(rank=0, factor=math.nan, times=3), world_size=1, quiet=True)
    with pytest.raises(pico.RankFailure, match="at step 0, and there is no good state to go back"):
        pico.run(ran, config, {}, First(), world_size=1, quiet=True)


class First(Spike):
    def gradients(self, run):
        run.parallel.parameters()[0].grad.fill_(math.inf)


LAYOUTS = ["tp2", "pp2:zb-h1", "dp2zero3", "tp2sp", "cp2"]


def test_it_trains_in_layouts_with_the_same_decision_and_the_formulas_bytes():
    configs = [replace(CONFIG, layout=layout, accumulate=2, steps=4) for layout in LAYOUTS]
    ranks = pico.run(layouts, configs, world_size=2, quiet=True)
    alone = replace(configs[0], layout="dp1")
    ((losses, _, formats),) = pico.run(layouts, [alone], world_size=1, quiet=True)[0]
    for rank, found in enumerate(ranks):
        for config, (mine, seen, of) in zip(configs, found):
            both = config.layout.dp == 1  # (else it is another batch)
            assert of == formats, config.layout
            if both:
                assert mine == pytest.approx(losses, rel=0.02)
            formula = costs.step_ledger(
                config.model, config.layout, micro_batch=2, accumulate=2, precision="adaptive",
                rank=rank,
            )  # fmt: skip
            assert seen == {key: of[:2] for key, of in formula.items()}, config.layout


def layouts(configs):
    found = []
    for config in configs:
        spike, before = Spike(), len(comm.ledger().snapshot())
        report = train_rank(config, observers=[spike])
        entries = comm.ledger().snapshot().entries[before:]
        ledger = pico.monitoring.Ledger(e for e in entries if e.step == 1)
        seen = {k: (t.count, t.payload_bytes) for k, t in ledger.by("op", "axis", "reason").items()}
        found.append((report.losses, seen, spike.formats))
    return found


def test_a_run_says_what_it_decided_and_goes_on_from_a_checkpoint(tmp_path):
    settings = dict(
        **SHAPE, precision="adaptive", products="rounded", layout="dp2", micro_batch=2,
        progress=False,
    )  # fmt: skip
    whole = pico.train(steps=4, **settings, checkpoint=tmp_path / "a", save_every=2)
    (told,) = [event for event in whole.events if event.kind == "precision"]
    assert told.data["layers"][CULPRIT][0] == "fp8" and told.data["below_fp32"] > 0.5
    on = pico.train(steps=4, **settings, resume=tmp_path / "a" / "step-2")
    assert on.losses == whole.losses[2:] and not on.went_back
    other = pico.train(steps=5, **{**settings, "precision": "fp16"}, resume=tmp_path / "a")
    assert len(other.losses) == 1
