"""Exercise: a product whose backward comes in two halves (chapter 3, section 2).

The judge puts it into a small network, goes back through that, and does what was left later and in
another order, as a schedule would. It looks at each matrix product that torch computes.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_product(x, weight, later):
    raise NotImplementedError(f"x of {tuple(x.shape)} times {tuple(weight.shape)}, transposed")


def solution(x, weight, later):
    import torch

    class Split(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, wrapped):
            ctx.save_for_backward(x)
            (ctx.weight,) = wrapped  # wrapped: to autograd the weight is no input
            return x @ ctx.weight.T

        @staticmethod
        def backward(ctx, dy):
            (x,), weight = ctx.saved_tensors, ctx.weight
            if weight.requires_grad:
                later.append(lambda: weight.backward(dy.flatten(0, -2).T @ x.flatten(0, -2)))
            return dy @ weight, None

    if not x.requires_grad:  # no B for autograd to call: do as usual
        return x @ weight.T
    return Split.apply(x, (weight,))


_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "matmul", "linear")
_BY_NUMBERS = ("mul", "sum", "add", "outer", "ger", "addr")


class _Products(TorchDispatchMode):
    """The shapes of what matrix products give, and of sums and products number by number, from
    which a matrix product can be made, while it is entered."""

    def __init__(self):
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.others: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in _PRODUCTS:
            self.shapes.append(tuple(out.shape))
        elif func.overloadpacket.__name__ in _BY_NUMBERS:
            self.others.append(tuple(out.shape))
        return out

    def like(self, weight: torch.Tensor) -> int:
        """How many gave a gradient of the weight's shape, or transposed."""
        wanted = (tuple(weight.shape), tuple(weight.shape)[::-1])
        found = [shape[-2:] for shape in self.shapes] + self.others
        return sum(shape in wanted for shape in found)


def judge(learner, attempt: Attempt) -> None:
    values = attempt.case.values
    sizes, leading, m = values["widths"], values["leading"], values["micro_batches"]
    shapes = list(zip(sizes[1:], sizes))
    values_of = [attempt.tensor(*shape) for shape in shapes]
    weights = [torch.nn.Parameter(value.clone()) for value in values_of]
    for index in values.get("frozen", ()):
        weights[index].requires_grad_(False)
    inputs = [attempt.tensor(*leading, sizes[0]) for _ in range(m)]
    for x in inputs:
        x.view(-1)[::3] = 0
    heard: list[int] = []
    for index, weight in enumerate(weights):
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(lambda _, index=index: heard.append(index))

    def network(x, product):
        for weight in weights:
            x = torch.tanh(product(x, weight))
        if values.get("twice"):
            x = torch.tanh(product(x, weights[-1]))
        return x

    lists: list[list] = [[] for _ in inputs]
    leaves = [x.clone().requires_grad_(values.get("needs", True)) for x in inputs]
    outs = []
    for leaf, later in zip(leaves, lists):

        def product(x, weight, later=later):
            given = {"x": x, "weight": weight, "later": later}
            names = ("x", "weight", "later")
            y = attempt.call(learner, given, may_change=names)
            if isinstance(y, torch.Tensor):
                if (x.requires_grad or weight.requires_grad) and not y.requires_grad:
                    needs = "x" if x.requires_grad else "the weight"
                    attempt.wrong(f"{needs} needs a gradient, and what it returns leads to none")
                return y
            attempt.wrong(f"it returns {type(y).__name__}, and should return a tensor")
            return torch.nn.functional.linear(x, weight)

        outs.append(network(leaf, product))
    if attempt.problems:
        return
    expected = [_dense(values_of, weights, x, values) for x in inputs]
    for i, (out, (right, *_)) in enumerate(zip(outs, expected)):
        if not attempt.equal(f"the output of micro-batch {i}", out, right):
            return
    if attempt.require(not any(lists), "something is in `later` before any backward was called"):
        _backward(attempt, outs, lists, leaves, weights, expected, heard, values)
    attempt.only()
    attempt.budget(count=0)


def _dense(values_of, weights, x, values):
    """Output, gradient of x and of the weights, by autograd."""
    leaves = [v.clone().requires_grad_(w.requires_grad) for v, w in zip(values_of, weights)]
    x = x.clone().requires_grad_()
    y = x
    for leaf in [*leaves, *([leaves[-1]] if values.get("twice") else [])]:
        y = torch.tanh(y @ leaf.T)
    y.square().sum().backward()
    return y.detach(), x.grad, [leaf.grad for leaf in leaves]


def _backward(attempt, outs, lists, leaves, weights, expected, heard, values) -> None:
    split = [w for i, w in enumerate(weights) if w.requires_grad and (i or values.get("needs", 1))]
    in_b = _Products()
    for out in outs:
        with in_b:
            out.square().sum().backward()
    uses = len(weights) + bool(values.get("twice"))
    done = sum(w.grad is not None for w in split)
    if done:
        attempt.wrong(
            "B has already given a weight its gradient: that is for W to do, when what is in "
            "`later` is called"
        )
        return
    early = [i for i in heard if any(weights[i] is w for w in split)]
    if early:
        attempt.wrong(
            "in B a weight is told that its gradient has arrived, although it got none: then a "
            "bucket leaves without it. To autograd the weight must be no input of the product"
        )
        return
    products = sum(in_b.like(w) for w in {id(w): w for w in split}.values())
    if products:
        attempt.wrong(
            f"B computes {products} products of a weight's shape: the gradient of the weights is "
            "computed there already, and only kept for later"
        )
        return
    for i, (leaf, (_, dx, _)) in enumerate(zip(leaves, expected)):
        if values.get("needs", True) and not attempt.equal(
            f"the gradient of x, micro-batch {i}", leaf.grad, dx
        ):
            return
    frozen = not all(weight.requires_grad for weight in weights)
    wanted = uses - len(weights) + len(split) if split else 0
    for i, later in enumerate(lists):
        if len(later) != wanted or not all(map(callable, later)):
            attempt.wrong(
                f"after B of micro-batch {i} `later` has {len(later)} entries, and {wanted} "
                "products have left something: append a function for each"
                + (", and none for a frozen weight" if len(later) > wanted and frozen else "")
            )
            return
    _weights(attempt, lists, weights, split, expected, heard, values)


