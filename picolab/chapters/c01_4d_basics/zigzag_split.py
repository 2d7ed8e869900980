"""Exercise: the zig-zag split of a sequence (chapter 1, section 6)."""

import itertools

import torch

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise
from picolab.exercises.diagnosis import ranges


def my_zigzag(x, rank, cp):
    chunk = x.shape[1] // (2 * cp)
    raise NotImplementedError(f"take two chunks of {chunk} tokens for rank {rank}")


def solution(x, rank, cp):
    import torch

    seq = x.shape[1]
    if seq % (2 * cp):
        raise ValueError(f"2 * cp = {2 * cp} must divide the sequence, which has {seq} tokens")
    chunk = seq // (2 * cp)
    chunks = torch.arange(seq).view(2 * cp, chunk)  # the positions, one row a chunk
    positions = torch.cat((chunks[rank], chunks[2 * cp - 1 - rank]))
    return x[:, positions], positions


def judge(learner, attempt: Attempt) -> None:
    cp, rank = comm.mesh().size("cp"), comm.mesh().rank("cp")
    chunk = attempt.case.values["chunk"]
    seq = 2 * cp * chunk
    # As many sequences as chunks: a cut along the wrong dim has a shape, too.
    tokens = torch.arange(2 * cp * seq).view(2 * cp, seq)
    mine = [i * chunk + j for i in (rank, 2 * cp - 1 - rank) for j in range(chunk)]
    for name, x in (
        ("the share of the tokens, (B, S)", tokens),
        ("the share of the labels, (B, S)", tokens + 1),
        ("the share of activations, (B, S, D)", attempt.tensor(2, seq, 3)),
    ):
        result = attempt.call(learner, {"x": x, "rank": rank, "cp": cp})
        if not _is_pair(attempt, result) or not _compare(attempt, name, *result, x, mine, cp):
            break
    else:
        _refuses(learner, attempt, rank, cp, seq)
    if not attempt.problems:
        _many_sizes(learner, attempt)
    attempt.budget(count=0)


def _many_sizes(learner, attempt: Attempt) -> None:
    """For other numbers of ranks: nothing travels, so nobody has to be there."""
    for cp, chunk in itertools.product((1, 2, 3, 5, 6, 8), (1, 2, 3)):
        seq = 2 * cp * chunk
        x = torch.arange(2 * cp * seq).view(2 * cp, seq)
        for rank in range(cp):
            attempt.budget(count=0)
            attempt.setting(f"my_zigzag(x, {rank}, {cp}) with {seq} tokens")
            mine = [i * chunk + j for i in (rank, 2 * cp - 1 - rank) for j in range(chunk)]
            result = attempt.call(learner, {"x": x, "rank": rank, "cp": cp})
            if not _is_pair(attempt, result):
                return
            if not _compare(attempt, "the share", *result, x, mine, cp):
                return


def _is_pair(attempt: Attempt, result) -> bool:
    if isinstance(result, tuple | list) and len(result) == 2:
        return True
    got = "nothing" if result is None else f"one {type(result).__name__}"
    return attempt.require(False, f"it returns {got}, and should return (share, positions)")


