"""Wrong answers to 4d.norm.global, what each author must be told, and right ones."""

import torch

from picolab import comm
from picolab.chapters.c01_4d_basics.global_norm import solution


def _square_sum(gradients, *kinds):
    total = torch.zeros((), dtype=torch.float64)
    for gradient, kind in gradients:
        if kind in kinds:
            total += gradient.double().square().sum()
    return total


def counts_replicas_on_every_rank(gradients):
    total = _square_sum(gradients, "shard", "replica")
    comm.all_reduce(total, "tp", "norm")
    return comm.all_reduce(total, "pp", "norm").sqrt()


def sums_over_the_world(gradients):
    total = _square_sum(gradients, "shard")
    if comm.mesh().rank("tp") == 0:
        total += _square_sum(gradients, "replica")
    return comm.all_reduce(total, "world", "norm").sqrt()


def sums_over_dp_too(gradients):
    total = comm.all_reduce(_square_sum(gradients, "shard"), "tp", "norm")
    total = comm.all_reduce(total + _square_sum(gradients, "replica"), "pp", "norm")
    return comm.all_reduce(total, "dp", "norm").sqrt()


def counts_the_tied_copy(gradients):
    total = comm.all_reduce(_square_sum(gradients, "shard", "tied copy"), "tp", "norm")
    total = total + _square_sum(gradients, "replica")
    return comm.all_reduce(total, "pp", "norm").sqrt()


def adds_norms(gradients):
    norm = _square_sum(gradients, "shard", "replica").sqrt()
    comm.all_reduce(norm, "tp", "norm")
    return comm.all_reduce(norm, "pp", "norm")


def adds_the_stages_norms(gradients):
    total = comm.all_reduce(_square_sum(gradients, "shard"), "tp", "norm")
    norm = (total + _square_sum(gradients, "replica")).sqrt()
    return comm.all_reduce(norm, "pp", "norm")


def takes_torchs_local_norm(gradients):
    return torch.nn.utils.get_total_norm([gradient for gradient, _ in gradients])


def forgets_pp(gradients):
    total = comm.all_reduce(_square_sum(gradients, "shard"), "tp", "norm")
    return (total + _square_sum(gradients, "replica")).sqrt()


def averages_over_tp(gradients):
    total = comm.all_reduce(_square_sum(gradients, "shard", "replica"), "tp", "norm", op="avg")
    return comm.all_reduce(total, "pp", "norm").sqrt()


def forgets_the_root(gradients):
    return solution(gradients).square()


def sums_in_fp32(gradients):
    total = torch.zeros(())
    for gradient, kind in gradients:
        if kind == "shard":
            total += gradient.double().square().sum()
    comm.all_reduce(total, "tp", "norm")
    for gradient, kind in gradients:
        if kind == "replica":
            total += gradient.double().square().sum()
    return comm.all_reduce(total, "pp", "norm").sqrt()


def squares_in_the_gradients_dtype(gradients):
    squares = {"shard": 0.0, "replica": 0.0, "tied copy": 0.0}
    for gradient, kind in gradients:
        squares[kind] += float(gradient.square().sum())
    total = torch.tensor(squares["shard"], dtype=torch.float64)
    total = comm.all_reduce(total, "tp", "norm") + squares["replica"]
    return comm.all_reduce(total, "pp", "norm").sqrt()


def one_all_reduce_a_gradient(gradients):
    total = torch.zeros((), dtype=torch.float64)
    for gradient, kind in gradients:
        square = gradient.double().square().sum()
        if kind == "shard":
            comm.all_reduce(square, "tp", "norm")
        if kind != "tied copy":
            total += square
    return comm.all_reduce(total, "pp", "norm").sqrt()


def leaves_if_there_is_nothing(gradients):
    if not gradients:
        return 0.0
    return solution(gradients)


def gathers_objects(gradients):
    import torch.distributed as dist

    total = _square_sum(gradients, "shard")
    if comm.mesh().rank("tp") == 0:
        total += _square_sum(gradients, "replica")
    totals = [None] * dist.get_world_size()
    dist.all_gather_object(totals, total.item())
    return (sum(totals) / comm.mesh().size("dp")) ** 0.5


def gathers_and_adds(gradients):
    parts = comm.all_gather(_square_sum(gradients, "shard").view(1), "tp", "norm")
    total = parts.sum() + _square_sum(gradients, "replica")
    return comm.all_reduce(total, "pp", "norm").sqrt()


def adds_every_tensors_norm(gradients):
    norm = torch.zeros((), dtype=torch.float64)
    for gradient, kind in gradients:
        if kind == "shard" or (kind == "replica" and comm.mesh().rank("tp") == 0):
            norm += gradient.double().norm()
    comm.all_reduce(norm, "tp", "norm")
    return comm.all_reduce(norm, "pp", "norm")


def takes_the_largest_number(gradients):
    largest = torch.zeros((), dtype=torch.float64)
    for gradient, _ in gradients:
        if gradient.numel():
            largest = torch.maximum(largest, gradient.abs().max().double())
    comm.all_reduce(largest, "tp", "norm", op="max")
    return comm.all_reduce(largest, "pp", "norm", op="max")


