"""Pipeline parallelism: the layers are dealt out to stages, and micro-batches follow one another
through them.

    stage 0          stage 1          ...     stage p-1
    embed, layers -> layers        -> ...  -> layers, norm, head, loss

In which order a rank does the forwards and backwards of its micro-batches is a schedule, plain
data from `picolab.schedules`; the executor below does what the schedule says and nothing else. An
activation goes to the next stage and its gradient comes back:

    F  receive x (or read tokens), run the layers, send the output on
    B  receive dy (or start from the loss), run backward, send dx back
    W  compute the weights' gradients that B left, in schedules that split the backward

A rank may have several stages (`schedule.placement`): a stage is the rank's model with fewer layers
(`stage_model`), and to a stage of the same rank nothing is sent. Messages carry no label; they come
in the order in which they were sent. So what a rank needs may come after something that it needs
later, which is then kept: the schedule tells both sides the order.

Sends return at once and are waited for later: if stage 1 waited for stage 2 to take its
activation while stage 2 waited for stage 1 to take a gradient, both would wait for ever. Once an
activation has been sent its memory is freed: backward needs the graph behind it, not its values.

The loss of a micro-batch is divided by the *global* count of tokens by whoever calls, so
gradients of micro-batches simply add up. (To back-propagate each one undivided makes every
gradient too large by their number; AdamW hides it, the norm does not.) A tied embedding lives on
the first stage and, as the head, on the last; their gradients are added once a step. Where both
stages are on one rank, it is one parameter and nothing has to be added.

Source: GPipe, arXiv 1811.06965; 1F1B and several stages a rank, arXiv 2104.04473 section 2.2; the
split backward, 2401.10241. Twins in torch: the schedules of `torch.distributed.pipelining`, which
tests/distributed/parallel/test_schedules.py runs on the same stages."""

import copy
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import accumulate

import torch
from torch import nn

from picolab import comm, costs, schedules
from picolab.model import Transformer
from picolab.model.placement import Batch, Placement
from picolab.monitoring import events
from picolab.parallel import split_backward
from picolab.schedules import Action
from picolab.specs import Layout

_REASONS = {"F": "pp: activations", "B": "pp: gradients of activations"}

TIED = "embed.weight"  # the table's name, on the last stage too


