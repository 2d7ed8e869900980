"""A backward in two halves: the gradient of the input now, that of the weights later.

A linear y = x W^T has two gradients, and nobody needs both at the same time:

    B   dx = dy W      the layer before waits for it
    W   dW = dy^T x    only the optimizer waits for it

autograd computes both at once. `LaterWeightGradients.product` is a linear whose backward computes
dx and leaves (weight, x, dy) behind; whoever runs the pipeline takes what a backward has left, and
computes dW from it when there is time. The two halves are the same products, so nothing is computed
twice, and what must be kept between them is x and dy of each matrix.

Norm weights and the embedding get their gradients in B: they are sums, not products, and there is
little to put off. Source: arXiv 2401.10241, section 2.1. Twin in torch:
`torch.distributed.pipelining._backward.stage_backward_input` and `stage_backward_weight`, which
split any autograd graph.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from picolab.model import PLAIN, Linear, Product


class Left(NamedTuple):
    """What W of one product needs."""

    weight: nn.Parameter
    x: torch.Tensor
    dy: torch.Tensor
    product: Product = PLAIN


class LaterWeightGradients:
    """The products of a model, split, and what their backward passes have left since `take`."""

    def __init__(self) -> None:
        self._left: list[Left] = []

    def product(
        self, x: torch.Tensor, weight: nn.Parameter, product: Product = PLAIN
    ) -> torch.Tensor:
        """product(x, weight), whose backward leaves the weight's gradient for later. Where x needs
        no gradient there is no B, and autograd does as usual."""
        if not x.requires_grad:
            return product(x, weight)
        return _SplitLinear.apply(x, (weight,), self._left, product)

    def take(self) -> list[Left]:
        """What was left; it is the caller's from now on."""
        taken = list(self._left)
        self._left.clear()
        return taken


def compute(left: list[Left]) -> None:
    """W: add each weight's gradient to its `.grad`, as autograd would, and drop what was kept.

    `backward` on a parameter is autograd's own way to add to it, so whoever listens for a gradient
    (buckets) hears of this one too.
    """
    while left:
        weight, x, dy, product = left.pop()
        weight.backward(product.dw(dy, x).to(weight.dtype))


def split_products(model: nn.Module, later: LaterWeightGradients | None) -> None:
    """Make every linear of the model compute its product so; None: as usual."""
    for module in model.modules():
        if isinstance(module, Linear):
            whole = module.product.whole if module.product.splits else module.product
            module.product = whole if later is None else SplitProduct(whole, later)


class SplitProduct(Product):
    """A product that computes the same as another, and leaves dw for later."""

    splits = True

    def __init__(self, whole: Product, later: LaterWeightGradients):
        self.whole, self._later = whole, later

    def __call__(self, x: torch.Tensor, weight: nn.Parameter) -> torch.Tensor:
        return self._later.product(x, weight, self.whole)

    def copies(self) -> list[torch.Tensor]:
        return self.whole.copies()


class _SplitLinear(torch.autograd.Function):
    """weight comes wrapped, so that it is no input to autograd: of an input autograd would say that
    its gradient has arrived, with B, although it got none."""

    @staticmethod
    def forward(ctx, x, wrapped, left, product):
        ctx.save_for_backward(x)
        (ctx.weight,), ctx.left, ctx.product = wrapped, left, product
        return product.y(x, ctx.weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        if ctx.weight.requires_grad:
            ctx.left.append(Left(ctx.weight, x, dy, ctx.product))
        return ctx.product.dx(dy, ctx.weight), None, None, None
