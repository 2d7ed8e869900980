"""Wrong answers to 4d.collectives.scatter-gather, and what each author must be told."""

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
}
