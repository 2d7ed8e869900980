"""Wrong answers to precision.block.linear, what each author must be told, and right ones."""

import inspect
import math

import torch
from torch.nn.functional import pad

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def _rounded(t, dtype, dim, block, *, rule="up", scaled="block", late=False):
    t = t.detach().movedim(dim, -1)
    t = t.flip(-1) if late else t
    size = t.shape[-1]
    block = size if scaled == "row" else block
    blocks = pad(t, (0, -size % block)).unflatten(-1, (-1, block))
    amax = blocks.abs().amax(-1, keepdim=True)
    if scaled == "tensor":
        amax = blocks.abs().amax().expand_as(amax)
    largest = torch.finfo(dtype).max
    mantissa, power = torch.frexp(amax)
    top, most = torch.frexp(torch.tensor(largest))
    power = power - most
    if rule in ("up", "unbounded"):
        power = power + (mantissa > top)
    if rule == "inside":
        power = power + (mantissa >= top)
    if rule == "always up":
        power = power + 1
    if rule == "log2":
        power = torch.where(amax > 0, torch.log2(amax / largest).ceil(), 0.0).int()
    if rule == "two logarithms":
        power = torch.where(amax > 0, (torch.log2(amax) - math.log2(largest)).ceil(), 0.0).int()
    power = power if rule == "unbounded" else power.clamp(-126, 126)
    scale = torch.ldexp(torch.ones_like(amax), power)
    if rule == "any number":
        scale = torch.where(amax > 0, amax / largest, 1.0)
    values = (blocks / scale).clamp(-largest, largest).to(dtype).float() * scale
    values = values.flatten(-2)[..., :size]
    return (values.flip(-1) if late else values).movedim(-1, dim)


def _answer(
    x,
    weight,
    block,
    *,
    y_dims=(-1, 1),
    dx_dims=(-1, 0),
    dw_dims=(0, 0),
    plain=(),
    forward=(E4M3, E4M3),
    backward=(E5M2, E4M3),
    twice=False,
    flat=True,
    out=lambda y: y,
    store=None,
    needs=True,
    **how,
):
    """The solution, with one thing to be done otherwise."""

    def r(name, t, dtype, dim):
        return t.detach() if name in plain else _rounded(t, dtype, dim, block, **how)

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            if store is not None:
                store["x"], store["weight"] = x, weight
            x2 = x.flatten(0, -2)
            y = r("x", x2, forward[0], y_dims[0]) @ r("w", weight, forward[1], y_dims[1]).T
            return out(y.view(*x.shape[:-1], -1))

        @staticmethod
        def backward(ctx, dy):
            x, weight = ctx.saved_tensors if store is None else (store["x"], store["weight"])
            dx = dw = None
            up, x2 = dy.flatten(0, -2).float(), x.flatten(0, -2)
            if not needs or ctx.needs_input_grad[0]:
                w = r("w along in", weight, E4M3, 1) if twice else weight
                w = r("w dx", w, backward[1], dx_dims[1])
                dx = (r("dy dx", up, backward[0], dx_dims[0]) @ w).view(x.shape)
            if not needs or ctx.needs_input_grad[1]:
                if flat:
                    dyr, xr = (
                        r("dy dw", up, backward[0], dw_dims[0]),
                        r("x dw", x2, backward[1], dw_dims[1]),
                    )
                else:
                    dyr = r("dy dw", dy, backward[0], dw_dims[0] - 2).flatten(0, -2)
                    xr = r("x dw", x, backward[1], dw_dims[1] - 2).flatten(0, -2)
                dw = dyr.T @ xr
            return dx, dw

    return Product.apply(x, weight)


def reuses_the_forwards_weight(x, weight, block):
    return _answer(x, weight, block, dx_dims=(-1, 1))


def reuses_the_forwards_x(x, weight, block):
    return _answer(x, weight, block, dw_dims=(0, 1))


def one_dy_for_both(x, weight, block):
    """dy is rounded once, along the outputs, for dx and for dW."""
    return _answer(x, weight, block, dw_dims=(1, 0))


def dy_along_tokens_for_both(x, weight, block):
    return _answer(x, weight, block, dx_dims=(0, 0))


