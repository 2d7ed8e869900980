"""How good a rule for alarms is: by chance alone how often, of a fault how late. No torch.

Numbers are independent and normal here. Those of a run are not quite (a slow minute has many slow
steps), so what is said of false alarms is a lower bound. `monitoring/rules.py` has the rules.
"""

import math


def normal_tail(sigmas: float) -> float:
    """The share of normal numbers that lie more than so many deviations above the mean."""
    return 0.5 * math.erfc(sigmas / math.sqrt(2))


def at_least(k: int, n: int, p: float) -> float:
    """The probability that of n independent events, each with probability p, k or more happen."""
    if not (0 <= k <= n and 0 <= p <= 1):
        raise ValueError(f"{k} of {n} with p = {p}: it takes 0 <= k <= n and 0 <= p <= 1")
    above = range(k, n + 1) if n - k < k else range(k)  # the shorter sum
    total = math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in above)
    return total if n - k < k else 1 - total


def expected_largest(n: int) -> float:
    """Of n independent standard normal numbers the largest one, on the mean: what a step takes that
    ends when the last of n ranks does, in deviations above the mean of one rank.

    E[max] = integral of (1 - F^n) above 0 less that of F^n below it, with F the normal
    distribution; by Simpson's rule.
    """
    if n < 1:
        raise ValueError(f"n is {n}; it must be positive")

    def left(x: float) -> float:
        """1 - F(x)^n - F(-x)^n, whose integral from 0 is asked for."""
        tail = normal_tail(x)
        return -math.expm1(n * math.log1p(-tail)) - tail**n

    parts, top = 4000, 12.0
    step = top / parts
    weights = (1 if i in (0, parts) else 4 if i % 2 else 2 for i in range(parts + 1))
    return step / 3 * math.fsum(w * left(i * step) for i, w in enumerate(weights))


def cusum_run_length(shift: float, slack: float, limit: float) -> float:
    """Steps until a one-sided CUSUM fires, on the mean, if all values lie `shift` deviations above
    the level. With no shift that is the time between false alarms.

    The sum grows by shift - slack a step and never falls below 0. Source: Siegmund, "Sequential
    analysis" (1985), section II.6: the limit counts as 1.166 more, by which it is overshot. Within
    a few per cent for limits from 3 on.
    """
    if not limit > 0:
        raise ValueError(f"limit is {limit}; it must be positive")
    drift, reach = shift - slack, limit + 1.166
    if drift == 0:
        return reach**2
    return (math.exp(-2 * drift * reach) + 2 * drift * reach - 1) / (2 * drift**2)


def log_buckets(low: float, high: float, error: float) -> int:
    """Buckets of a histogram in which every value from low to high is known to within this relative
    error: their bounds grow by (1 + error) / (1 - error). Source: DDSketch, arXiv 1908.10693, 2.
    """
    if not (0 < low < high and 0 < error < 1):
        raise ValueError(f"{low} to {high}, error {error}: it takes 0 < low < high, 0 < error < 1")
    return math.ceil(math.log(high / low) / (2 * math.atanh(error)))
