"""Wrong answers to 4d.cp.merge, what each author must be told, and right ones."""

import torch

from picolab import comm
from picolab.chapters.c01_4d_basics.ring_merge import _added, _first_kept, _mean, _swapped, solution


def _ring(q, k, v, attend, merge, passes_on=True, hops=-1):
    out, lse = attend(q, k, v)
    own = kv = torch.stack((k, v))
    cp = comm.mesh().size("cp")
    for hop in range(cp + hops):
        kv = comm.shift(kv if passes_on else own, "cp", "ring")
        if hop < cp - 1:
            out, lse = merge(out, lse, *attend(q, *kv))
    return out, lse


def _right(out, lse, other, other_lse):
    total = torch.logaddexp(lse, other_lse)
    weight = (other_lse - total).exp().nan_to_num(0.0).unsqueeze(-1)
    return out + weight * (other - out), total


def averages_the_outputs(q, k, v, attend):
    return _ring(q, k, v, attend, _mean)


def swaps_the_weights(q, k, v, attend):
    return _ring(q, k, v, attend, _swapped)


def adds_the_lse(q, k, v, attend):
    return _ring(q, k, v, attend, _added)


def keeps_the_first_lse(q, k, v, attend):
    return _ring(q, k, v, attend, _first_kept)


def takes_plain_exponentials(q, k, v, attend):
    def merge(out, lse, other, other_lse):
        mine, theirs = lse.exp().unsqueeze(-1), other_lse.exp().unsqueeze(-1)
        total = torch.logaddexp(lse, other_lse)
        return (mine * out + theirs * other) / (mine + theirs), total

    return _ring(q, k, v, attend, merge)


def forgets_who_saw_nothing(q, k, v, attend):
    def merge(out, lse, other, other_lse):
        weight = torch.sigmoid(other_lse - lse).unsqueeze(-1)
        return out + weight * (other - out), torch.logaddexp(lse, other_lse)

    return _ring(q, k, v, attend, merge)


def merges_in_the_dtype_of_q(q, k, v, attend):
    def merge(*four):
        return tuple(x.to(q.dtype) for x in _right(*four))

    return _ring(q, k, v, attend, merge)


def rounds_at_each_merge(q, k, v, attend):
    def merge(*four):
        return tuple(x.to(q.dtype).to(x.dtype) for x in _right(*four))

    return _ring(q, k, v, attend, merge)


def sends_its_own_block_every_time(q, k, v, attend):
    return _ring(q, k, v, attend, _right, passes_on=False)


def sends_once_too_often(q, k, v, attend):
    return _ring(q, k, v, attend, _right, hops=0)


def sends_k_and_v_apart(q, k, v, attend):
    out, lse = attend(q, k, v)
    for _ in range(comm.mesh().size("cp") - 1):
        k, v = comm.shift(k, "cp", "ring"), comm.shift(v, "cp", "ring")
        out, lse = _right(out, lse, *attend(q, k, v))
    return out, lse


def goes_round_the_whole_world(q, k, v, attend):
    out, lse = attend(q, k, v)
    kv = torch.stack((k, v))
    for _ in range(comm.mesh().size("cp") - 1):
        kv = comm.shift(kv, "world", "ring")
        out, lse = _right(out, lse, *attend(q, *kv))
    return out, lse


def returns_out_alone(q, k, v, attend):
    return solution(q, k, v, attend)[0]


def calls_the_packages(q, k, v, attend):
    from picolab.parallel.ring import ring_attention

    return ring_attention(q, k, v, "cp", "contiguous")


def gathers_all_keys(q, k, v, attend):
    keys, values = (comm.all_gather(x, "cp", "all of it", dim=2) for x in (k, v))
    scores = q.double() @ keys.double().mT / q.shape[-1] ** 0.5
    return scores.softmax(-1) @ values.double(), scores.logsumexp(-1)


def _collect(q, k, v, attend):
    """All blocks' (out, lse), my own first."""
    found, kv = [attend(q, k, v)], torch.stack((k, v))
    for _ in range(comm.mesh().size("cp") - 1):
        kv = comm.shift(kv, "cp", "ring")
        found.append(attend(q, *kv))
    return tuple(torch.stack(x) for x in zip(*found))


def clamps_the_lse(q, k, v, attend):
    def merge(out, lse, other, other_lse):
        return _right(out, lse.clamp(min=-1e3), other, other_lse.clamp(min=-1e3))

    return _ring(q, k, v, attend, merge)


def clamps_it_far_down(q, k, v, attend):
    def merge(out, lse, other, other_lse):
        return _right(out, lse.clamp(min=-1e30), other, other_lse.clamp(min=-1e30))

    return _ring(q, k, v, attend, merge)


def takes_the_plain_mean_of_all(q, k, v, attend):
    out, lse = _collect(q, k, v, attend)
    return out.mean(0), lse.logsumexp(0)


def adds_the_outs(q, k, v, attend):
    out, lse = _collect(q, k, v, attend)
    return out.sum(0), lse.logsumexp(0)


def weighs_with_lse_itself(q, k, v, attend):
    out, lse = _collect(q, k, v, attend)
    return (lse.unsqueeze(-1) * out).sum(0) / lse.sum(0).unsqueeze(-1), lse.logsumexp(0)


