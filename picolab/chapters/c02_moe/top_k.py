"""Exercise: top-k routing and its gradient (chapter 2, section 2).

One rank and many sizes. What autograd gives of the same formulas is what is asked for; the learner
has no autograd (its engine refuses while the answer is judged), and the numbers are such that a
choice by rounded probabilities is another one.
"""

import math

import torch

from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_top_k(logits, k, renormalise, dweights):
    raise NotImplementedError(
        f"{k} of {logits.shape[-1]} experts a token; renormalise={renormalise}"
    )


def solution(logits, k, renormalise, dweights):
    import torch

    # A stable sort keeps the lower number first among equal logits; topk promises no order.
    experts = logits.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    highest = logits.amax(-1, keepdim=True)
    highest = highest.masked_fill(highest == -torch.inf, 0)  # a row without any expert
    shares = (logits - highest).exp()
    if renormalise:
        among = torch.zeros_like(shares).scatter(-1, experts, 1.0)
        shares = shares * among  # a softmax over what was chosen: the others do not count
    total = shares.sum(-1, keepdim=True)
    p = shares / total.where(total > 0, 1)
    dp = torch.zeros_like(p).scatter(-1, experts, dweights)
    dlogits = p * (dp - (p * dp).sum(-1, keepdim=True))
    return p.gather(-1, experts), experts, dlogits


def judge(learner, attempt: Attempt) -> None:
    for about, logits, k in _questions(attempt):
        for renormalise in (True, False):
            attempt.budget(count=0)
            attempt.setting(f"{about}, k={k}, renormalise={renormalise}")
            dweights = attempt.tensor(*logits.shape[:-1], k)
            given = {
                "logits": logits, "k": k, "renormalise": renormalise, "dweights": dweights,
            }  # fmt: skip
            result = attempt.call(learner, given)
            _compare(attempt, result, logits, k, renormalise, dweights)
            if attempt.problems:
                return
    attempt.only()
    attempt.budget(count=0)


def _questions(attempt: Attempt):
    """Easy ones first: what is told is of the first that is wrong."""
    yield "6 tokens, 5 experts", attempt.tensor(6, 5), 2
    yield "one token alone, shape (7,)", attempt.tensor(7), 3
    yield "no tokens", attempt.tensor(0, 4), 2
    for tokens, experts in ((1, 2), (3, 3), (5, 8), (11, 6), (2, 17)):
        for k in sorted({1, 2, experts - 1, experts}):
            yield f"{tokens} tokens, {experts} experts", attempt.tensor(tokens, experts), k
    yield "a batch of shape (3, 4, 9)", attempt.tensor(3, 4, 9), 4
    yield "a batch of shape (2, 3, 5, 6)", attempt.tensor(2, 3, 5, 6), 2
    tied = (2 * attempt.tensor(40, 20)).round() / 2
    yield "40 tokens, 20 experts, many equal logits", tied, 3
    yield "all logits equal", torch.zeros(9, 24, dtype=torch.float64), 2
    yield "logits of about 1e3", 1e3 * attempt.tensor(12, 7), 3
    yield "logits of about -1e4", 1e3 * attempt.tensor(12, 7) - 1e4, 2
    far = torch.tensor([[900.0, -900, 0, -800], [0, -1e4, -1e3, -2e3]], dtype=torch.float64)
    yield "probabilities that are 0 in fp64", far, 3
    barred = attempt.tensor(8, 6)
    barred[:, ::2] = -math.inf
    yield "every other expert barred (-inf)", barred, 2
    yield "fewer experts than k: the others are barred (-inf)", barred, 5
    empty = attempt.tensor(4, 5)
    empty[1] = -math.inf
    yield "a token that is barred from all experts", empty, 2


def _reference(logits, k: int, renormalise: bool):
    """Weights, experts and probabilities, one token after the other, by the words of the goal."""
    flat = logits.reshape(-1, logits.shape[-1])
    weights, chosen = [], []
    for row in flat:
        order = sorted(range(len(row)), key=lambda e: (-row[e].item(), e))[:k]
        counted = torch.zeros(len(row), dtype=torch.bool)
        counted[order if renormalise else list(range(len(row)))] = True
        counted = counted & (row > -math.inf)
        if counted.any():
            safe = row.masked_fill(~counted, -math.inf)
            p = safe.softmax(-1)
        else:
            p = torch.zeros_like(row)
        weights.append(p[order])
        chosen.append(order)
    shape = (*logits.shape[:-1], k)
    if not weights:
        return logits[..., :k], torch.zeros(shape, dtype=torch.int64)
    return torch.stack(weights).view(shape), torch.tensor(chosen).view(shape)


def _gradient(logits, k: int, renormalise: bool, dweights):
    """By the formula of a softmax, row by row: p (dp - sum p dp), over what counts."""
    weights, experts = _reference(logits, k, renormalise)
    dp = torch.zeros_like(logits).scatter(-1, experts, dweights)
    p = torch.zeros_like(logits).scatter(-1, experts, weights)
    if not renormalise:
        p = logits.softmax(-1).nan_to_num(0.0)
    return p * (dp - (p * dp).sum(-1, keepdim=True))


