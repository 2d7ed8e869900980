"""What follows from a format's bits, against rounding itself.

Wrong versions these catch: a whole ulp for half of one, a tie that is kept, a scale of another
power.
"""

import pytest
import torch

from picolab import costs
from picolab.precision import FORMATS, round_to


def test_the_unit_is_the_precision_rooms():
    for name, format in FORMATS.items():
        assert costs.rounding_unit(name) == format.unit


@pytest.mark.parametrize("format", ["fp16", "e5m2", "e4m3"])
@pytest.mark.parametrize("gradient", [2.0**-30, -(2.0**-30), 1.1 * 2.0**-30, 2.0**-30 * 1.999])
def test_the_least_scale_saves_it_and_the_next_smaller_one_does_not(format, gradient):
    scale = costs.least_loss_scale(gradient, format)
    held = round_to(torch.tensor([gradient * scale, gradient * scale / 2]), format)
    assert held[0] != 0 and held[1] == 0


def test_a_large_gradient_needs_none():
    assert costs.least_loss_scale(1.0) < 1


def test_bits_with_a_scale():
    assert costs.scaled_bits(8, 32, 128) == costs.scaled_bits(8, 8, 32) == 8.25


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: costs.rounding_unit("fp12"), "no format 'fp12'; there are fp64, fp32"),
        (lambda: costs.least_loss_scale(0.0), "neither 0 nor infinite"),
        (lambda: costs.scaled_bits(8, 8, 0), "at least one number has a scale"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says):
        call()
