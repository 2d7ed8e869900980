"""Exercise: head, loss and their gradients, a piece of tokens at a time (mem-022).

The bytes are counted: every storage that is born in the learner's function, as long as it lives.
"""

import torch
from torch.nn.functional import cross_entropy

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise
from picolab.memory import Watch

IGNORE = -100
H, V = 12, 400
PIECES = 6
"""Tensors of a piece's logits that may be alive at once."""


def my_loss(hidden, head, labels, piece, axis):
    raise NotImplementedError("return loss, dhidden, dhead")


def solution(hidden, head, labels, piece, axis):
    import torch

    import picolab as pico

    valid = labels != -100
    count = pico.comm.all_reduce(valid.sum().double(), axis, "tokens that count")
    loss, dhidden, dhead = hidden.new_zeros(()), torch.zeros_like(hidden), torch.zeros_like(head)
    for begin in range(0, len(hidden), piece):
        part = slice(begin, begin + piece)
        x, rows = hidden[part], valid[part].nonzero().squeeze(1)
        logits = x[rows] @ head.T
        target = labels[part][rows]
        log_p = logits.log_softmax(1)
        loss -= log_p[range(len(rows)), target].sum() / count
        dlogits = log_p.exp_()
        dlogits[range(len(rows)), target] -= 1
        dlogits /= count
        dhidden[begin + rows] = dlogits @ head
        dhead.addmm_(dlogits.T, x[rows])
    return loss, dhidden, dhead


def judge(learner, attempt: Attempt) -> None:
    axis = attempt.case.values["axis"]
    mesh = comm.mesh()
    n, me, ranks = mesh.size(axis), mesh.rank(axis), list(mesh.ranks(axis))
    for about, tokens, piece in attempt.case.values["settings"]:
        attempt.setting(f"{about}, {tokens} tokens, {piece} at a time")
        world = range(mesh.size("world"))
        v = 60 if about == "a small vocabulary" else V  # (-100 is no row of it, from the end)
        everyones = [_drawn(attempt, about, tokens, v, rank, n) for rank in world]
        head = attempt.tensor(v, H)
        count = sum(int((everyones[r][1] != IGNORE).sum()) for r in ranks)
        hidden, labels = everyones[attempt.rank]
        peak = _Peak(learner)
        given = {"hidden": hidden, "head": head, "labels": labels, "piece": piece, "axis": axis}
        result = attempt.call(peak, given)
        if not attempt.returned(result, "loss", "dhidden", "dhead"):
            return
        _judge_numbers(attempt, result, everyones, ranks, me, head, count)
        size = 8
        most = (2 * v * H + 2 * tokens * H + PIECES * piece * v) * size + 4096
        if not attempt.problems:
            attempt.require(
                peak.bytes <= most,
                f"{peak.bytes:,} bytes were alive at once, of which the two gradients are "
                f"{(v + tokens) * H * size:,}; logits of all tokens are {tokens * v * size:,}, of "
                f"a piece {piece * v * size:,}, and {PIECES} of these (with another dhead) are "
                f"allowed: {most:,}",
            )
            attempt.counts("bytes alive", peak.bytes, most, 0, "B")
        attempt.only("all_reduce")
        attempt.along(axis)
        attempt.budget("all_reduce", count=1, at_least=1, axis=axis)
        attempt.budget("all_reduce", payload_bytes=8, least_bytes=4, axis=axis)


class _Peak:
    """The function, and the most bytes that were alive because of it."""

    def __init__(self, learner):
        self.learner, self.bytes = learner, 0

    def __call__(self, *args):
        with Watch() as watch:
            before, begin = watch.live, len(watch.totals)
            result = self.learner(*args)
            self.bytes = max(watch.totals[begin:], default=before) - before
        return result


