"""Faults in real training runs, found by the monitor: two seeds of those whose effect is a number,
and one of each kind that ends a run. The whole catalogue, with 30 seeds, intervals and clean runs,
is tests/benchmarks/detection.py.

A slow rank, link or run is not here: it is found by time, and on a busy machine of tests that is
no promise. The rules for it are tested on made-up times (tests/unit/monitoring/test_anomalies.py).
"""

import math
import sys
from pathlib import Path

import pytest

import picolab as pico
from picolab.debug.run_faults import CATALOGUE, LINK_S, InRun, find, table
from picolab.monitoring import AnomalyDetector, BasicMonitoringSystem
from picolab.specs import assemble
from picolab.training import Probe, train_rank

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import detection

NUMBERS = ("NaN", "loss spike", "gradient spike", "expert collapse", "skipped step")
ENDS = ("extra collective", "wrong shape", "dead rank", "hang: sleeps", "hang: stopped")


@pytest.mark.parametrize("name", NUMBERS)
def test_what_shows_in_numbers(name):
    for seed in range(2):
        score = detection.run(name, seed)
        assert score.right and not score.accused, (name, seed, score)
        if name not in ("expert collapse", "leak"):
            assert score.delay == 0


@pytest.mark.parametrize("name", ENDS)
def test_what_ends_a_run(name):
    score = detection.run(name, 0)
    assert score.right and not score.accused, (name, score)


def test_whoever_judges_after_the_reduction_accuses_everybody_or_nobody():
    """The mutant, on a real run: what ranks tell of the whole step in place of their own."""
    config = assemble(**detection.NUMBERS, data="stdlib", seed=1)
    at = 30
    observers = [Probe(), InRun("loss spike", rank=2, at=at)]
    run = pico.run(train_rank, config, None, observers, world_size=4, quiet=True)

    def judged(change):
        detector = AnomalyDetector()
        for event in run.events:
            told = event._replace(data=change(event.data)) if event.kind == "step" else event
            detector.add(told)
        return {(a.name, a.ranks) for a in detector.found if a.ranks}

    assert ("loss spike", (2,)) in judged(lambda data: data)
    reduced = lambda data: data | {"own_loss": data["loss"], "own_grad_norm": data["grad_norm"]}  # noqa: E731
    assert judged(reduced) == set()


def norms(layout, **settings):
    config = assemble(layout=layout, steps=3, data="stdlib", **detection.SMALL, **settings)
    world = config.layout.world
    run = pico.run(train_rank, config, None, [Probe()], world_size=world, quiet=True)
    told = [event for event in run.events if event.kind == "step"]
    return {(e.rank, e.data["step"]): e.data for e in told}


def test_a_ranks_own_loss_and_gradient_are_its_own():
    """Over dp the whole loss is the mean of the ranks' own (each has the same number of tokens),
    and gradients add up: the whole norm is at most the sum of the ranks' own, and no less than
    what one of them has beyond the other. Of one process, own and whole are the same. ZeRO reads
    the same gradients from elsewhere."""
    alone, two, zero = norms("dp1"), norms("dp2"), norms("dp2zero2")
    for step in range(3):
        of = alone[0, step]
        assert of["own_loss"] == pytest.approx(of["loss"], rel=1e-6)
        assert of["own_grad_norm"] == pytest.approx(of["grad_norm"], rel=1e-5)
        own = [two[rank, step] for rank in range(2)]
        assert own[0]["own_loss"] != own[1]["own_loss"]
        assert sum(o["own_loss"] for o in own) / 2 == pytest.approx(own[0]["loss"], rel=1e-5)
        low, high = sorted(o["own_grad_norm"] for o in own)
        assert high - low <= own[0]["grad_norm"] <= low + high
        for rank in range(2):
            for key in ("own_loss", "own_grad_norm"):
                assert zero[rank, step][key] == pytest.approx(two[rank, step][key], rel=1e-4)


@pytest.mark.weekly
def test_own_tokens_are_a_ranks_share_of_each_sequence():
    """Two ranks of cp have half of each sequence, and the whole loss is the mean of their own. Who
    divides by the labels of whole sequences, which are counted anyway, gets half of it."""
    told = norms("cp2")
    for step in range(3):
        own = [told[rank, step]["own_loss"] for rank in range(2)]
        assert own[0] != own[1]
        assert sum(own) / 2 == pytest.approx(told[0, step]["loss"], rel=1e-5)


def test_who_knows_no_loss_tells_none():
    told = norms("pp2", accumulate=2)
    assert told[0, 0]["own_loss"] is None and told[1, 0]["own_loss"] is not None
    assert told[1, 0]["own_loss"] == pytest.approx(told[1, 0]["loss"], rel=1e-5)
    assert all(math.isfinite(data["own_grad_norm"]) for data in told.values())


def test_a_monitor_follows_a_job_and_lets_it_go():
    heard = []
    system = BasicMonitoringSystem({"silence_s": 5})
    system.on_anomaly(heard.append)
    observers = [Probe(), InRun("gradient spike", rank=1, at=50)]
    job = pico.train(**detection.NUMBERS, observers=observers, progress=False, wait=False)
    system.watch(job)
    with pytest.raises(ValueError, match="watches a run already"):
        system.watch(job)
    result = job.result()
    system.close()
    named = [(a.name, a.ranks, a.step) for a in heard if a.ranks]  # (the host may be busy)
    assert named == [("gradient spike", (1,), 50)]
    assert system.anomalies == heard and len(system.collector.series("loss")) == 70
    later = BasicMonitoringSystem({"samples": False}).read(result.run_dir)
    assert [(a.name, a.ranks, a.step) for a in later.anomalies if a.ranks] == named


@pytest.mark.weekly
@pytest.mark.parametrize(
    "layout", [dict(layout="cp2"), dict(layout="pp2", tied=True, accumulate=2)]
)
def test_what_comes_over_a_slow_link_comes_later(layout):
    """Each message and each hop, however little the machine has to do, and from its step on only.
    Where embeddings are tied, the stages of a pipeline exchange their gradients as well, by torch's
    batch of messages, which takes its own functions only."""
    observers = [InRun("slow link", rank=1, at=1)]
    config = assemble(steps=2, data="stdlib", **detection.SMALL, **layout)
    run = pico.run(train_rank, config, None, observers, world_size=2, quiet=True)
    told = [e for e in run.ledger.in_steps().where(rank=1) if e.axis in ("cp", "pp") and e.seconds]
    op = "recv" if "pp" in layout["layout"] else "send"  # (which has the time of a hop)
    over = [e for e in told if e.op == op and e.step == 1 and "tied" not in e.reason]
    assert over and min(e.exposed_s for e in over) >= LINK_S


def test_the_catalogue():
    assert len(table().rows) == len(CATALOGUE) == 20
    planned = {plan.get("fault", name) for name, plan in detection.RUNS.items()}
    assert planned == set(CATALOGUE)
    with pytest.raises(ValueError, match="there is no run fault 'late'; there are slow rank"):
        find("late")


def test_wilsons_interval():
    """Against the values of the formula worked out by hand: 10 of 10 is no proof of 1."""
    assert detection.wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert detection.wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert detection.wilson(95, 100) == pytest.approx((0.8882, 0.9785), abs=1e-4)
