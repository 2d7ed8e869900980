"""The pipeline bubble: the time in which a stage has nothing to do, and what is held meanwhile.

p stages, m micro-batches, a forward and a backward of f seconds together on every stage, links
that cost nothing. The last stage gets its first micro-batch after p - 1 forwards, and the first
stage its last gradient p - 1 backwards after that. So GPipe and 1F1B both take (m + p - 1) f,
where m f would be ideal, and each stage idles for (p - 1) f.

"The bubble" is that idle time over one of the two; both are in print:

    bubble_of_total   (p-1)/(m+p-1)   the share of the time that is idle; never reaches 1
    bubble_of_ideal   (p-1)/m         how much longer than ideal; may exceed 1

Equal for both schedules is the bubble; what they hold (`in_flight`) is not. The simulator of
`picolab.schedules` gives the same numbers exactly, which its tests ask for.
"""


def bubble_of_total(p: int, m: int) -> float:
    """Idle time over total time, for GPipe and 1F1B: (p-1)/(m+p-1).

    Source: GPipe, arXiv 1811.06965, section 2.3 (K partitions, M micro-batches).
    """
    _check(p, m)
    return (p - 1) / (m + p - 1)


def bubble_of_ideal(p: int, m: int) -> float:
    """Idle time over ideal time, for GPipe and 1F1B: (p-1)/m.

    Source: Narayanan et al., arXiv 2104.04473, section 2.2.1 (there t_pb / t_id).
    """
    _check(p, m)
    return (p - 1) / m


def in_flight(schedule: str, p: int, m: int, rank: int) -> int:
    """The most micro-batches whose activations a rank holds at once.

        gpipe   m                 every forward comes before the first backward
        1f1b    min(p - rank, m)  the stages behind it, and itself

    Source: arXiv 2104.04473, section 2.2.1, which bounds it by p. By rank it is the warm-up of
    p - 1 - rank forwards and the one that follows it.
    """
    _check(p, m)
    if not _whole(rank) or not 0 <= rank < p:
        raise ValueError(f"rank {rank!r} is not one of {p} stages' ranks, 0 to {p - 1}")
    if schedule == "gpipe":
        return m
    if schedule == "1f1b":
        return min(p - rank, m)
    raise ValueError(f"schedule {schedule!r} is not known; schedules are 1f1b, gpipe")


def _check(p: int, m: int) -> None:
    for value, noun in ((p, "stages"), (m, "micro-batches")):
        if not _whole(value) or value < 1:
            raise ValueError(f"{noun}: a whole number from 1, not {value!r}")


def _whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
