"""Mixture of experts in closed form: room, what is dropped by chance, who is met, what is sent.

T tokens, E experts, k choices a token. "By chance" means that each token chooses k different
experts, all sets of k alike, whatever other tokens choose: a router that is even on average. A
trained one is not; these are the values to compare it with.
"""

import math

from picolab.costs.collectives import ring_bytes
from picolab.costs.memory import dtype_bytes
from picolab.specs import ModelConfig


def expert_capacity(tokens: int, experts: int, per_token: int, factor: float) -> int:
    """Rows that an expert takes: ceil(factor * T * k / E), so factor times an even share.

    Source: arXiv 2101.03961, equation 3, there of k = 1; 2006.16668, section 2.2.
    """
    _check(experts, per_token)
    return math.ceil(factor * tokens * per_token / experts)


def dropped_share(tokens: int, experts: int, per_token: int, factor: float) -> float:
    """Which share of all choices is beyond the experts' capacity, by chance.

    An expert's rows L are binomial, T trials of k/E each. Of them max(0, L - C) are dropped:

        E[max(0, L - C)] / (T k / E)        about 1 / sqrt(2 pi T k / E) where the factor is 1
    """
    room, p = expert_capacity(tokens, experts, per_token, factor), per_token / experts
    if p == 1:
        return max(0, tokens - room) / tokens
    log_p, log_q = math.log(p), math.log1p(-p)

    def chance(rows: int) -> float:
        ways = math.lgamma(tokens + 1) - math.lgamma(rows + 1) - math.lgamma(tokens - rows + 1)
        return math.exp(ways + rows * log_p + (tokens - rows) * log_q)

    beyond = sum((rows - room) * chance(rows) for rows in range(room + 1, tokens + 1))
    return beyond / (tokens * p)


def distinct_groups(experts: int, per_token: int, groups: int) -> float:
    """In how many of so many equal groups of experts (nodes, ranks) a token's choices lie, by
    chance, in the mean: g (1 - C(E - E/g, k) / C(E, k))."""
    _check(experts, per_token)
    if groups < 1 or experts % groups:
        raise ValueError(f"{groups} groups do not divide {experts} experts")
    missed = math.comb(experts - experts // groups, per_token) / math.comb(experts, per_token)
    return groups * (1 - missed)


def touched_experts(tokens: int, experts: int, per_token: int) -> float:
    """How many experts a batch of tokens asks for at all, by chance, in the mean:
    E (1 - (1 - k/E)^T). So many experts' weights are read from memory for it."""
    _check(experts, per_token)
    return experts * (1 - (1 - per_token / experts) ** tokens)


def expert_parallel_bytes(
    config: ModelConfig, ep: int, tokens: int, *, dtype: object = "bf16"
) -> float:
    """Bytes that one rank sends for one layer of experts and one micro-batch of `tokens` of its
    own: rows there and back, and their gradients, 4 (e-1)/e * T*k*h*dtype.

    Of choices that fall on all ranks alike; `step_ledger` counts what a router really chose. Left
    out: the counts of rows, 8 bytes an expert. Source: arXiv 2006.16668, section 3.2.
    """
    payload = tokens * config.experts_per_token * config.hidden * dtype_bytes(dtype)
    return 4 * ring_bytes("all_to_all", payload, ep)


def _check(experts: int, per_token: int) -> None:
    if not 1 <= per_token <= experts:
        raise ValueError(f"a token cannot choose {per_token} of {experts} different experts")
