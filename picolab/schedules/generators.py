"""The two schedules every other one is measured against: GPipe and 1F1B.

Both keep a rank idle for p - 1 micro-batches' worth of work, so their bubble is the same. They
differ in what has to be kept: a forward's activations are held until its backward.

    GPipe   all forwards, then all backwards        rank r holds m
    1F1B    a backward as soon as there is one      rank r holds min(p - r, m)

In both, B is the whole backward, and stage s is on rank s.
"""

from collections.abc import Callable

from picolab.schedules.ir import Action, Schedule, check_sizes


def gpipe(stages: int, micro_batches: int) -> Schedule:
    """All forwards, then all backwards, both in the order of the micro-batches.

    The paper draws the backwards in reverse order; neither bubble nor memory depends on it. Any
    m >= 1 works. Source: arXiv 1811.06965, section 2.3. Twin in torch: ScheduleGPipe, compared in
    tests/distributed/schedules/test_torch_order.py.
    """
    check_sizes(stages, micro_batches)
    rows = [
        [Action(kind, stage, i) for kind in "FB" for i in range(micro_batches)]
        for stage in range(stages)
    ]
    return Schedule("gpipe", stages, micro_batches, rows)


def one_f_one_b(stages: int, micro_batches: int) -> Schedule:
    """One forward, one backward, after a warm-up of p - 1 - r forwards.

    The last stage can run a micro-batch's backward right after its forward. The stage k before it
    starts with k forwards, which is how long the first gradient takes to come back, and then
    alternates: each backward frees what the next forward will hold. Any m >= 1 works; with fewer
    micro-batches than stages nobody's warm-up is longer than m, and the order is GPipe's on the
    ranks before p - m. (torch asks for m >= p.)

    Source: arXiv 2104.04473, section 2.2 (PipeDream-Flush). Twin in torch: Schedule1F1B, compared
    in tests/distributed/schedules/test_torch_order.py. Its *runtime loop*, that is: what torch
    2.13 prints as its order counts the forwards from 1 on the last rank.
    """
    check_sizes(stages, micro_batches)
    rows = []
    for stage in range(stages):
        warmup = min(stages - 1 - stage, micro_batches)
        row = [Action("F", stage, i) for i in range(warmup)]
        for i in range(warmup, micro_batches):
            row += [Action("F", stage, i), Action("B", stage, i - warmup)]
        row += [Action("B", stage, i) for i in range(micro_batches - warmup, micro_batches)]
        rows.append(row)
    return Schedule("1f1b", stages, micro_batches, rows)


SCHEDULES: dict[str, Callable[[int, int], Schedule]] = {"1f1b": one_f_one_b, "gpipe": gpipe}


def make(name: str, stages: int, micro_batches: int) -> Schedule:
    """The schedule of that name. Raises ValueError for a name or a size that does not exist."""
    if name not in SCHEDULES:
        raise ValueError(f"schedule {name!r} is not known; schedules are {', '.join(SCHEDULES)}")
    return SCHEDULES[name](stages, micro_batches)
