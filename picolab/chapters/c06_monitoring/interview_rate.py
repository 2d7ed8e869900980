"""Exercise: growth of counters over restarts and gaps, of several ranks together (mon-021).

What is right is known from the histories that are made up here, one walk for each rank. Small
histories come first, each with one difficulty, so that what is told is the mistake and not a sum;
then dozens of random ones.
"""

import random

import torch

from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_growth(readings):
    raise NotImplementedError("return the growth between neighbouring readings, over all ranks")


def solution(readings):
    grown = [0] * (len(readings[0]) - 1)
    for of_rank in readings:
        last = None
        for time, now in enumerate(of_rank):
            if now is None:
                continue
            if last is not None:
                # Less than before: it has begun at 0 again, and all of it is growth.
                grown[time - 1] += now - last if now >= last else now
            last = now
    return grown


def judge(learner, attempt: Attempt) -> None:
    for about, readings in [*_SMALL, *_drawn()]:
        attempt.only()
        attempt.budget(count=0)
        attempt.setting(about)
        got = attempt.call(learner, {"readings": readings})
        if not _compare(attempt, got, readings):
            return
    attempt.only()
    attempt.budget(count=0)


_SMALL = (
    ("one rank that only grows", [[5, 9, 9, 30]]),
    ("two ranks that only grow", [[5, 9, 9, 30], [100, 100, 160, 161]]),
    ("a rank that begins anew", [[100, 160, 220, 30, 90]]),
    ("a rank that begins anew beside one that grows", [[50, 60, 4, 9], [1000, 1010, 1020, 1030]]),
    ("a rank that begins anew and is read at 0", [[7, 0, 0, 3]]),
    ("a reading that is missing", [[10, 25, None, 60, 61]]),
    ("a missing reading beside a rank that grows", [[10, None, 30], [100, 200, 400]]),
    ("two missing readings, and a restart within", [[80, None, None, 20, 50]]),
    ("the first readings are missing", [[None, None, 40, 45]]),
    ("the last reading is missing", [[3, 8, None]]),
    ("a rank that was never read", [[None, None, None], [1, 2, 4]]),
    ("fractions", [[0.5, 2.25, 0.25, 1.0]]),
    ("large numbers", [[0, 10**12 + 1, 10**12 + 4]]),
)


def _drawn():
    draw = random.Random(0)
    for _ in range(40):
        ranks, times = draw.randint(1, 6), draw.randint(2, 14)
        readings = [_history(draw, times) for _ in range(ranks)]
        yield f"random histories, {ranks} ranks at {times} times", readings


def _history(draw: random.Random, times: int) -> list:
    value, row = draw.choice((0, 17, 10**9)), []
    for _ in range(times):
        value = draw.randint(0, 9) if draw.random() < 0.15 else value + draw.choice((0, 3, 250))
        row.append(None if draw.random() < 0.2 else value)
    return row


def _walk(readings, step, start=None, gap=None) -> list[float]:
    """What a walk over each rank gives: step(last, now) is the growth; None begins at `start`; and
    `gap` says where the growth over a gap from `before` to `time` goes, as shares of intervals."""
    grown = [0.0] * (len(readings[0]) - 1)
    for of_rank in readings:
        last = before = None
        for time, now in enumerate(of_rank):
            if now is None:
                continue
            if last is None and start is not None and time:
                last, before = start, time - 1
            if last is not None:
                by = step(last, now)
                shares = gap(before, time) if gap else {time - 1: 1.0}
                for at, share in shares.items():
                    grown[at] += share * by
            last, before = now, time
    return grown


def _right(last, now):
    return now - last if now >= last else now


def _filled(readings, value_of) -> list[list]:
    found = []
    for of_rank in readings:
        row, last = [], None
        for now in of_rank:
            row.append(value_of(last) if now is None else now)
            last = row[-1]
        found.append(row)
    return found


def _summed(readings) -> list[list]:
    return [[sum(now or 0 for now in at) for at in zip(*readings)]]


def _neighbours(readings) -> list[float]:
    """Only where two neighbouring readings are there."""
    return _walk(readings, _right, gap=lambda a, b: {b - 1: 1.0} if b == a + 1 else {})


