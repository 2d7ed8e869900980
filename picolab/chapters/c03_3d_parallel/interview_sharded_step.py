"""Exercise: a step of the optimizer on shards, clipped by the global norm (question 3d-006)."""

import torch
from torch.nn.functional import pad

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise

LR, BETA, MOST = 0.1, 0.9, 1.0
STEPS = 3


def my_step(parameters, grad, momentum, axis, lr, beta, max_norm):
    raise NotImplementedError("return parameters, momentum")


def solution(parameters, grad, momentum, axis, lr, beta, max_norm):
    import torch

    import picolab as pico

    mesh = pico.comm.mesh()
    n, me = mesh.size(axis), mesh.rank(axis)
    zeros = (0, -parameters.numel() % n)
    whole = torch.nn.functional.pad(grad, zeros)
    mine = pico.comm.reduce_scatter(whole, axis, "zero: gradient")
    square = pico.comm.all_reduce(mine.square().sum().view(1), axis, "norm: sum of squares")
    norm = square.sqrt()
    if norm > max_norm:
        mine = mine * (max_norm / norm)
    momentum = beta * momentum + mine
    share = torch.nn.functional.pad(parameters, zeros).chunk(n)[me] - lr * momentum
    gathered = pico.comm.all_gather(share, axis, "zero: parameters")
    return gathered[: parameters.numel()], momentum


def judge(learner, attempt: Attempt) -> None:
    axis = attempt.case.values["axis"]
    for size, scale in attempt.case.values["settings"]:
        attempt.setting(f"{size} parameters, gradients of the size {scale:g}")
        _train(learner, attempt, axis, size, scale)


