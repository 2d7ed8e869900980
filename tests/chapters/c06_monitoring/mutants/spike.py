"""Wrong answers to monitoring.spike.robust, what each author must be told, and right ones."""

import math
import statistics
from collections import deque
from statistics import fmean, median, pstdev

import numpy as np


def _spikes(values, window, sigmas, factor, judge, enters=lambda flagged: not flagged, least=8):
    """A frame: judge(logs, log of the value) of a number, what enters is said apart."""
    flags, logs = [], []
    for value in values:
        good = math.isfinite(value) and value > 0
        flagged = not good
        if good and len(logs) >= least:
            flagged = judge(logs, math.log(value))
        if good and enters(flagged):
            logs = [*logs, math.log(value)][-window:]
        flags.append(flagged)
    return flags


def _parts(logs, trend=True, middle_of=median):
    n, half = len(logs), len(logs) // 2
    slope = (middle_of(logs[-half:]) - middle_of(logs[:half])) / (n - half) if trend else 0.0
    flat = [x - slope * i for i, x in enumerate(logs)]
    middle = middle_of(flat)
    mad = middle_of([abs(x - middle) for x in flat])
    return middle + slope * n, mad, flat, slope


def learns_the_spike(values, window, sigmas, factor):
    def judge(logs, log):
        expected, mad, *_ = _parts(logs)
        return log - expected > max(sigmas * max(0.01, 1.4826 * mad), math.log(factor))

    return _spikes(values, window, sigmas, factor, judge, enters=lambda flagged: True)


def takes_mean_and_deviation(values, window, sigmas, factor):
    def judge(logs, log):
        expected, _, flat, _ = _parts(logs, middle_of=fmean)
        return log - expected > max(sigmas * max(0.01, pstdev(flat)), math.log(factor))

    return _spikes(values, window, sigmas, factor, judge)


def takes_the_deviation_around_the_median(values, window, sigmas, factor):
    def judge(logs, log):
        expected, _, flat, _ = _parts(logs)
        return log - expected > max(sigmas * max(0.01, pstdev(flat)), math.log(factor))

    return _spikes(values, window, sigmas, factor, judge)


def forgets_the_trend(values, window, sigmas, factor):
    def judge(logs, log):
        expected, mad, *_ = _parts(logs, trend=False)
        return log - expected > max(sigmas * max(0.01, 1.4826 * mad), math.log(factor))

    return _spikes(values, window, sigmas, factor, judge)


def flags_both_ways(values, window, sigmas, factor):
    def judge(logs, log):
        expected, mad, *_ = _parts(logs)
        return abs(log - expected) > max(sigmas * max(0.01, 1.4826 * mad), math.log(factor))

    return _spikes(values, window, sigmas, factor, judge)


def forgets_the_scale(values, window, sigmas, factor):
    def judge(logs, log):
        expected, mad, *_ = _parts(logs)
        return log - expected > max(sigmas * max(0.01, mad), math.log(factor))

    return _spikes(values, window, sigmas, factor, judge)


def has_no_floor(values, window, sigmas, factor):
    def judge(logs, log):
        expected, mad, *_ = _parts(logs)
        return log - expected > max(sigmas * 1.4826 * mad, math.log(factor))

    return _spikes(values, window, sigmas, factor, judge)


def takes_either_limit(values, window, sigmas, factor):
    def judge(logs, log):
        expected, mad, *_ = _parts(logs)
        return log - expected > min(sigmas * max(0.01, 1.4826 * mad), math.log(factor))

    return _spikes(values, window, sigmas, factor, judge)


def forgets_the_factor(values, window, sigmas, factor):
    def judge(logs, log):
        expected, mad, *_ = _parts(logs)
        return log - expected > sigmas * max(0.01, 1.4826 * mad)

    return _spikes(values, window, sigmas, factor, judge)


def forgets_the_sigmas(values, window, sigmas, factor):
    def judge(logs, log):
        return log - _parts(logs)[0] > math.log(factor)

    return _spikes(values, window, sigmas, factor, judge)


def judges_from_the_second(values, window, sigmas, factor):
    def judge(logs, log):
        expected, mad, *_ = _parts(logs)
        return log - expected > max(sigmas * max(0.01, 1.4826 * mad), math.log(factor))

    return _spikes(values, window, sigmas, factor, judge, least=2)


def waits_for_a_full_window(values, window, sigmas, factor):
    def judge(logs, log):
        expected, mad, *_ = _parts(logs)
        return log - expected > max(sigmas * max(0.01, 1.4826 * mad), math.log(factor))

    return _spikes(values, window, sigmas, factor, judge, least=window)


def lets_nan_pass(values, window, sigmas, factor):
    numbers = [v for v in values if math.isfinite(v) and v > 0]
    flags = iter(in_numpy(numbers, window, sigmas, factor))
    return [next(flags) if math.isfinite(v) and v > 0 else False for v in values]


