"""Short formats on a GPU: the same code, whose native products are tensor cores' there.

These have not been run on the machine where picolab was written, which has no GPU; they skip there,
and say so. (Their bodies ran there with DEVICE = "cpu", but for the detector's.)

What they would catch: a product that adds in the short format, an fp8 operand that is not scaled,
gradients of x in the format of x, a working copy on another device than its master.
"""

import pytest
import torch

from picolab.model import PLAIN
from picolab.precision.analyzer import scale_of
from picolab.precision.fp8 import Fp8Product
from picolab.precision.hardware import PRODUCTS, HardwareDetector
from picolab.precision.products import LowProduct, Ways, multiply

gpus = torch.cuda.device_count()
capability = torch.cuda.get_device_capability() if gpus else (0, 0)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(gpus == 0, reason="needs a GPU, and there is none here"),
]
with_fp8 = pytest.mark.skipif(
    capability < (8, 9), reason="needs a GPU that multiplies fp8: compute capability 8.9 or more"
)
DEVICE = "cuda"
NATIVE = Ways("native", "native", "native")
DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
TOKENS, INPUTS, OUTPUTS = 128, 64, 96  # of 16, as the kernel for fp8 asks


@pytest.fixture(autouse=True)
def sums_in_fp32(monkeypatch):
    """cuBLAS may add the parts of a long sum in the short format, and round fp32 to tf32; bounds
    are for sums in fp32."""
    matmul = torch.backends.cuda.matmul
    monkeypatch.setattr(matmul, "allow_bf16_reduced_precision_reduction", False)
    monkeypatch.setattr(matmul, "allow_fp16_reduced_precision_reduction", False)
    monkeypatch.setattr(matmul, "allow_tf32", False)


def operands(which, integers=False):
    """Two matrices of a product, and how many terms its sums have."""
    draw = torch.Generator().manual_seed(0)
    shapes = (TOKENS, INPUTS), (OUTPUTS, INPUTS), (TOKENS, OUTPUTS)
    if integers:
        found = [torch.randint(-2, 3, shape, generator=draw).float() for shape in shapes]
    else:
        found = [torch.randn(shape, generator=draw) for shape in shapes]
    x, w, dy = (each.to(DEVICE) for each in found)
    return {"y": (x, w, INPUTS), "dx": (dy, w, OUTPUTS), "dw": (dy, x, TOKENS)}[which]


def excess(found, right, which, a, b, k, unit, of_a_sum=2.0**-24):
    """The largest difference in units of the bound of products.py."""
    sizes = getattr(PLAIN, which)(a.double().abs(), b.double().abs())
    bound = 2 * k * of_a_sum * sizes * (1 + unit) + 2 * unit * right.double().abs()
    return float(((found.double() - right.double()).abs() / bound.clamp(min=1e-30)).max())


@pytest.mark.parametrize("which", PRODUCTS)
@pytest.mark.parametrize(
    ("dtype", "unit"), [(torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)], ids=str
)
def test_native_and_rounded_differ_by_the_order_of_additions(dtype, unit, which):
    a, b, k = operands(which)
    a, b = a.to(dtype), b.to(dtype)
    native, right = (multiply(which, a, b, dtype, way) for way in ("native", "rounded"))
    assert native.dtype == dtype and native.device.type == DEVICE
    assert excess(native, right, which, a, b, k, unit) <= 1


def scaled_mm(a, b, formats):
    """a b by torch's own kernel, whose second operand has its columns together."""
    scales = [scale_of(t, of, "tensor") for t, of in zip((a, b), formats)]
    a8, b8 = (
        (t * scale).to(DTYPES[of]) for t, scale, of in zip((a, b), scales, formats, strict=True)
    )
    inverse = [(1 / scale).float() for scale in scales]
    return torch._scaled_mm(
        a8.contiguous(), b8.T.contiguous().T, *inverse, out_dtype=torch.bfloat16
    )


