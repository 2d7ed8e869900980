"""Interview task (question 4d-011): accumulate gradients over micro-batches and ranks whose numbers
of valid tokens differ.
"""

import torch

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_gradients(parameters, micro_batches, loss_sum, axis):
    raise NotImplementedError(f"{len(micro_batches)} micro-batches on this rank; return loss")


def solution(parameters, micro_batches, loss_sum, axis):
    import torch

    import picolab as pico

    totals = torch.zeros(2, dtype=torch.float64)  # the loss, the valid tokens
    for batch in micro_batches:
        total, valid = loss_sum(batch)
        total.backward()  # adds up in .grad, and frees what this forward kept
        totals += torch.tensor([total.item(), valid], dtype=torch.float64)
    for parameter in parameters:
        if parameter.grad is None:  # no micro-batch here; the other ranks expect us all the same
            parameter.grad = torch.zeros_like(parameter)
    pico.comm.all_reduce(totals, axis, "loss and valid tokens")
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
    pico.comm.all_reduce(flat, axis, "gradients of sums")
    flat /= totals[1]
    pieces = flat.split([parameter.numel() for parameter in parameters])
    for parameter, piece in zip(parameters, pieces):
        parameter.grad.copy_(piece.view_as(parameter))
    return totals[0] / totals[1]


def judge(learner, attempt: Attempt) -> None:
    axis, valid = attempt.case.values["axis"], attempt.case.values["valid"]
    mesh = comm.mesh()
    weights = [attempt.tensor(5, 3), attempt.tensor(5)]
    # [rank along the axis][micro-batch]: so many tokens of 3 numbers
    batches = [[attempt.tensor(tokens, 3) for tokens in rank] for rank in valid]
    parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
    watch = _Watch(parameters)
    arguments = {
        "parameters": parameters,
        "micro_batches": batches[mesh.rank(axis)],
        "loss_sum": watch.loss_sum,
        "axis": axis,
    }
    loss = attempt.call(learner, arguments, may_change=("parameters",))

    attempt.only("all_reduce")
    attempt.along(axis)
    if not all(torch.equal(p.detach(), weight) for p, weight in zip(parameters, weights)):
        attempt.wrong("it changed the weights; asked for is each parameter's .grad")
        return
    if watch.held > 1:
        attempt.wrong(
            f"it holds the activations of {watch.held} micro-batches at once: call backward before "
            "the next forward (.grad adds up by itself)"
        )
    right = _reductions(weights, batches, mesh.rank(axis))
    for index, (name, parameter) in enumerate(zip(("w", "b"), parameters)):
        wrong = {says: found[1][index] for says, found in right.items() if says}
        expected = right[""][1][index]
        if not attempt.equal(f"the gradient of {name}", parameter.grad, expected, mistakes=wrong):
            break
    else:
        wrong = {says: found[0] for says, found in right.items() if says}
        attempt.equal("the loss", loss, right[""][0], mistakes=wrong)
    attempt.budget("all_reduce", axis=axis, count=2, at_least=1)
    numbers = sum(weight.numel() for weight in weights) + 2
    attempt.budget("all_reduce", axis=axis, payload_bytes=8 * numbers, least_bytes=8 * numbers)


def _loss_sum(parameters, tokens):
    w, b = parameters
    return torch.tanh(tokens @ w.T + b).square().sum(), len(tokens)


class _Watch:
    """The model that the learner is given, and how many forwards wait for their backward."""

    def __init__(self, parameters):
        self.parameters, self.held, self._waiting = parameters, 0, 0

    def loss_sum(self, tokens):
        total, valid = _loss_sum(self.parameters, tokens)
        self._waiting += 1
        self.held = max(self.held, self._waiting)
        total.register_hook(self._gone)
        return total, valid

    def _gone(self, _):
        self._waiting -= 1


def _reductions(weights, batches, me: int) -> dict:
    """What a reduction is called ("" for the right one) -> its (loss, gradients), computed in one
    process.
    """
    ranks = [[_one(weights, batch) for batch in rank] for rank in batches]
    every = [one for rank in ranks for one in rank]
    of_ranks = [_mean(rank) for rank in ranks]
    of_batches = [_mean([one]) for one in every]
    return {
        "": _mean(every),
        "it is this rank's own mean: nobody added up the ranks'": _mean(ranks[me]),
        "it is this rank's own sum: nobody added up the ranks'": _sum(ranks[me]),
        "it is the sum over the valid tokens, and nobody divided by their number": _sum(every),
        "every rank's mean has the same weight in it, and the ranks have different numbers of "
        "valid tokens": _sum(of_ranks, 1 / len(ranks)),
        "every micro-batch's mean has the same weight in it, and they have different numbers of "
        "valid tokens": _sum(of_batches, 1 / len(every)),
        "it is the sum over the valid tokens, divided by the number of ranks": _sum(
            every, 1 / len(ranks)
        ),
        "it is divided by the number of ranks too: their valid tokens are counted already": (
            _scaled(_mean(every), 1 / len(ranks))
        ),
        "it is divided by the number of micro-batches too: each valid token counts once, whatever "
        "micro-batch it is in": _scaled(_mean(every), 1 / max(1, len(ranks[me]))),
        "it is the sum over the valid tokens of all ranks, divided by this rank's own number": (
            _scaled(_sum(every), 1 / max(1, sum(valid for *_, valid in ranks[me])))
        ),
        "it is that of each rank's last micro-batch alone: were the others' thrown away?": _scaled(
            _sum([rank[-1] for rank in ranks if rank]), 1 / sum(valid for *_, valid in every)
        ),
    }


