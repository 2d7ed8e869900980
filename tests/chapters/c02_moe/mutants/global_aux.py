"""Wrong answers to moe.balance.aux, what each author must be told, and right ones."""

import torch

from picolab import comm
from picolab.chapters.c02_moe.global_aux import solution


def _chosen(of, k):
    return of.sort(dim=-1, descending=True, stable=True).indices[:, :k]


def _counts(of, k):
    return _chosen(of, k).flatten().bincount(minlength=of.shape[1]).double()


def _sums(logits, k):
    counts = sum(_counts(of, k) for of in logits)
    return counts, sum(of.softmax(-1).sum(0) for of in logits), float(sum(map(len, logits)))


def _answer(
    logits,
    k,
    axis,
    *,
    counts=lambda logits, k: sum(_counts(of, k) for of in logits),
    share=lambda counts, tokens, k: counts / (tokens * k),
    over=lambda tokens, own, here: tokens,
    value=lambda loss: loss,
    back=lambda p, f, e, tokens: e / tokens * p * (f - (p * f).sum(-1, keepdim=True)),
    after=lambda gradient, axis: gradient,
    whole=True,
):
    """The solution, with one thing to be done otherwise."""
    experts = logits[0].shape[1]
    own = float(sum(map(len, logits)))
    sums = sum(of.softmax(-1).sum(0) for of in logits)
    packed = torch.cat([counts(logits, k), sums, torch.tensor([own], dtype=sums.dtype)])
    packed = comm.all_reduce(packed, axis, "moe")
    f, tokens = share(packed[:experts], packed[-1], k), packed[-1]
    loss = value(experts * (f * packed[experts:-1] / tokens).sum())
    gradients = []
    for of in logits:
        gradient = back(of.softmax(-1), f, experts, over(tokens, own, len(of)))
        gradients.append(after(gradient, axis))
    return loss, gradients


def own_loss(logits, k, axis):
    """Nothing is sent."""
    counts, sums, tokens = _sums(logits, k)
    tokens = max(tokens, 1)
    f, e = counts / (tokens * k), len(counts)
    p = [of.softmax(-1) for of in logits]
    return e * (f * sums / tokens).sum(), [
        e / tokens * q * (f - (q * f).sum(-1, keepdim=True)) for q in p
    ]


def mean_of_replicas(logits, k, axis):
    """Each replica's own loss, averaged, as DDP would."""
    loss, gradients = own_loss(logits, k, axis)
    n = comm.mesh().size(axis)
    return comm.all_reduce(loss.clone(), axis, "moe") / n, [g / n for g in gradients]


def shares_averaged(logits, k, axis):
    """f and P averaged over replicas, whatever tokens they have."""
    counts, sums, tokens = _sums(logits, k)
    n, e = comm.mesh().size(axis), len(counts)
    both = torch.stack([counts / (max(tokens, 1) * k), sums / max(tokens, 1)])
    f, mean = comm.all_reduce(both, axis, "moe") / n
    gradients = [
        e / (max(tokens, 1) * n) * of.softmax(-1) * (f - (of.softmax(-1) * f).sum(-1, keepdim=True))
        for of in logits
    ]
    return e * (f * mean).sum(), gradients


def mean_of_micro_batches(logits, k, axis):
    """Each micro-batch's own loss; the usual way, and not over a global batch."""
    leaves = [of.clone().requires_grad_() for of in logits]
    losses = []
    for of in leaves:
        if len(of):
            f = _counts(of, k) / (len(of) * k)
            losses.append(of.shape[1] * (f * of.softmax(-1).mean(0)).sum())
    n = comm.mesh().size(axis)
    total = sum(losses) if losses else sum(of.sum() * 0 for of in leaves)
    both = torch.tensor([float(total.detach()), len(losses)], dtype=torch.float64)
    both = comm.all_reduce(both, axis, "moe")
    (total / both[1]).backward()
    del n
    return both[0] / both[1], [of.grad for of in leaves]


