"""Wrong answers to 4d.tp.attention, and what each author must be told."""

import torch
import torch.nn.functional as F

from picolab import comm, costs

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


MUTANTS = {
    leaves_out_the_sum_of_the_output: "the ranks' summands are to be added up",
    draws_its_own_shards: "under one seed all ranks have the same shards",
    leaves_out_the_sum_of_dx: "the gradient of x is wrong",
    sums_dy_once_more: "it is tp times too large",
    one_sum_each_for_q_k_and_v: "it takes 4 all-reduces, and the budget is 2",
    holds_everything: "whole heads of q, k and v, and their columns of o",
    takes_the_wrong_columns_of_o: "its parameters are not this rank's share",
    forgets_causality: "the output is wrong",
    adds_over_the_whole_world: "it communicates over the ranks",
    returns_a_function: "returns no torch.nn.Module",
}
