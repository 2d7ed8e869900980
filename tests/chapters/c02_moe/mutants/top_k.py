"""Wrong answers to moe.router.topk, what each author must be told, and right ones."""

import torch

from picolab.chapters.c02_moe.top_k import solution


def _highest(logits, k):
    return logits.sort(dim=-1, descending=True, stable=True).indices[..., :k]


def _softmax(of):
    highest = of.amax(-1, keepdim=True)
    shares = (of - highest.masked_fill(highest == -torch.inf, 0)).exp()
    total = shares.sum(-1, keepdim=True)
    return shares / total.where(total > 0, 1)


def _answer(logits, k, renormalise, dweights, *, choose=_highest, weigh=None, back=None):
    """The solution, with one thing to be done otherwise."""
    experts = choose(logits, k)
    barred = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, experts, True).logical_not()
    p = _softmax(logits.masked_fill(barred, -torch.inf) if renormalise else logits)
    weights = p.gather(-1, experts)
    if weigh is not None:
        weights = weigh(logits, experts, weights)
    dp = torch.zeros_like(p).scatter(-1, experts, dweights)
    if back is not None:
        return weights, experts, back(p, dp, experts, dweights)
    return weights, experts, p * (dp - (p * dp).sum(-1, keepdim=True))


def ties_as_topk_likes(logits, k, renormalise, dweights):
    """The last of equal ones; what topk does is not defined."""

    def choose(logits, k):
        flipped = logits.flip(-1).sort(dim=-1, descending=True, stable=True).indices[..., :k]
        return logits.shape[-1] - 1 - flipped

    return _answer(logits, k, renormalise, dweights, choose=choose)


def forgets_the_sum(logits, k, renormalise, dweights):
    return _answer(logits, k, renormalise, dweights, back=lambda p, dp, *_: p * dp)


def chooses_by_probabilities(logits, k, renormalise, dweights):
    return _answer(logits, k, renormalise, dweights, choose=lambda of, k: _highest(_softmax(of), k))


def never_renormalises(logits, k, renormalise, dweights):
    return solution(logits, k, False, dweights)


def always_renormalises(logits, k, renormalise, dweights):
    return solution(logits, k, True, dweights)


def overflows(logits, k, renormalise, dweights):
    experts = _highest(logits, k)
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    weights = p.gather(-1, experts)
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, experts, solution(logits, k, renormalise, dweights)[2]


def nan_where_all_are_barred(logits, k, renormalise, dweights):
    weights, experts, dlogits = solution(logits, k, renormalise, dweights)
    p = logits.softmax(-1).gather(-1, experts)
    return torch.where(p.isnan(), p, weights), experts, dlogits


def divides_by_a_constant(logits, k, renormalise, dweights):
    """p / sum differentiated as if the sum were none of the logits'."""
    weights, experts, dlogits = solution(logits, k, renormalise, dweights)
    if renormalise:
        p = _softmax(logits)
        dp = torch.zeros_like(p).scatter(-1, experts, dweights)
        total = p.gather(-1, experts).sum(-1, keepdim=True)
        dlogits = p * (dp - (p * dp).sum(-1, keepdim=True)) / total.where(total > 0, 1)
    return weights, experts, dlogits


def gradients_of_chosen_ones_only(logits, k, renormalise, dweights):
    def back(p, dp, experts, dweights):
        full = p * (dp - (p * dp).sum(-1, keepdim=True))
        return torch.zeros_like(full).scatter(-1, experts, full.gather(-1, experts))

    return _answer(logits, k, renormalise, dweights, back=back)


def own_part_only(logits, k, renormalise, dweights):
    return _answer(logits, k, renormalise, dweights, back=lambda p, dp, *_: p * (1 - p) * dp)


def no_softmax_in_backward(logits, k, renormalise, dweights):
    return _answer(logits, k, renormalise, dweights, back=lambda p, dp, *_: dp)


