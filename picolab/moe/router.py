"""The router: which experts each token passes, and with what weight.

    logits = x W^T          (T, E), in fp32 or better: a choice is decided by small differences
    scores = softmax(logits), or sigmoid(logits)
    choice                  each token its k experts, or each expert its tokens
    drop                    what is beyond an expert's capacity
    weights                 of the chosen scores; only these carry a gradient to W

Each line is a function of whole tensors below, and tests/unit/moe/test_router.py holds each against
a loop over all tokens.

**Tokens that stand together.** Capacity, a choice by experts and the loss that evens out loads
depend on which tokens are looked at together: the *pool*, one micro-batch of one replica. Where its
tokens are spread over ranks (cp, and tp under sp), their logits, which are small, are gathered, and
every rank decides for the whole pool and keeps its own part. So a rank's weights and choices are
those of one process, whatever is dropped.

**Bias** (arXiv 2408.15664): added to the scores for the choice, and not to the weights; a balancer
moves it (balance.py).

**Recomputation.** If a block's forward is run again for its backward, scores may come out different
in the last bit and a token's choice may flip, and its gradients would be those of other experts. So
the choice is kept and not made again (`saved_choices`), as are the loads of a global batch, and a
second forward counts nothing.

Letters in names: B batch, S sequence, D hidden, T tokens (B * S), E experts. Ties go to the expert,
or the token, with the lower number. Source: arXiv 1701.06538, 2101.03961 (capacity), 2202.09368
(experts choose), 2412.19437 section 2.1.2 (groups, bias). Twin: `transformers`' Mixtral and
Qwen3-MoE, which tests/unit/moe/test_hugging_face.py compares. Leaves out: jitter, forced balance.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from picolab.model import Piece, meta_parameter
from picolab.moe import balance
from picolab.specs import ModelConfig


def score(logits_TE: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    return logits_TE.softmax(-1) if config.router_score == "softmax" else logits_TE.sigmoid()


def choose(
    scores_TE: torch.Tensor, config: ModelConfig, bias_E: torch.Tensor | None = None
) -> torch.Tensor:
    """Which token asks for which expert, a mask (T, E). The bias changes this and nothing else."""
    wanted_TE = scores_TE.detach() if bias_E is None else scores_TE.detach() + bias_E
    if config.router_choice == "expert":
        return _highest(wanted_TE.T, _even_share(scores_TE, config)).T
    groups, kept = config.router_groups, config.router_groups_kept
    if kept < groups:
        of_group = wanted_TE.unflatten(-1, (groups, -1))  # (T, groups, experts of a group)
        best = of_group.topk(min(2, of_group.shape[-1])).values.sum(-1)
        outside = ~_highest(best, kept).unsqueeze(-1)
        wanted_TE = of_group.masked_fill(outside, -math.inf).flatten(1)
    return _highest(wanted_TE, config.experts_per_token)


def admit(chosen_TE: torch.Tensor, scores_TE: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Of the choices those that are within each expert's capacity,

        ceil(capacity * T * k / E)

    the highest scores or the first tokens. Tokens are in the order of the pool."""
    if config.capacity is None:
        return chosen_TE
    limit = math.ceil(config.capacity * len(chosen_TE) * config.experts_per_token / config.experts)
    if config.drop == "position":
        return chosen_TE & (chosen_TE.cumsum(0) <= limit)
    asked_TE = scores_TE.detach().masked_fill(~chosen_TE, -math.inf)
    return chosen_TE & _highest(asked_TE.T, min(limit, len(chosen_TE))).T


def weigh(
    scores_TE: torch.Tensor,
    chosen_TE: torch.Tensor,
    admitted_TE: torch.Tensor,
    config: ModelConfig,
) -> torch.Tensor:
    """The weight of each expert's output for each token, zero where it is not sent there.

    Renormalised among what a token has chosen, dropped or not: of a dropped choice the share is
    lost. Where experts choose, weights are the scores."""
    weights_TE = scores_TE * chosen_TE
    if config.router_renormalise and config.router_choice == "token":
        # (The sum may underflow where scores are sigmoids.)
        weights_TE = weights_TE / weights_TE.sum(-1, keepdim=True).clamp(min=1e-20)
    return weights_TE * admitted_TE * config.router_scale


class Routed(NamedTuple):
    """What the router says about the tokens of this rank."""

    weights_TE: torch.Tensor
    admitted_TE: torch.Tensor
    """Which token goes to which expert."""
    chosen_TE: torch.Tensor
    """The same before anything was dropped: what loads are counted by."""
    loss: torch.Tensor | None
    """What the pool adds to the loss, for its balance (a scalar); None: nothing."""


class Pool(Protocol):
    """How a rank sees the logits of all tokens that stand together."""

    def gather(self, logits_BSE: torch.Tensor) -> torch.Tensor:
        """This rank's -> the pool's, (B, the whole sequence, E). Gradients of what others have are
        not this rank's to give: each rank computes the same, and keeps its own."""

    def mine(self, pool_BSE: torch.Tensor) -> torch.Tensor:
        """Back again: this rank's part of the pool's."""


class WholePool:
    """All tokens of the micro-batch are here."""

    def gather(self, logits_BSE: torch.Tensor) -> torch.Tensor:
        return logits_BSE

    def mine(self, pool_BSE: torch.Tensor) -> torch.Tensor:
        return pool_BSE


