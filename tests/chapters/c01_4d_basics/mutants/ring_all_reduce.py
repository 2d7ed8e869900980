"""Wrong answers to 4d.ring.all-reduce, what each author must be told, and right ones."""

from picolab import comm
from picolab.chapters.c01_4d_basics.ring_all_reduce import solution


def _walk(x, reduce_at, gather_at, add=True):
    import torch
    import torch.distributed as dist

    n, me = dist.get_world_size(), dist.get_rank()
    right, left = (me + 1) % n, (me - 1) % n
    chunks = x.view(-1).tensor_split(n)
    for step in range(n - 1):
        mine, theirs = (chunks[i % n] for i in reduce_at(me, step))
        arrived = torch.empty_like(theirs)
        comm.exchange(mine, right, arrived, left, "world", "ring")
        if add:
            theirs += arrived
        else:
            theirs.copy_(arrived)
    for step in range(n - 1):
        mine, theirs = (chunks[i % n] for i in gather_at(me, step))
        comm.exchange(mine, right, theirs, left, "world", "ring")


def _right_reduce(me, step):
    return me - step, me - step - 1


def _right_gather(me, step):
    return me + 1 - step, me - step


def second_loop_starts_one_off(x):
    _walk(x, _right_reduce, lambda me, step: (me - step, me - step - 1))


def overwrites_instead_of_adding(x):
    _walk(x, _right_reduce, _right_gather, add=False)


def whole_tensor_goes_round(x):
    import torch
    import torch.distributed as dist

    n, me = dist.get_world_size(), dist.get_rank()
    passing, arrived = x.clone(), torch.empty_like(x)
    for _ in range(n - 1):
        comm.exchange(passing, (me + 1) % n, arrived, (me - 1) % n, "world", "ring")
        x += arrived
        passing.copy_(arrived)


def calls_all_reduce(x):
    import torch.distributed as dist

    dist.all_reduce(x)


def calls_the_packages(x):
    comm.ring_all_reduce(x)


def all_send_first(x):
    import torch
    import torch.distributed as dist

    n, me = dist.get_world_size(), dist.get_rank()
    for _ in range(n - 1):
        comm.recv(torch.empty_like(x), (me - 1) % n, "world", "ring")
        comm.send(x, (me + 1) % n, "world", "ring")


def returns_a_new_tensor(x):
    total = x.clone()
    solution(total)
    return total


def gathers_objects(x):
    import torch.distributed as dist

    everyones = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, x)
    x.copy_(sum(everyones))


def gathers_and_scatters(x):
    import torch
    import torch.distributed as dist

    n, root = dist.get_world_size(), dist.get_rank() == 0
    everyones = [torch.empty_like(x) for _ in range(n)] if root else None
    dist.gather(x, everyones, dst=0)
    dist.scatter(x, [sum(everyones)] * n if root else None, src=0)


def reduces_and_broadcasts(x):
    import torch.distributed as dist

    dist.reduce(x, 0)
    dist.broadcast(x, 0)


def functional_all_reduce(x):
    import torch.distributed as dist
    from torch.distributed import _functional_collectives as functional

    x.copy_(functional.all_reduce(x.clone(), "sum", dist.group.WORLD))


def goes_through_rank_zero(x):
    import torch
    import torch.distributed as dist

    n, me = dist.get_world_size(), dist.get_rank()
    if me:
        comm.send(x, 0, "world", "to the root")
        comm.recv(x, 0, "world", "from the root")
        return
    for other in range(1, n):
        x += comm.recv(torch.empty_like(x), other, "world", "to the root")
    for other in range(1, n):
        comm.send(x, other, "world", "from the root")


def gives_each_chunk_to_its_owner(x):
    import torch
    import torch.distributed as dist

    n, me = dist.get_world_size(), dist.get_rank()
    chunks = x.view(-1).tensor_split(n)
    own = chunks[me].clone()
    for step in range(1, n):
        to, source = (me + step) % n, (me - step) % n
        own += comm.exchange(chunks[to], to, torch.empty_like(own), source, "world", "to owners")
    chunks[me].copy_(own)
    for step in range(1, n):
        to, source = (me + step) % n, (me - step) % n
        comm.exchange(own, to, chunks[source], source, "world", "from owners")


def needs_a_size_that_n_divides(x):
    import torch.distributed as dist

    x.view(dist.get_world_size(), -1)
    solution(x)


