"""Native and rounded products compute the same, within what the order of additions explains; what
is taken follows from the clock, and is remembered.

The wrong versions this file catches: a weight that is not rounded, inputs that are truncated, sums
kept in the short format, a working copy that outlives its master, and a detector that takes what
the format promises.
"""

import json
import time

import pytest
import torch

from picolab.model import PLAIN, Piece, transformer
from picolab.model.layers import Linear
from picolab.precision import hardware, products
from picolab.precision.hardware import HardwareDetector, Timed
from picolab.precision.products import LowProduct, Ways, multiply, naive_product

SHAPES = [(64, 48, 80), (7, 33, 5), (256, 512, 64), (1, 16, 16)]  # tokens, inputs, outputs
FORMATS = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
WHICH = ("y", "dx", "dw")


def operands(which, shape, seed=0):
    """Two fp32 matrices of a product, and k, the terms of a sum."""
    tokens, inputs, outputs = shape
    draw = torch.Generator().manual_seed(seed)
    x, w, dy = (
        torch.randn(size, generator=draw)
        for size in ((tokens, inputs), (outputs, inputs), (tokens, outputs))
    )
    return {"y": (x, w, inputs), "dx": (dy, w, outputs), "dw": (dy, x, tokens)}[which]


def excess(found, right, which, a, b, k, unit):
    """The largest difference in units of the bound (see products.py)."""
    sizes = getattr(PLAIN, which)(a.double().abs(), b.double().abs())
    bound = 2 * k * 2.0**-24 * sizes * (1 + unit) + 2 * unit * right.double().abs()
    return float(((found.double() - right.double()).abs() / bound.clamp(min=1e-30)).max())


def worst(compute, dtype):
    """Of all shapes and products: `compute(which, a, b)` against the rounded way."""
    found = []
    for shape in SHAPES:
        for which in WHICH:
            a, b, k = operands(which, shape)
            a, b = (x.to(dtype).float() for x in (a, b))
            right = multiply(which, a.to(dtype), b, dtype, "rounded")
            result = compute(which, *operands(which, shape)[:2])
            found.append(excess(result, right, which, a, b, k, FORMATS[dtype]))
    return max(found)


@pytest.mark.parametrize("dtype", FORMATS)
def test_native_and_rounded_differ_by_the_order_of_additions(dtype):
    def native(which, a, b):
        return multiply(which, a.to(dtype), b.to(dtype), dtype, "native")

    assert worst(native, dtype) <= 1


def chunks(which, a, b, dtype):
    """The mutant that adds in the short format."""
    a, b = {"y": (a, b.T), "dx": (a, b), "dw": (a.T, b)}[which]
    total = torch.zeros(a.shape[0], b.shape[1], dtype=dtype)
    for i in range(a.shape[1]):
        total += (a[:, i : i + 1].to(dtype).float() @ b[i : i + 1].to(dtype).float()).to(dtype)
    return total


def truncated(x, dtype):
    bits = 16 if dtype == torch.bfloat16 else 13
    return ((x.view(torch.int32) >> bits) << bits).view(torch.float32)


MUTANTS = {
    "a weight that is not rounded": lambda which, a, b, dtype: getattr(PLAIN, which)(
        a.to(dtype).float(), b
    ).to(dtype),
    "inputs that are truncated": lambda which, a, b, dtype: getattr(PLAIN, which)(
        truncated(a, dtype), truncated(b, dtype)
    ).to(dtype),
    "sums in the short format": chunks,
}


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_outside_the_bound(mutant, dtype):
    assert worst(lambda which, a, b: MUTANTS[mutant](which, a, b, dtype), dtype) > 2


