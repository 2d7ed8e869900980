"""Faults of the catalogue that need ZeRO: shards, and what keeps them and the wholes together."""

from contextlib import contextmanager

from picolab import comm
from picolab.debug.faults import fault, patched, treated
from picolab.parallel import zero, zero_comm

_FOUND = "no public report; found by trying it on this oracle"


def _scattered(before):
    """comm.reduce_scatter, of what `before` makes of a gradient bucket: a tensor to scatter, or
    None to keep this rank's own part as it is."""
    real = comm.reduce_scatter

    def reduce_scatter(x, axis, reason, dim=0, op="sum", async_op=False):
        if reason != "zero: gradient bucket":
            return real(x, axis, reason, dim=dim, op=op, async_op=async_op)
        mesh = comm.mesh()
        changed = before(x, mesh.size(axis))
        if changed is None:
            return comm.Pending(None, x.chunk(mesh.size(axis))[mesh.rank(axis)], 0.0, ())
        return real(changed, axis, reason, async_op=async_op)

    return patched(comm, "reduce_scatter", reduce_scatter)


@fault(
    "zero-gradients-missing",
    "each rank keeps its rows of its own gradient, and nobody sums",
    _FOUND,
    "zero",
)
def _gradients_missing(layout):
    with _scattered(lambda x, n: None):
        yield


@fault(
    "zero-gradients-averaged",
    "the reduce-scatter of gradients averages, where the loss was divided by the global count",
    "torch's fully_shard averages by default, which is right for a mean over each replica's own "
    "tokens only",
    "zero",
)
def _gradients_averaged(layout):
    with _scattered(lambda x, n: x / n):
        yield


@fault(
    "zero-every-micro-batch",
    "gradients are summed over the ranks after every micro-batch, earlier sums included",
    "pytorch/torchtitan issue 1733 (accumulated gradients are rescaled again and again)",
    "zero",
)
def _every_micro_batch(layout):
    owner = zero.ZeroOptimizer
    real = owner.no_sync

    @contextmanager
    def no_sync(self):
        with real(self):
            yield
        for of in self.sharded:
            if of.whole.grad is not None:
                comm.all_reduce(of.whole.grad, self.axis, "zero: gradient bucket")

    with patched(owner, "no_sync", no_sync):
        yield


@fault(
    "zero-border-off-by-one",
    "every rank but the first takes gradients that begin a row before its own rows",
    _FOUND,
    "zero",
)
def _border_off_by_one(layout):
    def rows(self, tensor, index):
        start, stop = self.ends[index], self.ends[index + 1]
        return tensor[start - 1 : stop - 1] if index else tensor[start:stop]

    with patched(zero_comm.Sharded, "rows", rows):
        yield


@fault(
    "zero-parameters-missing",
    "after the step nobody fetches the rows that others have stepped: they stay what they were",
    _FOUND,
    "zero below 3",
)
def _parameters_missing(layout):
    with patched(zero.ZeroOptimizer, "after_step", lambda self: None):
        yield


@fault(
    "zero-norm-missing",
    "each rank clips by the norm of its own shards",
    "NVIDIA/Megatron-LM PRs 5916 and 6080 (gradient norm under-counted)",
    "zero",
)
def _norm_missing(layout):
    reason = f"{layout.shard_axis}: gradient norm"
    with patched(comm, "all_reduce", treated(reason, "missing")):
        yield


@fault(
    "zero-norm-counts-groups",
    "squares of shards are summed over all replicas, where groups hold the same shards",
    _FOUND,
    "zero with shard",
)
def _norm_counts_groups(layout):
    real = comm.all_reduce

    def all_reduce(x, axis, reason, op="sum", async_op=False):
        found = real(x, axis, reason, op=op, async_op=async_op)
        if reason == f"{layout.shard_axis}: gradient norm":
            real(x, "replica", "replica: gradient norm")
        return found

    with patched(comm, "all_reduce", all_reduce):
        yield
