"""Exercise: the backward of ring attention (chapter 1, section 6)."""

import torch

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise

# Letters: B sequences, N heads, S a rank's tokens, E size of a head.


def my_ring_backward(dout, q, k, v, out, lse, attend_backward):
    import picolab as pico

    cp = pico.comm.mesh().size("cp")
    shares = attend_backward(dout, q, k, v, out, lse)  # of dq, dk and dv, from my own block
    raise NotImplementedError(f"{cp - 1} more blocks; who adds to which of the {len(shares)}?")


def solution(dout, q, k, v, out, lse, attend_backward):
    import torch

    import picolab as pico

    cp = pico.comm.mesh().size("cp")
    dq, *dkv = attend_backward(dout, q, k, v, out, lse)
    kv, dkv = torch.stack((k, v)), torch.stack(dkv)
    for _ in range(cp - 1):  # a block, and behind it what all ranks so far add to its gradient
        kv = pico.comm.shift(kv, "cp", "cp: keys and values")
        dkv = pico.comm.shift(dkv, "cp", "cp: their gradients")
        more, *theirs = attend_backward(dout, q, *kv, out, lse)
        dq, dkv = dq + more, dkv + torch.stack(theirs)
    dkv = pico.comm.shift(dkv, "cp", "cp: their gradients")  # home
    return dq, *dkv


def judge(learner, attempt: Attempt) -> None:
    mesh = comm.mesh()
    cp, me, values = mesh.size("cp"), mesh.rank("cp"), attempt.case.values
    dtype = values.get("dtype", torch.float64)
    # Every replica has sequences of its own: who asks the whole world sees foreign keys.
    drawn = attempt.tensor(4, mesh.size("dp"), cp, 2, 2, values["tokens"], 4).to(dtype)
    queries, keys, vectors, douts = drawn[:, mesh.rank("dp")]  # each (cp, B, N, S, E)
    scores = [_scores(q, torch.cat(list(keys), -2)) for q in queries]
    outs = [s.softmax(-1) @ torch.cat(list(vectors), -2).double() for s in scores]
    lses = [s.logsumexp(-1) for s in scores]
    of_block = {  # [queries of][keys of] -> dq, dk, dv
        (r, o): _attend_backward(douts[r], queries[r], keys[o], vectors[o], outs[r], lses[r])
        for r in range(cp)
        for o in range(cp)
    }
    given: list[int | None] = []

    def attend_backward(dout, q, k, v, out, lse):
        if k.shape != q.shape or v.shape != q.shape:
            raise ValueError(
                "attend_backward takes k and v of q's shape (B, N, S, E), and got "
                f"{tuple(k.shape)} and {tuple(v.shape)}"
            )
        owners = [_owner(k, keys), _owner(v, vectors)]
        given.append(owners[0] if owners[0] == owners[1] else None)
        found = _attend_backward(dout, q, k, v, out, lse)
        return tuple(x.to(torch.promote_types(q.dtype, torch.float32)) for x in found)

    attend_backward.__qualname__ = "attend_backward"  # for error messages
    arguments = {
        "dout": douts[me],
        "q": queries[me],
        "k": keys[me],
        "v": vectors[me],
        "out": outs[me],
        "lse": lses[me],
        "attend_backward": attend_backward,
    }
    result = attempt.call(learner, arguments)
    attempt.only("send", "recv")
    attempt.along("cp")
    if attempt.returned(result, "dq", "dk", "dv") and _sees_each_block_once(attempt, given, me, cp):
        _compare(attempt, result, of_block, me, cp, dtype)
    block = 2 * keys[me].numel()
    wide = torch.promote_types(dtype, torch.float32).itemsize
    # A rank may keep its own share at home: one hop of the gradients fewer.
    attempt.budget("send", count=2 * cp - 1, at_least=2 * cp - 2, axis="cp")
    most = (cp - 1) * block * dtype.itemsize + cp * block * wide
    attempt.budget("send", payload_bytes=most, least_bytes=most - block * wide, axis="cp")


def _scores(q, k):
    return q.double() @ k.double().mT / q.shape[-1] ** 0.5


def _attend_backward(dout, q, k, v, out, lse):
    """One block's share of dq, dk and dv, in fp64; chapter 1 derives it."""
    dout, q, k, v, out = (x.double() for x in (dout, q, k, v, out))
    p = (_scores(q, k) - lse.unsqueeze(-1)).exp()
    dscores = p * (dout @ v.mT - (dout * out).sum(-1, keepdim=True)) / q.shape[-1] ** 0.5
    return dscores @ k, dscores.mT @ q, p.mT @ dout


def _owner(block, blocks) -> int | None:
    return next((rank for rank, one in enumerate(blocks) if torch.equal(block, one)), None)


def _sees_each_block_once(attempt: Attempt, given, me: int, cp: int) -> bool:
    if None in given:
        return attempt.require(
            False,
            "attend_backward was given keys and values that are no block of this ring: did they "
            "travel along the right axis, and k with its own v?",
        )
    hops = [(me - owner) % cp for owner in given]
    if sorted(hops) == list(range(cp)):
        return True
    seen = ", ".join(map(str, hops)) or "none"
    return attempt.require(
        False,
        f"attend_backward saw the keys of the ranks {seen} places to its left, and should see each "
        f"of 0 to {cp - 1} once",
    )


