"""Wrong answers to interview.4d.halving-doubling, what each author must be told, and right ones."""

from picolab import comm
from picolab.chapters.c01_4d_basics.interview_halving_doubling import solution


def _swap(x, far=False, back=True, add=False, scale=1.0):
    """The solution, with places to go wrong in."""
    import torch
    import torch.distributed as dist

    n, me = dist.get_world_size(), dist.get_rank()
    flat, start, stop = x.view(-1), 0, x.numel()
    steps, distance = [], n // 2
    while distance:
        partner = (me + distance) % n if far else me ^ distance
        middle = (start + stop) // 2
        lower, upper = flat[start:middle], flat[middle:stop]
        keep, give = (upper, lower) if me & distance else (lower, upper)
        arrived = torch.empty_like(keep)
        comm.exchange(give, partner, arrived, partner, "world", "halving")
        keep += arrived
        start, stop = (middle, stop) if me & distance else (start, middle)
        steps.append((partner, keep, give))
        distance //= 2
    for partner, keep, give in reversed(steps) if back else ():
        arrived = torch.empty_like(give)
        comm.exchange(keep, partner, arrived, partner, "world", "doubling")
        give.copy_(give + arrived if add else arrived)
    x *= scale


def stops_halfway(x):
    _swap(x, back=False)


def adds_on_the_way_back(x):
    _swap(x, add=True)


def divides_by_n(x):
    import torch.distributed as dist

    _swap(x, scale=1 / dist.get_world_size())


def partner_is_that_far_to_the_right(x):
    _swap(x, far=True)


def swaps_whole_tensors(x):
    import torch
    import torch.distributed as dist

    n, me, distance = dist.get_world_size(), dist.get_rank(), 1
    while distance < n:
        arrived = torch.empty_like(x)
        comm.exchange(x, me ^ distance, arrived, me ^ distance, "world", "doubling")
        x += arrived
        distance *= 2


def walks_round_a_ring(x):
    import torch
    import torch.distributed as dist

    n, me = dist.get_world_size(), dist.get_rank()
    right, left = (me + 1) % n, (me - 1) % n
    chunks = x.view(-1).tensor_split(n)
    for step in range(2 * (n - 1)):
        late = step >= n - 1
        mine, theirs = chunks[(me - step + late * n) % n], chunks[(me - step - 1 + late * n) % n]
        arrived = torch.empty_like(theirs)
        comm.exchange(mine, right, arrived, left, "world", "ring")
        theirs.copy_(arrived if late else theirs + arrived)


def calls_all_reduce(x):
    import torch.distributed as dist

    dist.all_reduce(x)


def returns_a_new_tensor(x):
    total = x.clone()
    solution(total)
    return total


def gathers_objects(x):
    import torch.distributed as dist

    everyones = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, x)
    x.copy_(sum(everyones))


def scatters_from_the_first(x):
    import torch
    import torch.distributed as dist

    n, root = dist.get_world_size(), dist.get_rank() == 0
    everyones = [torch.empty_like(x) for _ in range(n)] if root else None
    dist.gather(x, everyones, dst=0)
    dist.scatter(x, [sum(everyones)] * n if root else None, src=0)


def functional_all_reduce(x):
    import torch.distributed as dist
    from torch.distributed import _functional_collectives as functional

    x.copy_(functional.all_reduce(x.clone(), "sum", dist.group.WORLD))


def sends_in_fp32(x):
    import torch

    y = x.float()
    _swap(y)
    x.copy_(y.to(torch.float64))


def goes_back_the_same_way_forward(x):
    import torch
    import torch.distributed as dist

    n, me = dist.get_world_size(), dist.get_rank()
    flat, start, stop, steps, distance = x.view(-1), 0, x.numel(), [], n // 2
    while distance:
        partner, middle = me ^ distance, (start + stop) // 2
        lower, upper = flat[start:middle], flat[middle:stop]
        keep, give = (upper, lower) if me & distance else (lower, upper)
        arrived = torch.empty_like(keep)
        keep += comm.exchange(give, partner, arrived, partner, "world", "halving")
        start, stop = (middle, stop) if me & distance else (start, middle)
        steps.append((partner, keep, give))
        distance //= 2
    for partner, keep, give in steps:
        comm.exchange(keep, partner, give, partner, "world", "doubling")


def knows_four_ranks_only(x):
    import torch
    import torch.distributed as dist

    if dist.get_world_size() <= 4:
        return solution(x)
    other = dist.get_rank() ^ 1
    x += comm.exchange(x.clone(), other, torch.empty_like(x), other, "world", "halving")


