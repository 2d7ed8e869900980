"""Exercise: a linear layer of stage 3, whole only while it is used (chapter 3, section 1).

Two layers one after the other, so that freeing can be looked at between forward and backward. The
judge sees each tensor that is made while the learner's code runs (torch's dispatcher) and asks
which of those that are as large as the whole weight still have memory.
"""

import gc
import itertools
import time

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from picolab import comm, costs
from picolab.comm.every_call import EveryCall
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise

LETS_GO_S = 1.0  # a deadline for the judge to say "still held"; right answers need milliseconds


def my_sharded_linear(x, shard, rows, axis):
    import picolab as pico

    n = pico.comm.mesh().size(axis)
    raise NotImplementedError(f"{len(shard)} of {rows} rows are here, the others on {n - 1} ranks")


def solution(x, shard, rows, axis):
    import torch
    from torch.nn.functional import pad

    import picolab as pico

    n = pico.comm.mesh().size(axis)
    counts = [len(part) for part in pico.costs.even_slices(rows, n)]
    most = counts[0]

    def whole(shard):
        line = pad(shard, (0, 0, 0, most - len(shard)))  # as many rows from every rank
        lines = pico.comm.all_gather(line, axis, "zero: rows of a weight").split(most)
        return torch.cat([line[:count] for line, count in zip(lines, counts)])

    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, shard):
            ctx.save_for_backward(x, shard)  # not the whole weight
            return x @ whole(shard).T

        @staticmethod
        def backward(ctx, dy):
            x, shard = ctx.saved_tensors
            dx = dy @ whole(shard)
            dw = dy.flatten(0, -2).T @ x.flatten(0, -2)
            lines = [pad(part, (0, 0, 0, most - len(part))) for part in dw.split(counts)]
            mine = pico.comm.reduce_scatter(torch.cat(lines), axis, "zero: gradient of a weight")
            return dx, mine[: len(shard)]

    return Linear.apply(x, shard)


class _Wholes(TorchDispatchMode):
    """Which storages of so many bytes or more were made, and still have memory."""

    def __init__(self, nbytes: int):
        super().__init__()
        self.nbytes, self._made = nbytes, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, torch.Tensor) and one.untyped_storage().nbytes() >= self.nbytes:
                self._made.append(StorageWeakRef(one.untyped_storage()))
        return out

    def held(self) -> int:
        """Bytes."""
        found = {}
        for made in self._made:
            storage = torch.UntypedStorage._new_with_weak_ptr(made.cdata)
            if storage is not None and storage.nbytes() >= self.nbytes:
                found[storage._cdata] = storage.nbytes()
        return sum(found.values())


