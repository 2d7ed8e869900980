"""Wrong answers to interview.4d.tied-embedding, and what each author must be told."""

import torch

from picolab import comm


def _ends():
    mesh = comm.mesh()
    stage, last = mesh.rank("pp"), mesh.size("pp") - 1
    return stage, last, last if stage == 0 else 0


def _tie(weight, grad, copy=True, exchange=True, reduce=True):
    if weight is None:
        return None, None
    weight, grad = weight.clone(), grad.clone()
    stage, last, other = _ends()
    if last and copy:
        (comm.send if stage == 0 else comm.recv)(weight, other, "pp", "values")
    if last and exchange:
        grad += comm.exchange(grad.clone(), other, torch.empty_like(grad), other, "pp", "gradient")
    return weight, comm.all_reduce(grad, "dp", "gradient") if reduce else grad


def leaves_the_values(weight, grad):
    return _tie(weight, grad, copy=False)


def averages_the_values(weight, grad):
    if weight is None:
        return None, None
    (_, last, other), (_, grad) = _ends(), _tie(weight, grad, copy=False)
    if not last:
        return weight, grad
    theirs = torch.empty_like(weight)
    return (weight + comm.exchange(weight, other, theirs, other, "pp", "values")) / 2, grad


def trains_the_head_alone(weight, grad):
    return _tie(weight, grad, exchange=False)


def forgets_the_replicas(weight, grad):
    return _tie(weight, grad, reduce=False)


def averages_the_uses(weight, grad):
    weight, grad = _tie(weight, grad)
    return weight, grad if grad is None or not _ends()[1] else grad / 2


def answers_with_the_sum(weight, grad):
    if weight is None:
        return None, None
    stage, last, other = _ends()
    weight, grad = _tie(weight, grad, exchange=False, reduce=False)
    if last:
        theirs = torch.empty_like(grad)
        if stage == 0:
            grad += comm.recv(theirs, other, "pp", "gradient")
            comm.send(grad, other, "pp", "the sum")
        else:
            comm.send(grad, other, "pp", "gradient")
            grad += comm.recv(theirs, other, "pp", "the sum")
    return weight, comm.all_reduce(grad, "dp", "gradient")


def sums_over_the_whole_line(weight, grad):
    weight, mine = _tie(weight, grad, exchange=False)
    mine = torch.zeros(7, 3, dtype=torch.float64) if mine is None else mine
    total = comm.all_reduce(mine, "pp", "gradient")
    return weight, None if weight is None else total


def sums_over_the_world(weight, grad):
    weight, mine = _tie(weight, grad, exchange=False, reduce=False)
    mine = torch.zeros(7, 3, dtype=torch.float64) if mine is None else mine
    total = comm.all_reduce(mine, "world", "gradient")
    return weight, None if weight is None else total


def both_wait_first(weight, grad):
    if weight is None:
        return None, None
    _, last, other = _ends()
    weight, grad = _tie(weight, grad, exchange=False)
    if last:
        mine = grad.clone()
        grad += comm.recv(torch.empty_like(grad), other, "pp", "gradient")
        comm.send(mine, other, "pp", "gradient")
    return weight, grad


MUTANTS = {
    leaves_the_values: "the last stage still has what it drew for itself",
    averages_the_values: "it is the mean of both draws",
    trains_the_head_alone: "the gradient of the other use is missing",
    forgets_the_replicas: "the other replicas' gradients are missing",
    averages_the_uses: "it is the mean over the 2 ranks",
    answers_with_the_sum: "this stage's part is in it twice",
    sums_over_the_whole_line: "it takes 1 all-reduces, and the budget is 0",
    sums_over_the_world: "it communicates over the ranks (0, 1, 2, 3)",
    both_wait_first: "they wait for ever",
}
