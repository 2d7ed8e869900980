"""Wrong answers to interview.4d.sequence-block, what each author must be told, and right ones."""

import torch

from picolab import comm


def _block(x, scale, up, down, dy, sum_scale=True):
    h = comm.all_gather(x * scale, "tp", "gather")
    a = h @ up.T
    y = comm.reduce_scatter(a.relu() @ down.T, "tp", "scatter")
    whole = comm.all_gather(dy, "tp", "gather")
    da = (whole @ down) * (a > 0)
    dh = comm.reduce_scatter(da @ up, "tp", "scatter")
    dscale = (dh * x).sum(0)
    if sum_scale:
        dscale = comm.all_reduce(dscale, "tp", "scale")
    return y, dh * scale, dscale, da.T @ h, whole.T @ a.relu()


def forgets_the_scale(x, scale, up, down, dy):
    return _block(x, scale, up, down, dy, sum_scale=False)


def averages_the_scale(x, scale, up, down, dy):
    y, dx, dscale, dup, ddown = _block(x, scale, up, down, dy)
    return y, dx, dscale / comm.mesh().size("tp"), dup, ddown


def does_not_gather_dy(x, scale, up, down, dy):
    h = comm.all_gather(x * scale, "tp", "gather")
    a = h @ up.T
    y = comm.reduce_scatter(a.relu() @ down.T, "tp", "scatter")
    da = (dy @ down) * (a > 0)
    dh = comm.reduce_scatter(da @ up, "tp", "scatter")
    dscale = comm.all_reduce((dh * x).sum(0), "tp", "scale")
    return y, dh * scale, dscale, da.T @ h, dy.T @ a.relu()


def all_reduces_and_slices(x, scale, up, down, dy):
    own = slice(comm.mesh().rank("tp") * len(x), (comm.mesh().rank("tp") + 1) * len(x))
    h = comm.all_gather(x * scale, "tp", "gather")
    a = h @ up.T
    y = comm.all_reduce(a.relu() @ down.T, "tp", "sum")[own]
    whole = comm.all_gather(dy, "tp", "gather")
    da = (whole @ down) * (a > 0)
    dh = comm.all_reduce(da @ up, "tp", "sum")[own]
    dscale = comm.all_reduce((dh * x).sum(0), "tp", "scale")
    return y, dh * scale, dscale, da.T @ h, whole.T @ a.relu()


def gathers_the_input_again(x, scale, up, down, dy):
    comm.all_gather(x * scale, "tp", "once more for the weight's gradient")
    return _block(x, scale, up, down, dy)


def own_tokens_in_the_weights(x, scale, up, down, dy):
    y, dx, dscale, *_ = _block(x, scale, up, down, dy)
    a = (x * scale) @ up.T
    da = (dy @ down) * (a > 0)
    return y, dx, dscale, da.T @ (x * scale), dy.T @ a.relu()


def keeps_its_part_of_dx(x, scale, up, down, dy):
    me, n = comm.mesh().rank("tp"), len(x)
    y, _, dscale, dup, ddown = _block(x, scale, up, down, dy)
    h = comm.all_gather(x * scale, "tp", "gather")
    whole = comm.all_gather(dy, "tp", "gather")
    da = (whole @ down) * (h @ up.T > 0)
    return y, (da @ up)[me * n : (me + 1) * n] * scale, dscale, dup, ddown


def stops_before_the_scale(x, scale, up, down, dy):
    y, dx, dscale, dup, ddown = _block(x, scale, up, down, dy)
    return y, dx / scale, dscale, dup, ddown


def over_all_ranks(x, scale, up, down, dy):
    y, dx, dscale, dup, ddown = _block(x, scale, up, down, dy, sum_scale=False)
    return y, dx, comm.all_reduce(dscale, "world", "scale"), dup, ddown


def _with(block, **changed):
    """A right result with some of it exchanged."""
    names = ("y", "dx", "dscale", "dup", "ddown")
    return tuple({**dict(zip(names, block)), **changed}[name] for name in names)


def gathers_objects(x, scale, up, down, dy):
    import torch.distributed as dist

    everyones = [None] * comm.mesh().size("tp")
    dist.all_gather_object(everyones, x, group=comm.mesh().group("tp"))
    return _block(x, scale, up, down, dy)


def forgets_the_relu(x, scale, up, down, dy):
    h = comm.all_gather(x * scale, "tp", "gather")
    a = h @ up.T
    y = comm.reduce_scatter(a @ down.T, "tp", "scatter")
    whole = comm.all_gather(dy, "tp", "gather")
    da = whole @ down
    dh = comm.reduce_scatter(da @ up, "tp", "scatter")
    dscale = comm.all_reduce((dh * x).sum(0), "tp", "scale")
    return y, dh * scale, dscale, da.T @ h, whole.T @ a


def forgets_the_mask_in_backward(x, scale, up, down, dy):
    h = comm.all_gather(x * scale, "tp", "gather")
    a = h @ up.T
    y = comm.reduce_scatter(a.relu() @ down.T, "tp", "scatter")
    whole = comm.all_gather(dy, "tp", "gather")
    da = whole @ down
    dh = comm.reduce_scatter(da @ up, "tp", "scatter")
    dscale = comm.all_reduce((dh * x).sum(0), "tp", "scale")
    return y, dh * scale, dscale, da.T @ h, whole.T @ a.relu()