def rounds_each_once(x, weight, block):
    """x, W and dy along their last dims, for everything."""
    return _answer(x, weight, block, dx_dims=(-1, 1), dw_dims=(1, 1))


def w_along_outputs(x, weight, block):
    return _answer(x, weight, block, y_dims=(-1, 0))


def x_along_tokens(x, weight, block):
    return _answer(x, weight, block, y_dims=(0, 1))


def forward_alone(x, weight, block):
    return _answer(x.detach(), weight.detach(), block)


def through_autograd(x, weight, block):
    """Rounding with the gradient 1, and the rest is autograd's: dy is not rounded."""

    def straight(t, dim):
        return t + (_rounded(t, E4M3, dim, block) - t).detach()

    return straight(x, -1) @ straight(weight, 1).T


def through_the_cast(x, weight, block):
    """Autograd sees the cast."""
    x2, size = x, x.shape[-1]
    blocks = pad(x2, (0, -size % block)).unflatten(-1, (-1, block))
    scale = _scale_of(blocks)
    q = ((blocks / scale).to(E4M3).float() * scale).flatten(-2)[..., :size]
    return q @ _rounded(weight, E4M3, 1, block).T


def _scale_of(blocks):
    mantissa, power = torch.frexp(blocks.detach().abs().amax(-1, keepdim=True))
    return torch.ldexp(torch.ones_like(mantissa), (power - 9 + (mantissa > 0.875)).clamp(-126, 126))


def backward_not_rounded(x, weight, block):
    return _answer(x, weight, block, plain=("w dx", "dy dx", "dy dw", "x dw"))


def w_not_rounded_in_backward(x, weight, block):
    return _answer(x, weight, block, plain=("w dx",))


def x_not_rounded_in_backward(x, weight, block):
    return _answer(x, weight, block, plain=("x dw",))


def dy_not_rounded_for_dw(x, weight, block):
    return _answer(x, weight, block, plain=("dy dw",))


def nothing_rounded(x, weight, block):
    return x @ weight.T


def x_not_rounded(x, weight, block):
    return _answer(x, weight, block, plain=("x",))


def one_scale_a_tensor(x, weight, block):
    return _answer(x, weight, block, scaled="tensor")


def one_scale_a_row(x, weight, block):
    return _answer(x, weight, block, scaled="row")


def the_standards_rule(x, weight, block):
    return _answer(x, weight, block, rule="down")


def always_a_power_up(x, weight, block):
    return _answer(x, weight, block, rule="always up")


def no_powers_of_two(x, weight, block):
    return _answer(x, weight, block, rule="any number")


def counts_from_the_end(x, weight, block):
    return _answer(x, weight, block, late=True)


def e5m2_forward(x, weight, block):
    return _answer(x, weight, block, forward=(E5M2, E5M2))


def e4m3_for_gradients(x, weight, block):
    return _answer(x, weight, block, backward=(E4M3, E4M3))


def e5m2_in_all_of_backward(x, weight, block):
    return _answer(x, weight, block, backward=(E5M2, E5M2))


def rounds_the_weight_twice(x, weight, block):
    return _answer(x, weight, block, twice=True)


def anew_for_each_sequence(x, weight, block):
    return _answer(x, weight, block, flat=False)


def in_bf16(x, weight, block):
    return _answer(x, weight, block, out=lambda y: y.bfloat16())


def rounded_to_bf16(x, weight, block):
    return _answer(x, weight, block, out=lambda y: y.bfloat16().float())


def in_fp64(x, weight, block):
    return _answer(x, weight, block, out=lambda y: y.double())


def mx_blocks(x, weight, block):
    """Hard-coded: 32, whatever is asked."""
    return _answer(x, weight, 32)


def needs_whole_blocks(x, weight, block):
    """view instead of pad."""
    x.detach().reshape(*x.shape[:-1], -1, block)
    return _answer(x, weight, block)


def two_dims_alone(x, weight, block):
    tokens, _ = x.shape
    return _answer(x, weight, block) if tokens else x


def gradients_for_all(x, weight, block):
    """Autograd ignores what nobody needs, so the error is elsewhere: the grad is set by hand."""
    y = _answer(x, weight, block)
    weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
    return y


