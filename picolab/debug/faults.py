"""The fault catalogue: ways in which parallel training goes wrong without an error, and where they
were seen.

    pico.verify("dp2tp2", fault="tp-row-output-missing")     one all-reduce less; watch it be named
    faults.table("dp2")                                      what could be switched on in dp2

A fault is switched on inside each rank, before the model is placed, by replacing functions of the
package for the time of the run; the package itself knows of none (no flag, no branch). Most are one
collective treated wrongly, found by the reason that its caller gives, so they need one line:

    _reduction("dp-gradients", "dp: gradient bucket", "dp", {"missing": where it was seen})

To add one that is not: write a generator `(layout)` that patches, yields once and restores, and
decorate it with `@_fault(name, what, where_seen, needs)`.
tests/distributed/debug/test_faults.py asks of each that the oracle catches it, and lists which
cause it must be given.
"""

import difflib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch

from picolab import comm
from picolab.comm.mesh import Mesh
from picolab.model import parameters
from picolab.monitoring.table import Table
from picolab.parallel import context, data, pipeline, three_d
from picolab.specs import Layout
from picolab.training import trainer

Treatment = Literal["missing", "doubled", "averaged"]


# What a layout needs for a fault to be possible: in words, as a test, and an example that has it.
_NEEDS: dict[str, tuple[str, Callable[[Layout], bool], str]] = {
    "any": ("nothing", lambda layout: True, "dp1"),
    "dp": ("dp of 2 or more", lambda layout: layout.dp > 1, "dp2"),
    "dp or cp": ("dp or cp of 2 or more", lambda layout: layout.dp * layout.cp > 1, "dp2"),
    "tp": ("tp of 2 or more", lambda layout: layout.tp > 1, "tp2"),
    "tp without sp": (
        "tp of 2 or more, without sp",
        lambda layout: layout.tp > 1 and not layout.sp,
        "tp2",
    ),
    "sp": ("sp", lambda layout: layout.sp, "tp2sp"),
    "cp": ("cp of 2 or more", lambda layout: layout.cp > 1, "cp2"),
    "cp without dp": (
        "cp of 2 or more and dp of 1",
        lambda layout: layout.cp > 1 and layout.dp == 1,
        "cp2",
    ),
    "pp": ("pp of 2 or more", lambda layout: layout.pp > 1, "pp2"),
}


@dataclass(frozen=True)
class Fault:
    """One way to go wrong. `with fault.applied(layout):` is how long it is at work in this rank."""

    name: str
    what: str
    """What is done wrongly, in a sentence."""
    where_seen: str
    """A public report of it, or of its like."""
    needs: str
    """What a layout must have for it to exist; a key of _NEEDS."""
    applied: Callable[[Layout], AbstractContextManager[None]]

    def applies_to(self, layout: Layout | str) -> bool:
        return _NEEDS[self.needs][1](Layout.parse(layout))

    def check(self, layout: Layout) -> None:
        """ValueError if there is nothing in this layout that could go wrong in this way."""
        if not self.applies_to(layout):
            words, _, example = _NEEDS[self.needs]
            raise ValueError(
                f"the fault {self.name!r} needs {words}, and there is nothing in {layout} that it "
                f"could break; try {example}"
            )


CATALOGUE: dict[str, Fault] = {}


def find(fault: str | Fault) -> Fault:
    """By name; a Fault of your own is returned as it is. ValueError, with the names, for another
    word."""
    if isinstance(fault, Fault):
        return fault
    if fault not in CATALOGUE:
        close = difflib.get_close_matches(str(fault), CATALOGUE, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"there is no fault {fault!r}; {hint}faults are {', '.join(CATALOGUE)}")
    return CATALOGUE[fault]


def table(layout: Layout | str | None = None) -> Table:
    """The catalogue, or the part of it that a layout can have."""
    rows = [
        [fault.name, _NEEDS[fault.needs][0], fault.what, fault.where_seen]
        for fault in CATALOGUE.values()
        if layout is None or fault.applies_to(layout)
    ]
    return Table(["fault", "needs", "what is done wrongly", "where it was seen"], rows)


# -- the two ways to make one --


