"""Exercise: a mean over those whose loss is a number, and who the others are (mon-017).

In each setting a letter says what a rank has: a loss, NaN, an infinity, or no tokens at all (whose
mean loss is NaN, too, and nobody's fault). Lines of the axis that are not rank 0's have the letters
in reverse, so that whoever communicates too far gets other numbers.
"""

import math

import torch

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_report(loss, tokens, axis):
    raise NotImplementedError("return mean, bad")


def solution(loss, tokens, axis):
    import torch

    import picolab as pico

    n, me = pico.comm.mesh().size(axis), pico.comm.mesh().rank(axis)
    told = torch.zeros(n + 2, dtype=torch.float64)  # a flag for each rank, sum of losses, tokens
    if tokens and not loss.isfinite():
        told[me] = 1
    elif tokens:
        told[n], told[n + 1] = loss * tokens, tokens
    told = pico.comm.all_reduce(told, axis, "loss, tokens, and whose is no number")
    return told[n] / told[n + 1].clamp(min=1), told[:n].nonzero().flatten().tolist()


def judge(learner, attempt: Attempt) -> None:
    axis = attempt.case.values["axis"]
    mesh = comm.mesh()
    line, n = mesh.ranks(axis), mesh.size(axis)
    for letters in attempt.case.values["settings"]:
        attempt.setting(" and ".join(f"rank {r}: {_WORDS[c]}" for r, c in enumerate(letters)))
        drawn = attempt.tensor(mesh.size("world")).abs() + 1
        mine = letters if line[0] == 0 else letters[::-1]
        losses = [_loss(letter, drawn[rank]) for letter, rank in zip(mine, line)]
        tokens = [0 if letter == "0" else 3 + 7 * rank for letter, rank in zip(mine, line)]
        me = mesh.rank(axis)
        given = {"loss": losses[me], "tokens": tokens[me], "axis": axis}
        result = attempt.call(learner, given)
        if attempt.returned(result, "mean", "bad"):
            _judge_bad(attempt, result[1], losses, tokens, line, me)
            if not attempt.problems:
                _judge_mean(attempt, result[0], losses, tokens, me)
        attempt.only("all_reduce")
        attempt.along(axis)
        attempt.budget("all_reduce", count=1, at_least=1, axis=axis)
        attempt.budget("all_reduce", payload_bytes=8 * (n + 2), least_bytes=8, axis=axis)


def _loss(letter: str, drawn: torch.Tensor) -> torch.Tensor:
    special = {"n": math.nan, "0": math.nan, "i": math.inf, "-": -math.inf, "z": 0.0}
    special |= {"b": 1e30, "m": -2.5}
    return torch.tensor(special[letter], dtype=torch.float64) if letter in special else drawn


def _judge_bad(attempt: Attempt, got, losses, tokens, line, me: int) -> None:
    not_finite = [r for r, loss in enumerate(losses) if not loss.isfinite()]
    expected = [r for r in not_finite if tokens[r]]
    if isinstance(got, torch.Tensor):
        got = got.tolist()
    if not isinstance(got, list | tuple) or not all(type(r) is int for r in got):
        attempt.wrong("`bad` is no list of ranks, such as [0, 2], counted along the axis")
        return
    if list(got) == expected:
        return
    for says, known in (
        ("a rank without tokens has nothing to be blamed for", not_finite),
        ("these are global ranks; asked for are those of the axis", [line[r] for r in expected]),
        ("each rank names itself only", [me] if me in expected else []),
        ("it names ranks by 1, 2, ...; they count from 0", [r + 1 for r in expected]),
        ("these are flags, one for each rank", [int(r in expected) for r in range(len(line))]),
        ("these are the ranks that are fine", [r for r in range(len(line)) if r not in expected]),
        ("a loss that is high, or below 0, is a number all the same",
         [r for r, x in enumerate(losses) if x < 0 or x >= 1e30 or r in expected]),
        ("that is how many there are", [len(expected)]),
        ("an infinite loss is no number to go on with either",
         [r for r in expected if losses[r].isnan()]),
    ):  # fmt: skip
        if list(got) == known:
            attempt.wrong(f"`bad` is wrong: {says}")
            return
    attempt.wrong(f"`bad` is {list(got)}, and should be {expected}")


