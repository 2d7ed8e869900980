"""Exercise: ring attention, and the merge at its heart (chapter 1, section 6)."""

import torch

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise
from picolab.exercises.diagnosis import near

# Letters: B sequences, N heads, S a rank's tokens, E size of a head.


def my_ring_attention(q, k, v, attend):
    import picolab as pico

    cp = pico.comm.mesh().size("cp")
    out, lse = attend(q, k, v)  # over my own block of keys
    raise NotImplementedError(f"{cp - 1} more blocks to merge into {out.shape} and {lse.shape}")


def solution(q, k, v, attend):
    import torch

    import picolab as pico

    cp = pico.comm.mesh().size("cp")
    out, lse = attend(q, k, v)
    kv = torch.stack((k, v))  # one message
    for _ in range(cp - 1):
        kv = pico.comm.shift(kv, "cp", "cp: keys and values")  # what came is what goes next
        other, other_lse = attend(q, *kv)
        weight = torch.sigmoid(other_lse - lse)  # = e^other_lse / (e^lse + e^other_lse)
        weight = torch.where(other_lse == -torch.inf, 0.0, weight)  # it saw nothing
        out = out + weight.unsqueeze(-1) * (other - out)
        lse = torch.logaddexp(lse, other_lse)
    return out, lse


def judge(learner, attempt: Attempt) -> None:
    mesh = comm.mesh()
    cp, me, values = mesh.size("cp"), mesh.rank("cp"), attempt.case.values
    dtype = values.get("dtype", torch.float64)
    # Every replica has sequences of its own: who asks the whole world sees foreign keys.
    sequences = len(values.get("real", (1, 1)))
    drawn = attempt.tensor(3, mesh.size("dp"), cp, sequences, 2, values["tokens"], 4).to(dtype)
    queries, keys, vectors = _prepare(drawn[:, mesh.rank("dp")], values)  # each (cp, B, N, S, E)
    given: list[tuple[int | None, int | None]] = []  # the owner of each k, and of each v
    strange: list[str] = []  # what is said of keys and values that are nobody's
    found = []

    def attend(q, k, v):
        if k.shape != q.shape or v.shape != q.shape:
            raise ValueError(
                "attend takes q, k and v of the same shape (B, N, S, E), and got "
                f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
            )
        given.append((_owner(k, keys), _owner(v, vectors)))
        if None in given[-1] or k.dtype != q.dtype:
            strange.append(_whose(k, v, keys, vectors, drawn))
        found.append(_attend(q, k, v))
        return found[-1]

    attend.__qualname__ = "attend"  # for error messages
    q, k, v = queries[me], keys[me], vectors[me]
    result = attempt.call(learner, {"q": q, "k": k, "v": v, "attend": attend})
    attempt.only("send", "recv")
    if _is_pair(attempt, result) and _sees_each_block_once(attempt, given, strange, me, cp):
        _compare(attempt, *result, found, _dense(q, keys, vectors))
    attempt.budget("send", count=cp - 1, at_least=cp - 1, axis="cp")
    block_bytes = 2 * k.numel() * k.element_size()
    attempt.budget(
        "send",
        payload_bytes=(cp - 1) * block_bytes,
        least_bytes=(cp - 1) * block_bytes,
        axis="cp",
    )


def _prepare(drawn, values):
    """Keys whose scores lie where the case wants them, and padding where it wants that."""
    q, k, v = drawn.clone()
    if "scores" in values:  # [sequence][owner]: what every score of the block is near
        q[..., 0] = q.shape[-1] ** 0.5
        k[..., 0] = torch.tensor(values["scores"]).to(k.dtype).T[:, :, None, None]
    for sequence, real in enumerate(values.get("real", ())):  # what follows is padding
        cp, tokens = k.shape[0], k.shape[3]
        padding = torch.arange(cp * tokens).view(cp, tokens) >= real
        k[:, sequence] = k[:, sequence].masked_fill(padding[:, None, :, None], 0)
    return q, k, v


def _scores(q, k):
    """In fp64. Keys of zeros are padding."""
    scores = q.double() @ k.double().mT / q.shape[-1] ** 0.5
    return scores.masked_fill((k == 0).all(-1).unsqueeze(-2), -torch.inf)


