"""Wrong answers to 3d.zero.gather, what each author must be told, and right ones."""

import torch
from torch.nn.functional import pad

from picolab import comm, costs
from picolab.chapters.c03_3d_parallel.gathered_linear import solution


def _parts(rows, axis):
    return [len(part) for part in costs.even_slices(rows, comm.mesh().size(axis))]


def _whole(shard, rows, axis):
    counts = _parts(rows, axis)
    line = pad(shard, (0, 0, 0, counts[0] - len(shard)))
    lines = comm.all_gather(line, axis, "w").split(counts[0])
    return torch.cat([one[:count] for one, count in zip(lines, counts)])


def _scattered(dw, rows, axis):
    counts = _parts(rows, axis)
    lines = [pad(part, (0, 0, 0, counts[0] - len(part))) for part in dw.split(counts)]
    mine = comm.reduce_scatter(torch.cat(lines), axis, "dw")
    return mine[: counts[comm.mesh().rank(axis)]]


def _linear(
    x,
    shard,
    rows,
    axis,
    *,
    save=None,
    again=None,
    dx=lambda dx, axis: dx,
    dw=lambda dw: dw,
    scatter=_scattered,
):
    """The solution, with one thing to be done otherwise."""

    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, shard):
            whole = _whole(shard, rows, axis)
            ctx.kept = None if save is None else save(whole)
            ctx.save_for_backward(x, shard)
            return x @ whole.T

        @staticmethod
        def backward(ctx, dy):
            x, shard = ctx.saved_tensors
            whole = _whole(shard, rows, axis) if again is None else again(ctx.kept, shard)
            found = dy.flatten(0, -2).T @ x.flatten(0, -2)
            return dx(dy @ whole, axis), scatter(dw(found), rows, axis)

    return Linear.apply(x, shard)


def lets_autograd_save_the_whole(x, shard, rows, axis):
    class Gather(torch.autograd.Function):
        @staticmethod
        def forward(ctx, shard):
            return _whole(shard, rows, axis)

        @staticmethod
        def backward(ctx, dw):
            return _scattered(dw, rows, axis)

    return x @ Gather.apply(shard).T


def keeps_it_beside(x, shard, rows, axis):
    return _linear(x, shard, rows, axis, save=lambda w: w)


def keeps_it_and_gathers_once(x, shard, rows, axis):
    return _linear(x, shard, rows, axis, save=lambda w: w, again=lambda w, shard: w)


_CACHE = {}


def keeps_it_in_a_cache(x, shard, rows, axis):
    def save(whole):
        _CACHE[rows] = whole

    return _linear(x, shard, rows, axis, save=save)


def keeps_a_half(x, shard, rows, axis):
    """In halves, each smaller than the weight."""

    def save(whole):
        return [half.clone() for half in whole.chunk(2)]

    def again(halves, shard):
        return torch.cat(halves)

    return _linear(x, shard, rows, axis, save=save, again=again)


def even_rows_only(x, shard, rows, axis):
    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, shard):
            ctx.save_for_backward(x, shard)
            return x @ comm.all_gather(shard, axis, "w").T

        @staticmethod
        def backward(ctx, dy):
            x, shard = ctx.saved_tensors
            dw = dy.flatten(0, -2).T @ x.flatten(0, -2)
            whole = comm.all_gather(shard, axis, "w")
            return dy @ whole, comm.reduce_scatter(dw, axis, "dw")

    return Linear.apply(x, shard)


def keeps_the_padding(x, shard, rows, axis):
    most = _parts(rows, axis)[0]
    line = pad(shard, (0, 0, 0, most - len(shard)))
    return x @ comm.all_gather(line, axis, "w").T


def cuts_the_padding_at_the_end(x, shard, rows, axis):
    def whole(shard):
        most = _parts(rows, axis)[0]
        line = pad(shard, (0, 0, 0, most - len(shard)))
        return comm.all_gather(line, axis, "w")[:rows]

    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, shard):
            ctx.save_for_backward(x, shard)
            return x @ whole(shard).T

        @staticmethod
        def backward(ctx, dy):
            x, shard = ctx.saved_tensors
            dw = dy.flatten(0, -2).T @ x.flatten(0, -2)
            return dy @ whole(shard), _scattered(dw, rows, axis)

    return Linear.apply(x, shard)


def does_not_sum(x, shard, rows, axis):
    def own(dw, rows, axis):
        _scattered(dw, rows, axis)
        return dw.split(_parts(rows, axis))[comm.mesh().rank(axis)]

    return _linear(x, shard, rows, axis, scatter=own)


def averages(x, shard, rows, axis):
    n = comm.mesh().size(axis)
    return _linear(x, shard, rows, axis, dw=lambda dw: dw / n)


def sums_dx(x, shard, rows, axis):
    return _linear(x, shard, rows, axis, dx=lambda dx, axis: comm.all_reduce(dx, axis, "dx"))


