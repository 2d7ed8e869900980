"""The block format is the standard's: element by element, in plain Python, and by what it promises.

The wrong versions this file catches: scales rounded down (which saturates), one scale for the whole
tensor, blocks along the wrong dim of a product, and a transposed weight taken from the other copy.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from picolab.precision import FORMATS, analyzer, blocks, lost, round_to
from picolab.precision.blocks import BLOCK, block_scales, to_blocks
from picolab.precision.fp8 import Fp8Product


def naive(values, name):
    """One block after the other: (elements, exponents)."""
    elements, found, largest = [], [], FORMATS[name].largest
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        most = max(map(abs, block))
        e = -127
        while most > largest * 2.0**e:
            e += 1
        found.append(e if most else 0)
        scaled = torch.tensor([v / 2.0 ** found[-1] for v in block], dtype=torch.float64)
        elements += round_to(scaled, name).tolist()
    return elements, found


def spread(size, seed=0, decades=20):
    """Sizes over many powers of ten, zeros among them."""
    draw = torch.Generator().manual_seed(seed)
    t = torch.randn(size, generator=draw) * 10 ** (
        decades * (torch.rand(size, generator=draw) - 0.5)
    )
    return torch.where(torch.rand(size, generator=draw) < 0.1, 0.0, t)


@pytest.mark.parametrize("name", ["e4m3", "e5m2"])
@pytest.mark.parametrize("size", [1, 31, 32, 33, 64, 100])
def test_it_is_the_plain_definition(name, size):
    for t in (spread(size), spread(size, decades=76), torch.zeros(size), torch.full((size,), 3e38)):
        made = to_blocks(t, name)
        elements, e = naive(t.tolist(), name)
        assert made.elements.float().tolist() == elements
        assert made.scales.float().tolist() == [2.0**of for of in e]
        values = [v * 2.0 ** e[i // BLOCK] for i, v in enumerate(elements)]
        assert made.values().tolist() == values


@given(st.integers(0, 1000), st.sampled_from(["e4m3", "e5m2"]), st.integers(-30, 30))
def test_what_it_promises(seed, name, power):
    """Nothing is saturated; a number is off by half an ulp of its element; what it gives, it gives
    again; and a power of two moves into the scales."""
    format, t = FORMATS[name], spread((3, 70), seed)
    scales, made = block_scales(t, name), to_blocks(t, name)
    assert lost(t * scales, name).saturated == 0
    bound = format.ulp(t * scales) / 2 / scales
    assert ((made.values() - t).abs() <= bound).all()
    again = to_blocks(made.values(), name)
    assert torch.equal(again.values(), made.values())
    moved = to_blocks(t * 2.0**power, name)
    assert torch.equal(moved.elements.view(torch.uint8), made.elements.view(torch.uint8))
    there = made.values().unflatten(1, (-1, 10)) != 0  # (a block of zeros keeps 2^0)
    assert there.any()
    assert torch.equal(moved.values(), made.values() * 2.0**power)


def test_a_mutant_that_rounds_scales_down_saturates(monkeypatch):
    """The standard's own rule, of a block whose largest is 1.9 times a power of two."""
    t = torch.tensor([1.9, 0.1])
    assert abs(float(to_blocks(t).values()[0]) - 1.9) <= 1.9 / 16
    down = torch.frexp(torch.tensor(1.9))[1] - 9
    assert lost(t * 2.0 ** -float(down), "e4m3").saturated == 0.5
    monkeypatch.setattr(blocks, "exponents", lambda amax, format: torch.frexp(amax)[1] - 9)
    assert float(to_blocks(t).values()[0]) == 1.75


def test_an_outlier_costs_its_own_block():
    t = torch.rand(4, 4 * BLOCK, generator=torch.Generator().manual_seed(1)) + 0.01
    t[2, BLOCK + 5] *= 1e7
    made, whole = to_blocks(t).values(), analyzer.quantised(t, "e4m3", "tensor")
    own = torch.zeros_like(t, dtype=torch.bool)
    own[2, BLOCK : 2 * BLOCK] = True
    assert ((made - t).abs()[~own] <= t[~own] / 16 + 1e-5).all()
    assert (made[own] == 0).sum() == BLOCK - 1 and (whole == 0).sum() == t.numel() - 1
    assert torch.equal(made, analyzer.quantised(t, "e4m3", "blocks"))


