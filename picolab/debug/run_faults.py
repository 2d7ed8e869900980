"""What goes wrong with a *run*, switched on in a real one: faults for the monitors to find.

    pico.train(layout="dp4", observers=[InRun("slow rank", rank=2, at=40)], ...)
    run_faults.table()

The catalogue of faults.py is of wrong programs, and each is at work from the beginning; here the
program is right, and from a step on one rank (or a link, or the machine) is not. Each is a few
lines: a function of the package replaced for the time of the run, as there, which does what it did
until the step has come, and on the other ranks always.

Compute that *sleeps* (`Pace`) stands in for ranks that have a device each: on two cores four ranks
of real kernels take turns, and whose turn it is not looks slow.
"""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.distributed as dist

from picolab import comm
from picolab.comm import collectives
from picolab.debug.faults import patched
from picolab.model import Transformer
from picolab.moe import router
from picolab.monitoring import Observer
from picolab.parallel import micro_batches
from picolab.parallel.pipeline import PipelineParallelOptimizer
from picolab.show.table import Table
from picolab.training import trainer

Whose = Literal["rank", "link", "nobody"]
LATE_S, LINK_S, LEAK_BYTES = 0.012, 0.006, 1_000_000
LOSS, GRADIENT = 3.0, 10.0


@dataclass(frozen=True)
class RunFault:
    """One way for a run to go wrong."""

    name: str
    what: str
    found_as: tuple[str, ...]
    """What a monitor may call it."""
    whose: Whose
    ends: bool
    """Whether the run ends by it."""
    applied: Callable[["InRun"], AbstractContextManager[None]]


CATALOGUE: dict[str, RunFault] = {}


