"""Wrong answers to 3d.pp.stages, what each author must be told, and right ones."""

import itertools
from functools import cache

from picolab import costs
from picolab.chapters.c03_3d_parallel.stage_partition import solution


def as_even_as_they_go(times, keeps, stages, first, last, room):
    return [len(part) for part in costs.stage_layers(len(times), stages)]


def asks_the_package(times, keeps, stages, first, last, room):
    return list(costs.balanced_stages(times, stages, first=first, last=last))


def forgets_the_room(times, keeps, stages, first, last, room):
    return solution(times, keeps, stages, first, last, float("inf"))


def forgets_the_ends(times, keeps, stages, first, last, room):
    return solution(times, keeps, stages, 0, 0, room)


def forgets_the_last(times, keeps, stages, first, last, room):
    return solution(times, keeps, stages, first, 0, room)


def swaps_the_ends(times, keeps, stages, first, last, room):
    return solution(times, keeps, stages, last, first, room)


def one_micro_batch_each(times, keeps, stages, first, last, room):
    return solution(times, [k / stages for k in keeps], stages, first, last, room)


def as_many_everywhere(times, keeps, stages, first, last, room):
    """Every stage holds as many as the first."""
    n, best = len(times), None
    for cuts in itertools.combinations(range(1, n), stages - 1):
        counts = [b - a for a, b in itertools.pairwise((0, *cuts, n))]
        ends = list(itertools.accumulate(counts))
        spans = list(zip([0, *ends], ends))
        if max(stages * sum(keeps[a:b]) for a, b in spans) > room:
            continue
        took = [sum(times[a:b]) for a, b in spans]
        took[0], took[-1] = took[0] + first, took[-1] + last
        best = min(best or (max(took), counts), (max(took), counts))
    return best and best[1]


def greedily(times, keeps, stages, first, last, room):
    """Fill a stage until it has its part."""
    target, counts, start = (sum(times) + first + last) / stages, [], 0
    for stage in range(stages - 1):
        took, stop = first if stage == 0 else 0, start
        while stop < len(times) - (stages - 1 - stage) and (took < target or stop == start):
            took += times[stop]
            stop += 1
        counts.append(stop - start)
        start = stop
    return [*counts, len(times) - start]


def least_sum_of_squares(times, keeps, stages, first, last, room):
    n, found = len(times), []
    for cuts in itertools.combinations(range(1, n), stages - 1):
        counts = [b - a for a, b in itertools.pairwise((0, *cuts, n))]
        ends = list(itertools.accumulate(counts))
        spans = list(zip([0, *ends], ends))
        if any((stages - s) * sum(keeps[a:b]) > room for s, (a, b) in enumerate(spans)):
            continue
        took = [sum(times[a:b]) for a, b in spans]
        found.append((sum(t * t for t in took), counts))
    return min(found)[1] if found else None


def tries_everything(times, keeps, stages, first, last, room):
    """Right, and takes years."""
    n, best = len(times), None
    for cuts in itertools.combinations(range(1, n), stages - 1):
        counts = [b - a for a, b in itertools.pairwise((0, *cuts, n))]
        ends = list(itertools.accumulate(counts))
        spans = list(zip([0, *ends], ends))
        if any((stages - s) * sum(keeps[a:b]) > room for s, (a, b) in enumerate(spans)):
            continue
        took = [sum(times[a:b]) for a, b in spans]
        took[0], took[-1] = took[0] + first, took[-1] + last
        if best is None or max(took) < best[0]:
            best = max(took), counts
    return best and best[1]


def borders(times, keeps, stages, first, last, room):
    found = solution(times, keeps, stages, first, last, room)
    return found and list(itertools.accumulate(found))


def ranges(times, keeps, stages, first, last, room):
    found = solution(times, keeps, stages, first, last, room)
    if found is None:
        return None
    ends = list(itertools.accumulate(found))
    return [range(a, b) for a, b in zip([0, *ends], ends)]


def an_empty_stage(times, keeps, stages, first, last, room):
    found = solution(times, keeps, stages, first, last, room)
    if found and len(found) > 1:
        found[-2:] = [found[-2] + found[-1], 0]
    return found


