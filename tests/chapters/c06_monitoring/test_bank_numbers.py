"""Numbers of the bank on monitoring, held against something else than their formula: a simulation,
the rules of picolab.monitoring, a count.

Wrong versions these catch: a formula of the bank that is off by a factor or by an edge, a rule that
changes, and a question whose numbers and engine disagree.
"""

import math
import random
import statistics

import numpy as np
import pytest
import torch

from picolab.interview.bank import load
from picolab.monitoring import rules
from picolab.monitoring.metrics import Histogram

BANK = load()


def values(number: int) -> dict[str, float]:
    return BANK.find(f"mon-{number:03}").computed()


def lost_share(notice: float, restart: float, interval: float, save: float) -> float:
    """Of a run that fails every three hours, simulated failure by failure."""
    draw, useful, wall = np.random.default_rng(0), 0.0, 0.0
    for until in draw.exponential(10_800 - notice - restart, 40_000):
        useful += math.floor(until / (interval + save)) * interval  # whole intervals were saved
        wall += until + notice + restart
    return 100 * (1 - useful / wall)


def test_where_the_lost_hours_go():
    """(The bank adds shares to first order, which is a little too much.)"""
    asked = values(4)
    for name, args in (
        ("lost", (600, 480, 1200, 30)),
        ("first", (30, 480, 1200, 30)),
        ("both", (30, 480, asked["interval"], 3)),
    ):
        assert lost_share(*args) == pytest.approx(asked[name], rel=0.05)


def test_a_gpu_alone_and_131072_of_them():
    asked = values(3)
    seconds = 54 * 86400 / 466
    assert asked["years"] == pytest.approx(seconds * 16384 / (365.25 * 86400))
    assert asked["minutes"] * 60 * 131072 == pytest.approx(seconds * 16384)
    intervals = np.linspace(100, 1500, 2801)
    wasted = 60 / intervals + intervals / (2 * 60 * asked["minutes"])
    assert 100 * wasted.min() == pytest.approx(asked["share"], rel=1e-4)
    assert intervals[wasted.argmin()] == pytest.approx(asked["interval"], abs=1)


def test_the_last_of_a_thousand():
    asked, draw = values(7), np.random.default_rng(0)
    longest = draw.normal(1.0, 0.02, (3000, 1024)).max(1).mean()
    assert longest == pytest.approx(asked["step"], abs=5e-4)
    for ranks, name in ((1024, "hit"), (16384, "hit16k")):
        hit = (draw.binomial(ranks, 1e-4, 40_000) > 0).mean()
        assert 100 * hit == pytest.approx(asked[name], abs=0.8)


def test_three_quantities_of_a_collective():
    asked = values(8)
    entered, left = [10.0, 10.4, 19.1, 10.2], [23.0, 23.1, 22.9, 23.0]
    assert asked["wait"] == pytest.approx(max(entered) - entered[0])
    assert asked["transfer"] == pytest.approx(min(left) - max(entered))
    assert asked["transfer"] == pytest.approx(min(b - a for a, b in zip(entered, left)))
    assert asked["bus"] == pytest.approx(2 * 3 / 4 * 200e6 / (asked["transfer"] * 1e-3) / 1e9)


def test_median_and_mad_of_ten_steps():
    asked = values(12)
    ten = [98, 99, 99, 100, 100, 100, 101, 101, 102, 300]
    middle, sigma = rules.robust(ten)
    assert asked["robust"] == pytest.approx((150 - middle) / sigma)
    assert asked["z"] == pytest.approx((150 - statistics.mean(ten)) / statistics.pstdev(ten))


def test_eight_of_ten():
    asked, draw = values(13), np.random.default_rng(0)
    for p, name in ((0.9, "found"), (0.7, "weak")):
        windows = draw.random((100_000, 10)) < p
        assert 100 * (windows.sum(1) >= 8).mean() == pytest.approx(asked[name], abs=0.6)
    exactly = sum(math.comb(10, k) * 0.1**k * 0.9 ** (10 - k) for k in (8, 9, 10))
    assert asked["alarms"] == pytest.approx(1000 * 86400 / 2 / 10 * exactly)


