"""The clock: when each action of a schedule starts and ends, if actions and links cost this much.

A rank works through its actions in their order. An action starts when the rank is free and what
it needs has arrived:

    start(a) = max(end of the rank's action before, arrival of needs(a))
    end(a)   = start(a) + cost of a at its stage
    leave(a) = max(end(a), when the link is free again)
    arrival  = leave(a) + transfer + latency

A full B costs backward_input + backward_weight; if the schedule splits it, B costs the first and
W the second. A link, one for each pair of ranks and direction, is busy for `transfer` a message
and hands it over `latency` later; sending and receiving cost the ranks nothing (buffered sends
that overlap with the work). Stages on the same rank hand over at once.

With equal costs f = F + B on every stage and free links, GPipe and 1F1B take exactly
(m + p - 1) f, of which m f is ideal: the closed forms of `costs.bubble_of_total` and
`costs.bubble_of_ideal`, which tests/unit/schedules/test_simulator.py asks for without a tolerance,
and test_zoo.py those of the other schedules (`costs.bubble`).

What it leaves out: that messages of different kinds share a wire, that communication takes cores
from the work, and the optimizer.
"""

import math
from collections.abc import Sequence
from numbers import Real
from typing import NamedTuple

from picolab.schedules.ir import Action, Schedule
from picolab.schedules.timeline import Span, Timeline, Transfer
from picolab.schedules.validator import validate

Cost = Real | Sequence[Real]


class Wait(NamedTuple):
    """A rank had nothing to do from start to end."""

    rank: int
    start: Real
    end: Real
    action: Action | None
    """What it waited for; None: nothing was left to do."""
    source: int | None
    """The rank that it waited for."""


class Simulation(Timeline):
    """A timeline that was computed, and the schedule it is of."""

    simulated = True

    def __init__(self, schedule: Schedule, spans: list[Span], transfers: list[Transfer]):
        super().__init__(spans, ranks=schedule.ranks, transfers=transfers, name=schedule.name)
        self.schedule = schedule

    def waits(self) -> list[Wait]:
        """Who waited when, for what, from whom: the gaps of every rank, which add up to its idle
        time. A rank that is free starts its next action at once unless what that needs is missing,
        so there is always one answer."""
        found = []
        for rank in range(self.ranks):
            free = self.start
            for span in (span for span in self.spans if span.rank == rank):
                if span.start > free:
                    needed = self.schedule.needs(span.action)
                    source = self.schedule.rank_of(needed.stage)
                    found.append(Wait(rank, free, span.start, needed, source))
                free = span.end
            if self.start + self.makespan > free:
                found.append(Wait(rank, free, self.start + self.makespan, None, None))
        return found


def simulate(
    schedule: Schedule,
    *,
    forward: Cost = 1,
    backward_input: Cost = 1,
    backward_weight: Cost = 1,
    transfer: Real = 0,
    latency: Real = 0,
) -> Simulation:
    """Run the clock. Costs are numbers in any one unit, or one number a stage.

    Whole numbers and Fractions give exact times. Raises ScheduleError for a schedule that cannot
    work, ValueError for a cost that is none.
    """
    validate(schedule)
    costs = {
        "F": _per_stage("forward", forward, schedule.stages),
        "B": _per_stage("backward_input", backward_input, schedule.stages),
        "W": _per_stage("backward_weight", backward_weight, schedule.stages),
    }
    for name, value in (("transfer", transfer), ("latency", latency)):
        _check(name, value)
    if not schedule.splits_backward:
        costs["B"] = [i + w for i, w in zip(costs["B"], costs["W"])]

    arrived: dict[Action, Real] = {}  # action -> when its result is where it is needed
    link_free: dict[tuple[int, int], Real] = {}
    rank_free: list[Real] = [0] * schedule.ranks
    position = [0] * schedule.ranks
    spans, transfers = [], []
    # Any order that respects the needs gives the same times: a rank and a link each serve one
    # rank's program order. So go round the ranks, each as far as it gets.
    while len(spans) < sum(map(len, schedule.actions)):
        before = len(spans)
        for rank, row in enumerate(schedule.actions):
            while position[rank] < len(row):
                action = row[position[rank]]
                needed = schedule.needs(action)
                if needed and needed not in arrived:
                    break
                start = max(rank_free[rank], arrived[needed]) if needed else rank_free[rank]
                end = start + costs[action.kind][action.stage]
                spans.append(Span(rank, action, start, end))
                rank_free[rank] = end
                position[rank] += 1
                target = schedule.feeds(action)
                if target is None:
                    continue
                to = schedule.rank_of(target.stage)
                arrived[action] = end
                if to != rank:
                    leave = max(end, link_free.get((rank, to), 0))
                    link_free[rank, to] = leave + transfer
                    arrived[action] = leave + transfer + latency
                    transfers.append(Transfer(rank, to, action, leave, arrived[action]))
        assert len(spans) > before, "a valid schedule always has an action that can run"
    return Simulation(schedule, spans, transfers)


def _per_stage(name: str, cost: Cost, stages: int) -> list[Real]:
    if isinstance(cost, Real):
        values = [cost] * stages
    else:
        values = list(cost)
        if len(values) != stages:
            raise ValueError(f"{name} has {len(values)} costs for {stages} stages: give one each")
    for value in values:
        _check(name, value)
    return values


def _check(name: str, value: Real) -> None:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} costs {value!r}; a cost is a number from 0")