def an_empty_list_for_nothing(times, keeps, stages, first, last, room):
    return solution(times, keeps, stages, first, last, room) or []


def never_nothing(times, keeps, stages, first, last, room):
    found = solution(times, keeps, stages, first, last, room)
    return found or [len(part) for part in costs.stage_layers(len(times), stages)]


def gives_up_early(times, keeps, stages, first, last, room):
    even = [len(part) for part in costs.stage_layers(len(times), stages)]
    ends = list(itertools.accumulate(even))
    held = [(stages - s) * sum(keeps[a:b]) for s, (a, b) in enumerate(zip([0, *ends], ends))]
    return None if max(held) > room else solution(times, keeps, stages, first, last, room)


def reversed_memory(times, keeps, stages, first, last, room):
    """The last stage holds most."""
    found = solution(times[::-1], keeps[::-1], stages, last, first, room)
    return found and found[::-1]


def returns_nothing(times, keeps, stages, first, last, room):
    solution(times, keeps, stages, first, last, room)


def _least(times, keeps, stages, first, last, room, *, fits=lambda held, room: held <= room):
    """A table over stages, with one thing to be done otherwise."""
    best = {0: (0, [])}
    for s in range(stages):
        found = {}
        for a, (slowest, counts) in best.items():
            for b in range(a + 1, len(times) + 1):
                if fits((stages - s) * sum(keeps[a:b]), room):
                    took = sum(times[a:b]) + first * (s == 0) + last * (s == stages - 1)
                    new = max(slowest, took), [*counts, b - a]
                    found[b] = min(found.get(b, new), new)
        best = found
    return best.get(len(times), (None, None))[1]


def fills_from_the_front(times, keeps, stages, first, last, room):
    """The least time with which it works out if each stage takes all that it can."""
    n = len(times)

    def dealt(limit):
        counts, at = [], 0
        for s in range(stages):
            took, held, start = first * (s == 0) + last * (s == stages - 1), 0, at
            while (
                at < n - (stages - 1 - s)
                and took + times[at] <= limit
                and (stages - s) * (held + keeps[at]) <= room
            ):
                took, held, at = took + times[at], held + keeps[at], at + 1
            counts.append(at - start)
        return counts if at == n and min(counts) else None

    sums = {sum(times[a:b]) for a in range(n) for b in range(a + 1, n + 1)}
    limits = sorted({t + e for t in sums for e in (0, first, last, first + last)})
    low, high = 0, len(limits) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if dealt(limits[middle]) else (middle + 1, high)
    return dealt(limits[low])


def bisects_whole_numbers(times, keeps, stages, first, last, room):
    """From the back, so that it is right, but times are whole only."""
    n = len(times)

    def dealt(limit):
        counts, end = [], n
        for s in reversed(range(stages)):
            took, held, stop = first * (s == 0) + last * (s == stages - 1), 0, end
            while (
                end > s
                and took + times[end - 1] <= limit
                and (stages - s) * (held + keeps[end - 1]) <= room
            ):
                took, held, end = took + times[end - 1], held + keeps[end - 1], end - 1
            counts.append(stop - end)
        return counts[::-1] if end == 0 and min(counts) else None

    low, high = 0, int(sum(times) + first + last) + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if dealt(middle) else (middle + 1, high)
    return dealt(low)


def adds_the_ends_in_place(times, keeps, stages, first, last, room):
    times[0] += first
    times[-1] += last
    return _least(times, keeps, stages, 0, 0, room)


def wants_room_to_spare(times, keeps, stages, first, last, room):
    return _least(times, keeps, stages, first, last, room, fits=lambda held, room: held < room)


def one_fewer_in_flight(times, keeps, stages, first, last, room):
    """The micro-batches behind it, and not itself."""
    n = len(times)
    for counts in sorted(
        ([b - a for a, b in itertools.pairwise((0, *cuts, n))]
         for cuts in itertools.combinations(range(1, n), stages - 1)),
        key=lambda counts: _slowest(counts, times, first, last),
    ):  # fmt: skip
        ends = [0, *itertools.accumulate(counts)]
        held = [sum(keeps[a:b]) for a, b in itertools.pairwise(ends)]
        if all((stages - 1 - s) * one <= room for s, one in enumerate(held)):
            return counts
    return None