def f_of_its_own(logits, k, axis):
    """P over all, f of this replica."""
    own = _sums(logits, k)

    def share(counts, tokens, k):
        return own[0] / (max(own[2], 1) * k)

    return _answer(logits, k, axis, share=share)


def gradient_with_its_own_f(logits, k, axis):
    loss, _ = solution(logits, k, axis)
    counts, _, own = _sums(logits, k)
    tokens = torch.tensor(own, dtype=torch.float64)
    n = comm.all_reduce(tokens, axis, "tokens")
    f, e = counts / (max(own, 1) * k), len(counts)
    p = [of.softmax(-1) for of in logits]
    return loss, [e / n * q * (f - (q * f).sum(-1, keepdim=True)) for q in p]


def over_own_tokens(logits, k, axis):
    return _answer(logits, k, axis, over=lambda tokens, own, here: max(own, 1))


def over_a_micro_batch(logits, k, axis):
    return _answer(logits, k, axis, over=lambda tokens, own, here: max(here, 1))


def times_the_replicas(logits, k, axis):
    """Autograd goes back through an all-reduce whose backward is one."""
    n = comm.mesh().size(axis)
    return _answer(logits, k, axis, after=lambda gradient, axis: gradient * n)


def divided_by_the_replicas(logits, k, axis):
    n = comm.mesh().size(axis)
    return _answer(logits, k, axis, after=lambda gradient, axis: gradient / n)


def divided_by_micro_batches(logits, k, axis):
    return _answer(logits, k, axis, after=lambda gradient, axis: gradient / len(logits))


def without_k(logits, k, axis):
    return _answer(logits, k, axis, share=lambda counts, tokens, k: counts / tokens)


def without_e(logits, k, axis):
    return _answer(logits, k, axis, value=lambda loss: loss / logits[0].shape[1])


def first_choices(logits, k, axis):
    return _answer(
        logits, k, axis,
        counts=lambda logits, k: sum(_counts(of, 1) for of in logits),
        share=lambda counts, tokens, k: counts / tokens,
    )  # fmt: skip


def probabilities_for_counts(logits, k, axis):
    """Differentiable, and another loss: f made of probabilities."""
    return _answer(
        logits, k, axis, counts=lambda logits, k: k * sum(of.softmax(-1).sum(0) for of in logits)
    )  # fmt: skip


def differentiates_f_as_well(logits, k, axis):
    return _answer(logits, k, axis, after=lambda gradient, axis: 2 * gradient)


def no_softmax_in_backward(logits, k, axis):
    return _answer(logits, k, axis, back=lambda p, f, e, tokens: (e / tokens * f).expand_as(p))


def own_part_of_the_softmax(logits, k, axis):
    return _answer(logits, k, axis, back=lambda p, f, e, tokens: e / tokens * p * (1 - p) * f)


def over_the_world(logits, k, axis):
    """Ranks of tp have the same tokens, and were summed too."""
    return solution(logits, k, "world")


def one_exchange_a_micro_batch(logits, k, axis):
    loss, gradients = solution(logits, k, axis)
    for of in logits[1:]:
        comm.all_reduce(_counts(of, k), axis, "moe")
    comm.all_reduce(_counts(logits[0], k), axis, "moe")
    return loss, gradients


def sends_the_gradients(logits, k, axis):
    """Gradients of the weights are summed over the replicas later, by somebody else."""
    loss, gradients = solution(logits, k, axis)
    for gradient in gradients:
        comm.all_reduce(gradient.sum(0), axis, "gradients")
    return loss, gradients


def gathers(logits, k, axis):
    counts = sum(_counts(of, k) for of in logits)
    comm.all_gather(counts, axis, "counts")
    return solution(logits, k, axis)


def one_tensor(logits, k, axis):
    loss, gradients = solution(logits, k, axis)
    return loss, torch.cat(gradients)


def loss_alone(logits, k, axis):
    return solution(logits, k, axis)[0]


