"""Wrong answers to memory.plan.knapsack, what each author must be told, and right ones."""

import itertools
import math
import time
from functools import cache

from picolab.chapters.c05_memory.plan_knapsack import solution


def _peak(blocks, end, pool, plan):
    before, most = 0, 0
    for block, choice in zip(blocks, plan):
        most = max(most, before + block[choice][1])
        before += block[choice][0]
    return max(most, before + end) + pool * ("offload" in plan)


def _micros(blocks, plan):
    return sum(block[choice][2] for block, choice in zip(blocks, plan))


def _by_all(blocks, end, pool, budget, peak=_peak, fits=lambda a, b: a <= b):
    """Every plan of small ones, with a peak of one's own."""
    if len(blocks) > 8:
        return solution(blocks, end, pool, budget)
    plans = [list(plan) for plan in itertools.product(*blocks)]
    found = [plan for plan in plans if fits(peak(blocks, end, pool, plan), budget)]
    if not found:
        least = min(peak(blocks, end, pool, plan) for plan in plans)
        raise ValueError(f"the least budget is {least}")
    return min(found, key=lambda plan: _micros(blocks, plan))


def kept_bytes_alone(blocks, end, pool, budget):
    """A block's work is forgotten."""

    def peak(blocks, end, pool, plan):
        kept = sum(block[choice][0] for block, choice in zip(blocks, plan))
        return kept + end + pool * ("offload" in plan)

    return _by_all(blocks, end, pool, budget, peak)


def most_bytes_first(blocks, end, pool, budget):
    """Greedy: what frees most for a microsecond, until it fits."""
    plan = [min(block, key=lambda name: (block[name][2], block[name][0])) for block in blocks]
    while _peak(blocks, end, pool, plan) > budget:
        steps = [
            ((block[at][0] - cost[0]) / max(1e-9, cost[2] - block[at][2]), i, name)
            for i, (block, at) in enumerate(zip(blocks, plan))
            for name, cost in block.items()
            if cost[0] < block[at][0]
        ]
        if not steps:
            return solution(blocks, end, pool, budget)
        _, i, name = max(steps)
        plan[i] = name
    return plan


def work_added_up(blocks, end, pool, budget):
    """As if the largest block ran while all the others keep theirs."""

    def peak(blocks, end, pool, plan):
        kept = [block[choice][0] for block, choice in zip(blocks, plan)]
        works = [block[choice][1] for block, choice in zip(blocks, plan)]
        most = max((sum(kept) - k + w for k, w in zip(kept, works)), default=0)
        return max(most, sum(kept) + end) + pool * ("offload" in plan)

    return _by_all(blocks, end, pool, budget, peak)


def everything_at_once(blocks, end, pool, budget):
    def peak(blocks, end, pool, plan):
        kept = sum(block[choice][0] for block, choice in zip(blocks, plan))
        work = max((block[choice][1] for block, choice in zip(blocks, plan)), default=0)
        return kept + work + end + pool * ("offload" in plan)

    return _by_all(blocks, end, pool, budget, peak)


def the_pool_is_free(blocks, end, pool, budget):
    return solution(blocks, end, 0, budget)


def the_pool_always(blocks, end, pool, budget):
    """Taken off the budget, whether anything is offloaded or not."""
    return _by_all(blocks, end, pool, budget, lambda *q: _peak(q[0], q[1], 0, q[3]) + q[2])


def the_end_forgotten(blocks, end, pool, budget):
    return solution(blocks, 0, pool, budget)


def from_the_back(blocks, end, pool, budget):
    """Blocks are gone through in the backward's order."""
    return solution(blocks[::-1], end, pool, budget)[::-1]


def less_than_the_budget(blocks, end, pool, budget):
    return _by_all(blocks, end, pool, budget, fits=lambda a, b: a < b)


def one_switch(blocks, end, pool, budget):
    """One choice for all blocks, as frameworks have it."""
    names = set.intersection(*map(set, blocks)) if blocks else set()
    plans = [[name] * len(blocks) for name in names]
    fitting = [plan for plan in plans if _peak(blocks, end, pool, plan) <= budget]
    if not fitting:
        return solution(blocks, end, pool, budget)
    return min(fitting, key=lambda plan: _micros(blocks, plan))


def _in_turn(blocks, end, pool, budget, step):
    plan = [min(block, key=lambda name: (block[name][0], block[name][2])) for block in blocks]
    for i in range(len(blocks))[::step]:
        for name in sorted(blocks[i], key=lambda name: blocks[i][name][2]):
            other = [*plan[:i], name, *plan[i + 1 :]]
            if _peak(blocks, end, pool, other) <= budget:
                plan = other
                break
    fits = _peak(blocks, end, pool, plan) <= budget
    return plan if fits else solution(blocks, end, pool, budget)


