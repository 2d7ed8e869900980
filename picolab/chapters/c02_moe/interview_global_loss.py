"""Exercise: the load-balancing loss over the global batch (question moe-009)."""

import torch

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_loss(probabilities, chosen, each, axis):
    raise NotImplementedError("return this rank's part of the loss, a tensor of one number")


def solution(probabilities, chosen, each, axis):
    import picolab as pico

    counts = pico.comm.all_reduce(chosen.sum(0), axis, "choices of each expert, of all ranks")
    choices = counts.sum()
    share = counts.to(probabilities.dtype) / choices
    tokens = choices / each
    return len(counts) * (share * probabilities.sum(0)).sum() / tokens


def judge(learner, attempt: Attempt) -> None:
    axis = attempt.case.values["axis"]
    mesh = comm.mesh()
    n, me = mesh.size(axis), mesh.rank(axis)
    for experts, each, tokens in attempt.case.values["settings"]:
        attempt.setting(f"{experts} experts, {each} a token, {tokens} tokens on the ranks")
        everyones = [_drawn(attempt, size, experts, each) for size in tokens]
        probabilities = everyones[me][0].requires_grad_()
        given = {
            "probabilities": probabilities, "chosen": everyones[me][1], "each": each, "axis": axis,
        }  # fmt: skip
        result = attempt.call(learner, given, may_change=("probabilities",))
        value, slope = _right(everyones, me, experts, each)
        values, slopes = _known_mistakes(everyones, me, n, experts, each)
        if attempt.equal("this rank's part of the loss", result, value, mistakes=values):
            attempt.equal("its gradient", _slope(attempt, result, probabilities), slope,
                          mistakes=slopes)  # fmt: skip
        attempt.only("all_reduce")
        attempt.along(axis)
        attempt.budget("all_reduce", count=1, at_least=1, axis=axis)
        attempt.budget(
            "all_reduce", payload_bytes=8 * (experts + 1), least_bytes=4 * experts, axis=axis
        )


def _drawn(attempt: Attempt, tokens: int, experts: int, each: int):
    """Skewed, as routers are: the first experts are liked, the last never chosen."""
    logits = attempt.tensor(tokens, experts) - torch.arange(experts) / 2
    logits[:, -1] -= 20
    chosen = torch.zeros(tokens, experts, dtype=torch.bool)
    return logits.softmax(-1), chosen.scatter_(1, logits.topk(each).indices, True)


def _slope(attempt: Attempt, loss: torch.Tensor, probabilities: torch.Tensor):
    """The gradient; zeros where none comes, so that the right sentence is found."""
    if not loss.requires_grad:
        return torch.zeros_like(probabilities)
    with attempt.watching():
        (slope,) = torch.autograd.grad(loss, probabilities, allow_unused=True)
    return torch.zeros_like(probabilities) if slope is None else slope


def _right(everyones, me: int, experts: int, each: int):
    counts = torch.stack([chosen.sum(0) for _, chosen in everyones]).sum(0).double()
    tokens = sum(len(chosen) for _, chosen in everyones)
    a_token = experts * counts / (tokens * each) / tokens
    mine = everyones[me][0].detach()
    return (a_token * mine.sum(0)).sum(), a_token.expand_as(mine)


def _known_mistakes(everyones, me: int, n: int, experts: int, each: int) -> tuple[dict, dict]:
    counts = torch.stack([chosen.sum(0) for _, chosen in everyones]).sum(0).double()
    sums = torch.stack([one.detach().sum(0) for one, _ in everyones])
    own = everyones[me][1].sum(0).double()
    tokens, here = sum(len(c) for _, c in everyones), len(everyones[me][1])
    right, slope = _right(everyones, me, experts, each)
    f, f_own = counts / (tokens * each), own / max(1, here * each)
    whole = experts * (f * sums.sum(0)).sum() / tokens
    values = {
        "it is the loss of this rank's own tokens; the share of choices is over all ranks": (
            experts * (f_own * sums[me]).sum() / max(1, here)
        ),
        "the shares of choices are this rank's own; only the number of tokens is global": (
            experts * (f_own * sums[me]).sum() / tokens
        ),
        "the sum of probabilities is divided by this rank's tokens; divide it by those of all "
        "ranks, or ranks with few tokens count too much": (
            experts * (f * sums[me]).sum() / max(1, here)
        ),
        "the factor E, the number of experts, is missing": right / experts,
        "f adds up to the choices a token here; it is a share of all choices and adds up to 1": (
            each * right
        ),
        "it is divided by the number of ranks; parts are added up, so nothing is": right / n,
        "it is the loss of all tokens; each rank gives its own part, and parts are added up": whole,
        "f is made of probabilities; it is counted from choices": (
            experts * (sums.sum(0) / tokens * sums[me]).sum() / tokens
        ),
        "the global number of tokens is not this rank's times the ranks: ranks have different "
        "numbers": experts * (counts / max(1, here * n * each) * sums[me]).sum() / max(1, here * n),
    }
    slopes = {
        "none comes back: what was returned is cut off from the probabilities": 0 * slope,
        "it is the ranks' number times too large": n * slope,
        "it is that of the mean over ranks": slope / n,
    }
    return values, slopes


_SETTINGS = ((6, 2, (5, 9, 3, 7)), (5, 1, (4, 0, 6, 2)), (8, 3, (16, 16, 16, 16)))

EXERCISE = Exercise(
    id="interview.moe.global-loss",
    goal="The load-balancing loss `E * sum over i of f_i P_i` over the tokens of all ranks: f_i is "
    "the share of all choices that fell on expert i (counted, without a gradient), P_i the mean of "
    "the probabilities of i. Return this rank's *part*: parts added up over the ranks are the loss "
    "of one process with all tokens, and the gradient of the part is that of the loss with respect "
    "to this rank's probabilities.",
    interface="`my_loss(probabilities, chosen, each, axis)` returns a tensor of one number, shape "
    "(). `probabilities` (T, E) has a gradient to get; `chosen` (T, E) is a mask with `each` True "
    "in every row. T differs from rank to rank, and a rank may have no token. You may use "
    "`pico.comm.all_reduce(t, axis, reason)`, which returns the sum over the axis, of whole "
    "numbers too.",
    budget="One all-reduce of E + 1 numbers of 8 bytes at most; nothing in backward.",
    hints=(
        "The loss is linear in P. Which of its factors must be known for all tokens before a rank "
        "can compute its part?",
        "Counts are statistics: sum them over ranks. Their total is also `each` times the global "
        "number of tokens. P needs no exchange: a mean of all is a sum of local sums, divided by "
        "the global number.",
        "`counts = pico.comm.all_reduce(chosen.sum(0), axis, ...)`, then "
        "`E * (counts / counts.sum() * probabilities.sum(0)).sum() / (counts.sum() / each)`.",
    ),
    stub_function=my_loss,
    solution_function=solution,
    why="f carries no gradient, so an all-reduce of E counts is all that has to travel, and none "
    "in backward. The loss is linear in P, and P is a sum over tokens divided by their number, so "
    "parts add up. The mean of the ranks' own losses is something else: a mean of products, which "
    "asks every rank's tokens to be even for themselves, and forbids experts that are for one kind "
    "of text (arXiv 2501.11873).",
    judge=judge,
    cases=(
        Case("dp4", "", {"axis": "dp", "settings": _SETTINGS}),
        Case("dp3", "", {"axis": "dp", "settings": ((4, 2, (3, 8, 1)),)}),
        Case(
            "dp2tp2",
            "over dp, which is half of them",
            {"axis": "dp", "settings": ((6, 2, (4, 7)),)},
        ),
    ),
)