def gradients_not_scattered(logits, k, renormalise, dweights):
    weights, experts, dlogits = solution(logits, k, renormalise, dweights)
    places = torch.arange(k).expand_as(experts)
    return (
        weights,
        experts,
        torch.zeros_like(dlogits).scatter(-1, places, dlogits.gather(-1, experts)),
    )


def gradients_of_k(logits, k, renormalise, dweights):
    weights, experts, dlogits = solution(logits, k, renormalise, dweights)
    return weights, experts, dlogits.gather(-1, experts)


def sorted_by_number(logits, k, renormalise, dweights):
    weights, experts, dlogits = solution(logits, k, renormalise, dweights)
    order = experts.argsort(-1)
    return weights.gather(-1, order), experts.gather(-1, order), dlogits


def a_mask_for_experts(logits, k, renormalise, dweights):
    weights, experts, dlogits = solution(logits, k, renormalise, dweights)
    return weights, torch.zeros_like(logits, dtype=torch.bool).scatter(-1, experts, True), dlogits


def another_order(logits, k, renormalise, dweights):
    weights, experts, dlogits = solution(logits, k, renormalise, dweights)
    return experts, weights, dlogits


def forward_alone(logits, k, renormalise, dweights):
    return solution(logits, k, renormalise, dweights)[:2]


def softmax_of_a_softmax(logits, k, renormalise, dweights):
    return _answer(
        logits,
        k,
        renormalise,
        dweights,
        weigh=lambda logits, experts, _: logits.softmax(-1).gather(-1, experts).softmax(-1),
    )


def sigmoids(logits, k, renormalise, dweights):
    return _answer(
        logits,
        k,
        renormalise,
        dweights,
        weigh=lambda logits, experts, _: logits.gather(-1, experts).sigmoid(),
    )


def raw_logits(logits, k, renormalise, dweights):
    return _answer(
        logits,
        k,
        renormalise,
        dweights,
        weigh=lambda logits, experts, _: logits.gather(-1, experts),
    )


def in_fp32(logits, k, renormalise, dweights):
    weights, experts, dlogits = solution(logits, k, renormalise, dweights)
    return weights.float().double(), experts, dlogits.float().double()


def by_autograd(logits, k, renormalise, dweights):
    logits = logits.clone().requires_grad_()
    experts = _highest(logits, k)
    p = logits.gather(-1, experts).softmax(-1)
    p.backward(dweights)
    return p.detach(), experts, logits.grad


def by_grad(logits, k, renormalise, dweights):
    logits = logits.clone().requires_grad_()
    experts = _highest(logits, k)
    p = logits.gather(-1, experts).softmax(-1)
    return p.detach(), experts, torch.autograd.grad(p, logits, dweights)[0]


def by_vjp(logits, k, renormalise, dweights):
    experts = _highest(logits, k)
    p, back = torch.func.vjp(lambda of: of.gather(-1, experts).softmax(-1), logits)
    return p, experts, back(dweights)[0]


def two_dims_only(logits, k, renormalise, dweights):
    _rows, _experts = logits.shape
    return solution(logits, k, renormalise, dweights)


def bars_its_input(logits, k, renormalise, dweights):
    """The usual loop: take the largest, bar it, take the next; in place."""
    found = []
    result = solution(logits.clone(), k, renormalise, dweights)
    for _ in range(k):
        found.append(logits.argmax(-1, keepdim=True) if logits.numel() else result[1][..., :1])
        logits.scatter_(-1, found[-1], -torch.inf)
    return result


def never_the_barred(logits, k, renormalise, dweights):
    """Barred experts are chosen by nobody: places of k that are left are -1."""
    weights, experts, dlogits = solution(logits, k, renormalise, dweights)
    return weights, experts.masked_fill(logits.gather(-1, experts) == -torch.inf, -1), dlogits


def sign(logits, k, renormalise, dweights):
    weights, experts, dlogits = solution(logits, k, renormalise, dweights)
    return weights, experts, -dlogits