def _fault(name: str, what: str, where_seen: str, needs: str):
    """Decorator: a generator that patches, yields once and restores becomes a catalogue entry."""

    def register(patch: Callable[[Layout], Iterator[None]]):
        assert name not in CATALOGUE and needs in _NEEDS, (name, needs)
        CATALOGUE[name] = Fault(name, what, where_seen, needs, contextmanager(patch))
        return patch

    return register


@contextmanager
def _patched(owner, attribute: str, value) -> Iterator[None]:
    before = getattr(owner, attribute)
    setattr(owner, attribute, value)
    try:
        yield
    finally:
        setattr(owner, attribute, before)


def _treated(reason: str, treatment: Treatment):
    """comm.all_reduce, with one reason's calls missing, done twice, or averaged over the axis."""
    real = comm.all_reduce

    def all_reduce(x, axis, why, op="sum", async_op=False):
        if why != reason:
            return real(x, axis, why, op=op, async_op=async_op)
        if treatment == "missing":
            return comm.Pending(None, x, 0.0, ()) if async_op else x
        if treatment == "doubled":
            real(x, axis, why, op=op)
        else:  # before the sum, since an asynchronous one has not happened when this returns
            x /= comm.mesh().size(axis)
        return real(x, axis, why, op=op, async_op=async_op)

    return all_reduce


def _reduction(name: str, reason: str, needs: str, treatments: dict[Treatment, str]) -> None:
    """Entries for one reduction of the training step: name-missing, name-doubled, ..."""
    words = {
        "missing": f"the all-reduce of {reason!r} is left out",
        "doubled": f"the all-reduce of {reason!r} is done twice, the second time on the sums",
        "averaged": f"{reason!r} is divided by the number of ranks, where a sum is meant",
    }
    for treatment, where_seen in treatments.items():

        def patch(layout, treatment=treatment):
            with _patched(comm, "all_reduce", _treated(reason, treatment)):
                yield

        _fault(f"{name}-{treatment}", words[treatment], where_seen, needs)(patch)


_PICOTRON = "huggingface/picotron at 59714b1"
_LEARNING = "picotron-learning"
_COMPOSED = "NVIDIA/Megatron-LM issue 7452"
_NORM = "NVIDIA/Megatron-LM PRs 5916 and 6080 (gradient norm under-counted)"
_CONTEXT_LOSS = "NVIDIA/Megatron-LM issues 673 and 906 (how the loss is scaled when ranks share it)"
_LIKE = "the same mistake as its neighbours, at this reduction"

_reduction(
    "dp-gradients",
    "dp: gradient bucket",
    "dp or cp",
    {
        "missing": f"{_PICOTRON}, data_parallel.py:39 (gradients stay unequal on the replicas)",
        "doubled": "pytorch issue 160285, NVIDIA/Megatron-LM PR 5956 (gradients exactly doubled)",
        "averaged": _CONTEXT_LOSS,
    },
)
_reduction(
    "dp-count",
    "dp: count of valid tokens",
    "dp",
    {
        "missing": "pytorch/torchtitan PR 2206 (each rank divided by its own count)",
        "doubled": "huggingface/transformers PR 35438 (a wrong count, the loss off by a factor)",
    },
)
_reduction(
    "dp-loss",
    "dp: loss",
    "dp or cp",
    {
        "missing": f"{_PICOTRON}, utils.py:94 (ranks log a loss that is not the batch's)",
        "doubled": "pytorch/torchtitan PR 105 (the loss was reduced over the whole mesh)",
        "averaged": _LIKE,
    },
)
_reduction(
    "tp-row-output",
    "tp: row-parallel output",
    "tp without sp",
    {
        "missing": f"{_LEARNING}, RowParallelLinear (it has no all-reduce)",
        "doubled": "huggingface/text-generation-inference issue 1036 (the bias added tp times)",
        "averaged": _LIKE,
    },
)
_reduction(
    "tp-input-gradient",
    "tp: column-parallel input gradient",
    "tp without sp",
    {
        "missing": "NVIDIA/Megatron-LM issue 1446 (gradients of norms differ over tp)",
        "doubled": "tenstorrent/tt-metal PR 31748 (two all-reduces in the backward pass)",
        "averaged": _LIKE,
    },
)
_reduction(
    "tp-embedding",
    "tp: embedding output",
    "tp without sp",
    {"missing": _LIKE, "doubled": _LIKE, "averaged": _LIKE},
)
_reduction(
    "tp-loss-maximum",
    "tp: cross entropy maximum",
    "tp",
    # (Twice is harmless, and an average too: softmax does not depend on what is subtracted.)
    {"missing": f"{_COMPOSED}, finding 1 (every rank has another loss)"},
)
_reduction(
    "tp-loss-sums",
    "tp: cross entropy sums",
    "tp",
    {
        "missing": f"{_COMPOSED}, finding 1 (every rank has another loss)",
        "doubled": f"{_COMPOSED}, finding 2 (the loss is off by log(tp))",
    },
)
_reduction(
    "tp-norm",
    "tp: gradient norm",
    "tp",
    {"missing": _NORM, "doubled": _LIKE, "averaged": _LIKE},
)