def _compare(attempt: Attempt, name: str, share, positions, x, mine: list[int], cp: int) -> bool:
    expected = x[:, mine]
    if isinstance(positions, torch.Tensor) and positions.shape == expected.shape != share.shape:
        return attempt.require(False, "it returns the positions first, and then the share")
    if isinstance(share, torch.Tensor) and share.shape == expected.shape:
        held = _held(share, x)
        if held is not None and held != mine:
            return attempt.require(False, _wrong_tokens(held, mine, x.shape[1], cp))
    elif isinstance(share, torch.Tensor) and share.shape == (len(x) // cp, *x.shape[1:]):
        return attempt.require(False, "it cuts along dim 0, the batch; the sequence is dim 1")
    if not attempt.equal(name, share, expected):
        return False
    if isinstance(positions, torch.Tensor) and positions.is_floating_point():
        return attempt.require(False, "the positions are no integers")
    wanted = torch.tensor(mine)
    if isinstance(positions, torch.Tensor) and positions.shape == wanted.shape:
        told = positions.tolist()
        return attempt.require(
            told == mine,
            f"it says that its tokens stand at {ranges(told)}, and they stand at {ranges(mine)} "
            "of the whole sequence: they would be rotated wrongly",
        )
    return attempt.equal("the positions, (S / cp,)", positions, wanted)


def _held(share, x) -> list[int] | None:
    """Which positions of x these are, in their order; None if they are not from x."""
    found = []
    for column in share.unbind(1):
        at = [i for i in range(x.shape[1]) if torch.equal(x[:, i], column)]
        if not at:
            return None
        found.append(at[0])
    return found


def _wrong_tokens(held: list[int], mine: list[int], seq: int, cp: int) -> str:
    """The scores tell a contiguous or striped cut; with the right number, it is the order."""
    if sorted(held) == sorted(mine):
        return (
            f"it holds the right tokens in the order {ranges(held)}; a rank's tokens must be in "
            "that of the sequence, or its mask is wrong"
        )
    scores, fair = sum(i + 1 for i in held), seq * (seq + 1) // 2 / cp
    if scores == fair:
        return f"it holds the tokens {ranges(held)}, and should hold {ranges(mine)}"
    return (
        f"with the tokens {ranges(held)} it computes {scores} scores, and the fair share is "
        f"{fair:.0f}: token i has i + 1"
    )


def _refuses(learner, attempt: Attempt, rank: int, cp: int, seq: int) -> None:
    longer = seq + cp  # cp divides it, and 2 * cp does not
    attempt.budget(count=0)
    attempt.setting(f"{longer} tokens, which 2 * cp = {2 * cp} does not divide")
    try:
        attempt.call(learner, {"x": torch.zeros(1, longer), "rank": rank, "cp": cp})
    except ValueError:
        return
    except NotImplementedError:
        raise
    except Exception as error:
        attempt.wrong(
            f"{longer} tokens on {cp} ranks: it raises {type(error).__name__}, and should raise "
            "ValueError"
        )
        return
    attempt.wrong(
        f"{longer} tokens cannot be cut into {2 * cp} equal chunks: it should raise ValueError, "
        "and returns something"
    )


EXERCISE = Exercise(
    id="4d.cp.zigzag",
    goal="Cut a sequence so that under causal attention, where token i has i + 1 scores, every "
    "rank computes *exactly* as many as every other. It is cut into 2c equal chunks; rank r gets "
    "chunk r and one more, in the order of the sequence. Which?",
    interface="`my_zigzag(x, rank, cp)` returns `(share, positions)`. x has the whole sequence "
    "along dim 1: tokens or labels (B, S), or activations (B, S, D). `share` is this rank's part. "
    "`positions` are the places of its tokens in the whole sequence, as integers (S / cp,): the "
    "rotary embedding needs them. Raise ValueError where 2 * cp does not divide S.",
    budget="no communication: every rank knows what is its own.",
    hints=(
        "Write the scores of each chunk for c = 2: four chunks of one token have 1, 2, 3 and 4. "
        "Which two pairs have the same sum?",
        "The lightest goes with the heaviest, the second with the last but one. If the first chunk "
        "is number r from the front, the other is number r from the back.",
        "Chunks r and 2 * cp - 1 - r. Take the positions first, "
        "`torch.arange(S).view(2 * cp, -1)` has one chunk a row, and then `x[:, positions]`.",
    ),
    stub_function=my_zigzag,
    solution_function=solution,
    why="With chunks of s tokens, chunk i costs i s^2 scores and its own triangle. Numbers r and "
    "2c-1-r add up to 2c-1, whatever r is. Positions are computed once and x is indexed by "
    "them, so tokens, labels and activations cannot be cut differently. And the split refuses a "
    "sequence that does not divide: with a shorter last chunk the sums would differ again.",
    judge=judge,
    cases=(
        Case("cp2", "12 tokens", {"chunk": 3}),
        Case("cp3", "6 tokens: a chunk is one token", {"chunk": 1}),
        Case("dp2cp2", "two replicas", {"chunk": 2}),
        Case("cp4", "40 tokens", {"chunk": 5}),
    ),
    blocked=(
        "picolab.parallel.sequence_split.chunks",
        "picolab.parallel.sequence_split.positions",
        "picolab.parallel.sequence_split.split_sequence",
        "picolab.parallel.sequence_split.split_batch",
    ),
    timeout=5.0,
)
