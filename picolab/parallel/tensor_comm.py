"""How the halves of a split layer talk: f and g; with sequence parallelism, gather and scatter.

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

**Sequence parallelism.** An all-reduce is a reduce-scatter and an all-gather, one after the other.
Between g and the next f only norms and residual additions happen, token by token; so g can stop
after its first half, every rank goes on with 1/n of the sequence, and f begins with the other half:

    x/n --gather--> column-parallel --> ... --> row-parallel --scatter_sum--> y/n

    gather        forward: all-gather        backward: reduce-scatter
    scatter_sum   forward: reduce-scatter    backward: all-gather

The same bytes on the wire, and between the halves a rank keeps 1/n of each activation. These two
are transposes of each other as well. (They are g and g-bar of arXiv 2205.05198, section 4.2.2.)

`gather_linear` is gather and the product in one function. For the weight's gradient it either keeps
the gathered input ("keep"), or its own 1/n, and gathers again in backward ("gather", as Megatron-LM
does): that saves (n-1)/n * B * S * D elements of each of a layer's two inputs, and sends as many
more: 10 collectives a layer and micro-batch instead of 8. In backward everything that can travel
beside a product does:

    gather x again |  dx = dy W  | scatter dx | dw = dy^T x |
                   [-- gather ---]            [-- scatter --]
"""

from typing import Literal

import torch
from torch.autograd.function import once_differentiable

from picolab import comm
from picolab.model import PLAIN, Product

INPUT_GRADIENT = "tp: column-parallel input gradient"
ROW_OUTPUT = "tp: row-parallel output"
GATHER_INPUT = "sp: gather input"
GATHER_AGAIN = "sp: gather input again"
SCATTER_INPUT_GRADIENT = "sp: scatter input gradient"
SCATTER_OUTPUT = "sp: scatter output"
GATHER_OUTPUT_GRADIENT = "sp: gather output gradient"
SEQUENCE = 1  # the dim of (B, S, D) that sequence parallelism splits

Inputs = Literal["keep", "gather"]


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


def column_linear(
    x: torch.Tensor, w_local: torch.Tensor, axis: str = "tp", product: Product = PLAIN
) -> torch.Tensor:
    """product(f(x), w_local), with the all-reduce of dx under way while dw is computed.

    x: (..., in), the same on every rank of the axis; w_local: (out / n, in); result (..., out / n).
    product: F.linear and its gradients, or what a precision makes of them.
    """
    return _ColumnLinear.apply(x, w_local, axis, product)


def gather(x: torch.Tensor, axis: str = "tp") -> torch.Tensor:
    """The whole sequence from every rank's 1/n, (B, S/n, D) -> (B, S, D); backward: the sum of all
    ranks' gradients of one's own 1/n.
    """
    return _Gather.apply(x, axis)


def scatter_sum(x: torch.Tensor, axis: str = "tp", reason: str = SCATTER_OUTPUT) -> torch.Tensor:
    """One's own 1/n of the sum of all ranks' x, (B, S, D) -> (B, S/n, D); backward: the whole
    gradient.

    Raises ValueError if n does not divide S.
    """
    n = comm.mesh().size(axis)
    if x.shape[SEQUENCE] % n:
        below = x.shape[SEQUENCE] // n * n
        near = f"{below} or {below + n}" if below else str(n)
        raise ValueError(
            f"sequence parallelism splits the sequence over {axis}={n} ranks, which does not "
            f"divide the {x.shape[SEQUENCE]} tokens that each holds; take {near}"
        )
    return _ScatterSum.apply(x, axis, reason)


def gather_linear(
    x: torch.Tensor,
    w_local: torch.Tensor,
    axis: str = "tp",
    inputs: Inputs = "keep",
    product: Product = PLAIN,
) -> torch.Tensor:
    """product(gather(x), w_local). x: (B, S/n, in), w_local: (out / n, in); result (B, S, out/n).

    inputs: whether the gathered x is kept for backward, or gathered again there.
    tests/distributed/parallel/test_sequence.py holds all equal.
    """
    return _GatherLinear.apply(x, w_local, axis, inputs, product)


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
    def forward(ctx, x, w_local, axis, product):
        ctx.save_for_backward(x, w_local)
        ctx.axis, ctx.product = axis, product
        return product.y(x, w_local)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_local):
        x, w_local = ctx.saved_tensors
        dx = dw_local = pending = None
        # Every rank of the axis agrees on whether x needs a gradient, so all call this or none.
        if ctx.needs_input_grad[0]:
            dx = ctx.product.dx(dy_local, w_local)
            pending = comm.all_reduce(dx, ctx.axis, INPUT_GRADIENT, async_op=True)
        if ctx.needs_input_grad[1]:
            dw_local = ctx.product.dw(dy_local, x).to(w_local.dtype)
        if pending is not None:
            pending.wait()
        return dx, dw_local, None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis):
        ctx.axis = axis
        return comm.all_gather(x, axis, GATHER_INPUT, dim=SEQUENCE)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return comm.reduce_scatter(dy, ctx.axis, SCATTER_INPUT_GRADIENT, dim=SEQUENCE), None


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis, reason):
        ctx.axis = axis
        return comm.reduce_scatter(x, axis, reason, dim=SEQUENCE)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return comm.all_gather(dy, ctx.axis, GATHER_OUTPUT_GRADIENT, dim=SEQUENCE), None, None


class _GatherLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w_local, axis, inputs, product):
        whole = comm.all_gather(x, axis, GATHER_INPUT, dim=SEQUENCE)
        ctx.save_for_backward(whole if inputs == "keep" else x, w_local)
        ctx.axis, ctx.again, ctx.product = axis, inputs == "gather", product
        return product.y(whole, w_local)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_local):
        x, w_local = ctx.saved_tensors
        dx = dw_local = gathering = scattering = None
        if ctx.again and ctx.needs_input_grad[1]:
            gathering = comm.all_gather(x, ctx.axis, GATHER_AGAIN, async_op=True)
        if ctx.needs_input_grad[0]:
            dx = ctx.product.dx(dy_local, w_local)
            scattering = comm.reduce_scatter(
                dx, ctx.axis, SCATTER_INPUT_GRADIENT, dim=SEQUENCE, async_op=True
            )
        if ctx.needs_input_grad[1]:
            if gathering is not None:  # along dim 0, rank by rank
                x = torch.cat(gathering.wait().chunk(comm.mesh().size(ctx.axis)), dim=SEQUENCE)
            dw_local = ctx.product.dw(dy_local, x).to(w_local.dtype)
        if scattering is not None:
            dx = scattering.wait()
        return dx, dw_local, None, None, None
