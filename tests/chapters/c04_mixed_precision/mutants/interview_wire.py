"""Wrong answers to interview.precision.wire, what each author must be told, and right ones."""

import torch
from torch.nn.functional import pad

from picolab import comm


def _whole(grad, axis):
    n = comm.mesh().size(axis)
    return pad(grad, (0, -grad.numel() % n)), n


def _sent(t, axis):
    return comm.all_to_all(t.contiguous(), axis, "terms")


def reduce_scatters_bf16(grad, axis):
    whole, _ = _whole(grad, axis)
    return comm.reduce_scatter(whole.bfloat16(), axis, "terms").float()


def sends_fp32(grad, axis):
    whole, n = _whole(grad, axis)
    return _sent(whole, axis).view(n, -1).sum(0)


def rounds_and_sends_fp32(grad, axis):
    whole, n = _whole(grad, axis)
    return _sent(whole.bfloat16().float(), axis).view(n, -1).sum(0)


def sums_in_bf16(grad, axis):
    whole, n = _whole(grad, axis)
    return _sent(whole.bfloat16(), axis).view(n, -1).sum(0).float()


def sums_one_by_one_in_bf16(grad, axis):
    whole, n = _whole(grad, axis)
    first, *rest = _sent(whole.bfloat16(), axis).view(n, -1)
    for one in rest:
        first = first + one
    return first.float()


def rounds_the_result(grad, axis):
    whole, n = _whole(grad, axis)
    return _sent(whole.bfloat16(), axis).view(n, -1).float().sum(0).bfloat16().float()


def returns_bf16(grad, axis):
    whole, n = _whole(grad, axis)
    return _sent(whole.bfloat16(), axis).view(n, -1).float().sum(0).bfloat16()


def keeps_its_own_exact(grad, axis):
    whole, n = _whole(grad, axis)
    me = comm.mesh().rank(axis)
    came = _sent(whole.bfloat16(), axis).view(n, -1).float()
    came[me] = whole.view(n, -1)[me]
    return came.sum(0)


def forgets_its_own(grad, axis):
    whole, n = _whole(grad, axis)
    came = _sent(whole.bfloat16(), axis).view(n, -1).float()
    came[comm.mesh().rank(axis)] = 0
    return came.sum(0)


def rounds_to_fp16(grad, axis):
    whole, n = _whole(grad, axis)
    return _sent(whole.half(), axis).view(n, -1).float().sum(0)


def cuts_off(grad, axis):
    whole, n = _whole(grad, axis)
    cut = (whole.view(torch.int32) & -65536).view(torch.float32).bfloat16()
    return _sent(cut, axis).view(n, -1).float().sum(0)


def averages(grad, axis):
    whole, n = _whole(grad, axis)
    return _sent(whole.bfloat16(), axis).view(n, -1).float().mean(0)


def divides_first(grad, axis):
    whole, n = _whole(grad / comm.mesh().size(axis), axis)
    return _sent(whole.bfloat16(), axis).view(n, -1).float().sum(0)


def gathers_everything(grad, axis):
    whole, n = _whole(grad, axis)
    all_ = comm.all_gather(whole.bfloat16().unsqueeze(0), axis, "terms").float().sum(0)
    return all_.view(n, -1)[comm.mesh().rank(axis)]


def all_reduces_and_cuts(grad, axis):
    whole, n = _whole(grad.bfloat16(), axis)
    return comm.all_reduce(whole, axis, "terms").float().view(n, -1)[comm.mesh().rank(axis)]


def interleaves(grad, axis):
    whole, n = _whole(grad, axis)
    return _sent(whole.view(-1, n).T.bfloat16(), axis).view(n, -1).float().sum(0)


def forgets_to_pad(grad, axis):
    n = comm.mesh().size(axis)
    grad = grad[: len(grad) // n * n]
    return _sent(grad.bfloat16(), axis).view(n, -1).float().sum(0)


def returns_the_padded_row(grad, axis):
    whole, n = _whole(grad, axis)
    mine = _sent(whole.bfloat16(), axis).view(n, -1).float().sum(0)
    out = torch.zeros_like(whole).view(n, -1)
    out[comm.mesh().rank(axis)] = mine
    return out.flatten()


def over_the_world(grad, axis):
    whole, n = _whole(grad, axis)
    world = comm.mesh().size("world")
    whole = whole.repeat(world // n) if world > n else whole
    return _sent(whole.bfloat16(), "world").view(world, -1).float().sum(0)


def sends_twice(grad, axis):
    whole, n = _whole(grad, axis)
    high = whole.bfloat16()
    low = (whole - high.float()).bfloat16()
    return sum(_sent(t, axis).view(n, -1).float().sum(0) for t in (high, low))


def takes_the_neighbours_share(grad, axis):
    whole, n = _whole(grad, axis)
    shifted = whole.bfloat16().view(n, -1).roll(1, 0)
    return _sent(shifted, axis).view(n, -1).float().sum(0)


def adds_in_fp64(grad, axis):
    whole, n = _whole(grad, axis)
    came = _sent(whole.to(torch.bfloat16), axis).reshape(n, -1).double()
    return came.sum(dim=0).to(torch.float32)


def adds_one_by_one_with_splits(grad, axis):
    mesh = comm.mesh()
    n, share = mesh.size(axis), -(-len(grad) // mesh.size(axis))
    rows = torch.zeros(n, share, dtype=torch.bfloat16)
    rows.view(-1)[: len(grad)] = grad.bfloat16()
    came = comm.all_to_all(rows, axis, "terms", [1] * n, [1] * n, async_op=True).wait()
    total = torch.zeros(share)
    for row in came:
        total += row
    return total


MUTANTS = {
    reduce_scatters_bf16: "it uses reduce-scatters",
    sums_in_bf16: "the sum was made in bf16",
    sends_fp32: "were not rounded to bf16",
    rounds_and_sends_fp32: "carry",
    sums_one_by_one_in_bf16: "the sum was made in bf16",
    rounds_the_result: "the sum was made in bf16",
    returns_bf16: "is in torch.bfloat16",
    keeps_its_own_exact: "own term was not rounded",
    forgets_its_own: "own term is missing",
    rounds_to_fp16: "rounded to fp16",
    cuts_off: "cut off and not rounded",
    averages: "divided by the number of ranks",
    divides_first: "divided",
    gathers_everything: "it uses all-gathers",
    all_reduces_and_cuts: "it uses all-reduces",
    interleaves: "interleaved",
    forgets_to_pad: "has the shape",
    returns_the_padded_row: "has the shape",
    over_the_world: "over the ranks",
    sends_twice: "it takes 2 all-to-alls",
    takes_the_neighbours_share: "share of another rank",
}
RIGHT = (adds_in_fp64, adds_one_by_one_with_splits)
