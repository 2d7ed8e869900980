"""The solutions beside what they are twins of: torch's casts and GradScaler, and the package.

The judges find out what is right by tables and by Python's own numbers; that those agree with what
people use is asked here. Wrong versions these catch, kept as mutants: an exercise whose ties go up,
one whose streak goes on over an overflow.
"""

import pytest
import torch

from picolab.chapters.c04_mixed_precision import (
    block_linear,
    delayed_amax,
    knapsack,
    rounding,
    scale_machine,
    stochastic,
)
from picolab.precision import FORMATS, AdaptivePrecisionSelector, Cost, round_to
from picolab.precision.fp8 import Fp8Product
from picolab.precision.scaler import LossScaler
from tests.chapters.c04_mixed_precision.mutants import rounding as rounding_mutants

DTYPES = {"bf16": (8, 7), "fp16": (5, 10), "e5m2": (5, 2)}


def every_upper_half() -> torch.Tensor:
    upper = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16
    return (upper[:, None] | torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])).int()


def check_casts(learner) -> None:
    bits = every_upper_half()
    x = bits.view(torch.float32)
    for name, (exponent, mantissa) in DTYPES.items():
        dtype = FORMATS[name].dtype
        held = torch.int8 if dtype.itemsize == 1 else torch.int16
        torchs = x.to(dtype).view(held).int() & (2 ** (8 * dtype.itemsize) - 1)
        mine = learner(bits, exponent, mantissa)
        assert torch.equal(mine[~x.isnan()], torchs[~x.isnan()]), name
        assert mine[x.isnan()].int().to(held).view(dtype).isnan().all(), name
        right = rounding._right(bits, exponent, mantissa)  # what the judge takes for right
        assert torch.equal(right[~x.isnan()], torchs[~x.isnan()]), name


def test_rounding_by_integers_is_torchs_cast():
    check_casts(rounding.solution)


def test_mutant_ties_go_up():
    with pytest.raises(AssertionError):
        check_casts(rounding_mutants.half_goes_up)


def test_rounding_by_chance_goes_where_the_package_goes():
    """Other random numbers, so: the same two neighbours, and means that agree."""
    x = torch.randn(2**16, generator=torch.Generator().manual_seed(1))
    mine = stochastic.solution(x, torch.Generator().manual_seed(2)).double()
    theirs = round_to(x, "bf16", stochastic=torch.Generator().manual_seed(3))
    low, high, _ = stochastic._bounds(x)
    for found in (mine, theirs):
        assert ((found == low) | (found == high)).all()
    off = (mine - x.double()) / FORMATS["bf16"].ulp(x.double())
    assert abs(off.mean()) < 6 * 0.5 / 2**8  # a variance of 1/4 at most


def check_machine(machine) -> None:
    """Beside torch.amp.GradScaler, on a script; then beside the package's, with patience."""
    settings = {
        "growth": 2.0, "backoff": 0.5, "interval": 3, "hysteresis": 1,
        "least": 2.0**-100, "most": 2.0**100,
    }  # fmt: skip
    script = [bool(x < 0.25) for x in torch.rand(200, generator=torch.Generator().manual_seed(4))]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    state = (2.0**10, 0, 1)
    for overflow in script:
        scaler.scale(torch.ones(1))
        parameter.grad = torch.tensor([float("inf") if overflow else 1.0])
        scaler.step(optimizer)
        scaler.update()
        state = machine(state, settings, overflow)
        assert state[0] == scaler.get_scale()
    package = LossScaler(2.0**10, interval=3, hysteresis=2, least=1.0)
    state, settings = (2.0**10, 0, 2), settings | {"hysteresis": 2, "least": 1.0}
    for overflow in script:
        package.update(overflow)
        state = machine(state, settings, overflow)
        assert state == (package.scale, package.streak, package.patience)


def test_the_machine_is_torchs_and_the_packages():
    check_machine(scale_machine._machine)


@pytest.mark.parametrize("says", scale_machine._MISTAKES)
def test_mutant_a_machine_with_a_mistake(says):
    def machine(*state):
        return scale_machine._machine(*state, **scale_machine._MISTAKES[says])

    if "`least`" in says:  # (the bounds of both are far away here)
        return
    with pytest.raises(AssertionError):
        check_machine(machine)


def test_delayed_scales_are_the_packages():
    product = Fp8Product("delayed")
    history, largest = torch.zeros(4, 3), torch.tensor([448.0, 448.0, 57344.0])
    scales = torch.ones(3)
    for step in range(12):
        amax = torch.randn(3, generator=torch.Generator().manual_seed(step)).exp() * 10.0**step
        product.remember(amax)
        while len(product.history) > 4:
            product.history.popleft()
        history = torch.cat([history[1:], amax[None]])
        scales = delayed_amax._scales(history.amax(0), scales, largest)
        assert scales.tolist() == list(product.scales.values())


def test_the_selection_is_the_packages():
    draw = torch.Generator().manual_seed(6)
    for budget in (0.0, 0.3, 1.0, 2.5, float("inf")):
        seconds = (1 + torch.rand(9, 3, generator=draw)).tolist()
        damage = [[0.0, *of] for of in torch.rand(9, 2, generator=draw).tolist()]
        costs = {
            str(layer): dict(zip(("fp32", "bf16", "fp8"), map(Cost, times, damages)))
            for layer, (times, damages) in enumerate(zip(seconds, damage))
        }
        package = AdaptivePrecisionSelector(budget, {}).select(costs)
        theirs = [("fp32", "bf16", "fp8").index(of.format) for of in package.values()]
        mine = knapsack.solution(seconds, damage, budget)
        took = [knapsack._sum(seconds, chosen) for chosen in (mine, theirs)]
        assert took[0] == pytest.approx(took[1], rel=1e-12)


def test_a_block_scaled_linear_is_the_packages():
    """In blocks of 32, up to the package's rounding of what goes out to bf16."""
    draw = torch.Generator().manual_seed(7)
    x, weight = torch.randn(40, 70, generator=draw), torch.randn(36, 70, generator=draw)
    dy = torch.randn(40, 36, generator=draw).bfloat16()  # as it comes to the package's product
    found = []
    for product in (lambda x, w: block_linear.solution(x, w, 32), Fp8Product("blocks")):
        leaves = [x.clone().requires_grad_(), torch.nn.Parameter(weight.clone())]
        y = product(*leaves)
        y.backward(dy.to(y.dtype))
        found.append((y.float(), leaves[0].grad, leaves[1].grad))
    for mine, theirs in zip(*found):
        assert (mine - theirs).abs().max() <= 2.0**-8 * 1.01 * mine.abs().max()
