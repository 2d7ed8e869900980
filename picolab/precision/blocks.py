"""A block format: one scale for every 32 numbers, so that an outlier costs its own block only.

    value = element * 2^e       element: fp8 (e4m3, e5m2);  e: one byte a block, -127 ... 127 (e8m0)

A tensor of e4m3 with one scale spans 18 powers of two, and what one element makes too large flushes
all the others. Here each 32 of them have a scale of their own, for 8 + 8/32 = 8.25 bits a number,
and a scale for each row of any length would not help where the row holds the outlier.

e is the least for which the block's largest element is not saturated:

    amax <= largest * 2^e       amax = m 2^E, largest = M 2^F:    e = E - F + (m > M)

exactly, by comparing mantissas. The standard's own rule, e = E - F, rounds down and saturates what
is between 448 and 512 times the scale; rounding up is what trains (arXiv 2506.08027, section 3).

Blocks run along the dim that a product sums over, so that each partial sum of 32 terms has one
factor: x and W of y = x W^T along the inputs, dy and W of dx = dy W along the outputs, dy and x of
dW along the tokens. Every tensor is therefore quantised twice, and the two do not agree: a
transposed block format is not the block format of the transpose.

Sources: OCP Microscaling Formats 1.0, section 6.3. DeepSeek-V3 (arXiv 2412.19437, section 3.3) has
128 instead of 32, and fp32 scales. Leaves out: elements of 4 and 6 bits, and products by hardware.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from picolab.precision.formats import Format, cast, find

BLOCK = 32
LEAST, MOST = -127, 127


class Blocks(NamedTuple):
    """A tensor as it is kept: elements in its own shape, and a scale for each block along `dim`."""

    elements: torch.Tensor
    scales: torch.Tensor
    """2^e, as torch.float8_e8m0fnu: a byte."""
    dim: int

    @property
    def nbytes(self) -> int:
        return self.elements.nbytes + self.scales.nbytes

    def values(self) -> torch.Tensor:
        """The numbers that it stands for, in fp32."""
        each = _spread(self.scales.float(), self.elements.shape[self.dim], self.dim)
        return self.elements.float() * each


def to_blocks(t: torch.Tensor, format: Format | str = "e4m3", dim: int = -1) -> Blocks:
    """t in blocks of 32 along dim; the last one may be shorter. ValueError for NaN and infinities,
    which would be their whole block's."""
    e = exponents(_amax(t, dim), format)
    elements = cast(t.float() * _spread(_power(-e), t.shape[dim], dim), format, saturate=True)
    return Blocks(elements, _power(e).to(torch.float8_e8m0fnu), dim)


def block_scales(t: torch.Tensor, format: Format | str, dim: int = -1) -> torch.Tensor:
    """By what each element is multiplied before the cast, 2^-e, in t's shape."""
    return _spread(_power(-exponents(_amax(t, dim), format)), t.shape[dim], dim)


def exponents(amax: torch.Tensor, format: Format | str) -> torch.Tensor:
    """e of tensors, rows or blocks with these largest sizes; 0 where all is zero. ValueError where
    one is not finite."""
    if not bool(amax.isfinite().all()):
        raise ValueError(
            "a tensor with NaN or infinite elements has no scale; look where they are from"
        )
    mantissa, exponent = torch.frexp(amax)
    top, most = torch.frexp(torch.tensor(find(format).largest))
    e = (exponent - most.item() + (mantissa > top.item())).clamp(LEAST, MOST)
    return torch.where(amax > 0, e, 0)


def _power(e: torch.Tensor) -> torch.Tensor:
    return torch.ldexp(torch.ones_like(e, dtype=torch.float32), e)


def _amax(t: torch.Tensor, dim: int) -> torch.Tensor:
    """Of each block; `dim` counts blocks."""
    size = t.detach().abs().float().movedim(dim, -1)
    size = F.pad(size, (0, -size.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    return size.amax(-1).movedim(-1, dim)


def _spread(of_blocks: torch.Tensor, size: int, dim: int) -> torch.Tensor:
    """Each block's number beside each of its elements."""
    return of_blocks.repeat_interleave(BLOCK, dim).narrow(dim, 0, size)