def find(name: str) -> RunFault:
    if name not in CATALOGUE:
        raise ValueError(f"there is no run fault {name!r}; there are {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


def table() -> Table:
    rows = [[f.name, f.what, " or ".join(f.found_as), f.whose] for f in CATALOGUE.values()]
    return Table(["fault", "what goes wrong", "should be found as", "whose it is"], rows)


class InRun(Observer):
    """Puts a fault of the catalogue into a run: on `rank`, from step `at` on (or at that step), and
    of those that last, to before step `until`.

    slower: for the slow ones, by how much more than usual. pace_s: that of the run's `Pace`."""

    def __init__(
        self,
        name: str,
        rank: int = 0,
        at: int = 40,
        slower: float = 0.3,
        pace_s: float = 0.0,
        until: int | None = None,
    ):
        self.fault, self.rank, self.at, self.until = find(name).name, rank, at, until
        self.slower, self.pace_s = slower, pace_s

    def begin(self, run) -> None:
        run.until_end(CATALOGUE[self.fault].applied(self))

    @property
    def since(self) -> bool:
        """Has the step come, and not the end?"""
        step = comm.ledger().step
        if step is None or step < self.at:
            return False
        return self.until is None or step < self.until

    @property
    def now(self) -> bool:
        """Is it the step?"""
        return comm.ledger().step == self.at

    @property
    def mine(self) -> bool:
        return dist.get_rank() == self.rank


class Pace(Observer):
    """Every rank sleeps in each step before it computes: a device of its own for each, whose speed
    no other rank changes."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def begin(self, run) -> None:
        run.until_end(_before_compute(lambda *_: time.sleep(self.seconds)))


def _before_compute(do: Callable[..., None]) -> AbstractContextManager[None]:
    """Do something in a rank between its batch and its forward pass."""
    real = micro_batches.run

    def run(*args):
        do(*args)
        return real(*args)

    return patched(micro_batches, "run", run)


def _fault(name: str, what: str, found_as: str, whose: Whose = "rank", ends: bool = False):
    def register(patch: Callable[[InRun], Iterator[None]]):
        as_any_of = tuple(found_as.split(" or "))
        CATALOGUE[name] = RunFault(name, what, as_any_of, whose, ends, contextmanager(patch))
        return patch

    return register


# -- slow --


@_fault("slow rank", "one rank computes longer: real matrix products, in its forward", "slow rank")
def _slow_kernels(of):
    real, x = micro_batches.run, torch.ones(128, 128)
    took = [0.0]  # CPU seconds of this rank's last forward and backward

    def run(*args):
        began = time.thread_time()
        while of.mine and of.since and time.thread_time() - began < of.slower * took[0]:
            x @ x
        began = time.thread_time()
        result = real(*args)
        took[0] = time.thread_time() - began
        return result

    with patched(micro_batches, "run", run):
        yield


@_fault("slow pace", "one rank sleeps longer than the others, see `Pace`", "slow rank")
def _slow_pace(of):
    last = [0.0]  # this thread's CPU clock a step ago: what it works beside sleeping counts, too

    def longer(*_):
        now = time.thread_time()
        if of.mine and of.since:
            time.sleep(of.slower * (of.pace_s + now - last[0]))
        last[0] = now

    with _before_compute(longer):
        yield


@_fault("slow stage", "a stage of a pipeline takes longer for each micro-batch", "slow rank")
def _slow_stage(of):
    real = PipelineParallelOptimizer.run

    def run(self, *args, stage_cost_s, **more):
        factor = 1 + of.slower * (of.mine and of.since)
        return real(self, *args, stage_cost_s=tuple(factor * s for s in stage_cost_s), **more)

    with patched(PipelineParallelOptimizer, "run", run):
        yield


@_fault("all ranks slow", "all ranks take longer than their pace", "slow run", "nobody")
def _all_slow(of):
    with _before_compute(lambda *_: of.since and time.sleep(of.slower * of.pace_s)):
        yield


@_fault("late data", "one rank waits for its batch", "late data")
def _late_data(of):
    real = trainer.next_batch

    def next_batch(*args):
        if of.mine and of.since:
            time.sleep(LATE_S)
        return real(*args)

    with patched(trainer, "next_batch", next_batch):
        yield


@_fault("slow link", "what the rank before sends to a rank comes later", "slow link", "link")
def _slow_link(of):
    """Messages of a pipeline and the hops of a ring, which are an all-to-all (`comm.shift`). Only
    arrival is later. A link that is slow because little fits through it holds its sender up as
    well, and a ring's rank stands still once for what it sends and what it gets: then the hop
    before is told, too."""
    real, real_to_all, real_p2p = collectives._irecv, collectives._all_to_all, collectives._P2P

    def irecv(x, peer, group=None):
        work = real(x, peer, group=group)
        return _Delayed(work) if of.mine and of.since and peer == of.rank - 1 else work

    def all_to_all(out, x, output_splits=None, input_splits=None, group=None, async_op=False):
        work = real_to_all(out, x, output_splits, input_splits, group=group, async_op=async_op)
        if not (of.mine and of.since and _sends(of.rank - 1, group, output_splits)):
            return work
        if async_op:
            return _Delayed(work)
        time.sleep(LINK_S)
        return work

    def p2p(op, *args, **more):  # torch takes its own functions only
        return real_p2p(real if op is irecv else op, *args, **more)

    with (
        patched(collectives, "_irecv", irecv),
        patched(collectives, "_all_to_all", all_to_all),
        patched(collectives, "_P2P", p2p),
    ):
        yield


def _sends(rank: int, group, sizes: list[int] | None) -> bool:
    """Whether something comes from this rank. sizes: what comes from each of the group, None: as
    much from all."""
    ranks = dist.get_process_group_ranks(group)
    return rank in ranks and (sizes is None or sizes[ranks.index(rank)] > 0)


class _Delayed:
    """What has come is handed over later."""

    def __init__(self, work):
        self._work = work

    def wait(self):
        self._work.wait()
        time.sleep(LINK_S)

    def is_completed(self) -> bool:
        return False


@_fault("leak", "one rank keeps a megabyte of each step", "leak")
def _leak(of):
    kept, real = [], trainer.next_batch

    def next_batch(*args):
        if of.mine and of.since:
            kept.append(b"x" * LEAK_BYTES)
        return real(*args)

    with patched(trainer, "next_batch", next_batch):
        yield


# -- numbers --


def _loss(of: InRun, change: Callable[[torch.Tensor], torch.Tensor]) -> AbstractContextManager:
    real = Transformer.loss

    def loss(self, *args):
        value = real(self, *args)
        return change(value) if of.mine and of.now else value

    return patched(Transformer, "loss", loss)


@_fault("NaN", "one rank's loss is not a number, in one step", "not finite", ends=True)
def _nan(of):
    with _loss(of, lambda loss: loss * float("nan")):
        yield


@_fault("loss spike", "one rank's loss is three times as high, in one step", "loss spike")
def _loss_spike(of):
    with _loss(of, lambda loss: loss * LOSS):
        yield


class _Steeper(torch.autograd.Function):
    """The same value, and a gradient that is so many times as large."""

    @staticmethod
    def forward(ctx, loss):
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx, grad):
        return GRADIENT * grad


@_fault("gradient spike", "one rank's gradient is ten times as large, once", "gradient spike")
def _gradient_spike(of):
    with _loss(of, _Steeper.apply):
        yield


@_fault("expert collapse", "routers choose the same experts for all tokens", "expert collapse",
        "nobody")  # fmt: skip
def _collapse(of):
    real = router.choose

    def choose(scores_TE, config, bias):
        if of.since:
            scores_TE = scores_TE.clone()
            scores_TE[:, : config.experts_per_token] += 1e3
        return real(scores_TE, config, bias)

    with patched(router, "choose", choose):
        yield


# -- ranks that part ways --


def _once_in_a_step(of: InRun, do: Callable[[], None]) -> AbstractContextManager[None]:
    return _before_compute(lambda *_: do() if of.mine and of.now else None)


@_fault("skipped step", "one rank leaves a step out, all collectives included", "desync", ends=True)
def _skipped_step(of):
    """As where each rank skips its own bad batches: later steps pair with the wrong ones, and
    nothing is raised until the others wait for a rank that has ended."""
    real, last = trainer.train_step, [None]

    def train_step(run, step):
        if of.mine and step == of.at:
            run.step, now = step, time.monotonic()
            run.ledger = type(run.ledger)()
            return replace(last[0], step=step, began=now, seconds=1e-6, skipped=True)
        last[0] = real(run, step)
        return last[0]

    with patched(trainer, "train_step", train_step):
        yield


@_fault("extra collective", "one rank does one collective too many", "mismatch or hang", ends=True)
def _extra(of):
    extra = torch.ones(3)
    with _once_in_a_step(of, lambda: comm.all_reduce(extra, "world", "an extra one")):
        yield


@_fault("wrong shape", "one rank's bucket has another size", "mismatch or hang", ends=True)
def _wrong_shape(of):
    real = comm.all_reduce

    def all_reduce(x, axis, why, op="sum", async_op=False):
        if of.mine and of.now and why == "dp: loss":
            return real(torch.ones(5, dtype=x.dtype), axis, why, op=op, async_op=async_op)
        return real(x, axis, why, op=op, async_op=async_op)

    with patched(comm, "all_reduce", all_reduce):
        yield


@_fault("dead rank", "one rank is killed", "dead rank", ends=True)
def _dead(of):
    with _once_in_a_step(of, lambda: os.kill(os.getpid(), signal.SIGKILL)):
        yield


# -- five ways to hang --


@_fault("hang: sleeps", "one rank sleeps for ever", "hang", ends=True)
def _sleeps(of):
    with _once_in_a_step(of, threading.Event().wait):
        yield


def _spin() -> None:
    while True:
        pass


@_fault("hang: spins", "one rank is in an endless loop", "hang", ends=True)
def _spins(of):
    with _once_in_a_step(of, _spin):
        yield


@_fault("hang: holds the GIL", "one rank is in C code that lets no thread run", "hang", ends=True)
def _holds_gil(of):
    with _once_in_a_step(of, lambda: ctypes.PyDLL(None).sleep(3600)):
        yield


@_fault("hang: stopped", "one rank is stopped (SIGSTOP)", "hang", ends=True)
def _stopped(of):
    with _once_in_a_step(of, lambda: os.kill(os.getpid(), signal.SIGSTOP)):
        yield


@_fault("hang: stage stuck", "a stage of a pipeline never sends what the next waits for", "hang",
        ends=True)  # fmt: skip
def _stage_stuck(of):
    real = PipelineParallelOptimizer._forward

    def forward(self, *args):
        if of.mine and of.now:
            threading.Event().wait()
        return real(self, *args)

    with patched(PipelineParallelOptimizer, "_forward", forward):
        yield


class Quiet(Observer):
    """No fault at all, but a pause of 40 ms now and then, on any rank: as of a garbage collector.
    Nobody is to be accused of it."""

    def __init__(self, share: float = 0.03, seconds: float = 0.04, seed: int = 0):
        self.share, self.seconds, self.seed = share, seconds, seed

    def begin(self, run) -> None:
        self._draws = torch.Generator().manual_seed(self.seed * 1000 + dist.get_rank())

    def gradients(self, run) -> None:
        if torch.rand(1, generator=self._draws).item() < self.share:
            time.sleep(self.seconds)