_kept: dict = {}


def kept_between_calls(x, weight, block):
    """Backward takes what the last forward left behind."""
    return _answer(x, weight, block, store=_kept)


_copies: dict = {}


def a_working_copy_for_ever(x, weight, block):
    """The rounded weight is kept by its shape, and another weight has come meanwhile."""
    key = tuple(weight.shape)
    first = _copies.setdefault(key, weight.detach().clone())
    return _answer(x, weight + (first - weight).detach(), block)


def rounds_in_place(x, weight, block):
    y = _answer(x, weight, block)
    with torch.no_grad():
        weight.copy_(_rounded(weight, E4M3, 1, block))
    return y


def changes_dy(x, weight, block):
    """dy is scaled where it lies."""
    y = _answer(x, weight, block)

    class InPlace(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.view_as(y)

        @staticmethod
        def backward(ctx, dy):
            return dy.copy_(_rounded(dy, E5M2, -1, block))

    return InPlace.apply(y)


def keeps_the_rounded_ones(x, weight, block):
    """A step cheaper: forward's rounded x and W are kept, and backward rounds them anew."""
    xr = x + (_rounded(x, E4M3, -1, block) - x).detach()
    wr = weight + (_rounded(weight, E4M3, 1, block) - weight).detach()
    return _answer(xr, wr, block)


def by_a_hook(x, weight, block):
    """Autograd's products of forward's operands, and a hook that rounds dy, once."""
    xr = x + (_rounded(x, E4M3, -1, block) - x).detach()
    wr = weight + (_rounded(weight, E4M3, 1, block) - weight).detach()
    y = xr @ wr.T
    y.register_hook(lambda dy: _rounded(dy, E5M2, -1, block))
    return y


def returns_all_three(x, weight, block):
    return _answer(x, weight, block), None, None


def by_the_package(x, weight, block):
    from picolab.precision import to_blocks

    return to_blocks(x, dim=-1).values() @ to_blocks(weight, dim=1).values().T


def by_the_packages_product(x, weight, block):
    from picolab.precision import Fp8Product

    return Fp8Product("blocks")(x, weight)


def reads_the_judges_frames(x, weight, block):
    """dy of the backward that will come, and what is right, if the judge has it already."""
    for frame in inspect.stack():
        found = frame.frame.f_locals.get("right")
        if isinstance(found, tuple):
            return (found[0] @ found[1]).float()
    return through_autograd(x, weight, block)


def inside_the_end(x, weight, block):
    """Largest numbers of 448 times a power of two count as beyond it."""
    return _answer(x, weight, block, rule="inside")


def any_power(x, weight, block):
    return _answer(x, weight, block, rule="unbounded")


def by_log2(x, weight, block):
    """In fp32 it is a whole number too for what is a last bit beyond."""
    return _answer(x, weight, block, rule="log2")


def by_two_logarithms(x, weight, block):
    return _answer(x, weight, block, rule="two logarithms")


def by_views(x, weight, block):
    """A view instead of flatten needs what is contiguous."""
    return _answer(x.view(-1, x.shape[-1]), weight, block).view(*x.shape[:-1], -1)


MUTANTS = {
    reuses_the_forwards_weight: "W has its blocks along the inputs, as for y",
    reuses_the_forwards_x: "x has its blocks along the inputs, as for y",
    one_dy_for_both: "dy has its blocks along the outputs, as for dx",
    dy_along_tokens_for_both: "dy has its blocks along the tokens, as for dW",
    rounds_each_once: "dW is a sum over the tokens",
    w_along_outputs: "W has its blocks along the outputs; y is a sum over the inputs",
    x_along_tokens: "x has its blocks along the tokens; y is a sum over the inputs",
    forward_alone: "no gradient can flow back",
    through_autograd: "dx is wrong: dy was not rounded",
    through_the_cast: "dx",
    backward_not_rounded: "nothing was rounded: it is dy W",
    w_not_rounded_in_backward: "W was not rounded",
    x_not_rounded_in_backward: "x was not rounded",
    dy_not_rounded_for_dw: "dy was not rounded",
    nothing_rounded: "y is wrong: nothing was rounded",
    x_not_rounded: "x was not rounded",
    one_scale_a_tensor: "there is one scale for each tensor",
    one_scale_a_row: "there is one scale for each row",
    the_standards_rule: "was saturated: the scale is the least power of two",
    always_a_power_up: "a power of two larger than it need be",
    no_powers_of_two: "y is wrong",
    counts_from_the_end: "blocks are counted from the end",
    e5m2_forward: "x and W were rounded to e5m2",
    e4m3_for_gradients: "dy was rounded to e4m3",
    e5m2_in_all_of_backward: "W was rounded to e5m2",
    rounds_the_weight_twice: "W has its blocks along the inputs, as for y",
    anew_for_each_sequence: "blocks begin anew with each sequence",
    in_bf16: "is in torch.bfloat16, and should be in torch.float32",
    rounded_to_bf16: "bf16 ones: was it rounded on the way",
    in_fp64: "is in torch.float64, and should be in torch.float32",
    mx_blocks: "blocks are of 32 numbers",
    needs_whole_blocks: "is invalid for input of size 35",
    two_dims_alone: "too many values to unpack",
    gradients_for_all: "a frozen weight has no gradient",
    kept_between_calls: "both are of the last micro-batch's x",
    a_working_copy_for_ever: "y is wrong",
    rounds_in_place: "it changed its input `weight`",
    changes_dy: "it changed its input `dy`",
    keeps_the_rounded_ones: "x was rounded twice",
    by_a_hook: "as for y",
    returns_all_three: "y is of type tuple",
    by_the_package: "is what this exercise asks you to write",
    by_the_packages_product: "is what this exercise asks you to write",
    reads_the_judges_frames: "dx is wrong: dy was not rounded",
    inside_the_end: "it is at the end of the format, and not beyond",
    any_power: "e went beyond -126 or 126",
    by_log2: "log2 in fp32 rounds it off",
    by_two_logarithms: "y is wrong",
    by_views: "view size is not compatible",
}


def by_loops(x, weight, block):
    """Block by block, by division and Python's own frexp."""

    def blockwise(t, dtype, dim):
        largest, parts = torch.finfo(dtype).max, []
        for part in t.detach().split(block, dim):
            amax = part.abs().amax(dim, keepdim=True)
            powers = [_least(size, largest) for size in amax.flatten().tolist()]
            scale = torch.tensor([2.0**e for e in powers]).view_as(amax)
            parts.append((part / scale).to(dtype).to(torch.float32) * scale)
        return torch.cat(parts, dim)

    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(x, weight):
            return torch.nn.functional.linear(
                blockwise(x, E4M3, x.dim() - 1), blockwise(weight, E4M3, 1)
            )

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, dy):
            x, weight = ctx.saved_tensors
            rows, up = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
            dx = torch.mm(blockwise(up, E5M2, 1), blockwise(weight, E4M3, 0)).view_as(x)
            dw = torch.einsum("to,ti->oi", blockwise(up, E5M2, 0), blockwise(rows, E4M3, 0))
            return dx, dw

    return Linear.apply(x, weight)


def _least(amax, largest):
    if amax == 0:
        return 0
    e = math.floor(math.log2(amax / largest)) - 1
    while amax > largest * 2.0**e:
        e += 1
    return max(-126, min(126, e))


def by_hooks(x, weight, block):
    """A plain product of rounded leaves, and hooks that put the right gradients in their place."""
    a = _rounded(x, E4M3, -1, block)
    b = _rounded(weight, E4M3, 1, block)

    class Given(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, y):
            ctx.kept = x, weight
            return y

        @staticmethod
        def backward(ctx, dy):
            x, weight = ctx.kept
            up, rows = dy.flatten(0, -2).contiguous(), x.flatten(0, -2)
            dw = None
            if weight.requires_grad:
                dw = _rounded(up.T, E5M2, 1, block) @ _rounded(rows.T, E4M3, 1, block).T
            dx = _rounded(up, E5M2, 1, block) @ _rounded(weight.T, E4M3, 1, block).T
            return dx.view_as(x), dw, None

    return Given.apply(x, weight, a @ b.T)


RIGHT = (by_loops, by_hooks)
