"""Exercise: one gradient norm of a model that tp and pp have taken apart (chapter 1, section 5)."""

import math

import torch

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_grad_norm(gradients):
    raise NotImplementedError(f"sum the squares of {[kind for _, kind in gradients]}")


def solution(gradients):
    import torch

    import picolab as pico

    shards, replicas = torch.zeros(2, dtype=torch.float64)
    for gradient, kind in gradients:
        square = gradient.double().square().sum()
        if kind == "shard":
            shards += square
        elif kind == "replica":
            replicas += square
    pico.comm.all_reduce(shards, "tp", "tp: gradient norm")
    total = shards + replicas
    pico.comm.all_reduce(total, "pp", "pp: gradient norm")
    return total.sqrt()


def judge(learner, attempt: Attempt) -> None:
    mesh = comm.mesh()
    whole = _draw(attempt, mesh.size("pp"))
    mine = _held_by(whole, mesh.rank("pp"), mesh.rank("tp"), mesh.size("tp"))
    norm = attempt.call(learner, {"gradients": mine})
    attempt.only("all_reduce")
    attempt.along("tp", "pp")
    _is_the_norm(attempt, norm, _Squares(whole, mesh))
    for axis in (axis for axis in ("tp", "pp") if mesh.size(axis) > 1):
        attempt.budget("all_reduce", axis=axis, count=1, at_least=1)
        attempt.budget("all_reduce", axis=axis, payload_bytes=8, least_bytes=8)


def _draw(attempt: Attempt, stages: int) -> list[list[tuple[torch.Tensor, str]]]:
    """For each stage its gradients as one rank would hold them, before tp cuts the shards."""
    values = attempt.case.values

    def numbers(*shape):
        return (attempt.tensor(*shape) * values.get("scale", 1.0)).to(values["dtype"])

    embedding = numbers(7, 5)
    whole = []
    for stage in range(stages):
        held = [(embedding, "shard")] if stage == 0 else []
        held += [(numbers(4 + stage, 5), "shard"), (numbers(5), "replica")]
        held += [(numbers(1, 3), "shard")]  # nothing of it is on tp rank 1
        if stage == stages - 1:
            held += [(numbers(5), "replica")]
            held += [(embedding, "tied copy")] if stages > 1 else []
        whole.append([] if stage in values.get("frozen", ()) else held)
    return whole


def _held_by(whole: list, stage: int, tp_rank: int, tp: int) -> list[tuple[torch.Tensor, str]]:
    return [
        (gradient if kind == "replica" else gradient.tensor_split(tp)[tp_rank], kind)
        for gradient, kind in whole[stage]
    ]


class _Squares:
    """Sums of squares as fp64, of everything, so that right and wrong norms can be put together."""

    def __init__(self, whole: list, mesh: comm.Mesh):
        self.dp, self.tp, stages = mesh.size("dp"), mesh.size("tp"), range(len(whole))
        self.stage, self.tp_rank = mesh.rank("pp"), mesh.rank("tp")

        def sum_of(kind, stage, tp_rank):
            held = _held_by(whole, stage, tp_rank, self.tp)
            parts = [g.double().square().sum() for g, its_kind in held if its_kind == kind]
            return sum(parts, torch.zeros((), dtype=torch.float64))

        def table(kind):  # [stage][tp rank]
            rows = [[sum_of(kind, stage, t) for t in range(self.tp)] for stage in stages]
            return torch.tensor(rows, dtype=torch.float64)

        self.shards, self.tied = table("shard"), table("tied copy")
        self.replicas = table("replica")[:, 0]  # [stage]: the same on every rank of tp
        self.held = self.shards + self.tied + self.replicas[:, None]
        self.right = self.shards.sum() + self.replicas.sum()
        own = [g.double() for g, _ in _held_by(whole, self.stage, self.tp_rank, self.tp)]
        every = [g.double() for stage in whole for g, kind in stage if kind != "tied copy"]
        pieces = [
            g.double()
            for stage in stages
            for t in range(self.tp)
            for g, kind in _held_by(whole, stage, t, self.tp)
            if kind == "shard" or (kind == "replica" and t == 0)
        ]
        self.norms = [
            sum((g.norm() for g in some), torch.zeros((), dtype=torch.float64))
            for some in (own, every, pieces)
        ]
        self.absolute = sum((g.abs().sum() for g in every), torch.zeros((), dtype=torch.float64))
        self.largest = tuple(
            max((g.abs().max() for g in some if g.numel()), default=torch.zeros(()))
            for some in (own, every)
        )

    def known_mistakes(self) -> dict[str, tuple[torch.Tensor, ...]]:
        """What the learner is told -> the norms by which the mistake is recognised."""
        all_shards, all_replicas = self.shards.sum(), self.replicas.sum()
        counted = self.shards + self.replicas[:, None]
        stage, tp_rank = self.stage, self.tp_rank
        squares = {
            "it is the norm of what this rank holds; the other ranks' squares are missing": (
                counted[stage, tp_rank],
                self.held[stage, tp_rank],
            ),
            "squares of replicas are in it once for each rank of tp; all of them hold the same": (
                all_shards + self.tp * all_replicas,
            ),
            "the embedding is in it twice; its tied copy is no parameter of its own": (
                self.right + self.tied.sum(),
            ),
            "all of it is counted once for each rank of dp; they hold the same gradients": (
                self.dp * self.right,
            ),
            "it is this stage's norm; the other stages' squares are missing": (
                self.shards[stage].sum() + self.replicas[stage],
            ),
            "of the shards only those of this rank of tp are in it": (
                self.shards[:, tp_rank].sum() + all_replicas,
            ),
            "squares of shards are averaged over tp; each rank of tp holds other rows": (
                all_shards / self.tp + all_replicas,
            ),
            "the replicas are missing": (all_shards,),
            "squares of replicas are in it in part only: divided by another number than tp has "
            "ranks": tuple(
                all_shards + self.tp * all_replicas / n for n in (2, 3, 4) if n != self.tp
            ),
            "it is the mean over the stages; stages hold other layers": (
                self.right / len(self.shards),
            ),
        }
        stages = self.shards.sum(1) + self.replicas
        return {says: tuple(w.sqrt() for w in wrong) for says, wrong in squares.items()} | {
            "it is the square of the norm; the root is missing": (self.right,),
            "norms are added up in it; what adds up is their squares": (
                counted.sqrt().sum(),
                self.held.sqrt().sum(),
                stages.sqrt().sum(),
                *self.norms,
            ),
            "absolute values are added up in it; what adds up is squares": (self.absolute,),
            "it is the largest number, and asked for is the root of a sum of squares": self.largest,
        }


