"""The pipeline bubble: the time in which a rank has nothing to do, and what is held meanwhile.

p ranks, m micro-batches. On every rank, of all its stages together, a micro-batch takes F forward,
B for the gradient of its input and W for that of the weights: f = F + B + W. Links cost nothing.
The last rank gets its first micro-batch after p - 1 forwards, and the first rank its last gradient
p - 1 backwards after that. So GPipe and 1F1B both take (m + p - 1) f, where m f would be ideal, and
each rank idles for (p - 1) f. The others idle less:

    schedule       each rank idles for (p - 1) times   where
    gpipe, 1f1b    F + B + W
    interleaved    (F + B + W) / v                     v stages a rank; p divides m
    zb-h1          max(F + B - W, F, B)                m >= p
    zb-v           B / 2                               m >= 2p - 1, and max(F, W) <= B <= F + W
    dualpipe-v     F / 2                               m >= 2p, and F = B = W

"The bubble" is that idle time (`bubble`) over one of the two; both are in print:

    bubble_of_total   (p-1)/(m+p-1)   the share of the time that is idle; never reaches 1
    bubble_of_ideal   (p-1)/m         how much longer than ideal; may exceed 1

(of GPipe and 1F1B, whatever F, B and W cost). Equal for these two is the bubble; what they hold
(`in_flight`) is not. The simulator of `picolab.schedules` gives the same numbers exactly, which its
tests ask for.
"""

from fractions import Fraction
from numbers import Rational, Real

from picolab.specs.schedule_name import ScheduleName


def bubble(
    schedule: str,
    p: int,
    m: int,
    *,
    forward: Real = 1,
    backward_input: Real = 1,
    backward_weight: Real = 1,
) -> Real:
    """How long each rank idles: the makespan less the ideal, in the unit of the costs, which are of
    a micro-batch on a rank (all its stages together).

    Sources: GPipe, arXiv 1811.06965, section 2.3; 1F1B and interleaved, 2104.04473, section 2.2;
    ZB-H1, 2401.10241, table 1, which has F + B - W: a W that is longer than F or B fills its gap
    more than once, and the rest of the formula is read off the clock. ZB-V: section 6, where F = B
    = W has no bubble *between* a rank's actions: what is left is the start, p - 1 forwards of one
    stage. The same holds of DualPipeV here, since B hands its gradient on before W. Its authors
    count a whole backward before that and have (p-1)(F&B + 2B + W - 3W)/2 (github.com/deepseek-ai/
    DualPipe), an upper bound.

    Raises ValueError where the formula does not hold.
    """
    _check(p, m)
    name, (F, B, W) = ScheduleName.parse(schedule), (forward, backward_input, backward_weight)
    name.check_micro_batches(p, m)
    family, v = name
    if family in ("gpipe", "1f1b", "interleaved"):
        return (p - 1) * _over(F + B + W, v)
    if family == "zb-h1":
        _holds(schedule, m >= p, f"of {p} micro-batches or more, not of {m}")
        return (p - 1) * max(F + B - W, F, B)
    _holds(schedule, m >= 2 * p - 1, f"of {2 * p - 1} micro-batches or more, not of {m}")
    if family == "zb-v":
        _holds(schedule, max(F, W) <= B <= F + W, "where max(F, W) <= B <= F + W")
        return (p - 1) * _over(B, v)
    _holds(schedule, F == B == W, "where F = B = W")
    return (p - 1) * _over(F, v)


def bubble_of_total(p: int, m: int, schedule: str = "1f1b", **costs: Real) -> float:
    """Idle time over total time: (p-1)/(m+p-1) for GPipe and 1F1B. costs: see `bubble`.

    Source: GPipe, arXiv 1811.06965, section 2.3 (K partitions, M micro-batches).
    """
    idle = bubble(schedule, p, m, **costs)
    return float(_over(idle, m * _work(**costs) + idle))


def bubble_of_ideal(p: int, m: int, schedule: str = "1f1b", **costs: Real) -> float:
    """Idle time over ideal time: (p-1)/m for GPipe and 1F1B. costs: see `bubble`.

    Source: Narayanan et al., arXiv 2104.04473, section 2.2.1 (there t_pb / t_id).
    """
    return float(_over(bubble(schedule, p, m, **costs), m * _work(**costs)))


def in_flight(schedule: str, p: int, m: int, rank: int) -> int:
    """The most micro-batches whose activations a rank holds at once, of all its stages together:
    with v stages a rank each is a v-th of what a micro-batch keeps on the rank.

        gpipe        m                                every forward comes before the first backward
        1f1b         min(p - r, m)                    the ranks behind it, and itself
        interleaved  min((v-1)p + 2(p-1-r) + 1, v m)  its warm-up, and the one that follows it
        zb-h1        min(p, m)                        p - r that wait for B, r that wait for W
        zb-v         min(2p, m + 1 + r, 2m)           of halves: as much as 1f1b's rank 0
        dualpipe-v   2p + 1                           of halves

    Sources: arXiv 2104.04473, section 2.2.1, which bounds 1F1B's by p; by rank it is the warm-up of
    p - 1 - r forwards and the one that follows it. 2401.10241, section 2.2 (ZB-H1) and 6 (ZB-V).
    """
    _check(p, m)
    if not _whole(rank) or not 0 <= rank < p:
        raise ValueError(f"rank {rank!r} is not one of {p} stages' ranks, 0 to {p - 1}")
    name = ScheduleName.parse(schedule)
    name.check_micro_batches(p, m)
    v = name.stages_a_rank
    return {
        "gpipe": m,
        "1f1b": min(p - rank, m),
        "interleaved": min((v - 1) * p + 2 * (p - 1 - rank) + 1, v * m),
        "zb-h1": min(p, m),
        "zb-v": min(2 * p, m + 1 + rank, 2 * m),
        "dualpipe-v": 2 * p + 1,
    }[name.family]


def _work(forward: Real = 1, backward_input: Real = 1, backward_weight: Real = 1) -> Real:
    return forward + backward_input + backward_weight


def _over(part: Real, whole: Real) -> Real:
    """Exact if both are; 0 of nothing is 0."""
    if not whole:
        return 0
    exact = isinstance(part, Rational) and isinstance(whole, Rational)
    return Fraction(part) / Fraction(whole) if exact else part / whole


def _holds(schedule: str, holds: bool, where: str) -> None:
    if not holds:
        raise ValueError(
            f"the bubble of {schedule} has a closed form {where}; simulate it: "
            "schedules.simulate(schedules.make(...))"
        )


def _check(p: int, m: int) -> None:
    for value, noun in ((p, "stages"), (m, "micro-batches")):
        if not _whole(value) or value < 1:
            raise ValueError(f"{noun}: a whole number from 1, not {value!r}")


def _whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