def _slowest(counts, times, first, last):
    ends = [0, *itertools.accumulate(counts)]
    took = [sum(times[a:b]) for a, b in itertools.pairwise(ends)]
    took[0] += first
    took[-1] += last
    return max(took)


def looks_at_the_room_last(times, keeps, stages, first, last, room):
    """The fastest of all, and None if that does not fit."""
    counts = solution(times, keeps, stages, first, last, float("inf"))
    ends = [0, *itertools.accumulate(counts)]
    held = [(stages - s) * sum(keeps[a:b]) for s, (a, b) in enumerate(itertools.pairwise(ends))]
    return counts if max(held) <= room else None


def raises_for_nothing(times, keeps, stages, first, last, room):
    found = solution(times, keeps, stages, first, last, room)
    if found is None:
        raise ValueError("no division fits")
    return found


MUTANTS = {
    as_even_as_they_go: "is possible",
    forgets_the_room: "and the room is",
    asks_the_package: "picolab",
    forgets_the_ends: "the best one if `first` and `last` cost nothing",
    forgets_the_last: "`last` costs nothing",
    swaps_the_ends: "are the other way round",
    one_micro_batch_each: "and the room is",
    as_many_everywhere: "every stage held as many micro-batches as the first",
    greedily: "is possible",
    least_sum_of_squares: "is possible",
    borders: "does not deal out",
    ranges: "asked for is a list of how many layers each stage gets",
    an_empty_stage: "one at least to each",
    an_empty_list_for_nothing: "asked for is None",
    never_nothing: "asked for is None",
    gives_up_early: "there is a division that fits",
    reversed_memory: "and the room is",
    returns_nothing: "it returns None, and there is a division",
    tries_everything: "it never returns",
    fills_from_the_front: "it returns None, and there is a division",
    bisects_whole_numbers: "is possible",
    adds_the_ends_in_place: "it changed its input `times`",
    wants_room_to_spare: "it returns None, and there is a division",
    one_fewer_in_flight: "and the room is",
    looks_at_the_room_last: "it returns None, and there is a division",
    raises_for_nothing: "ValueError: no division fits",
}


def by_bisection(times, keeps, stages, first, last, room):
    """The least limit under which stages can be filled."""
    n = len(times)

    def filled(limit):
        @cache
        def fill(stage, start):
            if stage == stages:
                return () if start == n else None
            took = first * (stage == 0) + last * (stage == stages - 1)
            held = 0
            for stop in range(start + 1, n + 1):
                took += times[stop - 1]
                held += keeps[stop - 1] * (stages - stage)
                if took > limit or held > room:
                    return None
                rest = fill(stage + 1, stop)
                if rest is not None:
                    return (stop - start, *rest)
            return None

        return fill(0, 0)

    limits = sorted(
        {
            sum(times[a:b]) + e
            for a in range(n)
            for b in range(a + 1, n + 1)
            for e in (0, first, last, first + last)
        }
    )
    if filled(limits[-1]) is None:
        return None
    low, high = 0, len(limits) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if filled(limits[middle]) is not None else (middle + 1, high)
    return filled(limits[low])


def by_a_table(times, keeps, stages, first, last, room):
    """Bottom up, with prefix sums."""
    n, inf = len(times), float("inf")
    T, K = [0, *itertools.accumulate(times)], [0, *itertools.accumulate(keeps)]
    best = [[inf] * (n + 1) for _ in range(stages + 1)]
    cut = [[None] * (n + 1) for _ in range(stages + 1)]
    best[stages][n] = 0
    for s in range(stages - 1, -1, -1):
        ends = first * (s == 0) + last * (s == stages - 1)
        for a in range(n):
            for b in range(a + 1, n + 1):
                if (stages - s) * (K[b] - K[a]) > room:
                    break
                value = max(T[b] - T[a] + ends, best[s + 1][b])
                if value < best[s][a]:
                    best[s][a], cut[s][a] = value, b
    if best[0][0] == inf:
        return None
    counts, a = [], 0
    for s in range(stages):
        counts.append(cut[s][a] - a)
        a = cut[s][a]
    return counts


RIGHT = (by_a_table, by_bisection)
