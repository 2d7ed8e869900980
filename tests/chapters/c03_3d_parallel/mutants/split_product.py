"""Wrong answers to 3d.pp.split, what each author must be told, and right ones."""

import torch

from picolab import comm
from picolab.chapters.c03_3d_parallel.split_product import solution


def _split(
    x, weight, later, *, left=None, dx=lambda dy, weight: dy @ weight, needs=True, hold=None
):
    """The solution, with one thing to be done otherwise."""

    def usual(weight, dy, x):
        weight.backward(dy.flatten(0, -2).T @ x.flatten(0, -2))

    class Split(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, wrapped):
            ctx.save_for_backward(x)
            (ctx.weight,) = wrapped
            return x @ ctx.weight.T

        @staticmethod
        def backward(ctx, dy):
            (x,), weight = ctx.saved_tensors, ctx.weight
            if weight.requires_grad or not needs:
                made = None if hold is None else hold(dy, x)
                does = left or usual
                later.append(lambda: does(weight, dy, x if made is None else made))
            return dx(dy, weight), None

    return Split.apply(x, (weight,)) if x.requires_grad else x @ weight.T


def leaves_it_to_autograd(x, weight, later):
    return x @ weight.T


def computes_it_in_b(x, weight, later):
    def made(dy, x):
        return dy.flatten(0, -2).T @ x.flatten(0, -2)

    return _split(x, weight, later, hold=made, left=lambda weight, dy, dw: weight.backward(dw))


