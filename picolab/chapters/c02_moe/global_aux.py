"""Exercise: the auxiliary loss over a global batch, with its gradient (chapter 2, section 3).

Replicas and micro-batches of different sizes, since that is what tells a mean over tokens from a
mean of means. Expected is the loss of one process that has all tokens in one batch.
"""

import math

import torch

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_global_aux(logits, k, axis):
    import picolab as pico

    replicas = pico.comm.mesh().size(axis)
    raise NotImplementedError(f"{len(logits)} micro-batches, {replicas} replicas, k={k}")


def solution(logits, k, axis):
    import torch

    import picolab as pico

    experts = logits[0].shape[1]
    probabilities = [of.softmax(-1) for of in logits]
    sums = torch.zeros(2 * experts + 1, dtype=logits[0].dtype)  # choices, probabilities, tokens
    for of, p in zip(logits, probabilities):
        chosen = of.sort(dim=-1, descending=True, stable=True).indices[:, :k]
        sums[:experts] += chosen.flatten().bincount(minlength=experts)
        sums[experts:-1] += p.sum(0)
        sums[-1] += len(of)
    sums = pico.comm.all_reduce(sums, axis, "moe: choices and probabilities of the global batch")
    tokens = sums[-1]
    f, mean = sums[:experts] / (tokens * k), sums[experts:-1] / tokens
    # f counts, and has no gradient; the mean is a sum over all tokens, and these are mine.
    gradients = [experts / tokens * p * (f - (p * f).sum(-1, keepdim=True)) for p in probabilities]
    return experts * (f * mean).sum(), gradients


def judge(learner, attempt: Attempt) -> None:
    mesh, axis = comm.mesh(), attempt.case.values["axis"]
    ranks = list(mesh.ranks(axis))
    for about, sizes, experts, k in attempt.case.values["settings"]:
        attempt.setting(about)
        everyones = _draw(attempt, sizes, experts, ranks, mesh.size("world"))
        result = attempt.call(learner, {"logits": everyones[attempt.rank], "k": k, "axis": axis})
        attempt.only("all_reduce")
        attempt.along(axis)
        _compare(attempt, result, [everyones[r] for r in ranks], ranks.index(attempt.rank), k)
        attempt.budget("all_reduce", count=2, at_least=1)
        attempt.budget("all_reduce", payload_bytes=8 * (2 * experts + 2), least_bytes=4 * experts)


