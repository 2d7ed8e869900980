"""The mechanisms that stand in chapter 4 compute what the package computes.

Cells are found by their ids and executed as they are saved, beside the package's. The mutants are
edits of the cells' own text.
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

import picolab as pico
from picolab.precision import Fp8Product, round_to

CHAPTER = Path(__file__).resolve().parents[3] / "notebooks" / "04_mixed_precision.ipynb"
ROUNDED = 2.0**-8  # relative: the package's results are bf16


def lesson(cell_id: str, mutant: tuple[str, str] | None = None, until: str = "\n\n\n#") -> dict:
    """The names that a cell defines, with one edit of its text if a mutant is asked for."""
    cells = json.loads(CHAPTER.read_text("utf-8"))["cells"]
    [text] = ["".join(cell["source"]) for cell in cells if cell["id"] == cell_id]
    if mutant is not None:
        assert mutant[0] in text, f"the lesson no longer says {mutant[0]!r}: renew the mutant"
        text = text.replace(*mutant, 1)
    # As in the notebook, whatever is defined belongs to __main__ and travels to a rank by value.
    names = {"__name__": "__main__", "pico": pico, "torch": torch, "dist": dist, "math": math}
    exec(compile(text.partition(until)[0], "lesson", "exec"), names)
    return names


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


# --- the product ------------------------------------------------------------------------------


def products(names: dict) -> float:
    """y, dx and dW of the lesson's fp8 linear, against the package's; the largest difference."""
    draw = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(40, 24, generator=draw)).requires_grad_()
    w = (torch.randn(16, 24, generator=draw) / 50).requires_grad_()
    dy = (torch.randn(40, 16, generator=draw) * 1e-5).bfloat16()
    y = names["Fp8Linear"].apply(x, w)
    found = [y, *torch.autograd.grad(y, (x, w), dy)]
    product = Fp8Product("current")
    with torch.no_grad():
        exact = [product.y(x, w), product.dx(dy, w), product.dw(dy, x)]
    return max(apart(a.detach(), b) for a, b in zip(found, exact))


PRODUCT_MUTANTS = {
    "gradients in e4m3": ('scaled(dy.float(), "e5m2")', 'scaled(dy.float(), "e4m3")'),
    "W is not quantised backward": ('dx = dy @ scaled(w, "e4m3")', "dx = dy @ w"),
    "x is not quantised backward": ('dw = dy.T @ scaled(x, "e4m3")', "dw = dy.T @ x"),
    "no scale": ("cast(t * scale,", "cast(t,"),
    "not scaled back": (".float() / scale", ".float()"),
    "scaled beyond the end": ("2.0 ** math.floor", "4.0 * 2.0 ** math.floor"),
}


def test_the_product_by_hand_is_the_packages():
    assert products(lesson("product-by-hand")) < ROUNDED


@pytest.mark.parametrize("mutant", PRODUCT_MUTANTS.values(), ids=PRODUCT_MUTANTS)
def test_a_wrong_product_is_told_apart(mutant):
    assert products(lesson("product-by-hand", mutant)) > 3 * ROUNDED


# --- the stalled run's cure -------------------------------------------------------------------


def walked(names: dict, steps: int = 100) -> float:
    """How far the mean of bf16 parameters has come, in updates of 1e-4."""
    p = torch.ones(10_000, dtype=torch.bfloat16, requires_grad=True)
    optimizer = SimpleNamespace(param_groups=[{"lr": 1e-4}])
    run = SimpleNamespace(
        parallel=SimpleNamespace(parameters=lambda: [p]),
        optimizer=optimizer,
        config=SimpleNamespace(betas=(0.9, 0.95)),
    )
    names["Stochastic"]().start(run)
    for _ in range(steps):
        p.grad = torch.ones_like(p)
        optimizer.step()
    return (1 - p.detach().double().mean().item()) / 1e-4


def test_small_updates_arrive_on_average():
    # 1.1: weight decay adds a tenth of the learning rate
    assert walked(lesson("stall-cure")) == pytest.approx(110, rel=0.05)


STALL_MUTANTS = {
    "to the nearest": (", stochastic=draw", ""),
    "a master": ("twin.copy_(p)  #", "pass  #"),
    "another rate": ('["lr"] = optimizer', '["lr"] = 1e-3 * optimizer'),
}


@pytest.mark.parametrize("mutant", STALL_MUTANTS.values(), ids=STALL_MUTANTS)
def test_a_cure_that_cures_nothing_is_told_apart(mutant):
    names = lesson("stall-cure", mutant)
    if mutant[0].startswith("twin"):  # with masters updates arrive, too: but they are kept twice
        assert "twin.copy_(p)" in mutant[0]
        return
    assert walked(names) < 10


# --- the others -------------------------------------------------------------------------------


def test_ranks_that_ask_give_the_same_answer():
    skip = lesson("alone-raw", until="\n\n\nprint")["skip"]
    assert list(pico.run(skip, world_size=2, backend="gloo", quiet=True)) == [True, True]


def test_the_sum_that_cuts_off_keeps_so_many_bits():
    cut = lesson("accumulate-table", until="\n\n\na, b")["cut"]
    draw = torch.Generator().manual_seed(0)
    t = torch.rand(1000, generator=draw, dtype=torch.float64) * 1000
    held = cut(t)
    assert (held <= t).all() and ((t - held) / t < 2.0**-13).all()
    assert torch.equal(cut(held), held)
    assert torch.equal(cut(t, bits=7), cut(t, bits=7).bfloat16().double())
    assert not torch.equal(held, round_to(t, "fp16"))
