"""Wrong answers to 4d.cp.backward, what each author must be told, and right ones."""

import torch

from picolab import comm


def _backward(dout, q, k, v, out, lse, attend_backward, **how):
    """A ring's backward with one thing wrong."""
    cp, axis = comm.mesh().size("cp"), how.get("axis", "cp")
    dq, *dkv = attend_backward(dout, q, k, v, out, lse)
    own, dkv = torch.stack((k, v)), torch.stack(dkv)
    if how.get("starts_empty"):
        dkv = torch.zeros_like(dkv)
    kv, mine = own, dkv
    for _ in range(cp - 1):
        kv = comm.shift(own if how.get("never_passes_on") else kv, axis, "kv")
        if not how.get("stays"):
            dkv = comm.shift(dkv.to(how.get("dtype", dkv.dtype)), axis, "dkv").to(mine.dtype)
        more, *theirs = attend_backward(dout, q, *kv, out, lse)
        if not how.get("first_dq"):
            dq = dq + more
        dkv = dkv if how.get("adds_nothing") else dkv + torch.stack(theirs)
    if not (how.get("not_home") or how.get("stays")):
        dkv = comm.shift(dkv, axis, "dkv")
    if how.get("keys_home"):
        comm.shift(kv, axis, "kv")
    return (dq.to(q.dtype), *dkv.to(q.dtype)) if how.get("narrow") else (dq, *dkv)


def leaves_the_last_hop_out(*arguments):
    return _backward(*arguments, not_home=True)


def adds_up_at_home(*arguments):
    return _backward(*arguments, stays=True)


def keeps_its_own_share(dout, q, k, v, out, lse, attend_backward):
    _, dk, dv = attend_backward(dout, q, k, v, out, lse)
    kv, dq = torch.stack((k, v)), torch.zeros_like(out)
    cp = comm.mesh().size("cp")
    for hop in range(cp):
        given = (k, v) if hop == 0 else kv
        if hop:
            kv = comm.shift(kv, "cp", "kv")
            given = kv
            dq = dq + attend_backward(dout, q, *given, out, lse)[0]
        else:
            dq = dq + _
    return dq, dk, dv


def forgets_its_own_queries(*arguments):
    return _backward(*arguments, starts_empty=True)


def keeps_the_first_dq(*arguments):
    return _backward(*arguments, first_dq=True)


def never_passes_a_block_on(*arguments):
    return _backward(*arguments, never_passes_on=True)


def sends_the_gradients_in_bf16(*arguments):
    return _backward(*arguments, dtype=torch.bfloat16)


def returns_the_inputs_dtype(*arguments):
    return _backward(*arguments, narrow=True)


def sends_the_keys_home_too(*arguments):
    return _backward(*arguments, keys_home=True)


def goes_round_the_whole_world(*arguments):
    return _backward(*arguments, axis="world")


def sums_over_all_ranks(*arguments):
    dq, dk, dv = _backward(*arguments, stays=True)
    return dq, *(comm.all_reduce(x.contiguous(), "cp", "sum") for x in (dk, dv))


def returns_two(*arguments):
    return _backward(*arguments)[:2]


def keeps_its_own_share_at_home(dout, q, k, v, out, lse, attend_backward):
    dq, dk, dv = attend_backward(dout, q, k, v, out, lse)
    kv, travelling = torch.stack((k, v)), None
    for _ in range(comm.mesh().size("cp") - 1):
        kv = comm.shift(kv, "cp", "keys and values")
        more, *shares = attend_backward(dout, q, *kv, out, lse)
        dq, share = dq + more, torch.stack(shares)
        share = share if travelling is None else travelling + share
        travelling = comm.shift(share, "cp", "gradients")
    return (dq, dk, dv) if travelling is None else (dq, dk + travelling[0], dv + travelling[1])


def adds_dq_up_at_the_end(dout, q, k, v, out, lse, attend_backward):
    cp, kv, parts, d_kv = comm.mesh().size("cp"), torch.stack((k, v)), [], None
    for hop in range(cp):
        part, *shares = attend_backward(dout, q, kv[0], kv[1], out, lse)
        parts.append(part)
        share = torch.stack(shares)
        d_kv = comm.shift(share if d_kv is None else d_kv + share, "cp", "home")
        if hop < cp - 1:
            kv = comm.shift(kv, "cp", "on")
    return torch.stack(parts).sum(0), d_kv[0], d_kv[1]


def swaps_dk_and_dv(dout, q, k, v, out, lse, attend_backward):
    dq, dk, dv = adds_dq_up_at_the_end(dout, q, k, v, out, lse, attend_backward)
    return dq, dv, dk


def takes_the_mean_over_blocks(dout, q, k, v, out, lse, attend_backward):
    dq, dk, dv = adds_dq_up_at_the_end(dout, q, k, v, out, lse, attend_backward)
    return dq / comm.mesh().size("cp"), dk, dv


def stacks_dv_first(dout, q, k, v, out, lse, attend_backward):
    def other_way_round(*arguments):
        dq, dk, dv = attend_backward(*arguments)
        return dq, dv, dk

    return _backward(dout, q, k, v, out, lse, other_way_round)


MUTANTS = {
    leaves_the_last_hop_out: "one more hop brings it home",
    adds_up_at_home: "the share of a block belongs to its owner",
    keeps_its_own_share: "the other ranks' queries see these keys too",
    forgets_its_own_queries: "your own queries' share of it is missing",
    keeps_the_first_dq: "each block adds its share",
    never_passes_a_block_on: "should see each of 0 to 2 once",
    sends_the_gradients_in_bf16: "dk is wrong",
    returns_the_inputs_dtype: "sums over ranks stay in that",
    sends_the_keys_home_too: "it takes 6 sends, and the budget is 5",
    goes_round_the_whole_world: "it communicates over the ranks",
    sums_over_all_ranks: "it uses all-reduces",
    returns_two: "asked for is `return dq, dk, dv`",
    swaps_dk_and_dv: "it returns the right tensors in the order dq, dv, dk",
    stacks_dv_first: "in the order dq, dv, dk",
    takes_the_mean_over_blocks: "as a mean is and a sum is not",
}

RIGHT = (keeps_its_own_share_at_home, adds_dq_up_at_the_end)
