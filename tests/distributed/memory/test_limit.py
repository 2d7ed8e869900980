"""After an out-of-memory: what is said would have fitted fits, when it is run under the same limit,
and trains the same. And the planner's peak is that of the monitor.

Wrong versions kept below: advice for a device of twice the memory, and a peak without what is alive
only for a moment.
"""

from dataclasses import replace

import pytest

import picolab as pico
from picolab import comm, launch
from picolab.memory import LimitPassed, MemoryLimit, advice, fitting
from picolab.planner.costing import Candidate, Costing
from picolab.training import TrainConfig, train_rank

MODEL = pico.ModelConfig(hidden=64, ffn=160, layers=4, heads=4, kv_heads=2, vocab=256, seq=64)
CONFIG = TrainConfig(model=MODEL, data="random", steps=2, micro_batch=4, products="rounded")
EXPERTS = dict(experts=4, experts_per_token=2, expert_ffn=48, aux_loss=0.01)


@pytest.fixture(scope="module")
def world():
    with launch.World(2, quiet=True) as made:
        yield made


def under(limit, configs):
    """Of each run under the limit: its losses, and its peak. None where it passed the limit."""
    found = []
    for config in configs:
        watched = MemoryLimit(limit)
        try:
            with comm.unhurried():
                losses = train_rank(config, observers=[watched]).losses
            found.append((losses, watched.peak))
        except LimitPassed:
            found.append(None)
    return found


def looked_at_again(world, limit, config, rank, peak):
    """On a busy machine gloo lets go of what it sent late enough to be seen as alive all the same;
    where a peak is too high, the least of three looks counts."""
    looks = world.run(under, limit, [config] * 2)[rank]
    return min([peak, *(look[1] for look in looks if look is not None)])


# -- the peak


def planned(config):
    """The planner's, of each place on pp."""
    costing = advice._costing(config, 10**12)
    candidate = Candidate(config.layout, config.micro_batch, "none")
    assert costing.micro_batches(candidate) == config.accumulate
    return [sum(held.values()) for held in costing.memory_by_place(candidate)]


def check_peaks(world, configs):
    """No less than measured (but for what is left out), and no more than a twentieth above it;
    where gradients are not there yet while most is kept (one micro-batch, or all forwards first),
    by no more than they are."""
    ranks = world.run(under, 10**12, configs)
    for i, config in enumerate(configs):
        late = config.accumulate == 1 or config.layout.schedule == "gpipe"
        late = late or config.layout.pp > config.accumulate - 1
        for rank, found in enumerate(ranks):
            peak = found[i][1]
            mine = planned(config)[config.layout.coordinates(rank)["pp"]]
            held = pico.costs.local_parameters(config.model, config.layout, rank)
            size = pico.costs.dtype_bytes(config.numbers.parameters)
            whole = size * sum(of.numel for of in held)
            most = 1.05 * peak + (whole if late else 0)
            if peak * (1 - advice.LEFT_OUT) > mine:
                peak = looked_at_again(world, 10**12, config, rank, peak)
            least = peak * (1 - advice.LEFT_OUT)
            assert least <= mine <= most, (str(config.layout), rank, peak, mine)


LAYOUTS = [
    "dp2", "tp2", "tp2sp", "cp2", "pp2", "pp2:gpipe", "dp2zero1", "dp2zero2", "dp2zero3",
]  # fmt: skip


def times(layout):
    return 3 if layout == "pp2" else 2


def test_the_planners_peak_is_the_monitors(world):
    check_peaks(world, [replace(CONFIG, layout=of, accumulate=times(of)) for of in LAYOUTS])


@pytest.mark.weekly
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
@pytest.mark.parametrize("shape", [{}, dict(ffn=640, vocab=97), dict(vocab=997), EXPERTS])
def test_so_it_is_for_others(world, precision, shape):
    base = replace(CONFIG, model=MODEL.replace(**shape), precision=precision, dtype=None)
    configs = [
        replace(base, layout=layout, accumulate=accumulate, micro_batch=micro_batch)
        for layout in LAYOUTS
        for accumulate in (times(layout), 1 if "pp" not in layout else 4)
        for micro_batch in (1, 4)
    ]
    check_peaks(world, configs)


def test_mutant_without_what_is_alive_for_a_moment(world, monkeypatch):
    real = Costing._moment
    monkeypatch.setattr(Costing, "_moment", lambda *args: (*real.method(*args)[:2], 0.0))
    with pytest.raises(AssertionError):
        check_peaks(world, [replace(CONFIG, layout="dp2", accumulate=2)])


# -- the advice


def check_fits(world, config, limit, count=3):
    """Each of the three, under the limit: it fits, its peak is at most the predicted one, and it
    trains the same."""
    found = fitting(config, limit, count)
    assert found, (str(config.layout), limit)
    configs = [replace(config, **one.settings) for one in found]
    (plain, _), *_ = world.run(under, 10**12, [config])[0]
    for rank, ranks in enumerate(world.run(under, limit, configs)):
        for one, changed, ran in zip(found, configs, ranks):
            assert one.peak <= limit
            assert ran is not None, (str(config.layout), limit, str(one))
            losses, peak = ran
            assert peak <= limit, str(one)
            if "memory_budget" not in one.settings:  # (its scheduler takes what there is)
                if peak > one.peak * (1 + advice.LEFT_OUT):
                    peak = looked_at_again(world, limit, changed, rank, peak)
                assert peak <= one.peak * (1 + advice.LEFT_OUT), (str(one), peak)
            assert losses == pytest.approx(plain, rel=1e-4), str(one)
    return found


def test_each_of_the_three_really_fits(world):
    found = check_fits(world, replace(CONFIG, layout="dp2"), 6_000_000)
    assert [set(one.settings) for one in found[:2]] == [
        {"micro_batch", "accumulate"},
        {"memory_budget"},
    ]


@pytest.mark.weekly
@pytest.mark.parametrize("layout", ["dp2", "tp2", "tp2sp", "cp2", "pp2", "dp2zero1", "dp2zero3"])
def test_so_they_do_at_other_limits(world, layout):
    config = replace(CONFIG, layout=layout, accumulate=3 if layout == "pp2" else 1)
    most = max(planned(config))
    for share in (0.9, 0.75, 0.6):
        check_fits(world, config, round(share * most))


def test_mutant_advice_that_knows_another_limit(world, monkeypatch):
    real = advice._costing
    monkeypatch.setattr(advice, "_costing", lambda config, limit: real(config, 2 * limit))
    with pytest.raises(AssertionError):  # (the first alone: both ranks pass the limit in a forward)
        check_fits(world, replace(CONFIG, layout="dp2"), 4_200_000, count=1)


def test_bad_input_gets_a_sentence():
    with pytest.raises(ValueError, match="limit is 'much'; it is a number of bytes, such as"):
        MemoryLimit("much")
