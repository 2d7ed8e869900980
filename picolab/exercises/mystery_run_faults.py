"""Faults of a run, for mystery runs: the program is right, and one rank, or a link, is not.

`debug.run_faults` has such faults for monitors to find, each at one rank and step; what is here
beside those of it is slower than noise on a busy laptop, or parts the ranks without ending the run.
"""

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist

from picolab import comm
from picolab.comm import collectives
from picolab.debug import run_faults
from picolab.debug.faults import Fault, patched
from picolab.model import Transformer
from picolab.parallel import ThreeDParallelOptimizer
from picolab.specs import TrainConfig
from picolab.training import trainer

LINK_S = 0.002  # a message, of which a step has two dozens
LATE_S = 0.04  # a step; far above a step's own noise on a busy laptop
EVERY = 6  # steps, of what happens now and then
SINCE = 8  # this step, counted from 0: before it the run is right

RUN_FAULTS: dict[str, Fault] = {}


def registering(into: dict[str, Fault]):
    """The decorator that puts a fault there."""

    def fault(name: str, what: str, where_seen: str):
        def register(patch):
            into[name] = Fault(name, what, where_seen, "dp", contextmanager(patch))
            return patch

        return register

    return fault


_fault = registering(RUN_FAULTS)


def _since(rank: int) -> bool:
    """Whether this is the rank, and the step has come."""
    step = comm.ledger().step
    return dist.get_rank() == rank and step is not None and step >= SINCE


def _as_in(name: str, run_fault: str, where_seen: str, rank: int, at: int) -> None:
    """One of `debug.run_faults`."""
    fault = run_faults.find(run_fault)
    of = run_faults.InRun(run_fault, rank=rank, at=at)
    RUN_FAULTS[name] = Fault(name, fault.what, where_seen, "dp", lambda _: fault.applied(of))


# -- slow --


def late(rank: int, what: str, where_seen: str, fault=_fault) -> None:
    """A fault of this name: the rank's batch comes later in every step."""

    def patch(layout):
        real = trainer.next_batch

        def next_batch(*args):
            if dist.get_rank() == rank:
                time.sleep(LATE_S)
            return real(*args)

        with patched(trainer, "next_batch", next_batch):
            yield

    fault(f"rank-{rank}-late", what, where_seen)(patch)


late(
    3,
    "rank 3 waits for its batch, in every step",
    "deepspeedai/DeepSpeed PR 3579 (waiting for a late rank is logged as communication)",
)


@contextmanager
def _longer_forward(is_slow: Callable[[], bool]):
    real = Transformer.loss

    def loss(self, *args):
        if is_slow():
            time.sleep(LATE_S / 4)  # of four micro-batches
        return real(self, *args)

    with patched(Transformer, "loss", loss):
        yield


@_fault(
    "rank-3-slow",
    "rank 3 computes longer, in every micro-batch",
    "arXiv 2402.15627 (MegaScale), which looks for hosts that are slower at the same work",
)
def _rank_slow(layout):
    with _longer_forward(lambda: dist.get_rank() == 3):
        yield


@_fault(
    "every-rank-slow",
    "all ranks compute longer",
    "a power limit of a whole rack, or another job on the same machines",
)
def _every_rank_slow(layout):
    with _longer_forward(lambda: True):
        yield


@_fault(
    "rank-3-pauses",
    "rank 3 pauses in every sixth step, after its update, for as long as six late batches",
    "pytorch/torchtitan PR 148 (ranks that collect garbage at different steps)",
)
def _rank_pauses(layout):
    real = ThreeDParallelOptimizer.after_step

    def after_step(self):
        if dist.get_rank() == 3 and comm.ledger().step % EVERY == EVERY - 1:
            time.sleep(EVERY * LATE_S)
        return real(self)

    with patched(ThreeDParallelOptimizer, "after_step", after_step):
        yield


@_fault(
    "link-2-3-slow",
    "what rank 2 sends to rank 3 takes longer",
    "arXiv 2407.21783, section 3.3.4 (stragglers that are slow communication)",
)
def _link_slow(layout):
    real = collectives._all_to_all  # by which a ring's blocks travel, see `comm.shift`

    def all_to_all(*args, async_op=False, **more):
        work = real(*args, async_op=async_op, **more)
        if dist.get_rank() == 3 and async_op:
            return _Later(work)
        if dist.get_rank() == 3:
            time.sleep(LINK_S)
        return work

    with patched(collectives, "_all_to_all", all_to_all):
        yield


