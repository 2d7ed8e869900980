"""Wrong answers to monitoring.drift.cusum, what each author must be told, and right ones."""

import math
import statistics
from statistics import fmean, median, pstdev

import numpy as np


def _cusum(
    values, first, *, slack=0.5, limit=20.0, clip=4.0, both=True, bounded=True, robust=True,
    finite=True, floor=0.001, relearn=True, sign=1, offset=0, once=False, keeps_sum=False,
):  # fmt: skip
    alarms, learnt, up, down, level, spread = [], [], 0.0, 0.0, 0.0, 1.0
    for position, value in enumerate(values):
        if finite and not math.isfinite(value):
            continue
        if len(learnt) < first:
            learnt.append(value)
            level = median(learnt) if robust else fmean(learnt)
            if robust:
                spread = 1.4826 * median(abs(x - level) for x in learnt)
            else:
                spread = pstdev(learnt) if all(map(math.isfinite, learnt)) else math.nan
            spread = max(spread, floor * abs(level)) or 1e-300
            continue
        z = min(clip, max(-clip, (value - level) / spread))
        up = up + z - slack
        down = down - z - slack
        if bounded:
            up, down = max(0.0, up), max(0.0, down)
        if up > limit or (both and down > limit):
            alarms.append((position - offset, sign * (1 if up > limit else -1)))
            if once:
                break
            if not keeps_sum:
                up = down = 0.0
            if relearn:
                learnt = []
    return alarms


def takes_three_deviations(values, first):
    level = median(values[:first])
    spread = 1.4826 * median(abs(x - level) for x in values[:first])
    return [
        (i, 1 if x > level else -1)
        for i, x in enumerate(values)
        if i >= first and abs(x - level) > 3 * spread
    ]


def takes_eight_deviations(values, first):
    level = median(values[:first])
    spread = 1.4826 * median(abs(x - level) for x in values[:first])
    for i, x in enumerate(values[first:], first):
        if abs(x - level) > 8 * spread:
            return [(i, 1 if x > level else -1)]
    return []


def takes_five_deviations(values, first):
    level = median(values[:first])
    spread = 1.4826 * median(abs(x - level) for x in values[:first])
    for i, x in enumerate(values[first:], first):
        if abs(x - level) > 5 * spread:
            return [(i, 1 if x > level else -1)]
    return []


def has_no_slack(values, first):
    return _cusum(values, first, slack=0.0)


def has_a_low_limit(values, first):
    return _cusum(values, first, limit=4.0)


def has_a_high_limit(values, first):
    return _cusum(values, first, limit=80.0)


def has_too_much_slack(values, first):
    return _cusum(values, first, slack=1.5)


def does_not_clip(values, first):
    return _cusum(values, first, clip=math.inf)


def sees_rises_only(values, first):
    return _cusum(values, first, both=False)


def sums_without_a_bottom(values, first):
    return _cusum(values, first, bounded=False)


def takes_mean_and_deviation(values, first):
    return _cusum(values, first, robust=False)


def lets_nan_in(values, first):
    return _cusum(values, first, finite=False)


def has_no_floor(values, first):
    return _cusum(values, first, floor=10.0)


def keeps_the_old_level(values, first):
    return _cusum(values, first, relearn=False)


def keeps_the_sum(values, first):
    return _cusum(values, first, relearn=False, keeps_sum=True)


def tells_the_opposite(values, first):
    return _cusum(values, first, sign=-1)


def counts_from_the_first(values, first):
    return _cusum(values, first, offset=first)


def tells_where_it_began(values, first):
    alarms, learnt, began, up, down = [], [], 0, 0.0, 0.0
    for position, value in enumerate(values):
        if not math.isfinite(value):
            continue
        if len(learnt) < first:
            learnt.append(value)
            level = median(learnt)
            spread = max(1.4826 * median(abs(x - level) for x in learnt), 0.001 * level)
            up, down, began = 0.0, 0.0, position
            continue
        z = min(4.0, max(-4.0, (value - level) / spread))
        began = position if max(up, down) == 0 else began
        up, down = max(0.0, up + z - 0.5), max(0.0, down - z - 0.5)
        if max(up, down) > 20:
            alarms.append((began, 1 if up > down else -1))
            learnt = []
    return alarms