def _attend(q, k, v):
    scores = _scores(q, k)
    lse = scores.logsumexp(-1)
    p = torch.where(scores == -torch.inf, 0.0, (scores - lse.unsqueeze(-1)).exp())
    dtype = torch.promote_types(q.dtype, torch.float32)
    return (p @ v.double()).to(dtype), lse.to(dtype)


def _dense(q, k, v):
    """Over the whole sequence at once; 0 and minus infinity where all of it is padding."""
    k, v = (torch.cat(list(x), dim=-2) for x in (k, v))
    scores = _scores(q, k)
    return scores.softmax(-1).nan_to_num(0.0) @ v.double(), scores.logsumexp(-1)


def _owner(block, blocks, rtol: float = 0.0) -> int | None:
    same = (rank for rank, one in enumerate(blocks) if near(block, one, rtol))
    return next(same, None)


# What is said about a wrong answer.


def _is_pair(attempt: Attempt, result) -> bool:
    if isinstance(result, tuple | list) and len(result) == 2:
        return True
    got = "nothing" if result is None else f"one {type(result).__name__}"
    return attempt.require(False, f"it returns {got}, and should return the pair (out, lse)")


def _whose(k, v, keys, vectors, drawn) -> str:
    """What attend was given in place of the keys and values of a rank of this ring."""
    if _owner(k, vectors) is not None and _owner(v, keys) is not None:
        return "attend was given the values as keys and the keys as values: they are swapped"
    if _owner(k, vectors) is not None and _owner(v, vectors) is not None:
        return "attend was given values as keys"
    if _owner(k, keys) is not None and _owner(v, keys) is not None:
        return "attend was given keys as values"
    own = keys.dtype
    if k.dtype != own or v.dtype != own:
        return f"attend was given keys or values in {k.dtype}; they travel in their own, {own}"
    if _owner(k, keys, 1e-2) is not None and _owner(v, vectors, 1e-2) is not None:
        return (
            "attend was given keys or values that are only nearly a rank's: they were rounded on "
            "the way (send them in their own dtype)"
        )
    others = drawn[1].flatten(0, 1)
    if any(torch.equal(k, one) for one in others):
        return (
            "attend was given the keys of another replica, which has sequences of its own: did "
            "they travel along the right axis?"
        )
    return (
        "attend was given keys or values that are no rank's: was a buffer overwritten while it "
        "was still needed, or k and v cut apart in another way than they were joined?"
    )


def _sees_each_block_once(attempt: Attempt, given, strange, me: int, cp: int) -> bool:
    if not given:
        return attempt.require(False, "it never calls attend")
    if strange:
        return attempt.require(False, strange[0])
    if any(of_keys != of_values for of_keys, of_values in given):
        return attempt.require(False, "attend was given the keys of one rank and values of another")
    hops = [(me - owner) % cp for owner, _ in given]
    if sorted(hops) == list(range(cp)):
        return True
    seen = ", ".join(map(str, hops))
    sentence = f"attend saw the keys of the ranks {seen} places to its left, and should see each of"
    tail = ": is what arrived passed on?" if len(set(hops)) < len(hops) else ""
    return attempt.require(False, f"{sentence} 0 to {cp - 1} once{tail}")


def _compare(attempt: Attempt, out, lse, found, expected) -> None:
    dtype = found[0][0].dtype
    if not attempt.in_order(out=(out, expected[0]), lse=(lse, expected[1])):
        return
    for name, got, wanted in (("out", out, expected[0]), ("lse", lse, expected[1])):
        if isinstance(got, torch.Tensor) and got.dtype != dtype:
            attempt.wrong(
                f"{name} is in {got.dtype}, and attend's are in {dtype}: merge in that, and leave "
                "the rounding to the caller, who does it once"
            )
            return
        if isinstance(got, torch.Tensor) and (got.isnan() | (got == torch.inf)).any():
            attempt.equal(name, got, wanted, dtype=dtype)
            attempt.wrong(_why_not_finite(attempt.case.values))
            return
    rtol = 1e-10 if dtype == torch.float64 else 1e-5
    before = len(attempt.problems)
    right = attempt.equal("out", out, expected[0], rtol, dtype=dtype)
    right &= attempt.equal("lse", lse, expected[1], rtol, dtype=dtype)
    shapes = [getattr(x, "shape", None) for x in (out, lse)]
    if not right and shapes == [x.shape for x in expected]:
        told = [sentence for sentence, merge in _TYPICAL if _merged(found, merge, out, lse)]
        told += [sentence for sentence, wrong in _outs(found) if near(out, wrong, 1e-6)]
        told += [sentence for sentence, wrong in _lses(found) if near(lse, wrong, 1e-6)]
        if not told and _zeroed(out, expected[0]):
            told.append("what was nan has been made 0: the blocks merged before it are lost")
        if (expected[1] == -torch.inf).any() and not right and not told:
            told += _of_padding(out, lse, expected)
        if near(out, expected[0], 0.02) and not near(out, expected[0], rtol):
            told.append(_ROUNDED)
        # What kind of mistake it is helps more than where it shows.
        attempt.problems[before:] = told[:1] or attempt.problems[before:]


