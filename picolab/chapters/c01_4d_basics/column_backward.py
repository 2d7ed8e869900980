"""Exercise: the backward of a column-parallel linear layer (chapter 1, section 4)."""

import torch

from picolab import comm, costs
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_column_backward(x, w, dy):
    # Forward was y = x @ w.T, with this rank's rows w of W: this rank's columns of the output.
    raise NotImplementedError("return dx, dw")


def solution(x, w, dy):
    import picolab as pico

    dx = dy @ w  # what this rank's rows of W add to dx
    sending = pico.comm.all_reduce(dx, "tp", "column-parallel: dx", async_op=True)
    dw = dy.flatten(0, 1).T @ x.flatten(0, 1)  # meanwhile; it needs nobody
    return sending.wait(), dw


def judge(learner, attempt: Attempt) -> None:
    mesh, values = comm.mesh(), attempt.case.values
    rows, hidden = values["rows"], 5
    # The replicas of dp share W, and each has tokens of its own.
    w_FD = attempt.tensor(rows, hidden)
    x_BSD = attempt.tensor(mesh.size("dp"), 2, 3, hidden)[mesh.rank("dp")]
    dy_BSF = attempt.tensor(mesh.size("dp"), 2, 3, rows)[mesh.rank("dp")]
    dy_BSF[0, -1] = 0  # a token of padding: it asks for no change
    cuts = [slice(c.start, c.stop) for c in costs.even_slices(rows, mesh.size("tp"))]
    mine = cuts[mesh.rank("tp")]

    dw_FD = dy_BSF.flatten(0, 1).T @ x_BSD.flatten(0, 1)
    result = attempt.call(learner, {"x": x_BSD, "w": w_FD[mine], "dy": dy_BSF[..., mine]})
    attempt.only("all_reduce")
    attempt.along("tp")
    if not attempt.returned(result, "dx", "dw"):
        return
    dx, dw = result
    parts_BSD = torch.stack([dy_BSF[..., cut] @ w_FD[cut] for cut in cuts])
    if not attempt.in_order(dx=(dx, parts_BSD.sum(0)), dw=(dw, dw_FD[mine])):
        return
    if attempt.require(
        bool(attempt.entries),
        "it finishes no all-reduce: dy @ w is only what this rank's rows of W add to dx, and "
        "nobody adds up the ranks' parts (an asynchronous one is finished once `wait()` returns)",
    ):
        attempt.equal(
            "dx",
            dx,
            dy_BSF @ w_FD,
            mistakes={
                "it is only what this rank's rows of W add; what was all-reduced is another "
                "tensor": dy_BSF[..., mine] @ w_FD[mine],
                "it is added to x; a gradient of x is not x": x_BSD + dy_BSF @ w_FD,
            },
            parts={"tp": parts_BSD},
        )
    attempt.equal(
        "dw",
        dw,
        dw_FD[mine],
        mistakes={
            "the ranks' dw are added up, but each belongs to other rows of W: dw stays where it "
            "is made": _added_up(dw_FD, cuts),
            "the first sequence alone is in it; a weight's gradient is a sum over all tokens, "
            "B * S of them": dy_BSF[0, :, mine].T @ x_BSD[0],
            "it is the mean over the sequences; a gradient of a sum is a sum over all tokens": (
                dw_FD[mine] / len(x_BSD)
            ),
            "it is the mean over the tokens; a gradient of a sum is a sum over all tokens": (
                dw_FD[mine] / x_BSD[..., 0].numel()
            ),
        },
    )
    x_bytes = x_BSD.numel() * x_BSD.element_size()
    attempt.budget("all_reduce", axis="tp", count=1, at_least=1)
    attempt.budget("all_reduce", axis="tp", payload_bytes=x_bytes, least_bytes=x_bytes)


def _added_up(dw_FD, cuts):
    """The sum of all shards; of the first alone where they are not of one size."""
    shards = [dw_FD[cut] for cut in cuts]
    return sum(shard for shard in shards if shard.shape == shards[0].shape)


EXERCISE = Exercise(
    id="4d.tp.column-backward",
    goal="W's rows are dealt out over tp, x is the same on all ranks of tp, and forward was "
    "`y = x @ w.T` on each rank, without communication. Return the gradients of the loss with "
    "respect to all of `x` and to this rank's `w`.",
    interface="`my_column_backward(x, w, dy)`, x (B, S, D), w (F of this rank, D), dy (B, S, F of "
    "this rank), the gradient of this rank's part of the output; returns `dx, dw`, shaped like x "
    "and w. tp need not divide F, and a rank may have no row at all. The inputs stay as they are. "
    "You may use `pico.comm.all_reduce(t, axis, reason)`, which sums t over the axis in place and "
    'returns it; the axis is `"tp"`. Leave autograd out: this is what it would call.',
    budget="One all-reduce over tp, of as many bytes as x has.",
    hints=(
        "Take W whole, on one device: dx = dy @ W, a sum over the F outputs. Each rank has some of "
        "these F terms. And of dw, which entries does a rank lack?",
        "`dy @ w` has dx's shape on every rank and is one summand of it. The rows of dw belong to "
        "rows of w, and to compute them you need x and this rank's dy, which are here.",
        "dx: all-reduce `dy @ w`. dw: with B and S flattened into one dim of tokens, it is "
        "(F, tokens) @ (tokens, D).",
    ),
    stub_function=my_column_backward,
    solution_function=solution,
    why="x went to all ranks, so its gradient comes from all of them: a copy forward is a sum "
    "backward (f in Megatron-LM's words, arXiv 1909.08053, section 3). W went to one rank each, "
    "so dw is nobody else's affair. The all-reduce needs only `dy @ w`; that is why it is started "
    "first and travels while dw is computed. q, k and v read the same x: as one matrix they share "
    "one all-reduce, as three layers they would do three.",
    judge=judge,
    cases=(
        Case("tp2", "6 rows of W", {"rows": 6}),
        Case("dp2tp2", "two replicas of two ranks, 7 rows: 4 and 3", {"rows": 7}),
        Case("tp4", "3 rows: the last rank has none", {"rows": 3}),
        Case("tp3", "11 rows: 4, 4 and 3", {"rows": 11}),
    ),
    blocked=(
        "picolab.parallel.tensor_comm.column_linear",
        "picolab.parallel.tensor_comm.gather_linear",
        "picolab.parallel.tensor_comm.f",
    ),
    timeout=5.0,
)
