"""Pipeline parallelism: the layers are dealt out to stages, and micro-batches follow one another
through them.

    stage 0          stage 1          ...     stage p-1
    embed, layers -> layers        -> ...  -> layers, norm, head, loss

In which order a stage does the forwards and backwards of its micro-batches is a schedule, plain
data from `picolab.schedules`; the executor below does what the schedule says and nothing else. An
activation goes to the next stage and its gradient comes back:

    F  receive x (or read tokens), run the layers, send the output on
    B  receive dy (or start from the loss), run backward, send dx back

Sends return at once and are waited for later: if stage 1 waited for stage 2 to take its
activation while stage 2 waited for stage 1 to take a gradient, both would wait for ever. Once an
activation has been sent its memory is freed: backward needs the graph behind it, not its values.

The loss of a micro-batch is divided by the *global* count of tokens by whoever calls, so
gradients of micro-batches simply add up. (To back-propagate each one undivided makes every
gradient too large by their number; AdamW hides it, the norm does not.) A tied embedding lives on
the first stage and, as the head, on the last; their gradients are added once a step.

Source: GPipe, arXiv 1811.06965; 1F1B, arXiv 2104.04473 section 2.2. Twin in torch:
`torch.distributed.pipelining.ScheduleGPipe` and `Schedule1F1B`. Leaves out: more than one stage a
rank."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import nn

from picolab import comm, costs, schedules
from picolab.model import Transformer
from picolab.monitoring import events
from picolab.parallel.placement import Batch, Placement

TIED = "embed.weight"  # the table's name, on the last stage too


class PipelineParallelOptimizer(Placement):
    """Places a model's layers on the ranks of an axis and runs schedules on them. Not a
    `torch.optim` optimizer.

    model: it is cut at once; None: `parallelize` does it. It must still be on the meta device;
    afterwards a rank holds its stage alone, which is a model without its embedding, its head or
    both. With it a rank holds 1/p of the layers; without it, all.

    Raises ValueError if there are fewer layers than stages.
    """

    def __init__(self, model: Transformer | None = None, axis: str = "pp"):
        self.axis = axis
        # What a forward pass leaves for its backward pass: (stage, micro-batch) -> input, output.
        self._kept: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self._sending: list[tuple[comm.Pending, torch.Tensor]] = []
        if model is not None:
            self.shard(model)

    def shard(self, model: Transformer) -> None:
        mesh = comm.mesh()
        self.model = model
        self.stages, self.stage = mesh.size(self.axis), mesh.rank(self.axis)
        self.first, self.last = self.stage == 0, self.stage == self.stages - 1
        mine = costs.stage_layers(model.config.layers, self.stages)[self.stage]
        self.tied = model.config.tied and self.stages > 1
        model.layers = nn.ModuleList(model.layers[i] for i in mine)
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
        count: int,
        *,
        no_sync: Callable[[], AbstractContextManager] = nullcontext,
        positions_S: torch.Tensor | None = None,
        stage_cost_s: tuple[float, float] = (0.0, 0.0),
    ) -> torch.Tensor:
        """One step's forwards and backwards; gradients are left in the parameters.

        schedule      of as many stages as the axis, and of M micro-batches
        tokens, labels  (M, B, S): every rank has them; the first and the last stage read them
        count         what each loss is divided by: the global number of valid tokens
        no_sync       wraps every backward but the last of this rank
        stage_cost_s  seconds slept in each forward and backward, for lessons: on two cores the
                      stages of a real pipeline take turns, while sleeping ones overlap as on real
                      devices

        Returns the sum of the divided losses (fp64 scalar), which is zero on all stages but the
        last.
        """
        self._refuse(schedule, tokens_MBS)
        parameter = next(self.model.parameters())
        total = torch.zeros((), dtype=torch.float64, device=parameter.device)
        mine = schedule.actions[self.stage]
        final = max(i for i, action in enumerate(mine) if action.kind == "B")
        spans = []
        for i, (kind, stage, m) in enumerate(mine):
            if kind == "F":
                x = tokens_MBS[m] if self.first else self._receive(self._buffer(tokens_MBS[m]), -1)
                began = time.monotonic()
                y = self.model(x, positions_S)
                if self.last:
                    y = self.model.cross_entropy(y, labels_MBS[m]) / count
                    total += y.detach()
                time.sleep(stage_cost_s[0])
                spans.append((kind, stage, m, began, time.monotonic()))
                self._kept[stage, m] = x, y
                if not self.last:
                    self._send(y, self.stage + 1, "pp: activations")
            else:
                dy = None if self.last else self._receive(self._buffer(tokens_MBS[m]), +1)
                began = time.monotonic()
                x, y = self._kept.pop((stage, m))
                with nullcontext() if i == final else no_sync():
                    torch.autograd.backward(y, dy)
                time.sleep(stage_cost_s[1])
                spans.append((kind, stage, m, began, time.monotonic()))
                if not self.first:
                    self._send(x.grad, self.stage - 1, "pp: gradients of activations")
            self._free_what_was_sent()
        self._free_what_was_sent(wait=True)
        step = comm.ledger().step
        events.write("spans", step=step, spans=spans, schedule=schedule.name)
        return total

    @torch.no_grad()
    def forward_only(self, batch: Batch, count: int) -> torch.Tensor:
        """The sum of the divided losses without a backward pass, as `run` returns it."""
        parameter = next(self.model.parameters())
        total = torch.zeros((), dtype=torch.float64, device=parameter.device)
        for tokens_BS, labels_BS in zip(batch.tokens_MBS, batch.labels_MBS):
            x = tokens_BS if self.first else self._receive(self._buffer(tokens_BS), -1)
            y = self.model(x, batch.positions_S)
            if self.last:
                total += self.model.cross_entropy(y, labels_BS) / count
            else:
                self._send(y, self.stage + 1, "pp: activations")
        self._free_what_was_sent(wait=True)
        return total

    def finish_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        self.sum_tied_gradients(parameters)

    def sum_tied_gradients(self, parameters: Sequence[nn.Parameter] | None = None) -> None:
        """Once a step, after the gradients are summed over the replicas: first and last stage add
        theirs. parameters: None for the model's.
        """
        if not self.tied or not (self.first or self.last):
            return
        mine = self.model.parameters() if parameters is None else parameters
        (weight,) = (p for p in mine if p.pieces[0].name == TIED)
        other = self.stages - 1 if self.first else 0
        theirs = torch.empty_like(weight)
        gradient = weight.grad.contiguous()
        comm.exchange(gradient, other, theirs, other, self.axis, "pp: tied embedding gradient")
        weight.grad.add_(theirs)

    def _buffer(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        """For what two stages exchange: (B, S, D), of which a rank of sp has its share."""
        rows, length = tokens_BS.shape
        shape = (rows, length // self.model.sequence_shares, self.model.config.hidden)
        return next(self.model.parameters()).new_empty(shape)

    def _receive(self, buffer: torch.Tensor, side: int) -> torch.Tensor:
        forward = side < 0
        reason = "pp: activations" if forward else "pp: gradients of activations"
        comm.recv(buffer, self.stage + side, self.axis, reason)
        return buffer.requires_grad_() if forward else buffer

    def _send(self, x: torch.Tensor, to: int, reason: str) -> None:
        pending = comm.send(x.detach(), to, self.axis, reason, async_op=True)
        self._sending.append((pending, x))

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
        if schedule.stages != self.stages:
            raise ValueError(
                f"the schedule has {schedule.stages} stages, and the axis {self.axis} has "
                f"{self.stages} ranks"
            )
        if schedule.micro_batches != len(tokens_MBS):
            raise ValueError(
                f"the schedule is for {schedule.micro_batches} micro-batches, and "
                f"{len(tokens_MBS)} were given"
            )
        if schedule.splits_backward:
            raise ValueError(f"{schedule.name} splits the backward pass, which is not run yet")
