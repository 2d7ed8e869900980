"""Interview task (question 4d-017): an embedding whose table is split along the vocabulary."""

import torch

from picolab import comm, costs
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_embedding(tokens, table, vocab):
    import picolab as pico

    n, me = pico.comm.mesh().size("tp"), pico.comm.mesh().rank("tp")
    rows = pico.costs.even_slices(vocab, n)[me]  # the range of tokens whose rows I have
    raise NotImplementedError(f"rank {me} has the rows {rows.start} to {rows.stop - 1}")


def solution(tokens, table, vocab):
    import torch

    import picolab as pico

    class Summed(torch.autograd.Function):
        """The sum over tp; its gradient is whole on every rank already."""

        @staticmethod
        def forward(ctx, x):
            return pico.comm.all_reduce(x.clone(), "tp", "embedding output")

        @staticmethod
        def backward(ctx, dy):
            return dy

    n, me = pico.comm.mesh().size("tp"), pico.comm.mesh().rank("tp")
    rows = pico.costs.even_slices(vocab, n)[me]
    mine = (tokens >= rows.start) & (tokens < rows.stop)
    row = (tokens - rows.start).masked_fill(~mine, 0)  # any row of mine will do
    looked_up = torch.nn.functional.embedding(row, table)
    return Summed.apply(looked_up.masked_fill(~mine.unsqueeze(-1), 0))


def judge(learner, attempt: Attempt) -> None:
    mesh, vocab, hidden = comm.mesh(), attempt.case.values["vocab"], 3
    rows = costs.even_slices(vocab, mesh.size("tp"))
    mine = slice(rows[mesh.rank("tp")].start, rows[mesh.rank("tp")].stop)
    whole_VD = attempt.tensor(vocab, hidden)
    # The replicas of dp have tokens of their own; first and last row of every shard are among them.
    tokens_BS = torch.tensor(attempt.case.values["tokens"])[mesh.rank("dp")]
    dy_BSD = attempt.tensor(mesh.size("dp"), *tokens_BS.shape, hidden)[mesh.rank("dp")]

    def both_ways(tokens, table, vocab):
        y = learner(tokens, table, vocab)
        if isinstance(y, torch.Tensor) and y.requires_grad and y.shape == dy_BSD.shape:
            y.backward(dy_BSD)
        return y, table.grad

    table = whole_VD[mine].clone().requires_grad_()
    y, dtable = attempt.call(both_ways, {"tokens": tokens_BS, "table": table, "vocab": vocab})
    attempt.only("all_reduce")
    attempt.along("tp")
    known = _known(whole_VD, rows, tokens_BS, mine)
    parts = {"tp": torch.stack([_looked_up(whole_VD, row, tokens_BS) for row in rows])}
    if attempt.equal(
        "the output", y, whole_VD[tokens_BS], mistakes=known, parts=parts
    ) and attempt.require(
        dtable is not None,
        "no gradient reaches the table: is the output cut off from it (detach, .data, no_grad)?",
    ):
        dwhole_VD = torch.zeros_like(whole_VD)
        dwhole_VD.index_add_(0, tokens_BS.flatten(), dy_BSD.flatten(0, 1))
        too_often = (
            "it is n times too large: dy is the same on every rank already, and the backward of "
            "your sum adds the ranks' up again"
        )
        attempt.equal(
            "the gradient of the table",
            dtable,
            dwhole_VD[mine],
            mistakes={
                too_often: mesh.size("tp") * dwhole_VD[mine],
                "a token that stands there several times is in it once: gradients of one row add "
                "up": _once(dwhole_VD, tokens_BS, dy_BSD)[mine],
            },
        )
    numbers_bytes = dy_BSD.numel() * dy_BSD.element_size()
    attempt.budget("all_reduce", axis="tp", count=1, at_least=1)
    attempt.budget("all_reduce", axis="tp", payload_bytes=numbers_bytes, least_bytes=numbers_bytes)


def _looked_up(whole_VD, row: range, tokens_BS):
    """What a rank with these rows adds."""
    here = (tokens_BS >= row.start) & (tokens_BS < row.stop)
    return whole_VD[tokens_BS] * here.unsqueeze(-1)


def _once(dwhole_VD, tokens_BS, dy_BSD):
    """The gradient if a later place of a token overwrites an earlier one."""
    once_VD = torch.zeros_like(dwhole_VD)
    for token, dy in zip(tokens_BS.flatten().tolist(), dy_BSD.flatten(0, 1)):
        once_VD[token] = dy
    return once_VD


