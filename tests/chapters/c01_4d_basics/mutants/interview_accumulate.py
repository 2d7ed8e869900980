"""Wrong answers to interview.4d.accumulate, what each author must be told, and right ones."""

import torch

from picolab import comm
from picolab.chapters.c01_4d_basics.interview_accumulate import solution


def _accumulate(parameters, micro_batches, loss_sum, each=lambda total, valid: total):
    """Local sums of each(total, valid), and how many tokens they are of."""
    totals = torch.zeros(2, dtype=torch.float64)
    for batch in micro_batches:
        total, valid = loss_sum(batch)
        part = each(total, valid)
        part.backward()
        totals += torch.tensor([part.item(), valid], dtype=torch.float64)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return totals


def _reduce(parameters, axis, scale):
    flat = torch.cat([p.grad.flatten() for p in parameters])
    comm.all_reduce(flat, axis, "gradients")
    for p, piece in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.grad.copy_(piece.view_as(p) * scale)


def mean_of_micro_batch_means(parameters, micro_batches, loss_sum, axis):
    m, n = len(micro_batches), comm.mesh().size(axis)
    mean = lambda total, valid: total / valid / m  # noqa: E731
    totals = _accumulate(parameters, micro_batches, loss_sum, mean)
    comm.all_reduce(totals, axis, "loss")
    _reduce(parameters, axis, 1 / n)
    return totals[0] / n


def mean_of_rank_means(parameters, micro_batches, loss_sum, axis):
    n = comm.mesh().size(axis)
    totals = _accumulate(parameters, micro_batches, loss_sum)
    for parameter in parameters:
        parameter.grad /= totals[1]
    loss = totals[0] / totals[1]
    comm.all_reduce(loss, axis, "loss")
    _reduce(parameters, axis, 1 / n)
    return loss / n


def never_divides(parameters, micro_batches, loss_sum, axis):
    totals = _accumulate(parameters, micro_batches, loss_sum)
    comm.all_reduce(totals, axis, "loss and valid tokens")
    _reduce(parameters, axis, 1.0)
    return totals[0] / totals[1]


def divides_by_the_ranks_too(parameters, micro_batches, loss_sum, axis):
    totals = _accumulate(parameters, micro_batches, loss_sum)
    comm.all_reduce(totals, axis, "loss and valid tokens")
    _reduce(parameters, axis, 1 / totals[1] / comm.mesh().size(axis))
    return totals[0] / totals[1]


def sends_after_every_micro_batch(parameters, micro_batches, loss_sum, axis):
    sums, totals = [torch.zeros_like(p) for p in parameters], torch.zeros(2, dtype=torch.float64)
    for batch in micro_batches:
        totals += _accumulate(parameters, [batch], loss_sum)
        _reduce(parameters, axis, 1.0)
        for total, parameter in zip(sums, parameters):
            total += parameter.grad
            parameter.grad = None
    comm.all_reduce(totals, axis, "loss and valid tokens")
    for total, parameter in zip(sums, parameters):
        parameter.grad = total / totals[1]
    return totals[0] / totals[1]


def one_backward_for_all(parameters, micro_batches, loss_sum, axis):
    parts = [loss_sum(batch) for batch in micro_batches]
    total = sum(part for part, _ in parts)
    total.backward()
    totals = torch.tensor([total.item(), sum(v for _, v in parts)], dtype=torch.float64)
    comm.all_reduce(totals, axis, "loss and valid tokens")
    _reduce(parameters, axis, 1 / totals[1])
    return totals[0] / totals[1]


def nobody_sends(parameters, micro_batches, loss_sum, axis):
    totals = _accumulate(parameters, micro_batches, loss_sum)
    for parameter in parameters:
        parameter.grad /= totals[1]
    return totals[0] / totals[1]


def one_all_reduce_a_parameter(parameters, micro_batches, loss_sum, axis):
    totals = _accumulate(parameters, micro_batches, loss_sum)
    comm.all_reduce(totals, axis, "loss and valid tokens")
    for parameter in parameters:
        _reduce([parameter], axis, 1 / totals[1])
    return totals[0] / totals[1]


def leaves_without_micro_batches(parameters, micro_batches, loss_sum, axis):
    if micro_batches:
        return solution(parameters, micro_batches, loss_sum, axis)
    return torch.zeros((), dtype=torch.float64)


def loss_of_this_rank(parameters, micro_batches, loss_sum, axis):
    totals = _accumulate(parameters, micro_batches, loss_sum)
    valid = totals[1:].clone()
    comm.all_reduce(valid, axis, "valid tokens")
    _reduce(parameters, axis, 1 / valid)
    return totals[0] / totals[1]


def gathers_objects(parameters, micro_batches, loss_sum, axis):
    import torch.distributed as dist

    totals = _accumulate(parameters, micro_batches, loss_sum)
    everyones = [None] * comm.mesh().size(axis)
    mine = (totals, [p.grad for p in parameters])
    dist.all_gather_object(everyones, mine, group=comm.mesh().group(axis))
    totals = sum(one[0] for one in everyones)
    for i, parameter in enumerate(parameters):
        parameter.grad = sum(one[1][i] for one in everyones) / totals[1]
    return totals[0] / totals[1]


def divides_by_its_own_tokens(parameters, micro_batches, loss_sum, axis):
    totals = _accumulate(parameters, micro_batches, loss_sum)
    own = totals[1].clone()
    comm.all_reduce(totals, axis, "loss and valid tokens")
    _reduce(parameters, axis, 1 / own)
    return totals[0] / own


