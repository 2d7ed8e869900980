"""Wrong answers to interview.3d.sharded-step, what each author must be told, and right ones."""

import torch
from torch.nn.functional import pad

from picolab import comm
from picolab.chapters.c03_3d_parallel.interview_sharded_step import solution


def _step(parameters, grad, momentum, axis, lr, beta, max_norm, *, norm, clip=None, add=None):
    """The solution with a part exchanged."""
    mesh = comm.mesh()
    n, me = mesh.size(axis), mesh.rank(axis)
    zeros = (0, -parameters.numel() % n)
    mine = comm.reduce_scatter(pad(grad, zeros), axis, "gradient")
    length = norm(mine, grad, axis)
    if clip is None:
        mine = mine * min(1.0, float(max_norm / length)) if length > 0 else mine
    else:
        mine = clip(mine, length, max_norm)
    momentum = beta * momentum + mine if add is None else add(momentum, mine, beta)
    share = pad(parameters, zeros).chunk(n)[me] - lr * momentum
    return comm.all_gather(share, axis, "parameters")[: parameters.numel()], momentum


def _global(mine, grad, axis):
    return comm.all_reduce(mine.square().sum().view(1), axis, "norm").sqrt()


def clips_by_its_share(*given):
    return _step(*given, norm=lambda mine, grad, axis: mine.norm())


def adds_up_norms(*given):
    return _step(*given, norm=lambda mine, g, axis: comm.all_reduce(mine.norm().view(1), axis, "n"))


def norm_of_unsummed(*given):
    def norm(mine, grad, axis):
        return comm.all_reduce(grad.square().sum().view(1), axis, "norm").sqrt()

    return _step(*given, norm=norm)


def norm_of_its_own(*given):
    return _step(*given, norm=lambda mine, grad, axis: grad.norm())


def forgets_the_root(*given):
    def norm(mine, grad, axis):
        return comm.all_reduce(mine.square().sum().view(1), axis, "norm")

    return _step(*given, norm=norm)


def does_not_clip(*given):
    return _step(*given, norm=_global, clip=lambda mine, length, most: mine)


def scales_up_as_well(*given):
    return _step(*given, norm=_global, clip=lambda mine, length, most: mine * (most / length))


def clips_each_number(*given):
    def clip(mine, length, most):
        return mine.clamp(-most, most)

    return _step(*given, norm=_global, clip=clip)


def forgets_the_momentum(*given):
    return _step(*given, norm=_global, add=lambda momentum, mine, beta: mine)


def weighs_the_gradient(*given):
    def add(momentum, mine, beta):
        return beta * momentum + (1 - beta) * mine

    return _step(*given, norm=_global, add=add)


def averages(parameters, grad, momentum, axis, *rest):
    return solution(parameters, grad / comm.mesh().size(axis), momentum, axis, *rest)


def takes_all_ranks(parameters, grad, momentum, axis, *rest):
    return solution(parameters, grad, momentum, "world", *rest)


def climbs(parameters, grad, momentum, axis, lr, *rest):
    return solution(parameters, grad, momentum, axis, -lr, *rest)


def keeps_the_padding(parameters, grad, momentum, axis, lr, beta, max_norm):
    n = comm.mesh().size(axis)
    zeros = (0, -parameters.numel() % n)
    whole = pad(parameters, zeros), pad(grad, zeros)
    return solution(*whole, momentum, axis, lr, beta, max_norm)


def all_reduces_the_gradient(parameters, grad, momentum, axis, lr, beta, max_norm):
    mesh = comm.mesh()
    n, me = mesh.size(axis), mesh.rank(axis)
    zeros = (0, -parameters.numel() % n)
    total = comm.all_reduce(grad, axis, "gradient")
    total = total * min(1.0, max_norm / max(float(total.norm()), 1e-300))
    momentum = beta * momentum + pad(total, zeros).chunk(n)[me]
    share = pad(parameters, zeros).chunk(n)[me] - lr * momentum
    return comm.all_gather(share, axis, "parameters")[: parameters.numel()], momentum


