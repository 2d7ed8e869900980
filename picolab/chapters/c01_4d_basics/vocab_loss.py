"""Exercise: cross entropy with the logits split along the vocabulary (chapter 1, section 4)."""

import torch
import torch.nn.functional as F

from picolab import comm, costs
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise

IGNORED = -100


def my_vocabulary_loss(logits, targets, start):
    stop = start + logits.shape[1]  # this rank has the logits of the tokens start ... stop - 1
    raise NotImplementedError(f"return loss, dlogits for the share from {start} to {stop}")


def solution(logits, targets, start):
    import torch

    import picolab as pico

    stop = start + logits.shape[1]
    mine = (targets >= start) & (targets < stop)
    column = torch.where(mine, targets - start, 0).unsqueeze(1)  # not mine: any that exists
    counted = targets != -100

    largest = pico.comm.all_reduce(logits.amax(1), "tp", "vocabulary loss: maximum", op="max")
    x = logits - largest.unsqueeze(1)
    label = x.gather(1, column).squeeze(1) * mine
    sums = torch.stack((x.exp().sum(1), label))
    total, label = pico.comm.all_reduce(sums, "tp", "vocabulary loss: sums")

    loss = ((total.log() - label) * counted).sum()
    softmax = x.exp() / total.unsqueeze(1)
    onehot = torch.zeros_like(x).scatter_(1, column, mine.to(x.dtype).unsqueeze(1))
    return loss, (softmax - onehot) * counted.unsqueeze(1)


def judge(learner, attempt: Attempt) -> None:
    mesh, vocab = comm.mesh(), attempt.case.values["vocab"]
    cuts = costs.even_slices(vocab, mesh.size("tp"))
    mine = cuts[mesh.rank("tp")]
    # The first and the last token of each share, where an index is most easily off by one.
    known = [token for cut in cuts for token in (cut.start, cut.stop - 1)]
    targets = torch.tensor([known[0], IGNORED, *known[1:], IGNORED])
    logits = attempt.tensor(mesh.size("dp"), len(targets), vocab)[mesh.rank("dp")]
    if attempt.case.values.get("large"):
        logits[0::2] += 1000
        logits[1::2] -= 1000
    if mesh.rank("dp") == 1:
        targets[:] = IGNORED

    arguments = {
        "logits": logits[:, mine.start : mine.stop],
        "targets": targets,
        "start": mine.start,
    }
    result = attempt.call(learner, arguments)
    attempt.only("all_reduce")
    attempt.along("tp")
    if attempt.returned(result, "loss", "dlogits"):
        loss, dlogits = result
        # Not their numbers: a gradient has the logits' shape, and nothing else here has.
        if getattr(loss, "shape", None) == logits[:, mine.start : mine.stop].shape:
            attempt.wrong("it returns dlogits first; asked for is `return loss, dlogits`")
        # One thing at a time: what makes the loss wrong mostly makes the gradient wrong too.
        elif _compare_loss(attempt, loss, logits, targets, cuts, mine):
            _compare_gradient(attempt, dlogits, logits, targets, mine)
    attempt.budget("all_reduce", axis="tp", count=3, at_least=1)
    # Only large logits need the maximum, and of the targets' logits the sum may be enough.
    attempt.budget(
        "all_reduce",
        axis="tp",
        payload_bytes=3 * len(targets) * logits.element_size(),
        least_bytes=(len(targets) + 1) * logits.element_size(),
        hint="of every token, the sum of exponentials is over all ranks",
    )


def _compare_loss(attempt, loss, logits, targets, cuts, mine) -> bool:
    large = attempt.case.values.get("large") and isinstance(loss, torch.Tensor)
    if large and not torch.isfinite(loss).all():
        return attempt.require(
            False,
            f"the loss is not finite. The logits here are up to {logits.max():.4g} and down to "
            f"{logits.min():.4g}: exp of the one is infinite, and the log of a sum of exp of the "
            "other is log(0). Subtract from each token's logits their own maximum first",
        )
    expected = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    return attempt.equal("the loss", loss, expected, mistakes=_losses(logits, targets, cuts, mine))


