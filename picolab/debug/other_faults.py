"""Faults of the catalogue that are no single sum: data, starts, divisors, positions, members."""

from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch

from picolab import comm
from picolab.comm.mesh import Mesh
from picolab.debug.faults import fault, patched, treated
from picolab.model import parameters
from picolab.parallel import context, data, pipeline, ring, three_d, whole
from picolab.training import trainer

_PICOTRON = "huggingface/picotron"
_LEARNING = "picotron-learning"
_NORM = "NVIDIA/Megatron-LM PRs 5916 and 6080 (gradient norm under-counted)"
_LIKE = "the same mistake as its neighbours, at another place"


@fault(
    "dp-mean-of-means",
    "each replica divides by its own count of valid tokens, and the results are averaged",
    "pytorch/torchtitan PRs 2206 and 4167 (a mean of means)",
    "dp",
)
def _mean_of_means(layout):
    real = trainer.global_count

    def own_count(labels_MBS):
        valid = real(labels_MBS)  # the collective is there; its result is not used
        return valid._replace(all=max(1, int(valid.own)) * comm.mesh().size("dp"))

    with patched(trainer, "global_count", own_count):
        yield


@fault(
    "dp-same-data",
    "every replica reads the first replica's part of the batch",
    f"{_LEARNING}, DataParallel.distribute_data (every rank takes batch[:n])",
    "dp",
)
def _same_data(layout):
    real = Mesh.rank
    with patched(Mesh, "rank", lambda self, axis: 0 if axis == "dp" else real(self, axis)):
        yield


@fault(
    "dp-replicas-differ",
    "each replica draws its own initial values, and nobody compares or broadcasts them",
    "Lightning-AI/pytorch-lightning issue 6013 (why DDP broadcasts the first rank's weights)",
    "dp",
)
def _replicas_differ(layout):
    real = parameters.draw
    seeded = lambda piece, seed: real(piece, seed + comm.mesh().rank("dp"))  # noqa: E731
    with patched(parameters, "draw", seeded):
        yield


@fault(
    "dp-weights-averaged",
    "a hook averages the weights over the replicas, where gradients are meant",
    f"{_PICOTRON}, data_parallel.py:39 (the hook's argument is the parameter, not its gradient)",
    "whole gradients of dp",
)
def _weights_averaged(layout):
    axis = layout.data_axis

    def hooked(self, bucket_bytes):
        for parameter in self._trainable:
            parameter.register_post_accumulate_grad_hook(average)

    @torch.no_grad()
    def average(parameter):
        if parameter.grad is not None:
            weights = parameter.data  # which autograd does not see, as other stages' graphs wait
            comm.all_reduce(weights, axis, "dp: gradient of one parameter")
            weights.div_(comm.mesh().size(axis))

    def not_again(self, parameter):
        """The package's own hook has nothing to do: there are no buckets."""

    owner = data.DataParallelOptimizer
    with patched(owner, "_fill_buckets", hooked), patched(owner, "_arrived", not_again):
        yield


@fault(
    "dp-every-micro-batch",
    "the sums are taken over the replicas after every micro-batch, earlier sums included",
    "pytorch/torchtitan issue 1733 (accumulated gradients are rescaled again and again)",
    "whole gradients of dp",
)
def _every_micro_batch(layout):
    real = data.DataParallelOptimizer.no_sync

    @contextmanager
    def no_sync(self):
        with real(self):
            yield
        for bucket in self._buckets:
            comm.all_reduce(bucket.flat, self.axis, "dp: gradient bucket")

    with patched(data.DataParallelOptimizer, "no_sync", no_sync):
        yield


@fault(
    "micro-batches-not-scaled",
    "gradients are those of the micro-batches' summed means: too large by their number",
    f"{_PICOTRON}, pipeline_parallel.py:107 and 160; pytorch/torchtitan issue 1733",
    "any",
)
def _micro_batches_not_scaled(layout):
    class Unscaled(torch.autograd.Function):
        """The logged loss is right; what is differentiated was not divided."""

        @staticmethod
        def forward(ctx, loss, times):
            ctx.times = times
            return loss.view_as(loss)

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.times, None

    real = three_d.ThreeDParallelOptimizer.forward_backward

    def forward_backward(self, tokens_MBS, *rest):
        def unscaled(_, __, loss):
            return Unscaled.apply(loss, len(tokens_MBS))

        handle = self.model.cross_entropy.register_forward_hook(unscaled)
        try:
            return real(self, tokens_MBS, *rest)
        finally:
            handle.remove()

    with patched(three_d.ThreeDParallelOptimizer, "forward_backward", forward_backward):
        yield


@fault(
    "micro-batches-forgotten",
    "gradients are cleared before every micro-batch, so only the last one counts",
    "pytorch/torchtitan PR 3575 (zero_grad at each micro-batch)",
    "any",
)
def _micro_batches_forgotten(layout):
    real = three_d.ThreeDParallelOptimizer.no_sync

    @contextmanager
    def no_sync(self):
        with real(self):
            yield
        self.zero_grad()

    with patched(three_d.ThreeDParallelOptimizer, "no_sync", no_sync):
        yield


@fault(
    "tp-shards-alike",
    "every rank fills its shard from the same seed and the shard's shape: all shards are copies",
    f"{_PICOTRON}, model.py:110 and 173; allenai/OLMo-core PR 307",
    "tp",
)
def _shards_alike(layout):
    real = parameters.draw

    def draw(piece, seed):
        return real(replace(piece, shape=piece.local_shape), seed)

    with patched(parameters, "draw", draw):
        with patched(parameters.Piece, "take", lambda piece, whole: whole):
            yield


