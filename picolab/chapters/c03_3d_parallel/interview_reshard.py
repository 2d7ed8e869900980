"""Exercise: who reads what when a sharded checkpoint is read by another number of ranks (question
3d-030).

Nothing is sent. The plan is carried out by the judge, on numbers that say where they come from.
"""

from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise

_SIZES = (1, 2, 3, 5, 8, 10, 12, 17, 31, 64, 65, 100, 1003)


def my_reads(sizes, old, new, rank):
    raise NotImplementedError("return a list of (tensor, old_rank, start, stop, at)")


def solution(sizes, old, new, rank):
    reads = []
    for tensor, size in enumerate(sizes):
        wide, narrow = -(-size // old), -(-size // new)
        begin, end = min(rank * narrow, size), min((rank + 1) * narrow, size)
        for source in range(old):
            first, last = min(source * wide, size), min((source + 1) * wide, size)
            start, stop = max(begin, first), min(end, last)
            if start < stop:
                reads.append((tensor, source, start - first, stop - first, start - begin))
    return reads


def judge(learner, attempt: Attempt) -> None:
    used = least = 0
    for sizes, old, new in _questions(attempt.case.values["pairs"]):
        for rank in range(new) if new < 9 else (0, 1, new // 2, new - 2, new - 1):
            given = {"sizes": list(sizes), "old": old, "new": new, "rank": rank}
            plan = attempt.call(learner, given)
            call = f"my_reads({list(sizes)}, {old}, {new}, {rank})"
            if not _works(attempt, call, plan, sizes, old, new, rank):
                attempt.only()
                return
            used += len(plan)
            least += sum(_needed(size, old, new, rank) for size in sizes)
    attempt.only()
    attempt.counts("pieces read in all", used, least, least)


def _questions(pairs):
    """Sizes of the tensors of a checkpoint, and the two worlds."""
    for old, new in pairs:
        for size in _SIZES:
            yield (size,), old, new
        yield (7, 1, 12), old, new


def _bounds(size: int, world: int, rank: int) -> tuple[int, int]:
    chunk = -(-size // world)
    return min(rank * chunk, size), min((rank + 1) * chunk, size)


def _needed(size: int, old: int, new: int, rank: int) -> int:
    """Old shards that the new one meets."""
    begin, end = _bounds(size, new, rank)
    shards = [_bounds(size, old, source) for source in range(old)]
    return sum(max(begin, first) < min(end, last) for first, last in shards)


def _works(attempt: Attempt, call: str, plan, sizes, old: int, new: int, rank: int) -> bool:
    if not isinstance(plan, list | tuple):
        kind = "None" if plan is None else f"a {type(plan).__name__}"
        return attempt.require(False, f"{call} returns {kind}; asked for is a list of reads")
    targets = []
    for size in sizes:
        begin, end = _bounds(size, new, rank)
        targets.append([None] * (end - begin))
    for read in plan:
        if not _is_a_read(read):
            return attempt.require(
                False,
                f"{call} has {read!r:.80} in it; a read is five whole numbers, (tensor, old_rank, "
                "start, stop, at)",
            )
        says = _do(read, targets, sizes, old, new, rank)
        if says:
            return attempt.require(False, f"{call}: {read}: {says}")
    for tensor, size in enumerate(sizes):
        begin, _ = _bounds(size, new, rank)
        for place, number in enumerate(targets[tensor]):
            if number is None:
                return attempt.require(
                    False,
                    f"{call}: number {begin + place} of tensor {tensor}, place {place} of the "
                    "new shard, is never read",
                )
            if number != begin + place:
                return attempt.require(
                    False,
                    f"{call}: place {place} of the new shard of tensor {tensor} gets number "
                    f"{number} of the tensor, and number {begin + place} belongs there",
                )
    needed = sum(_needed(size, old, new, rank) for size in sizes)
    return attempt.require(
        len(plan) == needed,
        f"{call} has {len(plan)} reads, and {needed} are enough: one from each old shard that the "
        "new one meets",
    )


def _is_a_read(read) -> bool:
    return (
        isinstance(read, list | tuple)
        and len(read) == 5
        and all(isinstance(one, int) and not isinstance(one, bool) for one in read)
    )


def _do(read, targets: list[list], sizes, old: int, new: int, rank: int) -> str:
    """Carry out one read; what is wrong with it, or nothing."""
    tensor, source, start, stop, at = read
    if not 0 <= tensor < len(sizes):
        return f"there are tensors 0 to {len(sizes) - 1}"
    if not 0 <= source < old:
        return f"there are old ranks 0 to {old - 1}"
    first, last = _bounds(sizes[tensor], old, source)
    if start >= stop:
        return "it reads nothing"
    if start < 0 or stop > last - first:
        return (
            f"the shard of old rank {source} has {last - first} numbers, of which it reads "
            f"{start} to {stop}: padding is not stored, and start and stop count from the shard's "
            "own beginning"
        )
    if at < 0 or at + stop - start > len(targets[tensor]):
        return (
            f"the new shard of rank {rank} has {len(targets[tensor])} numbers, and this fills "
            f"places {at} to {at + stop - start}: `at` counts from the new shard's own beginning"
        )
    for offset in range(stop - start):
        if targets[tensor][at + offset] is not None:
            return f"place {at + offset} of the new shard was filled already"
        targets[tensor][at + offset] = first + start + offset
    return ""


EXERCISE = Exercise(
    id="interview.3d.reshard",
    goal="A checkpoint was written by `old` ranks and is read by `new` ones. Each tensor was cut "
    "into flat shards for itself. Say for a new rank which pieces of which old shards it reads, "
    "and where they go: everything that it keeps, nothing else, nothing twice.",
    interface="`my_reads(sizes, old, new, rank)` returns a list of `(tensor, old_rank, start, "
    "stop, at)`: of the tensor with that index, the numbers start to stop (not included) of the "
    "shard of old_rank, counted from the shard's beginning, go to the new shard of `rank` from "
    "place `at` on. Of a tensor of `size` numbers and n ranks, rank r has those from "
    "min(r c, size) to min((r+1) c, size), with c = ceil(size / n), as `torch.chunk` cuts; so "
    "later shards may be shorter or empty, and no padding is stored. Plain Python; nothing is "
    "sent.",
    budget="One read from each old shard that the new one meets; none that is empty.",
    hints=(
        "Write both shards as intervals of the whole tensor. What has the new rank to read from "
        "one old shard?",
        "The intersection begins at the larger start and ends at the smaller end, and is empty if "
        "these are the wrong way round. All of this is counted in the whole tensor: translate to "
        "both shards at the very end.",
        "`start, stop = max(begin, first), min(end, last)`; if start < stop the read is "
        "`(tensor, source, start - first, stop - first, start - begin)`.",
    ),
    stub_function=my_reads,
    solution_function=solution,
    why="Old shards cover the tensor without gap or overlap, so their intersections with the new "
    "shard cover it in the same way. Nothing else has to be known than the sizes, which is why a "
    "shard is stored with its tensor's name, shape and offset. With c = ceil(size / n) the last "
    "shards may be empty: max and min make their intersections empty without a special case "
    "(torch.distributed.checkpoint does the same in more dimensions).",
    judge=judge,
    cases=(
        Case("dp2", "few ranks", {"pairs": [(a, b) for a in range(1, 7) for b in range(1, 7)]}),
        Case("dp2", "many ranks", {"pairs": [(8, 6), (12, 5), (7, 16), (64, 63), (63, 64)]}),
    ),
)