def first_alarm(shift: float, limit: float, draw: random.Random) -> int:
    """By the package's own rule, told the level by thirty values of this very spread."""
    drift = rules.Drift(slack=0.5, limit=limit, clip=math.inf, least=2, spread=1.0)
    drift._first = [0.0, 0.0]  # level 0; the floor of the spread is 1
    step = 0
    while True:
        step += 1
        if drift.add(math.exp(draw.gauss(shift, 1))):
            return step


def test_a_sum_that_finds_a_small_rise():
    asked, draw = values(14), random.Random(0)
    found = statistics.mean(first_alarm(1, 5, draw) for _ in range(1500))
    assert found == pytest.approx(asked["delay"], rel=0.06)
    chance = statistics.mean(first_alarm(0, 5, draw) for _ in range(250))
    assert chance == pytest.approx(asked["alarms"], rel=0.25)
    above = [draw.gauss(1, 1) > 3 for _ in range(200_000)]
    assert len(above) / sum(above) == pytest.approx(asked["delay_a"], rel=0.05)


def moved(beta2: float, gradient: float) -> float:
    """By how many lr torch's Adam moves a weight whose moments have settled at 1."""
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([weight], lr=1.0, betas=(0.9, beta2), eps=0.0)
    state = adam.state[weight]
    state["step"] = torch.tensor(1e6)  # so that the bias is corrected by nothing
    state["exp_avg"] = state["exp_avg_sq"] = torch.ones_like(weight).detach()
    state["exp_avg"], state["exp_avg_sq"] = (torch.ones(1, dtype=torch.float64) for _ in range(2))
    weight.grad = torch.full_like(weight, gradient)
    adam.step()
    return -weight.item()


def test_ten_times_the_gradient_once():
    asked = values(18)
    assert moved(0.999, 10) == pytest.approx(asked["slow"], rel=1e-6)
    assert moved(0.95, 10) == pytest.approx(asked["fast"], rel=1e-6)
    assert moved(0.95, 2) == pytest.approx(asked["clipped"], rel=1e-6)
    largest = max(moved(0.999, gradient) for gradient in (10, 50, *range(100, 121), 1e3, 1e9))
    assert largest == pytest.approx(asked["m_max"], rel=1e-6)
    assert 0.95 ** asked["half"] == pytest.approx(0.5)


def test_a_card_that_is_wrong_now_and_then():
    asked, draw = values(19), np.random.default_rng(0)
    checks = draw.geometric(1 - 0.98**2, 100_000).mean()
    assert 500 * checks == pytest.approx(asked["steps"], rel=0.02)
    assert asked["spoilt"] == pytest.approx(0.02 * asked["steps"])


def test_quantiles_of_many_ranks():
    asked = values(23)
    steps = [[1.0] * 1000] * 63 + [[3.0] * 1000]
    every = sorted(one for of_rank in steps for one in of_rank)
    assert every[math.ceil(0.99 * len(every)) - 1] == asked["all"]
    tails = [sorted(of_rank)[989] for of_rank in steps]
    assert statistics.mean(tails) == asked["mean"]
    two_to_five = Histogram()
    two_to_five.add(2.001)
    assert 100 * (two_to_five.quantile(0.5) / 2 - 1) == pytest.approx(asked["fixed"])
    growth, low = 1.02 / 0.98, 1e-4
    assert low * growth ** asked["buckets"] >= 100 > low * growth ** (asked["buckets"] - 1)


def test_counters_that_begin_anew():
    from picolab.chapters.c06_monitoring.interview_rate import solution

    asked = values(20)
    assert sum(solution([[100, 160, 220, 30, 90]])) == asked["grown"]


def test_two_clocks():
    """Two unknowns: B's offset, and a way that is as long in both directions."""
    asked = values(26)
    matrix, seen = np.array([[1, 1], [1, -1]]), np.array([107.4 - 100.0, 107.9 - 101.3])
    offset, way = np.linalg.solve(matrix, seen)
    assert (asked["offset"], asked["bound"]) == pytest.approx((offset, way))


