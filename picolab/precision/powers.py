"""How large the numbers of a tensor are, in powers of two: a histogram by which one sees what a
format would lose.

    powers(t)[e] = elements with  2^e <= |x| < 2^(e+1)

A number's exponent is all that decides whether a format flushes it or cannot hold it, and a loss
scale of 2^s moves all of them by s: so one histogram answers for every scale.
"""

from collections.abc import Mapping

import torch

from picolab.precision.formats import Format, find


def powers(t: torch.Tensor) -> dict[int, int]:
    """Exponent -> elements of this size; zeros, NaN and infinities are in none."""
    size = t.detach().abs().flatten()
    size = size[(size > 0) & size.isfinite()]
    if not size.numel():
        return {}
    exponents, counts = torch.unique(torch.frexp(size)[1] - 1, return_counts=True)
    return dict(zip(exponents.tolist(), counts.tolist()))


def lost_at(counts: Mapping[int, int], format: Format | str, shift: int = 0) -> tuple[float, float]:
    """Shares that are flushed and that are beyond the largest number, once all are multiplied by
    2^shift. By powers of two: what is on the edge itself, and the last part of the largest power,
    are taken as held."""
    format, total = find(format), sum(counts.values()) or 1
    least, most = format.least - format.mantissa - 1, torch.frexp(torch.tensor(format.largest))[1]
    flushed = sum(count for e, count in counts.items() if e + shift < least)
    beyond = sum(count for e, count in counts.items() if e + shift >= int(most))
    return flushed / total, beyond / total
