"""Wrong answers to 4d.collectives.scatter-gather, what each author must be told, and right ones."""

import torch
from torch.nn.functional import pad

from picolab import comm
from picolab.chapters.c01_4d_basics.scatter_gather import solution


def _padded(x, n):
    return pad(x.reshape(-1), (0, -x.numel() % n))


def updates_the_whole_sum(x, axis, update):
    mine = comm.reduce_scatter(_padded(x, comm.mesh().size(axis)), axis, "sum")
    whole = comm.all_gather(mine, axis, "gather")
    return update(whole[: x.numel()].view(x.shape))


def updates_before_the_sum(x, axis, update):
    n = comm.mesh().size(axis)
    shares = [update(share) for share in _padded(x, n).chunk(n)]
    mine = comm.reduce_scatter(torch.cat(shares), axis, "sum")
    return comm.all_gather(mine, axis, "gather")[: x.numel()].view(x.shape)


def drops_what_update_returns(x, axis, update):
    mine = comm.reduce_scatter(_padded(x, comm.mesh().size(axis)), axis, "sum")
    update(mine)
    return comm.all_gather(mine, axis, "gather")[: x.numel()].view(x.shape)


def averages(x, axis, update):
    n = comm.mesh().size(axis)
    mine = comm.reduce_scatter(_padded(x, n), axis, "sum") / n
    return comm.all_gather(update(mine), axis, "gather")[: x.numel()].view(x.shape)


def takes_all_ranks(x, axis, update):
    return solution(x, "world", update)


def keeps_the_padding(x, axis, update):
    mine = comm.reduce_scatter(_padded(x, comm.mesh().size(axis)), axis, "sum")
    return comm.all_gather(update(mine), axis, "gather")


def pads_in_front(x, axis, update):
    padded = pad(x.reshape(-1), (-x.numel() % comm.mesh().size(axis), 0))
    mine = comm.reduce_scatter(padded, axis, "sum")
    return comm.all_gather(update(mine), axis, "gather")[: x.numel()].view(x.shape)


def pads_by_n_always(x, axis, update):
    n = comm.mesh().size(axis)
    mine = comm.reduce_scatter(pad(x.reshape(-1), (0, n - x.numel() % n)), axis, "sum")
    return comm.all_gather(update(mine), axis, "gather")[: x.numel()].view(x.shape)


def splits_rows(x, axis, update):
    mine = comm.reduce_scatter(x, axis, "sum")
    return comm.all_gather(update(mine), axis, "gather")


def calls_all_reduce(x, axis, update):
    n, me = comm.mesh().size(axis), comm.mesh().rank(axis)
    total = comm.all_reduce(_padded(x, n), axis, "sum")
    return comm.all_gather(update(total.chunk(n)[me]), axis, "gather")[: x.numel()].view(x.shape)


def gathers_objects(x, axis, update):
    import torch.distributed as dist

    m = comm.mesh()
    everyones = [None] * m.size(axis)
    dist.all_gather_object(everyones, x, group=m.group(axis))
    shares = _padded(sum(everyones), m.size(axis)).chunk(m.size(axis))
    own = update(shares[m.rank(axis)])
    dist.all_gather_object(everyones, own, group=m.group(axis))
    return torch.cat(everyones)[: x.numel()].view(x.shape)


def gathers_everything_first(x, axis, update):
    m = comm.mesh()
    total = comm.all_gather(x.reshape(1, -1), axis, "all of it").sum(0)
    shares = _padded(total, m.size(axis)).chunk(m.size(axis))
    return comm.all_gather(update(shares[m.rank(axis)]), axis, "g")[: x.numel()].view(x.shape)


def returns_it_flat(x, axis, update):
    return solution(x, axis, update).flatten()


def deals_the_numbers_out_in_turn(x, axis, update):
    n = comm.mesh().size(axis)
    dealt = _padded(x, n).view(-1, n).T.reshape(-1)
    mine = comm.reduce_scatter(dealt, axis, "sum")
    return comm.all_gather(update(mine), axis, "gather")[: x.numel()].view(x.shape)


def works_in_fp32(x, axis, update):
    return solution(x.float(), axis, update)


def pads_for_two_ranks(x, axis, update):
    mine = comm.reduce_scatter(_padded(x, 2), axis, "sum")
    return comm.all_gather(update(mine), axis, "gather")[: x.numel()].view(x.shape)


