"""Wrong answers to 4d.cp.zigzag, what each author must be told, and right ones."""

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


def knows_the_cps_that_were_shown(x, rank, cp):
    _refuse(x, cp)
    other = {2: 3, 3: 5, 4: 7}.get(cp, cp) - rank
    return _take(x, cp, (rank, other))


def takes_its_own_rank(x, rank, cp):
    import torch.distributed as dist

    return solution(x, dist.get_rank() % cp, cp)


def gives_a_list_of_positions(x, rank, cp):
    share, positions = solution(x, rank, cp)
    return share, positions.tolist()


def gives_positions_as_floats(x, rank, cp):
    share, positions = solution(x, rank, cp)
    return share, positions.float()


def gives_a_row_of_positions_a_sequence(x, rank, cp):
    share, positions = solution(x, rank, cp)
    return share, positions.expand(len(x), -1)


def returns_positions_first(x, rank, cp):
    return solution(x, rank, cp)[::-1]


def takes_every_cp_th_token(x, rank, cp):
    _refuse(x, cp)
    positions = torch.arange(rank, x.shape[1], cp)
    return x[:, positions], positions


def goes_there_and_back_token_by_token(x, rank, cp):
    _refuse(x, cp)
    places = torch.arange(x.shape[1]).view(-1, 2 * cp)
    positions = torch.cat((places[:, rank], places[:, 2 * cp - 1 - rank])).sort().values
    return x[:, positions], positions


def knows_tokens_only(x, rank, cp):
    _refuse(x, cp)
    chunks = x.reshape(len(x), 2 * cp, -1)
    share = torch.cat((chunks[:, rank], chunks[:, 2 * cp - 1 - rank]), 1)
    return share, solution(x, rank, cp)[1]


def pads_what_does_not_divide(x, rank, cp):
    missing = -x.shape[1] % (2 * cp)
    padded = torch.cat((x, x[:, :missing]), 1) if missing else x
    return solution(padded, rank, cp)


def refuses_odd_chunks(x, rank, cp):
    if x.shape[1] % (4 * cp):
        raise ValueError("no equal chunks")
    return solution(x, rank, cp)


def marks_the_input(x, rank, cp):
    share, positions = solution(x, rank, cp)
    x[:, positions] = 0
    return share, positions


def gathers_objects(x, rank, cp):
    import torch.distributed as dist

    told = [None] * dist.get_world_size()
    dist.all_gather_object(told, (rank, cp))
    return solution(x, rank, cp)


def joins_two_chunks(x, rank, cp):
    if x.size(1) % (cp * 2) != 0:
        raise ValueError("the sequence cannot be cut")
    pieces = x.chunk(2 * cp, dim=1)
    places = torch.arange(x.size(1), dtype=torch.int32).chunk(2 * cp)
    pair = rank, -1 - rank
    return torch.cat([pieces[i] for i in pair], 1), torch.cat([places[i] for i in pair])


def counts_token_by_token(x, rank, cp):
    chunk, rest = divmod(x.shape[1], 2 * cp)
    if rest:
        raise ValueError(rest)
    mine = [i for i in range(x.shape[1]) if min(i // chunk, 2 * cp - 1 - i // chunk) == rank]
    return torch.stack([x[:, i] for i in mine], dim=1), torch.tensor(mine)


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
    knows_the_cps_that_were_shown: "my_zigzag(x, 0, 5) with 10 tokens",
    takes_its_own_rank: "my_zigzag(x, 0, 2) with 4 tokens",
    gives_a_list_of_positions: "is of type list, and a tensor was expected",
    gives_positions_as_floats: "the positions are no integers",
    gives_a_row_of_positions_a_sequence: "the positions, (S / cp,) has the shape (4, 6)",
    returns_positions_first: "it returns the positions first",
    takes_every_cp_th_token: "scores, and the fair share is",
    goes_there_and_back_token_by_token: "and should hold",
    knows_tokens_only: "activations, (B, S, D) has the shape",
    pads_what_does_not_divide: "which 2 * cp = 4 does not divide",
    refuses_odd_chunks: "ValueError: no equal chunks",
    marks_the_input: "it changed its input `x`",
    gathers_objects: "collectives, and the budget is 0",
}
RIGHT = (joins_two_chunks, counts_token_by_token)
