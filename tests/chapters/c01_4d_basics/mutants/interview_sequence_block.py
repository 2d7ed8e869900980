"""Wrong answers to interview.4d.sequence-block, and what each author must be told."""

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
}
