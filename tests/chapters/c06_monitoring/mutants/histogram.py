"""Wrong answers to monitoring.histogram.bounded, what each author must be told, and right ones."""

import math

import numpy as np
import torch

from picolab import comm
from picolab.chapters.c06_monitoring.histogram import solution


def _quantiles(
    values, shares, error, axis, *, answer=None, up=math.ceil, keep=None, growth=None,
    reduce=None, low=1e-4, negative=True,
):  # fmt: skip
    """A frame: counts in a dense row, from -inf to inf."""
    g = growth or (1 + error) / (1 - error)
    size = math.ceil(math.log(1e8) / math.log(g)) + 1
    answer = answer or (lambda lower: lower * 2 * g / (1 + g))
    kept = values[~values.isnan()]
    kept = kept[keep(kept)] if keep else kept
    counts = torch.zeros(2 * size + 3, dtype=torch.int64)
    for value in kept.tolist():
        if math.isinf(value):
            at = 2 * size + 2 if value > 0 else 0
        elif value == 0:
            at = size + 1
        else:
            bucket = int(math.log(max(abs(value), low) / low) / math.log(g))
            bucket = min(bucket, size - 1)
            at = size + 2 + bucket if value > 0 or not negative else size - bucket
        counts[at] += 1
    counts = (reduce or (lambda t: comm.all_reduce(t, axis, "counts")))(counts)
    middles = [answer(low * g**i) for i in range(size)]
    answers = [-math.inf, *(-x for x in reversed(middles)), 0.0, *middles, math.inf]
    total, below = int(counts.sum()), counts.cumsum(0).tolist()
    found = []
    for share in shares:
        asked = min(total, max(1, up(share * total)))
        found.append(
            next((answers[i] for i, n in enumerate(below) if n >= asked), 0.0)
            if total
            else math.nan
        )
    return found


def _own(values, shares):
    there = values[~values.isnan()].sort().values
    if not len(there):
        return [math.nan] * len(shares)
    return [there[max(1, math.ceil(s * len(there))) - 1].item() for s in shares]


def averages_quantiles(values, shares, error, axis):
    mine = torch.tensor([*_own(values, shares), 1.0], dtype=torch.float64)
    mine = mine if len(values) else torch.zeros_like(mine)
    sums = comm.all_reduce(mine, axis, "quantiles")
    return (sums[:-1] / sums[-1]).tolist()


def takes_the_largest(values, shares, error, axis):
    mine = torch.tensor(_own(values, shares), dtype=torch.float64).nan_to_num(-math.inf)
    return comm.all_reduce(mine, axis, "quantiles", op="max").tolist()


def returns_its_own(values, shares, error, axis):
    _quantiles(values, shares, error, axis)
    return _own(values, shares)


def answers_the_upper_bound(values, shares, error, axis):
    g = (1 + error) / (1 - error)
    return _quantiles(values, shares, error, axis, answer=lambda lower: lower * g)


def answers_the_lower_bound(values, shares, error, axis):
    return _quantiles(values, shares, error, axis, answer=lambda lower: lower)


def has_buckets_twice_as_wide(values, shares, error, axis):
    g = ((1 + error) / (1 - error)) ** 2
    return _quantiles(values, shares, error, axis, growth=g)


def drops_zeros(values, shares, error, axis):
    return _quantiles(values, shares, error, axis, keep=lambda t: t != 0)


def drops_infinities(values, shares, error, axis):
    return _quantiles(values, shares, error, axis, keep=lambda t: t.isfinite())


def drops_negative_values(values, shares, error, axis):
    return _quantiles(values, shares, error, axis, keep=lambda t: t >= 0)


def takes_sizes(values, shares, error, axis):
    return _quantiles(values.abs(), shares, error, axis)


def clamps_infinities(values, shares, error, axis):
    return _quantiles(values.clamp(-1e4, 1e4), shares, error, axis)


def counts_nan_as_zero(values, shares, error, axis):
    t = values.nan_to_num(0.0, math.inf, -math.inf)
    return _quantiles(t, shares, error, axis)


def counts_nan_as_infinite(values, shares, error, axis):
    t = values.nan_to_num(math.inf, math.inf, -math.inf)
    return _quantiles(t, shares, error, axis)


def takes_a_small_value_for_zero(values, shares, error, axis):
    t = torch.where(values.abs() < 1e-2, 0.0, values)
    return _quantiles(t, shares, error, axis)


