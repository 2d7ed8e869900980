"""Exercise: which layer in which format, exactly (chapter 4, section 6).

A knapsack with one choice a layer. Small ones are compared with every combination, middle ones with
two halves of which every combination is known, large ones with a table over whole damages: three
ways, and none is the solution's. Any decision that is as good is as right.
"""

import bisect
import itertools
import math
import time

from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise

SECONDS = 10.0  # for the largest; every combination takes 10^36 times as long
UNIT = 2.0**-10  # of damages that are whole numbers of it, sums are exact


def my_selection(seconds, damage, budget):
    raise NotImplementedError(f"a format for each of {len(seconds)} layers, damage {budget:g}")


def solution(seconds, damage, budget):
    partials = [(0.0, 0.0, ())]  # damage, seconds and choices for the layers so far
    for times, damages in zip(seconds, damage):
        longer = [
            (d + more, s + time, (*chosen, i))
            for d, s, chosen in partials
            for i, (time, more) in enumerate(zip(times, damages))
            if d + more <= budget
        ]
        partials, least = [], float("inf")
        for one in sorted(longer):  # by damage: keep what is faster than all before
            if one[1] < least:
                least = one[1]
                partials.append(one)
    return list(partials[-1][2])  # the fastest is the last


def judge(learner, attempt: Attempt) -> None:
    for about, seconds, damage, budget, reference in _questions(attempt):
        attempt.only()
        attempt.budget(count=0)
        attempt.setting(about)
        given = {"seconds": seconds, "damage": damage, "budget": budget}
        began = time.monotonic()
        answer = attempt.call(learner, given)
        took = time.monotonic() - began
        if not _is_best(attempt, answer, seconds, damage, budget, reference):
            return
        if not attempt.require(
            took <= SECONDS,
            f"it took {took:.0f} s: combinations multiply with each layer, so not all can be tried",
        ):
            return
    attempt.only()
    attempt.budget(count=0)


def _questions(attempt: Attempt):
    """seconds, damage, budget, and how the least time is found."""
    numbers = iter(attempt.tensor(6000).abs().tolist())

    def layers(n: int, formats: int, whole: bool, uneven: bool = False):
        seconds, damage = [], []
        for layer in range(n):
            count = 1 + layer % formats if uneven else formats
            seconds.append([round(1 + 4 * next(numbers), 3) for _ in range(count)])
            costs = [next(numbers) for _ in range(count - 1)]
            if whole:
                costs = [UNIT * round(20 * one) for one in costs]
            damage.append([0.0, *costs])
        return seconds, damage

    two = [[3.0, 2.0], [5.0, 1.0]], [[0.0, 0.25], [0.0, 0.5]]
    yield "2 layers, room for both", *two, 0.75, _every
    yield "2 layers, room for one of them", *two, 0.5, _every
    yield "2 layers, room for the lesser", *two, 0.3, _every
    turned = [[5.0, 1.0], [3.0, 2.5]], [[0.0, 0.5], [0.0, 0.25]]
    yield "as many layers and as much room, other numbers", *turned, 0.5, _every
    yield "a budget of 0", *two, 0.0, _every
    yield "any damage is accepted", *two, math.inf, _every
    yield "one layer", [[2.0, 1.5, 1.0]], [[0.0, 0.5, 1.0]], 0.75, _every
    yield "no layers", [], [], 1.0, _every
    # What saves most a damage takes the room of two that together save more.
    yield "6, 5 and 5 of 10", [[9.0, 1.0]] * 3, [[0, 6 * UNIT], [0, 5 * UNIT], [0, 5 * UNIT]], (
        10 * UNIT
    ), _every  # fmt: skip
    yield "the first to spend leaves nothing", [[4.0, 3.9], [4.0, 1.0]], [[0, 1.0], [0, 1.0]], (
        1.0
    ), _every  # fmt: skip
    slower = [[1.0, 2.0, 0.5], [1.0, 3.0, 4.0]], [[0.0, 0.0, 0.5], [0.0, 0.5, 0.25]]
    yield "short formats that are slower", *slower, 1.0, _every
    free = [[2.0, 1.0], [2.0, 1.0]], [[0.0, 0.0], [0.0, 0.5]]
    yield "a format that does no damage, and no budget", *free, 0.0, _every
    tiny = [[2.0, 1.0, 0.5]] * 4, [[0.0, 2.0**-100, 2.0**-99]] * 3 + [[0.0, 1e-3, 1e-2]]
    yield "damages of about 1e-30", *tiny, 5 * 2.0**-100, _every
    beyond = [[2.0, 1.0]] * 3, [[0.0, 0.5], [0.0, 0.5], [0.0, 2.0**-40]]
    yield "a damage of 1e-12 that is too much", *beyond, 1.0, _every
    barred = [[2.0, 0.5, 1.0]] * 3, [[0.0, math.inf, 0.25]] * 3
    yield "a format of infinite damage", *barred, 0.5, _every
    yield "the same, and any damage is accepted", *barred, math.inf, _every
    for n, formats, uneven in itertools.product((1, 2, 3, 5, 7), (2, 3, 4), (False, True)):
        seconds, damage = layers(n, formats, whole=n % 2 == 1, uneven=uneven)
        for share in (0.1, 0.35, 0.8):
            budget = share * sum(map(max, damage))
            if n % 2:
                budget = UNIT * round(budget / UNIT)
            kind = ", not all with as many formats" if uneven else ""
            about = f"{n} layers, up to {formats} formats, {share:.0%} of the damage{kind}"
            yield about, seconds, damage, budget, _every
    for share in (0.05, 0.2, 0.5):
        seconds, damage = layers(14, 3, whole=False)
        budget = share * sum(map(max, damage))
        yield f"14 layers, {share:.0%} of the damage", seconds, damage, budget, _halves
    for share in (0.02, 0.1, 0.4, 0.9):
        seconds, damage = layers(60, 4, whole=True)
        budget = UNIT * round(share * sum(map(max, damage)) / UNIT)
        yield f"60 layers, 4 formats, {share:.0%} of the damage", seconds, damage, budget, _table


