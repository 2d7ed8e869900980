"""Exercise: one embedding on two stages of a pipeline (question 4d-034)."""

import torch

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_tie(weight, grad):
    # None and None on the stages in the middle.
    raise NotImplementedError("return weight, grad")


def solution(weight, grad):

    import picolab as pico

    mesh = pico.comm.mesh()
    stage, last = mesh.rank("pp"), mesh.size("pp") - 1
    if weight is None:
        return None, None
    weight, grad = weight.clone(), grad.clone()
    if last > 0:  # on a pipeline of one stage there is one copy, and nothing to tie
        if stage == 0:
            pico.comm.send(weight, last, "pp", "tied: the first stage's values")
        else:
            pico.comm.recv(weight, 0, "pp", "tied: the first stage's values")
        other = last if stage == 0 else 0
        theirs = torch.empty_like(grad)
        pico.comm.exchange(grad, other, theirs, other, "pp", "tied: the other use's gradient")
        grad = grad + theirs
    pico.comm.all_reduce(grad, "dp", "dp: gradient")
    return weight, grad


def judge(learner, attempt: Attempt) -> None:
    mesh, values = comm.mesh(), attempt.case.values
    dp, replica = mesh.size("dp"), mesh.rank("dp")
    stage, last = mesh.rank("pp"), mesh.size("pp") - 1
    shape = (values["vocab"], 3)
    copies = attempt.tensor(2, *shape)  # as the first and the last stage drew them
    parts = attempt.tensor(dp, 2, *shape)  # of each replica: by the look-up, and by the head
    ends = stage in (0, last)
    if last == 0:
        uses, weight = parts.sum(1, keepdim=True), copies[0]
    else:
        uses, weight = parts, copies[0 if stage == 0 else 1]
    use = 0 if stage == 0 else 1
    mine = uses[replica, use] if ends else None
    given = {"weight": weight if ends else None, "grad": mine}
    result = attempt.call(learner, given)
    attempt.only("send", "recv", "all_reduce")
    attempt.along("dp", "pp")
    if ends:
        _compare(attempt, result, copies, uses, replica, use, mine)
    else:
        attempt.require(
            result is None or (isinstance(result, tuple | list) and set(result) == {None}),
            "a stage in the middle has no copy, and should return (None, None)",
        )
    sends = 0 if last == 0 or not ends else 2 if stage == 0 else 1
    table_bytes = copies[0].numel() * copies.element_size() if ends else 0
    attempt.budget("send", axis="pp", count=sends, at_least=min(sends, 1))
    attempt.budget(
        "send", axis="pp", payload_bytes=sends * table_bytes, least_bytes=sends * table_bytes
    )
    attempt.budget("all_reduce", axis="pp", count=0)
    attempt.budget("all_reduce", axis="dp", count=int(ends), at_least=int(ends))
    attempt.budget("all_reduce", axis="dp", payload_bytes=table_bytes, least_bytes=table_bytes)


def _compare(attempt: Attempt, result, copies, uses, replica: int, use: int, mine) -> None:
    """uses: (dp, places that read the table on different stages, V, D)."""
    if not attempt.returned(result, "weight", "grad"):
        return
    total = uses.sum((0, 1))
    if not attempt.in_order(weight=(result[0], copies[0]), grad=(result[1], total)):
        return
    mistakes = {
        "the gradient of the other use is missing: the table is one parameter, read by the "
        "look-up and by the head": uses[:, use].sum(0),
        "the other replicas' gradients are missing: they read other tokens": uses[replica].sum(0),
        "it is this stage's and this replica's part alone: nothing was summed": mine,
        "it is the other use's gradient alone: it is added to this one": (
            total - uses[:, use].sum(0) if uses.shape[1] > 1 else -total
        ),
        "this rank's own part is in it twice: was it added to what was summed already?": (
            total + mine
        ),
        "this stage's part is in it twice: was it added to what had been summed already?": (
            total + uses[:, use].sum(0)
        ),
        "the part of the first stage is in it twice": total + uses[:, 0].sum(0),
    }
    replicas = {"dp": uses.sum(1)}
    attempt.equal("grad", result[1], total, mistakes=mistakes, parts=replicas)
    attempt.equal(
        "weight",
        result[0],
        copies[0],
        mistakes={
            "the first stage has what the last drew: values go from the first to the last": (
                copies[1] if use == 0 else torch.full_like(copies[0], torch.nan)
            ),
            "the last stage still has what it drew for itself: two tables that get the same "
            "gradients stay as far apart as they began": copies[1],
            "it is the sum of both draws: what adds up is gradients": copies.sum(0),
            "it is the mean of both draws: narrower than what one process would have drawn": (
                copies.mean(0)
            ),
        },
    )


EXERCISE = Exercise(
    id="interview.4d.tied-embedding",
    goal="Input embedding and head are one table. In a pipeline the first stage looks tokens up in "
    "it and the last multiplies by it, so each of them holds a copy. Make the copies one parameter "
    "again: after the call both hold the first stage's values, and the gradient that one process "
    "would have.",
    interface="`my_tie(weight, grad)` returns `(weight, grad)`. On the first and the last stage: "
    "this stage's copy as it was drawn, (V, D), and the gradient of *its* use of it, of this "
    "replica's tokens; on a stage in the middle None and None, which it returns. If the pipeline "
    "has one stage, that one has both uses and its gradient is of both. Losses were divided by the "
    "global count of tokens already. You may use `pico.comm.send(t, to, axis, reason)`, "
    "`pico.comm.recv(t, source, axis, reason)`, which fills t, `pico.comm.exchange(t, to, into, "
    'source, axis, reason)` and `pico.comm.all_reduce(t, axis, reason)`; the axes are `"pp"` and '
    '`"dp"`, and ranks are counted along the axis.',
    budget="Over `pp` the first stage sends two tables and the last one; over `dp` one all-reduce "
    "of a table. Stages in the middle take part in nothing.",
    hints=(
        "Two questions, each with its own axis: who reads the same table in another place, and who "
        "reads it for other tokens? And is there a rank for which neither is true?",
        "Values go from the first stage to the last, once. Gradients go both ways: were both "
        "stages to receive first, each would wait. `exchange` does both at once.",
        "`theirs = torch.empty_like(grad)`, `pico.comm.exchange(grad, other, theirs, other, "
        '"pp", reason)`, `grad + theirs`, and then the all-reduce over `dp`. With one stage only '
        "the all-reduce is left.",
    ),
    stub_function=my_tie,
    solution_function=solution,
    why="A parameter's gradient is the sum over everything that read it: two places, and all "
    "replicas' tokens. Sums commute, so the order of the two does not matter, but each must happen "
    "once. Equal gradients alone do not keep the copies equal, they only keep their *difference*: "
    "the values must be equal to begin with, which a seed for each stage would not give. Two ranks "
    "that talk need no collective over the line, whose middle has nothing to add. (A group of the "
    "two would do as well; torch asks that all ranks of the world call `new_group` for it, also "
    "those that are not in it.)",
    judge=judge,
    cases=(
        Case("dp2pp2", "two replicas of two stages", {"vocab": 7}),
        Case("pp3", "a stage in the middle", {"vocab": 7}),
        Case("dp2", "one stage: nothing to tie", {"vocab": 7}),
    ),
    timeout=5.0,
)