class Router(nn.Module):
    """x (B, S, D) -> `Routed`.

    `counts_E` and `dropped` add up what tokens of this rank asked for, and what of it was dropped,
    over the micro-batches that are trained on; whoever reads them sets them to zero.
    """

    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config, self.number, self.name = config, layer, f"layers.{layer}.mlp.router"
        experts, size = config.experts, config.hidden
        weight = Piece(f"{self.name}.weight", (experts, size), std=size**-0.5)
        self.weight = meta_parameter((weight,), dtype)
        self.bias = None
        if config.router_bias:
            bias = Piece(f"{self.name}.bias", (experts,), std=0.0)
            # In bf16 a step of 0.001 would be lost.
            self.bias = meta_parameter((bias,), torch.promote_types(dtype, torch.float32))
            self.bias.requires_grad_(False)
        # Replaced where tokens are spread over ranks.
        self.pool: Pool = WholePool()
        self.whole: Callable[[torch.Tensor], torch.Tensor] = _same
        # For a loss over the global batch: this micro-batch's counts -> those of all replicas so
        # far in the step, and how many tokens that are.
        self.over_batch: Callable[[torch.Tensor, int], tuple[torch.Tensor, int]] = _of_one_process
        self.counts_E = torch.zeros(experts, dtype=torch.int64)
        self.dropped = torch.zeros((), dtype=torch.int64)
        self._kept: list | None = None  # choices and counts: to keep them in, or to take them from
        self._again = False

    def forward(self, x_BSD: torch.Tensor) -> Routed:
        exact = torch.promote_types(x_BSD.dtype, torch.float32)
        logits_BSE = self.whole(F.linear(x_BSD.to(exact), self.weight.to(exact)))
        if self.config.pools_tokens:
            logits_BSE = self.pool.gather(logits_BSE)
        shape, logits_TE = logits_BSE.shape, logits_BSE.flatten(0, 1)
        self._check_finite(logits_TE.detach())
        scores_TE = score(logits_TE, self.config)
        chosen_TE = self._choice(scores_TE)
        admitted_TE = admit(chosen_TE, scores_TE, self.config)
        weights_TE = weigh(scores_TE, chosen_TE, admitted_TE, self.config)
        loss = balance.loss(logits_BSE, scores_TE, chosen_TE, self.config, self._over_batch)
        if self.config.pools_tokens:
            weights_TE, admitted_TE, chosen_TE = (
                self.pool.mine(of.view(shape)).flatten(0, 1)
                for of in (weights_TE, admitted_TE, chosen_TE)
            )
        if self._counting:
            asked_E = chosen_TE.sum(0)
            self.counts_E = self.counts_E.to(asked_E.device) + asked_E
            self.dropped = self.dropped.to(asked_E.device) + asked_E.sum() - admitted_TE.sum()
        return Routed(weights_TE, admitted_TE, chosen_TE, loss)

    def _check_finite(self, logits_TE: torch.Tensor) -> None:
        finite = torch.isfinite(logits_TE).all()
        if finite.device.type != "cpu":
            torch._assert_async(finite)  # asking for the answer would stop the device's queue
        elif not finite:
            raise ValueError(
                f"{self.name}: logits are not finite, so no expert can be chosen; the training has "
                "diverged: try a lower lr, a longer warmup, a tighter clip or a z_loss"
            )

    @property
    def _counting(self) -> bool:
        return self.training and torch.is_grad_enabled() and not self._again

    def _choice(self, scores_TE: torch.Tensor) -> torch.Tensor:
        return self._once(lambda: choose(scores_TE, self.config, self.bias))

    def _over_batch(self, counts_E: torch.Tensor, tokens: int) -> tuple[torch.Tensor, int]:
        def counted() -> tuple[torch.Tensor, int]:  # an evaluation's are nobody's
            return self.over_batch(counts_E, tokens) if self._counting else (counts_E, tokens)

        return self._once(counted)

    def _once(self, make: Callable):
        """What is made in a first forward, and taken again in a second one."""
        if self._again:
            return self._kept.pop(0)
        made = make()
        if self._kept is not None:
            self._kept.append(made)
        return made

    @contextmanager
    def _keeping(self, kept: list, again: bool):
        self._kept, self._again = kept, again
        try:
            yield
        finally:
            self._kept, self._again = None, False


def is_bias(parameter: nn.Parameter) -> bool:
    """Whether it is a router's bias, which a balancer moves and no optimizer."""
    return parameter.pieces[0].name.endswith(".router.bias")


def saved_choices(
    block: nn.Module,
) -> Callable[[], tuple[AbstractContextManager, AbstractContextManager]]:
    """For a block that is run again in backward: keep what its router chose.

    checkpoint(block, x, tables, use_reentrant=False, context_fn=saved_choices(block))
    """
    routers = [module for module in block.modules() if isinstance(module, Router)]

    def contexts():
        kept: dict[Router, list] = {router: [] for router in routers}
        return _all(routers, kept, False), _all(routers, kept, True)

    return contexts


@contextmanager
def _all(routers: list[Router], kept: dict[Router, list], again: bool):
    with ExitStack() as stack:
        for router in routers:
            stack.enter_context(router._keeping(kept[router], again))
        yield


def _highest(of: torch.Tensor, n: int) -> torch.Tensor:
    """A mask of the n largest of each row; of equal ones the first."""
    places = of.sort(dim=-1, descending=True, stable=True).indices[..., :n]
    return torch.zeros_like(of, dtype=torch.bool).scatter_(-1, places, True)


def _even_share(scores_TE: torch.Tensor, config: ModelConfig) -> int:
    tokens = len(scores_TE)
    return min(tokens, math.ceil(tokens * config.experts_per_token / config.experts))


def _same(logits_BSE: torch.Tensor) -> torch.Tensor:
    return logits_BSE


def _of_one_process(counts_E: torch.Tensor, tokens: int) -> tuple[torch.Tensor, int]:
    return counts_E, tokens