def _judge_mean(attempt: Attempt, got, losses, tokens, me: int) -> None:
    good = [r for r, loss in enumerate(losses) if tokens[r] and loss.isfinite()]
    weights = sum(tokens[r] for r in good)
    total = sum((losses[r] * tokens[r] for r in good), torch.zeros((), dtype=torch.float64))
    plain = sum((losses[r] for r in good), torch.zeros((), dtype=torch.float64))
    expected = total / max(weights, 1)
    got = torch.as_tensor(got, dtype=torch.float64).squeeze()
    if got.numel() == 1 and not got.isfinite():
        what = (
            "zero times NaN is NaN, and times infinity too; replace what is no number, do not "
            "multiply it"
            if good
            else "no rank counts here, so asked for is 0; it is 0/0"
        )
        attempt.wrong(f"the mean is {got.item()}: {what}")
        return
    own = losses[me] if me in good else torch.tensor(math.nan, dtype=torch.float64)
    attempt.equal(
        "the mean", got, expected,
        mistakes={
            "it is the mean of the ranks' means; ranks have different numbers of tokens": (
                plain / max(len(good), 1)
            ),
            "tokens of a rank that does not count are in the divisor": total / max(sum(tokens), 1),
            "losses were added without their tokens": plain / max(weights, 1),
            "it was divided by the number of ranks and not by that of tokens": (
                total / len(losses), total / max(len(good), 1),
            ),
            "it is a sum; asked for is the mean per token": (total, plain),
            "it is this rank's own loss": own,
        },
    )  # fmt: skip


_WORDS = {
    ".": "a loss", "n": "NaN", "i": "inf", "-": "-inf", "0": "no tokens", "z": "a loss of 0",
    "b": "a loss of 1e30", "m": "a loss below 0",
}  # fmt: skip

EXERCISE = Exercise(
    id="interview.monitoring.finite",
    goal="Each rank of `axis` has the mean loss of its own tokens, which may be NaN or infinite. "
    "Return on every rank the mean loss per token over the ranks whose loss is finite, and which "
    "ranks' loss is not.",
    interface="`my_report(loss, tokens, axis)` returns `mean, bad`. `loss` is a number of fp64, "
    "`tokens` how many it is the mean of. A rank with 0 tokens has no loss (it is NaN): it neither "
    "counts nor is bad. `bad` is a list of ranks, counted along the axis from 0, in order. If no "
    "rank counts, the mean is 0. You may use `pico.comm.all_reduce(t, axis, reason)` and "
    "`pico.comm.mesh()`, whose `.rank(axis)` and `.size(axis)` say where you are.",
    budget="One all-reduce over the axis, of at most two numbers more than it has ranks.",
    hints=(
        "What has to be known by everybody, as a list of numbers that can be added?",
        "A place for each rank in which it puts 1 if it is bad; one place for loss times tokens, "
        "one for tokens. What does a bad rank put into the last two?",
        "`told = zeros(n + 2)`; if bad `told[me] = 1`, else if it has tokens `told[n] = loss * "
        "tokens` and `told[n + 1] = tokens`. One all-reduce; divide by `max(tokens, 1)`.",
    ),
    stub_function=my_report,
    solution_function=solution,
    why="One vector carries it all, and one sum makes it everybody's: a flag a rank, and two sums "
    "in which a bad rank has nothing. It must not take part with 0 times its loss, since 0 times "
    "NaN is NaN. The weights are tokens: a mean of means is another number. As all ranks see the "
    "same vector, any rule about skipping the step gives the same answer on all.",
    judge=judge,
    cases=(
        Case(
            "dp3", "",
            {"axis": "dp",
             "settings": ("...", ".n.", "..i", "-..", "n.i", "nnn", "0..", "0n.", "000", ".z.",
                          "b..", ".m.")},
            "a rank whose loss is bad takes part as well",
        ),
        Case("dp2tp2", "over tp, which is half of them",
             {"axis": "tp", "settings": ("..", ".n", "0.", "n0", "i-")}),
        Case("dp2", "", {"axis": "dp", "settings": ("..", "n.", "0n")}),
    ),
)  # fmt: skip
