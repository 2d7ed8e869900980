"""How good a rule for alarms is, held against a simulation of it, or against a table.

Wrong versions these catch: a tail of both sides, a sum that begins one too late, an overshoot that
is left out, and bounds that grow by twice the error only.
"""

import math
import random

import pytest

from picolab import costs
from picolab.costs import alarms


def test_tails_of_the_normal_distribution():
    for sigmas, tail in ((0, 0.5), (1.6448536, 0.05), (3, 1.349898e-3), (5, 2.866516e-7)):
        assert costs.normal_tail(sigmas) == pytest.approx(tail, rel=1e-5)


def test_k_of_n_against_all_outcomes():
    for n, p in ((1, 0.3), (5, 0.05), (8, 0.9)):
        for k in range(n + 1):
            every = 0.0
            for bits in range(2**n):
                ones = bits.bit_count()
                every += (ones >= k) * p**ones * (1 - p) ** (n - ones)
            assert costs.at_least(k, n, p) == pytest.approx(every, rel=1e-12)
    with pytest.raises(ValueError, match="0 <= k <= n"):
        costs.at_least(3, 2, 0.5)


def test_the_largest_of_n():
    """Tippett's table of 1925: n = 2, 10, 100, 1000."""
    for n, largest in ((1, 0.0), (2, 1 / math.sqrt(math.pi)), (10, 1.53875), (100, 2.50759)):
        assert costs.expected_largest(n) == pytest.approx(largest, abs=1e-5)
    assert costs.expected_largest(1000) == pytest.approx(3.24144, abs=1e-5)
    with pytest.raises(ValueError, match="must be positive"):
        costs.expected_largest(0)


def simulated(shift: float, slack: float, limit: float, runs: int) -> float:
    draw, steps = random.Random(0), 0
    for _ in range(runs):
        total = 0.0
        while total <= limit:
            total, steps = max(0.0, total + draw.gauss(shift, 1) - slack), steps + 1
    return steps / runs


# (Within four deviations of the simulation's mean, and the 3 % of the approximation.)
SETTINGS = ((0, 0.5, 3, 1500), (1, 0.5, 5, 1500), (2, 0.5, 20, 500), (0.5, 0.5, 4, 1000))


def near_simulation() -> bool:
    return all(
        abs(alarms.cusum_run_length(*of[:3]) / simulated(*of) - 1) < 0.03 + 4 / math.sqrt(of[3])
        for of in SETTINGS
    )


def test_how_long_a_cusum_runs(monkeypatch):
    assert near_simulation()
    # Tabled (Montgomery, table 9.3, one side): 336 at 4 and 930 at 5.
    assert costs.cusum_run_length(0, 0.5, 4) == pytest.approx(336, rel=0.02)
    assert costs.cusum_run_length(0, 0.5, 5) == pytest.approx(930, rel=0.02)
    real = alarms.cusum_run_length  # mutant: the overshoot is left out
    monkeypatch.setattr(alarms, "cusum_run_length", lambda s, k, h: real(s, k, h - 1.166))
    assert not near_simulation()


def test_buckets_of_bounded_error():
    for error in (0.01, 0.02, 0.2):
        count, growth = costs.log_buckets(1e-4, 100, error), (1 + error) / (1 - error)
        assert 1e-4 * growth ** (count - 1) < 100 <= 1e-4 * growth**count * (1 + 1e-9)
        # A bucket from b to b * growth answers 2 b growth / (1 + growth): both ends are as far.
        middle = 2 * growth / (1 + growth)
        assert middle - 1 == pytest.approx(error)
        assert 1 - middle / growth == pytest.approx(error)
    with pytest.raises(ValueError, match="0 < low < high"):
        costs.log_buckets(0, 1, 0.01)