def keeps_the_largest_lse(q, k, v, attend):
    out, lse = _collect(q, k, v, attend)
    return (lse.softmax(0).unsqueeze(-1) * out).sum(0), lse.amax(0)


def swaps_k_and_v(q, k, v, attend):
    out, lse = attend(q, k, v)
    kv = torch.stack((v, k))
    for _ in range(comm.mesh().size("cp") - 1):
        kv = comm.shift(kv, "cp", "ring")
        out, lse = _right(out, lse, *attend(q, *kv))
    return out, lse


def sends_fp32(q, k, v, attend):
    out, lse = attend(q, k, v)
    kv = torch.stack((k, v)).float()
    for _ in range(comm.mesh().size("cp") - 1):
        kv = comm.shift(kv, "cp", "ring")
        out, lse = _right(out, lse, *attend(q, *kv.to(q.dtype)))
    return out, lse


def gathers_objects(q, k, v, attend):
    import torch.distributed as dist

    m = comm.mesh()
    blocks = [None] * m.size("cp")
    dist.all_gather_object(blocks, (k, v), group=m.group("cp"))
    out, lse = attend(q, k, v)
    for rank, block in enumerate(blocks):
        if rank != m.rank("cp"):
            out, lse = _right(out, lse, *attend(q, *block))
    return out, lse


def sends_the_keys_only(q, k, v, attend):
    out, lse = attend(q, k, v)
    for _ in range(comm.mesh().size("cp") - 1):
        k = comm.shift(k, "cp", "ring")
        out, lse = _right(out, lse, *attend(q, k, v))
    return out, lse


def returns_lse_first(q, k, v, attend):
    return solution(q, k, v, attend)[::-1]


def stays_at_home(q, k, v, attend):
    return attend(q, k, v)


def repairs_nan_at_the_end(q, k, v, attend):
    out, lse = forgets_who_saw_nothing(q, k, v, attend)
    return out.nan_to_num(0.0), lse


def combines_at_the_end(q, k, v, attend):
    out, lse = _collect(q, k, v, attend)
    top = lse.amax(0).clamp(min=torch.finfo(lse.dtype).min)
    weight = (lse - top).exp()
    total = weight.sum(0)
    mixed = (weight.unsqueeze(-1) * out).sum(0) / total.clamp(min=1e-30).unsqueeze(-1)
    return mixed, top.where(total > 0, -torch.inf) + total.clamp(min=1e-30).log()


def keeps_a_running_sum(q, k, v, attend):
    out, top = attend(q, k, v)
    weight = torch.where(top == -torch.inf, 0.0, 1.0)
    kv = torch.cat((k, v))
    for hop in range(comm.mesh().size("cp") - 1):
        kv = comm.shift(kv, "cp", f"hop {hop}")
        other, lse = attend(q, *kv.chunk(2))
        new = torch.maximum(top, lse)
        old_part = torch.where(top == -torch.inf, 0.0, (top - new).exp())
        new_part = torch.where(lse == -torch.inf, 0.0, (lse - new).exp())
        out = out * (weight * old_part)[..., None] + other * new_part[..., None]
        weight = weight * old_part + new_part
        out, top = out / torch.where(weight == 0, 1.0, weight)[..., None], new
    return out, top + weight.log()


MUTANTS = {
    averages_the_outputs: "out is the plain mean",
    swaps_the_weights: "the weights are swapped",
    adds_the_lse: "lse is the sum of both",
    keeps_the_first_lse: "lse is still that of the first block",
    takes_plain_exponentials: "take the difference of the two lse",
    forgets_who_saw_nothing: "minus infinity minus minus infinity is nan",
    merges_in_the_dtype_of_q: "leave the rounding to the caller",
    rounds_at_each_merge: "as if it had been rounded at each merge",
    sends_its_own_block_every_time: "is what arrived passed on?",
    sends_once_too_often: "it takes 3 sends, and the budget is 2",
    sends_k_and_v_apart: "it takes 4 sends, and the budget is 2",
    goes_round_the_whole_world: "did they travel along the right axis?",
    returns_out_alone: "should return the pair (out, lse)",
    calls_the_packages: "is what this exercise asks you to write",
    gathers_all_keys: "it uses all-gathers",
    clamps_the_lse: "is lse clamped",
    clamps_it_far_down: "is lse clamped",
    takes_the_plain_mean_of_all: "out is the plain mean of all blocks",
    adds_the_outs: "out is the sum of the blocks' outs",
    weighs_with_lse_itself: "the blocks are weighted with lse itself",
    keeps_the_largest_lse: "lse is the largest of the blocks'",
    swaps_k_and_v: "they are swapped",
    sends_fp32: "rounded on the way",
    gathers_objects: "it uses `all_gather_object`",
    sends_the_keys_only: "the keys of one rank and values of another",
    returns_lse_first: "in the order lse, out",
    stays_at_home: "attend saw the keys of the ranks 0 places to its left",
    repairs_nan_at_the_end: "what was nan has been made 0",
}
RIGHT = (combines_at_the_end, keeps_a_running_sum)