def _compare(attempt: Attempt, result, logits, k, renormalise, dweights) -> None:
    if not attempt.returned(result, "weights", "experts", "dlogits"):
        return
    got, experts, dlogits = result
    weights, chosen = _reference(logits, k, renormalise)
    if not attempt.in_order(
        weights=(got, weights),
        experts=(experts, chosen),
        dlogits=(dlogits, _gradient(logits, k, renormalise, dweights)),
    ):
        return
    if not _experts(attempt, experts, chosen, logits, k):
        return
    other = _reference(logits, k, not renormalise)[0]
    says = (
        "they are probabilities over all experts: renormalise=True asks for their shares among the "
        "chosen ones"
        if renormalise
        else "they were renormalised among the chosen ones, and renormalise is False"
    )
    picked = logits.gather(-1, chosen)
    shares = logits.softmax(-1).gather(-1, chosen)
    mistakes = {
        says: other,
        "they are the logits of the chosen experts, and asked for are shares": picked,
        "a softmax was taken over shares that were a softmax's already": shares.softmax(-1),
        "of the logits themselves was made a share, without exp": picked
        / picked.sum(-1, keepdim=True),
        "they are sigmoids, and asked for is a softmax": picked.sigmoid(),
        "each is divided by a sum over the whole batch, and should be by its token's": weights
        / weights.sum(),
        "the largest logit of the whole batch was subtracted: of a row far below it nothing is "
        "left. Subtract each row's own": lambda: _one_maximum(logits, chosen, renormalise),
    }
    if not attempt.equal("weights", got, weights, mistakes=mistakes):
        return
    expected = _gradient(logits, k, renormalise, dweights)
    # With k=1 and renormalised it is 0, and rounding may leave something of that size.
    noise = 1e-13 * dweights.abs().max().item() if dweights.numel() else 0.0
    right = isinstance(dlogits, torch.Tensor) and dlogits.dtype == expected.dtype
    if right and dlogits.shape == expected.shape and (dlogits - expected).abs().le(noise).all():
        return
    attempt.equal(
        "dlogits",
        dlogits,
        expected,
        mistakes=_wrong_gradients(logits, k, renormalise, dweights, weights, chosen, expected),
    )


def _one_maximum(logits, chosen, renormalise: bool) -> torch.Tensor:
    shares = (logits - logits[logits.isfinite()].max()).exp()
    total = (shares.gather(-1, chosen) if renormalise else shares).sum(-1, keepdim=True)
    return shares.gather(-1, chosen) / total.clamp(min=1e-300)


def _experts(attempt: Attempt, experts, chosen, logits, k: int) -> bool:
    if not attempt.require(
        isinstance(experts, torch.Tensor) and not experts.is_floating_point()
        and experts.dtype != torch.bool,
        "experts are numbers of experts, a tensor of integers of the shape (..., k)",
    ):  # fmt: skip
        return False
    if experts.shape == chosen.shape and not torch.equal(experts.long(), chosen):
        wrong = (experts != chosen).any(-1)
        asked = logits.gather(-1, experts.clamp(0, logits.shape[-1] - 1).long())
        if (experts.min() < 0) or (experts.max() >= logits.shape[-1]):
            return attempt.require(False, "experts has numbers that no expert has")
        row = tuple(wrong.nonzero()[0].tolist())
        mine, right = experts[row].tolist(), chosen[row].tolist()
        same = torch.equal(asked, logits.gather(-1, chosen))
        if same:
            why = "logits are equal there, and of equal ones the lower number comes first"
        elif sorted(mine) == sorted(right):
            why = "the right experts in another order: the highest logit comes first"
        elif len(set(mine)) < len(mine):
            why = "one is chosen twice"
        elif torch.equal(
            experts.long(),
            logits.softmax(-1).sort(dim=-1, descending=True, stable=True).indices[..., :k],
        ):
            why = (
                "chosen by probabilities, which are equal (0) where logits are not: choose by "
                "the logits"
            )
        else:
            why = (
                f"their logits are {_short(asked[row])}, and {_short(logits[row][right])} is higher"
            )
        return attempt.require(
            False, f"token {list(row)} goes to the experts {mine}, and should to {right}: {why}"
        )
    return attempt.equal("experts", experts, chosen)


def _short(numbers: torch.Tensor) -> str:
    return ", ".join(f"{x:.4g}" for x in numbers.tolist())


