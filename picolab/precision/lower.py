"""A model whose products are in a short format, and all else where it belongs.

    bf16 or fp16    what flows between layers, x, W and dy of every linear, and of experts; q, k, v
    fp32            the masters (which are the model's parameters), their gradients, moments
                    norms          a mean of squares: 7 bits would be off by a percent
                    the router     a choice by the larger of two near numbers
                    softmax, loss  exponentials; a sum over the vocabulary

`lower` replaces what `model` lets be replaced (the linears' product, attention, the embedding's
dtype) and returns the products, which have to be told when the masters change.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import nn

from picolab.model import Linear, Transformer
from picolab.model.transformer import Attention, causal_attention
from picolab.precision.hardware import attend_rounded
from picolab.precision.products import LowProduct, Way, Ways

WaysOf = Callable[[Linear], Ways]


def lower(
    model: Transformer,
    dtype: torch.dtype,
    ways: WaysOf,
    *,
    attention: Way = "rounded",
    experts: Way = "rounded",
    keep: bool = True,
    make: Callable[[str, Ways], LowProduct] | None = None,
) -> list[LowProduct]:
    """Let the model compute in `dtype`. ways: how each linear's products are computed; attention,
    experts: those of other products. keep: whether working copies outlive a product. make: the
    product of a linear, by its (first) weight's name; None: one in `dtype`."""
    model.activations = dtype
    if model.embed is not None:
        model.embed.gives = dtype
    products = []
    for linear in linears(model):
        if make is None:
            linear.product = LowProduct(dtype, ways(linear), keep)
        else:
            linear.product = make(linear.weight.pieces[0].name, ways(linear))
        products.append(linear.product)
    for module in model.modules():
        # Where a sequence is split, what is sent is what attention is given: it stays short.
        if isinstance(module, Attention) and module.attend is causal_attention:
            if attention == "rounded":
                module.attend = attend_rounded(module.attend, dtype)
        elif hasattr(module, "cut_by_tp") and hasattr(module, "product"):
            module.product = low_experts(module.product, dtype, experts)
    return products


def linears(model: nn.Module) -> list[Linear]:
    return [module for module in model.modules() if isinstance(module, Linear)]


def low_experts(product: Callable, dtype: torch.dtype, way: Way) -> Callable:
    """Experts' grouped product of rounded operands, as autograd finds it: its gradients are rounded
    where the operands were."""
    held = dtype if way == "native" else torch.float32

    def low(x_AI: torch.Tensor, rows: Sequence[int], w_EOI: torch.Tensor) -> torch.Tensor:
        return product(x_AI.to(dtype).to(held), rows, w_EOI.to(dtype).to(held)).to(dtype)

    return low


def shape_of(linear: Linear) -> tuple[int, int]:
    """(inputs, outputs) of what is multiplied: of a weight whose rows ZeRO deals out, the whole."""
    pieces = linear.weight.pieces
    whole = [replace(p, cuts=tuple(c for c in p.cuts if c.axis == "tp")) for p in pieces]
    return whole[0].local_shape[1], sum(piece.local_shape[0] for piece in whole)


def forget(products: Iterable[LowProduct]) -> None:
    for product in products:
        product.forget()