_reduction(
    "sp-norm-gradients",
    "sp: gradients of the norms",
    "sp",
    {
        "missing": "NVIDIA/Megatron-LM issue 1446 (gradients of norms differ over tp)",
        "doubled": _LIKE,
        "averaged": _LIKE,
    },
)
_reduction(
    "pp-loss",
    "pp: loss",
    "pp",
    {"missing": f"{_PICOTRON}, utils.py:94 (the loss is 0 on every rank but the last stage's)"},
)
_reduction(
    "pp-norm",
    "pp: gradient norm",
    "pp",
    {"missing": _LIKE, "doubled": _LIKE, "averaged": _LIKE},
)


# -- faults that are no single reduction --


@_fault(
    "dp-mean-of-means",
    "each replica divides by its own count of valid tokens, and the results are averaged",
    "pytorch/torchtitan PRs 2206 and 4167 (a mean of means)",
    "dp",
)
def _mean_of_means(layout):
    real = trainer.global_count

    def own_count(labels_MBS):
        real(labels_MBS)  # the collective is there; its result is not used
        count = (labels_MBS != trainer.IGNORED).sum()
        return max(1, int(count)) * comm.mesh().size("dp")

    with _patched(trainer, "global_count", own_count):
        yield


@_fault(
    "dp-same-data",
    "every replica reads the first replica's part of the batch",
    f"{_LEARNING}, DataParallel.distribute_data (every rank takes batch[:n])",
    "dp",
)
def _same_data(layout):
    real = Mesh.rank
    with _patched(Mesh, "rank", lambda self, axis: 0 if axis == "dp" else real(self, axis)):
        yield


@_fault(
    "dp-replicas-differ",
    "each replica draws its own initial values, and nobody broadcasts the first one's",
    "Lightning-AI/pytorch-lightning issue 6013 (why DDP broadcasts the first rank's weights)",
    "dp",
)
def _replicas_differ(layout):
    real = parameters.draw
    seeded = lambda piece, seed: real(piece, seed + comm.mesh().rank("dp"))  # noqa: E731
    with _patched(parameters, "draw", seeded):
        yield


@_fault(
    "dp-weights-averaged",
    "a hook averages the weights over the replicas, where gradients are meant",
    f"{_PICOTRON}, data_parallel.py:39 (the hook's argument is the parameter, not its gradient)",
    "dp",
)
def _weights_averaged(layout):
    axis = "dp" if layout.cp == 1 else "dp_cp"

    def hooked(self, bucket_bytes):
        for parameter in self._trainable:
            parameter.register_post_accumulate_grad_hook(average)

    @torch.no_grad()
    def average(parameter):
        if parameter.grad is not None:
            comm.all_reduce(parameter, axis, "dp: gradient of one parameter")
            parameter.div_(comm.mesh().size(axis))

    def not_again(self, parameter):
        """The package's own hook has nothing to do: there are no buckets."""

    owner = data.DataParallelOptimizer
    with _patched(owner, "_fill_buckets", hooked), _patched(owner, "_arrived", not_again):
        yield


@_fault(
    "dp-every-micro-batch",
    "the sums are taken over the replicas after every micro-batch, earlier sums included",
    "pytorch/torchtitan issue 1733 (accumulated gradients are rescaled again and again)",
    "dp",
)
def _every_micro_batch(layout):
    real = data.DataParallelOptimizer.no_sync

    @contextmanager
    def no_sync(self):
        with real(self):
            yield
        for bucket in self._buckets:
            comm.all_reduce(bucket.flat, self.axis, "dp: gradient bucket")

    with _patched(data.DataParallelOptimizer, "no_sync", no_sync):
        yield


