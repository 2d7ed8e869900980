"""Exercise: quantiles over all ranks, with a bounded error, from one small all-reduce (chapter 6).

Every rank draws all ranks' values, so the exact quantiles are known. Values have both signs, zeros,
infinities and NaN, some ranks have none, and there are far more of them than may be sent. With an
error of a few per cent a value that is off is off by much more, or by a neighbour's bucket.
"""

import math

import torch

from picolab import comm, costs
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise

LOW, HIGH = 1e-4, 1e4


def my_quantiles(values, shares, error, axis):
    raise NotImplementedError("return a quantile of all ranks' values for each of the shares")


def solution(values, shares, error, axis):
    import math

    import torch

    import picolab as pico

    growth = math.log((1 + error) / (1 - error))
    size = math.ceil(math.log(1e4 / 1e-4) / growth) + 1
    values = values[~values.isnan()].double()
    # From the left: -inf, the negative ones by falling size, 0, the positive ones, inf.
    bucket = ((values.abs().clamp(min=1e-4) / 1e-4).log() / growth).clamp(max=size - 1).long()
    place = torch.where(values > 0, size + 2 + bucket, size - bucket)
    place[values == 0] = size + 1
    place[values == math.inf], place[values == -math.inf] = 2 * size + 2, 0
    counts = pico.comm.all_reduce(place.bincount(minlength=2 * size + 3), axis, "histogram")
    below, found = counts.cumsum(0), []
    middles = 1e-4 * (torch.arange(size) * growth).exp() * (1 + error)
    answers = torch.cat(
        [
            torch.tensor([-math.inf]),
            -middles.flip(0),
            torch.zeros(1),
            middles,
            torch.tensor([math.inf]),
        ]
    )
    for share in shares:
        if not below[-1]:
            found.append(math.nan)
            continue
        asked = max(1, math.ceil(share * int(below[-1])))
        found.append(answers[torch.searchsorted(below, asked)].item())
    return found


def judge(learner, attempt: Attempt) -> None:
    axis, error = attempt.case.values["axis"], attempt.case.values["error"]
    mesh = comm.mesh()
    line = mesh.ranks(axis)
    buckets = costs.log_buckets(LOW, HIGH, error)
    for number, (about, kinds) in enumerate(attempt.case.values["settings"]):
        attempt.setting(about)
        everyones = [_drawn(number, rank, kinds[rank % len(kinds)]) for rank in line]
        mine = everyones[mesh.rank(axis)]
        given = {"values": mine, "shares": _SHARES, "error": error, "axis": axis}
        got = attempt.call(learner, given)
        _compare(attempt, got, everyones, mine, error)
        attempt.only("all_reduce")
        attempt.along(axis)
        attempt.budget("all_reduce", count=1, at_least=1, axis=axis)
        most = 8 * (2 * buckets + 16)
        attempt.budget("all_reduce", payload_bytes=most, least_bytes=buckets, axis=axis)
        if attempt.problems:
            return


_SHARES = (0.5, 0.0, 0.01, 0.999, 0.1, 0.25, 0.9, 0.99, 1.0)  # in no order


def _drawn(number: int, rank: int, kind: str) -> torch.Tensor:
    draw = torch.Generator().manual_seed(100 * number + rank)
    size = 0 if kind == "none" else 1500 + 301 * rank
    base = torch.randn(size, generator=draw, dtype=torch.float64)
    values = {
        "times": (0.3 * base + 0.05 * rank).exp(),
        "slow": 3.0 + 0.01 * base,
        "fast": 1.0 + 0.001 * base,
        "wide": (8.0 * torch.rand(size, generator=draw, dtype=torch.float64) - 4.0)
        .mul(math.log(10))
        .exp(),
        "signs": base,
        "below": -(2.0 * base).exp().clamp(LOW, HIGH),
        "none": base,
    }.get(kind.split("+")[0], base)
    sizes = values.abs().clamp(LOW, HIGH) * values.sign()
    for extra in kind.split("+")[1:]:
        at = torch.rand(size, generator=draw) < 0.2
        fill = {"zeros": 0.0, "inf": math.inf, "-inf": -math.inf, "nan": math.nan}[extra]
        sizes[at] = fill
    return sizes


def _exact(values: torch.Tensor, shares=_SHARES) -> list[float]:
    """The smallest value that at least this share of them does not exceed."""
    there = values[~values.isnan()].sort().values
    if not len(there):
        return [math.nan] * len(shares)
    places = (min(len(there), max(1, math.ceil(share * len(there)))) for share in shares)
    return [there[place - 1].item() for place in places]


def _compare(attempt: Attempt, got, everyones, mine, error: float) -> None:
    if isinstance(got, torch.Tensor):
        got = got.tolist()
    if not isinstance(got, list | tuple) or len(got) != len(_SHARES):
        attempt.wrong(f"asked for is a list of {len(_SHARES)} numbers, one for each share")
        return
    every = torch.cat(everyones)
    right = _exact(every)
    got = [float(one) for one in got]
    wrong = [i for i, (a, b) in enumerate(zip(got, right)) if not _near(a, b, error)]
    if not wrong:
        return
    at = wrong[0]
    said = f"of share {_SHARES[at]} it says {got[at]:.6g}, and it is {right[at]:.6g}"
    attempt.wrong(f"{said}: {_why(got, right, at, wrong, everyones, mine, error)}")