def broadcasts_each_share(x, axis, update):
    n, me = comm.mesh().size(axis), comm.mesh().rank(axis)
    mine = update(comm.reduce_scatter(_padded(x, n), axis, "sum"))
    shares = [mine.clone() if rank == me else torch.empty_like(mine) for rank in range(n)]
    for rank, share in enumerate(shares):
        comm.broadcast(share, axis, "share", source=rank)
    return torch.cat(shares)[: x.numel()].view(x.shape)


def pads_x_itself(x, axis, update):
    x.data = _padded(x, comm.mesh().size(axis))
    mine = comm.reduce_scatter(x, axis, "sum")
    return comm.all_gather(update(mine), axis, "gather")


def updates_the_mean_and_scales(x, axis, update):
    n = comm.mesh().size(axis)
    mine = comm.reduce_scatter(_padded(x, n), axis, "sum")
    return n * comm.all_gather(update(mine / n), axis, "gather")[: x.numel()].view(x.shape)


def returns_its_share_among_zeros(x, axis, update):
    n, me = comm.mesh().size(axis), comm.mesh().rank(axis)
    mine = update(comm.reduce_scatter(_padded(x, n), axis, "sum"))
    comm.all_gather(mine, axis, "gather")
    whole = torch.zeros(n, len(mine), dtype=x.dtype)
    whole[me] = mine
    return whole.flatten()[: x.numel()].view(x.shape)


def updates_twice(x, axis, update):
    mine = comm.reduce_scatter(_padded(x, comm.mesh().size(axis)), axis, "sum")
    return comm.all_gather(update(update(mine)), axis, "g")[: x.numel()].view(x.shape)


def sums_by_all_to_all(x, axis, update):
    n = comm.mesh().size(axis)
    mine = comm.all_to_all(_padded(x, n).view(n, -1), axis, "to owners").sum(0)
    return comm.all_gather(update(mine), axis, "gather")[: x.numel()].view(x.shape)


def calls_torch_itself(x, axis, update):
    import torch.distributed as dist

    m = comm.mesh()
    n, group = m.size(axis), m.group(axis)
    share = -(-x.numel() // n)
    flat = torch.zeros(n * share, dtype=x.dtype)
    flat[: x.numel()] = x.reshape(-1)
    mine = torch.empty(share, dtype=x.dtype)
    dist.reduce_scatter_tensor(mine, flat, group=group)
    dist.all_gather_into_tensor(flat, update(mine), group=group)
    return flat[: x.numel()].reshape(x.shape)


def updates_number_by_number(x, axis, update):
    n = comm.mesh().size(axis)
    mine = comm.reduce_scatter(torch.cat((x.flatten(), x.new_zeros(-x.numel() % n))), axis, "sum")
    mine = torch.stack([update(number) for number in mine])
    return comm.all_gather(mine, axis, "gather").narrow(0, 0, x.numel()).view_as(x)


MUTANTS = {
    updates_the_whole_sum: "update your share alone",
    updates_before_the_sum: "than the sum of updates",
    drops_what_update_returns: "use what `update` returns",
    averages: "it is the update of the mean",
    takes_all_ranks: "it communicates over the ranks (0, 1, 2, 3)",
    keeps_the_padding: "the result has the shape (16,), and should have (3, 5)",
    pads_in_front: "all numbers are moved by 1",
    pads_by_n_always: "its reduce-scatters carry 96 B, and the budget is 64 B",
    splits_rows: "cannot split 3 rows (dim 0) over 2 ranks",
    calls_all_reduce: "it uses all-reduces",
    gathers_objects: "it uses `all_gather_object`",
    gathers_everything_first: "it takes 2 all-gathers, and the budget is 1",
    returns_it_flat: "its numbers are right, and only the shape is not",
    deals_the_numbers_out_in_turn: "the shares come together interleaved",
    works_in_fp32: "the result is in torch.float32",
    pads_for_two_ranks: "cannot split 20 rows (dim 0) over 3 ranks",
    broadcasts_each_share: "it uses broadcasts",
    pads_x_itself: "it changed its input `x`",
    updates_the_mean_and_scales: "n times the update of the mean",
    returns_its_share_among_zeros: "only this rank's share is in it",
    updates_twice: "it is updated twice",
    sums_by_all_to_all: "it uses all-to-alls",
}
RIGHT = (calls_torch_itself, updates_number_by_number)
