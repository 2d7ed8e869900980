"""Exercise: a block under sequence parallelism, forward and backward (question 4d-020)."""

import torch

from picolab import comm, costs
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_block(x, scale, up, down, dy):
    # One process would compute y = relu((x * scale) @ up.T) @ down.T, with all tokens and rows.
    raise NotImplementedError("return y, dx, dscale, dup, ddown")


def solution(x, scale, up, down, dy):
    import picolab as pico

    # Forward: between the matrices every rank has all tokens, outside them its own.
    h_SD = pico.comm.all_gather(x * scale, "tp", "sp: gather the tokens")
    a_SF = h_SD @ up.T
    r_SF = a_SF.relu()
    y = pico.comm.reduce_scatter(r_SF @ down.T, "tp", "sp: scatter the output")

    # Backward: what was a reduce-scatter is an all-gather, and the other way round.
    dy_SD = pico.comm.all_gather(dy, "tp", "sp: gather the output's gradient")
    ddown = dy_SD.T @ r_SF
    da_SF = (dy_SD @ down) * (a_SF > 0)
    dup = da_SF.T @ h_SD
    dh = pico.comm.reduce_scatter(da_SF @ up, "tp", "sp: scatter the input's gradient")
    dscale = pico.comm.all_reduce((dh * x).sum(0), "tp", "sp: gradient of the scale")
    return y, dh * scale, dscale, dup, ddown


def judge(learner, attempt: Attempt) -> None:
    mesh, values = comm.mesh(), attempt.case.values
    n, me, hidden = mesh.size("tp"), mesh.rank("tp"), 4
    scale_D = attempt.tensor(hidden).requires_grad_()
    up_FD = attempt.tensor(values["rows"], hidden).requires_grad_()
    down_DF = attempt.tensor(hidden, values["rows"]).requires_grad_()
    # The replicas of dp share the weights, and each has tokens of its own.
    drawn = attempt.tensor(mesh.size("dp"), 2, n * values["tokens"], hidden)[mesh.rank("dp")]
    x_SD, dy_SD = drawn[0].clone().requires_grad_(), drawn[1]
    y_SD = ((x_SD * scale_D) @ up_FD.T).relu() @ down_DF.T
    y_SD.backward(dy_SD)

    cut = costs.even_slices(values["rows"], n)[me]
    rows = slice(cut.start, cut.stop)
    own = slice(me * values["tokens"], (me + 1) * values["tokens"])
    up, down = up_FD.detach()[rows], down_DF.detach()[:, rows]
    x, scale, dy = x_SD.detach()[own], scale_D.detach(), dy_SD[own]
    given = {"x": x, "scale": scale, "up": up, "down": down, "dy": dy}
    result = attempt.call(learner, given)
    attempt.along("tp")
    attempt.only("all_gather", "reduce_scatter", "all_reduce")
    if not attempt.returned(result, "y", "dx", "dscale", "dup", "ddown"):
        return
    y, dx, dscale, dup, ddown = result

    # What each rank has before anything is summed: the usual mistakes are made of it.
    a_SF = (x_SD.detach() * scale) @ up.T
    da_SF = (dy_SD @ down) * (a_SF > 0)
    partial_dh = (da_SF @ up)[own]
    own_da = (dy @ down) * (a_SF[own] > 0)
    dh = x_SD.grad[own] / scale
    each = [slice(c.start, c.stop) for c in costs.even_slices(values["rows"], n)]
    ranks_y, ranks_dx, ranks_dscale = _parts(
        x_SD.detach(), scale, up_FD.detach(), down_DF.detach(), dy_SD, each, own, n
    )
    right = (y_SD.detach()[own], x_SD.grad[own], scale_D.grad, up_FD.grad[rows])
    got = dict(zip(("y", "dx", "dscale", "dup", "ddown"), result))
    asked = (*right, down_DF.grad[:, rows])
    if not attempt.in_order(**{k: (v, want) for (k, v), want in zip(got.items(), asked)}):
        return
    attempt.equal(
        "y",
        y,
        y_SD.detach()[own],
        mistakes={
            "it is only what this rank's columns of `down` add; the sum over the ranks is "
            "missing": (a_SF.relu() @ down.T)[own],
            "the relu is missing": (((x_SD * scale_D) @ up_FD.T) @ down_DF.T).detach()[own],
        },
        parts={"tp": ranks_y},
    )
    attempt.equal(
        "dx",
        dx,
        x_SD.grad[own],
        mistakes={
            "it is only what this rank's rows of `up` add; the sum over the ranks is missing": (
                partial_dh * scale
            ),
            "it stops before the scale: dx is the gradient of x, and h = x * scale": dh,
            "the relu's mask is missing: where a was negative, nothing goes back": (
                (dy_SD @ down_DF.detach() @ up_FD.detach())[own] * scale
            ),
        },
        parts={"tp": ranks_dx},
    )
    attempt.equal(
        "dscale",
        dscale,
        scale_D.grad,
        mistakes={
            "it is the part of this rank's own tokens, and the scale was applied to all tokens; "
            "replicas that get different gradients drift apart": (dh * x).sum(0),
            "it is made of dh before the sum over the ranks": (partial_dh * x).sum(0),
            "it is made of dx, which the scale is in already": scale_D.grad * scale,
        },
        parts={"tp": ranks_dscale},
    )
    for name, got, whole, local in (
        ("dup", dup, up_FD.grad[rows], own_da.T @ (x * scale)),
        ("ddown", ddown, down_DF.grad[:, rows], dy.T @ a_SF[own].relu()),
    ):
        says = (
            "only this rank's own tokens are in it; the gradient of a matrix is a sum over all "
            "tokens, of x and of dy"
        )
        mistakes = {
            says: local,
            "it is the mean over the tokens; a gradient of a sum is a sum over all tokens": (
                whole / len(x_SD)
            ),
        }
        attempt.equal(name, got, whole, mistakes=mistakes)
    whole_bytes = dy_SD.numel() * dy_SD.element_size()
    for op in ("all_gather", "reduce_scatter"):
        attempt.budget(op, axis="tp", count=2, at_least=2)
        attempt.budget(op, axis="tp", payload_bytes=2 * whole_bytes, least_bytes=2 * whole_bytes)
    scale_bytes = hidden * dy.element_size()
    attempt.budget("all_reduce", axis="tp", count=1, at_least=1)
    attempt.budget("all_reduce", axis="tp", payload_bytes=scale_bytes, least_bytes=scale_bytes)


