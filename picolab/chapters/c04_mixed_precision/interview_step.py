"""Exercise: the end of an fp16 step on sharded gradients: unscale, clip, step or not (mp-005)."""

import math

import torch

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise

LR, LIMIT, INTERVAL = 0.5, 1.0, 3
SCALE = 1024.0


def my_step(parameters, grads, scale, streak, axis, lr, limit, interval):
    raise NotImplementedError("change the parameters in place, and return scale, streak")


def solution(parameters, grads, scale, streak, axis, lr, limit, interval):
    import math

    import torch

    import picolab as pico

    true = [grad / scale for grad in grads]
    square = sum((grad.square().sum() for grad in true), torch.zeros(1, dtype=torch.float64))
    square = pico.comm.all_reduce(square, axis, "norm, and whether all is finite")
    norm = square.sqrt().item()
    if not math.isfinite(norm):
        return scale / 2, 0
    factor = min(1.0, limit / norm) if norm else 1.0
    for parameter, grad in zip(parameters, true):
        parameter -= lr * factor * grad
    return (scale * 2, 0) if streak + 1 == interval else (scale, streak + 1)


def judge(learner, attempt: Attempt) -> None:
    axis = attempt.case.values["axis"]
    mesh = comm.mesh()
    n, me = mesh.size(axis), mesh.rank(axis)
    for about, size, broken, streak in attempt.case.values["settings"]:
        attempt.setting(about)
        everyones = [_drawn(attempt, size) for _ in range(n)]
        if broken is not None:
            everyones[-1][1][1][0] = broken
        parameters, grads = everyones[me]
        gradients = [[grad / SCALE for grad in of] for _, of in everyones]
        before = [parameter.clone() for parameter in parameters]
        given = {
            "parameters": parameters, "grads": grads, "scale": SCALE, "streak": streak,
            "axis": axis, "lr": LR, "limit": LIMIT, "interval": INTERVAL,
        }  # fmt: skip
        result = attempt.call(learner, given, may_change=("parameters", "grads"))
        if attempt.returned(result, "scale", "streak"):
            _judge_machine(attempt, result, broken is not None, streak)
        _judge_parameters(attempt, parameters, before, gradients, me)
        attempt.only("all_reduce")
        attempt.along(axis)
        attempt.budget("all_reduce", count=1, at_least=1, axis=axis)
        attempt.budget("all_reduce", payload_bytes=8, least_bytes=4, axis=axis)


def _drawn(attempt: Attempt, size: float):
    """A rank's parameters, and gradients of about this norm, times the scale."""
    shapes = (4, 3), (5,)
    parameters = [attempt.tensor(*shape) for shape in shapes]
    return parameters, [SCALE * size / 6 * attempt.tensor(*shape) for shape in shapes]


def _judge_machine(attempt: Attempt, result, overflow: bool, streak: int) -> None:
    grown = not overflow and streak + 1 == INTERVAL
    scale = SCALE / 2 if overflow else 2 * SCALE if grown else SCALE
    count = 0 if overflow or grown else streak + 1
    got = [torch.as_tensor(one, dtype=torch.float64).squeeze() for one in result]
    right = attempt.equal(
        "the scale", got[0], torch.tensor(scale, dtype=torch.float64),
        mistakes={
            "a gradient is not finite on some rank: nobody steps, and all halve it": torch.tensor(
                SCALE if overflow else math.nan
            ),
            f"it grows only after {INTERVAL} good steps in a row": torch.tensor(
                math.nan if overflow or grown else 2 * SCALE
            ),
            f"this was good step number {INTERVAL} in a row, after which it doubles": torch.tensor(
                SCALE if grown else math.nan
            ),
            "all gradients are finite, and it was halved": torch.tensor(
                math.nan if overflow else SCALE / 2
            ),
            "a gradient is not finite, and it grew": torch.tensor(
                2 * SCALE if overflow else math.nan
            ),
        },
    )  # fmt: skip
    if right:
        attempt.equal(
            "the streak", got[1], torch.tensor(float(count), dtype=torch.float64),
            mistakes={
                "after a step that was left out it begins at 0 again": torch.tensor(
                    float(streak if overflow else math.nan)
                ),
                "a step that was left out is no good step": torch.tensor(
                    float(streak + 1 if overflow else math.nan)
                ),
                "when the scale has grown it begins at 0 again": torch.tensor(
                    float(INTERVAL if grown else math.nan)
                ),
                "a good step counts": torch.tensor(
                    float(math.nan if overflow or grown else streak)
                ),
            },
        )  # fmt: skip


