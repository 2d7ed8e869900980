"""Exercise: the zig-zag split of a sequence (chapter 1, section 6)."""

import torch

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.definition import Case, Exercise, Mutant


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
    attempt.budget(count=0)


def _is_pair(attempt: Attempt, result) -> bool:
    if isinstance(result, tuple | list) and len(result) == 2:
        return True
    got = "nothing" if result is None else f"one {type(result).__name__}"
    return attempt.require(False, f"it returns {got}, and should return (share, positions)")


def _compare(attempt: Attempt, name: str, share, positions, x, mine: list[int], cp: int) -> bool:
    expected = x[:, mine]
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
            f"it says that its tokens stand at {_ranges(told)}, and they stand at {_ranges(mine)} "
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
            f"it holds the right tokens in the order {_ranges(held)}; a rank's tokens must be in "
            "that of the sequence, or its mask is wrong"
        )
    scores, fair = sum(i + 1 for i in held), seq * (seq + 1) // 2 / cp
    if scores == fair:
        return f"it holds the tokens {_ranges(held)}, and should hold {_ranges(mine)}"
    return (
        f"with the tokens {_ranges(held)} it computes {scores} scores, and the fair share is "
        f"{fair:.0f}: token i has i + 1"
    )


def _refuses(learner, attempt: Attempt, rank: int, cp: int, seq: int) -> None:
    longer = seq + cp  # cp divides it, and 2 * cp does not
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


def _ranges(positions: list[int]) -> str:
    """0, 1, 2, 9 -> "0-2 9"; whatever does not go up by one is a range of its own."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and position == runs[-1][-1] + 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


# Wrong in the ways people are.


def _take(x, cp, which, dim=1):
    chunk = x.shape[1] // (2 * cp)
    chunks = torch.arange(x.shape[1])[: 2 * cp * chunk].view(2 * cp, chunk)
    positions = torch.cat([chunks[i] for i in which])
    return x.index_select(dim, positions), positions


def _refuse(x, cp):
    if x.shape[1] % (2 * cp):
        raise ValueError("no equal chunks")


def cuts_contiguously(x, rank, cp):
    _refuse(x, cp)
    return _take(x, cp, (2 * rank, 2 * rank + 1))


def takes_r_and_r_plus_c(x, rank, cp):
    _refuse(x, cp)
    return _take(x, cp, (rank, rank + cp))


def counts_from_one_too_far(x, rank, cp):
    _refuse(x, cp)
    return _take(x, cp, (rank, (2 * cp - rank) % (2 * cp)))


def takes_the_mirrored_rank(x, rank, cp):
    _refuse(x, cp)
    return _take(x, cp, (cp - 1 - rank, cp + rank))


def gives_local_positions(x, rank, cp):
    share, positions = solution(x, rank, cp)
    return share, torch.arange(len(positions))


def gives_contiguous_positions(x, rank, cp):
    share, positions = solution(x, rank, cp)
    return share, rank * len(positions) + torch.arange(len(positions))


def reverses_the_second_chunk(x, rank, cp):
    _, positions = solution(x, rank, cp)
    first, second = positions.chunk(2)
    positions = torch.cat((first, second.flip(0)))
    return x[:, positions], positions


def puts_the_late_chunk_first(x, rank, cp):
    _refuse(x, cp)
    return _take(x, cp, (2 * cp - 1 - rank, rank))


def cuts_the_batch(x, rank, cp):
    _refuse(x, cp)
    chunk = x.shape[0] // (2 * cp)
    share = torch.cat([x[i * chunk : (i + 1) * chunk] for i in (rank, 2 * cp - 1 - rank)])
    return share, solution(x, rank, cp)[1]


def refuses_nothing(x, rank, cp):
    return _take(x, cp, (rank, 2 * cp - 1 - rank))


def asserts(x, rank, cp):
    assert x.shape[1] % (2 * cp) == 0
    return _take(x, cp, (rank, 2 * cp - 1 - rank))


def asks_for_the_half_only(x, rank, cp):
    if x.shape[1] % cp:
        raise ValueError("no equal shares")
    return _take(x, cp, (rank, 2 * cp - 1 - rank))


def forgets_the_positions(x, rank, cp):
    return solution(x, rank, cp)[0]


def asks_the_others(x, rank, cp):
    share, positions = solution(x, rank, cp)
    comm.barrier("cp")
    return share, positions


def calls_the_packages(x, rank, cp):
    from picolab.parallel.sequence_split import positions, split_sequence

    return split_sequence(x, rank, cp), positions(rank, cp, x.shape[1])


EXERCISE = Exercise(
    id="4d.cp.zigzag",
    title="The zig-zag split",
    minutes=10,
    difficulty=2,
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
    mutants=(
        Mutant(cuts_contiguously, "scores, and the fair share is"),
        Mutant(takes_r_and_r_plus_c, "scores, and the fair share is"),
        Mutant(counts_from_one_too_far, "scores, and the fair share is"),
        Mutant(takes_the_mirrored_rank, "and should hold"),
        Mutant(gives_local_positions, "it says that its tokens stand at 0-5"),
        Mutant(gives_contiguous_positions, "it says that its tokens stand at"),
        Mutant(reverses_the_second_chunk, "must be in that of the sequence"),
        Mutant(puts_the_late_chunk_first, "must be in that of the sequence"),
        Mutant(cuts_the_batch, "it cuts along dim 0"),
        Mutant(refuses_nothing, "it should raise ValueError"),
        Mutant(asserts, "it raises AssertionError"),
        Mutant(asks_for_the_half_only, "it should raise ValueError"),
        Mutant(forgets_the_positions, "should return (share, positions)"),
        Mutant(asks_the_others, "collectives, and the budget is 0"),
        Mutant(calls_the_packages, "is what this exercise asks you to write"),
    ),
    blocked=(
        "picolab.parallel.sequence_split.chunks",
        "picolab.parallel.sequence_split.positions",
        "picolab.parallel.sequence_split.split_sequence",
        "picolab.parallel.sequence_split.split_batch",
    ),
    timeout=5.0,
)
