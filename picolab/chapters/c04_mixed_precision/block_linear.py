"""Exercise: a linear layer with block-scaled fp8 operands, forward and backward (chapter 4,
sections 2 and 8).

What is expected is multiplied in fp64 from operands that are rounded block by block, number by
number, by the definition of rounding (`picolab.precision.round_to`). Compared is each element, with
the bound of an fp32 sum of its own terms: an outlier in one row hides nothing in another.
"""

import math
from collections.abc import Iterator

import torch

from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise
from picolab.precision.formats import find, round_to

LARGEST = {"e4m3": 448.0, "e5m2": 57344.0}


def my_block_linear(x, weight, block):
    raise NotImplementedError(f"x of {tuple(x.shape)} in blocks of {block}, and no gradient yet")


def solution(x, weight, block):
    import torch
    from torch.nn.functional import pad

    e4m3, e5m2 = torch.float8_e4m3fn, torch.float8_e5m2

    def rounded(t, dtype, dim):
        """t as fp8 times a power of two for each block along dim, back in fp32."""
        t = t.detach().movedim(dim, -1)
        size = t.shape[-1]
        blocks = pad(t, (0, -size % block)).unflatten(-1, (-1, block))
        mantissa, power = torch.frexp(blocks.abs().amax(-1, keepdim=True))
        top, most = torch.frexp(torch.tensor(torch.finfo(dtype).max))
        power = (power - most + (mantissa > top)).clamp(-126, 126)
        scale = torch.ldexp(torch.ones_like(mantissa), power)
        values = (blocks / scale).to(dtype).float() * scale
        return values.flatten(-2)[..., :size].movedim(-1, dim)

    class BlockLinear(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)  # each product rounds them anew, along its own sum
            return rounded(x, e4m3, -1) @ rounded(weight, e4m3, 1).T

        @staticmethod
        def backward(ctx, dy):
            (x, weight), dx, dw = ctx.saved_tensors, None, None
            if ctx.needs_input_grad[0]:  # a sum over outputs
                dx = rounded(dy, e5m2, -1) @ rounded(weight, e4m3, 0)
            if ctx.needs_input_grad[1]:  # a sum over tokens
                dy, x = dy.flatten(0, -2), x.flatten(0, -2)
                dw = rounded(dy, e5m2, 0).T @ rounded(x, e4m3, 0)
            return dx, dw

    return BlockLinear.apply(x, weight)


def judge(learner, attempt: Attempt) -> None:
    for about, leading, inputs, outputs, block, kind in _SETTINGS:
        attempt.only()
        attempt.budget(count=0)
        attempt.setting(about)
        values = _draw(attempt, leading, inputs, outputs, kind)
        if not _tried(attempt, learner, values, block, kind):
            return
    attempt.only()
    attempt.budget(count=0)


_SETTINGS = (
    ("6 tokens, 8 to 4, blocks of 4", (6,), 8, 4, 4, ""),
    ("5 tokens, 7 to 3, blocks of 4: the last ones are shorter", (5,), 7, 3, 4, ""),
    ("as in MX: blocks of 32", (40,), 70, 36, 32, ""),
    ("outliers of 1000 in single numbers", (33,), 40, 24, 8, "outliers"),
    ("tokens of very different size", (24,), 16, 20, 8, "tokens"),
    ("inputs of very different size", (24,), 32, 20, 8, "inputs"),
    ("outputs of very different size", (24,), 16, 24, 8, "outputs"),
    ("blocks of zeros", (19,), 18, 15, 5, "zeros"),
    ("largest numbers between 7/8 and 1 of a power of two", (8,), 8, 8, 8, "edges"),
    ("largest numbers at the very end of the format", (8,), 32, 20, 8, "ends"),
    ("largest numbers a last bit beyond the end of the format", (8,), 8, 8, 4, "beyond"),
    ("sequences, x of (2, 3, 10)", (2, 3), 10, 6, 4, "tokens"),
    ("sequences, x of (2, 1, 5, 9)", (2, 1, 5), 9, 4, 3, "tokens"),
    ("one token", (1,), 6, 5, 4, ""),
    ("blocks of 1", (4,), 5, 3, 1, ""),
    ("a block larger than everything", (4,), 5, 3, 100, "outliers"),
    ("gradients of about 1e-9", (12,), 9, 11, 4, "small gradients"),
    ("x of about 1e-30", (12,), 9, 11, 4, "small inputs"),
    ("x of about 1e-40, subnormal in fp32", (12,), 9, 11, 4, "tiny inputs"),
    ("x of about 1e30", (12,), 9, 11, 4, "large inputs"),
    ("x and dy that are not contiguous", (2, 3), 10, 6, 4, "not contiguous"),
    ("a frozen weight", (5,), 7, 3, 4, "frozen"),
    ("an x that needs no gradient", (5,), 7, 3, 4, "no dx"),
    ("17 tokens, 33 to 65, blocks of 16", (17,), 33, 65, 16, "tokens"),
)