def all_reduces_the_gradient(x, shard, rows, axis):
    def summed(dw, rows, axis):
        total = comm.all_reduce(dw, axis, "dw")
        return total.split(_parts(rows, axis))[comm.mesh().rank(axis)]

    return _linear(x, shard, rows, axis, scatter=summed)


def transposes(x, shard, rows, axis):
    return _linear(x, shard, rows, axis, dw=lambda dw: -dw)


def multiplies_its_rows_alone(x, shard, rows, axis):
    found = x.new_zeros(*x.shape[:-1], rows)
    found[..., : len(shard)] = x @ shard.T
    return found


def detaches(x, shard, rows, axis):
    return x.detach() @ _whole(shard.detach(), rows, axis).T


def no_gradient_of_x(x, shard, rows, axis):
    return _linear(x.detach(), shard, rows, axis)


def over_all_ranks(x, shard, rows, axis):
    counts, world = _parts(rows, axis), comm.mesh().size("world")
    n = comm.mesh().size(axis)
    line = pad(shard, (0, 0, 0, counts[0] - len(shard)))
    lines = comm.all_gather(line, "world", "w").split(counts[0])[:: world // n]
    whole = torch.cat([one[:count] for one, count in zip(lines, counts)])
    del whole
    return solution(x, shard, rows, axis)


def gathers_three_times(x, shard, rows, axis):
    _whole(shard.detach(), rows, axis)
    return solution(x, shard, rows, axis)


def gathers_objects(x, shard, rows, axis):
    import torch.distributed as dist

    group = comm.mesh().group(axis)
    everyones = [None] * comm.mesh().size(axis)
    dist.all_gather_object(everyones, shard.detach(), group=group)
    return solution(x, shard, rows, axis)


MUTANTS = {
    lets_autograd_save_the_whole: "bytes of whole weights are still held",
    even_rows_only: "all_gather",
    keeps_it_beside: "bytes of whole weights are still held",
    keeps_it_and_gathers_once: "bytes of whole weights are still held",
    keeps_it_in_a_cache: "bytes of whole weights are still held",
    keeps_a_half: "what has to travel needs 4",
    keeps_the_padding: "has the shape",
    cuts_the_padding_at_the_end: "is wrong",
    does_not_sum: "it is this rank's own",
    averages: "it is the mean over the ranks",
    sums_dx: "it uses all-reduces",
    all_reduces_the_gradient: "it uses all-reduces",
    transposes: "the wrong sign",
    multiplies_its_rows_alone: "this rank's rows alone",
    detaches: "no gradient can flow back",
    no_gradient_of_x: "the gradient of x is None",
    gathers_three_times: "all-gathers, and the budget is 4",
    gathers_objects: "all_gather_object",
}


def resizes_its_memory(x, shard, rows, axis):
    """As the package: the whole is a leaf whose memory comes and goes; hooks instead of a
    Function."""

    class Leave(torch.autograd.Function):
        @staticmethod
        def forward(ctx, shard, whole):
            return whole.detach()

        @staticmethod
        def backward(ctx, dw):
            return _scattered(dw, rows, axis), None

    whole = Leave.apply(shard, _whole(shard.detach(), rows, axis))
    y = x @ whole.T
    storage, size = whole.untyped_storage(), whole.untyped_storage().nbytes()
    storage.resize_(0)

    def again(_):
        storage.resize_(size)
        whole.data.copy_(_whole(shard.detach(), rows, axis))

    y.register_hook(again)
    return y


def in_raw_torch(x, shard, rows, axis):
    import torch.distributed as dist

    counts, group = _parts(rows, axis), comm.mesh().group(axis)
    n, most = len(counts), counts[0]
    me = comm.mesh().rank(axis)

    def whole(shard):
        line = shard.new_zeros(most, shard.shape[1])
        line[: len(shard)] = shard
        found = shard.new_empty(n * most, shard.shape[1])
        dist.all_gather_into_tensor(found, line, group=group)
        keep = [i * most + k for i, count in enumerate(counts) for k in range(count)]
        return found[keep]

    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, shard):
            ctx.save_for_backward(x, shard)
            return torch.nn.functional.linear(x, whole(shard))

        @staticmethod
        def backward(ctx, dy):
            x, shard = ctx.saved_tensors
            dx = torch.einsum("...o,oi->...i", dy, whole(shard))
            dw = torch.einsum("no,ni->oi", dy.flatten(0, -2), x.flatten(0, -2))
            full = dw.new_zeros(n, most, dw.shape[1])
            for i, part in enumerate(dw.split(counts)):
                full[i, : len(part)] = part
            mine = dw.new_empty(most, dw.shape[1])
            dist.reduce_scatter_tensor(mine, full.flatten(0, 1), group=group)
            return dx, mine[: counts[me]].clone()

    return Linear.apply(x, shard)


RIGHT = (in_raw_torch, resizes_its_memory)
