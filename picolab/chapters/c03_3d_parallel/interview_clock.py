"""Exercise: when each action of a pipeline starts (question 3d-015).

Nothing is sent. The expected times come from the judge's own clock, which goes about it another way
than the solution: it relaxes all starts until nothing moves.
"""

import random
from fractions import Fraction

from picolab import schedules
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_clock(orders, forward, backward, hop):
    raise NotImplementedError("return a list of start times for each stage, or None")


def solution(orders, forward, backward, hop):
    last = len(orders) - 1
    arrives, free = {}, [0] * len(orders)
    starts = [[] for _ in orders]
    while True:
        moved = False
        for stage, order in enumerate(orders):
            while len(starts[stage]) < len(order):
                action = order[len(starts[stage])]
                kind, number = action[0], int(action[1:])
                if kind == "F":
                    needs = [("F", stage - 1, number)] if stage else []
                else:
                    needs = [("F", stage, number)]
                    needs += [("B", stage + 1, number)] if stage < last else []
                if any(need not in arrives for need in needs):
                    break
                came = [arrives[need] + (need[1] != stage) * hop for need in needs]
                start = max([free[stage], *came])
                starts[stage].append(start)
                free[stage] = start + (forward if kind == "F" else backward)[stage]
                arrives[kind, stage, number] = free[stage]
                moved = True
        if not moved:
            done = all(len(got) == len(order) for got, order in zip(starts, orders))
            return starts if done else None


def judge(learner, attempt: Attempt) -> None:
    draw, right = random.Random(attempt.case.values["seed"]), 0
    asked = list(_questions(draw, attempt.case.values["sizes"]))
    for about, orders, forward, backward, hop in asked:
        given = {"orders": orders, "forward": forward, "backward": backward, "hop": hop}
        got = attempt.call(learner, given)
        if not _judged(attempt, about, got, orders, (forward, backward, hop)):
            break
        right += 1
    attempt.only()
    attempt.counts("orders that were timed right", right, len(asked), len(asked))


def _questions(draw: random.Random, sizes):
    """(what it is, orders, forward, backward, hop): those that work, and some that cannot."""
    for p, m in sizes:
        forward = [draw.choice((1, 2, 3, 5)) for _ in range(p)]
        backward = [draw.choice((1, 2, 4, 7)) for _ in range(p)]
        hop = draw.choice((0, 1, 3, Fraction(1, 2)))
        size = f"{p} stages, {m} micro-batches"
        for name in ("gpipe", "1f1b"):
            orders = _orders(name, p, m)
            yield f"{name}, {size}, all alike, no hops", orders, [1] * p, [2] * p, 0
            yield f"{name}, {size}, hops of {hop}", orders, forward, backward, hop
        shuffled = [_shuffled(draw, m) for _ in range(p)]
        yield f"orders drawn by lot, {size}", shuffled, forward, backward, hop
        backwards_first = _orders("1f1b", p, m)
        backwards_first[-1].insert(0, backwards_first[-1].pop(1))
        yield f"B before its F on the last stage, {size}", backwards_first, forward, backward, hop
        reverse = [row if i % 2 else _reversed(row) for i, row in enumerate(_orders("gpipe", p, m))]
        yield f"micro-batches from the end on every other stage, {size}", reverse, *(
            forward, backward, hop,
        )  # fmt: skip


def _orders(name: str, p: int, m: int) -> list[list[str]]:
    rows = schedules.make(name, p, m).actions
    return [[f"{action.kind}{action.micro_batch}" for action in row] for row in rows]


def _shuffled(draw: random.Random, m: int) -> list[str]:
    """Each F somewhere before its B: it may work with the other stages' orders, or not."""
    row = [f"F{i}" for i in draw.sample(range(m), m)]
    for i in range(m):
        row.insert(draw.randint(row.index(f"F{i}") + 1, len(row)), f"B{i}")
    return row


def _reversed(row: list[str]) -> list[str]:
    half = len(row) // 2
    return row[:half][::-1] + row[half:][::-1]


def _expected(orders, forward, backward, hop, own_forward=True):
    """Starts, or None: every start is raised until it respects all that comes before it. In a
    circle they would rise for ever: more rounds than actions are one."""
    last, where = len(orders) - 1, {}
    for stage, row in enumerate(orders):
        where |= {(action[0], stage, int(action[1:])): (stage, k) for k, action in enumerate(row)}
    lengths = {"F": forward, "B": backward}
    starts = [[0] * len(row) for row in orders]

    def end(stage: int, k: int):
        return starts[stage][k] + lengths[orders[stage][k][0]][stage]

    for _ in range(len(where) + 1):
        before = [list(row) for row in starts]
        for stage, row in enumerate(orders):
            for k, action in enumerate(row):
                kind, i = action[0], int(action[1:])
                times = [end(stage, k - 1)] if k else [0]
                if kind == "F" and stage:
                    times.append(end(*where["F", stage - 1, i]) + hop)
                if kind == "B" and stage < last:
                    times.append(end(*where["B", stage + 1, i]) + hop)
                if kind == "B" and own_forward:
                    times.append(end(*where["F", stage, i]))
                starts[stage][k] = max(times)
        if starts == before:
            return starts
    return None


