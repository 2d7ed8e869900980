"""Rounding is torch's, bit for bit: every pattern of 16 bits to every shorter format, every number
of fp8, everything halfway between two of them, and what lies beyond the largest.

The wrong versions this file catches: ties away from zero, truncation, no subnormals, infinities
where there should be the largest number, what is lost counted after the cast, and stochastic
rounding that is not right on average.
"""

import math

import pytest
import torch

from picolab.precision import FORMATS, cast, formats, lost, round_to

SHORT = ("bf16", "fp16", "e4m3", "e5m2")


def patterns():
    """Every bf16 and every fp16 number, NaN and infinities among them, as fp32."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    return torch.cat([bits.view(dtype).float() for dtype in (torch.bfloat16, torch.float16)])


def awkward(name):
    """All numbers of a format (a sample of the long ones), halfway between neighbours, and the
    fp32 numbers just beside those."""
    format = FORMATS[name]
    if format.bits == 8:
        bits = torch.arange(256, dtype=torch.uint8)
        numbers = bits.view(format.dtype).float()
    else:
        bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
        numbers = bits.view(format.dtype).float()
    numbers = numbers[numbers.isfinite()].unique()
    halfway = (numbers[1:].double() + numbers[:-1].double()).div(2).float()
    ends = torch.tensor([format.largest, format.limit, format.smallest / 2, math.inf, math.nan])
    every = torch.cat([numbers, halfway, ends, -ends])
    beside = [torch.nextafter(every, torch.tensor(to)) for to in (math.inf, -math.inf)]
    return torch.cat([every, *beside])


def same(a, b):
    """Bit for bit as fp32: zeros have a sign. (Which NaN it is, no format promises.)"""
    a, b = a.float(), b.float()
    both = a.isnan() & b.isnan()
    return bool((both | (a.view(torch.int32) == b.view(torch.int32))).all())


def equals_torch(name):
    for x in (patterns(), awkward(name)):
        assert same(round_to(x, name, saturate=True), cast(x, name, saturate=True))
        inside = x[(x.abs() < FORMATS[name].limit) | x.isnan()]
        assert same(round_to(inside, name), inside.to(FORMATS[name].dtype))
        if FORMATS[name].infinite:  # what a cast to e4m3 does beyond differs from torch to torch
            assert same(round_to(x, name), x.to(FORMATS[name].dtype))


@pytest.mark.parametrize("name", SHORT)
def test_rounding_is_torchs_cast(name):
    equals_torch(name)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_rounding_of_random_bits_is_torchs(name):
    bits = torch.randint(-(2**31), 2**31, (1_000_000,), generator=torch.Generator().manual_seed(0))
    x = bits.to(torch.int32).view(torch.float32)
    assert same(round_to(x, name), x.to(FORMATS[name].dtype))


def test_fp32_is_torchs_too():
    x = torch.randn(100_000, dtype=torch.float64) * 10.0 ** torch.randint(-46, 39, (100_000,))
    assert same(round_to(x, "fp32"), x.float())


WRONG = {
    "truncation": lambda x: x.trunc(),
    "ties away from zero": lambda x: torch.copysign((x.abs() + 0.5).floor(), x),
    "ties up": lambda x: (x + 0.5).floor(),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_mutants_of_rounding_are_caught(wrong, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "round", WRONG[wrong])
    with pytest.raises(AssertionError):
        equals_torch("e4m3")


def test_a_mutant_without_subnormals_is_caught(monkeypatch):
    def ulp(self, x):
        exponent = torch.frexp(x.abs())[1] - 1
        small = exponent < self.least
        return torch.where(small, 1.0, torch.ldexp(torch.ones_like(x), exponent - self.mantissa))

    monkeypatch.setattr(formats.Format, "ulp", ulp)
    with pytest.raises(AssertionError):
        equals_torch("fp16")


def test_what_formats_say_of_themselves_is_what_torch_says():
    for name in ("fp64", "fp32", *SHORT):
        format, about = FORMATS[name], torch.finfo(FORMATS[name].dtype)
        assert (format.largest, format.bits) == (about.max, about.bits)
        assert format.smallest == about.smallest_normal * about.eps
        assert 2 * format.unit == about.eps


def test_tf32_keeps_ten_bits_and_the_range_of_fp32():
    x = torch.tensor([1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, 3e38])
    assert round_to(x, "tf32").tolist() == [1 + 2**-10, 1.0, 1 + 2**-9, pytest.approx(3e38, 5e-4)]
    with pytest.raises(ValueError, match="no dtype for tf32"):
        cast(x, "tf32")


@pytest.mark.parametrize("name", SHORT)
def test_what_is_lost_is_counted_before_the_cast(name):
    """Exactly those that the cast then changes so. After it, saturated ones look like others."""
    format, x = FORMATS[name], awkward(name)
    before = lost(x, name)
    finite = x[~x.isnan()]
    changed = round_to(finite, name)
    beyond = changed.isinf() if format.infinite else finite.abs() > format.limit
    flushed = (changed == 0) & (finite != 0)
    assert before.saturated == pytest.approx(float(beyond.sum()) / len(x))
    assert before.flushed == pytest.approx(float(flushed.sum()) / len(x))
    assert before.nan == pytest.approx(float(x.isnan().sum()) / len(x))
    assert before.saturated > 0 and before.flushed > 0
    after = lost(cast(x, name, saturate=True).float(), name)
    assert after.saturated == after.flushed == 0  # the mutant that looks afterwards sees nothing


def test_nothing_of_nothing_is_lost():
    assert lost(torch.empty(0), "e4m3") == (0, 0, 0)
    assert lost(torch.zeros(5), "e4m3") == (0, 0, 0)


@pytest.mark.parametrize("name", SHORT)
def test_stochastic_rounding_is_right_on_average(name):
    """Up with the probability p of what is left over: the mean of n draws is off by less than five
    standard deviations, ulp sqrt(p (1 - p) / n); to nearest, it would be off by p ulps."""
    n, generator = 40_000, torch.Generator().manual_seed(1)
    for start in (1.0, 1.7, 3e-4 if name != "e4m3" else 0.02):
        low = float(round_to(torch.tensor(start), name))
        ulp = float(FORMATS[name].ulp(torch.tensor(low, dtype=torch.float64)))
        for p in (0.1, 0.5, 0.9):
            x = torch.full((n,), low + p * ulp, dtype=torch.float64)
            found = round_to(x, name, stochastic=generator)
            assert set(found.tolist()) == {low, low + ulp}
            assert abs(float(found.mean()) - float(x[0])) < 5 * ulp * math.sqrt(p * (1 - p) / n)
    exact = round_to(torch.randn(100), name)
    assert torch.equal(round_to(exact, name, stochastic=generator), exact)


def test_an_update_below_half_an_ulp_is_lost_without_it():
    """1 + 1000 updates of 0.001: bf16 stays at 1, where an ulp is 0.0078; by chance it arrives."""
    generator, nearest, chance = torch.Generator().manual_seed(2), torch.ones(500), torch.ones(500)
    for _ in range(1000):
        nearest = round_to(nearest + 0.001, "bf16")
        chance = round_to(chance + 0.001, "bf16", stochastic=generator)
    assert (nearest == 1).all()
    assert float(chance.mean()) == pytest.approx(2.0, abs=0.02)


def test_a_format_that_does_not_exist():
    with pytest.raises(ValueError, match="no format 'fp7'; there are fp64, fp32, tf32, bf16"):
        round_to(torch.ones(1), "fp7")
