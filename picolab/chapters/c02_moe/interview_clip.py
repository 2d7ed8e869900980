"""Exercise: clipping by the global norm where experts lie on other ranks (question moe-022)."""

import torch

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise

LIMIT = 1.0


def my_clip(dense, experts, axis, limit):
    raise NotImplementedError("scale all gradients in place and return the norm")


def solution(dense, experts, axis, limit):
    import torch

    import picolab as pico

    zero = torch.zeros(1, dtype=torch.float64)
    apart = sum((grad.double().square().sum() for grad in experts), zero)
    apart = pico.comm.all_reduce(apart, axis, "norm: squares of experts")
    square = sum((grad.double().square().sum() for grad in dense), apart)
    norm = square.sqrt().squeeze()
    if norm > limit:
        for grad in (*dense, *experts):
            grad.mul_(limit / norm)
    return norm


def judge(learner, attempt: Attempt) -> None:
    axis = attempt.case.values["axis"]
    mesh = comm.mesh()
    n, me = mesh.size(axis), mesh.rank(axis)
    for scale, idle in attempt.case.values["settings"]:
        rest = ", a rank whose experts had no rows" if idle else ""
        attempt.setting(f"gradients of the size {scale:g}{rest}")
        dense = [scale * attempt.tensor(3, 4), scale * attempt.tensor(5)]
        everyones = [
            [scale * attempt.tensor(2, 3), 2 * scale * attempt.tensor(2)] for _ in range(n)
        ]
        if idle:
            everyones[-1] = [torch.zeros_like(grad) for grad in everyones[-1]]
        given = {
            "dense": [grad.clone() for grad in dense],
            "experts": [grad.clone() for grad in everyones[me]],
            "axis": axis, "limit": LIMIT,
        }  # fmt: skip
        got = attempt.call(learner, given, may_change=("dense", "experts"))
        own, flat = _flat(everyones[me]), _flat(dense)
        norm = (flat.square().sum() + sum(_flat(one).square().sum() for one in everyones)).sqrt()
        factor = LIMIT / norm if norm > LIMIT else torch.ones(())
        norms, factors = _known_mistakes(attempt, flat, [_flat(one) for one in everyones], me, norm)
        right = attempt.equal("the norm", got, norm, mistakes=norms)
        if right:
            for name, grads, before in (
                ("dense", given["dense"], flat),
                ("experts", given["experts"], own),
            ):
                attempt.equal(
                    f"what became of {name}", _flat(grads), factor * before,
                    mistakes={says: one[name] * before for says, one in factors.items()},
                )  # fmt: skip
        attempt.only("all_reduce")
        attempt.along(axis)
        attempt.budget("all_reduce", count=1, at_least=1, axis=axis)
        attempt.budget("all_reduce", payload_bytes=8, least_bytes=4, axis=axis)


def _flat(grads: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([grad.reshape(-1) for grad in grads])


def _known_mistakes(attempt: Attempt, dense, everyones, me: int, norm) -> tuple[dict, dict]:
    n, world = len(everyones), comm.mesh().size("world")
    one, apart = dense.square().sum(), torch.stack([e.square().sum() for e in everyones])
    whole = apart.sum()

    def clip(size) -> torch.Tensor:
        return LIMIT / size if size > LIMIT else torch.ones(())

    norms = {
        "the experts' squares are this rank's own; those of the other ranks of the axis are "
        "missing, and every rank has another norm": (one + apart[me]).sqrt(),
        "the experts are not in it": one.sqrt(),
        "only experts are in it": (whole.sqrt(), apart[me].sqrt()),
        "what is whole on each rank was counted once for every rank of the axis": (
            n * one + whole
        ).sqrt(),
        "it was summed over all ranks: what is held several times was counted several times": (
            (world * one + world / n * whole).sqrt(),
            (one + world / n * whole).sqrt(),
        ),
        "norms were added; a norm is the root of a sum of squares, so squares are": (
            one.sqrt() + apart.sqrt().sum(),
            one.sqrt() + whole.sqrt(),
            (one + apart.sqrt().sum() ** 2).sqrt(),
        ),
        "the square was taken for the norm: the root is missing": one + whole,
        "the experts' squares were averaged over the ranks; they are of different experts, so "
        "they are summed": (one + whole / n).sqrt(),
        "it is the factor; asked for is the norm": (
            clip(norm).double(), LIMIT / norm.clamp(min=1e-30),
        ),
        "it is the norm after clipping; asked for is that before": norm.clamp(max=LIMIT),
    }  # fmt: skip
    factors = {
        "nothing was clipped": {"dense": 1, "experts": 1},
        "the two were clipped by norms of their own; the factor is one and the same for all": {
            "dense": clip(one.sqrt()), "experts": clip(whole.sqrt()),
        },
        "experts were clipped by this rank's own norm": {
            "dense": clip(norm), "experts": clip(apart[me].sqrt()),
        },
        "it is scaled up to the limit, although the norm was below": {
            "dense": LIMIT / norm.clamp(min=1e-30), "experts": LIMIT / norm.clamp(min=1e-30),
        },
        "it was scaled twice": {"dense": clip(norm) ** 2, "experts": clip(norm) ** 2},
    }  # fmt: skip
    return norms, factors


_SETTINGS = ((2.0, False), (0.01, False), (1.0, True), (0.0, False))

EXERCISE = Exercise(
    id="interview.moe.clip",
    goal="Clip all gradients by their global norm. Those in `dense` are whole and equal on every "
    "rank; those in `experts` are of this rank's experts, others on each rank of `axis`, and equal "
    "on ranks that hold the same experts. All are summed over tokens already. Scale each *in "
    "place* by the same factor if the norm is above the limit; return the norm before clipping.",
    interface="`my_clip(dense, experts, axis, limit)` returns the norm, a tensor of shape (). "
    "`dense` and `experts` are lists of tensors, in fp64 here, which you change in place. The norm "
    "is that of all gradients of the model, each counted once. You may use "
    "`pico.comm.all_reduce(t, axis, reason)`.",
    budget="One all-reduce of one number, over the axis, on every rank and always.",
    hints=(
        "Which squares does every rank know already, and which are known on one rank of the axis "
        "alone?",
        "Sum the experts' squares over the axis, not over the replicas beside it: these have the "
        "same numbers. Add the dense squares behind the all-reduce, once. Then the root.",
        "`apart = pico.comm.all_reduce(own_squares, axis, ...)`, `norm = (apart + dense_squares)"
        ".sqrt()`, and `grad.mul_(limit / norm)` only `if norm > limit`.",
    ),
    stub_function=my_clip,
    solution_function=solution,
    why="A square norm is a sum over parameters, each counted once: those that are cut along an "
    "axis are summed over it, those that are whole are not, and nothing is summed over replicas. "
    "So the experts' squares travel, one number, and the dense ones join behind. All ranks then "
    "have the same factor. With a local norm each rank would scale what is whole by another "
    "factor: replicas drift apart and nothing says so (Megatron-LM pull request 5916). A rank "
    "whose experts had no rows has zeros, and takes part all the same.",
    judge=judge,
    cases=(
        Case(
            "dp2ep2",
            "",
            {"axis": "ep", "settings": _SETTINGS},
            "a rank whose experts had no rows takes part as well",
        ),
        Case("dp4ep2", "two ranks have the same experts", {"axis": "ep", "settings": _SETTINGS}),
        Case("dp4ep4", "", {"axis": "ep", "settings": ((1.0, True),)}),
        Case("dp3ep3", "", {"axis": "ep", "settings": ((0.7, False),)}),
    ),
)