def _one(weights, tokens):
    """(loss, gradients, valid tokens) of one micro-batch, summed over its tokens."""
    own = [weight.clone().requires_grad_() for weight in weights]
    total, valid = _loss_sum(own, tokens)
    return total.detach(), torch.autograd.grad(total, own), valid


def _sum(parts, scale=1.0):
    """(loss, gradients) of several, added up."""
    loss = sum((part[0] for part in parts), torch.zeros(())) * scale
    return loss, [sum((part[1][i] for part in parts), torch.zeros(())) * scale for i in range(2)]


def _scaled(found, scale):
    return found[0] * scale, [gradient * scale for gradient in found[1]]


def _mean(parts):
    return _sum(parts, 1 / max(1, sum(valid for *_, valid in parts)))


EXERCISE = Exercise(
    id="interview.4d.accumulate",
    goal="Every `parameter.grad` becomes the gradient of the mean loss over *all* valid tokens: of "
    "all micro-batches of all ranks of the axis, each token with the same weight. Return that mean "
    "loss, a tensor with one number, the same on every rank.",
    interface="`my_gradients(parameters, micro_batches, loss_sum, axis)`. "
    "`loss_sum(micro_batch)` runs a forward pass and returns (loss summed over the valid tokens, a "
    "tensor that can be differentiated; how many they are, an int). parameters: a list of "
    "`torch.nn.Parameter`, the same on every rank, whose `.grad` is None. micro_batches: a list, "
    "this rank's; padding makes the numbers of valid tokens differ, down to 0, and at the end of "
    "the data the lists have different lengths, down to 0. You may use "
    "`pico.comm.all_reduce(x, axis, reason)`, which sums in place.",
    budget="Two all-reduces however many micro-batches there are: the gradients as one flat "
    "tensor, and 16 bytes (in fp64, like everything here). Never the activations of two "
    "micro-batches at once.",
    hints=(
        "The mean is a sum divided by a count, and both can be added up in any order. What must "
        "not be divided by anything before the very end?",
        "`total.backward()` after each forward adds up in `.grad` by itself. Then two all-reduces: "
        "one of the tensor [summed loss, valid tokens], one of all gradients joined with "
        "`torch.cat`. A rank without micro-batches has zeros to contribute.",
        "`pico.comm.all_reduce(totals, ...)`, `pico.comm.all_reduce(flat, ...)`, "
        "`flat /= totals[1]`, then `parameter.grad.copy_(piece.view_as(parameter))` for each piece "
        "of `flat.split(...)`, and `return totals[0] / totals[1]`.",
    ),
    stub_function=my_gradients,
    solution_function=solution,
    why="Gradients are linear: the gradient of the global sum is the sum of the local ones, "
    "whichever way micro-batches and ranks were cut. The one nonlinear step, dividing by the "
    "number of valid tokens, is done once, with the global number. Dividing earlier gives each "
    "micro-batch or rank the same weight, however few tokens it has: no error, a loss that looks "
    "right, and a model that listens more to short samples (transformers PR 34191 mended it). "
    "Sending only at the end is what torch's `no_sync` is for; and as every rank enters the same "
    "two collectives, whatever its list holds, nobody waits for ever.",
    judge=judge,
    cases=(
        Case("dp2", "2 micro-batches each", {"axis": "dp", "valid": [[4, 1], [2, 6]]}),
        Case("dp2", "rank 1 has one fewer", {"axis": "dp", "valid": [[3, 2], [5]]}),
        Case(
            "dp3",
            "rank 1 has padding only, then 3 tokens; rank 2 has nothing",
            {"axis": "dp", "valid": [[2, 4], [0, 3], []]},
        ),
        Case("dp2tp2", "over dp", {"axis": "dp", "valid": [[1, 2, 3], [4, 5, 1]]}),
    ),
    timeout=5.0,
)