def makes_dscale_of_dx(x, scale, up, down, dy):
    y, dx, _, dup, ddown = _block(x, scale, up, down, dy, sum_scale=False)
    return y, dx, comm.all_reduce((dx * x).sum(0), "tp", "scale"), dup, ddown


def swaps_the_matrices_gradients(x, scale, up, down, dy):
    y, dx, dscale, dup, ddown = _block(x, scale, up, down, dy)
    return y, dx, dscale, ddown, dup


def transposes_dup(x, scale, up, down, dy):
    block = _block(x, scale, up, down, dy)
    return _with(block, dup=block[3].T)


def adds_the_matrices_gradients_up(x, scale, up, down, dy):
    block = _block(x, scale, up, down, dy, sum_scale=False)
    return _with(block, dup=comm.all_reduce(block[3].clone(), "tp", "up"))


def works_in_fp32(x, scale, up, down, dy):
    return _block(*(t.float() for t in (x, scale, up, down, dy)))


def averages_over_the_tokens(x, scale, up, down, dy):
    block = _block(x, scale, up, down, dy)
    tokens = len(x) * comm.mesh().size("tp")
    return _with(block, dup=block[3] / tokens, ddown=block[4] / tokens)


def scales_x_in_place(x, scale, up, down, dy):
    x *= scale
    return _block(x / scale, scale, up, down, dy)


def takes_the_mean_of_the_parts(x, scale, up, down, dy):
    block = _block(x, scale, up, down, dy)
    return _with(block, y=block[0] / comm.mesh().size("tp"))


def gathers_x_and_scales_it(x, scale, up, down, dy):
    n, me = comm.mesh().size("tp"), comm.mesh().rank("tp")
    x_all, dy_all = (comm.all_gather(t, "tp", "gather") for t in (x, dy))
    h = torch.einsum("sd,d->sd", x_all, scale)
    a = torch.einsum("sd,fd->sf", h, up)
    live = (a > 0).to(a.dtype)
    y = comm.reduce_scatter(torch.einsum("sf,df->sd", a * live, down), "tp", "y")
    da = torch.einsum("sd,df->sf", dy_all, down) * live
    dh_part = torch.einsum("sf,fd->sd", da, up)
    # Each rank's part of the sum over all tokens: the same total as each rank's own tokens.
    dscale = comm.all_reduce((dh_part * x_all).sum(0), "tp", "scale")
    dx = comm.reduce_scatter(dh_part * scale, "tp", "dx")
    assert len(dx) * n == len(x_all) and me < n
    return [
        y,
        dx,
        dscale,
        torch.einsum("sf,sd->fd", da, h),
        torch.einsum("sd,sf->df", dy_all, a * live),
    ]


def asks_autograd(x, scale, up, down, dy):
    import torch.distributed as dist

    group, n = comm.mesh().group("tp"), comm.mesh().size("tp")

    def gathered(t):
        out = t.new_empty(n * len(t), t.shape[1])
        dist.all_gather_into_tensor(out, t.contiguous(), group=group)
        return out

    def scattered(t):
        out = t.new_empty(len(t) // n, t.shape[1])
        dist.reduce_scatter_tensor(out, t.contiguous(), group=group)
        return out

    h = gathered(x * scale).requires_grad_()
    up, down = up.clone().requires_grad_(), down.clone().requires_grad_()
    part = torch.relu(h @ up.T) @ down.T
    y = scattered(part.detach())
    dh, dup, ddown = torch.autograd.grad(part, (h, up, down), gathered(dy))
    dh = scattered(dh)
    dscale = (dh * x).sum(0)
    dist.all_reduce(dscale, group=group)
    return y, dh * scale, dscale, dup, ddown


MUTANTS = {
    forgets_the_scale: "it is the part of this rank's own tokens",
    averages_the_scale: "it is the mean over the 2 ranks",
    does_not_gather_dy: "The size of tensor a (3) must match the size of tensor b (6)",
    all_reduces_and_slices: "it takes 3 all-reduces, and the budget is 1",
    gathers_the_input_again: "it takes 3 all-gathers, and the budget is 2",
    own_tokens_in_the_weights: "only this rank's own tokens are in it",
    keeps_its_part_of_dx: "it is only what this rank's rows of `up` add",
    stops_before_the_scale: "it stops before the scale",
    over_all_ranks: "it communicates over the ranks (0, 1, 2, 3)",
    gathers_objects: "it uses `all_gather_object`",
    forgets_the_relu: "the relu is missing",
    forgets_the_mask_in_backward: "the relu's mask is missing",
    makes_dscale_of_dx: "it is made of dx, which the scale is in already",
    swaps_the_matrices_gradients: "in the order y, dx, dscale, ddown, dup",
    transposes_dup: "its numbers are right, and transposed",
    adds_the_matrices_gradients_up: "they stay where they are made",
    works_in_fp32: "y is in torch.float32",
    averages_over_the_tokens: "it is the mean over the tokens",
    scales_x_in_place: "it changed its input `x`",
    takes_the_mean_of_the_parts: "it is the mean over the 2 ranks of tp",
}
RIGHT = (gathers_x_and_scales_it, asks_autograd)
