"""Faults that the oracle does not look for, in the style of `debug.faults`: those that cost time
and change no number, those of the loss scale in fp16, and those that leave memory behind. (Those of
one rank, or of a link, are in mystery_run_faults.py.)

They are not in its catalogue: that one is for what the oracle must catch, and the oracle compares
numbers of one step. Used in mystery runs only, by the same `with fault.applied(layout):` inside a
rank.
"""

import gc
from collections.abc import Callable
from contextlib import contextmanager

import torch

from picolab import comm
from picolab.debug.faults import CATALOGUE, Fault, patched
from picolab.exercises.mystery_run_faults import RUN_FAULTS, late, registering
from picolab.model import Block, Transformer
from picolab.parallel import ThreeDParallelOptimizer, data
from picolab.precision import LossScaler
from picolab.training import precision, trainer
from picolab.training.precision import ScaledPrecision

OWN: dict[str, Fault] = dict(RUN_FAULTS)
_fault = registering(OWN)


def find(name: str | None) -> Fault | None:
    """One of these, or one of the catalogue; None is no fault."""
    return None if name is None else OWN.get(name) or CATALOGUE[name]


@_fault(
    "no-sync-forgotten",
    "the gradients of every micro-batch are summed over the replicas at once, and then added up",
    "karpathy/nanochat PR 33, pytorch/pytorch issue 43201 (accumulation without no_sync)",
)
def _no_sync_forgotten(layout):
    owner = data.DataParallelOptimizer
    real_no_sync, real_finish = owner.no_sync, owner.finish
    sums: dict[int, torch.Tensor] = {}  # of earlier micro-batches, by bucket

    @contextmanager
    def no_sync(self):
        with real_no_sync(self):
            yield
        for i, bucket in enumerate(self._buckets):
            comm.all_reduce(bucket.flat, self.axis, "dp: gradient bucket")
            sums[i] = sums[i] + bucket.flat if i in sums else bucket.flat.clone()
            bucket.flat.zero_()  # gradients are views of it: the next micro-batch starts at zero

    def finish(self):
        real_finish(self)
        for i, bucket in enumerate(self._buckets):
            bucket.flat += sums.pop(i)

    with patched(owner, "no_sync", no_sync), patched(owner, "finish", finish):
        yield


@_fault(
    "bucket-per-parameter",
    "every gradient has an all-reduce of its own",
    "arXiv 2006.15704, section 3.2.2 (why torch's DDP has buckets)",
)
def _bucket_per_parameter(layout):
    owner = data.DataParallelOptimizer
    real = owner._fill_buckets
    with patched(owner, "_fill_buckets", lambda self, bucket_bytes: real(self, 1)):
        yield


@_fault(
    "gradients-in-fp64",
    "gradients are cast to fp64, summed over the replicas, and cast back",
    "no public report; like Megatron-LM's --accumulate-allreduce-grads-in-fp32, which doubles the "
    "bytes of a bf16 model's gradients and says so",
)
def _gradients_in_fp64(layout):
    real = comm.all_reduce

    def all_reduce(x, axis, why, op="sum", async_op=False):
        if why != "dp: gradient bucket":
            return real(x, axis, why, op=op, async_op=async_op)
        x.copy_(real(x.double(), axis, why, op=op))
        return comm.Pending(None, x, 0.0, ()) if async_op else x

    with patched(comm, "all_reduce", all_reduce):
        yield


@_fault(
    "overflow-decided-alone",
    "each rank looks at its own gradients alone, and skips a step or takes it",
    "facebookresearch/fairscale issue 180 (a sharded optimizer, and a check that is each rank's "
    "own); pytorch/pytorch PR 115710 (the answer was read before it had come)",
)
def _overflow_decided_alone(layout):
    # (The norm of such a step is not finite, and a rank that takes it would stop the run.)
    quiet = patched(trainer, "_stop_if_not_finite", lambda *_: None)
    with patched(precision, "agreed", lambda mine: mine), quiet:
        yield


@_fault(
    "gradients-stay-scaled",
    "gradients are not divided by the loss scale",
    "the first rule of torch's AMP examples: unscale_ before looking at gradients",
)
def _gradients_stay_scaled(layout):
    with patched(ScaledPrecision, "unscale", lambda *_: None):
        yield


@_fault(
    "clipped-while-scaled",
    "gradients are clipped, and then divided by the loss scale",
    "torch's AMP examples, 'Gradient clipping': without unscale_ the threshold is in scaled units",
)
def _clipped_while_scaled(layout):
    real, scaler = ThreeDParallelOptimizer.clip, {}

    def clip(self, max_norm):
        norm = real(self, max_norm)
        scaler["of"].unscale(self.parameters())
        return norm

    def unscale(self, parallel):
        scaler["of"] = self.scaler

    with (
        patched(ScaledPrecision, "unscale", unscale),
        patched(ThreeDParallelOptimizer, "clip", clip),
    ):
        yield


