"""Wrong answers to 4d.cp.zigzag, and what each author must be told."""

import torch

from picolab import comm
from picolab.chapters.c01_4d_basics.zigzag_split import solution


def _take(x, cp, which, dim=1):
    chunk = x.shape[1] // (2 * cp)
    chunks = torch.arange(x.shape[1])[: 2 * cp * chunk].view(2 * cp, chunk)
    positions = torch.cat([chunks[i] for i in which])
    return x.index_select(dim, positions), positions


def _refuse(x, cp):
    if x.shape[1] % (2 * cp):
        raise ValueError("no equal chunks")


def cuts_contiguously(x, rank, cp):
    _refuse(x, cp)
    return _take(x, cp, (2 * rank, 2 * rank + 1))


def takes_r_and_r_plus_c(x, rank, cp):
    _refuse(x, cp)
    return _take(x, cp, (rank, rank + cp))


def counts_from_one_too_far(x, rank, cp):
    _refuse(x, cp)
    return _take(x, cp, (rank, (2 * cp - rank) % (2 * cp)))


def takes_the_mirrored_rank(x, rank, cp):
    _refuse(x, cp)
    return _take(x, cp, (cp - 1 - rank, cp + rank))


def gives_local_positions(x, rank, cp):
    share, positions = solution(x, rank, cp)
    return share, torch.arange(len(positions))


def gives_contiguous_positions(x, rank, cp):
    share, positions = solution(x, rank, cp)
    return share, rank * len(positions) + torch.arange(len(positions))


def reverses_the_second_chunk(x, rank, cp):
    _, positions = solution(x, rank, cp)
    first, second = positions.chunk(2)
    positions = torch.cat((first, second.flip(0)))
    return x[:, positions], positions


def puts_the_late_chunk_first(x, rank, cp):
    _refuse(x, cp)
    return _take(x, cp, (2 * cp - 1 - rank, rank))


def cuts_the_batch(x, rank, cp):
    _refuse(x, cp)
    chunk = x.shape[0] // (2 * cp)
    share = torch.cat([x[i * chunk : (i + 1) * chunk] for i in (rank, 2 * cp - 1 - rank)])
    return share, solution(x, rank, cp)[1]


def refuses_nothing(x, rank, cp):
    return _take(x, cp, (rank, 2 * cp - 1 - rank))


def asserts(x, rank, cp):
    assert x.shape[1] % (2 * cp) == 0
    return _take(x, cp, (rank, 2 * cp - 1 - rank))


def asks_for_the_half_only(x, rank, cp):
    if x.shape[1] % cp:
        raise ValueError("no equal shares")
    return _take(x, cp, (rank, 2 * cp - 1 - rank))


def forgets_the_positions(x, rank, cp):
    return solution(x, rank, cp)[0]


def asks_the_others(x, rank, cp):
    share, positions = solution(x, rank, cp)
    comm.barrier("cp")
    return share, positions


def calls_the_packages(x, rank, cp):
    from picolab.parallel.sequence_split import positions, split_sequence

    return split_sequence(x, rank, cp), positions(rank, cp, x.shape[1])


MUTANTS = {
    cuts_contiguously: "scores, and the fair share is",
    takes_r_and_r_plus_c: "scores, and the fair share is",
    counts_from_one_too_far: "scores, and the fair share is",
    takes_the_mirrored_rank: "and should hold",
    gives_local_positions: "it says that its tokens stand at 0-5",
    gives_contiguous_positions: "it says that its tokens stand at",
    reverses_the_second_chunk: "must be in that of the sequence",
    puts_the_late_chunk_first: "must be in that of the sequence",
    cuts_the_batch: "it cuts along dim 0",
    refuses_nothing: "it should raise ValueError",
    asserts: "it raises AssertionError",
    asks_for_the_half_only: "it should raise ValueError",
    forgets_the_positions: "should return (share, positions)",
    asks_the_others: "collectives, and the budget is 0",
    calls_the_packages: "is what this exercise asks you to write",
}