@_fault(
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
        right = self.model.cross_entropy

        def cross_entropy(*batch):
            return Unscaled.apply(right(*batch), len(tokens_MBS))

        with _patched(self.model, "cross_entropy", cross_entropy):
            return real(self, tokens_MBS, *rest)

    with _patched(three_d.ThreeDParallelOptimizer, "forward_backward", forward_backward):
        yield


@_fault(
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

    with _patched(three_d.ThreeDParallelOptimizer, "no_sync", no_sync):
        yield


@_fault(
    "tp-shards-alike",
    "every rank fills its shard from the same seed and the shard's shape: all shards are copies",
    f"{_PICOTRON}, model.py:110 and 173; allenai/OLMo-core PR 307",
    "tp",
)
def _shards_alike(layout):
    real = parameters.draw

    def draw(piece, seed):
        return real(replace(piece, shape=piece.local_shape), seed)

    with _patched(parameters, "draw", draw):
        with _patched(parameters.Piece, "take", lambda piece, whole: whole):
            yield


@_fault(
    "tp-norm-counts-replicas",
    "the gradient norm counts a parameter that all tp ranks hold once on each of them",
    f"{_NORM}: the same membership question, answered the other way",
    "tp",
)
def _norm_counts_replicas(layout):
    def grad_norm(self):
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        total = comm.all_reduce(three_d._square_sum(gradients), "tp", "tp: gradient norm")
        return float(total) ** 0.5

    with _patched(three_d.ThreeDParallelOptimizer, "grad_norm", grad_norm):
        yield


@_fault(
    "cp-not-synchronised",
    "gradients are summed where dp is split, and not where only cp is",
    f"{_PICOTRON}, train.py:192 and 32 (wrapped only if dp > 1)",
    "cp without dp",
)
def _cp_not_synchronised(layout):
    with _patched(comm, "all_reduce", _treated("dp: gradient bucket", "missing")):
        yield


@_fault(
    "cp-positions-contiguous",
    "tokens are split zig-zag, and rotated by the positions of a contiguous split",
    "NVIDIA/Megatron-LM issue 7452 is a list of this kind (a pair of settings that disagree)",
    "cp",
)
def _positions_contiguous(layout):
    real = three_d.split_batch

    def split_batch(*batch):
        tokens, labels, positions = real(*batch)
        first = comm.mesh().rank("cp") * len(positions)
        return tokens, labels, torch.arange(first, first + len(positions))

    with _patched(three_d, "split_batch", split_batch):
        yield


@_fault(
    "cp-labels-contiguous",
    "tokens are split zig-zag, and labels contiguously",
    _LIKE,
    "cp",
)
def _labels_contiguous(layout):
    real = three_d.split_batch

    def split_batch(tokens_BS, labels_BS):
        tokens, _, positions = real(tokens_BS, labels_BS)
        cp, rank = comm.mesh().size("cp"), comm.mesh().rank("cp")
        return tokens, labels_BS.chunk(cp, dim=1)[rank].contiguous(), positions

    with _patched(three_d, "split_batch", split_batch):
        yield


@_fault(
    "cp-key-gradients-lost",
    "gradients of keys and values that other ranks' queries cause are not added to the owner's",
    _LIKE,
    "cp",
)
def _key_gradients_lost(layout):
    real = context.GradientRing.add

    def add(self, owner, block):
        real(self, owner, block if owner == self._me else None)

    with _patched(context.GradientRing, "add", add):
        yield


@_fault(
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

    with _patched(three_d, "initialise", initialise), _patched(parameters, "draw", draw):
        yield


@_fault(
    "pp-tied-gradient-missing",
    "first and last stage do not add up their gradients of the tied embedding",
    "NVIDIA/Megatron-LM issue 844 (wrong gradients of a shared embedding under pipelining)",
    "pp",
)
def _tied_gradient_missing(layout):
    owner = pipeline.PipelineParallelOptimizer
    with _patched(owner, "sum_tied_gradients", lambda self: None):
        yield


@_fault(
    "pp-norm-counts-tied-twice",
    "the gradient norm counts the tied embedding on the first stage and again on the last",
    f"{_NORM}: the same membership question",
    "pp",
)
def _norm_counts_tied(layout):
    with _patched(pipeline.PipelineParallelOptimizer, "copy_of_embedding", None):
        yield
