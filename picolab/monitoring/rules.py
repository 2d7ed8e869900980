"""Decision rules: is this point, this level, this rank out of the ordinary? A page of small ones,
since no single test fits all signals.

    a value that is no number          `non_finite`   each rank's own, before it is reduced
    one point far above its like       `Spike`        median and MAD of logs, trend taken out
    a level that has risen             `Drift`        CUSUM of standardised, clipped values
    something that is so again and again   `Often`    k of the last n
    a level that rises and rises       `Slope`        medians of blocks, every one above the last
    a fall that has ended, or turned   `Plateau`, `Divergence`
    ranks that did not do the same     `odd_calls`
    nothing at all                     `Silence`

Two habits are in all of them. A point that was flagged does not enter what later points are judged
by: a detector that learns the fault stops seeing it. And what is judged is a ratio (a logarithm),
or in units of the signal's own spread, so that no rule knows how long a step takes here.

Median and MAD in place of mean and standard deviation: one outlier moves a mean and blows up a
deviation, and hides the next one; half of the window must be bad before a median is.
"""

import itertools
import math
import statistics
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence

MAD_TO_SIGMA = 1.4826  # of a normal distribution


def non_finite(values: Mapping[int, float | None]) -> list[int]:
    """The ranks whose value is NaN or infinite. None is no value."""
    return [r for r, value in values.items() if value is not None and not math.isfinite(value)]


class Spike:
    """Is a value far above what those before it lead to expect?

    Far: more than `sigmas` spreads *and* more than `factor` times. The trend is that of the
    window's two halves: a loss that falls fast is no spread. What goes on for `most` points is no
    spike but a new level, and the window begins anew."""

    def __init__(self, sigmas=8.0, factor=1.1, window=64, least=16, most=16):
        self.sigmas, self.factor, self.least, self.most = sigmas, factor, least, most
        self._logs: deque[float] = deque(maxlen=window)
        self._in_a_row = 0
        self.times: float | None = None
        """The newest value, as so many times what was expected; None of too few before it."""

    def add(self, value: float) -> bool:
        self.times = None
        if not math.isfinite(value) or value <= 0:
            return False  # no number, or no positive one: another rule's
        if self.above(math.log(value)):
            self._in_a_row += 1
            if self._in_a_row < self.most:
                return True  # and it does not enter the window
            self._logs.clear()
        self._in_a_row = 0
        self._logs.append(math.log(value))
        return False

    def above(self, log: float) -> bool:
        if len(self._logs) < self.least:
            return False
        logs, half = list(self._logs), len(self._logs) // 2
        slope = (statistics.median(logs[-half:]) - statistics.median(logs[:half])) / (
            len(logs) - half
        )
        flat = [x - slope * i for i, x in enumerate(logs)]
        middle, sigma = robust(flat)
        # A fall gets slower, and a line through it would expect too little.
        expected = max(middle + slope * len(logs), self.recent(logs))
        excess = log - expected
        self.times = math.exp(min(excess, 700.0))  # (beyond it a float ends)
        return excess > max(self.sigmas * sigma, math.log(self.factor))

    @staticmethod
    def recent(logs: list[float]) -> float:
        return statistics.median(logs[-8:])


def robust(values: Sequence[float]) -> tuple[float, float]:
    """Middle and spread: the median, and the median distance from it, scaled to a sigma."""
    middle = statistics.median(values)
    return middle, MAD_TO_SIGMA * statistics.median(abs(x - middle) for x in values)


def quartile_sigma(values: Iterable[float]) -> float:
    """Spread by the quartiles, as a sigma. (Of values that go up and down between two levels the
    MAD is 0 or everything, depending on which of them has one more.)"""
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 1.349


class Drift:
    """Has the level risen? CUSUM (Page 1954): what lies above the level, less half a sigma of
    slack, is added up, and never falls below 0. Small rises are found by their duration.

    The first `least` values say what the level is. z is clipped: one pause of the garbage collector
    must not be as good as a lasting rise. Once it has fired, the new level is the level."""

    def __init__(self, slack=0.5, limit=20.0, clip=4.0, least=30, spread=0.01):
        self.slack, self.limit, self.clip = slack, limit, clip
        self.least, self.spread = least, spread
        self._first: list[float] = []
        self.sum = 0.0

    def add(self, value: float) -> bool:
        if not math.isfinite(value) or value <= 0:
            return False
        if len(self._first) < self.least:
            self._first.append(math.log(value))
            return False
        middle, sigma = robust(self._first)
        z = (math.log(value) - middle) / max(sigma, self.spread)
        self.sum = max(0.0, self.sum + min(z, self.clip) - self.slack)
        if self.sum <= self.limit:
            return False
        self._first, self.sum = [], 0.0
        return True


