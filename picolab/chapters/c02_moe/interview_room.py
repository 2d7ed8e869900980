"""Exercise: room of experts for a pool of tokens that is spread over ranks (question moe-013)."""

import torch

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_room(asked, limit, axis):
    raise NotImplementedError("return which of the choices are admitted, a mask like asked")


def solution(asked, limit, axis):
    import picolab as pico

    counts = pico.comm.all_gather(asked.sum(0).unsqueeze(0), axis, "rows for each expert")
    before = counts[: pico.comm.mesh().rank(axis)].sum(0)
    return asked & (before + asked.cumsum(0) <= limit)


def judge(learner, attempt: Attempt) -> None:
    axis = attempt.case.values["axis"]
    mesh = comm.mesh()
    n, me = mesh.size(axis), mesh.rank(axis)
    for experts, limit, tokens in attempt.case.values["settings"]:
        attempt.setting(f"{experts} experts, room for {limit}, {tokens} tokens on the ranks")
        everyones = [_drawn(attempt, size, experts) for size in tokens]
        given = {"asked": everyones[me], "limit": limit, "axis": axis}
        got = attempt.call(learner, given)
        attempt.equal(
            "the mask", got, _admitted(everyones, limit)[me],
            mistakes=_known_mistakes(everyones, me, n, limit),
        )  # fmt: skip
        attempt.only("all_gather")
        attempt.along(axis)
        attempt.budget("all_gather", count=1, at_least=1, axis=axis)
        counts = n * experts
        attempt.budget("all_gather", payload_bytes=8 * counts, least_bytes=4 * counts, axis=axis)


def _drawn(attempt: Attempt, tokens: int, experts: int) -> torch.Tensor:
    """Two choices a token; the first experts are liked, and the last nobody's."""
    liked = attempt.tensor(tokens, experts) - torch.arange(experts) / 2
    asked = torch.zeros(tokens, experts, dtype=torch.bool)
    return asked.scatter_(1, liked.topk(2).indices, True)


def _admitted(everyones: list[torch.Tensor], limit: int) -> list[torch.Tensor]:
    pool = torch.cat(everyones)
    return list((pool & (pool.cumsum(0) <= limit)).split([len(one) for one in everyones]))


def _known_mistakes(everyones: list[torch.Tensor], me: int, n: int, limit: int) -> dict:
    mine, counts = everyones[me], torch.stack([one.sum(0) for one in everyones])
    own, zero = mine.cumsum(0), torch.zeros_like(counts[0])
    before, after, total = counts[:me].sum(0), counts[me + 1 :].sum(0), counts.sum(0)
    taken = before.clamp(max=limit)

    def admitted(offset, most=limit):
        return mine & (offset + own <= most)

    turned = _admitted([one.flip(0) for one in everyones], limit)[me].flip(0)
    return {
        "rows of the ranks before are not counted: each rank admits up to the whole limit": (
            admitted(zero)
        ),
        "each rank has a share of the limit; room that one leaves, another may take": (
            admitted(zero, limit // n), admitted(zero, -(-limit // n)),
        ),
        "this rank's own rows are in the offset, and in the running count again": admitted(
            before + counts[me]
        ),
        "the offset is of all ranks; only those before this one stand before its rows": admitted(
            total
        ),
        "rows of the ranks behind come first; the pool begins with rank 0": admitted(after),
        "only the rank just before is counted; all before it are": admitted(
            counts[me - 1] if me else zero
        ),
        "the room is `limit` rows, so row number `limit` is still in": admitted(before, limit - 1),
        "the offset adds up all experts; each expert has its own room": admitted(
            before.sum().expand_as(before)
        ),
        "a rank's rows are admitted together or not at all; the first of them may fit": (
            mine & (before + counts[me] <= limit)
        ),
        "within the rank the last rows come first; the pool is in order": turned,
        "everything is admitted that was asked": mine,
        "the running count goes along the experts of a token; it goes down the tokens of an "
        "expert": mine & (before + mine.cumsum(1) <= limit),
        "it counts tokens, and not the rows that ask for the expert": (
            mine & (sum(map(len, everyones[:me])) + torch.arange(len(mine))[:, None] < limit)
        ),
        "rows beyond the limit are marked, and rows within are not": mine & (taken + own > limit),
    }  # fmt: skip


_SETTINGS = (
    (5, 12, (9, 20, 11, 13)),
    (4, 3, (3, 0, 6, 4)),
    (6, 100, (5, 5, 5, 5)),
    (4, 1, (2, 3, 1, 2)),
)

EXERCISE = Exercise(
    id="interview.moe.room",
    goal="The tokens of a pool lie on the ranks of an axis, one piece after the other, rank 0 "
    "first. Each expert has room for `limit` rows of the whole pool, and admits the first that "
    "ask. Say which of this rank's choices are admitted: all ranks together as one process would.",
    interface="`my_room(asked, limit, axis)` returns a mask like `asked` (T, E), which says which "
    "of this rank's T tokens asks for which expert, and which stays as it is. T differs from rank "
    "to rank, and may be 0. You may use `pico.comm.all_gather(t, axis, reason)`, which returns the "
    "ranks' rows one below the other (all ranks give the same shape), and "
    "`pico.comm.mesh().rank(axis)`.",
    budget="One all-gather: E numbers from each rank, of 8 bytes at most.",
    hints=(
        "One process would count down the tokens, for each expert. What of that count does a rank "
        "not know, and how many numbers are it?",
        "Its running count begins at what all ranks before it asked for. So every rank tells how "
        "many rows it has for each expert; whose tokens they are, nobody needs to know.",
        "`counts = pico.comm.all_gather(asked.sum(0).unsqueeze(0), axis, ...)`, "
        "`before = counts[:rank].sum(0)`, and `asked & (before + asked.cumsum(0) <= limit)`.",
    ),
    stub_function=my_room,
    solution_function=solution,
    why="A running count over a concatenation is the running count of the piece plus the totals of "
    "the pieces before it (an exclusive scan over ranks). Totals of what was asked are enough: "
    "they differ from what was admitted only beyond the limit, where nothing is admitted any more. "
    "E numbers a rank travel, however many tokens there are. A limit of limit/n on each rank needs "
    "no exchange and is another rule: it drops rows on one rank while room on another stays empty, "
    "and results depend on the layout.",
    judge=judge,
    cases=(
        Case("dp4", "", {"axis": "dp", "settings": _SETTINGS}),
        Case("cp2", "", {"axis": "cp", "settings": ((4, 5, (6, 6)), (3, 2, (0, 3)))}),
        Case("dp3", "", {"axis": "dp", "settings": ((5, 4, (7, 1, 4)),)}),
        Case(
            "dp2tp2",
            "over dp, which is half of them",
            {"axis": "dp", "settings": ((4, 4, (3, 5)),)},
        ),
    ),
)