def minutes_until(window: int, burn: float, lost: float) -> int | None:
    """Of a window's mean, minute by minute, from when the loss begins."""
    for minute in range(1, 3 * 24 * 60):
        if min(minute, window) / window * lost / 0.05 > burn:
            return minute
    return None


def test_burn_rates():
    asked = values(28)
    assert minutes_until(60, 14.4, 1.0) == math.floor(asked["minutes"]) + 1
    assert minutes_until(360, 6, 1.0) == pytest.approx(asked["six"], abs=1)
    assert minutes_until(60, 14.4, 0.2) is None and minutes_until(360, 6, 0.2) is None
    assert asked["days"] * 24 * 0.2 == pytest.approx(asked["budget"])


def test_messages_from_one_threshold():
    asked, draw = values(29), np.random.default_rng(0)
    above = draw.random((4000, 2000)) < 0.5
    changes = (above[:, 1:] != above[:, :-1]).sum(1).mean()
    assert changes == pytest.approx(asked["messages"], rel=0.01)
    row = np.zeros(4000, dtype=int)
    fired = np.zeros(4000, dtype=int)
    for at in range(2000):
        row = np.where(above[:, at], row + 1, 0)
        fired += row == 10
    assert fired.mean() == pytest.approx(asked["runs"], rel=0.06)


def test_a_call_left_out_meets_the_one_before():
    """The story of mon-033: rank 2 leaves out call 4 of 30 in the third of five steps."""
    made = {r: [(s, b) for s in range(5) for b in range(30)] for r in range(4)}
    made[2].remove((2, 4))
    met = list(zip(*made.values()))
    assert len(made[0]) - len(met) == 1  # for this one ranks 0, 1 and 3 wait
    assert len(made[2]) == len(met)  # and rank 2 is done
    got = {r: {pair[r]: pair for pair in met} for r in range(4)}
    equal = [got[r][2, 7] for r in range(4)]
    assert equal[0] == equal[1] == equal[3] != equal[2]
    assert got[0][2, 4] == got[2][2, 5] == ((2, 4), (2, 4), (2, 5), (2, 4))
    assert all(len(set(pair)) == 1 for pair in met[:64])


def test_the_slope_of_a_leak():
    asked, draw = values(36), np.random.default_rng(0)
    n = round(asked["n"])
    slopes = np.polyfit(np.arange(n), draw.normal(0, 20, (n, 20_000)), 1)[0]
    assert 5 * slopes.std() == pytest.approx(1.2, rel=0.03)
    steps = int(asked["rule"])
    grown = draw.normal(0, 20, (4000, steps)) + 1.2 * np.arange(steps)
    blocks = np.median(grown.reshape(4000, 8, -1), axis=2)
    assert (np.diff(blocks, axis=1) > 0).all(1).mean() > 0.95
    assert 8 * 1.2e6 * asked["hours"] * 3600 / 2.5 == pytest.approx(120e9)


def test_tails_of_a_fleet():
    alone, fleet, draw = values(11), values(35), np.random.default_rng(0)
    above = (draw.standard_normal(4_000_000) > 3).mean()
    assert above * 1000 * 2 * 86400 == pytest.approx(alone["three"], rel=0.05)
    six = statistics.NormalDist().cdf(-6)
    assert six * 16384 * 86400 / 5 == pytest.approx(fleet["alarms"], rel=1e-6)
    assert six * 1000 * 2 * 86400 == pytest.approx(alone["six"], rel=1e-6)


def test_base_rates_counted_for_a_day():
    asked = values(15)
    tests = 16384 * 24
    assert asked["share"] == pytest.approx(100 * 0.99 / (0.99 + tests * 1e-3))
    assert asked["share2"] == pytest.approx(100 * 0.99**2 / (0.99**2 + tests * 1e-6))
    right_half_of_the_time = 1 / asked["one_in"]
    assert tests * right_half_of_the_time == pytest.approx(0.99)


def test_a_wrong_number_is_seen(monkeypatch):
    """Mutant: the bank with the transfer until the last one leaves."""
    real = values(8)
    monkeypatch.setitem(globals(), "values", lambda _: real | {"transfer": 23.1 - 19.1})
    with pytest.raises(AssertionError):
        test_three_quantities_of_a_collective()