def test_bytes_are_eight_and_a_quarter_bits():
    for dim in (0, 1):
        made = to_blocks(torch.randn(64, 96), dim=dim)
        assert made.nbytes * 8 == 64 * 96 * 8.25
    assert to_blocks(torch.randn(3, 33)).nbytes == 3 * (33 + 2)


def test_blocks_of_the_other_dim_are_those_of_the_transpose():
    t = spread((70, 40), decades=6)
    over_rows = to_blocks(t, dim=0).values()
    assert torch.equal(over_rows, to_blocks(t.T).values().T)
    assert not torch.equal(over_rows, to_blocks(t).values())


OVER = {"y": ((-1, -1), "x", "w"), "dx": ((-1, 0), "dy", "w"), "dw": ((0, 0), "dy", "x")}


def operands():
    """Outputs of very different sizes beside one another: gradients of the smaller ones vanish
    where they share a block with the larger."""
    sizes = 10 ** (18 * torch.rand(70, generator=torch.Generator().manual_seed(4)) - 9)
    return {
        "x": spread((2, 25, 40), 1, 6),
        "w": spread((70, 40), 2, 6),
        "dy": spread((2, 25, 70), 3, 6) * sizes,
    }


def products(product):
    of = operands()
    return {
        "y": product.y(of["x"], of["w"]),
        "dx": product.dx(of["dy"], of["w"]),
        "dw": product.dw(of["dy"], of["x"]),
    }


def by_hand(which):
    """The product of operands in blocks along what it sums over, in fp64."""
    (first, second), a, b = OVER[which]
    of = {name: t.flatten(0, -2) for name, t in operands().items()}
    forms = {"x": "e4m3", "w": "e4m3", "dy": "e5m2"}
    a_ = to_blocks(of[a], forms[a], first).values().double()
    b_ = to_blocks(of[b], forms[b], second).values().double()
    terms = {"y": (a_, b_.T), "dx": (a_, b_), "dw": (a_.T, b_)}[which]
    return terms[0] @ terms[1], terms[0].abs() @ terms[1].abs()


def excess(found):
    """The largest difference in units of the bound of products.py."""
    worst = 0.0
    for which, y in found.items():
        right, sizes = by_hand(which)
        bound = 2 * 70 * 2.0**-24 * sizes + 2.0**-8 * right.abs() + 1e-30
        worst = max(worst, float(((y.double().flatten(0, -2) - right).abs() / bound).max()))
    return worst


@pytest.mark.parametrize("keep", [True, False])
def test_products_are_those_of_blocks_along_what_is_summed(keep):
    assert excess(products(Fp8Product("blocks", keep=keep))) <= 1


def test_mutants_of_the_dim_are_caught(monkeypatch):
    real = Fp8Product.quantise
    for which in ("w", "x", "dy"):

        def wrong(self, operand, t, dim=-1, which=which):
            return real(self, operand, t, -1 if operand == which else dim)

        monkeypatch.setattr(Fp8Product, "quantise", wrong)
        assert excess(products(Fp8Product("blocks"))) > 1, which
    monkeypatch.setattr(Fp8Product, "quantise", real)
    copy = Fp8Product.copy
    monkeypatch.setattr(Fp8Product, "copy", lambda self, w, way, dim=-1: copy(self, w, way))
    assert excess(products(Fp8Product("blocks"))) > 1


def test_damage_of_a_planted_column_is_its_blocks_only():
    """x has an input that is a million times as large, for which W's weights are as small: every
    row has it, so that a scale a row does not help."""
    draw = torch.Generator().manual_seed(4)
    x, w, dy = (torch.randn(size, generator=draw) for size in ((64, 128), (96, 128), (64, 96)))
    pair = analyzer.PAIRS["fp8"]
    before = {how: analyzer.damage(x, w, dy, pair, how) for how in ("tensor", "rows", "blocks")}
    x[:, 3], w[:, 3] = x[:, 3] * 1e6, w[:, 3] / 1e6
    after = {how: analyzer.damage(x, w, dy, pair, how) for how in before}
    assert max(before.values()) < 0.005
    assert after["tensor"] > 0.2 and after["rows"] > 0.2
    assert after["blocks"] < after["tensor"] / 2


def test_what_is_not_finite_has_no_scale():
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN or infinite elements has no scale"):
            to_blocks(torch.tensor([1.0, bad]))
    assert to_blocks(torch.empty(0, 64)).values().shape == (0, 64)