def _losses(logits, targets, cuts, mine) -> dict:
    """What to say -> the losses by which the mistake is recognised."""
    counted = targets != IGNORED
    lse, maximum = logits.logsumexp(1), logits.amax(1)
    label = logits.gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1)
    here = (targets >= mine.start) & (targets < mine.stop)
    shifted = logits - maximum.unsqueeze(1)
    shares = [logits[:, cut.start : cut.stop] for cut in cuts]
    own = [share.amax(1) for share in shares]
    of_owner = sum(
        top * ((targets >= cut.start) & (targets < cut.stop)) for top, cut in zip(own, cuts)
    )
    mixed = sum((share - top.unsqueeze(1)).exp().sum(1) for share, top in zip(shares, own)).log()
    mine_alone = shifted[:, mine.start : mine.stop].exp().sum(1).log()

    def total(log_sum, logit, counted=counted):
        return ((log_sum - logit) * counted).sum()

    def off_by(by):  # beside the target, and 0 where no rank has such a token
        index = (targets + by).clamp(0, logits.shape[1] - 1)
        found = logits.gather(1, index.unsqueeze(1)).squeeze(1)
        there = targets + by == index
        return (
            total(lse, found),
            total(lse, found * there),
            total(lse - maximum, (found - maximum) * there),
        )

    loss = total(lse, label)
    everyones = [_from_every_rank(x, targets, cuts) for x in (logits, shifted)]
    return {
        "each rank subtracted a maximum of its own: exp(x - m) of two ranks can be added only if "
        "m is the same, so the maximum is an all-reduce too": (
            total(mixed, label - of_owner),
            total(mixed + own[cuts.index(mine)], label),
            total(mixed, label - maximum),
        ),
        "every rank added a logit for each target, and only one rank has the target; the others "
        "read another token's. Theirs must be 0": (
            *(total(lse, one) for one in everyones[0]),
            *(total(lse - maximum, one) for one in everyones[1]),
        ),
        f"tokens with the label {IGNORED} are counted": (
            loss + lse[~counted].sum(),
            loss + (lse - maximum)[~counted].sum(),
        ),
        "it is the mean over the tokens; asked for is the sum (what to divide by is known to "
        "whoever sees all replicas: the global count)": (
            loss / counted.sum().clamp(min=1),
            loss / len(targets),
        ),
        "the softmax is over each rank's share, and the losses of the shares are added up; a "
        "token's probabilities add up to 1 over all ranks": sum(
            total(share.logsumexp(1), label, (targets >= cut.start) & (targets < cut.stop))
            for share, cut in zip(shares, cuts)
        ),
        "rank r's tokens do not begin at r times its own width, but at `start`: shares differ in "
        "size": _widths(logits, lse, maximum, targets, cuts),
        "the sum of exponentials is over this rank's share only": (
            total(mine_alone, label - maximum),
            total(mine_alone, (label - maximum) * here),
        ),
        "where another rank has the target, its logit is missing": (
            total(lse, label * here),
            total(lse - maximum, (label - maximum) * here),
        ),
        "it takes the logit of the token before the target: off by one": off_by(-1),
        "it takes the logit of the token behind the target: off by one": off_by(1),
        "its sign is wrong: the loss is log(sum of exp) minus the target's logit": -loss,
        "it is the loss of the first token alone, and all of them count": total(lse, label)
        - total(lse, label, counted & (torch.arange(len(targets)) > 0)),
        "the maximum is subtracted in one of its two terms only": (
            total(lse - maximum, label),
            total(lse, label - maximum),
        ),
    }


def _widths(logits, lse, maximum, targets, cuts) -> tuple[torch.Tensor, ...]:
    """The losses if rank r takes its tokens to begin at r times its own width."""
    label = none = torch.zeros_like(lse)
    for rank, cut in enumerate(cuts):
        column = targets - rank * len(cut)
        here = (column >= 0) & (column < len(cut))
        found = logits[:, cut.start : cut.stop].gather(1, column.where(here, 0).unsqueeze(1))
        label = label + (found.squeeze(1) - maximum) * here
    counted = targets != IGNORED
    return ((lse - maximum - label) * counted).sum(), ((lse - none - label) * counted).sum()


def _from_every_rank(x, targets, cuts) -> list[torch.Tensor]:
    """What is summed for each target if no rank masks: the index forced into range in some way."""

    def summed(column_in_share):
        columns = [cut.start + column_in_share(targets - cut.start, len(cut)) for cut in cuts]
        return sum(x.gather(1, column.unsqueeze(1)).squeeze(1) for column in columns)

    def zero_elsewhere(index, width):
        return torch.where((index >= 0) & (index < width), index, 0)

    def clamped(index, width):
        return index.clamp(0, width - 1)

    def wrapped(index, width):
        return index % width

    return [summed(how) for how in (zero_elsewhere, clamped, wrapped)]