class _Later:
    """What has come is handed over later."""

    def __init__(self, work):
        self._work = work

    def wait(self):
        self._work.wait()
        time.sleep(LINK_S)


# -- numbers --


class _Times(torch.autograd.Function):
    """The same value, and a gradient that is so many times as large."""

    @staticmethod
    def forward(ctx, loss, factor):
        ctx.factor = factor
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx, grad):
        return ctx.factor * grad, None


@contextmanager
def _gradient_times(factor: float):
    """Of rank 2, from then on."""
    real = Transformer.loss

    def loss(self, *args):
        value = real(self, *args)
        return _Times.apply(value, factor) if _since(2) else value

    with patched(Transformer, "loss", loss):
        yield


@_fault(
    "not-finite-is-zero",
    "rank 2's gradients are not numbers, and a hook that puts zeros for what is not finite, before "
    "it is summed, keeps that from everybody",
    "torch.nan_to_num in a gradient hook; pytorch/pytorch issue 68425 (torch.where: forward is "
    "finite, and backward is NaN)",
)
def _not_finite_is_zero(layout):
    real = comm.all_reduce

    def all_reduce(x, axis, why, op="sum", async_op=False):
        if why == "dp: gradient bucket":
            x.nan_to_num_(0.0, 0.0, 0.0)
        return real(x, axis, why, op=op, async_op=async_op)

    with _gradient_times(float("nan")), patched(comm, "all_reduce", all_reduce):
        yield


@_fault(
    "rank-2-detached",
    "rank 2's loss no longer leads to its gradients",
    "a forward under no_grad, or a detach(), in a branch that one rank takes",
)
def _rank_detached(layout):
    with _gradient_times(0.0):
        yield


@_fault(
    "rank-2-steeper",
    "rank 2's gradients are eight times as large",
    "a loss that one rank divides by another count",
)
def _rank_steeper(layout):
    with _gradient_times(8.0):
        yield


_as_in(
    "loss-three-times",
    "loss spike",
    "arXiv 2407.21783, section 3.3.4 (interruptions by silent data corruption)",
    rank=2,
    at=12,
)
_as_in(
    "gradient-ten-times",
    "gradient spike",
    "the same, in a backward pass",
    rank=2,
    at=12,
)


@contextmanager
def _batches(next_of: Callable):
    """Another batch on rank 2, from then on: next_of(real, args, the one before)."""
    real, last = trainer.next_batch, [None]

    def next_batch(*args):
        last[0] = next_of(real, args, last[0]) if _since(2) else real(*args)
        return last[0]

    with patched(trainer, "next_batch", next_batch):
        yield


@_fault(
    "rank-2-same-batch",
    "rank 2 reads the same batch in every step",
    "a loader whose worker died and whose queue hands out the last item",
)
def _same_batch(layout):
    with _batches(lambda real, args, before: before):
        yield


@_fault(
    "rank-2-a-batch-ahead",
    "rank 2 drops a batch, and is one ahead of the others since",
    "a filter for bad batches that each rank applies to its own",
)
def _a_batch_ahead(layout):
    def next_of(real, args, before):
        if comm.ledger().step == SINCE:
            real(*args)
        return real(*args)

    with _batches(next_of):
        yield


# -- ranks that part ways --


@_fault(
    "a-step-left-out",
    "rank 2 leaves a step out, all collectives included, and does one more in the end: its "
    "(k+1)-th step pairs with the others' k-th, and nothing is raised",
    "pytorch/pytorch issue 38174 (ranks whose numbers of batches differ)",
)
def _a_step_left_out(layout):
    real, last = trainer.train_step, [None]

    def train_step(run, step):
        if dist.get_rank() == 2 and step == SINCE:
            trainer.next_batch(run.text, run.config, run.device)
            run.step, run.ledger = step, type(run.ledger)()
            began = time.monotonic()
            return replace(last[0], step=step, began=began, seconds=1e-6, skipped=True)
        last[0] = real(run, step)
        if dist.get_rank() == 2 and step == run.config.steps - 1:
            last[0] = real(run, step)
        return last[0]

    with patched(trainer, "train_step", train_step):
        yield


@_fault(
    "rank-2-rate-ahead",
    "rank 2's learning rate is the next step's",
    "a scheduler that one rank calls once too often",
)
def _rate_ahead(layout):
    real = TrainConfig.learning_rate

    def learning_rate(self, step):
        return real(self, step + _since(2))

    with patched(TrainConfig, "learning_rate", learning_rate):
        yield