def gradients(product, x, weight, dy):
    x, weight = x.clone().requires_grad_(), torch.nn.Parameter(weight.clone())
    y = product(x, weight)
    y.backward(dy)
    return y.detach(), x.grad, weight.grad


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("keep", [True, False])
def test_a_product_is_what_autograd_makes_of_rounding(dtype, keep):
    """Masters and their gradients are fp32, everything else is short."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(2, 9, 24, generator=draw).to(dtype)
    w = torch.randn(40, 24, generator=draw)
    dy = torch.randn(2, 9, 40, generator=draw).to(dtype)
    right = gradients(lambda x, w: naive_product(x, w, dtype), x, w, dy)
    found = gradients(LowProduct(dtype, Ways(), keep), x, w, dy)
    assert [t.dtype for t in found] == [dtype, dtype, torch.float32]
    for one, other in zip(found, right):
        torch.testing.assert_close(one, other, rtol=2 * FORMATS[dtype], atol=1e-5)


def stays_right():
    linear = Linear([Piece("w", (8, 8))])
    linear.weight = torch.nn.Parameter(torch.eye(8))
    linear.product = LowProduct(torch.bfloat16)
    x = torch.ones(1, 8, dtype=torch.bfloat16)
    before = linear(x)
    with torch.no_grad():
        linear.weight.mul_(2)
    linear.product.forget()
    assert torch.equal(linear(x), 2 * before)


def test_a_working_copy_goes_with_its_master(monkeypatch):
    stays_right()
    monkeypatch.setattr(products.LowProduct, "forget", lambda self: None)
    with pytest.raises(AssertionError):
        stays_right()


class Clock(HardwareDetector):
    """What each way takes is given; asked counts how often anything was timed."""

    seconds: dict
    asked = 0

    def _time(self, compute):
        Clock.asked += 1
        compute()
        return self.seconds[self.at.pop(0)]


def test_the_faster_way_is_taken_once_it_was_seen(tmp_path, monkeypatch):
    """Each product has its own: a processor may be fast at one layout of operands and not at
    another."""
    clock = Clock(folder=tmp_path)
    clock.seconds = {"fp32": 1.0, "fast": 0.5, "slow": 40.0, "rounded": 1.2}
    clock.at = ["fp32", "fast", "rounded", "fp32", "slow", "rounded", "fp32", "fast", "rounded"]
    shape = dict(tokens=4, inputs=8, outputs=16)
    assert clock.ways("bf16", **shape) == Ways("native", "rounded", "native")
    found = clock.products("bf16", **shape)
    assert Clock.asked == 9  # the second question is answered from the file
    assert found["y"].speed == 2 and found["dx"].speed == pytest.approx(1 / 1.2)
    assert "2.0 times faster than fp32 (native" in str(found["y"])
    assert "1.2 times slower than fp32 (rounded; the other way takes 33.3)" in str(found["dx"])
    again = Clock(folder=tmp_path)
    assert again.ways("bf16", **shape) == Ways("native", "rounded", "native") and Clock.asked == 9
    # Another machine's measurements are not this one's, and a torn file is no answer.
    monkeypatch.setattr(again, "_machine", "another")
    again.seconds, again.at = clock.seconds, ["fp32", "slow", "rounded"] * 3
    assert again.ways("bf16", **shape) == Ways() and Clock.asked == 18
    assert len(json.loads((tmp_path / "products.json").read_text())) == 2
    (tmp_path / "products.json").write_text("{")
    clock.at = ["fp32", "slow", "rounded"] * 3
    assert clock.ways("bf16", **shape) == Ways() and Clock.asked == 27


def test_a_real_clock_answers(tmp_path):
    found = HardwareDetector(folder=tmp_path).products("bf16", tokens=8, inputs=16, outputs=8)
    assert all(isinstance(of, Timed) and min(of) > 0 for of in found.values())
    assert min(HardwareDetector(folder=tmp_path).attention("fp16", (1, 2, 1, 8, 4))) > 0


def test_what_a_first_call_loads_is_not_taken_for_fp32s_time(tmp_path, monkeypatch):
    """The mutant asks without a small call before it; fp32, which is first, pays for all."""
    real, calls = transformer.causal_attention, []

    def loads_at_first(q, k, v):
        calls.append(len(calls))
        until = time.process_time() + (2 * hardware.ENOUGH_S if len(calls) == 1 else 0)
        while time.process_time() < until:
            pass
        return real(q, k, v)

    monkeypatch.setattr(transformer, "causal_attention", loads_at_first)
    shape = (1, 2, 1, 8, 4)
    assert HardwareDetector(folder=tmp_path / "a").attention("bf16", shape).fp32 < hardware.ENOUGH_S
    calls.clear()
    made = hardware._attention
    monkeypatch.setattr(
        hardware, "_attention", lambda shape, *given: made((*shape[:3], 1, shape[4]), *given)
    )
    assert HardwareDetector(folder=tmp_path / "b").attention("bf16", shape).fp32 > hardware.ENOUGH_S


def test_a_format_that_the_device_does_not_have(tmp_path):
    detector = HardwareDetector(folder=tmp_path)
    detector.require("bf16")
    with pytest.raises(ValueError, match=r"does not have tf32 .no: only some GPUs have it"):
        detector.require("tf32")
    with pytest.raises(ValueError, match="there is no format 'int3'; there are fp32, tf32"):
        detector.require("int3")