def averages_over_tokens(logits, k, renormalise, dweights):
    weights, experts, dlogits = solution(logits, k, renormalise, dweights)
    return weights, experts, dlogits / max(1, logits[..., 0].numel())


def an_epsilon(logits, k, renormalise, dweights):
    weights, experts, dlogits = solution(logits, k, renormalise, dweights)
    if renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-8)
    return weights, experts, dlogits


def the_lowest(logits, k, renormalise, dweights):
    return _answer(logits, k, renormalise, dweights, choose=lambda of, k: _highest(-of, k))


def by_size_without_sign(logits, k, renormalise, dweights):
    return _answer(logits, k, renormalise, dweights, choose=lambda of, k: _highest(of.abs(), k))


def one_maximum_for_all(logits, k, renormalise, dweights):
    """The largest logit of the whole batch is subtracted, and a row far below it underflows."""
    _, experts, dlogits = solution(logits, k, renormalise, dweights)
    finite = logits[logits.isfinite()]
    shares = (logits - finite.max() if len(finite) else logits).exp()
    if renormalise:
        shares = torch.zeros_like(shares).scatter(-1, experts, shares.gather(-1, experts))
    p = shares / shares.sum(-1, keepdim=True).clamp(min=1e-300)
    return p.gather(-1, experts), experts, dlogits


def lists(logits, k, renormalise, dweights):
    return tuple(of.tolist() for of in solution(logits, k, renormalise, dweights))


def changes_dweights(logits, k, renormalise, dweights):
    result = solution(logits, k, renormalise, dweights)
    dweights.mul_(result[0])
    return result


def a_share_of_the_batch(logits, k, renormalise, dweights):
    """The sum that is divided by is taken over everything."""
    weights, experts, dlogits = solution(logits, k, renormalise, dweights)
    return weights / weights.sum().clamp(min=1e-20), experts, dlogits


def gradients_by_rank_of_the_logit(logits, k, renormalise, dweights):
    """dweights taken as if they stood by expert, and not by place."""
    weights, experts, _ = solution(logits, k, renormalise, dweights)
    order = experts.argsort(-1)
    return weights, experts, solution(logits, k, renormalise, dweights.gather(-1, order))[2]


def the_gradient_of_log_shares(logits, k, renormalise, dweights):
    """As of a cross entropy: dw - p * sum(dw)."""
    return _answer(
        logits, k, renormalise, dweights, back=lambda p, dp, *_: dp - p * dp.sum(-1, keepdim=True)
    )


def finite_for_barred(logits, k, renormalise, dweights):
    """-inf becomes -1e9, and an all barred row is an even one."""
    return _answer(logits.clamp(min=-1e9), k, renormalise, dweights)


def gradients_at_the_first_places(logits, k, renormalise, dweights):
    """dweights put where the experts 0 to k-1 are, and the softmax differentiated from there."""

    def back(p, dp, experts, dweights):
        first = torch.zeros_like(dp)
        first[..., :k] = dweights
        return p * (first - (p * first).sum(-1, keepdim=True))

    return _answer(logits, k, renormalise, dweights, back=back)


def by_forward_mode(logits, k, renormalise, dweights):
    """No engine is asked: the Jacobian comes from dual numbers."""
    weights, experts, dlogits = solution(logits, k, renormalise, dweights)

    def shares(row, chosen):
        p = row.softmax(-1)[chosen]
        return p / p.sum() if renormalise else p

    flat = zip(*(of.reshape(-1, of.shape[-1]) for of in (logits, experts, dweights)))
    rows = [torch.func.jacfwd(shares)(row, chosen).T @ up for row, chosen, up in flat]
    return weights, experts, torch.stack(rows).view_as(logits) if rows else dlogits