def _draw(attempt: Attempt, sizes, experts: int, ranks, world: int) -> list[list[torch.Tensor]]:
    """[rank][micro-batch]; ranks that differ in another axis have the same, as ranks of tp do."""
    lines = [[3 * attempt.tensor(tokens, experts) for tokens in of] for of in sizes]
    skew = 2 * attempt.tensor(experts)
    for index, line in enumerate(lines):
        for of in line:
            of += skew * (1 + index % 2)
            of[::5] = of[::5].round()  # with ties
            of[1::6, ::2] = -math.inf  # barred
            of[4::6] *= 400  # probabilities are 0 there where logits differ
    apart = ranks[1] - ranks[0]  # the ranks of a line are evenly apart
    return [lines[rank // apart % len(ranks)] for rank in range(world)]


def _shares(logits: list[torch.Tensor], k: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """f, the sum of probabilities, and how many tokens there are."""
    rows = torch.cat(logits)
    chosen = rows.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    counts = chosen.flatten().bincount(minlength=rows.shape[1]).double()
    return counts, rows.softmax(-1).sum(0), len(rows)


def _loss(counts, sums, tokens: float, k: int, over: float | None = None) -> torch.Tensor:
    over = tokens if over is None else over
    return len(counts) * (counts / (over * k) * sums / tokens).sum()


def _gradient(logits: torch.Tensor, f: torch.Tensor, tokens: float) -> torch.Tensor:
    p = logits.softmax(-1)
    return len(f) / tokens * p * (f - (p * f).sum(-1, keepdim=True))


def _compare(attempt: Attempt, result, ranks: list[list[torch.Tensor]], me: int, k: int) -> None:
    if not attempt.returned(result, "loss", "dlogits"):
        return
    loss, gradients = result
    mine = ranks[me]
    counts, sums, tokens = _shares([of for rank in ranks for of in rank], k)
    f = counts / (tokens * k)
    each = [_shares(rank, k) for rank in ranks]
    pools = [[_shares([of], k) for of in rank if len(of)] for rank in ranks]
    own_counts, own_sums, own_tokens = each[me]
    right = _loss(counts, sums, tokens, k)
    means = torch.stack([_loss(*of, k) for of in each if of[2]])
    all_pools = torch.stack([_loss(*of, k) for rank in pools for of in rank])
    some = max(own_tokens, 1)
    of_means = _of_means(each, k)
    says = {
        "it is this replica's own: neither choices nor probabilities were added up": _loss(
            own_counts, own_sums, some, k
        ),
        "each replica's own loss was averaged: f is of the global batch, and not of a replica": (
            means.mean(), sum(_loss(*of, k) * of[2] for of in each if of[2]) / tokens
        ),
        "each micro-batch's own loss was averaged: f and P are of all tokens of the step": (
            all_pools.mean(),
            _of_each_round(ranks, k),
            torch.stack([_loss(*of, k) for of in pools[me]]).mean() if pools[me] else right * 0,
        ),
        "each replica's shares were averaged, whatever tokens it has: add up counts, and divide by "
        "all tokens": of_means,
        "choices were added up over the replicas, and P is this replica's own": _loss(
            counts, own_sums / some * tokens, tokens, k
        ),
        "P was added up over the replicas, and f is this replica's own": _loss(
            own_counts / some * tokens, sums, tokens, k
        ),
        "the mean load is 1 / E with k choices too: divide by tokens * k": right * k,
        "the factor E is missing, and even loads would not give 1": right / len(f),
        "f was made of probabilities, and is counted": _loss(k * sums, sums, tokens, k),
        "of equal logits the last one was chosen, or any: the lower number goes first": lambda: (
            _last(ranks, k, sums, tokens)
        ),
        "f was taken of each token's first choice alone": lambda: _first(ranks, sums, tokens),
        "all logits that are as high as the k-th were taken for choices, and are more than k where "
        "some are equal": lambda: _above_a_threshold(ranks, k, sums, tokens),
        "experts were chosen by probabilities, which are equal (0) where logits are not": lambda: (
            _by_probability(ranks, k, sums, tokens)
        ),
        "it was divided by the number of replicas: all tokens of all of them are in it": right
        / len(ranks),
        "it is E * sum of f * f, which has no gradient: P is the mean of probabilities": _loss(
            counts, counts / k, tokens, k
        ),
        "only the last micro-batch of each replica is in it": lambda: _loss(
            *_shares([rank[-1] for rank in ranks], k), k
        ),
        "it was summed over the micro-batches": right * len(mine),
    }  # fmt: skip
    if not attempt.equal("loss", loss, right, mistakes=says):
        return
    kind = f"a list of {len(gradients)}" if isinstance(gradients, list | tuple) else "one thing"
    if not attempt.require(
        isinstance(gradients, list | tuple) and len(gradients) == len(mine),
        f"dlogits is {kind}; asked for is a list, one tensor for each of the {len(mine)} "
        "micro-batches",
    ):
        return
    for micro, (got, of) in enumerate(zip(gradients, mine)):
        expected = _gradient(of, f, tokens)
        if not attempt.equal(
            f"dlogits[{micro}]",
            got,
            expected,
            mistakes=_wrong_gradients(of, expected, ranks, me, k, micro, (counts, sums, tokens)),
        ):
            return


def _last(ranks, k: int, sums, tokens) -> torch.Tensor:
    rows = torch.cat([of for rank in ranks for of in rank]).flip(-1)
    chosen = rows.shape[1] - 1 - rows.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return _loss(chosen.flatten().bincount(minlength=rows.shape[1]).double(), sums, tokens, k)


def _of_each_round(ranks, k: int) -> torch.Tensor:
    """The mean over the micro-batches' numbers of the loss of all replicas' micro-batch."""
    pools = [_shares([rank[i] for rank in ranks], k) for i in range(len(ranks[0]))]
    return torch.stack([_loss(*of, k) for of in pools if of[2]]).mean()


def _above_a_threshold(ranks, k: int, sums, tokens) -> torch.Tensor:
    rows = torch.cat([of for rank in ranks for of in rank])
    counts = (rows >= rows.topk(k).values[:, -1:]).sum(0).double()
    return _loss(counts, sums, tokens, k)


def _by_probability(ranks, k: int, sums, tokens) -> torch.Tensor:
    counts = _shares([of.softmax(-1) for rank in ranks for of in rank], k)[0]
    return _loss(counts, sums, tokens, k)


def _of_means(each, k: int) -> tuple[torch.Tensor, ...]:
    """Shares averaged over replicas, those without tokens counted as zeros or left out."""
    found = []
    for some in ([of for of in each if of[2]], each):
        f = sum(counts / (max(t, 1) * k) for counts, _, t in some) / len(some)
        p = sum(sums / max(t, 1) for _, sums, t in some) / len(some)
        found.append(len(f) * (f * p).sum())
    return tuple(found)


def _first(ranks, sums, tokens) -> torch.Tensor:
    counts = _shares([of for rank in ranks for of in rank], 1)[0]
    return _loss(counts, sums, tokens, 1)


def _wrong_gradients(of, expected, ranks, me: int, k: int, micro: int, whole) -> dict:
    counts, sums, tokens = whole
    n, mine, f = len(ranks), ranks[me], counts / (tokens * k)
    own_counts, _, own = _shares(mine, k)
    own = max(own, 1)
    here = max(len(of), 1)
    p = of.softmax(-1)
    pool = _shares([of], k)[0] / (here * k)
    many = len(mine)
    return {
        "the mean was taken over this replica's tokens: gradients of replicas are *summed*, so "
        "each token has 1 / all tokens in it": (
            expected * tokens / own, expected * tokens / own / many
        ),
        "the mean was taken over this micro-batch's tokens, and is over all of the step": (
            expected * tokens / here, expected * tokens / here / many,
            expected * tokens / here / n, expected * tokens / here / n / many,
        ),
        "f is this replica's own, and not that of the global batch": (
            _gradient(of, own_counts / (own * k), tokens),
            _gradient(of, own_counts / (own * k), own),
        ),
        "f is this micro-batch's own, and not that of the global batch": (
            _gradient(of, pool, tokens), _gradient(of, pool, here), _gradient(of, pool, own),
        ),
        f"it is {n} times too large: autograd went back through the sum over the {n} replicas, or "
        "something is summed twice": expected * n,
        f"it was divided by the {n} replicas, as if they were averaged; gradients are summed": (
            expected / n
        ),
        "it was divided by the number of micro-batches: their gradients are added up, and all "
        "tokens of the step were counted already": expected / many,
        "f was differentiated instead of P, or both: f counts, and has no gradient": (
            expected * 2,
            _gradient(of, sums / tokens, tokens),
            _gradient(of, 2 * sums / tokens, tokens),
        ),
        "it is the gradient with respect to the probabilities: the softmax is missing": (
            (len(f) / tokens * f).expand_as(of)
        ),
        "of the softmax's gradient p * (dp - sum(p * dp)) the p in front is missing": (
            len(f) / tokens * (f - (p * f).sum(-1, keepdim=True)),
            len(f) / tokens * (f - (p * f).sum(-1, keepdim=True)) * (p > 0),
        ),
        "a logit moves the other probabilities too; that part is missing": (
            len(f) / tokens * p * f, len(f) / tokens * p * (1 - p) * f
        ),
    }  # fmt: skip


EXERCISE = Exercise(
    id="moe.balance.aux",
    goal="The loss that evens out loads, over the global batch: as if one process saw the tokens "
    "of all replicas and all micro-batches of the step at once. aux = E * sum over experts i of "
    "f_i * P_i, where f_i is the share of all choices that fell on i, and P_i the mean of all "
    "tokens' softmax probabilities. Return its value, the same on every rank, and its gradient "
    "with respect to this replica's logits.",
    interface="`my_global_aux(logits, k, axis)` returns `loss, dlogits`. logits: a list of M "
    "tensors (T, E), the micro-batches of this replica, T another in each, perhaps 0. A token "
    "chooses the k experts with the highest logits, of equal ones those with the lower number. A "
    "logit may be -inf, and is never the only kind. dlogits: a list of M tensors like logits. "
    "Replicas' gradients are *summed* later, as everywhere in this package; f counts, and has no "
    "gradient. loss is a tensor without dims, in the dtype of logits. `pico.comm.all_reduce(t, "
    "axis, reason)` sums in place and returns t; autograd does not see it. By hand or by autograd, "
    "as you like.",
    budget="Two all-reduces at most, and no more than 2 E + 2 numbers of 8 bytes. Over `axis` "
    "only: ranks of other axes have the same tokens.",
    hints=(
        "The loss is no mean of the replicas' losses: f times P is a product of two means. What "
        "are the sums that have to be known of all tokens, and how many numbers are these?",
        "Sum over replicas and micro-batches: choices of each expert, probabilities of each "
        "expert, tokens. For the gradient f is a constant, and P_i = (sum of p_i) / tokens: how "
        "much of it is one token's?",
        "dp_i = E f_i / tokens, for every token of the step alike, wherever it is; then back "
        "through the softmax: dlogits = p * (dp - sum(p * dp)). Nothing else is exchanged.",
    ),
    stub_function=my_global_aux,
    solution_function=solution,
    why="A micro-batch of a few sequences may well be about one subject, and a loss that asks each "
    "for even loads forbids experts to specialise; over the global batch only the whole has to be "
    "even (arXiv 2501.11873: better loss, and experts of domains). It costs one exchange of E "
    "numbers. Three things go wrong: means of means, where replicas or micro-batches have "
    "different numbers of tokens (Megatron-LM issues 7452 and 7213); a gradient times the number "
    "of replicas, where autograd goes back through the sum, or divided by it (issue 3672); and a "
    "sum over ranks that hold the same tokens. In training, f of all micro-batches "
    "is not known before the first backward: `pico.source('picolab.moe.strategy._OverBatch')` "
    "takes those so far, as the paper does.",
    judge=judge,
    cases=(
        Case(
            "dp3",
            values={
                "axis": "dp",
                "settings": (
                    # All sizes differ: a wrong divisor is no other's.
                    ("2 micro-batches of 2 to 9 tokens", ((4, 8), (5, 9), (7, 2)), 5, 2),
                    ("micro-batches of 0 to 8 tokens", ((4, 8), (0, 5), (1, 2)), 5, 3),
                ),
            },
        ),
        Case(
            "dp2",
            values={
                "axis": "dp",
                "settings": (
                    ("3 micro-batches of 5 tokens, one expert a token", ((5,) * 3, (5,) * 3), 3, 1),
                    ("replicas with 20 and 3 tokens", ((20,), (3,)), 6, 3),
                    ("a replica without tokens", ((0, 0), (7, 4)), 7, 2),
                    ("2 experts", ((3, 1), (1, 6)), 2, 1),
                    ("17 experts", ((13, 8), (11, 5)), 17, 4),
                ),
            },
        ),
        Case(
            "dp2tp2",
            values={
                "axis": "dp",
                "settings": (
                    ("over dp; ranks of tp have the same tokens", ((4, 7), (5, 1)), 4, 2),
                ),
            },
        ),
    ),
    blocked=("picolab.moe.balance.aux_loss",),
    timeout=5.0,
)
