"""Exercise: which layers a stage gets, by time and within memory (chapter 3, section 5).

Small sizes are compared with every possible division; large ones with the judge's own search, whose
answer is checked against the learner's by what it costs, not by what it is: equally good divisions
are equally right.
"""

import itertools
import time
from functools import cache

from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise

SECONDS = 10.0  # for the largest: a search over all divisions takes years, dynamic programming 0.1
SMALL = 8  # layers, of which every division is tried


def my_stages(times, keeps, stages, first, last, room):
    raise NotImplementedError(f"deal {len(times)} layers out to {stages} stages")


def solution(times, keeps, stages, first, last, room):
    from functools import cache

    n = len(times)

    def cost(stage, start, stop):
        """Time of a stage with these layers; infinite if it holds too much."""
        if (stages - stage) * sum(keeps[start:stop]) > room:
            return float("inf")
        ends = (first if stage == 0 else 0) + (last if stage == stages - 1 else 0)
        return sum(times[start:stop]) + ends

    @cache
    def best(stage, start):
        """The least time of the slowest stage from here on, and how many layers each gets."""
        if stage == stages - 1:
            return cost(stage, start, n), (n - start,)
        found = []
        for stop in range(start + 1, n - (stages - 2 - stage)):
            rest, counts = best(stage + 1, stop)
            found.append((max(cost(stage, start, stop), rest), (stop - start, *counts)))
        return min(found)

    slowest, counts = best(0, 0)
    return None if slowest == float("inf") else list(counts)


def judge(learner, attempt: Attempt) -> None:
    for question in _questions(attempt):
        attempt.budget(count=0)
        attempt.setting(_about(question))
        began = time.monotonic()
        answer = attempt.call(learner, question)
        took = time.monotonic() - began
        if not _is_best(attempt, question, answer):
            return
        if not attempt.require(
            took <= SECONDS,
            f"it took {took:.0f} s: the number of divisions grows with the layers to the power of "
            "the stages, so not all of them can be tried",
        ):
            return
    attempt.only()
    attempt.budget(count=0)


