"""Exercise: which block keeps, computes again or offloads, exactly (chapter 5, section 6).

A knapsack in which it matters where a block stands: what is alive while it runs is its own work and
what those *before* it keep. Small ones are compared with every plan, large ones with a table over
whole bytes: two ways, and neither is the solution's. Any plan that is as fast is as right.
"""

import itertools
import math
import re
import time

from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise

SECONDS = 10.0  # for the largest; every plan takes 10^16 times as long


def my_choices(blocks, end, pool, budget):
    raise NotImplementedError(f"a choice for each of {len(blocks)} blocks, {budget:,} bytes")


def solution(blocks, end, pool, budget):
    def fastest(room, offload):
        partials = [(0, 0, ())]  # kept, microseconds and choices of the blocks so far
        for block in blocks:
            longer = sorted(
                (before + kept, us + more, (*plan, choice))
                for before, us, plan in partials
                for choice, (kept, work, more) in block.items()
                if before + work <= room and before + kept <= room
                if offload or choice != "offload"
            )
            partials, least = [], float("inf")
            for one in longer:  # by bytes: keep what is faster than all before
                if one[1] < least:
                    least = one[1]
                    partials.append(one)
        return [(us, plan) for kept, us, plan in partials if kept + end <= room]

    def best(budget):
        return min([*fastest(budget, False), *fastest(budget - pool, True)], default=None)

    found = best(budget)
    if found is None:
        low, high = budget, budget + 1
        while best(high) is None:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if best(middle) else (middle, high)
        raise ValueError(f"{budget:,} bytes are too few: the least that works is {high:,}")
    return list(found[1])


def judge(learner, attempt: Attempt) -> None:
    for about, blocks, end, pool, budget, small in _questions(attempt):
        attempt.setting(about)
        given = {"blocks": blocks, "end": end, "pool": pool, "budget": budget}
        began = time.monotonic()
        try:
            answer = attempt.call(learner, given)
        except ValueError as error:
            answer = error
        took = time.monotonic() - began
        attempt.only()
        attempt.budget(count=0)
        best, least = (_every if small else _table)(blocks, end, pool, budget)
        if not _is_right(attempt, answer, (blocks, end, pool, budget), best, least):
            return
        if not attempt.require(
            took <= SECONDS,
            f"it took {took:.0f} s: plans multiply with each block, so not all can be tried",
        ):
            return
        if best is not None:
            attempt.counts("microseconds", _micros(blocks, answer), best, best)