def does_not_gather(parameters, grad, momentum, axis, lr, beta, max_norm):
    mesh = comm.mesh()
    _, momentum = solution(parameters, grad, momentum, axis, lr, beta, max_norm)
    n, me = mesh.size(axis), mesh.rank(axis)
    shares = list(pad(parameters, (0, -parameters.numel() % n)).chunk(n))
    shares[me] = shares[me] - lr * momentum
    return torch.cat(shares)[: parameters.numel()], momentum


def returns_momentum_first(*given):
    return solution(*given)[::-1]


def returns_parameters_only(*given):
    return solution(*given)[0]


def writes_into_the_parameters(parameters, *rest):
    new, momentum = solution(parameters, *rest)
    parameters.copy_(new)
    return parameters, momentum


def works_in_fp32(parameters, grad, momentum, *rest):
    new, kept = solution(parameters.float(), grad.float(), momentum.float(), *rest)
    return new, kept


def divides_by_zero(*given):
    def clip(mine, length, most):
        return mine * torch.minimum(most / length, torch.ones(1, dtype=mine.dtype)) + 0 / length

    return _step(*given, norm=_global, clip=clip)


def gathers_norms_as_objects(parameters, grad, momentum, axis, lr, beta, max_norm):
    import torch.distributed as dist

    def norm(mine, grad, axis):
        mesh = comm.mesh()
        squares = [None] * mesh.size(axis)
        dist.all_gather_object(squares, float(mine.square().sum()), group=mesh.group(axis))
        return torch.tensor(sum(squares)).sqrt()

    return _step(parameters, grad, momentum, axis, lr, beta, max_norm, norm=norm)


def multiplies_by_a_tensor(parameters, grad, momentum, axis, lr, beta, max_norm):
    def clip(mine, length, most):
        return mine * torch.where(length > most, most / length, torch.ones_like(length))

    return _step(parameters, grad, momentum, axis, lr, beta, max_norm, norm=_global, clip=clip)


def scales_at_the_end(parameters, grad, momentum, axis, lr, beta, max_norm):
    mesh = comm.mesh()
    n, size = mesh.size(axis), parameters.numel()
    share = -(-size // n)
    first = mesh.rank(axis) * share
    whole = torch.cat([grad, grad.new_zeros(n * share - size)])
    mine = comm.reduce_scatter(whole, axis, "gradient")
    square = comm.all_reduce((mine @ mine).reshape(1), axis, "square")[0]
    factor = 1.0 if square <= max_norm**2 else max_norm / square**0.5
    kept = momentum.mul(beta).add(mine, alpha=float(factor))
    own = torch.zeros(share, dtype=parameters.dtype)
    piece = parameters[first : first + share]
    own[: len(piece)] = piece
    return comm.all_gather(own - lr * kept, axis, "parameters")[:size], kept


MUTANTS = {
    clips_by_its_share: "each rank clipped by the norm of its own share",
    adds_up_norms: "norms were added; a norm is the root of a sum of squares",
    norm_of_unsummed: "the norm is that of the unsummed gradients",
    norm_of_its_own: "the momentum that this rank keeps is wrong",
    forgets_the_root: "the square was taken for the norm",
    does_not_clip: "nothing was clipped",
    scales_up_as_well: "it is scaled up to max_norm",
    clips_each_number: "the momentum that this rank keeps is wrong",
    forgets_the_momentum: "the momentum of the step before is not in it",
    weighs_the_gradient: "the gradient is weighted by 1 - beta",
    averages: "it is the step of the mean",
    takes_all_ranks: "on 4 ranks",
    climbs: "it went up the gradient",
    keeps_the_padding: "the new parameters has the shape",
    all_reduces_the_gradient: "its all-reduces carry",
    does_not_gather: "only this rank's share has moved",
    returns_momentum_first: "the momentum that this rank keeps has the shape",
    returns_parameters_only: "it returns one thing; asked for is",
    writes_into_the_parameters: "it changed its input `parameters`",
    works_in_fp32: "is in torch.float32",
    divides_by_zero: "nan",
    gathers_norms_as_objects: "it uses `all_gather_object`",
}
RIGHT = (multiplies_by_a_tensor, scales_at_the_end)