_ROUNDED = (
    "it is nearly right: as if it had been rounded at each merge. Are the running out and lse in "
    "the dtype that attend returns?"
)


def _outs(found) -> list:
    """Typical outs of those who collect all blocks and combine them at the end."""
    out, lse = (torch.stack(x) for x in zip(*found))
    weight = lse.nan_to_num(neginf=0.0)
    return [
        ("out is the plain mean of all blocks: a block counts e^lse times", out.mean(0)),
        (
            "out is the sum of the blocks' outs, each of which was divided by its own sum",
            out.sum(0),
        ),
        (
            "the blocks are weighted with lse itself: a block counts e^lse times",
            (weight.unsqueeze(-1) * out).sum(0) / weight.sum(0).unsqueeze(-1),
        ),
        ("out is that of the last block alone", out[-1]),
        ("out is that of this rank's own block alone", out[0]),
    ]


def _lses(found) -> list:
    lse = torch.stack([lse for _, lse in found])
    return [
        ("lse is the largest of the blocks': what adds up is e^lse", lse.amax(0)),
        ("lse is that of the last block alone", lse[-1]),
        ("lse is the mean of the blocks': what adds up is e^lse", lse.mean(0)),
        ("it is the sum of e^lse, and its logarithm is missing", lse.exp().sum(0)),
    ]


def _of_padding(out, lse, expected) -> list[str]:
    """For rows all of whose keys are padding."""
    nothing = expected[1] == -torch.inf
    if (lse[nothing] == -torch.inf).all() and not out[nothing].any():
        return []
    if not out[nothing].any():
        return [
            f"a row all of whose keys are padding has an lse of {lse[nothing][0]:.6g} and should "
            "have minus infinity: nobody has seen a key (is lse clamped, or is its exponential "
            "kept from 0?)"
        ]
    return ["a row all of whose keys are padding has an out that is not 0"]


def _zeroed(out, expected) -> bool:
    """0 where it should not be, and right everywhere else."""
    wrong = (out == 0) & (expected != 0)
    return bool(wrong.any()) and near(out, expected.masked_fill(wrong, 0), 1e-6)


def _why_not_finite(values) -> str:
    if "real" in values:
        return (
            "here whole blocks are padding: lse is minus infinity in both, and minus infinity "
            "minus minus infinity is nan"
        )
    return (
        "here lse goes from -2000 to 800, and e^800 is more than a float64 holds (so is 0/0 of "
        "two e^-800): take the difference of the two lse before the exponential"
    )


def _merged(found, merge, out, lse) -> bool:
    """Whether this way to merge the blocks gives the learner's out, or lse and out."""
    first, *others = found
    total = first
    for other in others:
        total = merge(*total, *other)
    return torch.allclose(total[0], out, 1e-6, 1e-9) and torch.allclose(total[1], lse, 1e-6, 1e-9)


def _mean(out, lse, other, other_lse):
    return (out + other) / 2, torch.logaddexp(lse, other_lse)


def _swapped(out, lse, other, other_lse):
    weight = torch.sigmoid(lse - other_lse).unsqueeze(-1)
    return out + weight * (other - out), torch.logaddexp(lse, other_lse)


def _added(out, lse, other, other_lse):
    weight = torch.sigmoid(other_lse - lse).unsqueeze(-1)
    return out + weight * (other - out), lse + other_lse


def _first_kept(out, lse, other, other_lse):
    weight = torch.sigmoid(other_lse - lse).unsqueeze(-1)
    return out + weight * (other - out), lse


