"""Wrong answers to interview.moe.clip, what each author must be told, and right ones."""

import torch

from picolab import comm
from picolab.chapters.c02_moe.interview_clip import solution


def _square(grads):
    return sum((grad.square().sum() for grad in grads), torch.zeros(1, dtype=torch.float64))


def _sum(number, axis):
    return comm.all_reduce(number, axis, "squares")


def _scale(grads, norm, limit):
    if norm > limit:
        for grad in grads:
            grad.mul_(limit / norm)


def _clipped(dense, experts, norm, limit):
    norm = norm.squeeze()
    _scale((*dense, *experts), norm, limit)
    return norm


def keeps_squares_local(dense, experts, axis, limit):
    _sum(_square(experts), axis)
    return _clipped(dense, experts, (_square(dense) + _square(experts)).sqrt(), limit)


def counts_dense_on_every_rank(dense, experts, axis, limit):
    return _clipped(dense, experts, _sum(_square(dense) + _square(experts), axis).sqrt(), limit)


def sums_over_the_world(dense, experts, axis, limit):
    whole = _sum(_square(experts), "world")
    return _clipped(dense, experts, (_square(dense) + whole).sqrt(), limit)


def adds_norms(dense, experts, axis, limit):
    whole = _sum(_square(experts).sqrt(), axis)
    return _clipped(dense, experts, _square(dense).sqrt() + whole, limit)


def takes_roots_before_the_sum(dense, experts, axis, limit):
    whole = _sum(_square(experts).sqrt(), axis)
    return _clipped(dense, experts, (_square(dense) + whole.square()).sqrt(), limit)


def forgets_the_root(dense, experts, axis, limit):
    return _clipped(dense, experts, _square(dense) + _sum(_square(experts), axis), limit)


def forgets_the_experts(dense, experts, axis, limit):
    _sum(_square(experts), axis)
    return _clipped(dense, experts, _square(dense).sqrt(), limit)


def forgets_the_dense(dense, experts, axis, limit):
    return _clipped(dense, experts, _sum(_square(experts), axis).sqrt(), limit)


def averages_over_ranks(dense, experts, axis, limit):
    mean = _sum(_square(experts), axis) / comm.mesh().size(axis)
    return _clipped(dense, experts, (_square(dense) + mean).sqrt(), limit)


def clips_apart(dense, experts, axis, limit):
    whole = _sum(_square(experts), axis)
    _scale(dense, _square(dense).sqrt().squeeze(), limit)
    norm = (_square(dense) + whole).sqrt().squeeze()
    _scale(experts, whole.sqrt().squeeze(), limit)
    return norm


def clips_apart_and_tells_the_right_norm(dense, experts, axis, limit):
    whole, one = _sum(_square(experts), axis), _square(dense)
    _scale(dense, one.sqrt().squeeze(), limit)
    _scale(experts, whole.sqrt().squeeze(), limit)
    return (one + whole).sqrt().squeeze()


def leaves_experts_alone(dense, experts, axis, limit):
    return solution(dense, [grad.clone() for grad in experts], axis, limit)


def makes_new_tensors(dense, experts, axis, limit):
    return solution([g.clone() for g in dense], [g.clone() for g in experts], axis, limit)


def scales_up(dense, experts, axis, limit):
    norm = (_square(dense) + _sum(_square(experts), axis)).sqrt().squeeze()
    for grad in (*dense, *experts):
        grad.mul_(limit / norm.clamp(min=1e-30))
    return norm


def divides_by_zero(dense, experts, axis, limit):
    norm = (_square(dense) + _sum(_square(experts), axis)).sqrt().squeeze()
    for grad in (*dense, *experts):
        grad.mul_(norm.clamp(max=limit) / norm)
    return norm


def returns_the_factor(dense, experts, axis, limit):
    return limit / solution(dense, experts, axis, limit)


def tells_the_norm_behind(dense, experts, axis, limit):
    return solution(dense, experts, axis, limit).clamp(max=limit)


def returns_nothing(dense, experts, axis, limit):
    solution(dense, experts, axis, limit)


def reduces_each_expert(dense, experts, axis, limit):
    whole = sum(_sum(grad.square().sum().view(1), axis) for grad in experts)
    return _clipped(dense, experts, (_square(dense) + whole).sqrt(), limit)


def gathers_squares(dense, experts, axis, limit):
    whole = comm.all_gather(_square(experts), axis, "squares").sum().view(1)
    return _clipped(dense, experts, (_square(dense) + whole).sqrt(), limit)


def stays_away_without_rows(dense, experts, axis, limit):
    whole = torch.zeros(1, dtype=torch.float64)
    if any(grad.any() for grad in experts):
        whole = _sum(_square(experts), axis)
    return _clipped(dense, experts, (_square(dense) + whole).sqrt(), limit)


def sums_in_bf16(dense, experts, axis, limit):
    whole = _sum(_square(experts).bfloat16(), axis).double()
    return _clipped(dense, experts, (_square(dense) + whole).sqrt(), limit)


def flattens_first(dense, experts, axis, limit):
    apart = torch.cat([grad.flatten() for grad in experts]).norm() ** 2
    comm.all_reduce(apart, axis, "experts", async_op=True).wait()
    whole = torch.cat([grad.flatten() for grad in dense]).norm()
    return _clipped(dense, experts, torch.hypot(whole, apart.sqrt()), limit)


def multiplies_always(dense, experts, axis, limit):
    both = torch.tensor([sum(float((g * g).sum()) for g in experts)], dtype=torch.float64)
    both = comm.all_reduce(both, axis, "experts")
    norm = (both + sum(float((g * g).sum()) for g in dense)).sqrt().squeeze()
    for grad in dense + experts:
        grad *= min(1.0, limit / max(float(norm), 1e-300))
    return norm


MUTANTS = {
    keeps_squares_local: "every rank has another norm",
    counts_dense_on_every_rank: "was counted once for every rank of the axis",
    sums_over_the_world: "what is held several times was counted several times",
    adds_norms: "norms were added",
    takes_roots_before_the_sum: "norms were added",
    forgets_the_root: "the root is missing",
    forgets_the_experts: "the experts are not in it",
    forgets_the_dense: "only experts are in it",
    averages_over_ranks: "averaged over the ranks",
    clips_apart: "the norm is wrong",
    clips_apart_and_tells_the_right_norm: "clipped by norms of their own",
    leaves_experts_alone: "what became of experts is wrong: nothing was clipped",
    makes_new_tensors: "what became of dense is wrong: nothing was clipped",
    scales_up: "although the norm was below",
    divides_by_zero: "what became of dense",
    returns_the_factor: "it is the factor",
    tells_the_norm_behind: "that before",
    returns_nothing: "the norm is None",
    reduces_each_expert: "it takes 2 all-reduces",
    gathers_squares: "it uses all-gathers",
    stays_away_without_rows: "still waits for it in all_reduce",
    sums_in_bf16: "the norm is wrong",
}
RIGHT = (flattens_first, multiplies_always)