def _judged(attempt: Attempt, about: str, got, orders, costs) -> bool:
    expected = _expected(orders, *costs)
    if expected is None or got is None:
        if expected is None and got is None:
            return True
        says = (
            "these orders cannot work, since some wait for each other in a circle: return None"
            if expected is None
            else "it returns None, and these orders work"
        )
        return attempt.require(False, f"{about}: {says}. {_told(orders)}")
    if not _is_a_table(attempt, about, got, orders):
        return False
    got = [list(row) for row in got]
    if got == expected:
        return True
    for says, suspect in _known_mistakes(orders, *costs).items():
        if got == suspect:
            return attempt.require(False, f"{about}: {says}")
    stage, k = _first_difference(got, expected, costs, orders)
    return attempt.require(
        False,
        f"{about}: {orders[stage][k]} of stage {stage} starts at {expected[stage][k]}, and yours "
        f"at {got[stage][k]}; those that start before it are right. {_told(orders)}",
    )


def _is_a_table(attempt: Attempt, about: str, got, orders) -> bool:
    fits = isinstance(got, list | tuple) and len(got) == len(orders)
    fits = fits and all(
        isinstance(row, list | tuple) and len(row) == len(order) for row, order in zip(got, orders)
    )
    if not fits:
        return attempt.require(
            False,
            f"{about}: asked for is a list for each stage, with a time for each of its actions, "
            f"not {got!r:.80}",
        )
    strange = [one for row in got for one in row if not isinstance(one, int | float | Fraction)]
    return attempt.require(not strange, f"{about}: {strange[:1]!r:.60} is no time")


def _first_difference(got, expected, costs, orders) -> tuple[int, int]:
    """Where the earliest start that is wrong stands."""
    wrong = [
        (expected[stage][k], stage, k)
        for stage, row in enumerate(orders)
        for k in range(len(row))
        if got[stage][k] != expected[stage][k]
    ]
    return min(wrong)[1:]


def _told(orders) -> str:
    if sum(map(len, orders)) > 24:
        return ""
    return "The orders: " + "; ".join(" ".join(row) for row in orders)


def _known_mistakes(orders, forward, backward, hop) -> dict[str, list]:
    right = _expected(orders, forward, backward, hop)
    lengths = {"F": forward, "B": backward}
    ends = [
        [start + lengths[action[0]][stage] for start, action in zip(right[stage], row)]
        for stage, row in enumerate(orders)
    ]
    p = len(orders)
    found = {
        "these are the ends; asked for are the starts": ends,
        "the hops are missing": _expected(orders, forward, backward, 0),
        "every stage has the first stage's lengths": _expected(
            orders, [forward[0]] * p, [backward[0]] * p, hop
        ),
        "forward and backward lengths are exchanged": _expected(orders, backward, forward, hop),
        "a backward takes as long as a forward there; it has lengths of its own": _expected(
            orders, forward, forward, hop
        ),
        "there is a hop twice: the message takes it once": _expected(
            orders, forward, backward, 2 * hop
        ),
        "the hop is charged to the rank: it delays the message, and the rank goes on": _expected(
            orders, [f + hop for f in forward], [b + hop for b in backward], 0
        ),
    }
    return {says: suspect for says, suspect in found.items() if suspect and suspect != right}


EXERCISE = Exercise(
    id="interview.3d.clock",
    goal="Compute when each action of a pipeline starts, if every stage does its actions in a "
    "given order and each as early as it can; or find out that these orders cannot work.",
    interface="`my_clock(orders, forward, backward, hop)`: `orders[stage]` is a list such as "
    '`["F0", "F1", "B0", "B1"]`, each F and B of the same micro-batches once; `forward[stage]` and '
    "`backward[stage]` are lengths, hop is the time of a message, which delays what is sent and "
    "takes no time of a rank. F needs the F of the stage before, B its own F and the B of the "
    "stage behind; messages of different micro-batches do not wait for each other. The first "
    "action may start at 0. Return `starts`, with `starts[stage][k]` the start of "
    "`orders[stage][k]`, or None if some actions can never start. Numbers are whole or Fractions; "
    "times are compared exactly.",
    budget="Every order is timed right, also those with which nobody could go on. Nothing is sent.",
    hints=(
        "An action can start once two things have happened. Which are they, and which of them "
        "takes a hop?",
        "Keep for each stage how far it is in its list, and when it is free; and for each action "
        "that was done, when it ended. Go round the stages, each as far as it gets.",
        "`start = max(free[stage], *(end of what it needs + hop if on another stage))`. If a whole "
        "round moves nobody and actions are left: None.",
    ),
    stub_function=my_clock,
    solution_function=solution,
    why="A start is the maximum over its causes: the rank's previous action, and the arrival of "
    "what it works on. Causes form a graph without circles if the orders work, so each start is "
    "final once its causes are, and it does not matter in which order the stages are visited. A "
    "round in which nobody moves means that every stage waits for a stage that waits, so nothing "
    "ever will. The later of the two causes, walked back from the last end, is the critical path.",
    judge=judge,
    cases=(
        Case("dp2", "", {"seed": 0, "sizes": ((1, 1), (2, 1), (2, 3), (3, 2), (4, 4))}),
        Case("dp2", "larger ones", {"seed": 1, "sizes": ((5, 3), (3, 8), (4, 6), (6, 7), (7, 2))}),
    ),
    blocked=("picolab.schedules.simulator.simulate",),
)