def divides_by_the_micro_batches_too(parameters, micro_batches, loss_sum, axis):
    each = lambda total, valid: total / len(micro_batches)  # noqa: E731
    totals = _accumulate(parameters, micro_batches, loss_sum, each)
    comm.all_reduce(totals, axis, "loss and valid tokens")
    _reduce(parameters, axis, 1 / totals[1])
    return totals[0] / totals[1]


def divides_by_the_ranks_only(parameters, micro_batches, loss_sum, axis):
    n = comm.mesh().size(axis)
    totals = _accumulate(parameters, micro_batches, loss_sum)
    comm.all_reduce(totals, axis, "loss and valid tokens")
    _reduce(parameters, axis, 1 / n)
    return totals[0] / n


def zeroes_before_every_backward(parameters, micro_batches, loss_sum, axis):
    totals = torch.zeros(2, dtype=torch.float64)
    for batch in micro_batches:
        for parameter in parameters:
            parameter.grad = None
        totals += _accumulate(parameters, [batch], loss_sum)
    comm.all_reduce(totals, axis, "loss and valid tokens")
    _reduce(parameters, axis, 1 / totals[1])
    return totals[0] / totals[1]


def counts_in_fp32(parameters, micro_batches, loss_sum, axis):
    totals = _accumulate(parameters, micro_batches, loss_sum).float()
    comm.all_reduce(totals, axis, "loss and valid tokens")
    _reduce(parameters, axis, 1 / totals[1].double())
    return (totals[0] / totals[1]).double()


def counts_padding_as_one_token(parameters, micro_batches, loss_sum, axis):
    totals = _accumulate(parameters, micro_batches, loss_sum)
    totals[1] = totals[1].clamp(min=len(micro_batches) + 1)
    comm.all_reduce(totals, axis, "loss and valid tokens")
    _reduce(parameters, axis, 1 / totals[1])
    return totals[0] / totals[1]


def returns_a_float(parameters, micro_batches, loss_sum, axis):
    return solution(parameters, micro_batches, loss_sum, axis).item()


def reduces_over_the_world(parameters, micro_batches, loss_sum, axis):
    return solution(parameters, micro_batches, loss_sum, "world")


def steps_too(parameters, micro_batches, loss_sum, axis):
    loss = solution(parameters, micro_batches, loss_sum, axis)
    with torch.no_grad():
        for parameter in parameters:
            parameter -= 0.1 * parameter.grad
    return loss


def leaves_the_gradients(parameters, micro_batches, loss_sum, axis):
    totals = _accumulate(parameters, micro_batches, loss_sum)
    comm.all_reduce(totals, axis, "loss and valid tokens")
    flat = torch.cat([p.grad.flatten() for p in parameters])
    comm.all_reduce(flat, axis, "gradients")
    return totals[0] / totals[1]


def sends_one_tensor(parameters, micro_batches, loss_sum, axis):
    numbers = sum(p.numel() for p in parameters)
    flat = torch.zeros(numbers + 2, dtype=torch.float64)
    for batch in micro_batches:
        total, valid = loss_sum(batch)
        grads = torch.autograd.grad(total, parameters)
        flat[:-2] += torch.cat([g.reshape(-1) for g in grads])
        flat[-2] += total.detach()
        flat[-1] += valid
    comm.all_reduce(flat, axis, "all of it")
    mean = flat[:-1] / flat[-1]
    at = 0
    for p in parameters:
        p.grad = mean[at : at + p.numel()].view_as(p).clone()
        at += p.numel()
    return mean[-1]


def counts_before_it_begins(parameters, micro_batches, loss_sum, axis):
    import torch.distributed as dist

    group = comm.mesh().group(axis)
    sums = torch.zeros(2, dtype=torch.float64)
    for p in parameters:
        p.grad = torch.zeros_like(p)
    for batch in micro_batches:
        part, valid = loss_sum(batch)
        part.backward()
        sums[0] += part.detach()
        sums[1] += valid
    flat = torch.nn.utils.parameters_to_vector([p.grad for p in parameters])
    works = [dist.all_reduce(t, group=group, async_op=True) for t in (flat, sums)]
    for work in works:
        work.wait()
    torch.nn.utils.vector_to_parameters(flat / sums[1], [p.grad for p in parameters])
    return sums[0].div(sums[1])


MUTANTS = {
    mean_of_micro_batch_means: "every micro-batch's mean has the same weight in it",
    mean_of_rank_means: "every rank's mean has the same weight in it",
    never_divides: "nobody divided by their number",
    divides_by_the_ranks_too: "it is divided by the number of ranks too",
    sends_after_every_micro_batch: "it takes 3 all-reduces, and the budget is 2",
    one_backward_for_all: "holds the activations of 2 micro-batches at once",
    nobody_sends: "nobody added up the ranks'",
    one_all_reduce_a_parameter: "it takes 3 all-reduces, and the budget is 2",
    leaves_without_micro_batches: "rank 2",
    loss_of_this_rank: "the loss is wrong: it is this rank's own mean",
    gathers_objects: "it uses `all_gather_object`",
    divides_by_its_own_tokens: "divided by this rank's own number",
    divides_by_the_micro_batches_too: "it is divided by the number of",
    divides_by_the_ranks_only: "divided by the number of ranks",
    zeroes_before_every_backward: "it is that of each rank's last micro-batch alone",
    counts_in_fp32: "its numbers are fp32 ones",
    counts_padding_as_one_token: "all of it is",
    returns_a_float: "the loss is of type float, and a tensor was expected",
    reduces_over_the_world: "it communicates over the ranks (0, 1, 2, 3)",
    steps_too: "it changed the weights",
    leaves_the_gradients: "it is this rank's own sum",
}
RIGHT = (sends_one_tensor, counts_before_it_begins)