@_fault(
    "divided-by-the-last-scale",
    "gradients are divided by the loss scale of the step before",
    "no public report; the order in which scale, backward, unscale and update are called",
)
def _divided_by_the_last_scale(layout):
    last: dict[str, float] = {}

    def unscale(self, parallel):
        now = self.scaler.scale
        self.scaler.scale = last.get("scale", now)
        self.scaler.unscale(parallel.parameters())
        self.scaler.scale = last["scale"] = now

    with patched(ScaledPrecision, "unscale", unscale):
        yield


@_fault(
    "scale-never-falls",
    "after an overflow the loss scale stays what it was",
    "no public report; scaler.update() that is called after good steps only",
)
def _scale_never_falls(layout):
    real = LossScaler.update

    def update(self, overflow):
        before = self.scale
        real(self, overflow)
        self.scale = before if overflow else self.scale

    with patched(LossScaler, "update", update):
        yield


@_fault(
    "scale-grows-at-once",
    "the loss scale doubles after every good step",
    "no public report; a growth interval that is compared with the wrong counter",
)
def _scale_grows_at_once(layout):
    real = LossScaler.update

    def update(self, overflow):
        self.streak = self.interval - 1
        real(self, overflow)

    with patched(LossScaler, "update", update):
        yield


@contextmanager
def _with_each_block(keep: Callable[[torch.Tensor], object]):
    """Tell somebody what each block gives, as a forward hook would."""
    real = Block.forward

    def forward(self, *args):
        y = real(self, *args)
        if torch.is_grad_enabled():
            keep(y.detach())
        return y

    with patched(Block, "forward", forward):
        yield


@_fault(
    "activations-kept",
    "a hook keeps what each block gives, for a plot at the end of the run",
    "pytorch's forum, 'Memory leak with forward hooks', many times",
)
def _activations_kept(layout):
    kept: list[torch.Tensor] = []
    with _with_each_block(kept.append):
        yield


@_fault(
    "views-kept",
    "a hook keeps the last token's vector of what each block gives, as a view of it",
    "torch's documentation of views: 'a view shares the same underlying data'; the cure is clone()",
)
def _views_kept(layout):
    kept: list[torch.Tensor] = []
    with _with_each_block(lambda y: kept.append(y[-1, -1])):
        yield


@_fault(
    "activations-kept-for-three-steps",
    "a hook keeps what each block gives, of the last three steps",
    "no public report; a ring buffer that works as it should",
)
def _activations_kept_for_three_steps(layout):
    kept: list[list[torch.Tensor]] = []
    steps = _Steps()

    def keep(y):
        while len(kept) <= steps.number:
            kept.append([])
            kept[:-3] = [[] for _ in kept[:-3]]
        kept[steps.number].append(y)

    with steps.counted(), _with_each_block(keep):
        yield


class _Steps:
    """How many have begun."""

    def __init__(self):
        self.number = -1

    @contextmanager
    def counted(self):
        real = trainer.train_step

        def train_step(run, step):
            self.number += 1
            return real(run, step)

        with patched(trainer, "train_step", train_step):
            yield


@_fault(
    "circles-and-no-collector",
    "what each block gives is held by an object that refers to itself, and Python's collector is "
    "switched off",
    "pytorch/torchtitan's GarbageCollection, which collects young objects only",
)
def _circles_and_no_collector(layout):
    def keep(y):
        circle: list = [y]
        circle.append(circle)

    was_on = gc.isenabled()
    gc.disable()
    try:
        with _with_each_block(keep):
            yield
    finally:
        if was_on:
            gc.enable()


@_fault(
    "losses-kept-with-their-graph",
    "a list keeps each micro-batch's loss, and with it what backward has left of its graph",
    "pytorch's FAQ, 'My model reports out of memory': total_loss += loss",
)
def _losses_kept_with_their_graph(layout):
    kept: list[torch.Tensor] = []
    real = Transformer.loss

    def loss(self, *args, **kwargs):
        found = real(self, *args, **kwargs)
        kept.append(found)
        return found

    with patched(Transformer, "loss", loss):
        yield


@_fault(
    "evaluated-with-a-graph",
    "after each step a loss is computed without no_grad, kept in a list, and never differentiated",
    "pytorch's FAQ, 'My model reports out of memory'; many a validation loop",
)
def _evaluated_with_a_graph(layout):
    kept: list[torch.Tensor] = []
    real = trainer.train_step

    def train_step(run, step):
        report = real(run, step)
        kept.append(run.model.loss(run.tokens_MBS[0], run.labels_MBS[0]))
        return report

    with patched(trainer, "train_step", train_step):
        yield


late(
    1,
    "rank 1 takes longer to get its batch; all others wait for it in the next collective",
    "deepspeedai/DeepSpeed PR 3579 (waiting for a late rank is logged as communication)",
    _fault,
)
late(
    0,
    "rank 0 does something on its own in every step; all others wait for it",
    "the same, with the rank that usually writes the logs",
    _fault,
)
