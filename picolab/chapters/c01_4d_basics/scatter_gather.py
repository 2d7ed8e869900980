"""Exercise: an all-reduce in two halves, with an update between them (chapter 1, section 2)."""

import torch
from torch.nn.functional import pad

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_all_reduce(x, axis, update):
    import picolab as pico

    n = pico.comm.mesh().size(axis)
    raise NotImplementedError(f"cut the sum of {x.numel()} numbers into {n} shares")


def solution(x, axis, update):
    import torch

    import picolab as pico

    n = pico.comm.mesh().size(axis)
    padded = torch.nn.functional.pad(x.reshape(-1), (0, -x.numel() % n))  # zeros behind
    mine = pico.comm.reduce_scatter(padded, axis, "my share of the sum")
    whole = pico.comm.all_gather(update(mine), axis, "everybody's updated share")
    return whole[: x.numel()].view(x.shape)


def judge(learner, attempt: Attempt) -> None:
    axis, shape = attempt.case.values["axis"], attempt.case.values["shape"]
    mesh = comm.mesh()
    n = mesh.size(axis)
    everyones = attempt.tensor(mesh.size("world"), *shape)
    everyones.view(mesh.size("world"), -1)[:, ::3] = 0  # as gradients have them
    x = everyones[attempt.rank]
    parts = everyones[list(mesh.ranks(axis))]
    seen = []

    def update(shard):
        seen.append(shard.numel())
        return _step(shard)

    y = attempt.call(learner, {"x": x, "axis": axis, "update": update})
    attempt.only("reduce_scatter", "all_gather")
    attempt.along(axis)
    mistakes = _known_mistakes(parts, x, n)
    attempt.equal("the result", y, _step(parts.sum(0)), mistakes=mistakes)
    share = -(-x.numel() // n)
    for op in ("reduce_scatter", "all_gather"):
        attempt.budget(op, count=1, at_least=1)
        attempt.budget(
            op,
            payload_bytes=n * share * x.element_size(),
            least_bytes=x.numel() * x.element_size(),
        )
    own = min(max(x.numel() - mesh.rank(axis) * share, 0), share)
    if sum(seen) < own:
        attempt.wrong(
            f"`update` was given {sum(seen)} numbers on this rank, and its share of the sum has "
            f"{own}"
        )
    if sum(seen) > share:
        attempt.wrong(
            f"`update` was given {sum(seen)} numbers on this rank, and a share of the sum has "
            f"{share}: update your share alone, before the shares come together"
        )


def _step(total: torch.Tensor) -> torch.Tensor:
    """An update that is not linear: done before the sum, it gives something else."""
    return total - 0.1 * total / (total.abs() + 0.5)


def _known_mistakes(parts: torch.Tensor, x: torch.Tensor, n: int) -> dict[str, torch.Tensor]:
    total = parts.sum(0)
    mistakes = {
        "it is the sum itself; use what `update` returns (it changes nothing in place)": total,
        "it is the update of the mean; asked for is that of the sum": _step(parts.mean(0)),
        "it is n times the update of the mean, and the update is not linear": (
            n * _step(parts.mean(0))
        ),
        "it is updated twice": _step(_step(total)),
        "each rank updated its own x, and then these were summed; the update of a sum is another "
        "thing than the sum of updates": _step(parts).sum(0),
        "it is the update of this rank's own x; nothing was summed": _step(x),
    }
    flat = _step(total).reshape(-1)
    share = -(-x.numel() // n)
    mine = torch.zeros_like(flat)
    me = [torch.equal(part, x) for part in parts].index(True)
    mine[me * share : (me + 1) * share] = flat[me * share : (me + 1) * share]
    mistakes["only this rank's share is in it; the other ranks have the rest"] = mine.view(x.shape)
    zeros = -x.numel() % n
    dealt = pad(flat, (0, zeros)).view(-1, n).T.reshape(-1)[: x.numel()]
    says = "the shares come together interleaved: they belong one behind the other"
    mistakes[says] = dealt.view(x.shape)
    if zeros:
        moved = pad(_step(total).reshape(-1), (zeros, 0))[: x.numel()].view(x.shape)
        says = f"all numbers are moved by {zeros}; zeros belong behind x, where they are cut off"
        mistakes[says] = moved
    return mistakes


EXERCISE = Exercise(
    id="4d.collectives.scatter-gather",
    goal="Return `update(sum of all ranks' x)`, the same on every rank of the axis. No rank may "
    "update more than its own share of the sum, 1/n of it: what others update, it gets from them.",
    interface="`my_all_reduce(x, axis, update)`: x a tensor of any shape, whose size n need not "
    "divide; it stays as it is, and the result has its shape. `update(t)` returns a new tensor of "
    "t's shape, each number made from the one at its place (so zeros that you add change no other "
    "number). You may use only `pico.comm.reduce_scatter(t, axis, reason)`, which returns this "
    "rank's n-th part of the sum of all t (n divides its rows), and "
    "`pico.comm.all_gather(t, axis, reason)`, which returns all ranks' t one behind the other.",
    budget="One reduce-scatter and one all-gather, each of a tensor of x's size, rounded up to a "
    "multiple of n. `update` sees one share a rank.",
    hints=(
        "A reduce-scatter leaves each rank with a part of the sum, and an all-gather brings the "
        "parts together. Which of the two needs a size that n divides, and where is the moment at "
        "which this rank has its share and no more?",
        "Make x flat and put zeros behind it until n divides the size: n-1 zeros at most. After "
        "the all-gather, cut them off and give the result x's shape.",
        "`torch.nn.functional.pad(x.reshape(-1), (0, -x.numel() % n))` is the padded tensor; "
        "`update(...)` goes round the result of the reduce-scatter.",
    ),
    stub_function=my_all_reduce,
    solution_function=solution,
    why="Half of an all-reduce's bytes, (n-1)/n of x, bring each rank its share of the sum; the "
    "other half spread the shares. So the two cost what one all-reduce costs, and there is a "
    "moment between them at which each number of the sum is on one rank only. Put the optimizer "
    "there and each rank updates 1/n of the parameters and keeps 1/n of AdamW's moments, at no "
    "extra traffic: that is stage 1 of ZeRO (arXiv 1910.02054).",
    judge=judge,
    cases=(
        Case("dp2", "x of 3 x 5", {"axis": "dp", "shape": (3, 5)}),
        Case("dp4", "8 numbers, which 4 divides", {"axis": "dp", "shape": (8,)}),
        Case("dp4", "3 numbers: one share is all padding", {"axis": "dp", "shape": (3,)}),
        Case("dp3", "2 x 2 x 5 numbers", {"axis": "dp", "shape": (2, 2, 5)}),
        Case("dp2tp2", "over tp, which is half of them", {"axis": "tp", "shape": (7,)}),
    ),
)
