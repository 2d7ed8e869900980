"""When each rank did what: spans, and what follows from them.

The same numbers are asked of a simulation and of a measurement, so the same class answers them.
With p ranks, `makespan` the time from the first start to the last end, and `busy` a rank's time in
its own spans:

    ideal             mean of busy over the ranks: the work, divided evenly, without a gap
    bubble_of_total   (makespan - ideal) / makespan     the share of all rank-time that is idle
    bubble_of_ideal   (makespan - ideal) / ideal        how much longer than it could be

Both are called "the bubble" in print; they differ by a factor of makespan / ideal. Where stages
cost unequally, the time in which others wait for the slowest counts as bubble too.

All of it is sums, differences and one division, so numbers that come as int or Fraction stay
exact: a bubble of 3/11 is Fraction(3, 11).
"""

import math
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from functools import cached_property
from numbers import Rational, Real
from typing import NamedTuple

from picolab.schedules.ir import KINDS, Action

_FILL = {"F": "-", "B": "=", "W": "~"}


class Span(NamedTuple):
    """A rank was busy with an action from start to end (seconds, or units of a simulation)."""

    rank: int
    action: Action
    start: Real
    end: Real


class Transfer(NamedTuple):
    """A result on its way: it left the source when it was sent, and can be used at `end`."""

    source: int
    target: int
    action: Action  # that made it
    start: Real
    end: Real