def topk_ties(logits, k, axis):
    """Of equal logits the last one."""

    def counts(logits, k):
        found = 0
        for of in logits:
            order = of.flip(-1).sort(dim=-1, descending=True, stable=True).indices[:, :k]
            found = found + (of.shape[1] - 1 - order).flatten().bincount(minlength=of.shape[1])
        return found.double()

    return _answer(logits, k, axis, counts=counts)


def in_fp32(logits, k, axis):
    loss, gradients = solution(logits, k, axis)
    return loss.float().double(), [of.float().double() for of in gradients]


def with_a_dim(logits, k, axis):
    loss, gradients = solution(logits, k, axis)
    return loss.unsqueeze(0), gradients


def mean_all_reduce(logits, k, axis):
    """comm sums; this one averages what came."""
    n = comm.mesh().size(axis)
    loss, gradients = solution(logits, k, axis)
    return loss / n, gradients


def softmax_over_tokens(logits, k, axis):
    def back(p, f, e, tokens):
        return e / tokens * p * (f - (p * f).sum(0, keepdim=True))

    return _answer(logits, k, axis, back=back)


def squares_of_shares(logits, k, axis):
    """E * sum f^2: it has no gradient."""
    counts, _, tokens = _sums(logits, k)
    packed = comm.all_reduce(torch.cat([counts, torch.tensor([tokens]).double()]), axis, "counts")
    f = packed[:-1] / (packed[-1] * k)
    return len(f) * (f * f).sum(), [torch.zeros_like(of) for of in logits]


def a_float(logits, k, axis):
    loss, gradients = solution(logits, k, axis)
    return loss.item(), gradients


def with_a_coefficient(logits, k, axis):
    loss, gradients = solution(logits, k, axis)
    return 0.01 * loss, [0.01 * of for of in gradients]


def zero_gradients(logits, k, axis):
    """Everything detached."""
    loss, gradients = solution(logits, k, axis)
    return loss, [torch.zeros_like(of) for of in gradients]


def of_the_last_micro_batch(logits, k, axis):
    loss, _ = solution(logits[-1:], k, axis)
    return loss, solution(logits, k, axis)[1]


def sign(logits, k, axis):
    """Loads are made even by going down the gradient; this one goes up."""
    loss, gradients = solution(logits, k, axis)
    return loss, [-of for of in gradients]


def so_far(logits, k, axis):
    """f of the micro-batches so far, as a running count has it."""
    leaves = [of.clone().requires_grad_() for of in logits]
    loss, gradients = solution(logits, k, axis)
    counts, _, tokens = _sums(logits[:1], k)
    f, e = counts / (max(tokens, 1) * k), len(counts)
    p = leaves[0].softmax(-1).detach()
    total = float(sum(map(len, logits))) * comm.mesh().size(axis)
    first = e / total * p * (f - (p * f).sum(-1, keepdim=True))
    return loss, [first, *gradients[1:]]


def not_a_list(logits, k, axis):
    loss, gradients = solution(logits, k, axis)
    return loss, {index: of for index, of in enumerate(gradients)}


def by_probability(logits, k, axis):
    return _answer(
        logits, k, axis, counts=lambda logits, k: sum(_counts(of.softmax(-1), k) for of in logits)
    )


def above_a_threshold(logits, k, axis):
    """All that are as high as the k-th: more than k where some are equal."""

    def counts(logits, k):
        rows = torch.cat(list(logits))
        return (rows >= rows.topk(k).values[:, -1:]).sum(0).double()

    return _answer(logits, k, axis, counts=counts)


def mean_of_rounds(logits, k, axis):
    """Global for each micro-batch, and these averaged."""
    rounds = [solution([of], k, axis) for of in logits]
    m = len(rounds)
    return sum(loss for loss, _ in rounds) / m, [of / m for _, (of,) in rounds]