def has_equal_widths(values, shares, error, axis):
    counts = torch.zeros(800, dtype=torch.int64)
    kept = values[~values.isnan()].clamp(-1e4, 1e4)
    at = ((kept + 1e4) / 2e4 * 799).long()
    counts += at.bincount(minlength=800)
    counts = comm.all_reduce(counts, axis, "counts")
    below, total = counts.cumsum(0), int(counts.sum())
    found = []
    for share in shares:
        place = int(torch.searchsorted(below, max(1, math.ceil(share * total))))
        found.append((place + 0.5) / 799 * 2e4 - 1e4 if total else math.nan)
    return found


def gathers_all_values(values, shares, error, axis):
    n = comm.mesh().size(axis)
    longest = comm.all_reduce(torch.tensor([len(values)]), axis, "longest", op="max")
    row = torch.full((int(longest) + 1,), math.nan, dtype=torch.float64)
    row[: len(values)] = values
    every = comm.all_gather(row, axis, "values").view(n, -1).flatten()
    return _own(every, shares)


def over_the_world(values, shares, error, axis):
    return _quantiles(
        values, shares, error, axis, reduce=lambda t: comm.all_reduce(t, "world", "counts")
    )


def reduces_twice(values, shares, error, axis):
    def reduce(t):
        half = len(t) // 2
        parts = [comm.all_reduce(t[:half].clone(), axis, "lower half")]
        return torch.cat([*parts, comm.all_reduce(t[half:].clone(), axis, "upper half")])

    return _quantiles(values, shares, error, axis, reduce=reduce)


def has_far_finer_buckets(values, shares, error, axis):
    return _quantiles(values, shares, error, axis, growth=1 + error / 4)


def returns_one_number(values, shares, error, axis):
    return solution(values, shares, error, axis)[4]


def answers_zero_for_nothing(values, shares, error, axis):
    found = solution(values, shares, error, axis)
    return [0.0 if math.isnan(one) else one for one in found]


def by_a_loop(values, shares, error, axis):
    return tuple(_quantiles(values, shares, error, axis))


def in_numpy(values, shares, error, axis):
    """Buckets around powers of g, with answers that are their geometric middles."""
    x = values.numpy()
    x = x[~np.isnan(x)]
    g = (1 + error) / (1 - error)
    half = int(np.ceil(np.log(1e8) / np.log(g))) + 2
    zero, index = half + 1, np.zeros(len(x), dtype=np.int64)
    finite = np.isfinite(x) & (x != 0)
    with np.errstate(divide="ignore"):
        steps = np.floor(np.log(np.abs(x) / 1e-4) / np.log(g))
    index[finite] = np.clip(steps[finite], 0, half - 1).astype(np.int64) + 1
    index[np.isinf(x)] = half + 1
    index = zero + np.where(x < 0, -index, index)
    counts = torch.from_numpy(np.bincount(index, minlength=2 * half + 3)[: 2 * half + 3].copy())
    counts = comm.all_reduce(counts, axis, "histogram", async_op=True).wait().numpy()
    sizes = np.concatenate([[0], 1e-4 * g ** (np.arange(half) + 0.5), [np.inf]])
    answers = np.concatenate([-sizes[:0:-1], sizes])
    if counts.sum() == 0:
        return [float("nan")] * len(shares)
    places = np.maximum(1, np.ceil(np.array(shares) * counts.sum()))
    return torch.tensor(answers[np.searchsorted(np.cumsum(counts), places)])


def answers_sorted_shares(values, shares, error, axis):
    return solution(values, sorted(shares), error, axis)


def never_finer_than_one_per_cent(values, shares, error, axis):
    return solution(values, shares, max(error, 0.01), axis)


MUTANTS = {
    averages_quantiles: "quantiles of ranks cannot be averaged",
    answers_the_upper_bound: "it answers the upper bound",
    answers_the_lower_bound: "it answers the lower bound",
    takes_the_largest: "the largest of the ranks' quantiles",
    returns_its_own: "these are this rank's own quantiles",
    has_buckets_twice_as_wide: "may be",
    drops_zeros: "zeros are missing",
    drops_infinities: "infinite values are missing",
    drops_negative_values: "negative values are missing",
    takes_sizes: "negative values are taken by their size",
    clamps_infinities: "answered by the last bucket",
    counts_nan_as_zero: "NaN is no value",
    counts_nan_as_infinite: "NaN was counted as infinite",
    takes_a_small_value_for_zero: "of share",
    has_equal_widths: "may be",
    gathers_all_values: "it uses all-gathers",
    over_the_world: "over the ranks",
    reduces_twice: "it takes 2 all-reduces",
    has_far_finer_buckets: "carry",
    returns_one_number: "asked for is a list",
    answers_zero_for_nothing: "asked for is NaN then",
    answers_sorted_shares: "these are of the shares in order",
    never_finer_than_one_per_cent: "0.3 % may be",
}
RIGHT = (by_a_loop, in_numpy)
