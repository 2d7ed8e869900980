"""Exercise: gradients under hybrid sharding, scattered in a group and summed over its replicas
(question 3d-007).
"""

import torch
from torch.nn.functional import pad

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_sync(grad, shard_axis, replica_axis):
    raise NotImplementedError("return this rank's shard of the sum over all ranks")


def solution(grad, shard_axis, replica_axis):
    import torch

    import picolab as pico

    n = pico.comm.mesh().size(shard_axis)
    whole = torch.nn.functional.pad(grad, (0, -grad.numel() % n))
    mine = pico.comm.reduce_scatter(whole, shard_axis, "shard of the group's sum")
    return pico.comm.all_reduce(mine, replica_axis, "the same shard, over the replicas")


def judge(learner, attempt: Attempt) -> None:
    inside, outside = attempt.case.values["shard"], attempt.case.values["replica"]
    mesh = comm.mesh()
    s, d, me = mesh.size(inside), mesh.size(outside), mesh.rank(inside)
    for size in attempt.case.values["sizes"]:
        attempt.setting(f"{size} numbers")
        everyones = attempt.tensor(mesh.size("world"), size)
        everyones[:, ::3] = 0  # as gradients have them
        everyones[0, :1] = 1e-30
        mine = everyones[attempt.rank]
        share = -(-size // s)
        got = attempt.call(learner, {"grad": mine, "shard": inside, "replica": outside})
        attempt.only("reduce_scatter", "all_reduce")
        attempt.along(inside, outside)
        expected = _shards(everyones.sum(0), s)[me]
        attempt.equal("the shard", got, expected, mistakes=_known_mistakes(attempt, everyones, s))
        _budgets(attempt, inside, outside, s, share, d)


def _budgets(attempt: Attempt, inside: str, outside: str, s: int, share: int, d: int) -> None:
    whole, shard = (s > 1) * s * share * 8, (d > 1) * share * 8
    attempt.budget("reduce_scatter", axis=outside, count=0)
    attempt.budget("all_reduce", axis=inside, count=0)
    attempt.budget("reduce_scatter", axis=inside, count=int(s > 1), at_least=1)
    attempt.budget("all_reduce", axis=outside, count=int(d > 1), at_least=1)
    attempt.budget("reduce_scatter", axis=inside, payload_bytes=whole, least_bytes=whole)
    attempt.budget("all_reduce", axis=outside, payload_bytes=shard, least_bytes=shard)


def _shards(whole: torch.Tensor, s: int) -> torch.Tensor:
    """(s, share): of each rank of the shard group, with zeros behind."""
    return pad(whole, (0, -whole.numel() % s)).view(s, -1)


def _known_mistakes(attempt: Attempt, everyones: torch.Tensor, s: int) -> dict:
    mesh, values = comm.mesh(), attempt.case.values
    inside, outside = values["shard"], values["replica"]
    me, other = mesh.rank(inside), mesh.rank(outside)
    group = everyones[list(mesh.ranks(inside))].sum(0)
    replicas = everyones[list(mesh.ranks(outside))].sum(0)
    total = everyones.sum(0)
    alike = {
        "it is the sum over the shard group; its replicas saw other tokens, and their sum is "
        "missing": group,
        "it is summed over the replicas only; the other ranks of the shard group saw other "
        "tokens": replicas,
        "it is this rank's own part: nothing was summed": everyones[attempt.rank],
        "it is the mean over all ranks; asked for is the sum": everyones.mean(0),
        "the shard group's sum is in it once for each of its ranks: was it summed twice along the "
        "same axis?": s * total,
    }
    found = {says: _shards(numbers, s)[me] for says, numbers in alike.items()}
    mean_over_one = (total / s, total / mesh.size(outside))
    found["it is divided by the ranks of one axis; asked for is the sum"] = tuple(
        _shards(mean, s)[me] for mean in mean_over_one
    )
    if mesh.size(outside) > 1 and other != me and other < s:
        found["it is the shard of another rank: a rank's place is that along the shard axis"] = (
            _shards(total, s)[other]
        )
    dealt = pad(total, (0, -total.numel() % s)).view(-1, s).T[me]
    found["numbers were dealt out in turn; shards are contiguous"] = dealt
    if total.numel() % s:
        front = pad(total, (-total.numel() % s, 0)).view(s, -1)[me]
        found["zeros stand in front; they belong behind"] = front
    return found


_SIZES = (12, 7, 1, 30)

EXERCISE = Exercise(
    id="interview.3d.hybrid-sync",
    goal="Parameters are sharded over the ranks of `shard_axis`, and the shard group is repeated "
    "along `replica_axis`. Every rank has a whole gradient of its own tokens. Return this rank's "
    "shard of the sum over *all* ranks; as little as possible crosses the replica axis.",
    interface="`my_sync(grad, shard_axis, replica_axis)`: grad (size,) stays as it is. A shard is "
    "the piece in the place of this rank along the shard axis: of the flat gradient, filled up "
    "with zeros *behind* until the group's s ranks divide it, ceil(size / s) numbers, zeros "
    "included. You may use `pico.comm.reduce_scatter(t, axis, reason)`, which returns this rank's "
    "part of the sum along the axis (its ranks divide t's rows), and `pico.comm.all_reduce(t, "
    "axis, reason)`; along an axis of one rank both return what they get.",
    budget="Over the shard axis one reduce-scatter of the gradient, rounded up; over the replica "
    "axis one all-reduce of a shard. Nothing else.",
    hints=(
        "A sum over all ranks is a sum over groups of sums in a group. Which of the two sums can "
        "be over something smaller, and which one should?",
        "First the reduce-scatter: then each rank has 1/s of its group's sum. Ranks in the same "
        "place of different groups have the same part of it.",
        "Pad, `mine = pico.comm.reduce_scatter(padded, shard_axis, ...)`, and then an "
        "`all_reduce(mine, replica_axis, ...)`.",
    ),
    stub_function=my_sync,
    solution_function=solution,
    why="Sums commute, so the order is free, and costs decide: after the scatter a rank has 1/s of "
    "the gradient left to sum over the replicas, which is what goes between nodes. The other way "
    "round the whole gradient would go there, s times as much. A group of ranks with the same "
    "place carries one shard each, so that the cards of a node work side by side. It is the "
    "hierarchical all-reduce without its last part, which the next forward's gathers do, with the "
    "optimizer in the middle (arXiv 2304.11277).",
    judge=judge,
    cases=(
        Case("dp2tp2", "", {"shard": "tp", "replica": "dp", "sizes": _SIZES}),
        Case("dp2tp2", "the axes exchanged", {"shard": "dp", "replica": "tp", "sizes": (7, 9)}),
        Case("tp3", "one replica", {"shard": "tp", "replica": "dp", "sizes": (7,)}),
        Case("dp3", "shards of one rank", {"shard": "tp", "replica": "dp", "sizes": (5,)}),
        Case("dp2pp2", "over pp", {"shard": "pp", "replica": "dp", "sizes": (5,)}),
    ),
)
