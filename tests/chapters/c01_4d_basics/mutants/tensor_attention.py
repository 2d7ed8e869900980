"""Wrong answers to 4d.tp.attention, what each author must be told, and right ones."""

import torch
import torch.nn.functional as F

from picolab import comm, costs
from picolab.chapters.c01_4d_basics.tensor_attention import HEAD

SIZE = 3


def _all_reduce(x):
    return comm.all_reduce(x.clone(), "tp", "attention")


def _function(forward, backward):
    class Made(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return forward(x)

        @staticmethod
        def backward(ctx, dy):
            return backward(dy)

    return Made.apply


def _same(x):
    return x.view_as(x)


F_, G_ = _function(_same, _all_reduce), _function(_all_reduce, lambda dy: dy)


def _attention(draw, hidden, heads, kv_heads, *, first=F_, last=G_, **how):
    """The module with one thing wrong."""
    tp, me = comm.mesh().size("tp"), comm.mesh().rank("tp")
    group, own = heads // kv_heads, costs.even_slices(kv_heads, tp)[me]
    of_k = slice(own.start * SIZE, own.stop * SIZE)
    of_q = slice(own.start * group * SIZE, own.stop * group * SIZE)
    if how.get("everything"):
        of_k = of_q = slice(None)
    if how.get("own_draws"):
        n = own.stop - own.start
        q, k, v = (draw(m * SIZE, hidden) for m in (n * group, n, n))
        mine = q, k, v, draw(hidden, n * group * SIZE)
    else:
        q, k, v = (draw(n * SIZE, hidden) for n in (heads, kv_heads, kv_heads))
        o = draw(hidden, heads * SIZE)
        if how.get("reversed"):
            o = o.flip(1)
        mine = q[of_q], k[of_k], v[of_k], o[:, of_q]

    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = torch.nn.ParameterList(w.clone() for w in mine)

        def forward(self, x):
            apart = how.get("three", False)
            x = x if apart else first(x)
            q, k, v = (
                ((first(x) if apart else x) @ w.T).unflatten(-1, (-1, SIZE)).transpose(1, 2)
                for w in self.weights[:3]
            )
            k, v = (one.repeat_interleave(group, 1) for one in (k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=not how.get("unmasked"))
            return last(y.transpose(1, 2).flatten(2) @ self.weights[3].T)

    return Attention()


def leaves_out_the_sum_of_the_output(*arguments):
    return _attention(*arguments, last=_same)


def draws_its_own_shards(*arguments):
    return _attention(*arguments, own_draws=True)


def leaves_out_the_sum_of_dx(*arguments):
    return _attention(*arguments, first=_same)


def sums_dy_once_more(*arguments):
    return _attention(*arguments, last=_function(_all_reduce, _all_reduce))


def one_sum_each_for_q_k_and_v(*arguments):
    return _attention(*arguments, three=True)


def holds_everything(draw, hidden, heads, kv_heads):
    return _attention(draw, hidden, heads, kv_heads, everything=True, first=_same, last=_same)


def takes_the_wrong_columns_of_o(*arguments):
    return _attention(*arguments, reversed=True)


def forgets_causality(*arguments):
    return _attention(*arguments, unmasked=True)


def adds_over_the_whole_world(*arguments):
    def everywhere(x):
        return comm.all_reduce(x.clone(), "world", "attention")

    return _attention(*arguments, last=_function(everywhere, lambda dy: dy))


def returns_a_function(*arguments):
    return _attention(*arguments).forward


def _by_hand(draw, hidden, heads, kv_heads, scale=None, mask=True, group=None, residual=False):
    """Heads by einsum, f as a hook, g as a sum that autograd does not see."""
    mesh, size = comm.mesh(), HEAD
    group_of = heads // kv_heads
    q, k, v = (draw(n * size, hidden) for n in (heads, kv_heads, kv_heads))
    o = draw(hidden, heads * size)
    own = costs.even_slices(kv_heads, mesh.size("tp"))[mesh.rank("tp")]
    count = own.stop - own.start
    columns = slice(own.start * group_of * size, own.stop * group_of * size)
    rows = slice(own.start * size, own.stop * size)

    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, part in (("q", q[columns]), ("k", k[rows]), ("v", v[rows])):
                setattr(self, name, torch.nn.Parameter(part.clone()))
            self.o = torch.nn.Parameter(o[:, columns].clone())

        def forward(self, x):
            x = x.view_as(x)
            x.register_hook(lambda d: comm.all_reduce(d.clone(), "tp", "dx"))
            batch, seq, _ = x.shape
            if group == "neighbours":
                queries = (x @ self.q.T).view(batch, seq, group_of, count, size).transpose(2, 3)
            else:
                queries = (x @ self.q.T).view(batch, seq, count, group_of, size)
            keys, values = ((x @ w.T).view(batch, seq, count, size) for w in (self.k, self.v))
            scores = torch.einsum("bikge,bjke->bkgij", queries, keys) / (scale or size) ** 0.5
            if mask:
                scores = scores + torch.full((seq, seq), -torch.inf, dtype=x.dtype).triu(1)
            mixed = torch.einsum("bkgij,bjke->bikge", scores.softmax(-1), values)
            if group == "neighbours":
                mixed = mixed.transpose(2, 3)
            part = mixed.reshape(batch, seq, -1) @ self.o.T
            total = comm.all_reduce(part.detach().clone(), "tp", "output")
            y = part + (total - part.detach())
            return y + x if residual else y

    return Attention()


def heads_by_einsum(draw, hidden, heads, kv_heads):
    return _by_hand(draw, hidden, heads, kv_heads)


def scales_by_the_whole_width(draw, hidden, heads, kv_heads):
    return _by_hand(draw, hidden, heads, kv_heads, scale=hidden)


def groups_queries_the_other_way(draw, hidden, heads, kv_heads):
    return _by_hand(draw, hidden, heads, kv_heads, group="neighbours")


def adds_the_residual(draw, hidden, heads, kv_heads):
    return _by_hand(draw, hidden, heads, kv_heads, residual=True)


def sums_objects(draw, hidden, heads, kv_heads):
    import torch.distributed as dist

    module = _by_hand(draw, hidden, heads, kv_heads)
    dist.all_gather_object([None] * dist.get_world_size(), 1)
    return module


def adds_in_place_behind_autograds_back(*arguments):
    return _attention(*arguments, last=lambda y: comm.all_reduce(y, "tp", "attention"))


def adds_by_torchs_own(*arguments):
    import torch.distributed as dist

    def added(y):
        dist.all_reduce(y, group=comm.mesh().group("tp"))
        return y

    return _attention(*arguments, last=added)


def gathers_objects_in_forward(*arguments):
    import torch.distributed as dist

    module = _attention(*arguments)
    forward = module.forward

    def also_gathers(x):
        dist.all_gather_object([None] * dist.get_world_size(), 1)
        return forward(x)

    module.forward = also_gathers
    return module


class _F(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dx):
        return comm.all_reduce(dx.clone(), "tp", "f")


class _G(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return comm.all_reduce(y.clone(), "tp", "g")

    @staticmethod
    def backward(ctx, dy):
        return dy


def head_by_head(draw, hidden, heads, kv_heads):
    whole = [draw(n * HEAD, hidden) for n in (heads, kv_heads, kv_heads)]
    o, mesh = draw(hidden, heads * HEAD), comm.mesh()
    own = costs.even_slices(kv_heads, mesh.size("tp"))[mesh.rank("tp")]
    module, group = torch.nn.Module(), heads // kv_heads
    of = lambda w, head: w[head * HEAD : (head + 1) * HEAD]  # noqa: E731
    queries = [head * group + i for head in own for i in range(group)]
    for name, w, mine in zip("qkv", whole, (queries, own, own)):
        setattr(module, name, torch.nn.Parameter(torch.cat([of(w, head) for head in mine])))
    module.o = torch.nn.Parameter(torch.cat([of(o.T, head) for head in queries]).T.contiguous())

    def forward(x):
        x, outputs = _F.apply(x), []
        for i in range(len(queries)):
            heads_of = ((module.q, i), (module.k, i // group), (module.v, i // group))
            q, k, v = (x @ of(w, head).T for w, head in heads_of)
            outputs.append(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return _G.apply(torch.cat(outputs, -1) @ module.o.T)

    module.forward = forward
    return module


MUTANTS = {
    leaves_out_the_sum_of_the_output: "the ranks' summands are to be added up",
    draws_its_own_shards: "under one seed all ranks have the same shards",
    leaves_out_the_sum_of_dx: "an all-reduce is missing in backward, where x comes in",
    sums_dy_once_more: "it is tp times too large",
    one_sum_each_for_q_k_and_v: "it takes 4 all-reduces, and the budget is 2",
    holds_everything: "whole heads of q, k and v, and their columns of o",
    takes_the_wrong_columns_of_o: "its parameters are not this rank's share",
    forgets_causality: "the output is wrong",
    adds_over_the_whole_world: "it communicates over the ranks",
    returns_a_function: "returns no torch.nn.Module",
    scales_by_the_whole_width: "the output is wrong",
    groups_queries_the_other_way: "the output is wrong",
    adds_the_residual: "the output is wrong",
    sums_objects: "object",
    adds_in_place_behind_autograds_back: "changes a tensor that autograd follows, in place",
    adds_by_torchs_own: "writes into a tensor that autograd follows",
    gathers_objects_in_forward: "it uses `all_gather_object`",
}

RIGHT = (heads_by_einsum, head_by_head)