def _judge_parameters(attempt: Attempt, got, before, gradients, me: int) -> None:
    """gradients: of all ranks, divided by the scale."""
    whole, mine = _norm([grad for of in gradients for grad in of]), gradients[me]
    finite = math.isfinite(whole)

    def stepped(*factors: float) -> torch.Tensor:
        if not all(math.isfinite(factor) for factor in factors):
            return torch.full((17,), math.nan, dtype=torch.float64)
        return _flat([b - LR * math.prod(factors) * g for b, g in zip(before, mine)])

    own = _norm(mine)
    sums = sum(_norm(of) for of in gradients)
    factor = _clip(whole)
    if not finite:
        expected = _flat(before)
        mistakes = {
            "the step was made, although a gradient is not finite on some rank: all leave it out": (
                stepped(1.0), stepped(_clip(own)), stepped(1 / SCALE), stepped(0.0) * math.nan,
            ),
            "infinities and NaN were replaced and the step made: what overflowed is unknown, so "
            "nothing of the step is right": (
                _repaired(before, gradients, me, 0.0), _repaired(before, gradients, me, None),
            ),
        }  # fmt: skip
    else:
        expected = stepped(factor)
        mistakes = {
            "the scale is still in the gradients": (stepped(SCALE), stepped(SCALE, _clip(whole))),
            "it was clipped before it was divided by the scale; the limit is meant for true "
            "gradients": stepped(_clip(SCALE * whole)),
            "it was divided by the scale twice": (
                stepped(1 / SCALE), stepped(1 / SCALE, _clip(whole / SCALE)),
            ),
            "nothing was clipped": stepped(1.0),
            "it was clipped by this rank's own norm; the norm is that of all gradients": stepped(
                _clip(own)
            ),
            "norms of ranks were added; a norm is the root of a sum of squares": stepped(
                _clip(sums)
            ),
            "the root is missing in the norm": stepped(_clip(whole**2)),
            "it has the size of the limit, although the norm of the true gradients is below: was "
            "it clipped with the scale still in it, or scaled up?": stepped(
                LIMIT / max(whole, 1e-300)
            ),
            "each tensor was clipped by a norm of its own": _flat(
                [b - LR * _clip(_norm([g])) * g for b, g in zip(before, mine)]
            ),
            "no step was made, and all gradients are finite": _flat(before),
            "it went up the gradient": stepped(-factor),
        }  # fmt: skip
    attempt.equal("what became of the parameters", _flat(got), expected, mistakes=mistakes)


def _repaired(before, gradients, me: int, by: float | None) -> torch.Tensor:
    """A step with infinities replaced by 0, or as `nan_to_num` has them."""

    def repair(t: torch.Tensor) -> torch.Tensor:
        return t.nan_to_num() if by is None else t.nan_to_num(0.0, 0.0, 0.0)

    fixed = [[repair(grad) for grad in of] for of in gradients]
    factor = _clip(_norm([grad for of in fixed for grad in of]))
    return _flat([b - LR * factor * g for b, g in zip(before, fixed[me])])


def _clip(norm: float) -> float:
    return LIMIT / norm if norm > LIMIT else 1.0


def _norm(grads: list[torch.Tensor]) -> float:
    return float(_flat(grads).square().sum().sqrt())


def _flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


_SETTINGS = (
    ("a true norm of about 3, streak 0", 3.0, None, 0),
    ("a true norm of about 0.1, streak 1", 0.1, None, 1),
    ("an infinite gradient on the last rank, streak 1", 0.1, math.inf, 1),
    ("a NaN on the last rank, streak 2", 3.0, math.nan, 2),
    ("a true norm of about 3, streak 2: the third good step", 3.0, None, 2),
    ("gradients that are all zero, streak 0", 0.0, None, 0),
)

EXERCISE = Exercise(
    id="interview.precision.step",
    goal="Each rank of `axis` has other parameters of the model and their gradients, complete, and "
    "of the loss times `scale`. Make the step of SGD with gradients clipped by their global norm, "
    "or, if a gradient is not finite on any rank, none at all, on no rank. Then keep the scale: "
    "half of it after a step that was left out, twice after `interval` good steps in a row.",
    interface="`my_step(parameters, grads, scale, streak, axis, lr, limit, interval)` changes the "
    "tensors of the list `parameters` in place (they do not require gradients) and returns "
    "`scale, streak`, for the next step. `grads` are like them, in fp64 here, and may be changed. "
    "`streak` counts the good steps in a row, and is 0 when the scale has changed. The limit is "
    "for the norm of true gradients, over all ranks of the axis. You may use "
    "`pico.comm.all_reduce(t, axis, reason)`.",
    budget="One all-reduce of one number, over the axis, on every rank and always.",
    hints=(
        "Which of your numbers would be wrong if the scale were still in it? And who knows of an "
        "infinity that only one rank has?",
        "Divide by the scale first. The sum of squares over all ranks has to be sent anyway: what "
        "is it if a single gradient is infinite or NaN?",
        "`norm = all_reduce(sum of squares of grad / scale).sqrt()`; not finite: `return scale / "
        "2, 0`. Else step with `min(1, limit / norm)`, where a norm of 0 needs care.",
    ),
    stub_function=my_step,
    solution_function=solution,
    why="The limit is for true gradients, so they are divided before they are clipped: the other "
    "way round everything has the size limit / scale. Whether all is finite must be one answer for "
    "all ranks, since one that leaves the step out alone is a step behind and scales its loss "
    "otherwise from then on. The sum of squares carries that answer for nothing: it is not finite "
    "if any gradient is not. (In fp16 or bf16 squares would overflow by themselves; they are made "
    "in fp32 or fp64.) From then on each rank follows the same machine.",
    judge=judge,
    cases=(
        Case(
            "dp2",
            "",
            {"axis": "dp", "settings": _SETTINGS},
            "a rank whose own gradients are not finite takes part as well",
        ),
        Case("dp2tp2", "over tp, which is half of them", {"axis": "tp", "settings": _SETTINGS}),
        Case("dp3", "", {"axis": "dp", "settings": _SETTINGS[:4]}),
    ),
)
