"""Exercise: a reduce-scatter whose terms travel in bf16 and are summed in fp32 (mp-008)."""

import torch
from torch.nn.functional import pad

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise

RTOL = 1e-6
"""Of the largest sum: additions in fp32, in any order; a rounding to bf16 is 4e-3."""


def my_reduce_scatter(grad, axis):
    raise NotImplementedError("return this rank's share of the sum, in fp32")


def solution(grad, axis):
    import torch

    import picolab as pico

    n = pico.comm.mesh().size(axis)
    whole = torch.nn.functional.pad(grad, (0, -grad.numel() % n)).bfloat16()
    came = pico.comm.all_to_all(whole, axis, "bf16 terms of the gradient")
    return came.view(n, -1).float().sum(0)


def judge(learner, attempt: Attempt) -> None:
    axis = attempt.case.values["axis"]
    mesh = comm.mesh()
    n, me, ranks = mesh.size(axis), mesh.rank(axis), list(mesh.ranks(axis))
    for about, size in attempt.case.values["settings"]:
        attempt.setting(f"{about}, {size} numbers")
        world = range(mesh.size("world"))
        everyones = torch.stack([_drawn(attempt, about, size, rank) for rank in world])
        terms, share = everyones[ranks], -(-size // n)
        given = {"grad": everyones[attempt.rank], "axis": axis}
        got = attempt.call(learner, given)
        expected = _shares(terms.bfloat16().float().sum(0), n)[me]
        attempt.equal(
            "this rank's share", got, expected, rtol=RTOL, mistakes=_known_mistakes(terms, me, n)
        )
        attempt.only("all_to_all")
        attempt.along(axis)
        attempt.budget("all_to_all", count=1, at_least=1, axis=axis)
        most, least = 2 * n * share, 2 * (n - 1) * share
        attempt.budget("all_to_all", payload_bytes=most, least_bytes=least, axis=axis)


def _drawn(attempt: Attempt, about: str, size: int, rank: int) -> torch.Tensor:
    drawn = attempt.tensor(size, dtype=torch.float32)
    if about == "terms that nearly cancel":
        return drawn + (1000.0 if rank % 2 else -1000.0)
    if about == "one rank with large terms":
        return drawn * (1.0 if rank else 300.0)
    if about == "tiny ones":
        return drawn * 1e-30
    drawn[::3] = 0
    return drawn


def _shares(whole: torch.Tensor, n: int) -> torch.Tensor:
    return pad(whole, (0, -len(whole) % n)).view(n, -1).float()


def _known_mistakes(terms: torch.Tensor, me: int, n: int) -> dict:
    def mine(whole: torch.Tensor) -> torch.Tensor:
        return _shares(whole, n)[me]

    rounded = terms.bfloat16()
    exact = rounded.float().sum(0)
    own = rounded.float().clone()
    own[me] = terms[me]
    others = exact - rounded[me].float()
    running = rounded[0]
    for one in rounded[1:]:
        running = running + one
    cut = (terms.view(torch.int32) & -65536).view(torch.float32)
    shares = _shares(exact, n)
    return {
        "its terms were not rounded to bf16: what travels has two bytes a number": mine(
            terms.sum(0)
        ),
        "this rank's own term was not rounded; then the sum depends on who holds the share": mine(
            own.sum(0)
        ),
        "the sum was made in bf16; only what travels is": (
            mine(running), mine(rounded.sum(0)), mine(exact.bfloat16()),
        ),
        "the terms were rounded to fp16, which has another range": lambda: mine(
            terms.half().float().sum(0)
        ),
        "the terms were cut off and not rounded to the nearest": mine(cut.sum(0)),
        "this rank's own term is missing": mine(others),
        "it is divided by the number of ranks; asked for is the sum": (
            mine(exact / n), mine(rounded.float().mean(0)),
        ),
        "it was divided before it was rounded, and asked for is the sum": mine(
            (terms / n).bfloat16().float().sum(0)
        ),
        "it is the share of another rank": tuple(shares[r] for r in range(n) if r != me),
        "it is this rank's own gradient, summed with nobody's": mine(rounded[me]),
        "the parts lie interleaved: a share is a piece without gaps": shares.view(-1, n)[:, me],
    }  # fmt: skip


_SETTINGS = (
    ("normal numbers and zeros", 24),
    ("terms that nearly cancel", 13),
    ("one rank with large terms", 31),
    ("tiny ones", 10),
    ("normal numbers and zeros", 2),
)

EXERCISE = Exercise(
    id="interview.precision.wire",
    goal="Reduce-scatter of gradients along an axis, with half the bytes: what travels are bf16 "
    "numbers, and what is added is fp32. Each rank has a whole gradient and gets its share of the "
    "sum over the ranks of the axis, `sum of fp32(bf16(grad))`: every term is rounded once, to "
    "nearest, also this rank's own, and the sum is not rounded.",
    interface="`my_reduce_scatter(grad, axis)` returns this rank's share, in fp32. `grad` is one "
    "row of N fp32 numbers. Shares are those of the row padded with zeros to a multiple of the "
    "axis's size n, cut into n pieces of equal length, the first to rank 0. You may use "
    "`pico.comm.all_to_all(t, axis, reason)`, which sends the j-th of n equal pieces of t to rank "
    "j and returns what came, piece by piece, and `pico.comm.mesh().size(axis)`.",
    budget="One all-to-all of 2 bytes for each number of the padded row.",
    hints=(
        "A collective that adds does it in the dtype that it is given. Which one only moves?",
        "Everybody's version of my piece has to come to me, in bf16. How many numbers are that, "
        "and in what do I add them?",
        "Pad to a multiple of n, `.bfloat16()`, `all_to_all`, then `.view(n, -1).float().sum(0)`.",
    ),
    stub_function=my_reduce_scatter,
    solution_function=solution,
    why="Moving and adding are taken apart: an all-to-all brings the n versions of a piece to the "
    "rank that keeps it, and that rank adds them in fp32. So each term is off by half a step of "
    "its own, and no partial sum is rounded to bf16: with a ring in bf16 a sum is rounded in every "
    "hop, and what is small beside it is lost. Bytes are those of a bf16 reduce-scatter. The price "
    "is a buffer of n pieces and an addition of one's own.",
    judge=judge,
    cases=(
        Case("dp4", "", {"axis": "dp", "settings": _SETTINGS}),
        Case("dp3", "", {"axis": "dp", "settings": _SETTINGS}),
        Case("dp2tp2", "over dp, which is half of them", {"axis": "dp", "settings": _SETTINGS[:3]}),
    ),
)