@fault(
    "tp-norm-counts-replicas",
    "the gradient norm counts a parameter that all tp ranks hold once on each of them",
    f"{_NORM}: the same membership question, answered the other way",
    "tp",
)
def _norm_counts_replicas(layout):
    real = three_d.square_norm

    def square_norm(of_model):
        with patched(parameters.Piece, "axes", frozenset({"tp"})):
            return real(of_model)

    with patched(three_d, "square_norm", square_norm):
        yield


@fault(
    "cp-not-synchronised",
    "gradients are summed where dp is split, and not where only cp is",
    f"{_PICOTRON}, train.py:192 and 32 (wrapped only if dp > 1)",
    "cp without dp",
)
def _cp_not_synchronised(layout):
    with patched(comm, "all_reduce", treated("dp: gradient bucket", "missing")):
        yield


@fault(
    "cp-positions-contiguous",
    "tokens are split zig-zag, and rotated by the positions of a contiguous split",
    "thunlp/Seq1F1B issue 6 (pieces of a sequence rotated without their offset: a loss of 11.4)",
    "cp",
)
def _positions_contiguous(layout):
    real = context.split_batch

    def split_batch(*batch):
        tokens, labels, positions = real(*batch)
        first = comm.mesh().rank("cp") * len(positions)
        return tokens, labels, torch.arange(first, first + len(positions))

    with patched(context, "split_batch", split_batch):
        yield


@fault(
    "cp-labels-contiguous",
    "tokens are split zig-zag, and labels contiguously",
    _LIKE,
    "cp",
)
def _labels_contiguous(layout):
    real = context.split_batch

    def split_batch(tokens_BS, labels_BS, *how):
        tokens, _, positions = real(tokens_BS, labels_BS, *how)
        cp, rank = comm.mesh().size("cp"), comm.mesh().rank("cp")
        return tokens, labels_BS.chunk(cp, dim=1)[rank].contiguous(), positions

    with patched(context, "split_batch", split_batch):
        yield


@fault(
    "cp-key-gradients-lost",
    "gradients of keys and values that other ranks' queries cause are not added to the owner's",
    _LIKE,
    "cp",
)
def _key_gradients_lost(layout):
    real = comm.shift

    def shift(x, axis, reason, async_op=False):
        sent = torch.zeros_like(x) if reason == ring.GRADIENTS else x
        return real(sent, axis, reason, async_op)

    with patched(comm, "shift", shift):
        yield


@fault(
    "pp-stages-alike",
    "every stage draws its layers from the same seed, counting from its own first one",
    f"{_PICOTRON}, each stage reseeds and initialises only its own layers",
    "pp",
)
def _stages_alike(layout):
    real, fill = parameters.draw, three_d.initialise
    first = [0]

    def initialise(model, *rest):
        (piece,) = model.layers[0].attention_norm.weight.pieces
        first[0] = int(piece.name.split(".")[1])
        return fill(model, *rest)

    def draw(piece, seed):
        name = piece.name.split(".")
        if name[0] == "layers":
            name[1] = str(int(name[1]) - first[0])
        return real(replace(piece, name=".".join(name)), seed)

    with patched(three_d, "initialise", initialise), patched(parameters, "draw", draw):
        yield


@fault(
    "pp-tied-gradient-missing",
    "first and last stage do not add up their gradients of the tied embedding",
    "NVIDIA/Megatron-LM issue 844 (wrong gradients of a shared embedding under pipelining)",
    "pp",
)
def _tied_gradient_missing(layout):
    owner = pipeline.PipelineParallelOptimizer
    with patched(owner, "sum_tied_gradients", lambda self, parameters=None: None):
        yield


@fault(
    "pp-norm-counts-tied-twice",
    "the gradient norm counts the tied embedding on the first stage and again on the last",
    f"{_NORM}: the same membership question",
    "pp",
)
def _norm_counts_tied(layout):
    real = three_d.square_norm

    def square_norm(of_model):
        with ExitStack() as stack:
            for parameter in of_model:
                pieces = tuple(replace(piece, copy=False) for piece in parameter.pieces)
                stack.enter_context(patched(parameter, "pieces", pieces))
            return real(of_model)

    with patched(three_d, "square_norm", square_norm):
        yield


@fault(
    "large-reductions-doubled",
    "every all-reduce above 512 KB is done twice, the second time on the sums",
    "no public report; large messages go another way than small ones (here by PAIR_BYTES, in NCCL "
    "by its protocols)",
    "whole gradients",
)
def _large_doubled(layout):
    real = comm.all_reduce

    def all_reduce(x, axis, why, op="sum", async_op=False):
        if x.numel() * x.element_size() > 512 * 1024:
            real(x, axis, why, op=op)
        return real(x, axis, why, op=op, async_op=async_op)

    with patched(comm, "all_reduce", all_reduce):
        yield


@fault(
    "pp-untied-head-frozen",
    "the last stage clears the gradient of an untied head, as if it were the embedding's copy",
    "no public report; found by trying it on this oracle, whose only head was tied",
    "pp",
)
def _untied_head_frozen(layout):
    owner = pipeline.PipelineParallelOptimizer
    real = owner.finish_gradients

    def finish_gradients(self, parameters):
        real(self, parameters)
        if self.last and not self.tied:
            self.model.head.weight.grad.zero_()

    with patched(owner, "finish_gradients", finish_gradients):
        yield


@fault(
    "gathered-in-another-order",
    "state_dict() puts the shards of a tensor together in the reverse order of the ranks",
    "no public report; found by trying it on this oracle, which did not see it",
    "tp",
)
def _gathered_in_another_order(layout):
    real = whole.gather_shards

    def gather_shards(x, sizes, axis, reason, dim=0):
        parts = real(x, sizes, axis, reason, dim).split(list(sizes), dim)
        return torch.cat(parts[::-1], dim)

    with patched(whole, "gather_shards", gather_shards):
        yield