def _parts(x_SD, scale, up_FD, down_DF, dy_SD, each, own, n: int):
    """What each rank's rows add to y and dx of these tokens, and each rank's tokens to dscale."""
    ys, dxs = [], []
    for rows in each:
        a_SF = (x_SD * scale) @ up_FD[rows].T
        da_SF = (dy_SD @ down_DF[:, rows]) * (a_SF > 0)
        ys.append(a_SF.relu() @ down_DF[:, rows].T)
        dxs.append(da_SF @ up_FD[rows])
    dscales = (sum(dxs) * x_SD).unflatten(0, (n, -1)).sum(1)
    return (
        torch.stack([y[own] for y in ys]),
        torch.stack([dx[own] * scale for dx in dxs]),
        dscales,
    )


EXERCISE = Exercise(
    id="interview.4d.sequence-block",
    goal="Outside its matrices a block has its tokens split over the ranks of `tp`, and inside "
    "them its rows. Write forward and backward of `y = relu((x * scale) @ up.T) @ down.T` by hand: "
    "y for this rank's tokens, dx for this rank's tokens, and the gradients of what this rank "
    "holds of the weights.",
    interface="`my_block(x, scale, up, down, dy)` returns `(y, dx, dscale, dup, ddown)`. x and dy: "
    "this rank's tokens, (S/n, D); rank r has the r-th piece of the sequence. scale: (D,), a "
    "replica, as a norm's weight is. up: this rank's rows, (F/n, D), and down: this rank's "
    "columns, (D, F/n); the pieces need not be equal. No autograd is needed. You may use "
    '`pico.comm.all_gather(t, "tp", reason)`, which puts the ranks\' t one below the other, '
    '`pico.comm.reduce_scatter(t, "tp", reason)`, which returns this rank\'s n-th of the rows of '
    'the sum, and `pico.comm.all_reduce(t, "tp", reason)`.',
    budget="Two all-gathers and two reduce-scatters of all tokens, and one all-reduce of D "
    "numbers.",
    hints=(
        "Write it for one process first, with the five gradients. Then mark each tensor: does "
        "this rank have all its rows, some of its rows, or all rows of a *sum that is not "
        "finished*? Each change of mark is a collective.",
        "An all-gather's backward is a reduce-scatter, because every rank used the gathered "
        "tokens; and a reduce-scatter's is an all-gather. Which gradient is then finished for "
        "this rank's tokens only, although the parameter is the same on every rank?",
        "dh is the reduce-scatter of da @ up, and dx is dh * scale. (dh * x).sum(0) runs over "
        "this rank's tokens: all-reduce it.",
    ),
    stub_function=my_block,
    solution_function=solution,
    why="The all-reduce of tensor parallelism is cut into its two halves, and what is between them "
    "happens to 1/n of the tokens on each rank: the same bytes, and 1/n of the activations. The "
    "matrices' gradients are whole, since both their inputs are gathered. The scale is a replica "
    "that saw other tokens on each rank, so it is in the position of a weight under data "
    "parallelism, and its gradient must be summed over tp. Without sequence parallelism nobody "
    "had to do that, which is why it is the line that is forgotten.",
    judge=judge,
    cases=(
        Case(
            "tp2",
            "3 tokens a rank, 5 rows",
            {"tokens": 3, "rows": 5},
            if_apart="are dup or ddown added up? A rank's are of its own rows of up and columns of "
            "down, however many these are: they stay where they are made",
        ),
        Case("dp2tp2", "two replicas with tokens of their own", {"tokens": 2, "rows": 6}),
        Case("tp3", "2 rows on 3 ranks: one has none", {"tokens": 1, "rows": 2}),
    ),
    timeout=5.0,
)
