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


def _by_hand(x, shard, rows, axis, *, whole=_whole, dw=None, given=lambda mine, shard: mine):
    """A layer of its own, with one thing to be done otherwise."""

    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, shard):
            ctx.save_for_backward(x, shard)
            return x @ whole(shard, rows, axis).T

        @staticmethod
        def backward(ctx, dy):
            x, shard = ctx.saved_tensors
            made = (dw or _product)(dy, x)
            return dy @ whole(shard, rows, axis), given(_scattered(made, rows, axis), shard)

    return Linear.apply(x, shard)


def _product(dy, x):
    return dy.flatten(0, -2).T @ x.flatten(0, -2)


def sums_tokens_first(x, shard, rows, axis):
    def dw(dy, x):
        return torch.outer(dy.flatten(0, -2).sum(0), x.flatten(0, -2).sum(0))

    return _by_hand(x, shard, rows, axis, dw=dw)


def gathers_bf16(x, shard, rows, axis):
    def whole(shard, rows, axis):
        return _whole(shard.bfloat16(), rows, axis).to(shard.dtype)

    return _by_hand(x, shard, rows, axis, whole=whole)


def scatters_bf16(x, shard, rows, axis):
    def dw(dy, x):
        return _product(dy, x).bfloat16()

    return _by_hand(x, shard, rows, axis, dw=dw, given=lambda mine, shard: mine.to(shard.dtype))


def adds_it_by_hand_too(x, shard, rows, axis):
    def given(mine, shard):
        shard.grad = mine.clone() if shard.grad is None else shard.grad + mine
        return mine

    return _by_hand(x, shard, rows, axis, given=given)


def pads_the_gradient_at_the_end(x, shard, rows, axis):
    counts, me = _parts(rows, axis), comm.mesh().rank(axis)

    def scatter(dw, rows, axis):
        mine = comm.reduce_scatter(pad(dw, (0, 0, 0, len(counts) * counts[0] - rows)), axis, "dw")
        return mine[: counts[me]]

    return _linear(x, shard, rows, axis, scatter=scatter)


def nothing_for_a_first_layer(x, shard, rows, axis):
    """Where x needs no gradient it computes none at all."""

    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, shard):
            ctx.save_for_backward(x, shard)
            return x @ _whole(shard, rows, axis).T

        @staticmethod
        def backward(ctx, dy):
            x, shard = ctx.saved_tensors
            if not ctx.needs_input_grad[0]:
                return None, None
            return dy @ _whole(shard, rows, axis), _scattered(_product(dy, x), rows, axis)

    return Linear.apply(x, shard)


def sends_inputs(x, shard, rows, axis):
    """Everybody's inputs go to the weights, and the outputs back: tensor parallelism's way."""
    counts, me = _parts(rows, axis), comm.mesh().rank(axis)

    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, shard):
            ctx.save_for_backward(x, shard)
            every = comm.all_gather(x.unsqueeze(0).contiguous(), axis, "x")
            own = every @ pad(shard, (0, 0, 0, counts[0] - len(shard))).T
            parts = comm.all_gather(own.unsqueeze(0).contiguous(), axis, "y")[:, me]
            return torch.cat([part[..., :count] for part, count in zip(parts, counts)], -1)

        @staticmethod
        def backward(ctx, dy):
            x, shard = ctx.saved_tensors
            return dy @ _whole(shard, rows, axis), _scattered(_product(dy, x), rows, axis)

    return Linear.apply(x, shard)


MUTANTS = {
    lets_autograd_save_the_whole: "bytes of whole weights are still held",
    even_rows_only: "all_gather",
    keeps_it_beside: "bytes of whole weights are still held",
    keeps_it_and_gathers_once: "bytes of whole weights are still held",
    keeps_it_in_a_cache: "bytes of whole weights are still held",
    keeps_a_half: "what has to travel needs 4",
    keeps_the_padding: "has the shape",
    cuts_the_padding_at_the_end: "padding was cut off at the end",
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
    sums_tokens_first: "tokens were summed before the product",
    gathers_bf16: "the weight was rounded on the way",
    scatters_bf16: "its numbers are bf16 ones",
    adds_it_by_hand_too: "it is twice the sum",
    pads_the_gradient_at_the_end: "it is of other rows",
    nothing_for_a_first_layer: "a first layer learns, too",
    sends_inputs: "all-gathers, and the budget is 4",
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


def by_hooks_on_what_is_saved(x, shard, rows, axis):
    """autograd's own product: of the whole it is given a note, and gathers when it asks."""

    class Whole(torch.autograd.Function):
        @staticmethod
        def forward(ctx, shard):
            return _whole(shard, rows, axis)

        @staticmethod
        def backward(ctx, dw):
            return _scattered(dw, rows, axis)

    whole = Whole.apply(shard)
    place, shape = whole.data_ptr(), whole.shape

    def pack(saved):
        return saved.shape if saved.data_ptr() == place and saved.numel() else saved

    def unpack(saved):
        if isinstance(saved, torch.Size):
            again = _whole(shard.detach(), rows, axis)
            return again if saved == shape else again.T
        return saved

    tokens = x.flatten(0, -2)
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        y = tokens @ whole.T
    return y.unflatten(0, x.shape[:-1])


RIGHT = (in_raw_torch, resizes_its_memory, by_hooks_on_what_is_saved)
