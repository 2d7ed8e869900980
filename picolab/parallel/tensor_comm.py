"""How the halves of a split layer talk: f and g.

Split a matrix W over n ranks. By rows of W (its outputs), each rank needs the whole input and makes
a part of the output; by columns (its inputs), each rank needs a part of the input and makes a
*summand* of the whole output. The first then the second, and nothing has to be exchanged between
them:

    x --f--> column-parallel --> [anything elementwise, or head by head] --> row-parallel --g--> y

    f   forward: nothing                  backward: all-reduce (each rank has a summand of dx)
    g   forward: all-reduce (summands of y)  backward: nothing (dy is whole on every rank)

f and g are each other's transpose: the sum over ranks in one direction is the copy to all ranks in
the other. The names are Megatron-LM's (arXiv 1909.08053, section 3, figure 3).

An autograd function must not change a tensor that others hold. A gradient that arrives in
`backward` may also have been given to somebody else (the other branch of a residual connection gets
the very same tensor), so f copies before it reduces; g copies too, and g_ is for a tensor that
nobody else has, and says so to autograd (`mark_dirty`).

`column_linear` is f and the product in one function: the input's gradient is fresh there, so it
needs no copy, and while it travels the weight's gradient is computed.
tests/distributed/parallel/test_tensor.py holds it equal to `F.linear(f(x), w)`. Twin in torch:
`torch.distributed.tensor.parallel.ColwiseParallel` and `RowwiseParallel`.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from picolab import comm

INPUT_GRADIENT = "tp: column-parallel input gradient"
ROW_OUTPUT = "tp: row-parallel output"


def f(x: torch.Tensor, axis: str = "tp", reason: str = INPUT_GRADIENT) -> torch.Tensor:
    """Before a column-parallel layer: the same x forward, the sum of all ranks' gradients
    backward.
    """
    return _F.apply(x, axis, reason)


def g(x: torch.Tensor, axis: str = "tp", reason: str = ROW_OUTPUT) -> torch.Tensor:
    """After a row-parallel layer: the sum of all ranks' x forward, the same gradient backward."""
    return _G.apply(x, axis, reason)


def g_(x: torch.Tensor, axis: str = "tp", reason: str = ROW_OUTPUT) -> torch.Tensor:
    """g in place: x itself becomes the sum. For an x that was just computed and that nothing else
    will read.
    """
    return _GInPlace.apply(x, axis, reason)


def column_linear(x: torch.Tensor, w_local: torch.Tensor, axis: str = "tp") -> torch.Tensor:
    """F.linear(f(x), w_local), with the all-reduce of dx under way while dw is computed.

    x: (..., in), the same on every rank of the axis; w_local: (out / n, in); result (..., out / n).
    """
    return _ColumnLinear.apply(x, w_local, axis)


class _F(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis, reason):
        ctx.axis, ctx.reason = axis, reason
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        dx = dy.clone(memory_format=torch.contiguous_format)
        return comm.all_reduce(dx, ctx.axis, ctx.reason), None, None


class _G(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis, reason):
        return comm.all_reduce(x.clone(memory_format=torch.contiguous_format), axis, reason)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return dy, None, None


class _GInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis, reason):
        ctx.mark_dirty(x)
        return comm.all_reduce(x, axis, reason)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return dy, None, None


class _ColumnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w_local, axis):
        ctx.save_for_backward(x, w_local)
        ctx.axis = axis
        return F.linear(x, w_local)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_local):
        x, w_local = ctx.saved_tensors
        dx = dw_local = pending = None
        # Every rank of the axis agrees on whether x needs a gradient, so all call this or none.
        if ctx.needs_input_grad[0]:
            dx = dy_local @ w_local
            pending = comm.all_reduce(dx, ctx.axis, INPUT_GRADIENT, async_op=True)
        if ctx.needs_input_grad[1]:
            dw_local = dy_local.flatten(0, -2).T @ x.flatten(0, -2)
        if pending is not None:
            pending.wait()
        return dx, dw_local, None