class Timeline:
    """The spans of one step of all ranks. Raises ValueError for spans that are not one step's.

    spans       in any order; times may count from any zero, the same one for all ranks
    ranks       if there are ranks without a span
    transfers   if they are known
    name        what the figure calls it
    """

    simulated = False

    def __init__(
        self,
        spans: Iterable[Span],
        *,
        ranks: int | None = None,
        transfers: Iterable[Transfer] = (),
        name: str = "",
    ):
        spans = sorted((Span(*span) for span in spans), key=lambda s: (s.rank, s.start, s.end))
        if not spans:
            raise ValueError("a timeline needs at least one span")
        for span in spans:
            if not (math.isfinite(span.start) and math.isfinite(span.end)):
                raise ValueError(f"{span.action} on rank {span.rank} has a time that is no number")
            if span.end < span.start:
                raise ValueError(f"{span.action} on rank {span.rank} ends before it starts")
        action, times = Counter(Action(*span.action) for span in spans).most_common(1)[0]
        if times > 1:
            raise ValueError(f"{action} appears {times} times: give the spans of one step")
        self.spans = tuple(span._replace(action=Action(*span.action)) for span in spans)
        self.ranks = max(span.rank for span in spans) + 1 if ranks is None else ranks
        if not all(0 <= span.rank < self.ranks for span in spans):
            raise ValueError(f"there are spans of ranks outside 0 to {self.ranks - 1}")
        self.transfers, self.name = tuple(transfers), name

    @cached_property
    def start(self) -> Real:
        return min(span.start for span in self.spans)

    @cached_property
    def makespan(self) -> Real:
        return max(span.end for span in self.spans) - self.start

    @cached_property
    def busy(self) -> tuple[Real, ...]:
        """Each rank's time in its own spans."""
        sums: list[Real] = [0] * self.ranks
        for span in self.spans:
            sums[span.rank] += span.end - span.start
        return tuple(sums)

    @property
    def idle(self) -> tuple[Real, ...]:
        """Each rank's time without a span, from the first start of all to the last end of all."""
        return tuple(self.makespan - busy for busy in self.busy)

    @cached_property
    def ideal(self) -> Real:
        return _ratio(sum(self.busy), self.ranks)

    @property
    def bubble_of_total(self) -> Real:
        return _ratio(self.makespan - self.ideal, self.makespan)

    @property
    def bubble_of_ideal(self) -> Real:
        return _ratio(self.makespan - self.ideal, self.ideal)

    @cached_property
    def kinds(self) -> str:
        """The kinds that occur, in the order F, B, W."""
        present = {span.action.kind for span in self.spans}
        return "".join(kind for kind in KINDS if kind in present)

    @cached_property
    def stages(self) -> tuple[tuple[int, ...], ...]:
        """The stages that each rank works on, in order."""
        own: list[set[int]] = [set() for _ in range(self.ranks)]
        for span in self.spans:
            own[span.rank].add(span.action.stage)
        return tuple(tuple(sorted(stages)) for stages in own)

    @property
    def micro_batches(self) -> int:
        return max(span.action.micro_batch for span in self.spans) + 1

    def in_flight(self, rank: int) -> list[tuple[Real, int]]:
        """(time, micro-batches whose activations the rank holds from then on), time rising.

        Held from the start of F to the end of B, or of W if there is one: the weights' gradient
        needs the activations too.
        """
        last = "W" if "W" in self.kinds else "B"
        steps, held = [(self.start, 0)], 0
        for span in self.spans:  # in the rank's order, so of two at one time the freeing is first
            if span.rank == rank and span.action.kind == "F":
                held += 1
                steps.append((span.start, held))
            elif span.rank == rank and span.action.kind == last:
                held -= 1
                steps.append((span.end, held))
        return steps

    @cached_property
    def peak_in_flight(self) -> tuple[int, ...]:
        """The most micro-batches each rank holds at once."""
        return tuple(max(held for _, held in self.in_flight(r)) for r in range(self.ranks))

    # -- the text form ----------------------------------------------------------------------------

    def __repr__(self) -> str:
        signs = {"F": "F0- forward", "B": "B0= backward", "W": "W0~ weight gradient"}
        legend = ", ".join(signs[kind] for kind in self.kinds)
        several = "; 2F0 is of stage 2" if self._several else ""
        key = f"{legend}{several}, . idle; holds: micro-batches in flight, at most"
        return f"{self.sentence()}\n{self.gantt()}\n{key}"

    def sentence(self) -> str:
        """What was found, in a line."""
        what = f"{self.name}: " if self.name else ""
        how = "simulated" if self.simulated else "measured"
        return (
            f"{what}bubble {float(self.bubble_of_total):.1%} of total, "
            f"{float(self.bubble_of_ideal):.1%} of ideal ({how}); makespan "
            f"{float(self.makespan):.6g}, ideal {float(self.ideal):.6g}"
        ).replace("%", " %")

    def gantt(self, width: int = 120) -> str:
        """The text form: a row a rank, time to the right, at most `width` characters of it."""
        columns, scale = self._scale(width)
        edge = len(f"rank {self.ranks - 1}")
        rows = []
        for rank in range(self.ranks):
            row = ["."] * columns
            for span in self.spans:
                if span.rank == rank:
                    first = round((span.start - self.start) * scale)
                    room = round((span.end - self.start) * scale) - first
                    row[first : first + room] = _cell(span.action, room, self._several)
            label = f"rank {rank}".ljust(edge)
            rows.append(f"{label} |{''.join(row)}| holds {self.peak_in_flight[rank]}")
        return "\n".join(rows)

    @property
    def _several(self) -> bool:
        return any(len(stages) > 1 for stages in self.stages)

    def _scale(self, width: int) -> tuple[int, Real]:
        """Columns, and columns a unit of time: a whole number a step if the times are exact."""
        if not self.makespan:
            return 1, 0
        times = {time - self.start for span in self.spans for time in (span.start, span.end)}
        if all(isinstance(time, Rational) for time in times):
            step = _common_step(times)
            steps = int(self.makespan / step)
            if steps <= width:
                columns = min(width // steps, 4)
                return columns * steps, Fraction(columns) / step
        return width, width / self.makespan


def _cell(action: Action, room: int, with_stage: bool) -> str:
    """The action's characters; where there is no room for the number, its letter still stands."""
    label = f"{action.stage if with_stage else ''}{action.kind}{action.micro_batch}"
    return (label if len(label) <= room else action.kind[:room]).ljust(room, _FILL[action.kind])


def _common_step(times: Iterable[Rational]) -> Fraction:
    """The largest step of which every time is a whole multiple."""
    times = [Fraction(time) for time in times]
    scale = math.lcm(*(time.denominator for time in times))
    return Fraction(math.gcd(*(int(time * scale) for time in times)), scale)


def _ratio(part: Real, whole: Real) -> Real:
    """part / whole, exact if both are; 0 of nothing is 0."""
    if not whole:
        return 0
    if isinstance(part, Rational) and isinstance(whole, Rational):
        return Fraction(part) / Fraction(whole)
    return part / whole