def first_blocks_keep(blocks, end, pool, budget):
    return _in_turn(blocks, end, pool, budget, 1)


def last_blocks_keep(blocks, end, pool, budget):
    return _in_turn(blocks, end, pool, budget, -1)


def the_least_of_all(blocks, end, pool, budget):
    """Everything as small as it can be: it fits, and that is all."""
    solution(blocks, end, pool, budget)
    return [min(block, key=lambda name: (block[name][0], block[name][1])) for block in blocks]


def keeps_everything(blocks, end, pool, budget):
    return ["keep"] * len(blocks)


def refuses_without_a_number(blocks, end, pool, budget):
    try:
        return solution(blocks, end, pool, budget)
    except ValueError:
        raise ValueError("no plan fits into this budget") from None


def refuses_by_the_smallest_plan(blocks, end, pool, budget):
    """Its least is the peak of the plan that keeps least: work is not looked at, nor the pool."""
    try:
        return solution(blocks, end, pool, budget)
    except ValueError:
        plan = [min(block, key=lambda name: block[name][0]) for block in blocks]
        raise ValueError(f"it takes {_peak(blocks, end, pool, plan)} bytes") from None


def gives_what_is_nearest(blocks, end, pool, budget):
    """Where nothing fits it gives the smallest."""
    try:
        return solution(blocks, end, pool, budget)
    except ValueError:
        return [min(block, key=lambda name: block[name][0]) for block in blocks]


def refuses_what_is_full(blocks, end, pool, budget):
    if blocks and _peak(blocks, end, pool, solution(blocks, end, pool, budget)) == budget:
        raise ValueError(f"{budget} bytes are not enough")
    return solution(blocks, end, pool, budget)


def every_plan(blocks, end, pool, budget):
    began, best = time.monotonic(), None
    for plan in itertools.product(*blocks):
        if _peak(blocks, end, pool, plan) <= budget:
            best = min(best or (math.inf, ()), (_micros(blocks, plan), plan))
        if time.monotonic() - began > 11:  # (it would go on until it is ended)
            break
    return list(best[1]) if best else solution(blocks, end, pool, budget)