def foresees(values, first):
    return [(at - 5, sign) for at, sign in _cusum(values, first)]


def counts_finite_values(values, first):
    return _cusum([value for value in values if math.isfinite(value)], first)


def clips_nan(values, first):
    clean = [value for value in values[:first] if math.isfinite(value)]
    level = median(clean)
    spread = 1.4826 * median(abs(x - level) for x in clean)
    return _cusum([v if math.isfinite(v) else level + 4 * spread for v in values], first)


def knows_the_spread(values, first):
    return _cusum(values, first, floor=0.05)


def stops_after_one(values, first):
    return _cusum(values, first, once=True)


def follows_the_level(values, first):
    level, spread, up, down, out = median(values[:first]), None, 0.0, 0.0, []
    spread = 1.4826 * median(abs(x - level) for x in values[:first])
    for i, x in enumerate(values[first:], first):
        z = max(-4.0, min(4.0, (x - level) / spread))
        up, down = max(0.0, up + z - 0.5), max(0.0, down - z - 0.5)
        if max(up, down) > 20:
            out.append((i, 1 if up > down else -1))
            up = down = 0.0
        level += 0.2 * (x - level)
    return out


def learns_from_all_before(values, first):
    """Mean and deviation of everything so far, and three standard errors of the last thirty."""
    out = []
    for i in range(first + 30, len(values), 10):
        before, last = values[: i - 30], values[i - 30 : i]
        z = (fmean(last) - fmean(before)) / (pstdev(before) / math.sqrt(30) or 1.0)
        if abs(z) > 3:
            out.append((i, 1 if z > 0 else -1))
    return out


def returns_positions(values, first):
    return [at for at, _ in _cusum(values, first)]


def two_windows(values, first):
    """The mean of the last sixty, clipped, beside the level of the first values."""
    alarms, learnt, recent, reference = [], [], [], None
    for i, x in enumerate(values):
        if not np.isfinite(x):
            continue
        if reference is None:
            learnt.append(x)
            if len(learnt) == first:
                level = statistics.median(learnt)
                spread = 1.4826 * statistics.median(abs(y - level) for y in learnt)
                reference = level, max(spread, abs(level) / 1000)
            continue
        z = float(np.clip((x - reference[0]) / reference[1], -4, 4))
        recent = [*recent, z][-64:]
        # Of any number of the newest ones, the sum beyond what chance makes of it.
        tail = np.cumsum(recent[::-1])
        excess = np.abs(tail) - 0.5 * np.arange(1, len(tail) + 1)
        if excess.max() > 18:
            alarms.append((i, int(np.sign(tail[excess.argmax()]))))
            learnt, recent, reference = [], [], None
    return alarms


def other_constants(values, first):
    return tuple(_cusum(values, first, slack=0.45, limit=23.0, clip=3.5))


MUTANTS = {
    takes_three_deviations: "nothing changes there",
    takes_eight_deviations: "six deviations are plain to see",
    takes_five_deviations: "no single value shows a rise",
    has_no_slack: "nothing changes there",
    has_a_low_limit: "nothing changes there",
    has_a_high_limit: "are enough",
    has_too_much_slack: "tells nothing",
    does_not_clip: "a single pause is no lasting rise",
    sees_rises_only: "a level can fall as well",
    sums_without_a_bottom: "are enough",
    takes_mean_and_deviation: "median and MAD",
    lets_nan_in: "a value that is no number",
    has_no_floor: "tells nothing",
    keeps_the_old_level: "again and again",
    keeps_the_sum: "again and again",
    tells_the_opposite: "the direction is wrong",
    counts_from_the_first: "not told if the values end there",
    tells_where_it_began: "not where it began",
    foresees: "not told if the values end there",
    counts_finite_values: "not told if the values end there",
    clips_nan: "a value that is no number",
    knows_the_spread: "are enough",
    stops_after_one: "a later change is not told",
    follows_the_level: "series",
    learns_from_all_before: "nothing changes there",
    returns_positions: "asked for is a list of (position, +1 or -1)",
}
RIGHT = (two_windows, other_constants)
