"""Wrong answers to interview.3d.reshard, what each author must be told, and right ones."""

from picolab import comm
from picolab.chapters.c03_3d_parallel.interview_reshard import solution


def reads_its_own_number(sizes, old, new, rank):
    reads = []
    for tensor, size in enumerate(sizes):
        chunk, mine = -(-size // old), -(-size // new)
        first, last = min(rank * chunk, size), min((rank + 1) * chunk, size)
        length = min(mine, last - first)
        if rank < old and length > 0:
            reads.append((tensor, rank, 0, length, 0))
    return reads


def counts_in_the_whole_tensor(sizes, old, new, rank):
    reads = []
    for tensor, source, start, stop, at in solution(sizes, old, new, rank):
        first = source * -(-sizes[tensor] // old)
        reads.append((tensor, source, start + first, stop + first, at))
    return reads


def places_in_the_whole_tensor(sizes, old, new, rank):
    return [
        (tensor, source, start, stop, at + rank * -(-sizes[tensor] // new))
        for tensor, source, start, stop, at in solution(sizes, old, new, rank)
    ]


def reads_everything(sizes, old, new, rank):
    reads = []
    for tensor, size in enumerate(sizes):
        chunk = -(-size // old)
        for source in range(old):
            first, last = min(source * chunk, size), min((source + 1) * chunk, size)
            if first < last:
                reads.append((tensor, source, 0, last - first, first))
    return reads


def reads_padding(sizes, old, new, rank):
    reads = []
    for tensor, size in enumerate(sizes):
        chunk, mine = -(-size // old), -(-size // new)
        begin, end = rank * mine, (rank + 1) * mine
        for source in range(old):
            start, stop = max(begin, source * chunk), min(end, (source + 1) * chunk)
            if start < stop:
                reads.append((tensor, source, start - source * chunk, stop - source * chunk,
                              start - begin))  # fmt: skip
    return reads


def rounds_down(sizes, old, new, rank):
    reads = []
    for tensor, size in enumerate(sizes):
        chunk, mine = max(size // old, 1), max(size // new, 1)
        begin, end = min(rank * mine, size), min((rank + 1) * mine, size)
        for source in range(old):
            first, last = min(source * chunk, size), min((source + 1) * chunk, size)
            start, stop = max(begin, first), min(end, last)
            if start < stop:
                reads.append((tensor, source, start - first, stop - first, start - begin))
    return reads


def deals_out_evenly(sizes, old, new, rank):
    """The remainder on the first ranks, one each: another cut than torch.chunk's."""

    def bounds(size, world, r):
        base, spare = divmod(size, world)
        first = r * base + min(r, spare)
        return first, first + base + (r < spare)

    reads = []
    for tensor, size in enumerate(sizes):
        begin, end = bounds(size, new, rank)
        for source in range(old):
            first, last = bounds(size, old, source)
            start, stop = max(begin, first), min(end, last)
            if start < stop:
                reads.append((tensor, source, start - first, stop - first, start - begin))
    return reads


def number_by_number(sizes, old, new, rank):
    return [
        (tensor, source, k, k + 1, at + k - start)
        for tensor, source, start, stop, at in solution(sizes, old, new, rank)
        for k in range(start, stop)
    ]


def two_sources_at_most(sizes, old, new, rank):
    taken = {}
    for read in solution(sizes, old, new, rank):
        taken.setdefault(read[0], []).append(read)
    return [read for reads in taken.values() for read in reads[:2]]


def forgets_the_end(sizes, old, new, rank):
    return [
        (tensor, source, start, stop - 1, at)
        for tensor, source, start, stop, at in solution(sizes, old, new, rank)
        if stop - start > 1
    ]


def one_tensor_only(sizes, old, new, rank):
    return [read for read in solution(sizes, old, new, rank) if read[0] == 0]


def one_flat_vector(sizes, old, new, rank):
    return solution([sum(sizes)], old, new, rank)


def exchanges_the_worlds(sizes, old, new, rank):
    return solution(sizes, new, old, min(rank, old - 1))


def keeps_empty_reads(sizes, old, new, rank):
    reads = []
    for tensor, size in enumerate(sizes):
        chunk, mine = -(-size // old), -(-size // new)
        begin, end = min(rank * mine, size), min((rank + 1) * mine, size)
        for source in range(old):
            first, last = min(source * chunk, size), min((source + 1) * chunk, size)
            start = min(max(begin, first), last)
            stop = max(min(end, last), start)
            reads.append((tensor, source, start - first, stop - first, max(start - begin, 0)))
    return reads


def always_from_place_zero(sizes, old, new, rank):
    return [(*read[:4], 0) for read in solution(sizes, old, new, rank)]


def gives_lengths(sizes, old, new, rank):
    return [
        (tensor, source, start, stop - start, at)
        for tensor, source, start, stop, at in solution(sizes, old, new, rank)
    ]


def leaves_out_the_tensor(sizes, old, new, rank):
    return [read[1:] for read in solution(sizes, old, new, rank)]


def returns_nothing(sizes, old, new, rank):
    solution(sizes, old, new, rank)


def returns_a_mapping(sizes, old, new, rank):
    return {read[0]: read[1:] for read in solution(sizes, old, new, rank)}


def divides_as_a_fraction(sizes, old, new, rank):
    return [tuple(map(float, read)) for read in solution(sizes, old, new, rank)]


def only_shrinking(sizes, old, new, rank):
    if new > old:
        return reads_its_own_number(sizes, old, new, rank)
    return solution(sizes, old, new, rank)


def knows_few_ranks(sizes, old, new, rank):
    return solution(sizes, old, new, rank) if max(old, new) < 12 else []


def asks_the_others(sizes, old, new, rank):
    comm.barrier("dp", "together")
    return solution(sizes, old, new, rank)


def reads_twice(sizes, old, new, rank):
    reads = solution(sizes, old, new, rank)
    return reads + reads[-1:]


def number_for_number_then_merged(sizes, old, new, rank):
    """Where does each number of mine lie? Neighbours are joined."""
    reads = []
    for tensor, size in enumerate(sizes):
        chunk, mine = -(-size // old), -(-size // new)
        for at, number in enumerate(range(rank * mine, min((rank + 1) * mine, size))):
            source, place = divmod(number, chunk)
            if reads and reads[-1][:2] == [tensor, source] and reads[-1][3] == place:
                reads[-1][3] += 1
            else:
                reads.append([tensor, source, place, place + 1, at])
    return reads


def walks_along(sizes, old, new, rank):
    reads = []
    for tensor, size in enumerate(sizes):
        chunk, mine = -(-size // old), -(-size // new)
        begin = now = rank * mine
        end = min(begin + mine, size)
        while now < end:
            source = now // chunk
            stop = min(end, (source + 1) * chunk)
            first = source * chunk
            reads.append((tensor, source, now - first, stop - first, now - begin))
            now = stop
    return tuple(reads)


MUTANTS = {
    reads_its_own_number: "is never read",
    counts_in_the_whole_tensor: "start and stop count from the shard's own beginning",
    places_in_the_whole_tensor: "`at` counts from the new shard's own beginning",
    reads_everything: "the new shard of rank",
    reads_padding: "padding is not stored",
    rounds_down: "is never read",
    deals_out_evenly: "is never read",
    number_by_number: "are enough: one from each old shard",
    two_sources_at_most: "is never read",
    forgets_the_end: "is never read",
    one_tensor_only: "of tensor 1, place 0 of the new shard, is never read",
    one_flat_vector: "of which it reads",
    exchanges_the_worlds: "the new shard of rank",
    keeps_empty_reads: "it reads nothing",
    always_from_place_zero: "was filled already",
    gives_lengths: "it reads nothing",
    leaves_out_the_tensor: "a read is five whole numbers",
    returns_nothing: "returns None; asked for is a list of reads",
    returns_a_mapping: "returns a dict",
    divides_as_a_fraction: "a read is five whole numbers",
    only_shrinking: "is never read",
    knows_few_ranks: "is never read",
    asks_the_others: "it uses barriers; allowed are none at all",
    reads_twice: "was filled already",
}
RIGHT = (number_for_number_then_merged, walks_along)