def _why(got, right, at: int, wrong, everyones, mine, error: float) -> str:
    def same(known) -> bool:
        return all(_near(a, b, 2.5 * error) for a, b in zip(got, known))

    every = torch.cat(everyones)
    numbers = every[~every.isnan()]
    ranks = [_exact(of) for of in everyones if len(of)]
    zipped = list(zip(*ranks))
    known = {
        "these are this rank's own quantiles": _exact(mine),
        "quantiles of ranks cannot be averaged; add up their counts": (
            [sum(of) / len(of) for of in zipped]
        ),
        "that is the largest of the ranks' quantiles, and not the quantile of all": (
            [max(of) for of in zipped]
        ),
        "zeros are missing in the counts": _exact(numbers[numbers != 0]),
        "infinite values are missing in the counts": _exact(numbers[numbers.isfinite()]),
        "NaN is no value, and does not count": _exact(every.nan_to_num(0.0, math.inf, -math.inf)),
        "NaN was counted as infinite": _exact(every.nan_to_num(math.inf, math.inf, -math.inf)),
        "negative values are taken by their size": _exact(numbers.abs()),
        "negative values are missing": _exact(numbers[numbers >= 0]),
        "these are of the shares in order, and not as they were given": (
            _exact(numbers, sorted(_SHARES))
        ),
        "an infinite value is answered by the last bucket": (
            _exact(numbers.nan_to_num(0.0, HIGH, -HIGH))
        ),
    }  # fmt: skip
    if not len(numbers):
        return "no rank has a value, and asked for is NaN then"
    for says, of in known.items():
        apart = any(not _near(a, b, 2.5 * error) for a, b in zip(of, right))
        if apart and same(of):
            return says
    off = [abs(got[i] / right[i] - 1) for i in wrong if math.isfinite(right[i]) and right[i]]
    if off and math.isfinite(max(off)) and max(off) < 2.5 * error:
        up = [got[i] / right[i] > 1 for i in wrong]
        side = (
            "it answers the upper bound of a bucket; the number that is as far from both bounds is "
            "nearer to all that is in it"
            if all(up)
            else "it answers the lower bound of a bucket; the number that is as far from both "
            "bounds is nearer to all that is in it"
            if not any(up)
            else "is a bucket too wide, or its answer not in its middle?"
        )
        return f"off by {100 * max(off):.1f} %, {100 * error:g} % may be; {side}"
    if off and math.isfinite(max(off)):
        return f"off by {100 * max(off):.1f} %, and {100 * error:g} % may be"
    return "that is more than a bucket off"


def _near(got: float, right: float, error: float) -> bool:
    """(A little more than the error: the middle of a bucket may be the geometric one.)"""
    if math.isnan(right) or math.isinf(right) or right == 0:
        return got == right or (math.isnan(got) and math.isnan(right))
    return abs(got - right) <= 1.05 * error * abs(right)


_SETTINGS = (
    ("step times", ("times",)),
    ("one rank that is slow, beside fast ones", ("fast", "slow", "fast", "fast")),
    ("eight powers of ten", ("wide",)),
    ("both signs", ("signs",)),
    ("negative values only", ("below",)),
    ("zeros among them", ("times+zeros", "signs+zeros")),
    ("infinities among them", ("times+inf", "signs+-inf")),
    ("NaN among them", ("times+nan", "below+nan")),
    ("a rank without values", ("none", "signs", "times")),
    ("no values at all", ("none",)),
    ("all of it", ("signs+zeros+inf+nan", "wide+-inf", "below+zeros")),
)

EXERCISE = Exercise(
    id="monitoring.histogram.bounded",
    goal="Each rank of `axis` has thousands of values. Return on every rank quantiles of the "
    "values of all, each right to within a relative error, from one all-reduce whose size does not "
    "depend on how many values there are.",
    interface="`my_quantiles(values, shares, error, axis)` returns a list of numbers, one for each "
    "share from 0 to 1: the smallest value that at least this share of all values does not exceed "
    "(for share 0 the smallest of all), to within `error` of itself. `values` is a tensor of fp64, "
    "another number of them on each rank. Sizes are from 1e-4 to 1e4, of both signs; 0 and "
    "infinities are answered exactly; NaN is no value. If no rank has any the answers are NaN. You "
    "may use `pico.comm.all_reduce(t, axis, reason)`, which adds.",
    budget="One all-reduce over the axis, of at most 16 numbers of 8 bytes more than twice the "
    "buckets that `pico.costs.log_buckets(1e-4, 1e4, error)` needs.",
    hints=(
        "What of a rank can be added to another rank's, and still tells any quantile?",
        "Bounds that grow by (1 + error) / (1 - error); as many for negative values; a count for "
        "0, and one for each infinity. Which number is as far, relatively, from both bounds?",
        "Bucket i is from `1e-4 g^i` to `1e-4 g^(i+1)` and answers `1e-4 g^i (1 + error)`. Order "
        "the counts by value, add them up from the left, and look for `ceil(share * total)`.",
    ),
    stub_function=my_quantiles,
    solution_function=solution,
    why="Quantiles do not add, counts do: if all ranks use the same buckets, the sum of their "
    "counts is the histogram of all, exactly and in any order. Bounds that grow by a factor have "
    "the same relative error everywhere, so eight powers of ten take a few hundred buckets; in the "
    "middle that is as far from both bounds it is (g - 1)/(g + 1), which is the error asked for. "
    "Negative values have the mirror image, largest size first; zero has no logarithm, and with "
    "infinities it gets a count of its own, or it would be missing in the total (DDSketch, arXiv "
    "1908.10693).",
    judge=judge,
    cases=(
        Case("dp4", "", {"axis": "dp", "error": 0.02, "settings": _SETTINGS},
             "a rank without values takes part as well"),
        Case("dp2tp2", "over tp, which is half of them",
             {"axis": "tp", "error": 0.05, "settings": (*_SETTINGS[:2], _SETTINGS[-1])}),
        Case("dp3", "", {"axis": "dp", "error": 0.003, "settings": _SETTINGS[2:4]}),
    ),
)  # fmt: skip
