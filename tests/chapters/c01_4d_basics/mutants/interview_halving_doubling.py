"""Wrong answers to interview.4d.halving-doubling, and what each author must be told."""

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


MUTANTS = {
    stops_halfway: "is missing",
    adds_on_the_way_back: "replaces what is there; yours adds it",
    divides_by_n: "it is the mean over the 2 ranks",
    partner_is_that_far_to_the_right: "they wait for ever",
    swaps_whole_tensors: "and the budget is",
    walks_round_a_ring: "it takes 6 sends, and the budget is 4",
    calls_all_reduce: "it uses all-reduces",
    returns_a_new_tensor: "it is still this rank's own",
}
