"""Number formats: which numbers a format has, and how a number is rounded to one of them.

A floating-point number of m mantissa bits and least exponent e0 is a multiple of its ulp:

    ulp(x) = 2^(max(floor(log2 |x|), e0) - m)        round(x) = ulp(x) * nearest_even(x / ulp(x))

Below 2^e0 the ulp stays what it is there: those are the subnormals, and below half of the smallest
everything is flushed to zero. What is above the largest number becomes infinite or, where a format
has no infinity (e4m3) or a cast should not make one, is saturated. torch's casts to fp8 saturate
without a word, so whoever wants to know how much was lost counts before the cast (`lost`).

    format  bits  m    largest      smallest     relative error at most u = 2^-(m+1)
    fp32     32   23   3.4e38       1.4e-45      6.0e-8
    tf32     19   10   3.4e38       1.1e-41      4.9e-4      (of products on GPUs)
    bf16     16    7   3.4e38       9.2e-41      3.9e-3
    fp16     16   10   65504        6.0e-8       4.9e-4
    e5m2      8    2   57344        1.5e-5       0.125
    e4m3      8    3   448          2.0e-3       0.0625

`round_to` is the definition, for every format and a dozen lines long; where torch has the format,
`cast` does the same by torch, some twenty times as fast, and a test holds both equal on every bit
pattern. *Stochastic* rounding goes up with the probability of what is left over, x / ulp -
floor(x / ulp): then the expectation is x, and a sum of many small updates is right on average,
where rounding to nearest loses every one that is below half an ulp.

In all of these a number stands for itself; where a block of them has a scale, see blocks.py.

Source: arXiv 2209.05433 (fp8). Leaves out: fp4, fp6.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch


@dataclass(frozen=True)
class Format:
    """Sign, exponent and mantissa bits, and where the range ends."""

    name: str
    bits: int
    mantissa: int
    """Bits after the point, m."""
    least: int
    """The exponent of the smallest normal number, e0."""
    largest: float
    infinite: bool
    """Whether there is an infinity."""
    dtype: torch.dtype | None
    """torch's name for it; None: it has none."""

    @property
    def unit(self) -> float:
        """The largest relative error of rounding a normal number to nearest: half an ulp."""
        return 2.0 ** -(self.mantissa + 1)

    @property
    def smallest(self) -> float:
        """The smallest subnormal."""
        return 2.0 ** (self.least - self.mantissa)

    @property
    def limit(self) -> float:
        """Half an ulp above the largest number: from there on nothing is rounded down to it."""
        return self.largest + 2.0 ** (math.floor(math.log2(self.largest)) - self.mantissa - 1)

    def ulp(self, x: torch.Tensor) -> torch.Tensor:
        """The distance between neighbours where x is (of 0: the smallest number)."""
        exponent = torch.frexp(x.abs())[1].sub_(1).clamp_(min=self.least)
        return torch.ldexp(torch.ones_like(x), exponent - self.mantissa)


def _ieee(name: str, exponent: int, mantissa: int, dtype: torch.dtype | None) -> Format:
    """With the exponents that IEEE 754 gives so many bits."""
    bias = 2 ** (exponent - 1) - 1
    largest = 2.0**bias * (2 - 2.0**-mantissa)
    return Format(name, 1 + exponent + mantissa, mantissa, 1 - bias, largest, True, dtype)


FORMATS: dict[str, Format] = {
    of.name: of
    for of in (
        _ieee("fp64", 11, 52, torch.float64),
        _ieee("fp32", 8, 23, torch.float32),
        _ieee("tf32", 8, 10, None),
        _ieee("bf16", 8, 7, torch.bfloat16),
        _ieee("fp16", 5, 10, torch.float16),
        _ieee("e5m2", 5, 2, torch.float8_e5m2),
        # Its largest exponent has numbers too: only the very last pattern is NaN.
        Format("e4m3", 8, 3, -6, 448.0, False, torch.float8_e4m3fn),
    )
}


def find(name: "str | Format") -> Format:
    """By its name; ValueError, with all names, for another."""
    if isinstance(name, Format):
        return name
    if name not in FORMATS:
        raise ValueError(f"there is no format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]


def round_to(
    x: torch.Tensor,
    format: str | Format,
    *,
    saturate: bool = False,
    stochastic: torch.Generator | None = None,
) -> torch.Tensor:
    """x rounded to the nearest number of the format, of two equally near the even one; as fp64, so
    that nothing else is lost. NaN stays NaN.

    saturate: beyond the largest number comes the largest one instead of infinity (where a format
    has none, always). stochastic: a generator, to go up with the probability of what is left over.
    """
    format, x = find(format), x.double()
    ulp = format.ulp(torch.where(torch.isfinite(x), x, 0.0))
    steps = x / ulp
    if stochastic is None:
        steps = steps.round()  # to even
    else:
        chance = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=stochastic)
        steps = (steps + chance).floor()
    rounded = steps * ulp
    beyond = rounded.abs() > format.largest
    top = format.largest if saturate or not format.infinite else math.inf
    return torch.where(beyond, torch.copysign(torch.full_like(x, top), x), rounded)


def cast(x: torch.Tensor, format: str | Format, *, saturate: bool = False) -> torch.Tensor:
    """The same by torch's own cast, as a tensor of the format's dtype.

    What is beyond is clamped first, where it is to be saturated: torch's cast to e4m3 does it
    since 2.12 and made NaN of it before, that to e5m2 makes infinity of it.
    """
    format = find(format)
    if format.dtype is None:
        raise ValueError(f"torch has no dtype for {format.name}; round_to gives its values")
    if saturate or not format.infinite:
        x = x.clamp(-format.largest, format.largest)
    return x.to(format.dtype)


class Lost(NamedTuple):
    """What a cast does to a tensor, counted before it is done: shares of its elements."""

    saturated: float
    """Above the largest number, infinities among them."""
    flushed: float
    """Not 0, and 0 in the format."""
    nan: float

    def __str__(self) -> str:
        return f"{self.saturated:.2%} saturated, {self.flushed:.2%} flushed to zero"


def lost(x: torch.Tensor, format: str | Format) -> Lost:
    """Counted before the cast: afterwards a saturated number looks like any other."""
    format = find(format)
    if x.numel() == 0:
        return Lost(0.0, 0.0, 0.0)
    size = x.detach().to(torch.promote_types(x.dtype, torch.float32)).abs()
    # Of the two numbers that are as near to the limit as the largest, the even one is taken.
    beyond = size >= format.limit if format.infinite else size > format.limit
    flushed = (size > 0) & (size <= format.smallest / 2)
    counts = torch.stack([beyond.sum(), flushed.sum(), size.isnan().sum()])
    return Lost(*(counts.double() / x.numel()).tolist())