def _every(seconds, damage, budget) -> float:
    """By all combinations."""
    choices = itertools.product(*(range(len(of)) for of in seconds))
    return min(
        _sum(seconds, chosen) for chosen in choices if _sum(damage, chosen) <= budget
    )  # (fp32 for all layers does no damage)


def _halves(seconds, damage, budget) -> float:
    """Each combination of the first half with the best that fits of the second."""
    half = len(seconds) // 2
    first, second = (_combinations(seconds[s], damage[s]) for s in (slice(half), slice(half, None)))
    second.sort()
    damages, least = [d for d, _ in second], list(itertools.accumulate((s for _, s in second), min))
    found = math.inf
    for d, s in first:
        fitting = bisect.bisect_right(damages, budget - d)
        if fitting:
            found = min(found, s + least[fitting - 1])
    return found


def _combinations(seconds, damage) -> list[tuple[float, float]]:
    choices = itertools.product(*(range(len(of)) for of in seconds))
    return [(_sum(damage, chosen), _sum(seconds, chosen)) for chosen in choices]


def _table(seconds, damage, budget) -> float:
    """The least time for every whole damage up to the budget, layer by layer."""
    room = round(budget / UNIT)
    least = [0.0] * (room + 1)
    for times, damages in zip(seconds, damage):
        whole = [round(d / UNIT) for d in damages]
        least = [
            min(least[r - d] + t for t, d in zip(times, whole) if d <= r) for r in range(room + 1)
        ]
    return least[room]


def _sum(of, chosen) -> float:
    return math.fsum(one[i] for one, i in zip(of, chosen))


def _is_best(attempt: Attempt, answer, seconds, damage, budget, reference) -> bool:
    n = len(seconds)
    whole = isinstance(answer, list | tuple) and all(
        isinstance(i, int) and not isinstance(i, bool) for i in answer
    )
    if not attempt.require(
        whole, f"it returns {_short(answer)}; asked for is a list of whole numbers, one a layer"
    ):
        return False
    if not attempt.require(
        len(answer) == n, f"it returns {len(answer)} choices for {n} layers"
    ) or not attempt.require(
        all(0 <= i < len(of) for i, of in zip(answer, seconds)),
        f"it returns {_short(answer)}, and a layer has {[len(of) for of in seconds][:8]} formats",
    ):
        return False
    spent, took = _sum(damage, answer), _sum(seconds, answer)
    if not attempt.require(
        spent <= budget,
        f"{_short(answer)} does {spent:.6g} of damage, and the budget is {budget:.6g}: "
        f"{spent - budget:.3g} too much"
        + (", of all layers together" if all(_each_within(damage, answer, budget)) else ""),
    ):
        return False
    best = reference(seconds, damage, budget)
    why = "" if took <= best else _how(took, seconds, damage, budget)
    return attempt.require(
        took <= best * (1 + 1e-12),
        f"{_short(answer)} takes {took:.6g} s, and {best:.6g} is possible within the budget{why}",
    )


def _each_within(damage, answer, budget) -> list[bool]:
    return [of[i] <= budget for of, i in zip(damage, answer)]


def _short(answer) -> str:
    text = repr(answer)
    return text if len(text) <= 60 else f"{text[:56]} ..."