def _compare(attempt: Attempt, result, of_block, me: int, cp: int, dtype) -> None:
    expected = [
        sum(of_block[me, owner][0] for owner in range(cp)),
        *(sum(of_block[rank, me][i] for rank in range(cp)) for i in (1, 2)),
    ]
    wide = torch.promote_types(dtype, torch.float32)
    names = ("dq", "dk", "dv")
    for name, got in zip(names, result):
        if isinstance(got, torch.Tensor) and got.dtype != wide:
            attempt.wrong(
                f"{name} is in {got.dtype}, and what attend_backward returns is in {wide}: sums "
                "over ranks stay in that"
            )
            return
    if not attempt.in_order(**dict(zip(names, zip(result, expected)))):
        return
    rtol = 1e-10 if dtype == torch.float64 else 1e-5
    attempt.equal(
        "dq",
        result[0],
        expected[0],
        rtol,
        {
            "only one block of keys is in it: each block adds its share": tuple(
                of_block[me, owner][0] for owner in range(cp)
            )
        },
        dtype=wide,
    )
    for i, name in ((1, "dk"), (2, "dv")):
        got, mistakes = result[i], _mistakes(of_block, me, cp, i)
        if not attempt.equal(name, got, expected[i], rtol, mistakes, dtype=wide):
            if getattr(got, "shape", None) == expected[i].shape and dtype != torch.float64:
                near = (got.double() - expected[i]).abs().max() < 0.03 * expected[i].abs().max()
                if near:
                    attempt.problems[-1] = (
                        f"{name} is nearly right: it was rounded on its way. The gradients are "
                        "sums over ranks, and travel in the dtype of attend_backward's results"
                    )
            return


def _mistakes(of_block, me: int, cp: int, i: int) -> dict:
    """What a wrong dk or dv is made of."""

    def of_owner(owner, ranks=range(cp)):
        return sum(of_block[rank, owner][i] for rank in ranks)

    others = [owner for owner in range(cp) if owner != me]
    return {
        "it holds what your own queries add, and the other ranks' queries see these keys too": (
            of_block[me, me][i]
        ),
        "it is the gradient of another rank's keys: one more hop brings it home": tuple(
            of_owner(owner) for owner in others
        ),
        "your own queries' share of it is missing": of_owner(me, others),
        "it adds up your queries' shares of *all* blocks: the share of a block belongs to its "
        "owner": sum(of_block[me, owner][i] for owner in range(cp)),
        "it is the sum over all blocks of all ranks": sum(of_owner(owner) for owner in range(cp)),
    }


EXERCISE = Exercise(
    id="4d.cp.backward",
    goal="Forward, keys and values went round and every rank attended to all of them (without a "
    "mask here). Now go back: dq of this rank's queries, and dk and dv of its keys and values, "
    "which *all* ranks' queries have seen.",
    interface="`my_ring_backward(dout, q, k, v, out, lse, attend_backward)` returns `dq, dk, dv`. "
    "All of them are this rank's shares, (B, N, S, E); lse is (B, N, S). out and lse are over "
    "*all* keys, as forward left them. `attend_backward(dout, q, k, v, out, lse)` gives the shares "
    "of dq, dk and dv of *this* block of keys and values, in fp32 or better; return the same "
    "dtype. "
    'To send there is `pico.comm.shift(x, "cp", reason)`: it gives x to the right neighbour and '
    "returns what comes from the left.",
    budget="2c-1 sends a rank: c-1 of a block's K and V together, in their own dtype, and c of "
    "their "
    "gradients together, in attend_backward's. (Fewer and larger ones are fine, as long as no more "
    "bytes travel.)",
    hints=(
        "Stand beside one block of keys and go round with it. Who adds to its gradient? And where "
        "is that sum to be when it is complete?",
        "Two things travel: a block, and behind it the sum of what its hosts so far have added to "
        "its gradient. At each stop, add your share to the one that belongs to the block that you "
        "hold *now*. After c-1 hops: whose gradient do you hold?",
        "`dq, *dkv = attend_backward(...)` over your own block, `dkv = torch.stack(dkv)`. Then c-1 "
        "times: shift kv, shift dkv, call attend_backward with what came, add to dq and to dkv. "
        "One "
        "last shift brings dkv home.",
    ),
    stub_function=my_ring_backward,
    solution_function=solution,
    why="dq needs all keys, which come by: it stays and grows. dk and dv need all queries, which "
    "do "
    "not travel; so the sums do, each behind its block, and after c hops it is home. Nothing of "
    "forward's blocks was kept but out and lse: with the final lse each block's probabilities can "
    "be "
    "computed again on their own. The sums are in fp32: c-1 additions in bf16 would round c-1 "
    "times. (The package starts dkv at the first rank that is not the owner and adds the owner's "
    "share at home, which saves one hop; and it posts each hop before the block is computed. "
    "arXiv 2310.01889.)",
    judge=judge,
    cases=(
        Case("cp3", "5 tokens a rank", {"tokens": 5}),
        Case("cp2", "1 token a rank", {"tokens": 1}),
        Case("dp2cp2", "two replicas, each with a ring of two", {"tokens": 3}),
        Case("cp4", "in bf16", {"tokens": 4, "dtype": torch.bfloat16}),
    ),
    blocked=("picolab.parallel.ring.ring_attention",),
    timeout=5.0,
)
