"""fp8 products are those of `torch._scaled_mm`: exactly for small integers, else within the order
of additions. Scales follow the amax that they should.

The wrong versions this file catches: operands that are not scaled, a scale that is divided out
twice, gradients in the format of the activations, and a history that forgets its largest too soon
or keeps it for ever.
"""

import math

import pytest
import torch

from picolab.costs import copy_bytes
from picolab.precision import fp8
from picolab.precision.analyzer import scale_of
from picolab.precision.fp8 import HISTORY, Fp8Product
from picolab.precision.products import LowProduct, Ways

TOKENS, INPUTS, OUTPUTS = 48, 32, 64
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def operands(integers=False, spread=1.0):
    draw = torch.Generator().manual_seed(0)
    shapes = (TOKENS, INPUTS), (OUTPUTS, INPUTS), (TOKENS, OUTPUTS)
    if integers:
        return [torch.randint(-2, 3, size, generator=draw).float() for size in shapes]
    return [torch.randn(size, generator=draw) * spread for size in shapes]


def torchs(a, b, formats):
    """a b by torch's own kernel, from operands scaled here."""
    (sa, sb) = scale_of(a, formats[0], "tensor"), scale_of(b, formats[1], "tensor")
    dtypes = {"e4m3": E4M3, "e5m2": E5M2}
    a8 = (a * sa).to(dtypes[formats[0]]).contiguous()
    b8 = (b * sb).to(dtypes[formats[1]]).T.contiguous().T  # the kernel wants its columns together
    return torch._scaled_mm(a8, b8, 1 / sa, 1 / sb, out_dtype=torch.bfloat16)


def excess(integers=False, spread=1.0):
    """The largest difference of the three products, in units of the bound of products.py."""
    x, w, dy = operands(integers, spread)
    product, worst = Fp8Product(), 0.0
    for found, a, b, formats in (
        (product.y(x, w), x, w.T, ("e4m3", "e4m3")),
        (product.dx(dy, w), dy, w, ("e5m2", "e4m3")),
        (product.dw(dy, x), dy.T, x, ("e5m2", "e4m3")),
    ):
        right = torchs(a, b, formats)
        if integers:
            assert torch.equal(found, right) and torch.equal(right, (a @ b).bfloat16())
        sizes = a.abs().double() @ b.abs().double() * 1.2  # of the rounded operands
        bound = 2 * a.shape[1] * 2.0**-24 * sizes + 2 * 2.0**-8 * right.abs().double()
        worst = max(worst, float(((found - right).double().abs() / bound).nan_to_num(0).max()))
    return worst


def test_small_integers_are_exact():
    excess(integers=True)


@pytest.mark.parametrize("spread", [1.0, 1e-6, 1e4])
def test_products_are_torchs_scaled_ones(spread):
    assert excess(spread=spread) <= 1


MUTANTS = {
    "not scaled": (
        "quantised",
        lambda t, format, how, dim: fp8.cast(t, format, saturate=True).float(),
    ),
    "divided twice": (
        "quantised",
        lambda t, format, how, dim: (
            fp8.cast(t * scale_of(t, format, how), format).float() / scale_of(t, format, how) ** 2
        ),
    ),
    "gradients in e4m3": ("OPERANDS", {"x": "e4m3", "w": "e4m3", "dy": "e4m3"}),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(mutant, monkeypatch):
    monkeypatch.setattr(fp8, *MUTANTS[mutant])
    assert excess(spread=1e-6) > 1


def test_masters_and_their_gradients_are_fp32():
    x, w, dy = operands()
    x, w = x.bfloat16().requires_grad_(), torch.nn.Parameter(w)
    y = Fp8Product()(x, w)
    y.backward(dy.bfloat16())
    assert (y.dtype, x.grad.dtype, w.grad.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    exact = dy.T @ x.detach().float()
    cosine = torch.nn.functional.cosine_similarity(w.grad.flatten(), exact.flatten(), dim=0)
    assert 0.99 < float(cosine) < 1


def test_delayed_scales_follow_the_largest_of_the_last_steps():
    product, x = Fp8Product("delayed"), torch.ones(2, 4)
    product.quantise("x", 8 * x)
    assert product.amax.tolist() == [8, 0, 0]
    product.remember(product.amax)
    assert product.scales == {"x": 32.0, "w": 0.0, "dy": 0.0}  # 448 / 8 is 56
    assert product.quantise("x", 100 * x).unique().tolist() == [14.0]  # grown since: 448 / 32
    product.remember(product.amax)
    assert product.scales["x"] == 4.0
    for _ in range(HISTORY - 1):
        product.remember(torch.tensor([8.0, 0, 0]))
        assert product.scales["x"] == 4.0
    product.remember(torch.tensor([8.0, 0, 0]))
    assert product.scales["x"] == 32.0
    product.remember(torch.tensor([math.inf, 0, 0]))  # an overflow is no size
    assert product.scales["x"] == 32.0


def test_rows_keep_an_outlier_to_themselves():
    x = torch.rand(8, 16, generator=torch.Generator().manual_seed(1)) + 0.01
    x[3] *= 1e6
    whole, rows = Fp8Product("current").quantise("x", x), Fp8Product("rows").quantise("x", x)
    others = [0, 1, 2, 4, 5, 6, 7]
    assert (whole[others] == 0).all()
    assert ((rows - x).abs() <= x * 2.0**-4 + 1e-4).all()


def test_an_unknown_scaling():
    with pytest.raises(
        ValueError, match="scaling is 'none'; it is 'current', 'delayed', 'rows' or"
    ):
        Fp8Product("none")


@pytest.mark.parametrize("way", ["native", "rounded"])
def test_working_copies_have_the_formulas_bytes(way):
    """Of bf16 and of fp8, after all three products; gone when the master has changed."""
    x, w, dy = operands()
    for name, made in (
        ("bf16", LowProduct(torch.bfloat16, Ways(*[way] * 3))),
        ("fp8", Fp8Product(ways=Ways(*[way] * 3))),
    ):
        made.y(x, w), made.dx(dy, w), made.dw(dy, x)
        assert sum(of.nbytes for of in made._copies.values()) == copy_bytes(name, way) * w.numel()
        made.forget()
        assert not made._copies