def halves_the_replicas(gradients):
    total = _square_sum(gradients, "shard") + _square_sum(gradients, "replica") / 2
    comm.all_reduce(total, "tp", "norm")
    return comm.all_reduce(total, "pp", "norm").sqrt()


def squares_in_fp32(gradients):
    total = torch.zeros((), dtype=torch.float64)
    for gradient, kind in gradients:
        if kind == "shard" or (kind == "replica" and comm.mesh().rank("tp") == 0):
            total += (
                gradient.float().square().sum()
                if gradient.dtype != torch.float64
                else (gradient.square().sum())
            )
    comm.all_reduce(total, "tp", "norm")
    return comm.all_reduce(total, "pp", "norm").sqrt()


def adds_an_epsilon(gradients):
    return solution(gradients) + 1e-6


def averages_over_pp(gradients):
    total = comm.all_reduce(_square_sum(gradients, "shard"), "tp", "norm")
    total = total + _square_sum(gradients, "replica")
    return comm.all_reduce(total, "pp", "norm", op="avg").sqrt()


def forgets_tp(gradients):
    total = _square_sum(gradients, "shard", "replica")
    return comm.all_reduce(total, "pp", "norm").sqrt()


def forgets_the_replicas(gradients):
    total = comm.all_reduce(_square_sum(gradients, "shard"), "tp", "norm")
    return comm.all_reduce(total, "pp", "norm").sqrt()


def stays_away_without_shards(gradients):
    shards = [gradient for gradient, kind in gradients if kind == "shard"]
    total = _square_sum(gradients, "shard")
    if sum(gradient.numel() for gradient in shards) > 15:
        comm.all_reduce(total, "tp", "norm")
    total = total + _square_sum(gradients, "replica")
    return comm.all_reduce(total, "pp", "norm").sqrt()


def sends_two_numbers(gradients):
    both = torch.stack((_square_sum(gradients, "shard"), _square_sum(gradients, "replica")))
    comm.all_reduce(both[:1], "tp", "norm")
    comm.all_reduce(both, "pp", "norm")
    return both.sum().sqrt()


def scales_the_gradients(gradients):
    norm = solution(gradients)
    for gradient, _ in gradients:
        gradient.mul_(0.5)
    return norm


def counts_replicas_on_the_first_rank(gradients):
    total = 0.0
    for gradient, kind in gradients:
        if kind == "shard" or (kind == "replica" and comm.mesh().rank("tp") == 0):
            total += (gradient.to(torch.float64) ** 2).sum().item()
    box = torch.tensor([total], dtype=torch.float64)
    for axis in ("tp", "pp"):
        box = comm.all_reduce(box, axis, "norm")
    return box.item() ** 0.5


def divides_replicas_by_tp(gradients):
    import torch.distributed as dist

    m = comm.mesh()
    total = _square_sum(gradients, "shard") + _square_sum(gradients, "replica") / m.size("tp")
    for axis in ("pp", "tp"):
        if m.size(axis) > 1:
            dist.all_reduce(total, group=m.group(axis))
    return total**0.5


def adds_absolute_values(gradients):
    total = torch.zeros((), dtype=torch.float64)
    for gradient, kind in gradients:
        if kind == "shard" or (kind == "replica" and comm.mesh().rank("tp") == 0):
            total += gradient.double().abs().sum()
    return comm.all_reduce(comm.all_reduce(total, "tp", "norm"), "pp", "norm")


MUTANTS = {
    counts_replicas_on_every_rank: "squares of replicas are in it once for each rank",
    sums_over_the_world: "it communicates over the ranks (0, 1, 2, 3)",
    sums_over_dp_too: "counted once for each rank of dp",
    counts_the_tied_copy: "the embedding is in it twice",
    adds_norms: "what adds up is their squares",
    adds_the_stages_norms: "what adds up is their squares",
    takes_torchs_local_norm: "the other ranks' squares are missing",
    forgets_pp: "the other stages' squares are missing",
    averages_over_tp: "squares of shards are averaged over tp",
    forgets_the_root: "the root is missing",
    sums_in_fp32: "somewhere the sum is kept in fp32",
    squares_in_the_gradients_dtype: "go to fp64 before you square",
    one_all_reduce_a_gradient: "it takes 3 all-reduces, and the budget is 1 over tp",
    leaves_if_there_is_nothing: "rank 1 returned, and rank 0 still waits for it",
    gathers_objects: "it uses `all_gather_object`",
    gathers_and_adds: "it uses all-gathers; allowed are all-reduces",
    adds_every_tensors_norm: "what adds up is their squares",
    adds_absolute_values: "absolute values are added up in it",
    takes_the_largest_number: "it is the largest number",
    halves_the_replicas: "replicas",
    squares_in_fp32: "somewhere the sum is kept in fp32",
    adds_an_epsilon: "or an epsilon was added",
    averages_over_pp: "it is the mean over the stages",
    forgets_tp: "the other ranks' squares are missing",
    forgets_the_replicas: "the replicas are missing",
    stays_away_without_shards: "inside all_reduce over tp",
    sends_two_numbers: "its all-reduces carry 16 B, and the budget is 8 B over pp",
    scales_the_gradients: "it changed its input `gradients`",
}
RIGHT = (counts_replicas_on_the_first_rank, divides_replicas_by_tp)
