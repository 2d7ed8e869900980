"""A linear's three products in a short format, by one of two ways that compute the same.

    y  = x W^T      (tokens, in)  (out, in)
    dx = dy W       (tokens, out) (out, in)
    dw = dy^T x     (tokens, out) (tokens, in)

    native    the processor multiplies bf16 (or fp16) and adds in fp32: several times as fast as
              fp32 where it has instructions for that, and tens of times as slow where it has none,
              for some layouts of the operands and not for others
    rounded   the same numbers as fp32, multiplied in fp32, and the result rounded: what the
              hardware computes, up to the order of additions

So which is taken is a question to the clock, for each of the three (hardware.py), and changes no
more than the order of additions does. Both start from the same rounded x, W and dy, add k products
in fp32 (unit roundoff v = 2^-24), and round the sum s to the format (u):

    | native - rounded | <= 2 (k v |a|.|b|) (1 + u) + 2 u |s|         k: terms of a sum

since a sum of k terms, in whatever order, is off by at most k v times the sum of their sizes
(Higham, Accuracy and Stability of Numerical Algorithms, section 4.2), and two numbers are rounded
apart by an ulp, 2 u, more than they differ. Where terms cancel, |s| is small and the first part
decides: that is why the bound is on the absolute error, and not in ulps.

The weight is the fp32 master. Its *working copy* in the short format is made when it is first
needed and dropped when the optimizer has stepped (`forget`); with ZeRO 3, where a parameter is
whole only while it is used, it is made for every product.

Twin: `torch.autocast`, which makes copies of the same kind, and always multiplies natively.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from picolab.model import PLAIN, Product

Way = Literal["native", "rounded"]


class Ways(NamedTuple):
    """How each of a linear's products is computed."""

    y: Way = "rounded"
    dx: Way = "rounded"
    dw: Way = "rounded"


ROUNDED = Ways()


class LowProduct(Product):
    """The products of one linear in a short format: bf16 or fp16.

    keep: whether the working copy lives until `forget`.
    """

    def __init__(self, dtype: torch.dtype, ways: Ways = ROUNDED, keep: bool = True):
        self.dtype, self.ways, self.keep = dtype, ways, keep
        self._copies: dict[torch.dtype, torch.Tensor] = {}

    def __call__(self, x: torch.Tensor, weight: nn.Parameter) -> torch.Tensor:
        return _Products.apply(x, weight, self)

    def y(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return self._multiply("y", x, self.copy(w, self.ways.y))

    def dx(self, dy: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return self._multiply("dx", dy, self.copy(w, self.ways.dx))

    def dw(self, dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self._multiply("dw", dy, x)

    def forget(self) -> None:
        """The master has changed."""
        self._copies.clear()

    def copies(self) -> list[torch.Tensor]:
        return list(self._copies.values())

    def copy(self, w: torch.Tensor, way: Way) -> torch.Tensor:
        """The master, rounded; as fp32 numbers where they will be multiplied in fp32."""
        held = self.dtype if way == "native" else torch.float32
        if held not in self._copies:
            made = w.detach().to(self.dtype).to(held)
            if not self.keep:
                return made
            self._copies[held] = made
        return self._copies[held]

    def _multiply(self, which: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return multiply(which, a.to(self.dtype), b, self.dtype, getattr(self.ways, which))


def multiply(
    which: str, a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype, way: Way
) -> torch.Tensor:
    """One of `Product`'s three, of operands that are in the short format already (or are its
    numbers, as fp32)."""
    product = getattr(PLAIN, which)
    if way == "native":
        return product(a, b.to(dtype))
    return product(a.float(), b.float()).to(dtype)


class _Products(torch.autograd.Function):
    """x and the master are kept for backward: the copy is asked for again."""

    @staticmethod
    def forward(ctx, x, weight, product):
        ctx.save_for_backward(x, weight)
        ctx.product = product
        return product.y(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = ctx.product.dx(dy, weight).to(x.dtype)
        if ctx.needs_input_grad[1]:
            dw = ctx.product.dw(dy, x).to(weight.dtype)
        return dx, dw, None


def naive_product(x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The same as autograd finds it: x, W and y are rounded, and so are their gradients."""
    return F.linear(x.to(dtype).float(), weight.to(dtype).float()).to(dtype)
