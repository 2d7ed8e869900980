"""What follows from how many bits a format has. No torch; precision/formats.py rounds to them."""

import math

# mantissa bits, exponent of the smallest normal number
_FORMATS = {
    "fp64": (52, -1022),
    "fp32": (23, -126),
    "tf32": (10, -126),
    "bf16": (7, -126),
    "fp16": (10, -14),
    "e5m2": (2, -14),
    "e4m3": (3, -6),
}


def rounding_unit(format: str) -> float:
    """The largest share by which rounding to nearest moves a normal number: half an ulp,
    2^-(m + 1)."""
    return 2.0 ** -(_found(format)[0] + 1)


def least_loss_scale(gradient: float, format: str = "fp16") -> float:
    """The smallest power of two that this number must be multiplied with not to become 0: what is
    half of the smallest subnormal, 2^(e0 - m), or less, is flushed (a tie goes to the even
    neighbour, which is 0). ValueError for 0 and for what is not finite."""
    if not (gradient and math.isfinite(gradient)):
        raise ValueError(f"gradient is {gradient}; give a number that is neither 0 nor infinite")
    mantissa, least = _found(format)
    room = math.log2(abs(gradient)) - (least - mantissa - 1)
    return 2.0 ** (math.floor(-room) + 1)


def scaled_bits(bits: float, scale_bits: float, block: int) -> float:
    """Of a number, if so many of them share a scale."""
    if block < 1:
        raise ValueError(f"block is {block}; at least one number has a scale")
    return bits + scale_bits / block


def _found(format: str) -> tuple[int, int]:
    if format not in _FORMATS:
        raise ValueError(f"there is no format {format!r}; there are {', '.join(_FORMATS)}")
    return _FORMATS[format]
