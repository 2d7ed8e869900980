"""Wrong answers to memory.checkpoint.function, what each author must be told, and right ones."""

import torch
from torch.utils.checkpoint import checkpoint

from picolab.chapters.c05_memory.checkpoint_function import solution


def _again(
    function,
    inputs,
    *,
    first=None,
    cut=lambda one, want: one.detach().requires_grad_(want),
    state=torch.get_rng_state,
    put=torch.set_rng_state,
    put_back=True,
    mode=torch.enable_grad,
    keep=lambda one: one,
    runs=1,
    reach=torch.autograd.backward,
    grads=None,
    late=False,
    incoming=lambda grad: grad,
):
    """The solution, with one thing to be done otherwise."""

    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            ctx.inputs = [keep(one) if isinstance(one, torch.Tensor) else one for one in inputs]
            ctx.random = None if late else state()
            y = (first or function)(*inputs)
            ctx.random = state() if late else ctx.random
            return y

        @staticmethod
        def backward(ctx, grad):
            again = [
                cut(one, want) if isinstance(one, torch.Tensor) else one
                for one, want in zip(ctx.inputs, ctx.needs_input_grad)
            ]
            now = state()
            put(ctx.random)
            with mode():
                for _ in range(runs):
                    y = function(*again)
            if put_back:
                put(now)
            if grads is not None:
                return grads(y, again, incoming(grad))
            reach(y, incoming(grad))
            return tuple(getattr(one, "grad", None) for one in again)

    return Again.apply(*inputs)


def no_random_state(function, inputs):
    return _again(function, inputs, put=lambda state: None)


def grads_of_inputs_alone(function, inputs):
    """`autograd.grad` for the inputs: parameters are forgotten."""

    def grads(y, again, grad):
        wanted = [one for one in again if isinstance(one, torch.Tensor) and one.requires_grad]
        found = iter(torch.autograd.grad(y, wanted, grad, allow_unused=True))
        return tuple(
            next(found) if isinstance(one, torch.Tensor) and one.requires_grad else None
            for one in again
        )

    return _again(function, inputs, grads=grads)


def state_not_put_back(function, inputs):
    return _again(function, inputs, put_back=False)


def state_of_the_end(function, inputs):
    """Taken after the first run."""
    return _again(function, inputs, late=True)


def a_fixed_seed(function, inputs):
    return _again(function, inputs, put=lambda state: torch.manual_seed(0))


def not_cut_off(function, inputs):
    """Leaves get their gradients from the second run, and again from what is returned."""

    def grads(y, again, grad):
        wanted = [one for one in again if isinstance(one, torch.Tensor) and one.requires_grad]
        found = iter(torch.autograd.grad(y, wanted, grad, allow_unused=True, retain_graph=True))
        torch.autograd.backward(y, grad)
        return tuple(
            next(found) if isinstance(one, torch.Tensor) and one.requires_grad else None
            for one in again
        )

    return _again(function, inputs, cut=lambda one, want: one, grads=grads)


def all_want_gradients(function, inputs):
    def cut(one, want):
        return one.detach().requires_grad_(one.is_floating_point())

    return _again(function, inputs, cut=cut)


def the_first_wants(function, inputs):
    """Only the first input is thought of."""
    x, *others = inputs

    def first(x):
        return function(x, *others)

    return _again(first, (x,))


def without_enable_grad(function, inputs):
    return _again(function, inputs, mode=torch.no_grad)


def inputs_are_copied(function, inputs):
    return _again(function, inputs, keep=lambda one: one.detach().clone())


def keeps_everything(function, inputs):
    return function(*inputs)


