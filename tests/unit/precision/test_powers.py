"""Sizes by powers of two, and what a format loses of them: as counting each element has it.

Wrong versions these catch: an exponent off by one, zeros that are counted, a shift the wrong way.
"""

import math

import pytest
import torch

from picolab.precision import FORMATS, lost, lost_at, powers


def test_each_element_is_in_the_power_below_it():
    t = torch.tensor([[1.0, -1.5, 2.0, 0.75], [0.0, math.nan, -math.inf, 2.0**-30]])
    assert powers(t) == {0: 2, 1: 1, -1: 1, -30: 1}
    assert powers(torch.zeros(3)) == {} == powers(torch.empty(0))
    assert lost_at({}, "fp16") == (0.0, 0.0)


DRAW = torch.Generator().manual_seed(0)
WIDE = torch.exp(8 * torch.randn(20_000, generator=DRAW, dtype=torch.float64))


@pytest.mark.parametrize("format", ["fp16", "e4m3", "e5m2"])
@pytest.mark.parametrize("shift", [0, 5, 16])
def test_a_histogram_answers_for_every_scale(format, shift):
    flushed, beyond = lost_at(powers(WIDE), format, shift)
    counted = lost(WIDE * 2.0**shift, format)
    assert flushed == pytest.approx(counted.flushed, abs=1e-12)
    # Between the limit and the power above it, elements are beyond and in a power that is held.
    top, limit = 2.0 ** math.ceil(math.log2(FORMATS[format].largest)), FORMATS[format].limit
    between = ((WIDE * 2.0**shift >= limit) & (WIDE * 2.0**shift < top)).double().mean()
    assert beyond == pytest.approx(counted.saturated - float(between), abs=1e-12)


def test_a_wrong_shift_is_noticed():
    assert lost_at(powers(WIDE), "fp16", -5)[0] != pytest.approx(lost(WIDE * 32, "fp16").flushed)