def _is_the_norm(attempt: Attempt, norm, squares: _Squares) -> None:
    right = squares.right.sqrt()
    if isinstance(norm, int | float):
        norm = torch.tensor(norm, dtype=torch.float64)
    if isinstance(norm, torch.Tensor) and norm.numel() == 1:
        norm = norm.detach().double().reshape(())
        off = ((norm - right).abs() / right.clamp(min=1e-300)).item()
        if not math.isfinite(norm) and attempt.case.values["dtype"] == torch.float16:
            attempt.wrong(
                f"the norm is {norm.item()}: the square of 300 is more than an fp16 can hold "
                "(65504); go to fp64 before you square"
            )
            return
        if norm == 0 and right > 0 and attempt.case.values["dtype"] == torch.float32:
            attempt.wrong(
                "the norm is 0: the square of 1e-30 is less than an fp32 can hold (1e-45); go to "
                "fp64 before you square"
            )
            return
        if 1e-10 < off <= 1e-5:
            attempt.wrong(
                f"the norm is off by {off:.1g} of itself: somewhere the sum is kept in fp32, "
                "which a new tensor is unless you give it a dtype, or an epsilon was added"
            )
            return
    attempt.equal("the norm", norm, right, mistakes=squares.known_mistakes())


EXERCISE = Exercise(
    id="4d.norm.global",
    goal="Return the norm of the whole model's gradient, the same on every rank: the root of the "
    "sum of the squares of all its numbers, each counted once, on however many ranks it is held. "
    "(Clipping divides by it, so a rank with another norm would train another model.)",
    interface="`my_grad_norm(gradients)`: what this rank holds, as a list of pairs "
    "(tensor, kind). Return a float or a tensor of one number. The kinds:\n\n"
    '- `"shard"`: this tp rank\'s part of a matrix, perhaps an empty one.\n'
    '- `"replica"`: a norm\'s weight, whole on every rank of tp.\n'
    '- `"tied copy"`: with tied embeddings the last stage holds the embedding\'s gradient once '
    "more; the first stage holds the same numbers as a shard.\n\n"
    "With pp each stage has its own layers, perhaps none that train: then its list is empty. Over "
    "dp all gradients are summed already. They may be fp16 or fp32, tiny or 0: sum their squares "
    "in fp64. You may use "
    'only `pico.comm.all_reduce(t, axis, reason)` over `"tp"` and `"pp"`: t becomes the sum, and '
    "an axis of one rank changes nothing.",
    budget="One all-reduce over tp and one over pp, each of one fp64 number (8 bytes).",
    hints=(
        "For each kind, ask on how many ranks the same number is held, along tp, pp and dp. Where "
        "it is held more than once, who may count it?",
        "Sum over tp what is cut over tp, and only that. When do the replicas come in, so that "
        "one all-reduce over pp is enough for both? And every rank must come to both all-reduces, "
        "also one that has nothing to add.",
        "Two fp64 scalars, `shards` and `replicas`. All-reduce `shards` over tp; then "
        "`total = shards + replicas`, all-reduce it over pp, and only then take the root.",
    ),
    stub_function=my_grad_norm,
    solution_function=solution,
    why="Squares add up over disjoint parts, norms do not; so each rank brings the squares of what "
    "nobody else brings. Shards are disjoint over tp. Replicas are not: they join after the sum "
    "over tp, when all ranks of tp hold the same total. Stages are disjoint but for the tied copy, "
    "which is left out. Ranks of dp hold the same sums, so nothing travels there. A norm that is "
    "too large breaks nothing: clipping acts where it should not, and no error says so. "
    "Megatron-LM decides all this per parameter too: a gradient is counted if it is not a tied "
    "copy, and on one rank of tp only if it is not split.",
    judge=judge,
    cases=(
        Case("tp2", "shards and replicas", {"dtype": torch.float64}),
        Case("dp2tp2", "two replicas of the model", {"dtype": torch.float64}),
        Case("tp2pp2", "two stages and tied embeddings", {"dtype": torch.float64}),
        Case("pp2", "all of the last stage is frozen", {"dtype": torch.float64, "frozen": (1,)}),
        Case("tp2", "fp16 gradients of about 300", {"dtype": torch.float16, "scale": 300.0}),
        Case("tp3", "fp32 gradients of about 1e-30", {"dtype": torch.float32, "scale": 1e-30}),
        Case("tp2pp3", "all gradients are 0", {"dtype": torch.float64, "scale": 0.0}),
    ),
    timeout=5.0,
)
