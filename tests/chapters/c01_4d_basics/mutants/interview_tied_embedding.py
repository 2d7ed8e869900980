"""Wrong answers to interview.4d.tied-embedding, what each author must be told, and right ones."""

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


def gathers_objects(weight, grad):
    import torch.distributed as dist

    everyones = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, grad)
    return _tie(weight, grad)


def adds_the_values(weight, grad):
    if weight is None:
        return None, None
    (_, last, other), (_, total) = _ends(), _tie(weight, grad, copy=False)
    if not last:
        return weight, total
    theirs = torch.empty_like(weight)
    return weight + comm.exchange(weight, other, theirs, other, "pp", "values"), total


def takes_the_other_gradient(weight, grad):
    if weight is None:
        return None, None
    weight, grad = weight.clone(), grad.clone()
    stage, last, other = _ends()
    if last:
        (comm.send if stage == 0 else comm.recv)(weight, other, "pp", "values")
        grad = comm.exchange(grad, other, torch.empty_like(grad), other, "pp", "gradient")
    return weight, comm.all_reduce(grad, "dp", "gradient")


def gives_the_last_stages_values(weight, grad):
    if weight is None:
        return None, None
    stage, last, other = _ends()
    values, total = _tie(weight, grad, copy=False)
    if last:
        (comm.recv if stage == 0 else comm.send)(values, other, "pp", "values")
    return values, total


def returns_grad_first(weight, grad):
    return _tie(weight, grad)[::-1]


def averages_the_replicas(weight, grad):
    weight, grad = _tie(weight, grad)
    return weight, None if grad is None else grad / comm.mesh().size("dp")


def works_in_place(weight, grad):
    if weight is None:
        return None, None
    tied, total = _tie(weight, grad)
    weight.copy_(tied)
    grad.copy_(total)
    return weight, grad


def takes_two_stages_for_granted(weight, grad):
    import torch.distributed as dist

    weight, grad = weight.clone(), grad.clone()
    if dist.get_rank() >= 0:
        return _tie(weight, grad)


def sends_in_fp32(weight, grad):
    if weight is None:
        return None, None
    tied, total = _tie(weight.float(), grad.float())
    return tied.double(), total.double()


def broadcasts_the_values(weight, grad):
    if weight is None:
        return None, None
    values, total = _tie(weight, grad, copy=False)
    return comm.broadcast(values, "pp", "values"), total


def adds_before_and_after(weight, grad):
    weight, total = _tie(weight, grad)
    return weight, None if total is None else total + grad


def sends_both_in_one_message(weight, grad):
    if weight is None:
        return None, None
    m = comm.mesh()
    last = m.size("pp") - 1
    total = grad.clone()
    if last:
        theirs = torch.empty(2, *grad.shape, dtype=grad.dtype)
        if m.rank("pp") == 0:
            comm.send(torch.stack((weight, grad)), last, "pp", "values and gradient")
            total += comm.recv(torch.empty_like(grad), last, "pp", "gradient")
        else:
            comm.recv(theirs, 0, "pp", "values and gradient")
            comm.send(grad, 0, "pp", "gradient")
            weight, total = theirs[0], total + theirs[1]
    return weight, comm.all_reduce(total, "dp", "replicas")


def sums_replicas_first(weight, grad):
    import torch.distributed as dist

    if weight is None:
        return None
    m = comm.mesh()
    mine, values = grad.clone(), weight.clone()
    if m.size("dp") > 1:
        dist.all_reduce(mine, group=m.group("dp"))
    first, last = m.ranks("pp")[0], m.ranks("pp")[-1]
    if first == last:
        return [values, mine]
    theirs, me = torch.empty_like(mine), dist.get_rank()
    ops = [
        dist.P2POp(dist.isend, mine, last if me == first else first),
        dist.P2POp(dist.irecv, theirs, last if me == first else first),
    ]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    if me == first:
        dist.send(values, last)
    else:
        dist.recv(values, first)
    return [values, mine + theirs]


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
    gathers_objects: "it uses `all_gather_object`",
    adds_the_values: "it is the sum of both draws",
    takes_the_other_gradient: "it is the other use's gradient alone",
    gives_the_last_stages_values: "the first stage has what the last drew",
    returns_grad_first: "in the order grad, weight",
    averages_the_replicas: "it is the mean over the 2 ranks of dp",
    works_in_place: "it changed its input `weight`",
    takes_two_stages_for_granted: "'NoneType' object has no attribute 'clone'",
    sends_in_fp32: "fp32 ones",
    broadcasts_the_values: "it uses broadcasts",
    adds_before_and_after: "this rank's own part is in it twice",
}
RIGHT = (sends_both_in_one_message, sums_replicas_first)
