"""Wrong answers to interview.precision.step, what each author must be told, and right ones."""

import math

import torch

from picolab import comm
from picolab.chapters.c04_mixed_precision.interview_step import solution


def _square(grads):
    return sum((grad.square().sum() for grad in grads), torch.zeros(1, dtype=torch.float64))


def _norm(grads, axis):
    return comm.all_reduce(_square(grads), axis, "squares").sqrt().item()


def _move(parameters, grads, factor, lr):
    for parameter, grad in zip(parameters, grads):
        parameter -= lr * factor * grad


def _clip(norm, limit):
    return min(1.0, limit / norm) if norm else 1.0


def _machine(scale, streak, interval, good=True):
    if not good:
        return scale / 2, 0
    return (scale * 2, 0) if streak + 1 == interval else (scale, streak + 1)


def clips_before_dividing(parameters, grads, scale, streak, axis, lr, limit, interval):
    norm = _norm(grads, axis)
    if not math.isfinite(norm):
        return _machine(scale, streak, interval, False)
    _move(parameters, grads, _clip(norm, limit) / scale, lr)
    return _machine(scale, streak, interval)


def never_divides(parameters, grads, scale, streak, axis, lr, limit, interval):
    norm = _norm(grads, axis)
    if not math.isfinite(norm):
        return _machine(scale, streak, interval, False)
    _move(parameters, grads, _clip(norm, limit), lr)
    return _machine(scale, streak, interval)


def divides_for_the_norm_only(parameters, grads, scale, streak, axis, lr, limit, interval):
    norm = _norm([grad / scale for grad in grads], axis)
    if not math.isfinite(norm):
        return _machine(scale, streak, interval, False)
    _move(parameters, grads, _clip(norm, limit), lr)
    return _machine(scale, streak, interval)


def divides_twice(parameters, grads, scale, streak, axis, lr, limit, interval):
    return solution(
        parameters, [grad / scale for grad in grads], scale, streak, axis, lr, limit, interval
    )


def never_clips(parameters, grads, scale, streak, axis, lr, limit, interval):
    return solution(parameters, grads, scale, streak, axis, lr, math.inf, interval)


def clips_by_its_own_norm(parameters, grads, scale, streak, axis, lr, limit, interval):
    true = [grad / scale for grad in grads]
    if not math.isfinite(_norm(true, axis)):
        return _machine(scale, streak, interval, False)
    _move(parameters, true, _clip(_square(true).sqrt().item(), limit), lr)
    return _machine(scale, streak, interval)


def asks_itself_only(parameters, grads, scale, streak, axis, lr, limit, interval):
    true = [grad / scale for grad in grads]
    norm = _norm(true, axis)
    if not all(grad.isfinite().all() for grad in grads):
        return _machine(scale, streak, interval, False)
    _move(parameters, true, _clip(_square(true).sqrt().item(), limit) if norm != norm else
          _clip(norm, limit), lr)  # fmt: skip
    return _machine(scale, streak, interval)


def stays_away_after_an_overflow(parameters, grads, scale, streak, axis, lr, limit, interval):
    if not all(grad.isfinite().all() for grad in grads):
        return _machine(scale, streak, interval, False)
    return solution(parameters, grads, scale, streak, axis, lr, limit, interval)


def replaces_infinities(parameters, grads, scale, streak, axis, lr, limit, interval):
    clean = [grad.nan_to_num(0.0, 0.0, 0.0) for grad in grads]
    return solution(parameters, clean, scale, streak, axis, lr, limit, interval)


def replaces_them_and_halves(parameters, grads, scale, streak, axis, lr, limit, interval):
    norm = _norm([grad / scale for grad in grads], axis)
    clean = [(grad / scale).nan_to_num(0.0, 0.0, 0.0) for grad in grads]
    if math.isfinite(norm):
        _move(parameters, clean, _clip(norm, limit), lr)
        return _machine(scale, streak, interval)
    _move(parameters, clean, _clip(_square(clean).sqrt().item(), limit), lr)
    return _machine(scale, streak, interval, False)


def keeps_the_scale_after_an_overflow(parameters, grads, scale, streak, axis, lr, limit, interval):
    _, count = solution(parameters, grads, scale, streak, axis, lr, limit, interval)
    return scale, count


def never_grows(parameters, grads, scale, streak, axis, lr, limit, interval):
    new, count = solution(parameters, grads, scale, streak, axis, lr, limit, interval)
    return min(new, scale), count


def grows_at_every_good_step(parameters, grads, scale, streak, axis, lr, limit, interval):
    new, count = solution(parameters, grads, scale, streak, axis, lr, limit, interval)
    return (new if new < scale else 2 * scale), count


def keeps_the_streak_after_an_overflow(parameters, grads, scale, streak, axis, lr, limit, interval):
    new, count = solution(parameters, grads, scale, streak, axis, lr, limit, interval)
    return new, streak if new < scale else count


def keeps_the_streak_after_growth(parameters, grads, scale, streak, axis, lr, limit, interval):
    new, count = solution(parameters, grads, scale, streak, axis, lr, limit, interval)
    return new, streak + 1 if new > scale else count


def never_counts(parameters, grads, scale, streak, axis, lr, limit, interval):
    new, count = solution(parameters, grads, scale, streak, axis, lr, limit, interval)
    return new, streak if new == scale else count


