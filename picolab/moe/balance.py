"""Balance: three different things that share the name, and when each acts.

    loss        in every micro-batch. A term that is smallest where all experts have equal loads;
                its gradient moves the router's weights
    bias        once a step. Experts that were asked too often are asked less readily from the next
                step on; no gradient, and outputs of unchanged choices do not change
    placement   between steps, when asked. Loads stay what they are, and experts move to other
                ranks so that ranks have equal loads (placement.py)

**The loss** (arXiv 2101.03961, equation 4, for k choices a token). Of T tokens let f_i be the share
of the choices that fell on expert i, and P_i the mean of its probabilities:

    aux = E * sum over i of  f_i * P_i          1 where all is even; E where one expert has all

f_i is counted, so the gradient flows through P_i. Over which tokens f_i and P_i are taken matters:
over a sequence, each sequence must be even; over the micro-batch of a replica, or over the global
batch, experts may specialise in some of them (arXiv 2501.11873). The last takes f_i over all
replicas and the step's micro-batches so far, and P_i over the micro-batch.

It is attached to the layer's output by an identity (`attach`), so neither the model's loss nor a
pipeline has to know of it: wherever backward comes by, it adds the gradient. The step's loss is a
mean over tokens; this one a mean over the step's pools: each has 1 / pools of it.

**z-loss** (arXiv 2202.08906, equation 5): the mean over tokens of logsumexp(logits)^2.

**The bias** (arXiv 2408.15664, algorithm 1): b_i += u * sign(mean load - load_i), and then minus
its mean, which no choice depends on.

Letters in names: T tokens of the pool, B sequences, S their length, E experts. Twins:
`transformers`' `load_balancing_loss_func`, which is k times this one.
"""

from collections.abc import Callable

import torch

from picolab.specs import ModelConfig

OverBatch = Callable[[torch.Tensor, int], tuple[torch.Tensor, int]]


def loss(
    logits_BSE: torch.Tensor,
    scores_TE: torch.Tensor,
    chosen_TE: torch.Tensor,
    config: ModelConfig,
    over_batch: OverBatch,
) -> torch.Tensor | None:
    """The weighted losses of one pool, a scalar; None where the config has none."""
    total = None
    if config.aux_loss:
        total = config.aux_loss * aux_loss(
            scores_TE.view(logits_BSE.shape), chosen_TE.view(logits_BSE.shape), config, over_batch
        )
    if config.z_loss:
        z = config.z_loss * z_loss(logits_BSE)
        total = z if total is None else total + z
    return total


def aux_loss(
    scores_BSE: torch.Tensor,
    chosen_BSE: torch.Tensor,
    config: ModelConfig,
    over_batch: OverBatch = lambda counts_E, tokens: (counts_E, tokens),
) -> torch.Tensor:
    probabilities_BSE = scores_BSE
    if config.router_score == "sigmoid":
        probabilities_BSE = scores_BSE / scores_BSE.sum(-1, keepdim=True).clamp(min=1e-20)
    each, experts = config.experts_per_token, config.experts
    if config.aux_over == "sequence":
        f_BE = chosen_BSE.to(scores_BSE.dtype).mean(1) / each
        return experts * (f_BE * probabilities_BSE.mean(1)).sum(-1).mean()
    chosen_TE = chosen_BSE.flatten(0, 1)
    counts_E, tokens = chosen_TE.sum(0), len(chosen_TE)
    if config.aux_over == "global batch":
        counts_E, tokens = over_batch(counts_E, tokens)
    f_E = counts_E.to(scores_BSE.dtype) / (tokens * each)
    return experts * (f_E * probabilities_BSE.flatten(0, 1).mean(0)).sum()


def z_loss(logits_BSE: torch.Tensor) -> torch.Tensor:
    return logits_BSE.logsumexp(-1).square().mean()


def attach(x: torch.Tensor, loss: torch.Tensor | None, share: float) -> torch.Tensor:
    """x itself; when its gradient comes by, share * d loss is added to the gradients."""
    return x if loss is None else _Attach.apply(x, loss, share)


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, loss, share):
        ctx.share, ctx.like = share, loss.detach()
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dy):
        return dy, torch.full_like(ctx.like, ctx.share), None


def move_bias(bias: torch.Tensor, load_E: torch.Tensor, rate: float) -> torch.Tensor:
    """The bias for the next step."""
    load_E = load_E.to(bias.dtype)
    moved = bias + rate * torch.sign(load_E.mean() - load_E)
    return moved - moved.mean()


def imbalance(load_E: torch.Tensor) -> float:
    """The largest load over the mean: by this much the slowest expert holds up the others."""
    mean = load_E.double().mean()
    return float(load_E.max() / mean) if mean else 1.0
