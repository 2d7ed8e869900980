"""Exercise: a caching allocator that splits and merges, replayed over a trace (mem-024).

The judge's own version keeps no list of blocks: a segment is a line of units, each free or of a
name, and blocks are read off it. So the two can hardly be wrong in the same way.
"""

import random

import torch

from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise

UNIT, SEGMENT, LARGE = 4, 64, 40


def my_replay(events, unit, segment, large):
    raise NotImplementedError("return a list of (allocated, reserved, largest)")


def solution(events, unit, segment, large):
    segments, found = [], []  # a segment is a list of [size, name or None]
    for name, nbytes in events:
        if nbytes is None:
            blocks = next(s for s in segments if any(block[1] == name for block in s))
            here = next(i for i, block in enumerate(blocks) if block[1] == name)
            blocks[here][1] = None
            for left in (here, here - 1):  # with the next one, then with the one before
                if 0 <= left < len(blocks) - 1 and blocks[left][1] is blocks[left + 1][1] is None:
                    blocks[left][0] += blocks.pop(left + 1)[0]
        else:
            size = -(-nbytes // unit) * unit
            fits = [
                (block[0], blocks, i)
                for blocks in segments
                for i, block in enumerate(blocks)
                if block[1] is None and block[0] >= size
            ]
            if not fits:
                new = segment if size < large else -(-size // segment) * segment
                segments.append([[new, None]])
                fits = [(new, segments[-1], 0)]
            _, blocks, i = min(fits, key=lambda fit: fit[0])
            rest = blocks[i][0] - size
            blocks[i] = [size, name]
            if rest:
                blocks.insert(i + 1, [rest, None])
        every = [block for blocks in segments for block in blocks]
        found.append(
            (
                sum(size for size, name in every if name is not None),
                sum(size for size, _ in every),
                max((size for size, name in every if name is None), default=0),
            )
        )
    return found


def judge(learner, attempt: Attempt) -> None:
    for about, events in _traces():
        attempt.setting(f"{about}, {len(events)} events")
        given = {"events": events, "unit": UNIT, "segment": SEGMENT, "large": LARGE}
        got = attempt.call(learner, given)
        if not _judge_form(attempt, got, events):
            return
        got = torch.tensor([list(row) for row in got], dtype=torch.float64)
        expected = _replay(events)
        for column, name in enumerate(("allocated", "reserved", "the largest free block")):
            if torch.equal(got[:, column], expected[:, column]):
                continue
            attempt.wrong(_says(name, column, got, expected, events))
            return
        attempt.only()
        attempt.budget(count=0)


def _judge_form(attempt: Attempt, got, events) -> bool:
    if not isinstance(got, list | tuple) or len(got) != len(events):
        many = f"{len(got)} rows" if isinstance(got, list | tuple) else type(got).__name__
        return attempt.require(
            False,
            f"it returns {many}; asked for is a list of {len(events)} rows, one for each event",
        )
    return attempt.require(
        all(isinstance(row, list | tuple) and len(row) == 3 for row in got)
        and all(isinstance(number, int) for row in got for number in row),
        "each row is (allocated, reserved, largest), three ints",
    )


def _says(name: str, column: int, got, expected, events) -> str:
    row = int((got[:, column] != expected[:, column]).nonzero()[0])
    event, nbytes = events[row]
    what = f"{event!r} of {nbytes} bytes came" if nbytes is not None else f"{event!r} was freed"
    why = [says for says, so in _MISTAKES.items() if torch.equal(got, _replay(events, **so))]
    if why:
        return f"{name} is wrong: {'; or '.join(why)}"
    if column == 2 and torch.equal(got[:, 2], got[:, 1] - got[:, 0]):
        return f"{name} is wrong: it is all that is free, and not in one piece"
    return (
        f"{name} is wrong after event {row + 1}, when {what}: it is {got[row, column]:.0f}, and "
        f"should be {expected[row, column]:.0f}"
    )


def _replay(
    events,
    fit="best",
    merge="both",
    rounds=True,
    splits=True,
    gives_back=False,
    own=True,
    at_end=False,
) -> torch.Tensor:
    """allocated, reserved and the largest free block after each event."""
    lines: list[list] = []  # a segment: for each unit None or a name
    cuts: list[set[int]] = []  # where a block ends although both sides are free
    asked: dict = {}
    found = []
    for name, nbytes in events:
        if nbytes is None:
            for line, cut in zip(lines, cuts):
                here = [i for i, of in enumerate(line) if of == name]
                for i in here:
                    line[i] = None
                if here:
                    sides = {"before": here[0], "next": here[-1] + 1}
                    cut |= set(sides.values())
                    for side, end in sides.items():
                        joins = merge in ("both", side) and 0 < end < len(line)
                        if joins and line[end - 1] is line[end] is None:
                            cut.discard(end)
            asked.pop(name)
            if gives_back:
                stay = [i for i, line in enumerate(lines) if any(of is not None for of in line)]
                lines, cuts = [lines[i] for i in stay], [cuts[i] for i in stay]
        else:
            units = -(-nbytes // UNIT)
            asked[name] = units * UNIT if rounds else nbytes
            fits = [
                (end - begin, s, begin)
                for s, line in enumerate(lines)
                for begin, end in _free(line, cuts[s])
                if end - begin >= units
            ]
            if not fits:
                size = units * UNIT
                new = SEGMENT if size < LARGE or not own else size
                lines.append([None] * (-(-max(new, size) // SEGMENT) * SEGMENT // UNIT))
                cuts.append(set())
                fits = [(len(lines[-1]), len(lines) - 1, 0)]
            length, s, begin = min(fits, key=_FITS[fit])
            begin += (length - units) * at_end
            taken = units if splits else length
            if not splits:
                asked[name] = length * UNIT
            lines[s][begin : begin + taken] = [name] * taken
            cuts[s] |= {begin, begin + taken}
        free = [end - begin for line, cut in zip(lines, cuts) for begin, end in _free(line, cut)]
        reserved = sum(map(len, lines)) * UNIT
        found.append([sum(asked.values()), reserved, max(free, default=0) * UNIT])
    return torch.tensor(found, dtype=torch.float64)


_FITS = {  # (size, segment, address) -> what is least of the block that is taken
    "best": lambda one: one[0],
    "worst": lambda one: -one[0],
    "first": lambda one: one[1:],
    "newest": lambda one: (one[0], -one[1]),
    "highest": lambda one: (one[0], one[1], -one[2]),
    "lowest": lambda one: (one[0], one[2]),
}


def _free(line: list, cut: set[int]):
    """(begin, end) of each free block."""
    begin = None
    for i in range(len(line) + 1):
        ends = i == len(line) or line[i] is not None or i in cut
        if begin is not None and ends:
            yield begin, i
            begin = None
        if i < len(line) and line[i] is None and begin is None:
            begin = i


_MISTAKES = {
    "it takes the first free block that fits; asked for is the smallest": {"fit": "first"},
    "it takes the largest free block; asked for is the smallest that fits": {"fit": "worst"},
    "of equal blocks it takes that of the newest segment; asked for is the oldest": {
        "fit": "newest"
    },
    "of equal blocks it takes the one at the highest address; asked for is the lowest": {
        "fit": "highest"
    },
    "of equal blocks it takes the lowest address, whatever the segment; the oldest segment comes "
    "first": {"fit": "lowest"},
    "it takes the end of a free block; asked for is its beginning": {"at_end": True},
    "free neighbours are not merged": {"merge": "none"},
    "a freed block is merged with the one behind it only, not with the one before it": {
        "merge": "next"
    },
    "a freed block is merged with the one before it only, not with the one behind it": {
        "merge": "before"
    },
    "what is allocated is counted as it was asked for, not rounded up": {"rounds": False},
    "a block is given away whole: what is left of it stays free": {"splits": False},
    "a segment without blocks was given back; it is kept, that is what caching means": {
        "gives_back": True
    },
}


def _traces():
    """Traces that show the rules, and random ones."""
    four = [(name, 16) for name in "abcd"]
    yield "neighbours", [*four, ("b", None), ("a", None), ("c", None), ("e", 40), ("d", None)]
    yield (
        "a small trace",
        [("a", 10), ("b", 20), ("c", 5), ("b", None), ("d", 12), ("e", 7), ("a", None),
         ("f", 50), ("d", None), ("g", 30), ("c", None), ("h", 24), ("f", None), ("i", 61)],
    )  # fmt: skip
    yield (
        "free memory in pieces",
        [(f"s{i}", 16) for i in range(8)]
        + [(f"s{i}", None) for i in range(0, 8, 2)]
        + [("big", 32), ("s1", None), ("again", 40)],
    )
    for seed in range(6):
        draw = random.Random(seed)
        alive, events = [], []
        for i in range(40):
            if alive and draw.random() < 0.45:
                events.append((alive.pop(draw.randrange(len(alive))), None))
            else:
                events.append((f"t{i}", draw.choice((1, 3, 4, 9, 16, 22, 31, 39, 40, 57, 64, 90))))
                alive.append(f"t{i}")
        yield "a random trace", events
    for seed in range(6):  # of few sizes: many blocks are equal
        draw = random.Random(seed)
        alive, events = [], []
        for i in range(150):
            if alive and draw.random() < len(alive) / 24:
                events.append((alive.pop(draw.randrange(len(alive))), None))
            else:
                events.append((f"t{i}", draw.choice((4, 8, 12, 16))))
                alive.append(f"t{i}")
        yield "a random trace of few sizes", events


EXERCISE = Exercise(
    id="interview.memory.allocator",
    goal="Replay a trace of allocations and frees through a caching allocator, and say after each "
    "event how many bytes are allocated, how many are reserved, and how large the largest free "
    "block is: the largest tensor that could come without asking the driver.",
    interface="`my_replay(events, unit, segment, large)` returns a list of `(allocated, reserved, "
    "largest)`, one for each event. An event is `(name, nbytes)`, an allocation, or `(name, "
    "None)`, its end. Sizes are rounded up to multiples of unit. The smallest free block that fits "
    "is taken (of equal ones that of the oldest segment, at the lowest address), from its "
    "beginning, and the rest of it stays a free block. If none fits a segment is reserved: "
    "`segment` bytes for a rounded size below `large`, else the rounded size, rounded up to a "
    "multiple of `segment`. A freed block is merged with free neighbours in its segment; segments "
    "are never given back. allocated counts rounded sizes; without a free block largest is 0.",
    budget="Nothing is sent; one process.",
    hints=(
        "What has to be known of a block: its segment, its place, its size, whether it is free.",
        "A segment is a list of blocks in the order of their addresses: neighbours are neighbours "
        "in the list, and merging is adding up.",
        "When a block is freed look at the next one first, then at the one before: either may be "
        "free, or both.",
    ),
    stub_function=my_replay,
    solution_function=solution,
    why="Asking the driver is slow, so freed memory is kept, cut to size, and put together again. "
    "The smallest block that fits leaves large ones whole. Merging needs neighbours, and only "
    "within a segment: addresses of two segments are not next to each other. So reserved minus "
    "allocated may be large, and the largest free block small: that is fragmentation, and why an "
    "allocation fails although there is enough. PyTorch's allocator does the same with two pools "
    "for each stream (c10/cuda/CUDACachingAllocator.cpp), and does not split off what is too small "
    "to be worth it.",
    judge=judge,
    cases=(Case("dp1", ""),),
)