def forgets_the_root(parameters, grads, scale, streak, axis, lr, limit, interval):
    true = [grad / scale for grad in grads]
    norm = comm.all_reduce(_square(true), axis, "squares").item()
    if not math.isfinite(norm):
        return _machine(scale, streak, interval, False)
    _move(parameters, true, _clip(norm, limit), lr)
    return _machine(scale, streak, interval)


def adds_norms(parameters, grads, scale, streak, axis, lr, limit, interval):
    true = [grad / scale for grad in grads]
    norm = comm.all_reduce(_square(true).sqrt(), axis, "norms").item()
    if not math.isfinite(norm):
        return _machine(scale, streak, interval, False)
    _move(parameters, true, _clip(norm, limit), lr)
    return _machine(scale, streak, interval)


def scales_up(parameters, grads, scale, streak, axis, lr, limit, interval):
    true = [grad / scale for grad in grads]
    norm = _norm(true, axis)
    if not math.isfinite(norm):
        return _machine(scale, streak, interval, False)
    _move(parameters, true, limit / max(norm, 1e-30), lr)
    return _machine(scale, streak, interval)


def divides_by_a_norm_of_zero(parameters, grads, scale, streak, axis, lr, limit, interval):
    true = [grad / scale for grad in grads]
    norm = torch.tensor(_norm(true, axis), dtype=torch.float64)
    if not norm.isfinite():
        return _machine(scale, streak, interval, False)
    _move(parameters, true, norm.clamp(max=limit) / norm, lr)
    return _machine(scale, streak, interval)


def never_steps(parameters, grads, scale, streak, axis, lr, limit, interval):
    copies = [parameter.clone() for parameter in parameters]
    return solution(copies, grads, scale, streak, axis, lr, limit, interval)


def asks_in_a_second_exchange(parameters, grads, scale, streak, axis, lr, limit, interval):
    bad = torch.tensor([float(not all(grad.isfinite().all() for grad in grads))])
    if comm.all_reduce(bad, axis, "overflow", op="max").item():
        return _machine(scale, streak, interval, False)
    return solution(parameters, grads, scale, streak, axis, lr, limit, interval)


def goes_up(parameters, grads, scale, streak, axis, lr, limit, interval):
    return solution(parameters, grads, scale, streak, axis, -lr, limit, interval)


def returns_the_scale_only(parameters, grads, scale, streak, axis, lr, limit, interval):
    return solution(parameters, grads, scale, streak, axis, lr, limit, interval)[0]


def divides_in_place(parameters, grads, scale, streak, axis, lr, limit, interval):
    for grad in grads:
        grad.mul_(1 / scale)
    norm = torch.cat([grad.flatten() for grad in grads]).norm().square().view(1)
    comm.all_reduce(norm, axis, "norm", async_op=True).wait()
    norm.sqrt_()
    if not bool(norm.isfinite()):
        return scale * 0.5, 0
    factor = torch.clamp(limit / (norm + 1e-300), max=1.0)
    for parameter, grad in zip(parameters, grads):
        parameter.sub_(lr * factor * grad)
    streak += 1
    if streak % interval == 0:
        return scale * 2, 0
    return scale, streak


def on_one_flat_tensor(parameters, grads, scale, streak, axis, lr, limit, interval):
    flat = torch.cat([grad.reshape(-1) for grad in grads]).double() / scale
    square = comm.all_reduce((flat @ flat).reshape(1), axis, "squares")
    good = bool(torch.isfinite(square))
    if good:
        flat *= limit / max(limit, float(square) ** 0.5)
        for parameter, move in zip(parameters, flat.split([p.numel() for p in parameters])):
            parameter -= lr * move.view_as(parameter)
    streak = streak + 1 if good else 0
    grows = streak >= interval
    return torch.tensor(scale * (2.0 if grows else 1.0 if good else 0.5)), 0 if grows else streak


MUTANTS = {
    clips_before_dividing: "clipped before it was divided",
    asks_itself_only: "nobody steps, and all halve it",
    never_divides: "clipped with the scale still in it, or scaled up",
    divides_for_the_norm_only: "the scale is still in the gradients",
    divides_twice: "divided by the scale twice",
    never_clips: "nothing was clipped",
    clips_by_its_own_norm: "this rank's own norm",
    stays_away_after_an_overflow: "still waits for it in all_reduce",
    replaces_infinities: "nobody steps, and all halve it",
    replaces_them_and_halves: "infinities and NaN were replaced",
    keeps_the_scale_after_an_overflow: "nobody steps, and all halve it",
    never_grows: "after which it doubles",
    grows_at_every_good_step: "it grows only after 3 good steps",
    keeps_the_streak_after_an_overflow: "after a step that was left out it begins at 0 again",
    keeps_the_streak_after_growth: "when the scale has grown it begins at 0 again",
    never_counts: "a good step counts",
    forgets_the_root: "the root is missing",
    adds_norms: "norms of ranks were added",
    scales_up: "clipped with the scale still in it, or scaled up",
    divides_by_a_norm_of_zero: "not finite",
    never_steps: "no step was made",
    asks_in_a_second_exchange: "it takes 2 all-reduces",
    goes_up: "it went up the gradient",
    returns_the_scale_only: "asked for is `return scale, streak`",
}
RIGHT = (divides_in_place, on_one_flat_tensor)
