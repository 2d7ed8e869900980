"""Wrong answers to interview.memory.allocator, what each author must be told, and right ones."""

import bisect

from picolab.chapters.c05_memory.interview_allocator import solution


def _replay(
    events, unit, segment, large, *, fit=min, merge=(0, -1), up=True, split=True, back=False,
    own=True, across=False, largest=True, address=0,
):  # fmt: skip
    """The solution, with a switch for each mistake."""
    segments, found, asked = [], [], {}
    for name, nbytes in events:
        if nbytes is None:
            asked.pop(name)
            blocks = next(s for s in segments if any(block[1] == name for block in s))
            here = next(i for i, block in enumerate(blocks) if block[1] == name)
            blocks[here][1] = None
            for step in merge:
                left = here + step
                if 0 <= left < len(blocks) - 1 and blocks[left][1] is blocks[left + 1][1] is None:
                    blocks[left][0] += blocks.pop(left + 1)[0]
            if back:
                segments = [s for s in segments if any(of is not None for _, of in s)]
        else:
            size = -(-nbytes // unit) * unit if up else nbytes
            asked[name] = nbytes
            fits = [
                (block[0], s, i)
                for s, blocks in enumerate(segments)
                for i, block in enumerate(blocks)
                if block[1] is None and block[0] >= size
            ]
            if not fits:
                new = segment if size < large or not own else -(-size // segment) * segment
                segments.append([[max(new, -(-size // segment) * segment), None]])
                fits = [(segments[-1][0][0], len(segments) - 1, 0)]
            if fit is None:
                _, s, i = fits[address]
            else:
                _, s, i = fit(fits, key=lambda one: one[0])
            rest = segments[s][i][0] - size
            segments[s][i] = [size if split else size + rest, name]
            if rest and split:
                segments[s].insert(i + 1, [rest, None])
        every = [block for blocks in segments for block in blocks]
        free = [size for size, of in every if of is None]
        if across:
            free = [sum(free)]
        found.append(
            (
                sum(size for size, of in every if of is not None),
                sum(size for size, _ in every),
                max(free, default=0) if largest else min(free, default=0),
            )
        )
    return found


def first_fit(*args):
    return _replay(*args, fit=None)


def last_fit(*args):
    return _replay(*args, fit=None, address=-1)


def worst_fit(*args):
    return _replay(*args, fit=max)


def never_merges(*args):
    return _replay(*args, merge=())


def merges_with_the_next_only(*args):
    return _replay(*args, merge=(0,))


def merges_with_the_one_before_only(*args):
    return _replay(*args, merge=(-1,))


def never_splits(*args):
    return _replay(*args, split=False)


def never_rounds(*args):
    return _replay(*args, up=False)


def gives_segments_back(*args):
    return _replay(*args, back=True)


def adds_free_blocks_up(*args):
    return _replay(*args, across=True)


def smallest_for_largest(*args):
    return _replay(*args, largest=False)


def counts_what_was_asked(events, *args):
    asked, found = {}, []
    for (name, nbytes), (_, reserved, largest) in zip(events, solution(events, *args)):
        asked[name] = nbytes or 0
        found.append((sum(asked.values()), reserved, largest))
    return found


def reserves_what_is_needed(events, unit, segment, large):
    return solution(events, unit, unit, large)


def large_from_one_segment_on(events, unit, segment, large):
    """All sizes get a segment of their own."""
    return solution(events, unit, 2 * unit, 0)


def forgets_to_free(events, *args):
    found, last = [], (0, 0, 0)
    rows = iter(solution([event for event in events if event[1] is not None], *args))
    for _, nbytes in events:
        last = next(rows) if nbytes is not None else last
        found.append(last)
    return found


def tells_the_peak_alone(events, *args):
    rows = solution(events, *args)
    return [max(row[0] for row in rows), max(row[1] for row in rows), 0]


def rows_of_two(events, *args):
    return [row[:2] for row in solution(events, *args)]


def rows_for_allocations_only(events, *args):
    return [row for (_, nbytes), row in zip(events, solution(events, *args)) if nbytes is not None]


def by_addresses(events, unit, segment, large):
    """Free ranges in one list, sorted by address; segments far from each other."""
    free, taken, reserved, found = [], {}, 0, []
    far = 1 << 30
    for name, nbytes in events:
        if nbytes is None:
            begin, end = taken.pop(name)
            at = bisect.bisect(free, (begin, end))
            if at < len(free) and free[at][0] == end:
                end = free.pop(at)[1]
            if at and free[at - 1][1] == begin:
                begin = free.pop(at - 1)[0]
                at -= 1
            free.insert(at, (begin, end))
        else:
            size = (nbytes + unit - 1) // unit * unit
            fits = sorted((e - b, b, e) for b, e in free if e - b >= size)
            if fits:
                _, begin, end = fits[0]
                free.remove((begin, end))
            else:
                got = segment if size < large else (size + segment - 1) // segment * segment
                begin, end = far, far + got
                far, reserved = far + (1 << 30), reserved + got
            taken[name] = begin, begin + size
            if begin + size < end:
                bisect.insort(free, (begin + size, end))
        found.append(
            [
                sum(e - b for b, e in taken.values()),
                reserved,
                max((e - b for b, e in free), default=0),
            ]
        )
    return found


def with_switches_off(*args):
    return _replay(*args)


def nothing_where_nothing_is_free(events, unit, segment, large):
    rows = solution(events, unit, segment, large)
    return [(*row[:2], row[2] or None) for row in rows]


def _of_equal_ones(events, unit, segment, large, key, end=False):
    """Blocks as [segment, address, size, name or None]; of those that fit the least by key."""
    blocks, found, reserved = [], [], 0
    for name, nbytes in events:
        if nbytes is None:
            here = next(block for block in blocks if block[3] == name)
            here[3] = None
            for other in [b for b in blocks if b[3] is None and b[0] == here[0] and b is not here]:
                if other[1] in (here[1] + here[2], here[1] - other[2]):
                    here[1:3] = min(here[1], other[1]), here[2] + other[2]
                    blocks.remove(other)
        else:
            size = -(-nbytes // unit) * unit
            fits = [block for block in blocks if block[3] is None and block[2] >= size]
            if not fits:
                new = segment if size < large else -(-size // segment) * segment
                fits = [[1 + max((b[0] for b in blocks), default=0), 0, new, None]]
                reserved += new
                blocks += fits
            of = min(fits, key=key)
            blocks.remove(of)
            rest = of[2] - size
            at = of[1] + (rest if end else 0)
            blocks.append([of[0], at, size, name])
            if rest:
                blocks.append([of[0], of[1] if end else at + size, rest, None])
        taken = sum(block[2] for block in blocks if block[3] is not None)
        largest = max((block[2] for block in blocks if block[3] is None), default=0)
        found.append((taken, reserved, largest))
    return found


def of_equal_ones_the_newest(*trace):
    return _of_equal_ones(*trace, key=lambda of: (of[2], -of[0], of[1]))


def of_equal_ones_the_highest(*trace):
    return _of_equal_ones(*trace, key=lambda of: (of[2], of[0], -of[1]))


def of_equal_ones_by_address(*trace):
    return _of_equal_ones(*trace, key=lambda of: (of[2], of[1], of[0]))


def takes_the_end(*trace):
    return _of_equal_ones(*trace, key=lambda of: (of[2], of[0], of[1]), end=True)


MUTANTS = {
    first_fit: "it takes the first free block that fits",
    never_merges: "free neighbours are not merged",
    worst_fit: "it takes the largest free block",
    last_fit: "is wrong after event",
    merges_with_the_next_only: "with the one behind it only",
    merges_with_the_one_before_only: "with the one before it only",
    never_splits: "given away whole",
    never_rounds: "is wrong after event",
    gives_segments_back: "was given back",
    adds_free_blocks_up: "the largest free block is wrong",
    smallest_for_largest: "the largest free block is wrong",
    counts_what_was_asked: "counted as it was asked for",
    reserves_what_is_needed: "reserved is wrong after event 1",
    large_from_one_segment_on: "reserved is wrong after event 1",
    forgets_to_free: "was freed: it is",
    tells_the_peak_alone: "asked for is a list of",
    rows_of_two: "each row is (allocated, reserved, largest)",
    nothing_where_nothing_is_free: "three ints",
    of_equal_ones_the_newest: "asked for is the oldest",
    of_equal_ones_the_highest: "asked for is the lowest",
    of_equal_ones_by_address: "the oldest segment comes first",
    takes_the_end: "asked for is its beginning",
    rows_for_allocations_only: "asked for is a list of",
}
RIGHT = (by_addresses, with_switches_off)