def knows_two_ranks_only(x):
    import torch
    import torch.distributed as dist

    other = 1 - dist.get_rank()
    x += comm.exchange(x.clone(), other, torch.empty_like(x), other, "world", "ring")


def sends_in_fp32(x):
    import torch
    import torch.distributed as dist

    n, me = dist.get_world_size(), dist.get_rank()
    right, left = (me + 1) % n, (me - 1) % n
    chunks = x.view(-1).tensor_split(n)
    for step in range(2 * (n - 1)):
        late = step >= n - 1
        mine, theirs = chunks[(me - step + late * n) % n], chunks[(me - step - 1 + late * n) % n]
        arrived = torch.empty_like(theirs, dtype=torch.float32)
        comm.exchange(mine.float(), right, arrived, left, "world", "ring")
        theirs.copy_(arrived if late else theirs + arrived)


def stops_after_the_first_loop(x):
    import torch
    import torch.distributed as dist

    n, me = dist.get_world_size(), dist.get_rank()
    chunks = x.view(-1).tensor_split(n)
    for step in range(n - 1):
        mine, theirs = chunks[(me - step) % n], chunks[(me - step - 1) % n]
        arrived = torch.empty_like(theirs)
        theirs += comm.exchange(mine, (me + 1) % n, arrived, (me - 1) % n, "world", "ring")


def divides_by_n(x):
    import torch.distributed as dist

    solution(x)
    x /= dist.get_world_size()


def adds_in_the_second_loop_too(x):
    import torch
    import torch.distributed as dist

    n, me = dist.get_world_size(), dist.get_rank()
    chunks = x.view(-1).tensor_split(n)
    for step in range(2 * (n - 1)):
        late = step >= n - 1
        mine, theirs = chunks[(me - step + late * n) % n], chunks[(me - step - 1 + late * n) % n]
        arrived = torch.empty_like(theirs)
        theirs += comm.exchange(mine, (me + 1) % n, arrived, (me - 1) % n, "world", "ring")


def turns_to_the_left(x):
    import torch
    import torch.distributed as dist

    n, me = dist.get_world_size(), dist.get_rank()
    chunks = list(x.view(-1).tensor_split(n))
    for step in range(2 * n - 2):
        out, into = chunks[(me + step) % n], chunks[(me + step + 1) % n]
        arrived = torch.empty_like(into)
        both = [
            dist.P2POp(dist.isend, out.clone(), (me - 1) % n),
            dist.P2POp(dist.irecv, arrived, (me + 1) % n),
        ]
        for work in dist.batch_isend_irecv(both):
            work.wait()
        if step < n - 1:
            arrived += into
        into.copy_(arrived)


def even_ranks_send_first(x):
    import torch
    import torch.distributed as dist

    n, me = dist.get_world_size(), dist.get_rank()
    chunks, place = x.view(-1).tensor_split(n), me
    for half in ("reduce", "gather"):
        for _ in range(n - 1):
            arrived = torch.empty_like(chunks[(place - 1) % n])
            work = dist.isend(chunks[place % n], (me + 1) % n)
            dist.recv(arrived, (me - 1) % n)
            work.wait()
            place -= 1
            if half == "reduce":
                chunks[place % n].add_(arrived)
            else:
                chunks[place % n].copy_(arrived)


MUTANTS = {
    second_loop_starts_one_off: "x is wrong",
    overwrites_instead_of_adding: "x is wrong",
    whole_tensor_goes_round: "and the budget is",
    calls_all_reduce: "it uses all-reduces",
    calls_the_packages: "is what this exercise asks you to write",
    all_send_first: "they wait for ever",
    returns_a_new_tensor: "x is wrong",
    gathers_objects: "it uses `all_gather_object`",
    gathers_and_scatters: "it uses gathers; allowed are sends and receives",
    reduces_and_broadcasts: "it uses reduces",
    functional_all_reduce: "it uses all-reduces",
    goes_through_rank_zero: "it has messages to the ranks 1, 2, 3",
    gives_each_chunk_to_its_owner: "in a ring a rank gives to one neighbour",
    needs_a_size_that_n_divides: "shape '[2, -1]' is invalid for input of size 5",
    knows_two_ranks_only: "are in it 1, 1, 0, 0 times",
    sends_in_fp32: "is something kept in fp32",
    stops_after_the_first_loop: "how often the ranks' parts are in it",
    divides_by_n: "it is the mean over the 2 ranks",
    adds_in_the_second_loop_too: "how often the ranks' parts are in it",
}
RIGHT = (turns_to_the_left, even_ranks_send_first)
