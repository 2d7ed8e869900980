"""Wrong answers to interview.4d.ulysses, what each author must be told, and right ones."""

import torch

from picolab import comm


def _to_heads(x):
    cp = comm.mesh().size("cp")
    blocks = x.unflatten(1, (cp, -1)).transpose(0, 1).contiguous()
    return comm.all_to_all(blocks, "cp", "to heads").flatten(0, 1)


def _to_tokens(x):
    cp = comm.mesh().size("cp")
    back = comm.all_to_all(x.unflatten(0, (cp, -1)).contiguous(), "cp", "to tokens")
    return back.transpose(0, 1).flatten(1, 2)


def _together(q, k, v):
    """One message: (S, heads/c, E) of each."""
    cp = comm.mesh().size("cp")
    each = [x.unflatten(1, (cp, -1)) for x in (q, k, v)]
    sizes = [x.shape[2] for x in each]
    return _to_heads(torch.cat(each, 2).flatten(1, 2)).split(sizes, 1)


def one_message_each(q, k, v, attend):
    return _to_tokens(attend(_to_heads(q), _to_heads(k), _to_heads(v)))


def repeats_the_keys_first(q, k, v, attend):
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return _to_tokens(attend(*_together(q, k, v)))


def cuts_the_joined_heads(q, k, v, attend):
    cp = comm.mesh().size("cp")
    joined = _to_heads(torch.cat((q, k, v), 1))
    return _to_tokens(attend(*joined.split([x.shape[1] // cp for x in (q, k, v)], 1)))


def views_instead_of_transposing(q, k, v, attend):
    cp = comm.mesh().size("cp")
    joined = torch.cat([x.unflatten(1, (cp, -1)) for x in (q, k, v)], 2)
    sizes = [x.shape[1] // cp for x in (q, k, v)]
    blocks = joined.reshape(cp, len(q), sum(sizes), q.shape[2])
    arrived = comm.all_to_all(blocks, "cp", "to heads").flatten(0, 1)
    return _to_tokens(attend(*arrived.split(sizes, 1)))


def takes_arrivals_backward(q, k, v, attend):
    cp = comm.mesh().size("cp")
    q, k, v = (x.unflatten(0, (cp, -1)).flip(0).flatten(0, 1) for x in _together(q, k, v))
    return _to_tokens(attend(q, k, v))


def stays_with_its_heads(q, k, v, attend):
    return attend(*_together(q, k, v))


def interleaves_the_heads(q, k, v, attend):
    cp, heads = comm.mesh().size("cp"), q.shape[1]
    out = _to_tokens(attend(*_together(q, k, v)))
    return out.unflatten(1, (cp, heads // cp)).transpose(1, 2).flatten(1, 2)


def gathers_everything(q, k, v, attend):
    me, s = comm.mesh().rank("cp"), len(q)
    q, k, v = (comm.all_gather(x.contiguous(), "cp", "all of it") for x in (q, k, v))
    return attend(q, k, v)[me * s : (me + 1) * s]


def exchanges_over_all_ranks(q, k, v, attend):
    out = _to_tokens(attend(*_together(q, k, v)))
    comm.all_to_all(torch.zeros(comm.mesh().size("world")), "world", "more")
    return out


def stays_with_its_tokens(q, k, v, attend):
    return attend(q, k, v)


def gathers_objects(q, k, v, attend):
    import torch.distributed as dist

    m, s = comm.mesh(), len(q)
    blocks = [None] * m.size("cp")
    dist.all_gather_object(blocks, (q, k, v), group=m.group("cp"))
    out = attend(*(torch.cat(x) for x in zip(*blocks)))
    return out[m.rank("cp") * s : (m.rank("cp") + 1) * s]


def swaps_keys_and_values(q, k, v, attend):
    q, k, v = _together(q, k, v)
    return _to_tokens(attend(q, v, k))


def gathers_the_output(q, k, v, attend):
    m, s = comm.mesh(), len(q)
    out = comm.all_gather(attend(*_together(q, k, v)), "cp", "all heads", dim=1)
    return out[m.rank("cp") * s : (m.rank("cp") + 1) * s]


def sends_in_fp32(q, k, v, attend):
    q, k, v = _together(q.float(), k.float(), v.float())
    return _to_tokens(attend(q.double(), k.double(), v.double()))


def returns_fp32(q, k, v, attend):
    return _to_tokens(attend(*_together(q, k, v)).float())


def flattens_the_heads(q, k, v, attend):
    return _to_tokens(attend(*_together(q, k, v))).flatten(1)


def deals_the_heads_in_turn(q, k, v, attend):
    cp = comm.mesh().size("cp")
    q = q.unflatten(1, (-1, cp)).transpose(1, 2).flatten(1, 2)
    return _to_tokens(attend(*_together(q, k, v)))


def takes_the_keys_of_one_head(q, k, v, attend):
    q, k, v = _together(q, k, v)
    return _to_tokens(attend(q, k[:, :1], v[:, :1]))


def interleaves_the_tokens(q, k, v, attend):
    cp = comm.mesh().size("cp")
    q, k, v = (x.unflatten(0, (cp, -1)).transpose(0, 1).flatten(0, 1) for x in _together(q, k, v))
    return _to_tokens(attend(q, k, v))


def attends_twice(q, k, v, attend):
    _to_heads(q)
    return _to_tokens(attend(*_together(q, k, v)))


def scales_the_output(q, k, v, attend):
    return _to_tokens(attend(*_together(q, k, v))) / comm.mesh().size("cp")


def splits_by_hand(q, k, v, attend):
    cp = comm.mesh().size("cp")
    n, g = q.shape[1] // cp, k.shape[1] // cp
    blocks = torch.stack(
        [
            torch.cat(
                (q[:, r * n : (r + 1) * n], k[:, r * g : (r + 1) * g], v[:, r * g : (r + 1) * g]), 1
            )
            for r in range(cp)
        ]
    )
    rows = torch.cat(list(comm.all_to_all(blocks, "cp", "heads")))
    out = attend(rows[:, :n], rows[:, n : n + g], rows[:, n + g :])
    back = comm.all_to_all(torch.stack(out.chunk(cp)), "cp", "tokens")
    return torch.cat(list(back), dim=1)


def calls_torch_itself(q, k, v, attend):
    import torch.distributed as dist

    m = comm.mesh()
    cp, group, (s, _, e) = m.size("cp"), m.group("cp"), q.shape
    parts = [x.reshape(s, cp, -1).permute(1, 0, 2) for x in (q, k, v)]
    sizes = [x.shape[-1] for x in parts]
    out_list = list(torch.cat(parts, -1).contiguous())
    in_list = [torch.empty_like(t) for t in out_list]
    for into, rank in zip(in_list, range(cp)):
        into.fill_(rank)
    received = torch.empty(cp, s, sum(sizes), dtype=q.dtype)
    dist.all_to_all_single(received, torch.stack(out_list), group=group)
    q, k, v = (x.reshape(cp * s, -1, e) for x in received.split(sizes, -1))
    mine = attend(q, k, v).reshape(cp, s, -1, e).contiguous()
    back = torch.empty_like(mine)
    dist.all_to_all_single(back, mine, group=group)
    return torch.cat(back.unbind(0), 1)


MUTANTS = {
    one_message_each: "it takes 4 all-to-alls, and the budget is 2",
    repeats_the_keys_first: "its all-to-alls carry",
    cuts_the_joined_heads: "attend was given a head that mixes",
    views_instead_of_transposing: "transpose before you flatten",
    takes_arrivals_backward: "in another order than the sequence's",
    stays_with_its_heads: "out has the shape (6, 2, 2), and should have (3, 4, 2)",
    interleaves_the_heads: "out has the heads in the order 0, 2, 1, 3",
    gathers_everything: "it uses all-gathers",
    exchanges_over_all_ranks: "it takes 3 all-to-alls, and the budget is 2",
    stays_with_its_tokens: "needs those of all 6 tokens",
    gathers_objects: "it uses `all_gather_object`",
    swaps_keys_and_values: "attend was given the values as keys",
    gathers_the_output: "it uses all-gathers",
    sends_in_fp32: "was given numbers that are only nearly",
    returns_fp32: "out is in torch.float32",
    flattens_the_heads: "its numbers are right, and only the shape is not",
    deals_the_heads_in_turn: "query head j belongs to key-value head",
    takes_the_keys_of_one_head: "query head",
    interleaves_the_tokens: "in another order than the sequence's",
    attends_twice: "it takes 3 all-to-alls, and the budget is 2",
    scales_the_output: "divided by the 2 ranks",
}
RIGHT = (splits_by_hand, calls_torch_itself)
