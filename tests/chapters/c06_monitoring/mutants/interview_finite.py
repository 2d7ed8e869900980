"""Wrong answers to interview.monitoring.finite, what each author must be told, and right ones."""

import math

import torch

from picolab import comm
from picolab.chapters.c06_monitoring.interview_finite import solution


def _place(axis):
    return comm.mesh().size(axis), comm.mesh().rank(axis)


def _told(loss, tokens, axis, bad=None, fill=None, over=None, dtype=torch.float64):
    """The vector after its reduction; what is bad, and what is filled in, may be given."""
    n, me = _place(axis)
    told = torch.zeros(n + 2, dtype=dtype)
    is_bad = bool(tokens and not loss.isfinite()) if bad is None else bad
    told[me] = float(is_bad)
    if fill is not None:
        told[n], told[n + 1] = fill
    elif tokens and not is_bad:
        told[n], told[n + 1] = loss * tokens, tokens
    return comm.all_reduce(told, over or axis, "report"), n


def _bad(told, n):
    return [r for r in range(n) if told[r] > 0]


def multiplies_by_zero(loss, tokens, axis):
    good = float(tokens and loss.isfinite())
    told, n = _told(loss, tokens, axis, fill=(good * loss * tokens, good * tokens))
    return told[n] / told[n + 1].clamp(min=1), _bad(told, n)


def divides_by_nothing(loss, tokens, axis):
    told, n = _told(loss, tokens, axis)
    return told[n] / told[n + 1], _bad(told, n)


def takes_a_mean_of_means(loss, tokens, axis):
    good = bool(tokens and loss.isfinite())
    told, n = _told(loss, tokens, axis, fill=(loss if good else 0.0, float(good)))
    return told[n] / told[n + 1].clamp(min=1), _bad(told, n)


def counts_tokens_of_bad_ranks(loss, tokens, axis):
    good = bool(tokens and loss.isfinite())
    told, n = _told(loss, tokens, axis, fill=(loss * tokens if good else 0.0, tokens))
    return told[n] / told[n + 1].clamp(min=1), _bad(told, n)


def adds_losses_without_tokens(loss, tokens, axis):
    good = bool(tokens and loss.isfinite())
    told, n = _told(loss, tokens, axis, fill=(loss, tokens) if good else (0.0, 0.0))
    return told[n] / told[n + 1].clamp(min=1), _bad(told, n)


def divides_by_all_ranks(loss, tokens, axis):
    good = bool(tokens and loss.isfinite())
    told, n = _told(loss, tokens, axis, fill=(loss if good else 0.0, 0.0))
    return told[n] / n, _bad(told, n)


def divides_the_sum_by_ranks(loss, tokens, axis):
    told, n = _told(loss, tokens, axis)
    return told[n] / n, _bad(told, n)


def returns_the_sum(loss, tokens, axis):
    told, n = _told(loss, tokens, axis)
    return told[n], _bad(told, n)


def returns_its_own_loss(loss, tokens, axis):
    told, n = _told(loss, tokens, axis)
    good = tokens and loss.isfinite()
    return (loss if good else torch.zeros(())), _bad(told, n)


def blames_who_has_no_tokens(loss, tokens, axis):
    told, n = _told(loss, tokens, axis, bad=not bool(loss.isfinite()))
    return told[n] / told[n + 1].clamp(min=1), _bad(told, n)


def looks_for_nan_only(loss, tokens, axis):
    bad = bool(tokens and loss.isnan())
    fill = (loss * tokens, tokens) if tokens and loss.isfinite() else (0.0, 0.0)
    told, n = _told(loss, tokens, axis, bad=bad, fill=fill)
    return told[n] / told[n + 1].clamp(min=1), _bad(told, n)


def names_itself_only(loss, tokens, axis):
    told, n = _told(loss, tokens, axis)
    me = comm.mesh().rank(axis)
    return told[n] / told[n + 1].clamp(min=1), [me] if told[me] else []


def names_global_ranks(loss, tokens, axis):
    told, n = _told(loss, tokens, axis)
    line = comm.mesh().ranks(axis)
    return told[n] / told[n + 1].clamp(min=1), [line[r] for r in _bad(told, n)]


def counts_from_one(loss, tokens, axis):
    told, n = _told(loss, tokens, axis)
    return told[n] / told[n + 1].clamp(min=1), [r + 1 for r in _bad(told, n)]


def returns_flags(loss, tokens, axis):
    told, n = _told(loss, tokens, axis)
    return told[n] / told[n + 1].clamp(min=1), told[:n].int().tolist()


def returns_the_good_ones(loss, tokens, axis):
    told, n = _told(loss, tokens, axis)
    return told[n] / told[n + 1].clamp(min=1), [r for r in range(n) if not told[r]]


def counts_the_bad_ones(loss, tokens, axis):
    told, n = _told(loss, tokens, axis)
    return told[n] / told[n + 1].clamp(min=1), len(_bad(told, n))