class PipelineParallelOptimizer(Placement):
    """Places a model's layers on the ranks of an axis and runs schedules on them. Not a
    `torch.optim` optimizer.

    model: it is cut at once; None: `parallelize` does it. It must still be on the meta device;
    afterwards a rank holds its stages alone, which is a model without its embedding, its head or
    both. With it a rank holds 1/p of the layers; without it, all.

    schedule: its name, which says how many stages a rank has, and where; `run` takes any schedule
    of the same placement. stages: layers of each stage, by hand.

    Raises ValueError if there are fewer layers than stages.
    """

    def __init__(
        self,
        model: Transformer | None = None,
        axis: str = "pp",
        schedule: str = "1f1b",
        stages: Sequence[int] = (),
    ):
        self.axis, self._schedule, self._by_hand = axis, schedule, tuple(stages)
        # What a forward pass leaves for its backward pass: (stage, micro-batch) -> input, output.
        self._kept: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        # And what that leaves for W.
        self._left: dict[tuple[int, int], list[split_backward.Left]] = {}
        self._later = split_backward.LaterWeightGradients()
        self._sending: list[tuple[comm.Pending, torch.Tensor]] = []
        # Results of other stages that are here and not yet used, and those that each rank will
        # send, in its order.
        self._here: dict[Action, torch.Tensor] = {}
        self._coming: dict[int, deque[Action]] = {}
        if model is not None:
            self.shard(model)

    def shard(self, model: Transformer) -> None:
        mesh = comm.mesh()
        self.model = model
        self.ranks, self.rank = mesh.size(self.axis), mesh.rank(self.axis)
        layout = Layout(pp=self.ranks, schedule=self._schedule, stages=self._by_hand)
        self.stage_ranks = layout.stage_ranks
        self.stages = costs.rank_stages(model.config.layers, layout, self.rank)
        # Whether this rank has the first stage, and the last.
        self.first, self.last = 0 in self.stages, len(self.stage_ranks) - 1 in self.stages
        self.tied = model.config.tied and self.stage_ranks[0] != self.stage_ranks[-1]
        mine = [layer for layers in self.stages.values() for layer in layers]
        model.layers = nn.ModuleList(model.layers[i] for i in mine)
        model.breaks = frozenset(accumulate(map(len, [*self.stages.values()][:-1])))
        if not self.first:
            model.embed = None  # a tied head keeps the weight, which is why it is dropped by name
        if not self.last:
            model.norm = model.head = None
        elif self.tied:
            weight = model.head.weight
            weight.pieces = tuple(replace(piece, copy=True) for piece in weight.pieces)

    def run(
        self,
        schedule: schedules.Schedule,
        tokens_MBS: torch.Tensor,
        labels_MBS: torch.Tensor,
        count: float,
        *,
        no_sync: Callable[[], AbstractContextManager] = nullcontext,
        positions_S: torch.Tensor | None = None,
        stage_cost_s: tuple[float, float] = (0.0, 0.0),
    ) -> torch.Tensor:
        """One step's forwards and backwards; gradients are left in the parameters.

        schedule      of as many stages as the ranks have, in the same places, and of M
                      micro-batches
        tokens, labels  (M, B, S): every rank has them; the first and the last stage read them
        count         what each loss is divided by: the global number of valid tokens
        no_sync       wraps every backward but the last of a stage
        stage_cost_s  seconds slept in each forward and backward of a micro-batch on a rank, for
                      lessons: on two cores the stages of a real pipeline take turns, while sleeping
                      ones overlap as on real devices. Several stages a rank share it, and B and W
                      share the backward's

        Returns the sum of the divided losses (fp64 scalar), which is zero where the last stage is
        not.
        """
        self._refuse(schedule, tokens_MBS)
        split = schedule.splits_backward
        split_backward.split_products(self.model, self._later if split else None)
        forward_s, backward_s = (cost / len(self.stages) for cost in stage_cost_s)
        cost_s = {"F": forward_s, "B": backward_s / (2 if split else 1), "W": backward_s / 2}
        batch = Batch(tokens_MBS, labels_MBS, positions_S)
        mine, models = self._begin(schedule)
        complete = self._completing(mine)
        total, spans = self._nothing(), []
        for i, action in enumerate(mine):
            kind, stage, m = action
            needed = schedule.needs(action)
            given = self._take(needed, tokens_MBS[m]) if needed else None
            began = time.monotonic()
            with nullcontext() if kind == "F" or i in complete else no_sync():
                if kind == "F":
                    x, y = self._forward(models[stage], batch, m, given, count)
                    self._kept[stage, m], result = (x, y), y
                    if y.dim() == 0:
                        total += y.detach()
                elif kind == "B":
                    x, y = self._kept.pop((stage, m))
                    if y.requires_grad:  # a first stage that is frozen has nothing to compute
                        torch.autograd.backward(y, given)
                    self._left[stage, m], result = self._later.take(), x.grad
                else:
                    split_backward.compute(self._left.pop((stage, m)))
            time.sleep(cost_s[kind])
            spans.append((kind, stage, m, began, time.monotonic()))
            if target := schedule.feeds(action):
                self._give(action, result, target)
            given = x = y = result = None  # or they would be there during the next action
            self._free_what_was_sent()
        self._free_what_was_sent(wait=True)
        step = comm.ledger().step
        events.write("spans", step=step, spans=spans, schedule=schedule.name)
        return total

    @torch.no_grad()
    def forward_only(self, batch: Batch, count: int) -> torch.Tensor:
        """The sum of the divided losses without a backward pass, as `run` returns it."""
        ranks, ms = self.stage_ranks, range(len(batch.tokens_MBS))
        rows = [
            [Action("F", stage, m) for stage, at in enumerate(ranks) if at == rank for m in ms]
            for rank in range(self.ranks)
        ]
        schedule = schedules.Schedule("forwards", len(ranks), len(ms), rows, ranks)
        mine, models = self._begin(schedule)
        total = self._nothing()
        for action in mine:
            _, stage, m = action
            needed = schedule.needs(action)
            given = self._take(needed, batch.tokens_MBS[m]) if needed else None
            _, y = self._forward(models[stage], batch, m, given, count)
            if target := schedule.feeds(action):
                self._give(action, y, target)
            else:
                total += y
        self._free_what_was_sent(wait=True)
        return total

    def finish_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        self.sum_tied_gradients(parameters)

    def sum_tied_gradients(self, parameters: Sequence[nn.Parameter] | None = None) -> None:
        """Once a step, after the gradients are summed over the replicas: first and last stage add
        theirs. parameters: None for the model's. A frozen embedding has none, on both.
        """
        if not self.tied or not (self.first or self.last):
            return
        mine = self.model.parameters() if parameters is None else parameters
        (weight,) = (p for p in mine if p.pieces[0].name == TIED)
        if not weight.requires_grad:
            return
        other = self.stage_ranks[-1 if self.first else 0]
        theirs = torch.empty_like(weight)
        gradient = weight.grad.contiguous()
        comm.exchange(gradient, other, theirs, other, self.axis, "pp: tied embedding gradient")
        weight.grad.add_(theirs)

    # -- one action ---------------------------------------------------------------------------

    def _begin(self, schedule: schedules.Schedule) -> tuple[Sequence[Action], dict]:
        """This rank's actions and stages. Who will send it what is known from the schedule."""
        self._coming = {
            rank: deque(
                action
                for action in row
                if (target := schedule.feeds(action))
                and schedule.rank_of(target.stage) == self.rank != rank
            )
            for rank, row in enumerate(schedule.actions)
        }
        models = {stage: self._stage_model(stage) for stage in self.stages}
        return schedule.actions[self.rank], models

    def _stage_model(self, stage: int) -> Transformer:
        if len(self.stages) == 1:
            return self.model
        before = sum(len(layers) for at, layers in self.stages.items() if at < stage)
        layers = range(before, before + len(self.stages[stage]))
        return stage_model(self.model, layers, stage == 0, stage == len(self.stage_ranks) - 1)

    def _completing(self, mine: Sequence[Action]) -> set[int]:
        """Places of the actions with which gradients become complete, so that buckets may go: each
        stage's last B, and its last W. None where the head is the embedding on the same rank: two
        actions then add to it, and buckets go at the end of the step."""
        if self.model.config.tied and self.first and self.last and self.ranks > 1:
            return set()
        last = {(a.kind, a.stage): i for i, a in enumerate(mine) if a.kind != "F"}
        return set(last.values())

    def _forward(self, model, batch: Batch, m: int, given: torch.Tensor | None, count: int):
        """Input and output of a stage's forward; the output of the last is the divided loss."""
        x = batch.tokens_MBS[m]
        if given is not None:
            x = given.requires_grad_(torch.is_grad_enabled())
        y = model(x, batch.positions_S)
        if model.head is not None:
            y = self.model.cross_entropy(y, batch.labels_MBS[m]) / count
        return x, y

    def _nothing(self) -> torch.Tensor:
        device = next(self.model.parameters()).device
        return torch.zeros((), dtype=torch.float64, device=device)

    # -- messages -----------------------------------------------------------------------------

    def _give(self, action: Action, result: torch.Tensor, target: Action) -> None:
        """Hand a result to the stage that works on it."""
        to = self.stage_ranks[target.stage]
        if to == self.rank:
            self._here[action] = result.detach()
            return
        # Without its graph, whose leaf is the stage's input: that would live as long as the send.
        sent = result.detach()
        pending = comm.send(sent, to, self.axis, _REASONS[action.kind], async_op=True)
        self._sending.append((pending, sent))

    def _take(self, action: Action, tokens_BS: torch.Tensor) -> torch.Tensor:
        """The result of an action of another stage, once it is here."""
        source = self.stage_ranks[action.stage]
        while action not in self._here:
            first = self._coming[source].popleft()
            buffer = self._buffer(tokens_BS)
            comm.recv(buffer, source, self.axis, _REASONS[first.kind])
            self._here[first] = buffer
        return self._here.pop(action)

    def _buffer(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        """For what two stages exchange: (B, S, D), of which a rank of sp has its share."""
        rows, length = tokens_BS.shape
        shape = (rows, length // self.model.sequence_shares, self.model.config.hidden)
        parameter = next(self.model.parameters())
        return parameter.new_empty(shape, dtype=self.model.activations)

    def _free_what_was_sent(self, wait: bool = False) -> None:
        still = []
        for pending, x in self._sending:
            if wait or pending.done():
                pending.wait()
                # The values are not needed again: backward starts from the graph behind them.
                x.untyped_storage().resize_(0)
            else:
                still.append((pending, x))
        self._sending = still

    def _refuse(self, schedule: schedules.Schedule, tokens_MBS: torch.Tensor) -> None:
        if schedule.placement != self.stage_ranks:
            raise ValueError(
                f"the schedule has stages on ranks {_listed(schedule.placement)}, and the axis "
                f"{self.axis} on ranks {_listed(self.stage_ranks)}"
            )
        if schedule.micro_batches != len(tokens_MBS):
            raise ValueError(
                f"the schedule is for {schedule.micro_batches} micro-batches, and "
                f"{len(tokens_MBS)} were given"
            )


def stage_model(model: Transformer, layers: range, first: bool, last: bool) -> Transformer:
    """One of several stages that a rank holds: the same model with fewer of its layers, and its
    embedding or its head only if it is the first or the last. It shares the modules, so what hooks
    or replaces a layer of the one does so in the other."""
    stage = copy.copy(model)
    stage._modules = dict(model._modules)
    stage.layers = nn.ModuleList(model.layers[i] for i in layers)
    if not first:
        stage.embed = None
    if not last:
        stage.norm = stage.head = None
    return stage


def _listed(ranks: Sequence[int]) -> str:
    return " ".join(map(str, ranks))