def _known(whole_VD, rows, tokens_BS, mine) -> dict:
    """What typical mistakes put out."""
    shards = [whole_VD[row.start : row.stop] for row in rows]
    moved = [tokens_BS - row.start for row in rows]
    last = [len(shard) - 1 for shard in shards]
    is_mine = (tokens_BS >= mine.start) & (tokens_BS < mine.stop)
    starts = [rank * len(shard) for rank, shard in enumerate(shards)]
    beside = {by: (tokens_BS + by).clamp(0, len(whole_VD) - 1) for by in (1, -1)}
    return {
        "it is only what this rank's rows add: nobody sums over tp": whole_VD[tokens_BS]
        * is_mine.unsqueeze(-1),
        "tokens are given the row beside theirs: off by one": tuple(
            whole_VD[index] * kept
            for by, index in beside.items()
            for kept in (1, (tokens_BS + by == index).unsqueeze(-1))  # or 0 where there is none
        ),
        "tokens that are not a rank's own must add zero; yours are given the rank's first or last "
        "row": sum(s[t.clamp(0, end)] for s, t, end in zip(shards, moved, last)),
        "tokens that are not a rank's own must add zero; yours are given some other row, for "
        "instance by a negative index": sum(s[t % len(s)] for s, t in zip(shards, moved)),
        "tokens that are not a rank's own must add zero; yours are given the rank's row 0": sum(
            s[torch.where((t >= 0) & (t <= end), t, 0)] for s, t, end in zip(shards, moved, last)
        ),
        "rank r's rows do not begin at r times its own number of rows: the shards are uneven": sum(
            s[(tokens_BS - start).clamp(0, end)]
            * ((tokens_BS >= start) & (tokens_BS <= start + end)).unsqueeze(-1)
            for s, start, end in zip(shards, starts, last)
        ),
    }


EXERCISE = Exercise(
    id="interview.4d.embedding",
    goal="Each rank of tp has some rows of the embedding table. The output is what the whole table "
    "would give, on every rank of tp; and backward leaves in `table.grad` the gradient of this "
    "rank's rows, as one process would have it.",
    interface="`my_embedding(tokens, table, vocab)`: tokens (B, S), integers from 0 to vocab - 1, "
    "the same on every rank of tp; table (this rank's rows, D), requires a gradient; vocab, how "
    "many rows there are in all. Rows are dealt out by `pico.costs.even_slices(vocab, n)`, so the "
    "last ranks may have one fewer. The result, (B, S, D), is differentiated by the caller, who "
    "gives the same output gradient on every rank. You may use "
    "`pico.comm.all_reduce(x, axis, reason)`, which works in place and tells autograd nothing.",
    budget="One all-reduce of B * S * D numbers in forward, nothing in backward.",
    hints=(
        "Most tokens of a batch are in rows that another rank has. What can a rank contribute for "
        "those, so that a sum over the ranks comes out right?",
        "Three steps: which tokens are mine; look those up (with an index shifted by where my rows "
        "begin, and for the others some index that exists); put zero where the token is not mine. "
        "Then sum. What is the gradient of each summand, if everybody is given the same dy?",
        "`masked_fill(~mine.unsqueeze(-1), 0)` after the look-up, then a `torch.autograd.Function` "
        'whose forward is `pico.comm.all_reduce(x.clone(), "tp", ...)` and whose backward returns '
        "dy as it is.",
    ),
    stub_function=my_embedding,
    solution_function=solution,
    why="Every token's row is on exactly one rank, and the others add zero, so the sum is a "
    "look-up. In backward each summand has gradient dy, which is on every rank already: no "
    "communication (this is Megatron-LM's g, arXiv 1909.08053, section 3). The mask lets "
    "only a rank's own tokens through to its rows; without it, row 0 of every shard would collect "
    "the gradients of all foreign tokens. The sum carries B * S * D numbers; to gather the "
    "table instead would carry V * D in each forward and undo the saving of memory.",
    judge=judge,
    cases=(
        Case(
            "tp2",
            "7 tokens, which 2 does not divide",
            {"vocab": 7, "tokens": [[[0, 3, 4, 6], [4, 4, 1, 0]]]},
        ),
        Case(
            "tp4",
            "11 tokens: shards of 3, 3, 3 and 2",
            {"vocab": 11, "tokens": [[[0, 2, 3, 5, 6, 8], [9, 10, 8, 0, 10, 10]]]},
        ),
        Case(
            "tp3",
            "8 tokens, of which the batch has three",
            {"vocab": 8, "tokens": [[[7, 7, 3], [3, 0, 7]]]},
        ),
        Case(
            "dp2tp2",
            "two replicas with other tokens, and one rank that has none of them",
            {"vocab": 9, "tokens": [[[0, 4, 5, 8]], [[1, 1, 3, 4]]]},
        ),
    ),
    timeout=5.0,
)