class Often:
    """Has it been so in k of the last n? True once, until it has been rare again."""

    def __init__(self, k=8, n=10):
        self.k = k
        self._last: deque[bool] = deque(maxlen=n)
        self.going_on = False

    def add(self, so: bool) -> bool:
        self._last.append(so)
        count = sum(self._last)
        began = count >= self.k and not self.going_on
        self.going_on = count >= self.k or (self.going_on and count > self.k // 2)
        return began


class Slope:
    """Does a level rise without end? The medians of `blocks` blocks, every one above the last, by
    `least` a point in the middle and by half of that at least. One step up, however high, is no
    slope; nor is what starts up."""

    def __init__(self, least: float, blocks=8, size=4):
        self.least, self.blocks, self.size = least, blocks, size
        self._values: deque[float] = deque(maxlen=blocks * size)

    def add(self, value: float) -> float | None:
        """The rise per point, if it is one. Then the window begins anew."""
        self._values.append(value)
        if len(self._values) < self._values.maxlen:
            return None
        values, size = list(self._values), self.size
        medians = [statistics.median(values[i : i + size]) for i in range(0, len(values), size)]
        rises = [after - before for before, after in itertools.pairwise(medians)]
        # The median rise: a single leap is one of them, and moves it little.
        slope = statistics.median(rises) / size
        if min(rises) < self.least * size / 2 or slope < self.least:
            return None
        self._values.clear()
        return slope


class Plateau:
    """Has a loss stopped falling? Its median over the last `window` points is not below that of
    the `window` before by more than `least`."""

    def __init__(self, window=200, least=0.002):
        self.window, self.least = window, least
        self._values: deque[float] = deque(maxlen=2 * window)

    def add(self, value: float) -> bool:
        if math.isfinite(value):
            self._values.append(value)
        if len(self._values) < 2 * self.window:
            return False
        values = list(self._values)
        before, now = (
            statistics.median(part) for part in (values[: self.window], values[self.window :])
        )
        if now < before * (1 - self.least):
            return False
        self._values.clear()
        return True


class Divergence:
    """Does a loss rise again? Its median over the last `window` points is `factor` times the lowest
    such median so far. A spike is over before a median notices."""

    def __init__(self, factor=1.15, window=32):
        self.factor = factor
        self._values: deque[float] = deque(maxlen=window)
        self._lowest = math.inf

    def add(self, value: float) -> bool:
        if math.isfinite(value):
            self._values.append(value)
        if len(self._values) < self._values.maxlen:
            return False
        now = statistics.median(self._values)
        self._lowest = min(self._lowest, now)
        if now < self.factor * self._lowest:
            return False
        self._lowest = now
        self._values.clear()
        return True


def dead_experts(loads: Sequence[int]) -> list[int]:
    """The experts that get less than a tenth of the mean load."""
    mean = sum(loads) / len(loads)
    return [i for i, load in enumerate(loads) if load < 0.1 * mean]


def odd_calls(
    calls: Mapping[int, Iterable[tuple[Hashable, Hashable]]],
) -> dict[Hashable, dict[int, tuple[Hashable, ...]]]:
    """Groups whose members did not do the same: group -> rank -> what it did.

    calls: rank -> (group, what) of each of its collectives in a step. All ranks of a group run the
    same program, so the numbers and kinds of their collectives agree, and where they do not, a
    wrong pair may have met in silence. A rank that did none over a group of others' is odd, too:
    so a group is a tuple whose last element is its ranks."""
    done: dict[Hashable, dict[int, list]] = {}
    for rank, of_rank in calls.items():
        for group, what in of_rank:
            members = done.setdefault(group, {r: [] for r in group[-1] if r in calls})
            members.setdefault(rank, []).append(what)
    found = {g: {r: tuple(sorted(w, key=str)) for r, w in of.items()} for g, of in done.items()}
    return {group: of for group, of in found.items() if len(set(of.values())) > 1}


class Silence:
    """Has a run been quiet for too long? For longer than `times` the long steps it has had (the
    99th percentile of the last hundred), and than `at_least_s` seconds.

    A rank's record of its step is its heartbeat: nothing has to be sent for the purpose."""

    def __init__(self, at_least_s=5.0, times=20.0):
        self.at_least_s, self.times = at_least_s, times
        self._seconds: deque[float] = deque(maxlen=100)
        self.heard: float | None = None

    def hear(self, now: float, step_s: float | None = None) -> None:
        self.heard = now
        if step_s is not None:
            self._seconds.append(step_s)

    @property
    def limit_s(self) -> float:
        longest = sorted(self._seconds)[int(0.99 * len(self._seconds)) :][:1] or [0.0]
        return max(self.at_least_s, self.times * longest[0])

    def overdue(self, now: float) -> float | None:
        """The seconds since something was heard, if they are too many."""
        if self.heard is None or now - self.heard <= self.limit_s:
            return None
        return now - self.heard
