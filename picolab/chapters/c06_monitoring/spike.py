"""Exercise: one value far above what those before it lead to expect (chapter 6).

The rule is given to the letter, so its flags are compared one by one. Small series come first, each
with one difficulty, then dozens of random ones; a known mistake is recognised by the flags that it
gives on the series at hand.
"""

import functools
import math
import random
import statistics

import torch

from picolab.chapters.c06_monitoring.known_mistakes import judge_each
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise

LEAST, FLOOR = 8, 0.01


def my_spikes(values, window, sigmas, factor):
    raise NotImplementedError("return a list with True for each value that is a spike")


def solution(values, window, sigmas, factor):
    import math
    from statistics import median

    flags, logs = [], []
    for value in values:
        flagged = not (math.isfinite(value) and value > 0)
        if not flagged and len(logs) >= 8:
            n, half = len(logs), len(logs) // 2
            slope = (median(logs[-half:]) - median(logs[:half])) / (n - half)
            flat = [x - slope * i for i, x in enumerate(logs)]
            middle = median(flat)
            spread = max(0.01, 1.4826 * median(abs(x - middle) for x in flat))
            excess = math.log(value) - (middle + slope * n)
            flagged = excess > max(sigmas * spread, math.log(factor))
        if not flagged:  # what was flagged is never what later ones are judged by
            logs = [*logs, math.log(value)][-window:]
        flags.append(flagged)
    return flags


def judge(learner, attempt: Attempt) -> None:
    questions = [(about, _arguments(*rest)) for about, *rest in [*_small(), *_random()]]
    judge_each(learner, attempt, questions, _wrong, _MISTAKES, _alike, _flags)


def _arguments(values, window, sigmas, factor) -> dict:
    return {"values": values, "window": window, "sigmas": sigmas, "factor": factor}


def _noisy(seed: int, n: int, start=4.0, fall=0.0, noise=0.02) -> list[float]:
    draw = random.Random(seed)
    return [start * math.exp(-fall * i + draw.gauss(0, noise)) for i in range(n)]


def _small():
    calm = _noisy(1, 40)
    high = [*calm[:30], 9.0, *calm[30:]]
    yield "nothing happens", calm, 16, 6.0, 1.2
    yield "one value is twice as high", high, 16, 6.0, 1.2
    yield "one value is half as high", [*calm[:30], 2.0, *calm[30:]], 16, 6.0, 1.2
    yield "a NaN", [*calm[:20], math.nan, *calm[20:]], 16, 6.0, 1.2
    yield "infinities, a zero and a negative value", [
        *calm[:20], math.inf, -math.inf, 0.0, -1.0, *calm[20:], 9.0,
    ], 16, 6.0, 1.2  # fmt: skip
    yield "a spike among the first few values", [4.0, 9.0, 4.1, *calm], 16, 6.0, 1.2
    yield "eight values, and a ninth that is high", [*calm[:8], 9.0], 16, 6.0, 1.2
    yield "seven values, and an eighth that is high", [*calm[:7], 9.0, 4.0], 16, 6.0, 1.2
    yield "a high value, and a lower one soon after", [*high[:31], 4.0, 5.6, 4.0], 16, 6.0, 1.2
    yield "ten high values in a row", [*calm[:30], *([9.0] * 10), 4.0], 16, 6.0, 1.2
    yield "many small outliers before", [
        x * (1.6 if i % 5 == 4 else 1.0) for i, x in enumerate(calm)
    ] + [5.5], 20, 8.0, 1.2  # fmt: skip
    falling = _noisy(2, 60, 10.0, 0.03, 0.01)
    yield "a loss that falls fast", falling, 32, 6.0, 1.05
    yield "a spike on a loss that falls fast", [
        *falling[:50], 1.45 * falling[50], *falling[51:],
    ], 32, 6.0, 1.05  # fmt: skip
    fast = [math.exp(-0.1 * i) for i in range(30)]
    yield "a fall of 10 % a step, and 2 % more once", [
        *fast, 1.02 * math.exp(-3.0), math.exp(-3.1),
    ], 16, 4.0, 1.01  # fmt: skip
    same = [2.5] * 30
    yield "a value that is always the same, and 3 % more once", [*same, 2.575, 2.5], 16, 6.0, 1.01
    yield "the same, and 8 % more once", [*same, 2.7, 2.5], 16, 6.0, 1.01
    yield "a rise of many deviations that is not worth a word", [
        *_noisy(3, 30, noise=0.004), 4.5, 4.0,
    ], 16, 6.0, 1.2  # fmt: skip
    yield "a noisy value that is 1.4 times as high", [
        *_noisy(4, 30, noise=0.2), 6.4, 4.0,
    ], 16, 6.0, 1.2  # fmt: skip
    yield "a level that is reached slowly", [*_noisy(5, 30), *_noisy(6, 30, 4.3), 5.6], 16, 6.0, 1.2
    yield "an odd window", [*calm, 6.0, 4.0, 5.5], 13, 6.0, 1.2
    yield "no value at all", [], 16, 6.0, 1.2


def _random():
    draw = random.Random(0)
    for seed in range(40):
        window, noise = draw.randint(9, 40), draw.choice((0.005, 0.02, 0.1))
        values = _noisy(100 + seed, 120, draw.choice((1e-30, 3.0, 1e6)), draw.random() / 50, noise)
        for at in range(len(values)):
            if draw.random() < 0.08:
                values[at] *= draw.choice((0.3, 1.15, 1.5, 3.0, 10.0, math.nan, math.inf))
        sigmas, factor = draw.choice((4.0, 6.0, 8.0)), draw.choice((1.05, 1.2, 2.0))
        yield f"random series {seed + 1}", values, window, sigmas, factor