def rebinds_x(x):
    import torch
    import torch.distributed as dist

    n, me, distance = dist.get_world_size(), dist.get_rank(), 1
    while distance < n:
        other = me ^ distance
        x = x + comm.exchange(x, other, torch.empty_like(x), other, "world", "doubling")
        distance *= 2


def cuts_where_n_divides(x):
    import torch.distributed as dist

    x.view(dist.get_world_size(), -1)
    solution(x)


def gives_each_share_to_its_owner(x):
    import torch
    import torch.distributed as dist

    n, me = dist.get_world_size(), dist.get_rank()
    shares = x.view(-1).tensor_split(n)
    own = shares[me].clone()
    for step in range(1, n):
        to, source = (me + step) % n, (me - step) % n
        own += comm.exchange(shares[to], to, torch.empty_like(own), source, "world", "to owners")
    shares[me].copy_(own)
    for step in range(1, n):
        to, source = (me + step) % n, (me - step) % n
        comm.exchange(own, to, shares[source], source, "world", "from owners")


def goes_through_rank_zero(x):
    import torch
    import torch.distributed as dist

    if dist.get_rank():
        comm.send(x, 0, "world", "to the root")
        comm.recv(x, 0, "world", "from the root")
        return
    for other in range(1, dist.get_world_size()):
        x += comm.recv(torch.empty_like(x), other, "world", "to the root")
    for other in range(1, dist.get_world_size()):
        comm.send(x, other, "world", "from the root")


def recurses(x):
    import torch
    import torch.distributed as dist

    def swap(part, ranks):
        if len(ranks) == 1:
            return
        half, me = len(ranks) // 2, dist.get_rank()
        first = me in ranks[:half]
        partner = ranks[(ranks.index(me) + half) % len(ranks)]
        low, high = part.tensor_split(2)
        keep, give = (low, high) if first else (high, low)
        keep += comm.exchange(give, partner, torch.empty_like(keep), partner, "world", "down")
        swap(keep, ranks[:half] if first else ranks[half:])
        comm.exchange(keep, partner, give, partner, "world", "up")

    swap(x.view(-1), list(range(dist.get_world_size())))


def pairs_neighbours_first(x):
    import torch
    import torch.distributed as dist

    me, n = dist.get_rank(), dist.get_world_size()
    parts, bit = [x.view(-1)], 1
    while bit < n:
        halves = parts[-1].chunk(2) if parts[-1].numel() > 1 else parts[-1].tensor_split(2)
        keep, give = halves if not me & bit else halves[::-1]
        arrived = torch.empty_like(keep)
        ops = [
            dist.P2POp(dist.isend, give.clone(), me ^ bit),
            dist.P2POp(dist.irecv, arrived, me ^ bit),
        ]
        for work in dist.batch_isend_irecv(ops):
            work.wait()
        keep.add_(arrived)
        parts += [give, keep]
        bit *= 2
    while bit > 1:
        bit //= 2
        keep, give = parts.pop(), parts.pop()
        ops = [
            dist.P2POp(dist.isend, keep.clone(), me ^ bit),
            dist.P2POp(dist.irecv, give, me ^ bit),
        ]
        for work in dist.batch_isend_irecv(ops):
            work.wait()


MUTANTS = {
    stops_halfway: "is missing",
    adds_on_the_way_back: "replaces what is there; yours adds it",
    divides_by_n: "it is the mean over the 2 ranks",
    partner_is_that_far_to_the_right: "they wait for ever",
    swaps_whole_tensors: "and the budget is",
    walks_round_a_ring: "it takes 6 sends, and the budget is 4",
    calls_all_reduce: "it uses all-reduces",
    returns_a_new_tensor: "it is still this rank's own",
    gathers_objects: "it uses `all_gather_object`",
    scatters_from_the_first: "it uses gathers; allowed are sends and receives",
    functional_all_reduce: "it uses all-reduces",
    sends_in_fp32: "its numbers are fp32 ones",
    goes_back_the_same_way_forward: "the steps are in reverse",
    knows_four_ranks_only: "are in it 1, 1, 0, 0, 0, 0, 0, 0 times",
    rebinds_x: "it is still this rank's own",
    cuts_where_n_divides: "shape '[2, -1]' is invalid for input of size 5",
    gives_each_share_to_its_owner: "it takes 6 sends, and the budget is 4",
    goes_through_rank_zero: "what has to travel needs 4",
}
RIGHT = (recurses, pairs_neighbours_first)