def over_the_world(loss, tokens, axis):
    told, n = _told(loss, tokens, axis, over="world")
    return told[n] / told[n + 1].clamp(min=1), _bad(told, n)


def reduces_twice(loss, tokens, axis):
    told, n = _told(loss, tokens, axis)
    flags, _ = _told(loss, tokens, axis)
    return told[n] / told[n + 1].clamp(min=1), _bad(flags, n)


def gathers_all(loss, tokens, axis):
    row = torch.stack([loss, torch.tensor(float(tokens), dtype=torch.float64)])
    rows = comm.all_gather(row, axis, "report").view(-1, 2)
    n, total, count = len(rows), 0.0, 0.0
    bad = [r for r in range(n) if rows[r, 1] and not rows[r, 0].isfinite()]
    for loss_r, tokens_r in rows:
        if tokens_r and loss_r.isfinite():
            total, count = total + loss_r * tokens_r, count + tokens_r
    return torch.as_tensor(total / max(count, 1.0)), bad


def replaces_nan_by_zero_and_counts(loss, tokens, axis):
    told, n = _told(loss, tokens, axis, fill=(loss.nan_to_num(0.0, 0.0, 0.0) * tokens, tokens))
    return told[n] / told[n + 1].clamp(min=1), _bad(told, n)


def returns_the_mean_only(loss, tokens, axis):
    return solution(loss, tokens, axis)[0]


def sends_a_wide_vector(loss, tokens, axis):
    n, me = _place(axis)
    told = torch.zeros(3 * n, dtype=torch.float64)
    if tokens and not loss.isfinite():
        told[me] = 1
    elif tokens:
        told[n + me], told[2 * n + me] = loss * tokens, tokens
    told = comm.all_reduce(told, axis, "report")
    total, count = told[n : 2 * n].sum(), told[2 * n :].sum()
    return total / count.clamp(min=1), _bad(told, n)


def with_where(loss, tokens, axis):
    n, me = _place(axis)
    has = torch.tensor(tokens > 0)
    fine = has & torch.isfinite(loss)
    weight = torch.where(fine, float(tokens), 0.0).double()
    flags = torch.nn.functional.one_hot(torch.tensor(me), n).double() * (has & ~fine)
    parts = [flags, (torch.where(fine, loss, 0.0) * weight)[None], weight[None]]
    told = comm.all_reduce(torch.cat(parts), axis, "report", async_op=True).wait()
    mean = told[-2] / told[-1] if told[-1] > 0 else 0.0
    return mean, tuple(int(r) for r in torch.where(told[:n] > 0.5)[0])


def with_bits(loss, tokens, axis):
    _, me = _place(axis)
    bad = tokens > 0 and not math.isfinite(loss.item())
    used = 0 if bad else tokens
    row = [2.0**me if bad else 0.0, loss.item() * used if used else 0.0, float(used)]
    mask, total, count = comm.all_reduce(
        torch.tensor(row, dtype=torch.float64), axis, "report"
    ).tolist()
    return total / max(count, 1), [r for r in range(64) if int(mask) >> r & 1]


def takes_a_high_loss_for_bad(loss, tokens, axis):
    return solution(torch.where(loss > 100, math.inf, loss), tokens, axis)


def takes_a_negative_loss_for_bad(loss, tokens, axis):
    return solution(torch.where(loss < 0, math.inf, loss), tokens, axis)


MUTANTS = {
    multiplies_by_zero: "zero times NaN is NaN",
    blames_who_has_no_tokens: "has nothing to be blamed for",
    divides_by_nothing: "no rank counts here",
    takes_a_mean_of_means: "the mean of the ranks' means",
    counts_tokens_of_bad_ranks: "tokens of a rank that does not count are in the divisor",
    replaces_nan_by_zero_and_counts: "tokens of a rank that does not count are in the divisor",
    adds_losses_without_tokens: "losses were added without their tokens",
    divides_by_all_ranks: "the mean of the ranks' means",
    divides_the_sum_by_ranks: "by the number of ranks and not by that of tokens",
    returns_the_sum: "it is a sum",
    returns_its_own_loss: "it is this rank's own loss",
    looks_for_nan_only: "an infinite loss is no number",
    names_itself_only: "each rank names itself only",
    names_global_ranks: "these are global ranks",
    counts_from_one: "they count from 0",
    returns_flags: "these are flags",
    returns_the_good_ones: "these are the ranks that are fine",
    counts_the_bad_ones: "is no list of ranks",
    over_the_world: "over the ranks",
    reduces_twice: "it takes 2 all-reduces",
    gathers_all: "it uses all-gathers",
    returns_the_mean_only: "asked for is `return mean, bad`",
    sends_a_wide_vector: "carry",
    takes_a_high_loss_for_bad: "is a number all the same",
    takes_a_negative_loss_for_bad: "is a number all the same",
}
RIGHT = (with_where, with_bits)
