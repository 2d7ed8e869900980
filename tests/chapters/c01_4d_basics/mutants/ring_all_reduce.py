"""Wrong answers to 4d.ring.all-reduce, and what each author must be told."""

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


MUTANTS = {
    second_loop_starts_one_off: "x is wrong",
    overwrites_instead_of_adding: "x is wrong",
    whole_tensor_goes_round: "and the budget is",
    calls_all_reduce: "it uses all-reduces",
    calls_the_packages: "is what this exercise asks you to write",
    all_send_first: "they wait for ever",
    returns_a_new_tensor: "x is wrong",
}