@with_fp8
@pytest.mark.parametrize("which", PRODUCTS)
def test_fp8_products_are_those_of_the_kernel(which):
    """Small integers to the bit. Else within the bound; where the tensor cores of Ada and Hopper
    add, their running sum has some 14 bits (DeepSeek-V3, arXiv 2412.19437, section 3.5.2), and none
    of these sums is longer than the 128 terms after which it is added to one in fp32."""
    of_a_sum = 2.0**-13 if DEVICE == "cuda" else 2.0**-24
    formats = ("e4m3", "e4m3") if which == "y" else ("e5m2", "e4m3")
    for integers in (True, False):
        a, b, k = operands(which, integers)
        if not integers:  # too small for fp8, if they were not scaled
            a, b = 1e-4 * a, 1e-4 * b
        found = getattr(Fp8Product("current", NATIVE), which)(a, b)
        matrices = {"y": (a, b.T), "dx": (a, b), "dw": (a.T, b)}[which]
        right = scaled_mm(*matrices, formats)
        assert found.dtype == torch.bfloat16 and found.device.type == DEVICE
        if integers:
            assert torch.equal(found, right) and torch.equal(
                found.float(), getattr(PLAIN, which)(a, b)
            )
        else:
            # (operands that are rounded up are larger by a sixteenth, or an eighth, at most)
            assert excess(found, right, which, 1.2 * a, b, k, 2.0**-8, of_a_sum) <= 1


@pytest.mark.parametrize("make", [LowProduct, Fp8Product], ids=["bf16", "fp8"])
def test_masters_and_their_gradients_are_fp32_on_the_gpu(make):
    x, w, _ = operands("y")
    x, w = x.bfloat16().requires_grad_(), torch.nn.Parameter(w)
    product = make(torch.bfloat16, NATIVE) if make is LowProduct else make("current", NATIVE)
    y = product(x, w)
    y.backward(torch.ones_like(y))
    assert (y.dtype, x.grad.dtype, w.grad.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert all(copy.device == w.device for copy in product.copies()) and product.copies()


# Two sides round at different places: 16 u (debug/oracle.py). With fp8 a number may in addition be
# rounded to its neighbour in e4m3 or e5m2, 1/8 or 1/4 apart, by an error of bf16 before it.
@pytest.mark.parametrize(
    ("precision", "allowed"), [("bf16", 16 * 2.0**-8), ("fp16", 16 * 2.0**-11), ("fp8", 0.1)]
)
def test_a_step_is_that_of_rounded_products(precision, allowed):
    import picolab as pico

    shape = dict(hidden=64, ffn=96, layers=2, heads=4, kv_heads=2, vocab=256, seq=32)
    settings = dict(
        **shape, precision=precision, steps=1, micro_batch=2, accumulate=1, layout="dp1",
        backend="nccl" if DEVICE == "cuda" else "gloo", progress=False,
    )  # fmt: skip
    native, rounded = (pico.train(products=way, **settings) for way in ("native", "rounded"))
    assert native.losses == pytest.approx(rounded.losses, rel=allowed / 16)
    assert native.grad_norms == pytest.approx(rounded.grad_norms, rel=allowed)
    assert {of.dtype for of in native.state_dict().values()} == {torch.float32}


def test_the_detector_answers_for_the_gpu(tmp_path):
    detector = HardwareDetector(DEVICE, folder=tmp_path)
    known, at = detector.capabilities(), 10 * capability[0] + capability[1]
    assert known["fp32"] == "yes" and known["e4m3"].startswith("yes" if at >= 89 else "no")
    assert known["mx"].startswith("yes" if at >= 100 else "no")
    if at < 100:
        with pytest.raises(ValueError, match="does not have mx"):
            detector.require("mx")
    size = dict(tokens=TOKENS, inputs=INPUTS, outputs=OUTPUTS)
    found = detector.products("bf16", **size)
    assert list(found) == list(PRODUCTS) and min(min(of) for of in found.values()) > 0
    assert detector.products("bf16", **size) == found  # from the file
    assert min(detector.attention("bf16", (2, 4, 2, 32, 16))) > 0
    assert min(detector.one_way("fp8", **size).values()) > 0
    assert torch.cuda.get_device_name() in detector._machine