MUTANTS = {
    forgets_the_sum: "the sum over all weights is missing",
    divides_by_a_constant: "was taken as a constant",
    chooses_by_probabilities: "chosen by probabilities, which are equal (0)",
    ties_as_topk_likes: "of equal ones the lower number comes first",
    never_renormalises: "their shares among the chosen ones",
    always_renormalises: "they were renormalised among the chosen ones",
    overflows: "not finite",
    nan_where_all_are_barred: "not finite",
    gradients_of_chosen_ones_only: "so they have a gradient too",
    own_part_only: "here only its own was counted",
    no_softmax_in_backward: "the softmax was not differentiated",
    gradients_not_scattered: "scatter them to where their experts are",
    gradients_of_k: "has the shape",
    sorted_by_number: "the right experts in another order",
    a_mask_for_experts: "experts are numbers of experts",
    another_order: "in the order experts, weights",
    forward_alone: "it returns 2 things",
    softmax_of_a_softmax: "a softmax was taken over shares",
    sigmoids: "they are sigmoids",
    raw_logits: "they are the logits of the chosen experts",
    in_fp32: "fp32",
    by_autograd: "torch.autograd.backward is what this exercise asks you to write",
    by_grad: "torch.autograd.grad is what this exercise asks you to write",
    by_vjp: "is what this exercise asks you to write",
    two_dims_only: "not enough values to unpack",
    bars_its_input: "it changed its input `logits`",
    never_the_barred: "experts has numbers that no expert has",
    sign: "wrong sign",
    averages_over_tokens: "times what it should be",
    an_epsilon: "or an epsilon added",
    the_lowest: "is higher",
    by_size_without_sign: "is higher",
    one_maximum_for_all: "the largest logit of the whole batch was subtracted",
    lists: "experts are numbers of experts",
    changes_dweights: "it changed its input `dweights`",
    a_share_of_the_batch: "divided by a sum over the whole batch",
    gradients_by_rank_of_the_logit: "dweights stand by place",
    the_gradient_of_log_shares: "the weights' logarithm",
    finite_for_barred: "barred",
    gradients_at_the_first_places: "dweights were put at the experts 0 to k-1",
    by_forward_mode: "is what this exercise asks you to write",
}


def with_the_whole_jacobian(logits, k, renormalise, dweights):
    """Softmax over all, divided by the sum of the chosen; the chain of both Jacobians."""
    experts = _highest(logits, k)
    chosen = logits.gather(-1, experts)
    if renormalise:
        p, d = _softmax(chosen), dweights
        jacobian = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
        of_chosen = (jacobian * d.unsqueeze(-2)).sum(-1)
        return p, experts, torch.zeros_like(logits).scatter(-1, experts, of_chosen)
    p = _softmax(logits)
    d = torch.zeros_like(logits).scatter(-1, experts, dweights)
    jacobian = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    return p.gather(-1, experts), experts, (jacobian * d.unsqueeze(-2)).sum(-1)


def with_an_argmax_loop(logits, k, renormalise, dweights):
    """k times the largest one that is left."""
    left, found = logits.clone(), []
    taken = torch.zeros_like(logits, dtype=torch.bool)
    for _ in range(k):
        # (argmax gives the first of equal ones only by luck; this gives it by construction.)
        highest = left.masked_fill(taken, -torch.inf).amax(-1, keepdim=True)
        is_it = (left == highest) & ~taken
        first = is_it & (is_it.cumsum(-1) == 1)
        found.append(first.long().argmax(-1, keepdim=True))
        taken = taken | first
    experts = torch.cat(found, -1) if found else _highest(logits, 0)
    log_all = logits.logsumexp(-1, keepdim=True)
    chosen = logits.gather(-1, experts)
    over = chosen.logsumexp(-1, keepdim=True) if renormalise else log_all
    weights = (chosen - over).exp().nan_to_num(0.0)
    inner = (weights * dweights).sum(-1, keepdim=True)
    dlogits = torch.zeros_like(logits).scatter(-1, experts, weights * dweights)
    if renormalise:
        dlogits = dlogits.scatter_add(-1, experts, -weights * inner)
    else:
        dlogits = dlogits - (logits - log_all).exp().nan_to_num(0.0) * inner
    return weights, experts, dlogits


RIGHT = (with_the_whole_jacobian, with_an_argmax_loop)
