"""Which block keeps what: the least time within so many bytes.

A block's operators keep tensors from its forward to its backward. Of each block one may

    keep        all of it                         costs nothing but memory
    selective   only what is dear to have again: products, but for the last, and attention; the
                rest (norms, the activation function, rotations) is computed again
    mlp         of attention's half what `selective` keeps; of the feed-forward's nothing: that half
                is computed again, and of the block's work some half with it
    recompute   the block's input; all of the block is computed again
    offload     nothing: it is copied to a far memory, and comes back before it is needed

Each choice has, measured on this machine: bytes `kept`; the bytes `work` that are alive while the
block itself is run, forward or backward, above what the blocks before it keep (in the backward of
a block, those behind it are done); and `seconds` more than keeping takes. So of a plan c

    T = sum over blocks of kept(c)
    peak = max( rest,  (n-1) (T + ends) + max over blocks i of [ work_i(c_i) + sum over j < i of
                kept_j(c_j) ],  (n-1) (T + ends) + T + end )            + pool, if any is offloaded

with n micro-batches in flight (a pipeline), `ends` what a micro-batch keeps outside the blocks,
`end` what is alive between the last block's forward and its backward (the loss), and `rest` in the
rest of the step. The time is a sum, and so a dynamic programme finds the fastest plan for *every*
budget at once: go through the blocks, and of the plans so far keep those that no other one beats in
kept bytes, in the peak, in the time and in the use of the pool at the same time. What is thrown
away could not have become better, since what follows is added to both alike: it is exact
(tests/unit/memory/test_scheduler.py compares with all plans).

`BlockRunner` executes a plan, in the model's one replaceable call of a block. Every choice gives
the same gradients, to the last bit: what is computed again is computed from the same numbers.

Source: arXiv 1604.06174 (recomputation), 2205.05198 (selectively); the search: 0-1 knapsack.
Twins: `torch.utils.checkpoint`, which is used here; `torch._functorch`'s
`activation_memory_budget`, which chooses operators of a compiled graph. That is a budget of what is
*kept* for backward, as a share, and the peak does not follow it: at 0 nothing is kept, all of the
forward is computed again in one piece, and the peak is that of keeping everything
(tests/unit/memory/test_knapsack.py measures both: on its model our peak is nowhere above torch's
with as many operations again; on others it is, at some budgets: summary/05_memory.md).
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from picolab.memory.offload import Offload, Parcel
from picolab.model import PLAIN
from picolab.show.table import Table, bytes_text

Choice = Literal["keep", "selective", "mlp", "recompute", "offload"]
CHOICES: tuple[Choice, ...] = ("keep", "selective", "mlp", "recompute", "offload")

Contexts = Callable[[], tuple[AbstractContextManager, AbstractContextManager]]


class Cost(NamedTuple):
    """Of one block, under one choice."""

    kept: int
    work: int
    seconds: float


@dataclass(frozen=True)
class Measured:
    """What is known of the blocks of one rank (or the largest of each number over several)."""

    blocks: tuple[dict[Choice, Cost], ...]
    end: int = 0
    ends: int = 0
    rest: int = 0
    pool: int = 0
    in_flight: int = 1

    def peak(self, choices: Sequence[Choice]) -> int:
        """Of a plan, by the formula above."""
        costs = [of[choice] for of, choice in zip(self.blocks, choices, strict=True)]
        total, before, work = sum(cost.kept for cost in costs), 0, 0
        for cost in costs:
            work = max(work, before + cost.work)
            before += cost.kept
        return self._peak(total, max(work, total + self.end), "offload" in choices)

    def seconds(self, choices: Sequence[Choice]) -> float:
        return sum(of[choice].seconds for of, choice in zip(self.blocks, choices, strict=True))

    def _peak(self, total: int, most: int, offloads: bool) -> int:
        others = (self.in_flight - 1) * (total + self.ends)
        return max(self.rest, others + most) + self.pool * offloads


class MemoryPlan(NamedTuple):
    """A choice for each block, and what it comes to."""

    choices: tuple[Choice, ...]
    peak: int
    seconds: float

    def table(self, measured: Measured) -> Table:
        rows = [
            [number, choice, bytes_text(of[choice].kept), f"{of[choice].seconds * 1e3:.2f} ms"]
            for number, (choice, of) in enumerate(zip(self.choices, measured.blocks))
        ]
        title = f"peak {bytes_text(self.peak)}, {self.seconds * 1e3:.1f} ms a micro-batch more"
        return Table(["block", "choice", "keeps", "takes longer by"], rows, title)


class _Partial(NamedTuple):
    kept: int
    work: int
    offloads: bool
    seconds: float
    choices: tuple[Choice, ...]

    def beats(self, other: "_Partial") -> bool:
        return all(mine <= theirs for mine, theirs in zip(self[:4], other[:4]))


class MemoryScheduler:
    """Plans for what was measured.

    `frontier` has the fastest plan of every budget; `choose` that of one. With a budget a run's
    peak is below it; without one, it is what keeping everything takes.
    """

    def __init__(self, measured: Measured):
        self.measured = measured
        self.frontier: list[MemoryPlan] = _frontier(measured)
        """From the smallest peak to the fastest plan; each is faster than the one before it."""

    @property
    def least(self) -> int:
        """The smallest budget that any plan keeps to."""
        return self.frontier[0].peak

    def choose(self, budget: int) -> MemoryPlan:
        """The fastest plan whose peak is at most the budget. ValueError says the least one."""
        if budget < self.least:
            raise ValueError(
                f"a memory budget of {bytes_text(budget)} is too small: the least that works is "
                f"{bytes_text(self.least)} ({self.least:,} bytes)"
            )
        return [plan for plan in self.frontier if plan.peak <= budget][-1]


def _frontier(measured: Measured) -> list[MemoryPlan]:
    partial = [_Partial(0, 0, False, 0.0, ())]
    for of in measured.blocks:
        longer = [
            _Partial(
                one.kept + cost.kept,
                max(one.work, one.kept + cost.work),
                one.offloads or choice == "offload",
                one.seconds + cost.seconds,
                (*one.choices, choice),
            )
            for one in partial
            for choice, cost in of.items()
        ]
        partial = _unbeaten(longer)
    whole = [
        MemoryPlan(
            one.choices,
            measured._peak(one.kept, max(one.work, one.kept + measured.end), one.offloads),
            one.seconds,
        )
        for one in partial
    ]
    found: list[MemoryPlan] = []
    for plan in sorted(whole, key=lambda plan: (plan.peak, plan.seconds)):
        if not found or plan.seconds < found[-1].seconds:
            found.append(plan)
    return found


def _unbeaten(partial: list[_Partial]) -> list[_Partial]:
    found: list[_Partial] = []
    for one in sorted(partial, key=lambda one: one[:4]):  # who beats it comes before it
        if not any(other.beats(one) for other in found):
            found.append(one)
    return found


# -- in the model


def whole_block(block: nn.Module) -> Contexts | None:
    """What a second forward of a block has to know of the first: nothing."""
    return None


class BlockRunner:
    """Runs a model's blocks as a plan says: `model.run_block = BlockRunner(model, plan)`.

    choices: for each of the model's blocks here. contexts: for a block, what surrounds its first
    and its second forward (a router's choices must be the same), or None. offload: needed where
    blocks are offloaded. listen: is told where the pass is ("forward", "backward", block).
    """

    def __init__(
        self,
        model: nn.Module,
        choices: Sequence[Choice],
        *,
        contexts: Callable[[nn.Module], Contexts | None] = whole_block,
        offload: Offload | None = None,
        listen: Callable[[str, int], None] | None = None,
    ):
        unknown = [choice for choice in choices if choice not in CHOICES]
        if unknown or len(choices) != len(model.layers):
            raise ValueError(
                f"choices are {list(choices)}; there are {len(model.layers)} blocks here, and of "
                f"each one of {', '.join(CHOICES)}"
            )
        if "offload" in choices and offload is None:
            raise ValueError("blocks are to be offloaded, and there is no Offload to do it")
        self.choices, self.offload, self.listen = tuple(choices), offload, listen
        self._contexts = contexts
        self._number = {id(block): number for number, block in enumerate(model.layers)}
        self._last: tuple[int, Parcel] | None = None

    def __call__(self, block: nn.Module, x: torch.Tensor, tables) -> torch.Tensor:
        number = self._number[id(block)]
        if not torch.is_grad_enabled():
            return block(x, tables)
        if self.listen is not None:
            self.listen("forward", number)
            if number == 0 and x.requires_grad:
                x.register_hook(lambda _: self.listen("backward", -1))
        y = getattr(self, f"_{self.choices[number]}")(block, x, tables, number)
        if self.listen is not None:
            self.listen("after", number)
            y.register_hook(lambda _: self.listen("backward", number))
        return y

    def _keep(self, block, x, tables, number) -> torch.Tensor:
        return block(x, tables)

    def _recompute(self, block, x, tables, number) -> torch.Tensor:
        return self._again(block, x, tables, self._contexts(block))

    def _selective(self, block, x, tables, number) -> torch.Tensor:
        return self._keeping(_DearOnes(_last_product(block)), block, x, tables)

    def _mlp(self, block, x, tables, number) -> torch.Tensor:
        return self._keeping(_DearOnes(block.mlp), block, x, tables)

    def _keeping(self, dear: "_DearOnes", block, x, tables) -> torch.Tensor:
        return self._again(block, x, tables, _together(dear.contexts, self._contexts(block)))

    def _again(self, block, x, tables, contexts: Contexts | None) -> torch.Tensor:
        given = {} if contexts is None else {"context_fn": contexts}
        if block.training and block.drop.p:  # it has a generator that nobody here sets back
            raise ValueError(
                "a block that is computed again would drop other numbers the second time; train "
                "without dropout, or keep or offload its tensors"
            )
        return checkpoint(block, x, tables, use_reentrant=False, preserve_rng_state=False, **given)

    def _offload(self, block, x, tables, number) -> torch.Tensor:
        last = self._last
        parcel = Parcel(last[1] if last is not None and last[0] < number else None)
        self._last = number, parcel
        with self.offload.saving(parcel, *tables):
            y = block(x, tables)

        def begins(_) -> None:
            if self.offload.fetch(parcel):
                self.offload.fetch(parcel.before)

        y.register_hook(begins)
        return y


_aten = torch.ops.aten
DEAR = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten._grouped_mm.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
}
"""Operators whose results are kept when the rest is computed again."""


def _last_product(block: nn.Module) -> nn.Module | None:
    """Of a dense block: nothing in backward reads its result, and autograd has all that it asks for
    before it is run again. (A product in a short format is a function of its own, and says what it
    keeps when it is over: it would be run.)"""
    last = getattr(block.mlp, "down", None)
    return last if last is not None and last.product is PLAIN else None


class _DearOnes:
    """What surrounds a block's two forwards, so that the second finds the results of `DEAR` again;
    but not of those inside `but`, a module of the block."""

    def __init__(self, but: nn.Module | None):
        self._but, self._inside = but, False

    def contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        first, second = create_selective_checkpoint_contexts(self._policy)
        return self._told(first), second

    @contextmanager
    def _told(self, first: AbstractContextManager):
        hooks = []
        if self._but is not None:
            hooks = [
                self._but.register_forward_pre_hook(lambda *_: self._is_inside(True)),
                self._but.register_forward_hook(lambda *_: self._is_inside(False)),
            ]
        try:
            with first:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _is_inside(self, now: bool) -> None:
        self._inside = now

    def _policy(self, context, operator, *args, **kwargs) -> CheckpointPolicy:
        if operator in DEAR and not self._inside:
            return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE


def _together(*all_contexts: Contexts | None) -> Contexts:
    def contexts():
        first, second = zip(*(of() for of in all_contexts if of is not None))
        return _all(first), _all(second)

    return contexts


@contextmanager
def _all(managers: Iterable[AbstractContextManager]):
    with ExitStack() as stack:
        for manager in managers:
            stack.enter_context(manager)
        yield
