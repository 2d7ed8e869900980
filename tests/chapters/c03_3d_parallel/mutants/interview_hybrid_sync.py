"""Wrong answers to interview.3d.hybrid-sync, what each author must be told, and right ones."""

import torch
from torch.nn.functional import pad

from picolab import comm
from picolab.chapters.c03_3d_parallel.interview_hybrid_sync import solution


def _padded(grad, axis):
    return pad(grad, (0, -grad.numel() % comm.mesh().size(axis)))


def _chunk(total, axis):
    mesh = comm.mesh()
    return _padded(total, axis).chunk(mesh.size(axis))[mesh.rank(axis)]


def forgets_the_replicas(grad, inside, outside):
    return comm.reduce_scatter(_padded(grad, inside), inside, "shard")


def forgets_the_group(grad, inside, outside):
    return _chunk(comm.all_reduce(grad, outside, "replicas"), inside)


def replicas_first(grad, inside, outside):
    total = comm.all_reduce(grad, outside, "replicas")
    return comm.reduce_scatter(_padded(total, inside), inside, "shard")


def all_reduces_twice(grad, inside, outside):
    total = comm.all_reduce(comm.all_reduce(grad, inside, "group"), outside, "replicas")
    return _chunk(total, inside)


def all_reduces_the_world(grad, inside, outside):
    return _chunk(comm.all_reduce(grad, "world", "all"), inside)


def exchanges_the_axes(grad, inside, outside):
    return solution(grad, outside, inside)


def averages(grad, inside, outside):
    mesh = comm.mesh()
    return solution(grad, inside, outside) / (mesh.size(inside) * mesh.size(outside))


def averages_the_group(grad, inside, outside):
    return solution(grad, inside, outside) / comm.mesh().size(inside)


def averages_the_replicas(grad, inside, outside):
    return solution(grad, inside, outside) / comm.mesh().size(outside)


def takes_its_own(grad, inside, outside):
    return _chunk(grad, inside)


def pads_in_front(grad, inside, outside):
    zeros = -grad.numel() % comm.mesh().size(inside)
    return solution(pad(grad, (zeros, 0)), inside, outside)


def deals_out_in_turn(grad, inside, outside):
    s = comm.mesh().size(inside)
    return solution(_padded(grad, inside).view(-1, s).T.reshape(-1), inside, outside)


def cuts_the_padding_off(grad, inside, outside):
    mesh = comm.mesh()
    got = solution(grad, inside, outside)
    first = mesh.rank(inside) * len(got)
    return got[: max(0, grad.numel() - first)]


def sums_the_group_twice(grad, inside, outside):
    total = comm.all_reduce(grad, inside, "group")
    mine = comm.reduce_scatter(_padded(total, inside), inside, "shard")
    return comm.all_reduce(mine, outside, "replicas")


def scatters_over_all(grad, inside, outside):
    return comm.reduce_scatter(_padded(grad, "world"), "world", "shard")


def gathers_the_shard(grad, inside, outside):
    return comm.all_gather(solution(grad, inside, outside), inside, "whole")


def gathers_the_replicas(grad, inside, outside):
    mine = comm.reduce_scatter(_padded(grad, inside), inside, "shard")
    return comm.all_gather(mine.view(1, -1), outside, "replicas").sum(0)


def gathers_objects(grad, inside, outside):
    import torch.distributed as dist

    everyones = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, grad)
    return _chunk(sum(everyones), inside)


def works_in_fp32(grad, inside, outside):
    return solution(grad.float(), inside, outside)


def returns_nothing(grad, inside, outside):
    solution(grad, inside, outside)


def writes_into_the_gradient(grad, inside, outside):
    total = comm.all_reduce(grad, "world", "all")
    grad.copy_(total)
    return _chunk(grad, inside)


def adds_in_halves(grad, inside, outside):
    half = grad / 2
    return solution(half, inside, outside) + solution(half, inside, outside)


def does_not_pad(grad, inside, outside):
    mine = comm.reduce_scatter(grad, inside, "shard")
    return comm.all_reduce(mine, outside, "replicas")


def fills_a_tensor(grad, inside, outside):
    s = comm.mesh().size(inside)
    share = -(-grad.numel() // s)
    whole = torch.zeros(s * share, dtype=grad.dtype)
    whole[: grad.numel()] = grad
    part = comm.reduce_scatter(whole, inside, "group", async_op=True).wait()
    return comm.all_reduce(part, outside, "replicas", async_op=True).wait()


def scatters_rows(grad, inside, outside):
    s = comm.mesh().size(inside)
    rows = _padded(grad, inside).reshape(s, -1)
    [part] = comm.reduce_scatter(rows, inside, "group")
    return comm.all_reduce(part, outside, "replicas")


MUTANTS = {
    forgets_the_replicas: "it is the sum over the shard group; its replicas saw other tokens",
    forgets_the_group: "it is summed over the replicas only",
    replicas_first: "its all-reduces carry",
    all_reduces_twice: "all-reduces, and the budget is 0 over tp",
    all_reduces_the_world: "it communicates over the ranks",
    exchanges_the_axes: "and the budget is 0 over",
    averages: "it is the mean over all ranks",
    averages_the_group: "it is divided by the ranks of one axis",
    averages_the_replicas: "it is divided by the ranks of one axis",
    takes_its_own: "it is this rank's own part: nothing was summed",
    pads_in_front: "zeros stand in front",
    deals_out_in_turn: "numbers were dealt out in turn",
    cuts_the_padding_off: "the shard has the shape",
    sums_the_group_twice: "was it summed twice along the same axis?",
    scatters_over_all: "the shard has the shape",
    gathers_the_shard: "it uses all-gathers",
    gathers_the_replicas: "it uses all-gathers",
    gathers_objects: "it uses `all_gather_object`",
    works_in_fp32: "is in torch.float32",
    returns_nothing: "the shard is None",
    writes_into_the_gradient: "it changed its input `grad`",
    adds_in_halves: "it takes 2 reduce-scatters",
    does_not_pad: "cannot split 7 rows",
}
RIGHT = (fills_a_tensor, scatters_rows)
