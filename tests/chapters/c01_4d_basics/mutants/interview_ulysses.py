"""Wrong answers to interview.4d.ulysses, and what each author must be told."""

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


MUTANTS = {
    one_message_each: "it takes 4 all-to-alls, and the budget is 2",
    repeats_the_keys_first: "its all-to-alls carry",
    cuts_the_joined_heads: "attend was given a head that mixes",
    views_instead_of_transposing: "transpose before you flatten",
    takes_arrivals_backward: "in another order than the sequence's",
    stays_with_its_heads: "out has the shape (6, 2, 2), and should have (3, 4, 2)",
    interleaves_the_heads: "out has the heads in the order 0, 2, 1, 3",
    gathers_everything: "it uses all-gathers",
    exchanges_over_all_ranks: "it communicates over the ranks (0, 1, 2, 3)",
    stays_with_its_tokens: "needs those of all 6 tokens",
}