def _train(learner, attempt: Attempt, axis: str, size: int, scale: float) -> None:
    """Three steps, each from what the reference has, so that the first mistake is told alone."""
    mesh = comm.mesh()
    n, me, ranks = mesh.size(axis), mesh.rank(axis), list(mesh.ranks(axis))
    share = -(-size // n)
    parameters, momentum = attempt.tensor(size), torch.zeros(size, dtype=torch.float64)
    for _ in range(STEPS):
        everyones = scale * attempt.tensor(mesh.size("world"), size)
        everyones[:, ::4] = 0  # as gradients have them
        parts = everyones[ranks]
        before = _shares(momentum, n)
        given = {
            "parameters": parameters, "grad": everyones[attempt.rank], "momentum": before[me],
            "axis": axis, "lr": LR, "beta": BETA, "max_norm": MOST,
        }  # fmt: skip
        result = attempt.call(learner, given)
        after, new = _dense(parameters, parts.sum(0), momentum)
        if attempt.returned(result, "parameters", "momentum"):
            mistakes = _known_mistakes(parameters, parts, momentum, n, me)
            attempt.equal(
                "the momentum that this rank keeps", result[1], _shares(new, n)[me],
                mistakes={says: _shares(m, n)[me] for says, (_, m) in mistakes.items()},
            )  # fmt: skip
            attempt.equal(
                "the new parameters", result[0], after,
                mistakes={says: p for says, (p, _) in mistakes.items()},
            )  # fmt: skip
        if attempt.problems:
            break
        parameters, momentum = after, new
    attempt.only("reduce_scatter", "all_reduce", "all_gather")
    attempt.along(axis)
    full = STEPS * n * share * 8
    attempt.budget("all_reduce", count=STEPS, at_least=STEPS, axis=axis)
    attempt.budget("all_reduce", payload_bytes=STEPS * 8, least_bytes=STEPS * 8, axis=axis)
    for op in ("reduce_scatter", "all_gather"):
        attempt.budget(op, count=STEPS, at_least=STEPS, axis=axis)
        attempt.budget(op, payload_bytes=full, least_bytes=STEPS * size * 8, axis=axis)


def _shares(whole: torch.Tensor, n: int) -> torch.Tensor:
    """(n, share): every rank's, with zeros behind."""
    return pad(whole, (0, -whole.numel() % n)).view(n, -1)


def _clipped(total: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    return total * (MOST / norm) if norm > MOST else total


def _dense(parameters, total, momentum):
    momentum = BETA * momentum + _clipped(total, total.norm())
    return parameters - LR * momentum, momentum


def _known_mistakes(parameters, parts, momentum, n: int, me: int) -> dict:
    """What to say -> (parameters, momentum) after the step that somebody took instead."""
    total, mean = parts.sum(0), parts.mean(0)
    size = total.numel()
    by_share = torch.stack([_clipped(one, one.norm()) for one in _shares(total, n)])
    root_of_norms = sum(one.norm() for one in _shares(total, n))
    own_norms = sum(part.square().sum() for part in parts).sqrt()
    gradients = {
        "nothing was clipped": total,
        "each rank clipped by the norm of its own share; the norm is of the whole summed gradient "
        "and the same on every rank": by_share.view(-1)[:size],
        "norms were added; a norm is the root of a sum of squares, so squares are": _clipped(
            total, root_of_norms
        ),
        "the norm is that of the unsummed gradients; it is that of their sum": _clipped(
            total, own_norms
        ),
        "the square was taken for the norm: the root is missing": _clipped(
            total, total.square().sum()
        ),
        "it is the step of the mean; asked for is that of the sum": _clipped(mean, mean.norm()),
        "it is scaled up to max_norm, although the norm was below": total * (MOST / total.norm()),
        "it is the gradient of this rank alone; nothing was summed": _clipped(
            parts[me], parts[me].norm()
        ),
    }
    steps = {}
    for says, gradient in gradients.items():
        new = BETA * momentum + gradient
        steps[says] = parameters - LR * new, new
    clipped = _clipped(total, total.norm())
    fresh = parameters - LR * clipped, clipped
    steps["the momentum of the step before is not in it"] = fresh
    late = BETA * momentum + total
    late = _clipped(late, late.norm())
    steps["the momentum was clipped; clip the gradient, before it is added"] = (
        parameters - LR * late, late,
    )  # fmt: skip
    damped = BETA * momentum + (1 - BETA) * clipped
    steps["the gradient is weighted by 1 - beta; here momentum = beta * momentum + gradient"] = (
        parameters - LR * damped, damped,
    )  # fmt: skip
    right = _dense(parameters, total, momentum)
    steps["it went up the gradient"] = 2 * parameters - right[0], right[1]
    alone = _shares(parameters, n).clone()
    alone[me] = _shares(right[0], n)[me]
    steps["only this rank's share has moved; the others' shares have to be gathered"] = (
        alone.view(-1)[:size], right[1],
    )  # fmt: skip
    return steps


_SETTINGS = ((13, 1.0), (8, 0.01), (3, 5.0), (30, 0.0))

EXERCISE = Exercise(
    id="interview.3d.sharded-step",
    goal="One step of momentum SGD under ZeRO-1: the gradients of all ranks are summed, the sum is "
    "clipped by its global norm, and every rank ends with the same new parameters. No rank steps "
    "more than its share, nor keeps more of the momentum.",
    interface="`my_step(parameters, grad, momentum, axis, lr, beta, max_norm)` returns "
    "`(parameters, momentum)`, new tensors. `parameters` (size,) is the same on every rank, `grad` "
    "(size,) is this rank's, not summed; `momentum` is this rank's share: of the flat vector, "
    "filled up with zeros behind until the ranks n divide it, the piece of ceil(size / n) numbers "
    "in the place of the rank. The step: g the *sum* of all gradients; if its norm is above "
    "max_norm, g is scaled to max_norm (else left alone); momentum = beta * momentum + g; "
    "parameters = parameters - lr * momentum. You may use `pico.comm.reduce_scatter(t, axis, "
    "reason)` (n divides t's rows), `pico.comm.all_reduce(t, axis, reason)` and "
    "`pico.comm.all_gather(t, axis, reason)`.",
    budget="A step: one reduce-scatter and one all-gather of the size of the parameters, rounded "
    "up to a multiple of n, and one all-reduce of one number.",
    hints=(
        "After the reduce-scatter each rank has a part of the sum. What of the norm can it compute "
        "alone?",
        "The square of the norm is a sum over the numbers, so it is a sum over the ranks of each "
        "share's sum of squares. One number travels; the root is taken behind.",
        '`square = pico.comm.all_reduce(mine.square().sum().view(1), axis, "norm")`, then '
        "`norm = square.sqrt()`, and `mine * (max_norm / norm)` only `if norm > max_norm`.",
    ),
    stub_function=my_step,
    solution_function=solution,
    why="The sum exists in parts only, and all that the optimizer does to a number needs that "
    "number alone; so each rank does it for its share. Clipping is the exception: it needs all "
    "numbers, but only through one sum, so one number is all-reduced. All ranks then scale by the "
    "same factor. Zeros behind add nothing to sum or norm, their momentum stays zero, and they are "
    "cut off after the gather. What travels is what an all-reduce of the gradient would send, and "
    "one number; what is kept is 1/n of the momentum (arXiv 1910.02054, section 5).",
    judge=judge,
    cases=(
        Case("dp2", "", {"axis": "dp", "settings": _SETTINGS}),
        Case("dp4", "", {"axis": "dp", "settings": _SETTINGS}),
        Case("dp3", "", {"axis": "dp", "settings": ((7, 3.0), (9, 1.0))}),
        Case("dp2tp2", "over dp, which is half of them", {"axis": "dp", "settings": ((5, 2.0),)}),
    ),
)