def _wrong_gradients(logits, k, renormalise, dweights, weights, chosen, expected) -> dict:
    zeros = torch.zeros_like(logits)
    through = weights * dweights
    p = logits.softmax(-1).nan_to_num(0.0)
    dp = zeros.scatter(-1, chosen, dweights)
    own = weights * (1 - weights) * dweights
    every = p * (dp - (p * dp).sum(-1, keepdim=True))
    chosen_only = zeros.scatter(-1, chosen, every.gather(-1, chosen))
    inner = weights * (dweights - through.sum(-1, keepdim=True))
    # The probabilities' softmax differentiated, and the division by their sum taken as a constant.
    total = p.gather(-1, chosen).sum(-1, keepdim=True)
    fixed = p * (dp - (p * dp).sum(-1, keepdim=True)) / total.where(total > 0, 1)
    by_number = dweights.gather(-1, chosen.argsort(-1))
    first = torch.zeros_like(dp)
    first[..., :k] = dweights
    q = zeros.scatter(-1, chosen, weights) if renormalise else p
    return {
        "dweights were taken in the order of the experts' numbers; dweights stand by place, as "
        "weights do": _gradient(logits, k, renormalise, by_number),
        "dweights were put at the experts 0 to k-1: scatter them to where the chosen ones are": (
            q * (first - (q * first).sum(-1, keepdim=True))
        ),
        "it is the gradient of the weights' logarithm, as in a cross entropy": dp
        - q * dp.sum(-1, keepdim=True),
        "it is the gradient of the weights, spread out: the softmax was not differentiated": dp,
        "a logit also moves the other chosen weights (they share one sum), and here only its own "
        "was counted": zeros.scatter(-1, chosen, own),
        "the sum over all weights is missing: a higher logit takes away from the others": (
            zeros.scatter(-1, chosen, through)
        ),
        **(
            {
                "it is the gradient of probabilities over all experts, not renormalised": every,
                "the sum that is divided by was taken as a constant; it moves with the logits": (
                    fixed
                ),
            }
            if renormalise
            else {
                "logits of experts that were not chosen are in the softmax's sum, so they have a "
                "gradient too": chosen_only,
                "it is the gradient of renormalised weights, and renormalise is False": (
                    zeros.scatter(-1, chosen, inner)
                ),
            }
        ),
        "it has the shape and the numbers of the chosen logits' in the wrong places: scatter them "
        "to where their experts are": zeros.scatter(
            -1, torch.arange(k).expand_as(chosen), expected.gather(-1, chosen)
        ),
    }


EXERCISE = Exercise(
    id="moe.router.topk",
    goal="The router of a layer of experts, forward and backward, without autograd. Each token "
    "goes to the k experts with the highest logits; of equal logits the lower number goes first. "
    "Their weights are softmax probabilities: over all experts, or, with `renormalise`, divided by "
    "their sum over the token's k chosen ones. Then, from the gradient of the weights, that of the "
    "logits.",
    interface="`my_top_k(logits, k, renormalise, dweights)` returns `weights, experts, dlogits`. "
    "logits: (..., E), with any number of dims in front, perhaps of size 0. weights and experts: "
    "(..., k), the highest logit first; experts are whole numbers. dweights: (..., k), the "
    "gradient of some loss with respect to weights; dlogits: (..., E), of the same loss with "
    "respect to logits; the choice itself has no gradient. Choose by *logits*: a probability may "
    "be 0 where a logit is not. A logit of -inf bars the token from this expert: it has the weight "
    "0 if it must be chosen nevertheless, and no gradient; a token that is barred from all experts "
    "has weights and gradients of 0. Logits may be in the thousands.",
    budget="Nothing is sent, and autograd refuses while you are judged, backward and "
    "forward. About sixty settings; 1e-10 of the largest number.",
    hints=(
        "Renormalising probabilities of a softmax over all experts is a softmax over the chosen "
        "ones alone. Which logits does such a weight depend on? And without renormalising?",
        "A softmax p of some logits has dlogits = p * (dp - sum(p * dp)). With `renormalise` p is "
        "over the chosen ones; without, over all, and dp is dweights at the chosen places and 0 "
        "elsewhere. Ties: `sort(stable=True, descending=True)`, since `topk` promises no order.",
        "Make p (..., E) in both cases (with `renormalise` it is 0 for what was not chosen), "
        "`dp = zeros.scatter(-1, experts, dweights)`, and the formula is one line for both. "
        "Subtract the row's largest logit before exp, and 0 where that is -inf.",
    ),
    stub_function=my_top_k,
    solution_function=solution,
    why="Two routers, and what they learn from. Renormalised (Mixtral, Qwen3-MoE), a token's k "
    "logits compete only with each other: an expert that was not chosen hears nothing, and with "
    "k=1 the weight is always 1 and its gradient 0, which is why Switch, with one expert a token, "
    "does not renormalise. Not renormalised (Switch, DeepSeek-V2), every expert's logit has a "
    "gradient, but the output is scaled by less than 1. In both the choice is a step function "
    "without a gradient; that experts get tokens at all is left to balance. "
    "(`pico.source('picolab.moe.router.weigh')`; arXiv 2101.03961, 2401.04088.)",
    judge=judge,
    cases=(Case("dp1", "many sizes"),),
    blocked=(
        "torch.autograd.grad",
        "torch.autograd.forward_ad.make_dual",  # what jvp and jacfwd begin with
        "torch.autograd.backward",
        "torch.autograd.graph._engine_run_backward",
        "picolab.moe.router.choose",
        "picolab.moe.router.weigh",
    ),
    timeout=15.0,
)