def _clamped(least):
    def merge(out, lse, other, other_lse):
        lse, other_lse = lse.clamp(min=least), other_lse.clamp(min=least)
        weight = torch.sigmoid(other_lse - lse).unsqueeze(-1)
        return out + weight * (other - out), torch.logaddexp(lse, other_lse)

    return merge


_TYPICAL = (
    ("out is the plain mean of two blocks at each merge: a block counts e^lse times", _mean),
    ("the weights are swapped: the block with the larger lse has to count more", _swapped),
    ("lse is the sum of both: what adds up is e^lse, and lse is its logarithm", _added),
    ("lse is still that of the first block: the next merge needs that of all so far", _first_kept),
    ("is lse clamped? It may be any number, and -2000 here", _clamped(-1e2)),
    ("is lse clamped? It may be any number, and -2000 here", _clamped(-1e3)),
)


EXERCISE = Exercise(
    id="4d.cp.merge",
    goal="Attention of this rank's queries to the keys and values of *all* c ranks of the `cp` "
    "axis, which come by block after block. Here every query may see every key, whatever their "
    "order: the mask of causality is left out.",
    interface="`my_ring_attention(q, k, v, attend)` returns `(out, lse)` over all keys. q, k and v "
    "are this rank's shares, (B, N, S, E). `attend(q, k, v)` gives `(out, lse)` over *these* keys: "
    "out is (B, N, S, E), and lse, the logarithm of what the softmax divided by, is (B, N, S). "
    "Both come in fp32 or better, also where q, k and v are bf16, and you return them in the same "
    "dtype. Sequences are padded: where all keys of a block are padding, attend returns an out of "
    "0 and an lse of minus infinity, and where all keys of *all* blocks are, so do you. Otherwise "
    "lse may be any number, 800 or -2000 as well. To send "
    'there is `pico.comm.shift(x, "cp", reason)`: it gives x to the right neighbour and returns '
    "what comes from the left.",
    budget="c-1 sends a rank, each of one block's K and V together in their own dtype. No other "
    "collectives.",
    hints=(
        "Two things go on: a block travels, and a result grows. Which of the two do you send? And "
        "what are out and lse of the first two blocks together? With lse, you can undo the "
        "division of each and add.",
        "After each shift, attend to what arrived and merge it; the next shift sends *that*. The "
        "new block's part is e^other_lse / (e^lse + e^other_lse). Divide both by e^other_lse, and "
        "only a difference is left in the exponent. When is that difference no number?",
        "weight = torch.sigmoid(other_lse - lse), and 0 where other_lse is minus infinity "
        "(`torch.where`). Then out moves by weight * (other - out), and lse becomes "
        "torch.logaddexp(lse, other_lse). `torch.stack((k, v))` is one message.",
    ),
    stub_function=my_ring_attention,
    solution_function=solution,
    why="e^lse times out is the sum before the division, and such sums add up. Written with the "
    "difference of both lse, nothing can overflow: a sigmoid is between 0 and 1. Only where "
    "*neither* side has seen a key is the difference nan, and a block that saw nothing has weight "
    "0 anyway. The result stays in fp32: rounded to bf16 at each of c-1 merges, the errors would "
    "add up. The block that arrived is passed on, so after c-1 hops every block has been "
    "everywhere; a c-th hop would only bring it home.",
    judge=judge,
    cases=(
        Case("cp3", "5 tokens a rank", {"tokens": 5}),
        Case("dp2cp2", "two replicas, each with a ring of two", {"tokens": 3}),
        Case(
            "cp4",
            "lse from -2000 to 800",
            {"tokens": 2, "scores": [[-800, 800, 0, 799], [-2000, -2001, -1999, -2000]]},
        ),
        Case(
            "cp4",
            "of three sequences one is whole, one has 3 tokens, one is all padding",
            {"tokens": 2, "real": (8, 3, 0)},
        ),
        Case("cp4", "q, k and v in bf16", {"tokens": 4, "dtype": torch.bfloat16}),
    ),
    blocked=(
        "picolab.parallel.ring.ring_attention",
        "picolab.parallel.ring.merge",
        "picolab.parallel.gathered.gathered_attention",
        "picolab.parallel.ulysses.ulysses_attention",
    ),
    timeout=5.0,
)