def _flags(
    values, window, sigmas, factor, *, log=math.log, middle_of=statistics.median, scale=1.4826,
    least=LEAST, floor=FLOOR, trend=True, ahead=0, both_ways=False, deviation=False, enters=(),
    limit=max, older=False, finite=True,
) -> list[bool]:  # fmt: skip
    """The rule, or one with a mistake. enters: what of the flagged enters the window all the same,
    "spikes" or "the rest"."""
    flags, logs = [], []
    for value in values:
        number = math.isfinite(value) and value > 0
        flagged = not number and finite
        if number and len(logs) >= least:
            n, half = len(logs), len(logs) // 2
            slope = (middle_of(logs[-half:]) - middle_of(logs[:half])) / (n - half) if trend else 0
            flat = [x - slope * i for i, x in enumerate(logs)]
            middle = middle_of(flat)
            if deviation:
                spread = max(floor, statistics.pstdev(flat))
            else:
                spread = max(floor, scale * middle_of([abs(x - middle) for x in flat]))
            excess = log(value) - (middle + slope * (n + ahead))
            flagged = (abs(excess) if both_ways else excess) > limit(
                sigmas * spread, log(factor) if log is math.log else (factor - 1) * middle
            )
        if number and (not flagged or "spikes" in enters):
            logs = [*logs, log(value)]
            logs = logs[:window] if older else logs[-window:]
        flags.append(flagged)
    return flags


def _with(**change):
    return functools.partial(_flags, **change)


_MISTAKES = {
    "what is no finite positive number is flagged": _with(finite=False),
    "a flagged value entered the window, and hides the next one": _with(enters=("spikes",)),
    "mean and standard deviation are moved by outliers; asked for are median and MAD": _with(
        middle_of=statistics.fmean, deviation=True
    ),
    "the spread is a standard deviation; asked for is the MAD": _with(deviation=True),
    "the middle is a mean; asked for is the median": _with(middle_of=statistics.fmean),
    "the trend was not taken out": _with(trend=False),
    "the trend was not carried on to the place of the value itself, n": _with(ahead=-1),
    "the trend was carried on by one step too many: the value's own place is n": _with(ahead=1),
    "it flags what is far below, too": _with(both_ways=True),
    "1.4826 is missing: the MAD is smaller than a deviation": _with(scale=1.0),
    "the spread has no floor of 0.01: what hardly varies alarms at everything": _with(floor=0.0),
    "it must be above both limits, and it flags above either of them": _with(limit=min),
    "the factor is left out": _with(limit=lambda sigmas, factor: sigmas),
    "the sigmas are left out": _with(limit=lambda sigmas, factor: factor),
    "with fewer than 8 values in the window nothing finite is flagged": _with(least=2),
    "with 8 values in the window it judges; it waited for one more": _with(least=9),
    "it waits until the window is full; 8 values are enough": lambda values, window, **rest: _flags(
        values, window, **rest, least=window
    ),
    "logarithms are missing": _with(log=float),
    "the window has the oldest values; it should have the newest": _with(older=True),
}


def _wrong(got, given) -> str | None:
    """What is wrong with it, if anything is."""
    values, right = given["values"], _flags(**given)
    if isinstance(got, torch.Tensor):
        got = got.tolist()
    if not isinstance(got, list | tuple) or len(got) != len(values):
        what = f"{len(got)} things" if isinstance(got, list | tuple) else "no list"
        return f"it returns {what}; asked for is a list with True or False for each value"
    wrong = [i for i, (a, b) in enumerate(zip(got, right)) if bool(a) != b]
    if not wrong:
        return None
    what = "is not flagged, and should be" if right[wrong[0]] else "is flagged, and should not be"
    return f"value {wrong[0]}, {values[wrong[0]]:.4g}, {what}"


def _alike(got, flags) -> bool:
    return isinstance(got, list | tuple) and [bool(one) for one in got] == flags


EXERCISE = Exercise(
    id="monitoring.spike.robust",
    goal="Say of each value of a loss or a gradient norm, as it comes, whether it is far above "
    "what the values before it lead to expect. One outlier must not hide the next, and a loss that "
    "falls must not seem to vary.",
    interface="`my_spikes(values, window, sigmas, factor)` returns a list of True and False. What "
    "is no finite number above 0 is flagged. Else, from x_0 ... x_(n-1), the logarithms of the "
    "last `window` values that were not flagged (with fewer than 8 of them nothing is flagged): "
    "with h = n // 2 the slope is the median of the last h less that of the first h, over n - h. "
    "y_i = x_i - slope * i; m is their median, s = 1.4826 times the median of |y_i - m|, and at "
    "least 0.01. A value is flagged if log(value) - (m + slope * n) is above both sigmas * s and "
    "log(factor).",
    budget="No communication; each value is judged by those before it.",
    hints=(
        "Which values may be in the window when the next one is judged? And which never?",
        "One list of logarithms. Judge first, then append, and only if it was not flagged; then "
        "cut it to the newest `window`.",
        "`flagged = excess > max(sigmas * s, log(factor))`; a value that is not finite never gets "
        "as far as a logarithm.",
    ),
    stub_function=my_spikes,
    solution_function=solution,
    why="Median and MAD do not move until half of the window is bad; a mean moves with the first "
    "outlier, and the deviation that it blows up hides the second. What was flagged stays outside, "
    "or the detector learns the fault. In logarithms a rise is a ratio, whatever the level; with "
    "the trend taken out a fast fall is no spread. Two limits: sigmas alone alarm at what is "
    "unusual and unimportant, a factor alone at noise. And NaN compares false with everything, so "
    "it is asked for first.",
    judge=judge,
    cases=(Case("dp1"),),
    blocked=("picolab.monitoring.rules.Spike.add", "picolab.monitoring.rules.Spike.above"),
)