def keeps_it_in_forward(function, inputs):
    """The graph is made in the first run and kept for the backward."""
    with torch.enable_grad():
        cut = [
            one.detach().requires_grad_(one.requires_grad) if isinstance(one, torch.Tensor) else one
            for one in inputs
        ]
        y = function(*cut)

    class Kept(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            return y.detach()

        @staticmethod
        def backward(ctx, grad):
            torch.autograd.backward(y, grad)
            return tuple(getattr(one, "grad", None) for one in cut)

    return Kept.apply(*inputs)


def runs_twice_in_backward(function, inputs):
    return _again(function, inputs, runs=2)


def runs_twice_in_forward(function, inputs):
    """Once to see what it gives, and once for good."""
    with torch.no_grad():
        state = torch.get_rng_state()
        function(*inputs)
        torch.set_rng_state(state)
    return _again(function, inputs)


def gradient_of_a_sum(function, inputs):
    return _again(function, inputs, incoming=torch.ones_like)


def result_is_cut_off(function, inputs):
    return _again(function, inputs).detach()


def unused_are_zeros(function, inputs):
    def grads(y, again, grad):
        torch.autograd.backward(y, grad)
        return tuple(
            (torch.zeros_like(one) if one.grad is None else one.grad)
            if isinstance(one, torch.Tensor) and one.requires_grad
            else None
            for one in again
        )

    return _again(function, inputs, grads=grads)


def strict_grad(function, inputs):
    """`autograd.grad` with parameters found by hand, and without allow_unused."""

    def grads(y, again, grad):
        wanted = [one for one in again if isinstance(one, torch.Tensor) and one.requires_grad]
        torch.autograd.backward(y, grad, retain_graph=True)
        found = iter(torch.autograd.grad(y, wanted, grad))
        return tuple(
            next(found) if isinstance(one, torch.Tensor) and one.requires_grad else None
            for one in again
        )

    return _again(function, inputs, grads=grads)


def tensors_alone(function, inputs):
    """`save_for_backward` of whatever comes."""

    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            ctx.save_for_backward(*inputs)
            ctx.random = torch.get_rng_state()
            return function(*inputs)

        @staticmethod
        def backward(ctx, grad):
            again = [
                one.detach().requires_grad_(want)
                for one, want in zip(ctx.saved_tensors, ctx.needs_input_grad)
            ]
            now = torch.get_rng_state()
            torch.set_rng_state(ctx.random)
            with torch.enable_grad():
                y = function(*again)
            torch.set_rng_state(now)
            torch.autograd.backward(y, grad)
            return tuple(one.grad for one in again)

    return Again.apply(*inputs)


def by_torch(function, inputs):
    return checkpoint(function, *inputs, use_reentrant=False)


def by_torchs_older_way(function, inputs):
    return checkpoint(function, *inputs, use_reentrant=True)


def through_fp32(function, inputs):
    """Inputs are kept short."""

    def keep(one):
        return one.float() if one.is_floating_point() else one

    def cut(one, want):
        return one.detach().double().requires_grad_(want) if one.is_floating_point() else one

    return _again(function, inputs, keep=keep, cut=cut)


def gives_nothing(function, inputs):
    solution(function, inputs)


def turns_gradients_off(function, inputs):
    """The whole of it under no_grad, to keep nothing."""
    with torch.no_grad():
        return _again(function, inputs)


def result_hangs_on_ctx(function, inputs):
    """Kept to compare the second run with: a result whose graph holds it."""

    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            ctx.inputs, ctx.random = inputs, torch.get_rng_state()
            ctx.result = function(*inputs)
            return ctx.result

        @staticmethod
        def backward(ctx, grad):
            again = [
                one.detach().requires_grad_(want) if isinstance(one, torch.Tensor) else one
                for one, want in zip(ctx.inputs, ctx.needs_input_grad)
            ]
            with torch.random.fork_rng(devices=[]), torch.enable_grad():
                torch.set_rng_state(ctx.random)
                y = function(*again)
            torch.autograd.backward(y, grad)
            return tuple(getattr(one, "grad", None) for one in again)

    return Again.apply(*inputs)


_running: list = []


def none_within_another(function, inputs):
    """In a second run checkpoints within are left out."""
    if _running:
        return function(*inputs)

    def marked(*again):
        if not torch.is_grad_enabled():
            return function(*again)
        _running.append(None)
        try:
            return function(*again)
        finally:
            _running.pop()

    return solution(marked, inputs)


MUTANTS = {
    no_random_state: "starts from another random state",
    grads_of_inputs_alone: "it is a parameter that the function uses",
    state_not_put_back: "after the backward pass the random numbers go on from elsewhere",
    state_of_the_end: "starts from another random state",
    a_fixed_seed: "starts from another random state",
    not_cut_off: "it is there twice",
    all_want_gradients: "other inputs want a gradient than in the first",
    the_first_wants: "its result wants no gradient",
    without_enable_grad: "does not require grad",
    inputs_are_copied: "inputs are kept as they are",
    keeps_everything: "of what the function makes nothing",
    keeps_it_in_forward: "of what the function makes nothing",
    runs_twice_in_backward: "the backward pass runs the function 2 times",
    runs_twice_in_forward: "the forward pass runs the function 2 times",
    gradient_of_a_sum: "whatever gradient arrives",
    result_is_cut_off: "the graph ends there",
    unused_are_zeros: "the function does not depend on it",
    strict_grad: "appears to not have been used",
    tensors_alone: "save_for_backward can only save variables",
    by_torch: "is what this exercise asks you to write",
    by_torchs_older_way: "is what this exercise asks you to write",
    through_fp32: "is something kept in fp32 on the way",
    gives_nothing: "the result is None",
    turns_gradients_off: "the graph ends there",
    result_hangs_on_ctx: "something holds it",
    none_within_another: "it keeps all of what its function makes",
}


class _Saver(torch.autograd.Function):
    """Keeps inputs as any operator would: another checkpoint around this one gives them away."""

    @staticmethod
    def forward(ctx, dummy, *tensors):
        ctx.save_for_backward(*tensors)
        return dummy.clone()

    @staticmethod
    def backward(ctx, *grads):
        raise AssertionError("nobody asks for it")


def by_hooks(function, inputs):
    """As torch does today: saved-tensor hooks, which the second run fills."""
    state, kept, again = torch.get_rng_state(), [], []
    tensors = [one for one in inputs if isinstance(one, torch.Tensor)]
    others = [None if isinstance(one, torch.Tensor) else (one,) for one in inputs]
    wanted = [one.requires_grad for one in tensors]
    saver = _Saver.apply(torch.empty(0, requires_grad=True), *tensors).grad_fn

    def pack(tensor):
        kept.append(None)
        return len(kept) - 1

    def second_run():
        saved = iter(zip(saver.saved_tensors, wanted))
        cut = [
            other[0] if other else (lambda of: of[0].detach().requires_grad_(of[1]))(next(saved))
            for other in others
        ]
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t: again.append(t.detach()) or t, lambda t: t
        )
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), hooks:
            torch.set_rng_state(state)
            function(*cut)

    def unpack(number):
        if not again:
            second_run()
        return again[number]

    if not torch.is_grad_enabled() or saver is None:
        return function(*inputs)
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return function(*inputs)  # (which no closure here holds)


def with_a_forked_state(function, inputs):
    """`fork_rng`, a graph of detached inputs, and what is returned by position."""

    class Recomputed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, function, state, *inputs):
            ctx.function, ctx.state, ctx.inputs = function, state, inputs
            return function(*inputs)

        @staticmethod
        def backward(ctx, dy):
            leaves = []
            for one, want in zip(ctx.inputs, ctx.needs_input_grad[2:]):
                leaf = one.detach() if isinstance(one, torch.Tensor) else one
                leaves.append(leaf.requires_grad_() if want else leaf)
            with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(True):
                torch.set_rng_state(ctx.state)
                (ctx.function(*leaves) * 1).backward(dy)
            wanted = ctx.needs_input_grad[2:]
            return None, None, *(leaf.grad if w else None for leaf, w in zip(leaves, wanted))

    return Recomputed.apply(function, torch.get_rng_state(), *inputs)


RIGHT = (with_a_forked_state, by_hooks)