def weight_as_an_input(x, weight, later):
    class Split(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return x @ weight.T

        @staticmethod
        def backward(ctx, dy):
            x, weight = ctx.saved_tensors
            if weight.requires_grad:
                later.append(lambda: weight.backward(dy.flatten(0, -2).T @ x.flatten(0, -2)))
            return dy @ weight, torch.zeros_like(weight)

    return Split.apply(x, weight) if x.requires_grad else x @ weight.T


def overwrites(x, weight, later):
    def does(weight, dy, x):
        weight.grad = None
        weight.backward(dy.flatten(0, -2).T @ x.flatten(0, -2))

    return _split(x, weight, later, left=does)


def adds_without_hooks(x, weight, later):
    def does(weight, dy, x):
        dw = dy.flatten(0, -2).T @ x.flatten(0, -2)
        weight.grad = dw if weight.grad is None else weight.grad + dw

    return _split(x, weight, later, left=does)


def adds_twice(x, weight, later):
    def does(weight, dy, x):
        weight.backward(2 * (dy.flatten(0, -2).T @ x.flatten(0, -2)))

    return _split(x, weight, later, left=does)


def computes_twice(x, weight, later):
    def does(weight, dy, x):
        dy.flatten(0, -2).T @ x.flatten(0, -2)
        weight.backward(dy.flatten(0, -2).T @ x.flatten(0, -2))

    return _split(x, weight, later, left=does)


def only_two_dims(x, weight, later):
    return _split(x, weight, later, left=lambda weight, dy, x: weight.backward(dy.T @ x))


def forgets_frozen(x, weight, later):
    return _split(x, weight, later, needs=False)


def transposed(x, weight, later):
    def does(weight, dy, x):
        weight.backward((dy.flatten(0, -2).T @ x.flatten(0, -2)).flip(0))

    return _split(x, weight, later, left=does)


def wrong_dx(x, weight, later):
    return _split(x, weight, later, dx=lambda dy, weight: -dy @ weight)


def dx_is_zero(x, weight, later):
    return _split(x, weight, later, dx=lambda dy, weight: (dy @ weight) * 0)


def appends_in_forward(x, weight, later):
    later.append(lambda: None)
    return solution(x, weight, later)


def leaves_tensors(x, weight, later):
    class Split(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, wrapped):
            ctx.save_for_backward(x)
            (ctx.weight,) = wrapped
            return x @ ctx.weight.T

        @staticmethod
        def backward(ctx, dy):
            if ctx.weight.requires_grad:
                later.append((ctx.weight, ctx.saved_tensors[0], dy))
            return dy @ ctx.weight, None

    return Split.apply(x, (weight,)) if x.requires_grad else x @ weight.T


def leaves_nothing(x, weight, later):
    return solution(x, weight, [])


def does_it_at_once(x, weight, later):
    class AtOnce(list):
        def append(self, does):
            does()

    return solution(x, weight, AtOnce())


def returns_nothing(x, weight, later):
    solution(x, weight, later)


def the_other_way_round(x, weight, later):
    return x @ weight if x.shape[-1] == weight.shape[0] else solution(x, weight, later).flip(-1)


def sends_something(x, weight, later):
    comm.all_reduce(x.detach().clone(), "world", "why not")
    return solution(x, weight, later)


def forgets_earlier_micro_batches(x, weight, later):
    def does(weight, dy, x):
        weight.grad = None
        weight.backward(dy.flatten(0, -2).T @ x.flatten(0, -2))

    return _split(x, weight, later, left=does)


def computes_it_in_b_number_by_number(x, weight, later):
    """The product as a sum of outer products, and so no matrix product."""

    def made(dy, x):
        return (dy.flatten(0, -2).unsqueeze(2) * x.flatten(0, -2).unsqueeze(1)).sum(0)

    return _split(x, weight, later, hold=made, left=lambda weight, dy, dw: weight.backward(dw))


def calls_hooks_by_hand_too(x, weight, later):
    def does(weight, dy, x):
        weight.backward(dy.flatten(0, -2).T @ x.flatten(0, -2))
        for hook in weight._post_accumulate_grad_hooks.values():
            hook(weight)

    return _split(x, weight, later, left=does)


def returns_the_gradient(x, weight, later):
    def made(weight, dy, x):
        return dy.flatten(0, -2).T @ x.flatten(0, -2)

    class Split(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x @ weight.detach().T

        @staticmethod
        def backward(ctx, dy):
            (x,) = ctx.saved_tensors
            if weight.requires_grad:
                later.append(lambda: made(weight, dy, x))
            return dy @ weight.detach()

    return Split.apply(x) if x.requires_grad else x @ weight.T


def nothing_where_x_needs_nothing(x, weight, later):
    return solution(x, weight, later) if x.requires_grad else x @ weight.detach().T


def weight_as_an_input_without_a_gradient(x, weight, later):
    """None for the weight, and its hooks are called in B all the same."""

    class Split(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return torch.nn.functional.linear(x, weight)

        @staticmethod
        def backward(ctx, dy):
            x, weight = ctx.saved_tensors
            if ctx.needs_input_grad[1]:
                later.append(lambda: weight.backward(dy.flatten(0, -2).T @ x.flatten(0, -2)))
            return dy @ weight, None

    return Split.apply(x, weight) if x.requires_grad else x @ weight.T


def in_fp32(x, weight, later):
    def does(weight, dy, x):
        made = dy.flatten(0, -2).float().T @ x.flatten(0, -2).float()
        weight.backward(made.to(weight.dtype))

    return _split(x, weight, later, left=does)


def one_entry_for_all(x, weight, later):
    class Split(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x @ weight.detach().T

        @staticmethod
        def backward(ctx, dy):
            (x,) = ctx.saved_tensors
            before = later.pop() if later else lambda: None

            def both():
                before()
                weight.backward(dy.flatten(0, -2).T @ x.flatten(0, -2))

            later.append(both)
            return dy @ weight.detach()

    return Split.apply(x) if x.requires_grad else x @ weight.T


def all_of_it_later(x, weight, later):
    """B as well."""
    leaf = x.detach().requires_grad_()
    inner = leaf @ weight.T

    class Split(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return inner.detach()

        @staticmethod
        def backward(ctx, dy):
            later.append(lambda: inner.backward(dy))
            return torch.zeros_like(leaf)

    return Split.apply(x) if x.requires_grad else x @ weight.T


def work_for_the_frozen_too(x, weight, later):
    def does(weight, dy, x):
        if weight.requires_grad:
            weight.backward(dy.flatten(0, -2).T @ x.flatten(0, -2))

    return _split(x, weight, later, left=does, needs=False)


MUTANTS = {
    leaves_it_to_autograd: "B has already given a weight its gradient",
    computes_it_in_b: "products of a weight's shape",
    weight_as_an_input: "B has already given a weight its gradient",
    overwrites: "the last micro-batch's alone",
    adds_without_hooks: "the hooks of the weights heard of 0",
    adds_twice: "every micro-batch is in it twice",
    computes_twice: "something is computed twice",
    only_two_dims: "RuntimeError",
    forgets_frozen: "and none for a frozen weight",
    transposed: "is wrong",
    wrong_dx: "is wrong",
    dx_is_zero: "all of it is zero",
    appends_in_forward: "before any backward was called",
    leaves_tensors: "append a function for each",
    leaves_nothing: "`later` has 0 entries",
    does_it_at_once: "B has already given a weight its gradient",
    returns_nothing: "it returns NoneType",
    the_other_way_round: "the output of micro-batch 0",
    sends_something: "it uses all-reduces",
    computes_it_in_b_number_by_number: "products of a weight's shape",
    calls_hooks_by_hand_too: "leave the hooks to it",
    returns_the_gradient: "nobody looks at what the functions in `later` return",
    nothing_where_x_needs_nothing: "the weight needs a gradient, and what it returns leads to none",
    weight_as_an_input_without_a_gradient: "To autograd the weight must be no input",
    in_fp32: "is something kept in fp32",
    one_entry_for_all: "`later` has 1 entries, and 3 products",
    all_of_it_later: "all of it is zero",
    work_for_the_frozen_too: "and none for a frozen weight",
}


def by_closing_over_the_weight(x, weight, later):
    """No tuple: the Function closes over the weight."""
    if not x.requires_grad:
        return torch.nn.functional.linear(x, weight)

    class Split(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.x = x.detach()
            return torch.nn.functional.linear(x, weight.detach())

        @staticmethod
        def backward(ctx, dy):
            x = ctx.x

            def does():
                dw = torch.einsum("no,ni->oi", dy.reshape(-1, dy.shape[-1]), x.flatten(0, -2))
                torch.autograd.backward(weight, dw)

            if weight.requires_grad:
                later.append(does)
            return torch.nn.functional.linear(dy, weight.detach().T)

    return Split.apply(x)


def by_a_hook_on_the_output(x, weight, later):
    """autograd sees a constant weight; a hook on the output leaves the rest."""
    if not x.requires_grad:
        return x @ weight.T
    y = x @ weight.detach().T
    kept = x.detach()

    def hook(dy):
        if weight.requires_grad:
            later.append(lambda: weight.backward(dy.flatten(0, -2).T @ kept.flatten(0, -2)))

    y.register_hook(hook)
    return y


def with_two_graphs(x, weight, later):
    """One product for B and its graph, and the graph of another for W, both of autograd's."""
    if not (x.requires_grad and weight.requires_grad):
        return x @ weight.T

    class Split(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            with torch.enable_grad():
                ctx.graph = x.detach() @ weight.T
            return ctx.graph.detach()

        @staticmethod
        def backward(ctx, dy):
            graph = ctx.graph
            later.append(lambda: graph.backward(dy))
            return dy @ weight.detach()

    return Split.apply(x)


RIGHT = (by_closing_over_the_weight, by_a_hook_on_the_output, with_two_graphs)
