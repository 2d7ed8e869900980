"""Choices of experts that no rounding changes, for comparisons in bf16 and fp16.

A router takes the k largest of its scores. One process and the ranks of a layout round at different
places, so two scores that lie near each other may be in another order, and the token goes to
another expert: a difference as large as a bug's, and no bug (of six comparisons of dp2tp2ep2 five
failed by it). Therefore both sides are given the numbers *by which is chosen and dropped*: drawn
for each step, replica, micro-batch, layer and token of the pool, the same for the same token,
wherever it is computed. All that follows is the model's own code, on the model's own numbers:
groups, bias, capacity, the weights (of the router's scores, through which its gradient flows),
loads, balance loss, rows there and back.

They differ from token to token and from replica to replica. Were they alike for all tokens, a rank
would have rows for one of its experts only, and that it mixes experts up could not be seen
(tests/distributed/precision/test_experts.py runs that).

What is hidden is a wrong choice. In fp64 and fp32 nothing is planted, and choices are compared.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch

from picolab.debug.awkward import SHORT, Recipe
from picolab.moe import Router, router

Place = tuple[int, int, int]
"""step, replica, micro-batch"""


def needed(recipe: Recipe) -> bool:
    return bool(recipe.config.experts) and recipe.precision in SHORT


def plan(recipe: Recipe, layer: int, place: Place) -> torch.Tensor:
    """For each token of a pool, in the order of its sequences, and each expert (T, E): a number
    between 0 and 1, as scores are."""
    draw = torch.Generator().manual_seed(zlib.crc32(repr((recipe.seed, layer, place)).encode()))
    tokens = recipe.rows // recipe.layout.dp * recipe.config.seq
    return torch.rand(tokens, recipe.config.experts, generator=draw, dtype=torch.float64)


def planted(recipe: Recipe, replica: Callable[[], int] | None = None):
    """A context, in which routers choose and drop by `plan` if a rounding could decide it.

    replica: which one this rank computes; None: all of them, in turns, as one process does.
    """
    return _planted(recipe, replica) if needed(recipe) else nullcontext()


@contextmanager
def _planted(recipe: Recipe, replica: Callable[[], int] | None) -> Iterator[None]:
    assert recipe.config.pools_tokens  # so that a router is shown the whole pool, in its order
    real_choice, real_admit = Router._choice, router.admit
    replicas = recipe.layout.dp if replica is None else 1
    calls: Counter[int] = Counter()
    decisive: list[torch.Tensor] = []

    def choice(self, scores_TE):
        assert not self._again  # (a second forward would count as the next micro-batch)
        turn, index = divmod(calls[self.number], replicas)
        calls[self.number] += 1
        step, micro = divmod(turn, recipe.accumulate)
        place = step, index if replica is None else replica(), micro
        # (a fault may show a router fewer tokens than the pool has)
        decisive[:] = [plan(recipe, self.number, place)[: len(scores_TE)].to(scores_TE)]
        return real_choice(self, *decisive)

    def admit(chosen_TE, scores_TE, config):
        return real_admit(chosen_TE, *decisive, config)

    Router._choice, router.admit = choice, admit
    try:
        yield
    finally:
        Router._choice, router.admit = real_choice, real_admit