def _weights(attempt, lists, weights, split, expected, heard, values) -> None:
    """W: the last micro-batch first."""
    in_w, calls, returned = _Products(), 0, 0
    before = len(heard)
    for later in reversed(lists):
        while later:
            with in_w:
                returned += later.pop()() is not None
            calls += 1
    for index, weight in enumerate(weights):
        name = f"the gradient of weight {index}"
        grads = [of[2][index] for of in expected]
        if not weight.requires_grad:
            attempt.require(weight.grad is None, f"{name} is not None, and the weight is frozen")
            continue
        if not attempt.require(
            weight.grad is not None,
            f"{name} is still None after W"
            + (": nobody looks at what the functions in `later` return" if returned else ""),
        ):
            return
        mistakes = {
            "it is the last micro-batch's alone: gradients are added up": (grads[0], grads[-1]),
            "every micro-batch is in it twice": 2 * sum(grads),
            "it is the mean over the micro-batches": sum(grads) / len(grads),
        }
        if not attempt.equal(name, weight.grad, sum(grads), mistakes=mistakes):
            return
    told = len(heard) - before
    so = "or buckets never leave" if told < calls else "and leave the hooks to it"
    attempt.require(
        told == calls,
        f"W gave {calls} gradients, and the hooks of the weights heard of {told}: let autograd add "
        f"them (`weight.backward(dw)`), {so}",
    )
    products = len(in_w.shapes)
    attempt.counts("products in W", products, calls, calls)
    if products > calls:
        attempt.wrong(
            f"W takes {products} products for {calls} weight gradients: something is computed twice"
        )


_WIDTHS = (5, 7, 4, 6)

EXERCISE = Exercise(
    id="3d.pp.split",
    goal="A linear layer's product whose backward comes in two halves, inside autograd, so that a "
    "module need not know. `y.backward(...)` is B: it gives x its gradient and computes nothing of "
    "the weight's. What is left to do is put into `later`; whoever runs the pipeline calls it when "
    "there is time, and only then the weight gets its gradient: W.",
    interface="`my_product(x, weight, later)` returns `x @ weight.T`. x: (..., in); weight: a "
    "`torch.nn.Parameter` (out, in), perhaps frozen (`requires_grad` False: nothing is left to "
    "do), perhaps used by several products. `later` is a list, empty until B; B appends a function "
    "without arguments for each product. Called, it *adds* to `weight.grad` as autograd would: "
    "hooks that listen for gradients (`register_post_accumulate_grad_hook`, which is how buckets "
    "hear of them) are called in W, once for each, and not in B. If x needs no gradient, there is "
    "no B, and the weight's gradient may come as usual. Nothing is sent.",
    budget="In B no product of the weight's shape; in W one product for each entry of `later`.",
    hints=(
        "You need a `torch.autograd.Function`: its backward returns dx, and leaves a function "
        "behind. What must that function remember, and what can be let go?",
        "It needs dy and x. Flatten all leading dims: dW = dyᵀ x is a sum over tokens. If the "
        "weight is an *input* of your Function, autograd tells it in B that its gradient has "
        "arrived. How could a Function get at the weight otherwise?",
        "Pass it wrapped, `Split.apply(x, (weight,))`: autograd looks into no tuple. In W "
        "`weight.backward(dw)` adds to `.grad` and calls the hooks. Return x @ weight.T itself if "
        "x needs no gradient, and append nothing for a frozen weight.",
    ),
    stub_function=my_product,
    solution_function=solution,
    why="Both halves are products of the same size, and only one of them is in somebody's way. "
    "What is bought with it is memory: x and dy of every matrix live until W. The package's own is "
    "the same (`pico.source('picolab.parallel.split_backward')`); torch's pipelining splits the "
    "autograd graph itself (`stage_backward_input`, `stage_backward_weight`). Norms and biases get "
    "their gradients in B: they are sums, and there is little to put off (arXiv 2401.10241, "
    "section 2.1).",
    judge=judge,
    cases=(
        Case("dp2", "3 micro-batches", {"widths": _WIDTHS, "leading": (3,), "micro_batches": 3}),
        Case(
            "dp1",
            "x of three dims, one weight frozen",
            {"widths": _WIDTHS, "leading": (2, 5), "micro_batches": 2, "frozen": (1,)},
        ),
        Case(
            "dp1",
            "one weight in two products",
            {"widths": (5, 7, 7), "leading": (3,), "micro_batches": 2, "twice": True},
        ),
        Case(
            "dp1",
            "the first input needs no gradient",
            {"widths": _WIDTHS, "leading": (3,), "micro_batches": 2, "needs": False},
        ),
    ),
    blocked=("picolab.parallel.split_backward.LaterWeightGradients.product",),
    timeout=5.0,
)