def _how(took: float, seconds, damage, budget) -> str:
    """Of which simpler rule this is the result."""
    rules = {
        "steps that save most seconds a damage first, as long as they fit": lambda: _greedy(
            seconds, damage, budget, lambda saved, more: saved / more if more else math.inf
        ),
        "steps that save most seconds first": lambda: _greedy(
            seconds, damage, budget, lambda saved, more: saved
        ),
        "steps that do least damage first": lambda: _greedy(
            seconds, damage, budget, lambda saved, more: -more
        ),
        "layer by layer, each the fastest that still fits": lambda: _in_turn(
            seconds, damage, budget
        ),
        "an equal part of the budget for each layer": lambda: [
            min(
                (i for i, d in enumerate(damages) if d <= budget / len(seconds)),
                key=lambda i: times[i],
            )
            for times, damages in zip(seconds, damage)
        ],
        "fp32 throughout": lambda: [0] * len(seconds),
    }
    for rule, make in rules.items():
        if math.isclose(_sum(seconds, make()), took, rel_tol=1e-12):
            return f". So much it is by {rule}: good, and not the best"
    strict = _sum(seconds, [0] * len(seconds))
    if len(seconds) <= 7:
        below = [
            _sum(seconds, chosen)
            for chosen in itertools.product(*(range(len(of)) for of in seconds))
            if _sum(damage, chosen) < budget
        ]
        strict = min(below, default=strict)
        if math.isclose(strict, took, rel_tol=1e-12):
            return ". Damage may be the whole budget, and not only less"
    return ""


def _greedy(seconds, damage, budget, worth) -> list[int]:
    """One step of one layer at a time, the one that is worth most of those that fit."""
    chosen = [0] * len(seconds)
    while True:
        spent = _sum(damage, chosen)
        steps = [
            (worth(times[at] - times[i], damages[i] - damages[at]), layer, i)
            for layer, (times, damages, at) in enumerate(zip(seconds, damage, chosen))
            for i in range(len(times))
            if times[i] < times[at] and spent - damages[at] + damages[i] <= budget
        ]
        if not steps:
            return chosen
        _, layer, i = max(steps)
        chosen[layer] = i


def _in_turn(seconds, damage, budget) -> list[int]:
    chosen, spent = [], 0.0
    for times, damages in zip(seconds, damage):
        fitting = (i for i, d in enumerate(damages) if spent + d <= budget)
        chosen.append(min(fitting, key=lambda i: (times[i], damages[i])))
        spent += damages[chosen[-1]]
    return chosen


EXERCISE = Exercise(
    id="precision.select.knapsack",
    goal="Choose a number format for each layer so that a step takes as little time as possible "
    "and all layers together do no more damage than a budget allows. Exactly: no other decision "
    "within the budget may be faster.",
    interface="`my_selection(seconds, damage, budget)` returns a list, for each layer the number "
    "of its format. `seconds[layer][format]` is what the layer takes in this format, "
    "`damage[layer][format]` what the format does to it; lists of lists of numbers, whole or "
    "not. Format 0 is fp32 and does no damage; a layer has 1 to 4 formats, and more damage is "
    "not always faster. A damage may be 1e-30 and count, or `math.inf`; the budget is 0 or more, "
    "perhaps `math.inf`, and may be used up entirely. No layers: an empty list. Nothing is "
    "sent.",
    budget=f"The least possible time; any decision that has it will do. {SECONDS:.0f} s for 60 "
    "layers of 4 formats.",
    hints=(
        "After some layers, what do you have to know of a decision for them to go on? And when is "
        "one decision for the same layers better than another, whatever follows?",
        "Its damage and its seconds. One that is neither less damage nor less time than another "
        "can never be part of a better whole, so it is dropped. What is left grows slowly.",
        "A list of (damage, seconds, choices), at first one of nothing. For each layer: lengthen "
        "each by each format, drop what is over the budget, sort by damage, and keep only what is "
        "faster than everything before it. At the end the fastest.",
    ),
    stub_function=my_selection,
    solution_function=solution,
    why="Greedy by seconds saved a damage is optimal if a layer could be partly in one format; in "
    "whole steps it can leave room that nothing fits into. Dropping what another decision beats in "
    "both numbers loses nothing: whatever is added later is added to both. With whole damages the "
    "list cannot be longer than the budget; with real ones it can, in theory, double with each "
    "layer, so the package bounds what the rest can still save by the greedy answer for parts "
    "(`pico.source('picolab.precision.selector')`), which is branch and bound. Rounding damages "
    "to a grid and filling a table is the textbook's way, and is off where damages differ by ten "
    "powers of ten.",
    judge=judge,
    cases=(Case("dp1", "many small questions, and 60 layers"),),
    blocked=("picolab.precision.selector.AdaptivePrecisionSelector._solve",),
    timeout=20.0,
)
