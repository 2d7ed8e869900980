"""Wrong answers to interview.4d.accumulate, and what each author must be told."""

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
}
