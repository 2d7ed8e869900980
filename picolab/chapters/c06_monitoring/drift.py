"""Exercise: a lasting change of level, however small, and nothing else (chapter 6).

Any method may be used, so what is judged is what it does on dozens of simulated series: false
alarms where nothing changes, alarms at single pauses, how late a rise and a fall of one deviation
are found, and whether each change is told once. CUSUM is one that passes; what a series is made of
is in `_SCENES`, with the sentence for those who fail it.
"""

import math
import random
import statistics

from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise

SERIES, FIRST = 24, 100


def my_drift(values, first):
    raise NotImplementedError("return a list of (position, +1 or -1)")


def solution(values, first):
    import math
    from statistics import median

    alarms, learnt, up, down = [], [], 0.0, 0.0
    for position, value in enumerate(values):
        if not math.isfinite(value):
            continue
        if len(learnt) < first:  # what the level is, and how far values usually are from it
            learnt.append(value)
            if len(learnt) == first:
                level = median(learnt)
                spread = 1.4826 * median(abs(x - level) for x in learnt)
                spread = max(spread, 0.001 * abs(level))
            continue
        z = min(4.0, max(-4.0, (value - level) / spread))
        up, down = max(0.0, up + z - 0.5), max(0.0, down - z - 0.5)
        if max(up, down) > 20:
            alarms.append((position, +1 if up > down else -1))
            learnt, up, down = [], 0.0, 0.0  # the new level is the level
    return alarms


def judge(learner, attempt: Attempt) -> None:
    found: dict[str, list] = {}
    for scene, (about, make, _) in _SCENES.items():
        attempt.only()
        attempt.budget(count=0)
        attempt.setting(about)
        series = [make(random.Random(f"{scene} {seed}")) for seed in range(SERIES)]
        results = []
        for values, *_ in series:
            got = attempt.call(learner, {"values": values, "first": FIRST})
            if not _is_list_of_alarms(attempt, got):
                return
            results.append([(int(at), int(sign)) for at, sign in got])
        found[scene] = [(*rest, alarms) for (_, *rest), alarms in zip(series, results)]
        says = _foreseen(learner, attempt, series[0][0], results[0])
        if says := says or _SCENES[scene][2](found[scene]):
            attempt.wrong(says)
            return
    attempt.only()
    attempt.budget(count=0)
    attempt.counts("false alarms in 24 series of 1,000", _false(found["calm"]), 1)
    attempt.counts("steps until a rise is found, on the mean", round(_delay(found["rise"])), 70)


def _is_list_of_alarms(attempt: Attempt, got) -> bool:
    fits = isinstance(got, list | tuple) and all(
        isinstance(one, list | tuple) and len(one) == 2 and one[1] in (1, -1) for one in got
    )
    return attempt.require(
        fits, "asked for is a list of (position, +1 or -1), an entry for each alarm"
    )


def _foreseen(learner, attempt: Attempt, values, alarms) -> str | None:
    """Whether the last of these alarms is not there yet where the values end with it."""
    if not alarms or not 0 <= alarms[-1][0] < len(values):
        return None
    at = alarms[-1][0]
    got = attempt.call(learner, {"values": values[: at + 1], "first": FIRST})
    if [(int(place), int(sign)) for place, sign in got][-1:] == alarms[-1:]:
        return None
    return (
        f"its alarm at {at} is not told if the values end there: each is judged by those up to it, "
        "and the position is where the change is found, not where it began (positions count from "
        "0, in all of the values)"
    )


# Series: values, and (from where, by how many deviations) of each change.


def _series(draw: random.Random, *changes, n=1000, pauses=0.0, bad=0.0, constant=False):
    level = draw.choice((0.4, 25.0, 3e5))
    unit = (0.05 if constant else draw.choice((0.005, 0.05))) * level
    spread = 0.0 if constant else unit
    values = []
    for at in range(n):
        shift = sum(by for start, by in changes if at >= start)
        value = level + unit * shift + draw.gauss(0, spread)
        if draw.random() < pauses:
            value += unit * draw.choice((8, 20, 60))
        if draw.random() < bad:
            value = draw.choice((math.nan, math.inf, -math.inf))
        values.append(value)
    return values, changes


def _false(scene) -> int:
    return sum(len(alarms) for _, alarms in scene)


def _delay(scene) -> float:
    delays = [alarms[0][0] - changes[0][0] for changes, alarms in scene if alarms]
    return statistics.fmean(delays) if delays else math.inf


def _quiet(most: int, sentence: str):
    def says(scene) -> str | None:
        if (count := _false(scene)) <= most:
            return None
        return f"it fires {count} times in {SERIES} series of 1,000 values: {sentence}"

    return says