def _still_held(wholes: list[_Wholes]) -> int:
    """Bytes; a transport's thread may let go of what it has sent a moment after it has."""
    deadline = time.monotonic() + LETS_GO_S
    gc.collect()
    while (held := sum(seen.held() for seen in wholes)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return held


def judge(learner, attempt: Attempt) -> None:
    values, mesh = attempt.case.values, comm.mesh()
    axis, n, me = values["axis"], mesh.size(values["axis"]), mesh.rank(values["axis"])
    widths = values["widths"]  # of the input, and of each layer's output
    weights = [attempt.tensor(b, a) for a, b in itertools.pairwise(widths)]
    inputs = attempt.tensor(mesh.size("world"), *values["leading"], widths[0])
    inputs[:, ..., ::3] = 0
    shards = []
    for weight in weights:
        part = costs.even_slices(len(weight), n)[me]
        shards.append(weight[part.start : part.stop].clone().requires_grad_())
    x = inputs[attempt.rank].clone().requires_grad_(values.get("needs", True))
    wholes = [_Wholes(weight.nbytes) for weight in weights]
    y = x
    for layer, (weight, shard, seen) in enumerate(zip(weights, shards, wholes)):
        given = {"x": y, "shard": shard, "rows": len(weight), "axis": axis}
        with seen:
            out = attempt.call(learner, given, may_change=("x", "shard"))
        if not attempt.equal(
            f"the output of layer {layer}",
            out,
            (y.detach() @ weight.T),
            mistakes={
                "it is x times this rank's rows alone": y.detach() @ _padded(shard, weight),
                "the weight was rounded on the way, to 2 or 4 bytes": tuple(
                    y.detach() @ weight.to(low).to(weight.dtype).T
                    for low in (torch.bfloat16, torch.float16, torch.float32)
                ),
                "padding was cut off at the end, and lies behind every rank's rows": (
                    y.detach() @ _cut_at_the_end(weight, n).T
                ),
            },
        ):
            return
        if not attempt.require(
            out.requires_grad, "no gradient can flow back through what it returns"
        ):
            return
        y = torch.tanh(out)
    held = _still_held(wholes)
    attempt.require(
        held == 0,
        f"between forward and backward {held:,} bytes of whole weights are still held: what is "
        "saved for backward is the shard, and backward gathers again",
    )
    del out
    before = len(comm.ledger().kept)
    with EveryCall(), wholes[0]:
        y.square().sum().backward()
    attempt.entries += comm.ledger().kept[before:]
    del y, given  # and with them the graph
    attempt.only("all_gather", "reduce_scatter")
    attempt.along(axis)
    _gradients(attempt, weights, shards, inputs, x, mesh.ranks(axis), me, n)
    left = _still_held(wholes[:1])
    attempt.require(
        left == 0, f"after backward {left:,} bytes as large as a whole weight are still held"
    )
    _budgets(attempt, weights, axis, n)


def _padded(shard: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """This rank's rows among zeros, transposed; for the mistake of multiplying by them alone."""
    found = torch.zeros_like(weight)
    found[: len(shard)] = shard.detach()
    return found.T


def _lines(weight: torch.Tensor, n: int) -> torch.Tensor:
    """Every rank's rows, with padding behind them: what travels."""
    parts = [weight[part.start : part.stop] for part in costs.even_slices(len(weight), n)]
    return torch.cat([pad(part, (0, 0, 0, len(parts[0]) - len(part))) for part in parts])


def _cut_at_the_end(weight: torch.Tensor, n: int) -> torch.Tensor:
    return _lines(weight, n)[: len(weight)]


def _dense(weights, x):
    """Gradients of one process for one rank's input: of the weights, and of x; and what those of
    the weights are if tokens are summed first."""
    leaves = [weight.clone().requires_grad_() for weight in weights]
    y = x = x.clone().requires_grad_()
    inputs, outs = [], []
    for leaf in leaves:
        inputs.append(y.detach())
        outs.append(y @ leaf.T)
        outs[-1].retain_grad()
        y = torch.tanh(outs[-1])
    y.square().sum().backward()
    summed = [
        torch.outer(out.grad.flatten(0, -2).sum(0), one.flatten(0, -2).sum(0))
        for out, one in zip(outs, inputs)
    ]
    return [leaf.grad for leaf in leaves], x.grad, summed


def _gradients(attempt: Attempt, weights, shards, inputs, x, ranks, me: int, n: int) -> None:
    each = {rank: _dense(weights, inputs[rank]) for rank in ranks}
    if x.requires_grad:
        if not attempt.require(x.grad is not None, "the gradient of x is None"):
            return
        attempt.equal("the gradient of x", x.grad, each[attempt.rank][1])
    for layer, (weight, shard) in enumerate(zip(weights, shards)):
        part = costs.even_slices(len(weight), n)[me]
        name = f"the gradient of the shard of layer {layer}"
        parts = torch.stack([grads[layer] for grads, *_ in each.values()])
        summed = sum(of[layer] for *_, of in each.values())
        rows = parts[:, part.start : part.stop]
        if not len(part) and shard.grad is None:
            attempt.wrong(f"{name} is None, and should have no rows: this rank has none of them")
            return
        first = (
            "" if layer or x.requires_grad else ": a first layer learns, too, although x does not"
        )
        if not attempt.require(shard.grad is not None, f"{name} is None{first}"):
            return
        own = rows[list(ranks).index(attempt.rank)]
        most = -(-len(weight) // n)
        shifted = pad(parts.sum(0), (0, 0, 0, n * most - len(weight)))[me * most :][: len(part)]
        mistakes = {
            "it is this rank's own: every rank's inputs have used these rows": own,
            "it is the mean over the ranks, and asked for is the sum": rows.mean(0),
            "it is twice the sum: was it added by hand, and returned to autograd too?": 2
            * rows.sum(0),
            "tokens were summed before the product, and dW = dyᵀ x is a sum of products": summed[
                part.start : part.stop
            ],
            "it is of other rows: before it is scattered, every rank's rows are padded, and not "
            "the end": shifted,
        }
        if not attempt.equal(name, shard.grad, rows.sum(0), mistakes=mistakes):
            return


def _budgets(attempt: Attempt, weights, axis: str, n: int) -> None:
    padded = sum(n * -(-len(w) // n) * w.shape[1] * w.element_size() for w in weights)
    exact = sum(w.nbytes for w in weights)
    layers = len(weights)
    for op, times in (("all_gather", 2), ("reduce_scatter", 1)):
        # A first layer's backward has no dx, and may do without the weight.
        spared = (
            weights[:1] if op == "all_gather" and not attempt.case.values.get("needs", 1) else []
        )
        attempt.budget(op, count=times * layers, at_least=times * layers - len(spared))
        least = times * exact - sum(w.nbytes for w in spared)
        attempt.budget(op, payload_bytes=times * padded, least_bytes=least)


EXERCISE = Exercise(
    id="3d.zero.gather",
    goal="A linear layer y = x Wᵀ of ZeRO's stage 3. W exists in rows, some on each rank of the "
    "axis, and is whole only while it is used: gathered for the forward, freed, gathered again for "
    "the backward, freed. Every rank has inputs of its own (data parallel), so the gradient of a "
    "rank's rows is the *sum* over all ranks, and that of x is the rank's own.",
    interface="`my_sharded_linear(x, shard, rows, axis)` returns y, and autograd can go back "
    "through it: afterwards `shard.grad` is there, and `x.grad` if x needs one. x: (..., in). W "
    "has `rows` rows, dealt out as `pico.costs.even_slices(rows, n)` says (a list of ranges, the "
    "first ranks one more; a rank may have none), and `shard` are this rank's, (its rows, in). You "
    "may use `pico.comm.all_gather(t, axis, reason)` and "
    "`pico.comm.reduce_scatter(t, axis, reason)`, which want as many rows from every rank, and a "
    "`torch.autograd.Function` of your own.",
    budget="A layer: two all-gathers and one reduce-scatter of W, rounded up to a multiple of n "
    "rows. Between forward and backward, and after it, nothing as large as W has memory.",
    hints=(
        "autograd saves what a product needs for its backward: after `x @ whole.T` that is the "
        "whole. So the backward has to be yours. What does it need, and what of that is small?",
        "A `torch.autograd.Function` that saves x and the shard. Its backward gathers once more "
        "for dx = dy W, makes dW = dyᵀ x, and gives each rank the sum of its rows. Uneven rows: "
        "pad every rank's to the most that any has, and cut the padding out after gathering.",
        "`line = pad(shard, (0, 0, 0, most - len(shard)))`, then `all_gather(line).split(most)`, "
        "of each its first rows. For the gradient the same the other way: `dw.split(counts)`, each "
        "padded to `most` rows, in one reduce-scatter, and of the result `[: len(shard)]`.",
    ),
    stub_function=my_sharded_linear,
    solution_function=solution,
    why="What lives from forward to backward is what is saved, so save the shard. The second "
    "gather is the price: stage 3 sends half as much again as stage 2, in every micro-batch. "
    "Frameworks do not write a Function for each layer: hooks before and after a module gather and "
    "free, and the saved tensor keeps its identity while its memory is resized to nothing and back "
    "(`pico.source('picolab.parallel.zero_gather')`, FSDP2's `fully_shard`); they also start the "
    "next layer's gather early. The reduce-scatter is where data parallelism hides: dW is of this "
    "rank's inputs, and the sum over ranks comes with the cut.",
    judge=judge,
    cases=(
        Case("dp2", "7 and 5 rows", {"axis": "dp", "widths": (40, 7, 5), "leading": (2,)}),
        Case("dp3", "x of three dims", {"axis": "dp", "widths": (40, 8, 30), "leading": (1, 2)}),
        Case(
            "dp4", "3 rows: a rank has none", {"axis": "dp", "widths": (40, 3, 30), "leading": (2,)}
        ),
        Case("dp2tp2", "over dp", {"axis": "dp", "widths": (24, 9, 12), "leading": (2,)}),
        Case(
            "dp2",
            "the first x needs no gradient",
            {"axis": "dp", "widths": (40, 7, 5), "leading": (2,), "needs": False},
        ),
    ),
    timeout=5.0,
)