def of_floats(blocks, end, pool, budget):
    """In gigabytes, rounded to nine digits."""
    scale = 1 if budget < 10**9 else 10**6
    small = [{n: (k // scale, w // scale, us) for n, (k, w, us) in of.items()} for of in blocks]
    return solution(small, end // scale, pool // scale, budget // scale)


def drops_by_time_alone(blocks, end, pool, budget):
    """Of the plans so far only the fastest goes on."""
    for offload in (False, True):
        room, plan, before = budget - pool * offload, [], 0
        for block in blocks:
            fitting = [
                (us, kept, name)
                for name, (kept, work, us) in block.items()
                if before + max(work, kept) <= room and (offload or name != "offload")
            ]
            if not fitting:
                break
            _, kept, name = min(fitting)
            plan.append(name)
            before += kept
        if len(plan) == len(blocks) and before + end <= room:
            return plan
    raise ValueError(f"{budget} bytes are too few")


def _five_hundred(blocks, end, pool, budget, number=lambda n: n):
    """The solution, with at most 500 partial plans, spread over those that nothing beats."""
    found = []
    for room, barred in ((number(budget), "offload"), (number(budget - pool), "")):
        partials = [(number(0), 0, [])]
        for block in blocks:
            longer = sorted(
                (before + number(kept), us + more, [*plan, name])
                for before, us, plan in partials
                for name, (kept, work, more) in block.items()
                if name != barred and before + max(number(kept), number(work)) <= room
            )
            partials, least = [], math.inf
            for one in longer:
                if one[1] < least:
                    least = one[1]
                    partials.append(one)
            partials = partials[:: 1 + len(partials) // 500]
        found += [(us, plan) for kept, us, plan in partials if kept + number(end) <= room]
    return min(found)[1] if found else solution(blocks, end, pool, budget)


def five_hundred_partial_plans(blocks, end, pool, budget):
    return _five_hundred(blocks, end, pool, budget)


def of_doubles(blocks, end, pool, budget):
    return _five_hundred(blocks, end, pool, budget, float)


def kept_beside_its_work(blocks, end, pool, budget):
    """A block's own kept bytes on top of its work."""
    more = [{n: (kept, kept + work, us) for n, (kept, work, us) in of.items()} for of in blocks]
    return solution(more, end, pool, budget)


def tries_all(blocks, end, pool, budget):
    """Without a thought of how many."""
    plans = itertools.product(*blocks)
    fits = [
        (sum(of[n][2] for of, n in zip(blocks, p)), p)
        for p in plans
        if _peak(blocks, end, pool, p) <= budget
    ]
    return list(min(fits)[1]) if fits else solution(blocks, end, pool, budget)


def numbers(blocks, end, pool, budget):
    plan = solution(blocks, end, pool, budget)
    return [list(block).index(choice) for block, choice in zip(blocks, plan)]


def by_the_package(blocks, end, pool, budget):
    from picolab.memory import MemoryScheduler
    from picolab.memory.scheduler import Cost, Measured

    costs = tuple({name: Cost(*cost) for name, cost in of.items()} for of in blocks)
    return list(MemoryScheduler(Measured(costs, end, 0, 0, pool)).choose(budget).choices)


def spends_its_input(blocks, end, pool, budget):
    plan = solution(blocks, end, pool, budget)
    for block in blocks:
        block.pop("offload", None)
    return plan


_known: dict = {}


def remembers_by_size(blocks, end, pool, budget):
    key = len(blocks), end, pool, budget
    return list(_known.setdefault(key, tuple(solution(blocks, end, pool, budget))))


MUTANTS = {
    kept_bytes_alone: "those before it keep",
    most_bytes_first: "what frees most bytes a microsecond first",
    work_added_up: "those *behind* it keep nothing",
    everything_at_once: "are not alive at the same time",
    the_pool_is_free: "and the pool's",
    the_pool_always: "only by plans that offload something",
    the_end_forgotten: "and the loss takes",
    from_the_back: "while block",
    less_than_the_budget: "a peak may be the whole budget",
    one_switch: "one choice for all blocks",
    first_blocks_keep: "from the first block on",
    last_blocks_keep: "from the last block on",
    the_least_of_all: "are possible within",
    keeps_everything: "has a peak of",
    refuses_without_a_number: "it must name the least budget that works",
    refuses_by_the_smallest_plan: "it must name the least budget that works",
    gives_what_is_nearest: "raise a ValueError that says so",
    refuses_what_is_full: "it refuses",
    every_plan: "plans multiply with each block",
    of_floats: "petabytes",
    of_doubles: "more petabytes than a float counts",
    five_hundred_partial_plans: "24 blocks whose bytes and times are all different",
    kept_beside_its_work: "a part of its work while it runs",
    tries_all: "for 40 not all can be tried",
    drops_by_time_alone: "it refuses",
    numbers: "one of its own choices",
    by_the_package: "is what this exercise asks you to write",
    spends_its_input: "it changed its input `blocks`",
    remembers_by_size: "and the budget of before",
}


def recursion_from_the_last(blocks, end, pool, budget):
    """What is left of the room is what a block has to know."""

    def solve(room, barred):
        @cache
        def rest(i, before):
            if i == len(blocks):
                return (0, ()) if before + end <= room else None
            found = None
            for name, (kept, work, us) in blocks[i].items():
                if name == barred or before + work > room or before + kept > room:
                    continue
                tail = rest(i + 1, before + kept)
                if tail is not None and (found is None or us + tail[0] < found[0]):
                    found = us + tail[0], (name, *tail[1])
            return found

        return rest(0, 0)

    def best(budget):
        found = [of for of in (solve(budget, "offload"), solve(budget - pool, "")) if of]
        return min(found, default=None)

    plan = best(budget)
    if plan is not None:
        return list(plan[1])

    def smallest(barred):
        """For each block the smallest peak from it on, as a function of nothing: greedily, the
        least that is kept before, since less is never worse."""
        low, high = (
            0,
            end + sum(max(map(max, ((k, w) for k, w, _ in of.values()))) for of in blocks),
        )

        def fits(room):
            before = 0
            for of in blocks:
                choices = [
                    k for name, (k, w, _) in of.items() if name != barred and before + w <= room
                ]
                if not choices:
                    return False
                before += min(choices)
            return before + end <= room

        if not fits(high):
            return math.inf
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(middle) else (middle + 1, high)
        return high

    raise ValueError(f"least: {min(smallest('offload'), smallest('') + pool)}")


def bytes_in_a_dictionary(blocks, end, pool, budget):
    """The textbook's table, with those rows only that occur; the least budget by trying those that
    plans can have."""

    def rows(room, barred):
        found = {0: (0, [])}
        for block in blocks:
            new = {}
            for before, (us, plan) in found.items():
                for name, (kept, work, more) in block.items():
                    if name != barred and max(before + work, before + kept) <= room:
                        one = us + more, [*plan, name]
                        new[before + kept] = min(new.get(before + kept, one), one)
            found = new
        return [of for kept, of in found.items() if kept + end <= room]

    def best(budget):
        return min(rows(budget, "offload") + rows(budget - pool, ""), default=None)

    found, step = best(budget), 1
    if found is not None:
        return found[1]
    while best(budget + step) is None:
        step *= 2
    least = budget + step
    while step:
        step //= 2
        while step and best(least - step) is not None:
            least -= step
    raise ValueError(f"the least budget is {least:,} bytes")


RIGHT = (recursion_from_the_last, bytes_in_a_dictionary)
