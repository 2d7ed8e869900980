"""A number by step that grows with a run, drawn again and again: a picture of 100,000 steps has as
many points as one of 600, and is made as fast.

`Binned` holds values by step in a bounded number of bins. When there are too many, each two
neighbours become one, and from then on a bin is twice as wide; what a bin keeps of its values is
its caller's choice. `Series` keeps every value by step, and beside them, for the picture, the
smallest and the largest of each bin: a spike of one step is never lost, whatever the run's length.
(A mean, or every hundredth step, would lose it.)

Leaves out: the exact step widths of `run_state.decimate`, which looks at all values each time.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

BINS = 300  # of a line: up to 600 points


class Binned:
    """Values by step, in at most `most` bins. merge: (older, newer) -> what is kept of both."""

    def __init__(self, most: int, merge: Callable[[Any, Any], Any]):
        self.most, self._merge = most, merge
        self.width = 1  # of a bin, in steps
        self._bins: dict[int, Any] = {}

    def add(self, step: float, value: Any) -> None:
        self._put(int(step // self.width), value)
        while len(self._bins) > self.most:
            self.width *= 2
            bins, self._bins = self._bins, {}
            for place, kept in bins.items():
                self._put(place // 2, kept)

    def _put(self, place: int, value: Any) -> None:
        there = place in self._bins
        self._bins[place] = self._merge(self._bins[place], value) if there else value

    def items(self) -> list[tuple[int, Any]]:
        """(first step, what is kept) of each bin, in order."""
        return [(place * self.width, kept) for place, kept in sorted(self._bins.items())]

    def copy(self) -> "Binned":
        other = Binned(self.most, self._merge)
        other.width, other._bins = self.width, dict(self._bins)
        return other

    def __len__(self) -> int:
        return len(self._bins)


def largest_of_each(one: Mapping, other: Mapping) -> dict:
    """For values by rank: how late each was at most."""
    return {key: max(of[key] for of in (one, other) if key in of) for key in {**one, **other}}


class Smooth:
    """Bias-corrected exponential moving average; NaN and infinity are passed over."""

    def __init__(self, weight: float = 0.9):
        self._weight, self._total, self._norm, self.value = weight, 0.0, 0.0, math.nan

    def add(self, value: float) -> float:
        if math.isfinite(value):
            self._total = self._weight * self._total + (1 - self._weight) * value
            self._norm = self._weight * self._norm + 1 - self._weight
        self.value = self._total / self._norm if self._norm else value
        return self.value


class Series(Mapping):
    """step -> value, the first that was told of it; and the points of a picture of them."""

    def __init__(self, values: Mapping[float, float] | None = None):
        self._values: dict[float, float] = {}
        self.clear()
        for step, value in (values or {}).items():
            self.add(step, value)

    def clear(self) -> None:
        self._values.clear()
        self._begin()

    def _begin(self) -> None:
        self._points, self._smoothed = Binned(BINS, _ends), Binned(BINS, _ends)
        self._smooth, self.last = Smooth(), -math.inf

    def add(self, step: float, value: float) -> None:
        if step in self._values:
            return
        self._values[step] = value
        if step > self.last:
            self._draw(step, value)
        else:  # told late, and what follows it was smoothed without it
            self._values = dict(sorted(self._values.items()))
            self._redraw()

    def forget(self, step: float) -> None:
        """From this step on."""
        self._values = {known: value for known, value in self._values.items() if known < step}
        self._redraw()

    def _redraw(self) -> None:
        self._begin()
        for step, value in self._values.items():
            self._draw(step, value)

    def _draw(self, step: float, value: float) -> None:
        self.last = step
        smooth = self._smooth.add(value)
        self._points.add(step, ((step, value), (step, value)))
        self._smoothed.add(step, ((step, smooth), (step, smooth)))

    @property
    def now(self) -> float:
        """The newest, smoothed."""
        return self._smooth.value

    def points(self) -> tuple[list, list]:
        """At most 2 * BINS and the newest: of each bin the smallest and the largest."""
        return self._of(self._points, self._values.get(self.last))

    def smoothed(self) -> tuple[list, list]:
        return self._of(self._smoothed, self.now)

    def _of(self, binned: Binned, newest: float | None) -> tuple[list, list]:
        found = dict(point for _, ends in binned.items() for point in sorted(ends))
        if found:
            found[self.last] = newest
        return list(found), list(found.values())

    def copy(self) -> "Series":
        other = Series()
        other._values, other.last = dict(self._values), self.last
        other._points, other._smoothed = self._points.copy(), self._smoothed.copy()
        other._smooth = Smooth()
        vars(other._smooth).update(vars(self._smooth))
        return other

    def __getitem__(self, step: float) -> float:
        return self._values[step]

    def __iter__(self) -> Iterator[float]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


def _ends(one: tuple, other: tuple) -> tuple:
    """The lowest and the highest of these points; one that is no number only where all are."""
    points = [*one, *other]
    finite = [point for point in points if math.isfinite(point[1])] or points
    return min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])