def _found(slowest: float, sentence: str, least: int = SERIES - 2):
    """Each change is told once, in its direction, and soon enough."""

    def says(scene) -> str | None:
        early = [alarms for changes, alarms in scene if alarms and alarms[0][0] < changes[0][0]]
        if len(early) > 1:
            at = early[0][0][0]
            return (
                f"in {len(early)} of {SERIES} series it fires before anything has changed (at "
                f"{at}; positions count from 0, in all of the values): {sentence}"
            )
        missed = sum(not alarms for _, alarms in scene)
        if SERIES - missed < least:
            return f"in {missed} of {SERIES} series it tells nothing: {sentence}"
        if (late := _delay(scene)) > slowest:
            return (
                f"it is found after {late:.0f} values on the mean, and {slowest:.0f} are enough: "
                f"{sentence}"
            )
        turned = sum(
            alarms[0][1] != (1 if changes[0][1] > 0 else -1) for changes, alarms in scene if alarms
        )
        if turned > 1:
            return f"in {turned} of {SERIES} series the direction is wrong: +1 is a rise, -1 a fall"
        more = sum(len(alarms) > len(changes) for changes, alarms in scene)
        if more > 3:
            return (
                f"in {more} of {SERIES} series a change is told again and again: after an alarm "
                "the new level is the level, and the sum begins anew"
            )
        fewer = sum(len(alarms) < len(changes) for changes, alarms in scene)
        if fewer > 3:
            return (
                f"in {fewer} of {SERIES} series a later change is not told: after an alarm it has "
                "to learn the new level and go on"
            )
        return None

    return says


_SCENES = {
    "calm": (
        "nothing changes", lambda draw: _series(draw),
        _quiet(1, "nothing changes there; a sum needs slack, or chance adds up, and a limit"),
    ),
    "large": (
        "a rise of six deviations", lambda draw: _series(draw, (400, 6.0)),
        _found(15, "six deviations are plain to see"),
    ),
    "rise": (
        "a rise of one deviation", lambda draw: _series(draw, (400, 1.0)),
        _found(70, "no single value shows a rise of one deviation; add up what they share"),
    ),
    "fall": (
        "a fall of one deviation", lambda draw: _series(draw, (400, -1.0)),
        _found(70, "a level can fall as well; that takes a second sum"),
    ),
    "late": (
        "a rise after 3,000 values", lambda draw: _series(draw, (3000, 1.0), n=3400),
        _found(70, "what was before must not weigh: neither a sum that went far below 0, nor a "
               "level that has been learnt for ever"),
    ),
    "pauses": (
        "single pauses, of 8 to 60 deviations", lambda draw: _series(draw, pauses=0.01),
        _quiet(2, "a single pause is no lasting rise; what one value may add has to be bounded"),
    ),
    "pauses before": (
        "pauses, and then a rise", lambda draw: _series(draw, (400, 1.0), pauses=0.02),
        _found(90, "pauses among the first values must not blow up what the level and the spread "
               "are: median and MAD"),
    ),
    "bad": (
        "values that are no numbers", lambda draw: _series(draw, (400, 1.0), bad=0.2),
        _found(90, "a value that is no number must not enter a sum or a level"),
    ),
    "only bad": (
        "values that are no numbers, and nothing changes", lambda draw: _series(draw, bad=0.2),
        _quiet(1, "a value that is no number must not enter a sum, whatever it was clipped to"),
    ),
    "constant": (
        "values that hardly vary", lambda draw: _series(draw, (400, 0.2), constant=True),
        _found(100, "where values do not vary the spread needs a floor"),
    ),
    "twice": (
        "a rise, and back again", lambda draw: _series(draw, (300, 1.5), (700, -1.5)),
        _found(70, "no single value shows it"),
    ),
}  # fmt: skip

EXERCISE = Exercise(
    id="monitoring.drift.cusum",
    goal="Find out that the level of a signal has changed for good, by as little as one of its own "
    "deviations, up or down. A single pause is no change, and neither is chance.",
    interface="`my_drift(values, first)` returns a list of (position, +1 or -1), an entry for each "
    "change that it finds, when it finds it; each value is judged by those up to it. The first "
    "`first` values (100 here) say what the level and the spread are; their noise is normal, "
    "except for pauses, single values far above. Values that are not finite count for nothing; "
    "all others are positive. "
    "After an alarm the level is learnt anew from the `first` values that follow. Values that do "
    "not vary have a spread of a thousandth of the level.",
    budget="No communication. In 24 series of 1,000 values in which nothing changes one alarm at "
    "most; a change by one deviation is found after 70 values at most, on the mean.",
    hints=(
        "One value says next to nothing about a shift of one deviation. What do thirty say "
        "together, if you add up how far each of them is above the level?",
        "Without a shift the sum must go back to where it was: take off half a deviation from each "
        "value, and never let the sum fall below 0. How large does it get by chance?",
        "`up = max(0, up + z - 0.5)`, `down = max(0, down - z - 0.5)` with z clipped to 4; fire "
        "above 20, then forget level, spread and both sums.",
    ),
    stub_function=my_drift,
    solution_function=solution,
    why="The sum drifts down by half a deviation a step as long as nothing happens, and 0 catches "
    "it; after a shift of one deviation it rises by half a deviation and is at 20 after some forty "
    "steps. Chance takes it there once in millions. The limit costs delay in proportion, and buys "
    "false alarms exponentially. Clipping bounds what a pause can do, median and MAD keep pauses "
    "out of the level, and a sum that began at 0 again would fire every forty steps if the level "
    "were not learnt anew (Page 1954).",
    judge=judge,
    cases=(Case("dp1"),),
    blocked=("picolab.monitoring.rules.Drift.add",),
)
