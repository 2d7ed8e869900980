"""Wrong answers to 4d.tp.column-backward, what each author must be told, and right ones."""

import torch

from picolab import comm


def _local(x, w, dy):
    return dy @ w, dy.flatten(0, 1).T @ x.flatten(0, 1)


def no_all_reduce(x, w, dy):
    return _local(x, w, dy)


def does_not_wait(x, w, dy):
    dx, dw = _local(x, w, dy)
    comm.all_reduce(dx, "tp", "dx", async_op=True)
    return dx, dw


def reduces_dw_too(x, w, dy):
    dx, dw = _local(x, w, dy)
    return comm.all_reduce(dx, "tp", "dx"), comm.all_reduce(dw, "tp", "dw")


def reduces_dw_instead(x, w, dy):
    dx, dw = _local(x, w, dy)
    return dx, comm.all_reduce(dw, "tp", "dw")


def averages(x, w, dy):
    dx, dw = _local(x, w, dy)
    return comm.all_reduce(dx, "tp", "dx", op="avg"), dw


def sums_over_the_world(x, w, dy):
    dx, dw = _local(x, w, dy)
    return comm.all_reduce(dx, "world", "dx"), dw


def gathers_instead(x, w, dy):
    whole_w = comm.all_gather(w, "tp", "w")
    whole_dy = comm.all_gather(dy.contiguous(), "tp", "dy", dim=2)
    return whole_dy @ whole_w, _local(x, w, dy)[1]


def reduces_each_sequence(x, w, dy):
    dx, dw = _local(x, w, dy)
    for sequence in dx:
        comm.all_reduce(sequence, "tp", "dx")
    return dx, dw


def takes_the_first_sequence(x, w, dy):
    dx, _ = _local(x, w, dy)
    return comm.all_reduce(dx, "tp", "dx"), dy[0].T @ x[0]


def transposes_dw(x, w, dy):
    dx, dw = _local(x, w, dy)
    return comm.all_reduce(dx, "tp", "dx"), dw.T


def scales_dy_in_place(x, w, dy):
    dy *= x.shape[0]
    dx, dw = _local(x, w, dy)
    return comm.all_reduce(dx, "tp", "dx") / x.shape[0], dw / x.shape[0]


def writes_dx_into_x(x, w, dy):
    dx, dw = _local(x, w, dy)
    return x.copy_(comm.all_reduce(dx, "tp", "dx")), dw


def forgets_dw(x, w, dy):
    return comm.all_reduce(dy @ w, "tp", "dx")


def calls_the_packages(x, w, dy):
    from picolab.parallel.tensor_comm import column_linear

    x, w = x.requires_grad_(), w.requires_grad_()
    column_linear(x, w).backward(dy)
    return x.grad, w.grad


def gathers_objects(x, w, dy):
    import torch.distributed as dist

    dx, dw = _local(x, w, dy)
    everyones = [None] * comm.mesh().size("tp")
    dist.all_gather_object(everyones, dx, group=comm.mesh().group("tp"))
    return sum(everyones), dw


def returns_them_the_other_way_round(x, w, dy):
    dx, dw = _local(x, w, dy)
    return dw, comm.all_reduce(dx, "tp", "dx")


def works_in_fp32(x, w, dy):
    dx, dw = _local(x.float(), w.float(), dy.float())
    return comm.all_reduce(dx, "tp", "dx"), dw


def sends_in_fp32(x, w, dy):
    dx, dw = _local(x, w, dy)
    return comm.all_reduce(dx.float(), "tp", "dx").double(), dw


def reduces_and_broadcasts(x, w, dy):
    import torch.distributed as dist

    dx, dw = _local(x, w, dy)
    first, group = comm.mesh().ranks("tp")[0], comm.mesh().group("tp")
    dist.reduce(dx, first, group=group)
    dist.broadcast(dx, first, group=group)
    return dx, dw


def transposes_w(x, w, dy):
    return comm.all_reduce(dy @ w.T, "tp", "dx"), _local(x, w, dy)[1]


def averages_dw_over_the_sequences(x, w, dy):
    dx, dw = _local(x, w, dy)
    return comm.all_reduce(dx, "tp", "dx"), dw / len(x)


def averages_dw_over_the_tokens(x, w, dy):
    dx = _local(x, w, dy)[0]
    dw = torch.einsum("bsf,bsd->bsfd", dy, x).mean((0, 1))
    return comm.all_reduce(dx, "tp", "dx"), dw


def leaves_without_rows(x, w, dy):
    if not len(w):
        return torch.zeros_like(x), torch.zeros_like(w)
    dx, dw = _local(x, w, dy)
    return comm.all_reduce(dx, "tp", "dx"), dw


def sums_over_dp(x, w, dy):
    dx, dw = _local(x, w, dy)
    return comm.all_reduce(dx, "dp", "dx"), dw


def adds_x(x, w, dy):
    dx, dw = _local(x, w, dy)
    return x + comm.all_reduce(dx, "tp", "dx"), dw


def sums_dx_twice(x, w, dy):
    dx, dw = _local(x, w, dy)
    comm.all_reduce(dx, "tp", "dx")
    return comm.all_reduce(dx, "tp", "dx"), dw


def asks_autograd(x, w, dy):
    import torch.distributed as dist

    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    dx, dw = torch.autograd.grad(torch.nn.functional.linear(x, w), (x, w), dy)
    dist.all_reduce(dx, group=comm.mesh().group("tp"))
    return dx, dw


def sums_outer_products(x, w, dy):
    dx = torch.einsum("bsf,fd->bsd", dy, w)
    work = comm.all_reduce(dx, "tp", "dx", async_op=True)
    dw = torch.einsum("bsf,bsd->fd", dy, x)
    work.wait()
    return [dx, dw]


MUTANTS = {
    no_all_reduce: "nobody adds up the ranks' parts",
    does_not_wait: "once `wait()` returns",
    reduces_dw_too: "dw stays where it is made",
    reduces_dw_instead: "what was all-reduced is another tensor",
    averages: "it is the mean over the 2 ranks",
    sums_over_the_world: "it communicates over the ranks (0, 1, 2, 3)",
    gathers_instead: "it uses all-gathers; allowed are all-reduces",
    reduces_each_sequence: "it takes 2 all-reduces, and the budget is 1",
    takes_the_first_sequence: "the first sequence alone is in it",
    transposes_dw: "dw has the shape (5, 3), and should have (3, 5)",
    scales_dy_in_place: "it changed its input `dy`",
    writes_dx_into_x: "it changed its input `x`",
    forgets_dw: "it returns one thing; asked for is `return dx, dw`",
    calls_the_packages: "is what this exercise asks you to write",
    gathers_objects: "it uses `all_gather_object`",
    returns_them_the_other_way_round: "it returns the right tensors in the order dw, dx",
    works_in_fp32: "dx is in torch.float32, and should be in torch.float64",
    sends_in_fp32: "its numbers are fp32 ones",
    reduces_and_broadcasts: "it uses reduces",
    transposes_w: "shapes cannot be multiplied",
    averages_dw_over_the_sequences: "it is the mean over the sequences",
    averages_dw_over_the_tokens: "it is the mean over the tokens",
    leaves_without_rows: "rank 3 returned",
    sums_over_dp: "it finishes no all-reduce",
    adds_x: "it is added to x",
    sums_dx_twice: "are in it 2, 2 times, and should be 1, 1 times",
}
RIGHT = (asks_autograd, sums_outer_products)