def _draw(attempt: Attempt, leading, inputs: int, outputs: int, kind: str):
    """The weight, and x and dy of two micro-batches."""

    def of(*shape: int) -> torch.Tensor:
        drawn = attempt.tensor(*shape, dtype=torch.float32)
        signs, sizes = drawn.sign(), attempt.tensor(*shape, dtype=torch.float32)
        if kind == "edges":
            return signs * (0.88 + 0.11 * drawn.abs().clamp(max=1.0))
        drawn = signs * sizes.exp()  # log-normal: a block's largest is far above its others
        if kind in ("outliers", "small gradients"):
            drawn.view(-1)[:: max(2, drawn.numel() // 5)] *= 1000.0
        return drawn

    if kind == "beyond":
        weight = _beyond(of(outputs, inputs), 12, "e4m3", zero=1)
        batches = [
            (
                _beyond(of(*leading, inputs), -20, "e4m3", zero=-1),
                _beyond(of(*leading, outputs), -30, "e5m2", zero=1),
            )
            for _ in range(2)
        ]
        return weight, batches
    weight = of(outputs, inputs)
    batches = []
    for _ in range(2):
        x, dy = of(*leading, inputs), of(*leading, outputs)
        if kind == "tokens":
            powers = 10 * attempt.tensor(*leading, 1, dtype=torch.float32)
            factors = torch.exp2(powers.round().clamp(-20, 20))
            x, dy = x * factors, dy / factors
        if kind in ("inputs", "ends"):
            x = x * _uneven(inputs)
        if kind == "outputs":
            dy = dy * _uneven(outputs)
        if kind == "zeros":
            x[3:14, 4:11], dy[:6], dy[..., 5:10] = 0, 0, 0
        batches.append((x, dy))
    if kind in ("inputs", "ends"):
        weight = weight / _uneven(inputs)
    if kind == "outputs":
        weight = weight / _uneven(outputs)[:, None]
    if kind == "zeros":
        weight[:, 5:10], weight[5:10] = 0, 0
    factor = {"small inputs": 1e-30, "tiny inputs": 1e-40, "large inputs": 1e30}.get(kind, 1.0)
    smaller = {"small gradients": 1e-9, "large inputs": 1e-9, "tiny inputs": 1e6}.get(kind, 1.0)
    if kind == "tiny inputs":  # (products stay normal numbers of fp32)
        weight = weight * 1e6
    batches = [(x * factor, dy * smaller) for x, dy in batches]
    if kind == "ends":
        weight, batches = _at_ends(weight), [(_at_ends(x), _at_ends(dy)) for x, dy in batches]
    return weight, batches


def _at_ends(t: torch.Tensor) -> torch.Tensor:
    """7/8 of a power of two each, as 448 and 57344 are."""
    return t.sign() * torch.ldexp(torch.full_like(t, 0.875), torch.frexp(t)[1])


def _beyond(t: torch.Tensor, power: int, format: str, zero: int) -> torch.Tensor:
    """In every block of 4, along both dims, a largest number one last bit of fp32 beyond the
    format's times 2^power, a zero, and two of some steps of its subnormals. log2 in fp32 takes the
    first for the end itself; the scale is then too small by 2, and the last two keep a bit too
    many. zero: where it is, beside the largest. Each zero meets another operand's largest, so that
    some sums are of small numbers alone."""
    row, column = torch.meshgrid(*map(torch.arange, t.shape), indexing="ij")
    off = (column - row) % 4
    numbers = torch.finfo(find(format).dtype)
    step = numbers.smallest_normal * numbers.eps * 2.0**power
    small = t.sign() * (1 + 6 * (t.abs() % 1)) * step
    large = t.sign() * LARGEST[format] * 2.0**power * (1 + 2.0**-23)
    return torch.where(off == 0, large, torch.where(off == zero % 4, 0.0, small))


def _uneven(n: int) -> torch.Tensor:
    """Factors that span more than e5m2 does, which has numbers from 2^-16 to nearly 2^16: where
    they stand in one block, the small ones vanish. (Else a power of two changes no rounding.)"""
    return torch.exp2(4.0 * (torch.arange(n) % 11 - 5))


def _tried(attempt: Attempt, learner, values, block: int, kind: str) -> bool:
    """Two micro-batches: forward of both, then backward of both."""
    kept, batches = values
    weight = kept.clone().requires_grad_(kind != "frozen")
    turned = kind == "not contiguous"
    inputs = [_like(x, turned).requires_grad_(kind != "no dx") for x, _ in batches]
    outs = []
    for x, (was, _) in zip(inputs, batches):
        given = {"x": x, "weight": weight, "block": block}
        outs.append(attempt.call(learner, given, may_change=("x", "weight")))
        if not _unchanged(attempt, {"x": (x, was), "weight": (weight, kept)}):
            return False
        if not _forward(attempt, outs[-1], was, kept, block):
            return False
    for y, x, (was, dy) in zip(outs, inputs, batches):
        if not attempt.require(
            y.requires_grad, "no gradient can flow back through what it returns"
        ):
            return False
        given = _like(dy, turned)
        with attempt.watching():
            y.backward(given)
        changed = {"x": (x, was), "weight": (weight, kept), "dy": (given, dy)}
        if not _unchanged(attempt, changed):
            return False
        if kind != "no dx" and not _dx(attempt, x.grad, was, kept, dy, block):
            return False
    if kind == "frozen":
        return attempt.require(weight.grad is None, "a frozen weight has no gradient")
    return _dw(attempt, weight.grad, batches, block)


def _like(t: torch.Tensor, turned: bool) -> torch.Tensor:
    """A copy. turned: with its dims in the reverse order in memory."""
    order = tuple(reversed(range(t.dim())))
    return t.permute(order).contiguous().permute(order) if turned else t.clone()


def _unchanged(attempt: Attempt, tensors: dict) -> bool:
    for name, (now, before) in tensors.items():
        if not torch.equal(now.detach(), before):
            return attempt.require(
                False, f"it changed its input `{name}`, which the caller still needs"
            )
    return True


# -- what is expected


def _blocks(t: torch.Tensor, dim: int, block: int) -> Iterator[torch.Tensor]:
    for start in range(0, t.shape[dim], block):
        yield t.narrow(dim, start, min(block, t.shape[dim] - start))


def _rounded(
    t: torch.Tensor,
    format: str,
    dim: int | None,
    block: int = 0,
    above: int = 0,
    rule: str = "",
    size: int = 0,
) -> torch.Tensor:
    """t, in fp64, as fp8 with a power of two for each block along dim (0: the whole row; dim None:
    the whole tensor). above: so many powers more. rule "down": the standard's, which saturates;
    "inside": what is at the end of the format counts as beyond; "log2": e is that of fp32's log2;
    "unbounded": any e; "late": blocks are counted from the end. size: of blocks, whatever was
    asked."""
    t = t.double()
    if dim is None:
        return _scaled(t, format, t.abs().amax().expand_as(t), above, rule)
    block, flipped = size or block or t.shape[dim], rule == "late"
    t = t.flip(dim) if flipped else t
    amax = torch.cat(
        [part.abs().amax(dim, keepdim=True).expand_as(part) for part in _blocks(t, dim, block)], dim
    )
    found = _scaled(t, format, amax, above, rule)
    return found.flip(dim) if flipped else found


def _scaled(t, format: str, amax, above: int, rule: str) -> torch.Tensor:
    powers = [_power(size, LARGEST[format], rule) + above for size in amax.unique().tolist()]
    place = torch.searchsorted(amax.unique(), amax.contiguous())
    scale = torch.tensor([2.0**power for power in powers], dtype=torch.float64)[place]
    return round_to(t / scale, format, saturate=True) * scale


def _power(amax: float, largest: float, rule: str) -> int:
    """The least e with amax <= largest * 2^e; see _rounded for the rules of mistakes."""
    if amax == 0:
        return 0
    if rule == "log2":
        return max(-126, min(126, int(torch.tensor(amax / largest).log2().ceil())))
    e = math.frexp(amax)[1] - math.frexp(largest)[1]
    if rule != "down":
        e += amax > largest * 2.0**e or (rule == "inside" and amax == largest * 2.0**e)
    return e if rule == "unbounded" else max(-126, min(126, e))


def _forward(attempt: Attempt, y, x, weight, block: int) -> bool:
    x2, w = x.flatten(0, -2), weight

    def product(a, b):
        return a, b.T

    right = product(_rounded(x2, "e4m3", 1, block), _rounded(w, "e4m3", 1, block))

    def mistakes() -> dict:
        return {
            "nothing was rounded": (x2.double(), w.double().T),
            "W was not rounded": (right[0], w.double().T),
            "x was not rounded": (x2.double(), right[1]),
            "there is one scale for each tensor, and should be one for each block": product(
                _rounded(x2, "e4m3", None), _rounded(w, "e4m3", None)
            ),
            "there is one scale for each row, and should be one for each block": product(
                _rounded(x2, "e4m3", 1), _rounded(w, "e4m3", 1)
            ),
            "W has its blocks along the outputs; y is a sum over the inputs": product(
                _rounded(x2, "e4m3", 1, block), _rounded(w, "e4m3", 0, block)
            ),
            "x has its blocks along the tokens; y is a sum over the inputs": product(
                _rounded(x2, "e4m3", 0, block), _rounded(w, "e4m3", 1, block)
            ),
            "x and W have blocks along tokens and outputs; y is a sum over the inputs": product(
                _rounded(x2, "e4m3", 0, block), _rounded(w, "e4m3", 0, block)
            ),
            "x and W were rounded to e5m2, and are e4m3": product(
                _rounded(x2, "e5m2", 1, block), _rounded(w, "e5m2", 1, block)
            ),
            **_of_scales(
                lambda how: product(
                    _rounded(x2, "e4m3", 1, block, **how), _rounded(w, "e4m3", 1, block, **how)
                )
            ),
        }

    flat = y.reshape(len(x2), -1) if _is(y, (*x.shape[:-1], len(w))) else y
    asked = (*x.shape[:-1], len(w))
    return _close(attempt, "y", flat, right, mistakes, asked=asked)


def _of_scales(product) -> dict:
    """Mistakes of every product alike."""
    return {
        "the scale of a block whose largest number is just beyond 448 (57344) times a power of two "
        "is that power: log2 in fp32 rounds it off; take e from `frexp`, or compare": product(
            {"rule": "log2"}
        ),
        "a block whose largest number is above 448 (57344) times the scale was saturated: the "
        "scale is the least power of two for which it is not": product({"rule": "down"}),
        "a block whose largest number is exactly 448 (57344) times a power of two has that power "
        "as its scale: it is at the end of the format, and not beyond": product({"rule": "inside"}),
        "e went beyond -126 or 126": product({"rule": "unbounded"}),
        "the scale is a power of two larger than it need be": product({"above": 1}),
        "the scale is a power of two smaller than it must be": product({"above": -1}),
        "blocks are counted from the end; the shorter one is the last": product({"rule": "late"}),
        "blocks are of 32 numbers, whatever `block` is": product({"size": 32}),
        "blocks are of 128 numbers, whatever `block` is": product({"size": 128}),
    }


def _dx(attempt: Attempt, dx, x, weight, dy, block: int) -> bool:
    up, w = dy.flatten(0, -2), weight
    right = _rounded(up, "e5m2", 1, block), _rounded(w, "e4m3", 0, block)

    def mistakes() -> dict:
        return {
            "W has its blocks along the inputs, as for y; dx is a sum over the outputs": (
                right[0],
                _rounded(w, "e4m3", 1, block),
            ),
            "dy has its blocks along the tokens, as for dW; dx is a sum over the outputs": (
                _rounded(up, "e5m2", 0, block),
                right[1],
            ),
            "nothing was rounded: it is dy W": (up.double(), w.double()),
            "dy was not rounded": (up.double(), right[1]),
            "dy was not rounded, and W has its blocks along the inputs, as for y": (
                up.double(),
                _rounded(w, "e4m3", 1, block),
            ),
            "W was not rounded": (right[0], w.double()),
            "dy was rounded to e4m3, and is e5m2": (_rounded(up, "e4m3", 1, block), right[1]),
            "W was rounded to e5m2, and is e4m3": (right[0], _rounded(w, "e5m2", 0, block)),
            "W was rounded twice, along the inputs and then along the outputs": (
                right[0],
                _rounded(_rounded(w, "e4m3", 1, block), "e4m3", 0, block),
            ),
            "there is one scale for each tensor, and should be one for each block": (
                _rounded(up, "e5m2", None),
                _rounded(w, "e4m3", None),
            ),
            **_of_scales(
                lambda how: (
                    _rounded(up, "e5m2", 1, block, **how),
                    _rounded(w, "e4m3", 0, block, **how),
                )
            ),
        }

    flat = dx.reshape(len(up), -1) if _is(dx, x.shape) else dx
    return _close(attempt, "dx", flat, right, mistakes, asked=tuple(x.shape))


def _dw(attempt: Attempt, dw, batches, block: int) -> bool:
    """The sum over both micro-batches, as autograd adds them up."""

    def product(dim_x=0, dim_dy=0, formats=("e5m2", "e4m3"), flat=True, which=slice(None), **how):
        a, b, last = [], [], how.pop("last", False)
        for x, dy in batches[which]:
            x = batches[-1][0] if last else x
            if flat:
                x, dy = x.flatten(0, -2), dy.flatten(0, -2)
            dims = [dim - 2 if not flat else dim for dim in (dim_dy, dim_x)]
            a.append(_rounded(dy, formats[0], dims[0], block, **how).flatten(0, -2))
            b.append(_rounded(x, formats[1], dims[1], block, **how).flatten(0, -2))
        return torch.cat(a).T, torch.cat(b)

    flat = [(x.flatten(0, -2).double(), dy.flatten(0, -2).double()) for x, dy in batches]
    xs = [x for x, _ in flat]
    plain = torch.cat([dy for _, dy in flat]).T, torch.cat(xs)
    right = product()

    def mistakes() -> dict:
        return {
            "x has its blocks along the inputs, as for y; dW is a sum over the tokens": product(1),
            "dy has its blocks along the outputs, as for dx; dW is a sum over the tokens": product(
                0, 1
            ),
            "x and dy have their blocks along inputs and outputs, as for y and dx; dW is a sum "
            "over the tokens": product(1, 1),
            "nothing was rounded: it is dyᵀ x": plain,
            "dy was not rounded": (plain[0], right[1]),
            "dy was not rounded, and x has its blocks along the inputs, as for y": (
                plain[0],
                product(1)[1],
            ),
            "x was not rounded": (right[0], plain[1]),
            "x was rounded twice, along the inputs and then along the tokens": (
                right[0],
                torch.cat([_rounded(_rounded(x, "e4m3", 1, block), "e4m3", 0, block) for x in xs]),
            ),
            "dy was rounded to e4m3, and is e5m2": product(formats=("e4m3", "e4m3")),
            "x was rounded to e5m2, and is e4m3": product(formats=("e5m2", "e5m2")),
            "blocks begin anew with each sequence; the tokens of all of them stand in one line": (
                product(flat=False)
            ),
            "it is of the last micro-batch alone": product(which=slice(1, None)),
            "it is of the first micro-batch alone": product(which=slice(0, 1)),
            "both are of the last micro-batch's x: what backward needs is kept in its `ctx`": (
                product(last=True)
            ),
            **_of_scales(lambda how: product(**how)),
        }

    return _close(attempt, "dW", dw, right, mistakes, asked=None)


def _is(t, shape) -> bool:
    return isinstance(t, torch.Tensor) and tuple(t.shape) == tuple(shape)


def _close(attempt: Attempt, name: str, got, right, mistakes, asked) -> bool:
    """Each element within the rounding of its own sum, in fp32. asked: the shape, before leading
    dims were flattened."""
    expected = right[0] @ right[1]
    if not isinstance(got, torch.Tensor) or got.shape != expected.shape:
        return attempt.equal(name, got, expected.float().view(asked or expected.shape))
    if got.dtype != torch.float32:
        return attempt.equal(name, got, expected.float())
    if _within(got, *right):
        return True
    if not got.isfinite().all():
        return attempt.equal(name, got, expected.float(), rtol=0.0)
    for says, pair in mistakes().items():
        if _within(got, *pair):
            return attempt.require(False, f"{name} is wrong: {says}")
    attempt.equal(name, got, expected.float(), rtol=1e-6)
    off = (got.double() - expected).abs() / _bound(*right)
    at = tuple(int(i) for i in torch.unravel_index(off.argmax(), off.shape))
    return attempt.require(
        bool(attempt.problems),
        f"{name} is wrong: at {list(at)} it is {got[at].item():.7g}, and should be "
        f"{expected[at].item():.7g}",
    )


def _bound(a, b) -> torch.Tensor:
    """Of k products that are added in fp32, in any order, twice as wide."""
    return 2 * (a.shape[1] + 2) * 2.0**-24 * (a.abs() @ b.abs()) + 1e-43


def _within(got, a, b) -> bool:
    return bool(((got.detach().double() - a @ b).abs() <= _bound(a, b)).all())


EXERCISE = Exercise(
    id="precision.block.linear",
    goal="A linear layer whose three products have fp8 operands with a scale for every block of "
    "numbers: y = x Wᵀ, and in the backward pass dx = dy W and dW = dyᵀ x. In each of them the "
    "blocks run along what is summed over, so each tensor is rounded twice, along another "
    "dim each time.",
    interface="`my_block_linear(x, weight, block)` returns y, in fp32, through which gradients of "
    "x and weight flow back (one of the two may need none). x: (..., in), one dim or more in "
    "front; weight: (out, in); both fp32 and finite. A block is `block` numbers in a row, the last "
    "one of a line perhaps fewer; dW is a sum over all tokens, those of x.flatten(0, -2) in their "
    "order. In a block each number is divided by 2^e, cast to fp8 (x and W to e4m3, largest "
    "number 448; dy to e5m2, 57344), and multiplied by 2^e again; e is the least whole number for "
    "which the block's largest number is not beyond the format, but from -126 to 126; if all are "
    "0, any. torch casts: `t.to(torch.float8_e4m3fn)`, `torch.float8_e5m2`. Products and sums are "
    "in fp32. x and dy need not be contiguous. Two micro-batches may be forward before the first "
    "goes backward.",
    budget="Nothing is sent. Each element of y, dx and dW within twice the rounding of its own sum "
    "in fp32; some twenty settings.",
    hints=(
        "Which dim vanishes in each of the three products? A scale can only be taken out of a sum "
        "if it is the same for all terms of it.",
        "`rounded(t, dtype, dim)` first, for any tensor and dim: movedim, pad to whole blocks, "
        "unflatten, amax, and all of it back. Autograd must not see it, since a cast has a "
        "gradient of 0 or none; so an `autograd.Function`, which keeps x and the weight.",
        "y: x and W along in. dx: dy along out, W along out (its dim 0). dW: dy and x along the "
        "tokens, after flatten(0, -2). e from `frexp`: amax = m 2^E, largest = M 2^F, e = E - F + "
        "(m > M).",
    ),
    stub_function=my_block_linear,
    solution_function=solution,
    why="In y each term of a sum over inputs has the scale of its block of x and of W; within a "
    "block both can be taken out, so hardware multiplies fp8 numbers and scales once a block. For "
    "dx the sum is over outputs, so W needs blocks along its other dim: another rounding of the "
    "same numbers, and not the transpose of the first. That is why trainers keep the master (or "
    "quantise weights in 128 x 128 squares, the same either way, as DeepSeek-V3 does: arXiv "
    "2412.19437, section 3.3) instead of an fp8 copy that serves both. Rounding is treated as if "
    "it had the gradient 1 (straight through). The standard's own rule for e rounds down and "
    "saturates what is between 448 and 512 scales; up is what trains (arXiv 2506.08027, section "
    "3). `pico.source('picolab.precision.blocks')`.",
    judge=judge,
    cases=(Case("dp1", "twenty settings, forward and backward"),),
    blocked=("picolab.precision.blocks.exponents",),
    timeout=30.0,
)