def _questions(attempt: Attempt):
    """Even and uneven layers, costly ends, room for much and for little; then large ones."""
    draw = attempt.tensor(4000).abs().tolist()
    numbers = iter([1 + int(10 * x) for x in draw])
    for tight, stages, n in itertools.product((0, 1, 2), (1, 2, 3, 4), (4, 5, 7)):
        times = [next(numbers) for _ in range(n)]
        keeps = [next(numbers) for _ in range(n)]
        ends = (next(numbers), 3 * next(numbers))
        yield _question(times, keeps, stages, *ends, tight)
    yield _question([3] * 6, [1] * 6, 3, 0, 0, 0)
    yield _question([1] * 8, [1] * 8, 4, 0, 6, 0)
    yield _question([1] * 8, [1] * 8, 4, 0, 0, 1)
    yield {"times": [1, 1, 1], "keeps": [9, 9, 9], "stages": 3, "first": 0, "last": 0, "room": 8}
    yield {"times": [2.5, 0.5], "keeps": [1, 1], "stages": 2, "first": 0.5, "last": 0, "room": 2}
    # A layer may fit into a later stage and not into an earlier one: whoever fills stages from
    # the front finds nothing.
    yield {
        "times": [5, 6, 3, 2, 1, 4], "keeps": [1, 1, 6, 5, 3, 4],
        "stages": 4, "first": 2, "last": 3, "room": 14,
    }  # fmt: skip
    yield {
        "times": [1.125, 4.375, 0.375, 3.875, 4.625], "keeps": [3, 3.125, 4.25, 0.75, 0.75],
        "stages": 3, "first": 0.875, "last": 0.25, "room": 17.625,
    }  # fmt: skip
    big = attempt.case.values["big"]
    times = [next(numbers) for _ in range(big)]
    keeps = [next(numbers) for _ in range(big)]
    for tight in (0, 1):
        yield _question(times, keeps, big // 6, 5, 30, tight)


def _question(times, keeps, stages, first, last, tight: int) -> dict:
    """tight: 0 room for everything, 1 little more than an even division holds, 2 less."""
    all_of_it = stages * sum(keeps)
    room = {0: all_of_it, 1: 1.15 * sum(keeps) + max(keeps), 2: 0.75 * sum(keeps)}[tight]
    return {
        "times": times, "keeps": keeps, "stages": stages, "first": first, "last": last,
        "room": room,
    }  # fmt: skip


def _about(q: dict) -> str:
    n = len(q["times"])
    if n > 12:
        return f"{n} layers, {q['stages']} stages, room {q['room']:g}"
    return (
        f"times {q['times']}, keeps {q['keeps']}, {q['stages']} stages, first {q['first']:g}, last "
        f"{q['last']:g}, room {q['room']:g}"
    )


def _is_best(attempt: Attempt, q: dict, answer) -> bool:
    n, stages = len(q["times"]), q["stages"]
    least = _least(q)
    if least is None:
        return attempt.require(
            answer is None,
            f"it returns {answer!r}, and no division fits into the room: asked for is None",
        )
    if not attempt.require(
        answer is not None, "it returns None, and there is a division that fits into the room"
    ):
        return False
    whole = isinstance(answer, list | tuple) and all(isinstance(c, int) for c in answer)
    if not attempt.require(
        whole, f"it returns {answer!r}; asked for is a list of how many layers each stage gets"
    ):
        return False
    if not attempt.require(
        len(answer) == stages and sum(answer) == n and min(answer) >= 1,
        f"{list(answer)} does not deal out {n} layers to {stages} stages, one at least to each",
    ):
        return False
    for stage, held in enumerate(_held(q, answer)):
        if held > q["room"]:
            return attempt.require(
                False,
                f"{list(answer)}: stage {stage} holds {stages - stage} micro-batches of its "
                f"layers' activations, {held:g}, and the room is {q['room']:g}",
            )
    slowest = max(_times(q, answer))
    return attempt.require(
        slowest <= least * (1 + 1e-12),
        f"{list(answer)}: the slowest stage takes {slowest:g}, and {least:g} is possible"
        + _of_another_question(q, answer),
    )


def _of_another_question(q: dict, answer) -> str:
    """What the learner may have left out, if with that left out the answer is the best one."""
    stages = q["stages"]
    others = {
        "`first` and `last` cost nothing": {"first": 0, "last": 0},
        "`last` costs nothing": {"last": 0},
        "`first` costs nothing": {"first": 0},
        "`first` and `last` are the other way round": {"first": q["last"], "last": q["first"]},
        "every stage held as many micro-batches as the first": {"in_flight": [stages] * stages},
        "stage s held s + 1 micro-batches": {"in_flight": range(1, stages + 1)},
    }
    if len(q["times"]) > SMALL:
        return ""
    found = []
    for says, change in others.items():
        other = {**q, **change}
        if max(_held(other, answer)) <= q["room"] and max(_times(other, answer)) == _least(other):
            found.append(says)
    return f". It would be the best one if {', or if '.join(found)}" if found else ""


def _bounds(counts) -> list[tuple[int, int]]:
    ends = list(itertools.accumulate(counts))
    return list(zip([0, *ends], ends))


def _times(q: dict, counts) -> list[float]:
    found = [sum(q["times"][a:b]) for a, b in _bounds(counts)]
    found[0] += q["first"]
    found[-1] += q["last"]
    return found


def _held(q: dict, counts) -> list[float]:
    in_flight = q.get("in_flight", range(q["stages"], 0, -1))
    return [count * sum(q["keeps"][a:b]) for count, (a, b) in zip(in_flight, _bounds(counts))]


def _least(q: dict) -> float | None:
    """The least time of a slowest stage: a small case by all divisions, a large one by search."""
    n, stages = len(q["times"]), q["stages"]
    if n <= SMALL:
        divisions = (
            [b - a for a, b in itertools.pairwise((0, *cuts, n))]
            for cuts in itertools.combinations(range(1, n), stages - 1)
        )
        fitting = [d for d in divisions if max(_held(q, d)) <= q["room"]]
        return min((max(_times(q, d)) for d in fitting), default=None)
    limits = sorted(
        {sum(q["times"][a:b]) + e for a in range(n) for b in range(a + 1, n + 1)
         for e in (0, q["first"], q["last"])}
    )  # fmt: skip
    if not _possible(q, limits[-1]):
        return None
    low, high = 0, len(limits) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _possible(q, limits[middle]) else (middle + 1, high)
    return limits[low]


def _possible(q: dict, limit: float) -> bool:
    """Whether some division keeps every stage within the limit and the room."""
    n, stages = len(q["times"]), q["stages"]

    @cache
    def rest(stage: int, start: int) -> bool:
        if stage == stages:
            return start == n
        took = (q["first"] if stage == 0 else 0) + (q["last"] if stage == stages - 1 else 0)
        held = 0.0
        for stop in range(start + 1, n - (stages - 1 - stage) + 1):
            took += q["times"][stop - 1]
            held += (stages - stage) * q["keeps"][stop - 1]
            if took > limit or held > q["room"]:
                return False
            if rest(stage + 1, stop):
                return True
        return False

    return rest(0, 0)


EXERCISE = Exercise(
    id="3d.pp.stages",
    goal="Deal a model's layers out to the stages of a 1F1B pipeline, in order, so that the "
    "slowest stage is as fast as it can be, since all others wait for it in every micro-batch. But "
    "stage s holds stages - s micro-batches: where the early stages have no room for that, they "
    "must take fewer layers, however idle they are.",
    interface="`my_stages(times, keeps, stages, first, last, room)` returns how many layers each "
    "stage gets, a list of whole numbers of 1 or more; or None if nothing fits. `times[i]`: what "
    "layer i takes; `first` and `last`: what the first stage takes besides (embedding) and the "
    "last (head and loss); with one stage both. `keeps[i]`: activations that layer i keeps of a "
    "micro-batch. Stage s needs (stages - s) times the sum of its layers' keeps, and has `room`. "
    "Numbers are whole or broken. Nothing is sent. The package's own division is no help: it knows "
    "no room.",
    budget=f"The least possible time of the slowest stage; any division that has it will do. "
    f"{SECONDS:.0f} s for 96 layers on 16 stages.",
    hints=(
        "If the first stage gets the layers up to some border, what is left is the same question "
        "for fewer layers and fewer stages. Which two numbers say what is left?",
        "The stage and the first layer that is left: best(stage, start). A stage that needs more "
        "than its room takes infinitely long. Remember answers (`functools.cache`): there are only "
        "stages times layers of them.",
        "`best(stage, start)` is the minimum over stop of max(cost(stage, start, stop), "
        "best(stage + 1, stop)); leave one layer at least for each stage behind. Let it return the "
        "counts as well, and look at the end whether the minimum is infinite.",
    ),
    stub_function=my_stages,
    solution_function=solution,
    why="The slowest stage sets the pace of all (m + p - 1) rounds, so a minimum of a maximum is "
    "asked for, and the best division of the rest does not depend on how the front was divided: "
    "that is what makes dynamic programming right, in stages * layers² steps. Memory pulls the "
    "other way than the head does: the last stage has the head's time and holds one micro-batch, "
    "the first holds as many as there are stages. Llama 3 took a layer from its first and its last "
    "stage (arXiv 2407.21783, section 3.3.2). `pico.costs.balanced_stages` divides by time alone "
    "(PipeDream, arXiv 1806.03377, section 3.2).",
    judge=judge,
    cases=(Case("dp1", "many small divisions, and 96 layers on 16 stages", {"big": 96}),),
    blocked=("picolab.costs.stages.balanced_stages",),
    timeout=15.0,
)