def _compare_gradient(attempt, dlogits, logits, targets, mine) -> None:
    counted = (targets != IGNORED).unsqueeze(1)
    p = logits.softmax(1)[:, mine.start : mine.stop]
    p_share = logits[:, mine.start : mine.stop].softmax(1)
    index = (targets - mine.start).unsqueeze(1)
    onehot = (torch.arange(len(mine)) == index).to(p.dtype)
    index_forced = torch.where((index >= 0) & (index < len(mine)), index, 0)
    foreign = torch.stack(
        [
            (torch.arange(len(mine)) == forced).to(p.dtype)
            for forced in (index_forced, index.clamp(0, len(mine) - 1), index % len(mine))
        ]
    )
    attempt.equal(
        "dlogits",
        dlogits,
        (p - onehot) * counted,
        mistakes={
            f"tokens with the label {IGNORED} have a gradient; theirs is 0": p - onehot,
            "it is the softmax alone; at a token's target, 1 is to be taken off": p * counted,
            "it is a softmax over this rank's share; a token's probabilities add up to 1 over all "
            "ranks": ((p_share - onehot) * counted, p_share - onehot, p_share * counted),
            "1 is taken off on every rank, and only one rank has the target": tuple(
                (p - one) * counted for one in foreign
            ),
            "it has the wrong sign": (onehot - p) * counted,
            "1 is taken off beside the target: off by one": tuple(
                (p - (torch.arange(len(mine)) == place).to(p.dtype) * here) * counted
                for by in (1, -1)
                for place, here in (
                    (index + by, 1),
                    ((index + by) % len(mine), (index >= 0) & (index < len(mine))),
                )
            ),
            "it is that of the mean; asked for is that of the sum": (
                (p - onehot) * counted / counted.sum().clamp(min=1),
                (p - onehot) * counted / len(targets),
            ),
        },
    )


EXERCISE = Exercise(
    id="4d.tp.vocab-loss",
    goal="Each rank of tp has the logits of its own share of the vocabulary, and all have the same "
    "labels. Return the sum of the tokens' losses, the same on every rank, and the gradient of "
    "that sum with respect to this rank's logits, without ever gathering the logits.",
    interface="`my_vocabulary_loss(logits, targets, start)`: logits (T, V of this rank), of the "
    "vocabulary's tokens start, start + 1, ...; targets (T,), tokens of the *whole* vocabulary, or "
    f"{IGNORED} for a token that is not counted. Returns `loss, dlogits`: a tensor of shape () and "
    "one of the shape of logits. Ranks' shares may differ in size, and logits may be 1000 or "
    "-1000. The inputs stay as they are. You may use `pico.comm.all_reduce(t, axis, reason, "
    'op="sum")`, in place, also with `op="max"`; the axis is `"tp"`.',
    budget="At most three all-reduces over tp, of T numbers each (or fewer and longer ones: 3 T "
    "numbers in all).",
    hints=(
        "For one token, loss = log(sum over v of exp(x_v - m)) - (x_target - m), with m the "
        "maximum over v. Which three numbers a token need the other ranks, and what is each rank's "
        "part in them?",
        "m first, as an all-reduce with max: the exponentials of two ranks can only be added if "
        "both subtracted the same m. Then the sum of exponentials and the target's logit, both "
        "sums over ranks, if a rank without the target adds 0.",
        "`mine = (targets >= start) & (targets < stop)`, the column `targets - start`, set to 0 "
        "where not mine (so that it can be looked up), and the logit found times `mine`. dlogits = "
        "exp(x - m) / total, minus 1 at the target if it is mine, and 0 for tokens not counted.",
    ),
    stub_function=my_vocabulary_loss,
    solution_function=solution,
    why="The loss of a token needs three numbers that depend on all logits, and each is a maximum "
    "or a sum of parts: so T numbers travel and not T * V. With T = 8,192 and V = 128,256 the "
    "logits in fp32 are 4.2 GB, and the three numbers of each token 98 KB. The gradient, softmax "
    "minus one-hot, costs no further communication: every rank already has the denominator. "
    "Megatron-LM does it this way (arXiv 1909.08053, section 3). It is a *sum* because a rank "
    "cannot know the count to divide by: the mean over its own tokens, averaged over replicas, is "
    "another number where the replicas count unequally many.",
    judge=judge,
    cases=(
        Case("tp2", "a vocabulary of 8", {"vocab": 8}),
        Case(
            "dp2tp2",
            "two replicas, one without any counted token; shares of 4 and 3",
            {"vocab": 7},
        ),
        Case("tp3", "a vocabulary of 11: shares of 4, 4 and 3", {"vocab": 11}),
        Case("tp4", "logits about 1000 and -1000; shares of 3, 3, 2, 2", {"vocab": 10, "large": 1}),
    ),
    # The loss there is a class; this is what it looks its targets up with.
    blocked=("picolab.parallel.vocabulary.VocabularyParallelLoss.forward",),
    timeout=5.0,
)