def keeps_the_oldest(values, window, sigmas, factor):
    flags, logs = [], []
    for value in values:
        flagged = not (math.isfinite(value) and value > 0)
        if not flagged and len(logs) >= 8:
            expected, mad, *_ = _parts(logs)
            limit = max(sigmas * max(0.01, 1.4826 * mad), math.log(factor))
            flagged = math.log(value) - expected > limit
        if not flagged and len(logs) < window:
            logs.append(math.log(value))
        flags.append(flagged)
    return flags


def works_without_logarithms(values, window, sigmas, factor):
    flags, kept = [], []
    for value in values:
        flagged = not (math.isfinite(value) and value > 0)
        if not flagged and len(kept) >= 8:
            expected, mad, flat, _ = _parts(kept)
            limit = max(sigmas * max(0.01, 1.4826 * mad), (factor - 1) * median(flat))
            flagged = value - expected > limit
        if not flagged:
            kept = [*kept, value][-window:]
        flags.append(flagged)
    return flags


def stops_the_trend_short(values, window, sigmas, factor):
    def judge(logs, log):
        expected, mad, _, slope = _parts(logs)
        limit = max(sigmas * max(0.01, 1.4826 * mad), math.log(factor))
        return log - (expected - slope) > limit

    return _spikes(values, window, sigmas, factor, judge)


def carries_the_trend_too_far(values, window, sigmas, factor):
    def judge(logs, log):
        expected, mad, _, slope = _parts(logs)
        spreads = log - (expected + slope) > sigmas * max(0.01, 1.4826 * mad)
        return spreads and log - expected > math.log(factor)

    return _spikes(values, window, sigmas, factor, judge)


def sees_the_whole_series(values, window, sigmas, factor):
    numbers = [math.log(v) for v in values if math.isfinite(v) and v > 0]
    if not numbers:
        return [True] * len(values)
    middle = median(numbers)
    spread = max(0.01, 1.4826 * median(abs(x - middle) for x in numbers))
    limit = max(sigmas * spread, math.log(factor))
    return [not (math.isfinite(v) and v > 0) or math.log(v) - middle > limit for v in values]


def returns_positions(values, window, sigmas, factor):
    return [i for i, flag in enumerate(in_numpy(values, window, sigmas, factor)) if flag]


def in_numpy(values, window, sigmas, factor):
    flags = np.zeros(len(values), dtype=bool)
    kept = np.empty(0)
    for i, value in enumerate(np.asarray(values, dtype=np.float64)):
        if not np.isfinite(value) or value <= 0:
            flags[i] = True
            continue
        x = np.log(value)
        if len(kept) >= 8:
            n = len(kept)
            h = n // 2
            slope = (np.median(kept[n - h :]) - np.median(kept[:h])) / (n - h)
            y = kept - slope * np.arange(n)
            m = np.median(y)
            s = max(0.01, 1.4826 * np.median(np.abs(y - m)))
            flags[i] = x - m - slope * n > sigmas * s and x - m - slope * n > np.log(factor)
        if not flags[i]:
            kept = np.append(kept, x)[-window:]
    return flags.tolist()


def with_a_deque(values, window, sigmas, factor):
    good = deque(maxlen=window)

    def is_spike(value):
        if not (value > 0 and value < math.inf):
            return 1
        n = len(good)
        if n >= 8:
            x, h = list(good), n // 2
            slope = (statistics.median(x[n - h :]) - statistics.median(x[:h])) / (n - h)
            rest = [one - slope * (i - n) for i, one in enumerate(x)]  # seen from the value's place
            expected = statistics.median(rest)
            mad = statistics.median(abs(one - expected) for one in rest)
            excess = math.log(value) - expected
            if excess > sigmas * max(1.4826 * mad, 0.01) and excess > math.log(factor):
                return 1
        good.append(math.log(value))
        return 0

    return tuple(is_spike(value) for value in values)


MUTANTS = {
    learns_the_spike: "a flagged value entered the window",
    takes_mean_and_deviation: "mean and standard deviation are moved by outliers",
    takes_the_deviation_around_the_median: "the spread is a standard deviation",
    forgets_the_trend: "the trend was not taken out",
    flags_both_ways: "it flags what is far below",
    forgets_the_scale: "1.4826 is missing",
    has_no_floor: "no floor",
    takes_either_limit: "it must be above both limits",
    forgets_the_factor: "the factor is left out",
    forgets_the_sigmas: "the sigmas are left out",
    judges_from_the_second: "with fewer than 8",
    waits_for_a_full_window: "it waits until the window is full",
    lets_nan_pass: "what is no finite positive number is flagged",
    keeps_the_oldest: "the window has the oldest values",
    works_without_logarithms: "logarithms are missing",
    stops_the_trend_short: "was not carried on",
    carries_the_trend_too_far: "is flagged, and should not be",
    sees_the_whole_series: "should",
    returns_positions: "a list with True or False for each value",
}
RIGHT = (in_numpy, with_a_deque)