def _mistakes(readings) -> dict[str, list[list[float]]]:
    spread = {"gap": lambda a, b: {at: 1 / (b - a) for at in range(a, b)}}
    zeros = _filled(readings, lambda last: 0)
    truthy = [[now or None for now in of_rank] for of_rank in readings]
    ranks = len(readings)
    right = _walk(readings, _right)
    return {
        "it was summed over ranks first; a restart or a gap of one looks like one of the sum": [
            _walk(_summed(readings), _right),
        ] if ranks > 1 else [],
        "a fall is counted as negative growth; the counter began at 0 again": [
            _walk(readings, lambda last, now: now - last),
        ],
        "a fall is counted as nothing; what is read then has grown since 0": [
            _walk(readings, lambda last, now: max(0, now - last)),
        ],
        "a fall is counted by its size; what has grown is what is read now": [
            _walk(readings, lambda last, now: abs(now - last)),
        ],
        "a first reading is no growth: what was before is not known": [
            _walk(readings, _right, start=0),
        ],
        "a missing reading was taken for 0": [_walk(zeros, _right)],
        "a reading of 0 was taken for a missing one": [_walk(truthy, _right)],
        "a reading that is as high as the last one is no restart": [
            _walk(readings, lambda last, now: now - last if now > last else now),
        ],
        "growth over a gap is missing: go on from the last reading that was there": [
            _neighbours(readings),
        ],
        "growth over a gap was spread; it belongs to the interval in which a reading is there "
        "again": [_walk(readings, _right, **spread)],
        "growth over a gap went to its first interval; it belongs to that in which a reading is "
        "there again": [_walk(readings, _right, gap=lambda a, b: {a: 1.0})],
        "it is the mean over ranks; asked for is their sum": [[x / ranks for x in right]],
        "it is the largest of the ranks; asked for is their sum": [
            [max(at) for at in zip(*(_walk([of], _right) for of in readings))],
        ],
        "its digits are those of fp32": [torch.tensor(right, dtype=torch.float32).tolist()],
        "these are running totals; asked for is the growth of each interval": [
            [sum(right[: i + 1]) for i in range(len(right))],
        ],
    }  # fmt: skip


def _compare(attempt: Attempt, got, readings) -> bool:
    right, intervals = _walk(readings, _right), len(readings[0]) - 1
    if isinstance(got, torch.Tensor):
        got = got.tolist()
    if isinstance(got, int | float) or got is None:
        what = "nothing" if got is None else "one number"
        return attempt.require(
            False, f"it returns {what}; asked for is a list, one number for each interval"
        )
    got = list(got)
    if not all(isinstance(one, int | float) for one in got):
        return attempt.require(
            False, "it returns more than a list of numbers; ranks are to be added up"
        )
    if len(got) != intervals:
        return attempt.require(
            False,
            f"it returns {len(got)} numbers; between {intervals + 1} readings there are "
            f"{intervals} intervals",
        )
    if _alike(got, right):
        return True
    for says, known in _mistakes(readings).items():
        if any(_alike(got, one) for one in known):
            return attempt.require(False, f"of {_shown(readings)} it makes {_short(got)}: {says}")
    return attempt.require(
        False, f"of {_shown(readings)} it makes {_short(got)}, and should {_short(right)}"
    )


def _alike(got, right) -> bool:
    return all(abs(a - b) <= 1e-9 * max(1.0, abs(b)) for a, b in zip(got, right, strict=True))


def _short(numbers) -> str:
    return "[" + ", ".join(f"{one:g}" for one in numbers) + "]"


def _shown(readings) -> str:
    return str(readings) if sum(map(len, readings)) <= 12 else "these readings"


EXERCISE = Exercise(
    id="interview.monitoring.rate",
    goal="Counters of several ranks were read at the same times. A rank that was restarted begins "
    "at 0 again; a reading may be missing. Return by how much the counters of all ranks together "
    "grew between neighbouring times, as far as the readings tell.",
    interface="`my_growth(readings)` returns a list of numbers, one shorter than a row. "
    "`readings[rank][time]` is a number or None. Growth over a gap belongs to the interval in "
    "which a reading is there again. What was before a rank's first reading is not known, and is "
    "no growth. Whoever counts less than before was restarted in between, and has counted what is "
    "read since then. No rank has to be asked: this is one process's work.",
    budget="No communication.",
    hints=(
        "What do you know of one rank, if you look at its row alone?",
        "Go through a row and remember the last reading that was there. Three cases: nothing is "
        "remembered yet, at least as much as that, less than that.",
        "`grown[time - 1] += now - last if now >= last else now`, for each rank; None is passed "
        "over and `last` kept. 0 is a reading.",
    ),
    stub_function=my_growth,
    solution_function=solution,
    why="A restart can only be seen in one counter's own sequence. In a sum over ranks it is a "
    "small fall, and whoever takes that for a restart counts the whole sum as growth; a missing "
    "reading makes the same tower. So for each rank first, then the sum. The result is a lower "
    "bound: what was counted between the last reading and the restart is lost.",
    judge=judge,
    cases=(Case("dp1"),),
)