def _questions(attempt: Attempt):
    """about, blocks, end, pool, budget, and whether every plan can be tried."""
    numbers = iter(attempt.tensor(8000).abs().tolist())

    def drawn(most: int) -> int:
        return round(next(numbers) * most / 2)

    def block(most: int, uneven: int) -> dict:
        kept = 1 + drawn(most)
        of = {
            "keep": (kept, kept + drawn(most // 3), 0),
            "selective": (kept // 2, kept + drawn(most // 3), 1 + drawn(20)),
            "recompute": (1 + kept // 9, kept + drawn(most // 2), 10 + drawn(60)),
            "offload": (drawn(2), kept + drawn(most // 3), 1 + drawn(90)),
        }
        left_out = [(), ("selective",), ("offload",), ("keep",), ("keep", "recompute")][uneven % 5]
        return {choice: cost for choice, cost in of.items() if choice not in left_out}

    two = {"keep": (100, 120, 0), "recompute": (10, 130, 40), "offload": (0, 120, 30)}
    yield "2 blocks, room for all", [two, two], 20, 50, 220, True
    yield "2 blocks, one byte less", [two, two], 20, 50, 219, True
    yield "2 blocks, no room for what is fetched", [two, two], 20, 500, 219, True
    yield "2 blocks, the last one's work is the most", [two, two], 0, 500, 140, True
    dear = {"keep": (100, 120, 0), "recompute": (10, 130, 400), "offload": (0, 120, 30)}
    yield "the budget is the peak of one plan, exactly", [two, dear], 20, 50, 170, True
    other = {"keep": (100, 200, 0), "recompute": (10, 130, 40)}
    yield "other blocks, and the budget of before", [two, other], 20, 50, 170, True
    yield "no room at all", [two, two, dear], 20, 50, 0, True
    yield "a byte less than the least", [two, two], 20, 500, 139, True
    big_end = {"keep": (100, 100, 0), "recompute": (60, 100, 5)}
    yield "what the loss takes is the most", [big_end] * 3, 500, 0, 720, True
    yield "no blocks", [], 20, 50, 20, True
    yield "no blocks, and too little", [], 20, 50, 19, True
    wide = {"keep": (10, 1000, 0), "offload": (0, 200, 9)}
    yield "one block whose work is large", [two, wide, two], 0, 30, 500, True
    same = {"keep": (64, 64, 0), "recompute": (8, 64, 7)}
    for room in (64, 72, 120, 128, 400):
        yield f"6 equal blocks, {room} bytes", [same] * 6, 0, 0, room, True
    slow = {"keep": (50, 60, 5), "selective": (50, 60, 5), "recompute": (20, 60, 2)}
    yield "keeping is neither smaller nor faster", [slow, two, slow], 10, 5, 400, True
    only = {"offload": (0, 90, 30)}
    yield "a block that can only be offloaded", [two, only, two], 20, 70, 320, True
    first = {"keep": (60, 60, 0), "recompute": (50, 60, 1)}
    last = {"keep": (60, 60, 0), "recompute": (0, 60, 1)}
    yield "it matters which comes first", [first, last, last], 0, 0, 121, True
    huge = {"keep": (10**15, 10**15, 0), "recompute": (10**15 - 1, 10**15 - 1, 1)}
    yield "petabytes, to the byte", [huge, huge], 0, 0, 2 * 10**15 - 2, True
    yield "more petabytes than a float counts in bytes", [huge] * 11, 0, 0, 11 * 10**15 - 1, True
    for n, uneven in itertools.product((1, 3, 4, 5, 6), range(4)):
        blocks = [block(100, i * uneven) for i in range(n)]
        end, pool = drawn(60), drawn(80)
        peaks = [_peak(blocks, end, pool, plan) for plan in itertools.product(*blocks)]
        for share in (-0.02, 0.0, 0.2, 0.5, 0.8):
            budget = round(min(peaks) + share * (max(peaks) - min(peaks)))
            about = f"{n} blocks, {budget} bytes of {min(peaks)} to {max(peaks)}"
            yield about, blocks, end, pool, budget, True
    for share in (0.1, 0.3, 0.6):
        blocks, end, pool = [block(60, i) for i in range(40)], 30, 40
        whole = sum(max(cost[0] for cost in of.values()) for of in blocks)
        yield f"40 blocks, {share:.0%}", blocks, end, pool, round(share * whole) + 200, False
    yield "40 blocks, too little", blocks, end, pool, 90, False
    fine = []
    for _ in range(24):  # thousands of partial plans, none of which is beaten by another
        kept = 50 + drawn(300)
        of = {"keep": (kept, kept, 0), "selective": (kept // 2, kept, 300 * kept + drawn(9000))}
        fine.append({**of, "recompute": (drawn(9), kept, 900 * kept + drawn(9000))})
    whole = sum(of["keep"][0] for of in fine)
    yield "24 blocks whose bytes and times are all different", fine, 0, 0, whole // 2, False


def _peak(blocks, end, pool, plan) -> int:
    return max(_moments(blocks, end, plan)) + pool * ("offload" in plan)


def _moments(blocks, end, plan) -> list[int]:
    """Bytes alive while each block runs, and at the end."""
    before, found = 0, []
    for block, choice in zip(blocks, plan):
        kept, work, _ = block[choice]
        found.append(before + work)
        before += kept
    return [*found, before + end]


def _micros(blocks, plan) -> int:
    return sum(block[choice][2] for block, choice in zip(blocks, plan))


def _every(blocks, end, pool, budget, peak=_peak) -> tuple[int | None, int]:
    """By all plans: the least time within the budget, and the least budget."""
    plans = [(peak(blocks, end, pool, p), _micros(blocks, p)) for p in itertools.product(*blocks)]
    return min((us for of, us in plans if of <= budget), default=None), min(plans)[0]


def _table(blocks, end, pool, budget) -> tuple[int | None, int]:
    """The least time for every number of bytes kept so far, block by block; with and without
    offload."""
    best = _of_tables(blocks, end, pool, budget)
    least = budget
    while best is None and _of_tables(blocks, end, pool, least) is None:
        least += 1
    return best, least


def _of_tables(blocks, end, pool, budget) -> int | None:
    found = [math.inf]
    for room, barred in ((budget, "offload"), (budget - pool, "")):
        least = [0, *[math.inf] * max(0, room)] if room >= 0 else []
        for block in blocks:
            new = [math.inf] * len(least)
            for choice, (kept, work, us) in block.items():
                for before in range(room - max(kept, work) + 1) if choice != barred else ():
                    new[before + kept] = min(new[before + kept], least[before] + us)
            least = new
        found += least[: max(0, room - end + 1)]
    return None if min(found) == math.inf else min(found)


def _is_right(attempt: Attempt, answer, question, best, least: int) -> bool:
    blocks, end, pool, budget = question
    if isinstance(answer, ValueError):
        if not attempt.require(
            best is None,
            f"it refuses ({_short(str(answer))}), and there are plans whose peak is at most "
            f"{budget:,}",
        ):
            return False
        numbers = [int(n.replace(",", "").replace("_", "")) for n in _NUMBER.findall(str(answer))]
        return attempt.require(
            least in numbers,
            f"what it says as it refuses is '{_short(str(answer))}'; it must name the least budget "
            f"that works, here {least:,} bytes" + _why_least(numbers, question, least),
        )
    if not attempt.require(
        best is not None or not isinstance(answer, list | tuple),
        f"it returns {_short(answer)}, and no plan keeps to {budget:,} bytes (the least is "
        f"{least:,}): raise a ValueError that says so",
    ):
        return False
    names = isinstance(answer, list | tuple) and len(answer) == len(blocks)
    if not attempt.require(
        names and all(choice in block for choice, block in zip(answer, blocks)),
        f"it returns {_short(answer)}; asked for is a list of {len(blocks)} names, of each block "
        "one of its own choices",
    ):
        return False
    peak = _peak(blocks, end, pool, answer)
    if not attempt.require(
        peak <= budget,
        f"{_short(answer)} has a peak of {peak:,} bytes, and the budget is {budget:,}: "
        + _where(blocks, end, pool, answer),
    ):
        return False
    micros = _micros(blocks, answer)
    return attempt.require(
        micros <= best,
        f"{_short(answer)} takes {micros:,} us, and {best:,} are possible within {budget:,} bytes"
        + ("" if micros <= best else _instance(best, question) + _why_slow(micros, question)),
    )


_NUMBER = re.compile(r"\d[\d,_]*\d|\d")


def _short(answer) -> str:
    text = answer if isinstance(answer, str) else repr(answer)
    return text if len(text) <= 80 else f"{text[:76]} ..."


def _where(blocks, end, pool, plan) -> str:
    """When this plan's peak is."""
    moments = _moments(blocks, end, plan)
    at = moments.index(max(moments))
    pooled = f", and the pool's {pool:,}" if "offload" in plan and pool else ""
    if at == len(blocks):
        return f"at the end {moments[at] - end:,} are kept, and the loss takes {end:,}{pooled}"
    work = blocks[at][plan[at]][1]
    return (
        f"while block {at} runs, those before it keep {moments[at] - work:,} and its own work is "
        f"{work:,}{pooled}"
    )


def _all_works(blocks, end, pool, plan) -> int:
    """As if the block with the most work ran while all others keep theirs."""
    kept = [block[choice][0] for block, choice in zip(blocks, plan)]
    works = [block[choice][1] for block, choice in zip(blocks, plan)]
    most = max((sum(kept) - k + w for k, w in zip(kept, works)), default=0)
    return max(most, sum(kept) + end) + pool * ("offload" in plan)


def _always_pooled(blocks, end, pool, plan) -> int:
    return max(_moments(blocks, end, plan)) + pool


def _kept_and_work(blocks, end, pool, plan) -> int:
    """What a block keeps on top of its work."""
    moments, chosen = _moments(blocks, end, plan), [b[name] for b, name in zip(blocks, plan)]
    most = max([moments[-1], *(at + kept for at, (kept, *_) in zip(moments, chosen))])
    return most + pool * ("offload" in plan)


def _summed(blocks, end, pool, plan) -> int:
    """Everything kept, the most work and the end, all at once."""
    kept = sum(block[choice][0] for block, choice in zip(blocks, plan))
    work = max((block[choice][1] for block, choice in zip(blocks, plan)), default=0)
    return kept + work + end + pool * ("offload" in plan)


def _less_by_one(blocks, end, pool, plan) -> int:
    return _peak(blocks, end, pool, plan) + 1


_TOO_STRICT = {
    "a peak may be the whole budget, and not only less": _less_by_one,
    "the pool is needed only by plans that offload something": _always_pooled,
    "what a block keeps is a part of its work while it runs": _kept_and_work,
    "while a block runs, those *behind* it keep nothing: in the backward they are done, and in "
    "the forward not there yet": _all_works,
    "the loss, the largest block's work and all that is kept are not alive at the same time": (
        _summed
    ),
}


def _why_least(numbers: list[int], question, least: int) -> str:
    """Of which mistake the number is that it names."""
    blocks, end, pool, budget = question
    if len(blocks) > 6:
        return ""
    for says, peak in _TOO_STRICT.items():
        if peak is not _less_by_one and _every(blocks, end, pool, budget, peak)[1] in numbers:
            return f": {says}"
    return ""


def _instance(best: int, question) -> str:
    """A plan that is as fast as possible, where all can be tried."""
    blocks, end, pool, budget = question
    for plan in itertools.product(*blocks) if len(blocks) <= 6 else ():
        if _micros(blocks, plan) == best and _peak(blocks, end, pool, plan) <= budget:
            return f", by {list(plan)}"
    return ""


def _why_slow(micros: int, question) -> str:
    """Of which peaks that are too strict, or rules that are too simple, this is the result."""
    blocks, *_ = question
    strict = _TOO_STRICT.items() if len(blocks) <= 6 else ()
    why = [says for says, peak in strict if _every(*question, peak)[0] == micros]
    for says, rule in _RULES.items():
        plan = rule(*question)
        if plan is not None and _micros(blocks, plan) == micros:
            why.append(f"so much it is by '{says}': it fits, and is not the best")
    return f": {'; or '.join(why[:5])}" if why else ""


def _alike(blocks, end, pool, budget):
    names = set.intersection(*map(set, blocks)) if blocks else set()
    plans = [[name] * len(blocks) for name in names]
    fitting = [plan for plan in plans if _peak(blocks, end, pool, plan) <= budget]
    return min(fitting, key=lambda plan: _micros(blocks, plan), default=None)


def _smallest(blocks) -> list[str]:
    return [min(block, key=lambda name: (block[name][0], block[name][2])) for block in blocks]


def _smallest_that_fit(blocks, end, pool, budget):
    plan = _smallest(blocks)
    return plan if _peak(blocks, end, pool, plan) <= budget else None


def _in_turn(blocks, end, pool, budget, step):
    plan = _smallest(blocks)
    for i in range(len(blocks))[::step]:
        for name in sorted(blocks[i], key=lambda name: blocks[i][name][2]):
            other = [*plan[:i], name, *plan[i + 1 :]]
            if _peak(blocks, end, pool, other) <= budget:
                plan = other
                break
    return plan if _peak(blocks, end, pool, plan) <= budget else None


def _greedy(blocks, end, pool, budget):
    plan = [min(block, key=lambda name: (block[name][2], block[name][0])) for block in blocks]
    while _peak(blocks, end, pool, plan) > budget:
        steps = [
            ((block[at][0] - cost[0]) / max(1e-9, cost[2] - block[at][2]), i, name)
            for i, (block, at) in enumerate(zip(blocks, plan))
            for name, cost in block.items()
            if cost[0] < block[at][0]
        ]
        if not steps:
            return None
        _, i, name = max(steps)
        plan[i] = name
    return plan


_RULES = {
    "what frees most bytes a microsecond first, until it fits": _greedy,
    "one choice for all blocks": _alike,
    "from the first block on, each keeps as long as it fits": lambda *q: _in_turn(*q, 1),
    "from the last block on, each keeps as long as it fits": lambda *q: _in_turn(*q, -1),
    "each block what is smallest": _smallest_that_fit,
}


EXERCISE = Exercise(
    id="memory.plan.knapsack",
    goal="Choose for each block of a model whether it keeps what its operators need, computes it "
    "again or offloads it, so that the peak is within a budget and the step takes as little longer "
    "as possible. Exactly: no other plan within the budget may be faster. Where none is, say what "
    "the least budget is.",
    interface="`my_choices(blocks, end, pool, budget)` returns a list of names, one a block. "
    "`blocks[i]`: a dict, choice -> (kept, work, us), of one to four choices out of 'keep', "
    "'selective', 'recompute' and 'offload'. kept: bytes from the block's forward to its backward; "
    "work: bytes alive while the block itself runs, forward or backward, above what the blocks "
    "before it keep; us: microseconds more. The peak is the largest of these: for each block what "
    "all blocks before it keep plus its own work; and what all keep plus `end` (the loss). A plan "
    "with 'offload' in it takes `pool` bytes more. All numbers are ints, 0 or more, to 10^15; the "
    "budget may be used up entirely. No plan fits: a ValueError whose text has the least budget "
    "that works, in digits (1,234 or 1234). No blocks: an empty list, and a peak of `end`. "
    "Nothing is sent.",
    budget=f"The least possible time; any plan that has it will do. {SECONDS:.0f} s for 40 blocks "
    "of 4 choices.",
    hints=(
        "Go through the blocks in their order. What do you have to know of a plan for the blocks "
        "so far to go on? With the budget fixed, whether a block's work fits can be asked at once.",
        "Kept bytes and microseconds. A plan for the first blocks that is neither smaller nor "
        "faster than another can be dropped: whatever follows adds the same to both. Whether "
        "anything is offloaded changes the room: solve twice, without 'offload' and the whole "
        "budget, and with it and `budget - pool`.",
        "A list of (kept, us, plan), at first one of nothing. Per block: lengthen, drop what has "
        "kept-so-far + work or kept above the room, sort, keep only what is faster than everything "
        "smaller. At the end kept + end. The least budget: the same search finds something or "
        "not, so halve the interval between a budget that is too small and one that is enough.",
    ),
    stub_function=my_choices,
    solution_function=solution,
    why="In the backward the blocks behind the one that runs are done, so their bytes are gone, "
    "and in the forward they are not there yet: an early block's kept bytes lie under everybody "
    "else's work, a late one's hardly matter. So a budget is spent from the back, and a rule that "
    "does not know where a block stands is not exact. With the budget fixed, two numbers say all "
    "of a plan's beginning, which is why dropping is safe. The package wants the plans of *all* "
    "budgets at once (the slider of section 6), so it drops only what is beaten in bytes, work, "
    "time and offload together: `pico.source('picolab.memory.scheduler')`. Recompute only or keep "
    "only is what most frameworks offer as one switch; arXiv 1604.06174's square root of n is the "
    "best among those for equal blocks. torch's `activation_memory_budget` is the same knapsack "
    "over operators of a compiled graph.",
    judge=judge,
    cases=(
        Case(
            "dp1",
            "many small questions, and 40 blocks",
            if_apart="plans multiply with each block, so for 40 not all can be tried",
        ),
    ),
    blocked=("picolab.memory.scheduler._frontier",),
    timeout=20.0,
)