def _drawn(attempt: Attempt, about: str, tokens: int, v: int, rank: int, n: int):
    hidden = attempt.tensor(tokens, H)
    labels = (attempt.tensor(tokens).abs() * 1e6).long() % v
    labels[-2], labels[-1] = v - 1, 0
    if about in ("ranks with different numbers of valid tokens", "a small vocabulary"):
        labels[: (rank + 1) * tokens // (n + 2)] = IGNORE
    if about == "one rank has no valid token" and rank % n == n - 1:
        labels[:] = IGNORE
    if about == "large logits":
        hidden *= 200
    return hidden, labels


def _exact(hidden, head, labels, count):
    hidden, head = hidden.clone().requires_grad_(), head.clone().requires_grad_()
    loss = cross_entropy(hidden @ head.T, labels, ignore_index=IGNORE, reduction="sum") / count
    loss.backward()
    return loss.detach(), hidden.grad, head.grad


def _judge_numbers(attempt, result, everyones, ranks, me, head, count) -> None:
    hidden, labels = everyones[ranks[me]]
    exact = _exact(hidden, head, labels, count)
    own = int((labels != IGNORE).sum())
    every = sum(int((labels != IGNORE).sum()) for _, labels in everyones)
    scales = {
        "it is divided by this rank's number of valid tokens; count those of all ranks": (
            count / own if own else None
        ),
        "it is divided by the valid tokens of all ranks there are, not of those of the axis": count
        / every,
        "each rank's own mean is averaged over ranks; count the valid tokens of all": (
            count / own / len(ranks) if own else None
        ),
        "it is divided by all tokens; labels of -100 do not count": count
        / (len(labels) * len(ranks)),
        "it is divided by this rank's tokens, valid or not": count / len(labels),
        "it is not divided by the number of valid tokens": float(count),
        "it is the mean over ranks of something: divide once, by the tokens of all": 1 / len(ranks),
        "the sign is wrong": -1.0,
    }
    begins = _begins(attempt, labels)
    above_0 = sum(int((everyones[r][1] > 0).sum()) for r in ranks)
    otherwise = {  # labels that are seen, and their number
        "a label of 0 counts, too": (labels.masked_fill(labels == 0, IGNORE), above_0),
        "the last piece is missing": (_before(labels, begins[-1]), count),
        "it ends at the first piece without a label": (
            _before(labels, _first_empty(labels, begins)), count,
        ),
    }  # fmt: skip
    otherwise = {
        says: _exact(hidden, head, *so)
        for says, so in otherwise.items()
        if not torch.equal(so[0], labels)
    }
    summed = [_exact(*everyones[r][:1], head, everyones[r][1], count) for r in ranks]
    for number, (name, got, expected, more) in enumerate((
        ("the loss", result[0], exact[0], {
            "tokens without a label are in it": cross_entropy(
                hidden @ head.T, labels.clamp(min=0), reduction="sum"
            ) / count,
            "it is all ranks' loss; asked for is this rank's share, the sum of which is the loss":
            sum(one[0] for one in summed),
        }),
        ("dhidden", result[1], exact[1], {
            "tokens without a label have a gradient": _all_have_one(hidden, head, labels, count),
            "one-hot is missing: it is the softmax times the head": _no_one_hot(
                hidden, head, labels, count
            )[0],
        }),
        ("dhead", result[2], exact[2], {
            "one-hot is missing: it is the softmax times hidden": _no_one_hot(
                hidden, head, labels, count
            )[1],
            "it is the last piece's alone: pieces are added": _last_piece(
                attempt, hidden, head, labels, count
            ),
            "it is summed over ranks; that is somebody else's business": sum(
                one[2] for one in summed
            ),
        }),
    )):  # fmt: skip
        more |= {says: of[number] for says, of in otherwise.items()}
        mistakes = {says: expected * by for says, by in scales.items() if by not in (None, 1.0)}
        if not isinstance(got, torch.Tensor):
            attempt.wrong(f"{name} is of type {type(got).__name__}, and a tensor was expected")
            return
        attempt.equal(name, got.reshape(expected.shape) if got.numel() == 1 else got, expected,
                      mistakes=more | mistakes)  # fmt: skip


def _all_have_one(hidden, head, labels, count):
    probabilities = (hidden @ head.T).softmax(1)
    there = labels.clamp(min=0)
    probabilities[range(len(labels)), there] -= (labels != IGNORE).double()
    return probabilities @ head / count


def _no_one_hot(hidden, head, labels, count):
    probabilities = (hidden @ head.T).softmax(1) * (labels != IGNORE)[:, None] / count
    return probabilities @ head, probabilities.T @ hidden


def _begins(attempt, labels) -> list[int]:
    """Where pieces begin."""
    return list(range(0, len(labels), int(attempt.about.rpartition(", ")[2].split()[0])))


def _first_empty(labels, begins) -> int:
    """The beginning of the first piece that has no label; the end if all have one."""
    pairs = zip(begins, [*begins[1:], len(labels)])
    return next((a for a, b in pairs if bool((labels[a:b] == IGNORE).all())), len(labels))


def _before(labels, end: int):
    found = labels.clone()
    found[end:] = IGNORE
    return found


def _last_piece(attempt, hidden, head, labels, count):
    begin = _begins(attempt, labels)[-1]
    return _exact(hidden[begin:], head, labels[begin:], count)[2]


EXERCISE = Exercise(
    id="interview.memory.chunked_loss",
    goal="Cross entropy of a large vocabulary, with its gradients, without the logits of all "
    "tokens ever being there: `piece` tokens at a time go through head and loss. The loss is the "
    "mean over the valid tokens of *all* ranks of the axis; each rank returns its share of it, and "
    "gradients of that mean.",
    interface="`my_loss(hidden, head, labels, piece, axis)` returns `loss, dhidden, dhead`. hidden "
    "is (tokens, h), head (vocabulary, h), labels (tokens,) with -100 where a token does not "
    "count; a rank may have none that does. `loss`, over the ranks, sums to the mean; `dhidden` is "
    "(tokens, h), zero where there is no label; `dhead` is this rank's part, not reduced. "
    "`pico.comm.all_reduce(x, axis, reason)` sums.",
    budget="One all-reduce of one number. At most six tensors of a piece's logits alive at once, "
    "beside two of the size of each gradient: the bytes are counted.",
    hints=(
        "The number of valid tokens is known before the first logit is.",
        "Of a piece: logits, log-softmax, loss; then softmax minus one-hot, in the same memory, "
        "gives both gradients by two products. Then forget it.",
        "`dlogits = log_p.exp_()`, `dlogits[rows, target] -= 1`, `dlogits /= count`, "
        "`dhidden[part] = dlogits @ head`, `dhead.addmm_(dlogits.T, x)`.",
    ),
    stub_function=my_loss,
    solution_function=solution,
    why="The loss is the end of the graph, so the gradient of its logits is known as soon as they "
    "are: softmax minus one-hot, over the number of valid tokens. Nothing of a piece has to wait "
    "for a backward pass. The number has to be that of all ranks and all pieces, or short "
    "sequences weigh more; it needs labels only, so it is reduced first. Where logits are large, "
    "log-softmax subtracts the maximum. (Twins: Liger's fused linear cross entropy, arXiv "
    "2410.10989; cut cross-entropy, 2411.09009.)",
    judge=judge,
    cases=(
        Case(
            "dp2",
            "",
            {
                "axis": "dp",
                "settings": (
                    ("all tokens valid", 96, 8),
                    ("ranks with different numbers of valid tokens", 101, 7),
                    ("one rank has no valid token", 64, 16),
                    ("large logits", 50, 13),
                    ("a small vocabulary", 33, 10),
                ),
            },
        ),
        Case(
            "dp2tp2",
            "an axis among others",
            {
                "axis": "dp",
                "settings": (("ranks with different numbers of valid tokens", 90, 9),),
            },
        ),
    ),
)