def no_p_in_front(logits, k, axis):
    def back(p, f, e, tokens):
        return e / tokens * (f - (p * f).sum(-1, keepdim=True))

    return _answer(logits, k, axis, back=back)


MUTANTS = {
    mean_of_replicas: "each replica's own loss was averaged",
    times_the_replicas: "autograd went back through the sum",
    shares_averaged: "each replica's shares were averaged",
    mean_of_micro_batches: "averaged",
    own_loss: "neither choices nor probabilities were added up",
    f_of_its_own: "f is this replica's own",
    gradient_with_its_own_f: "f is this replica's own, and not that of the global batch",
    over_own_tokens: "each token has 1 / all tokens in it",
    over_a_micro_batch: "the mean was taken over this",
    divided_by_the_replicas: "as if they were averaged",
    divided_by_micro_batches: "divided by the number of micro-batches",
    without_k: "divide by tokens * k",
    without_e: "the factor E is missing",
    first_choices: "each token's first choice alone",
    probabilities_for_counts: "f was made of probabilities",
    differentiates_f_as_well: "f was differentiated instead of P, or both",
    no_softmax_in_backward: "the softmax is missing",
    own_part_of_the_softmax: "a logit moves the other probabilities too",
    over_the_world: "it communicates over the ranks",
    one_exchange_a_micro_batch: "all-reduces, and the budget is 2",
    sends_the_gradients: "all-reduces, and the budget is 2",
    gathers: "it uses all-gathers; allowed are all-reduces",
    one_tensor: "dlogits is one thing",
    loss_alone: "it returns one thing",
    topk_ties: "the lower number goes first",
    in_fp32: "fp32",
    with_a_dim: "has the shape (1,)",
    mean_all_reduce: "divided by the number of replicas",
    softmax_over_tokens: "dlogits[0] is wrong",
    squares_of_shares: "P is the mean of probabilities",
    a_float: "of type float",
    with_a_coefficient: "loss is wrong",
    zero_gradients: "all of it is zero",
    of_the_last_micro_batch: "only the last micro-batch",
    sign: "wrong sign",
    so_far: "dlogits[0] is wrong",
    not_a_list: "asked for is a list",
    by_probability: "chosen by probabilities, which are equal (0)",
    above_a_threshold: "as high as the k-th",
    mean_of_rounds: "each micro-batch's own loss was averaged",
    no_p_in_front: "the p in front is missing",
}


def by_autograd(logits, k, axis):
    """Counts are summed, and the rest is autograd's: the loss of this replica's tokens alone."""
    leaves = [of.clone().requires_grad_() for of in logits]
    e = logits[0].shape[1]
    counts = torch.cat(
        [_counts(torch.cat(logits), k), torch.tensor([float(sum(map(len, logits)))])]
    )
    counts = comm.all_reduce(counts.double(), axis, "counts and tokens")
    f, tokens = counts[:-1] / (counts[-1] * k), counts[-1]
    mine = e * (f * sum(of.softmax(-1).sum(0) for of in leaves) / tokens).sum()
    gradients = torch.autograd.grad(mine, leaves)
    return comm.all_reduce(mine.detach().clone(), axis, "the loss"), list(gradients)


def token_by_token(logits, k, axis):
    e = logits[0].shape[1]
    packed = torch.zeros(2, e, dtype=torch.float64)
    for of in logits:
        for row in of:
            for expert in sorted(range(e), key=lambda i: (-row[i].item(), i))[:k]:
                packed[0, expert] += 1
            packed[1] += row.softmax(-1)
    import torch.distributed as dist

    dist.all_reduce(packed, group=comm.mesh().group(axis))
    tokens = packed[0].sum() / k
    f, mean = packed / torch.tensor([[tokens * k], [tokens]])
    gradients = []
    for of in logits:
        p = of.softmax(-1)
        jacobian = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
        gradients.append(jacobian @ (e * f / tokens))
    return e * f @ mean, gradients


RIGHT = (by_autograd, token_by_token)
