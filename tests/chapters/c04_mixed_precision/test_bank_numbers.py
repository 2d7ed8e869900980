"""Numbers of the bank on mixed precision, held against the engine: the bank computes them by
formulas, and here formats, loss scaler and block format do what the formula says.

Wrong versions these catch: a formula of the bank that is off by a power of two or by a tie, a
format that changes, and a question whose numbers and engine disagree.
"""

import math

import pytest
import torch

from picolab.interview.bank import load
from picolab.precision.adjuster import DynamicPrecisionAdjuster, Limits, Objection
from picolab.precision.analyzer import statistics
from picolab.precision.blocks import to_blocks
from picolab.precision.formats import FORMATS, find, lost, round_to
from picolab.precision.scaler import LossScaler

BANK = load()


def values(number: int) -> dict[str, float]:
    return BANK.find(f"mp-{number:03}").computed()


def in_format(x, format: str) -> float:
    return round_to(torch.tensor(float(x), dtype=torch.float64), format).item()


def moves(w: float, by: float, format: str = "bf16") -> bool:
    return in_format(w + by, format) != in_format(w, format)


def test_where_a_weight_stops_moving():
    asked = values(1)
    for format, edge in (("bf16", asked["edge"]), ("fp32", asked["edge32"])):
        # (a little above, since the neighbour below a power of two is half as far)
        above, below = edge * (1 + 2.0**-6), edge * (1 - 2.0**-6)
        assert not moves(above, 1e-4, format) and not moves(above, -1e-4, format)
        assert moves(below, 1e-4, format) and moves(below, -1e-4, format)
    assert moves(asked["edge"], -1e-4), "towards zero a power of two can still step"
    assert find("bf16").ulp(torch.tensor(0.05)).item() == asked["step"]
    late = values(26)
    for lr, edge in (
        (3e-5 / 4, late["late"]),
        (late["then"] / 4, late["quarter"]),
        (3e-4, late["early"]),
    ):
        assert not moves(edge * (1 + 2.0**-6), lr) and moves(edge * (1 - 2.0**-6), lr)
    cosine = 3e-5 + (3e-4 - 3e-5) * (1 + math.cos(math.pi * 0.75)) / 2
    assert late["then_1e5"] == pytest.approx(1e5 * cosine)


def test_the_window_of_fp16():
    asked = values(2)
    assert asked["top"] == FORMATS["fp16"].largest == values(28)["top"]
    assert math.isfinite(in_format(12 * asked["scale"], "fp16"))
    assert math.isinf(in_format(24 * asked["scale"], "fp16"))
    for scale, kept in ((asked["scale"], asked["kept"]), (1, asked["kept_unscaled"])):
        assert in_format(1.001 * kept * scale, "fp16") > 0 == in_format(kept * scale, "fp16")
    assert asked["kept_bf"] == FORMATS["bf16"].smallest / 2


def scaled_run(hysteresis: int) -> int:
    scaler, skipped = LossScaler(2.0**16, interval=2000, hysteresis=hysteresis), 0
    for _ in range(100_000):
        overflow = scaler.scale > 2.0**10
        skipped += overflow
        scaler.update(overflow)
    return skipped


def test_steps_that_a_loss_scaler_leaves_out():
    asked = values(4)
    assert scaled_run(1) == asked["skipped"] and scaled_run(2) == asked["patient"]


def test_a_running_sum_stops_and_the_first_missing_number():
    asked, first = values(7), values(27)
    total = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(1024):
        total = total + 1
    assert total.item() == asked["stops"] == first["below"]
    for name, missing in (("bf16", first["missing"]), ("fp16", first["missing16"])):
        held = [n for n in range(1, missing + 1) if in_format(n, name) == n]
        assert held == list(range(1, missing))


def test_logits_and_the_error_of_one_rounding():
    asked = values(9)
    assert find("bf16").ulp(torch.tensor(20.0)).item() == asked["step"]
    assert asked["exp_limit"] == pytest.approx(math.log(FORMATS["fp16"].largest))
    worst = math.exp(abs(in_format(20 + asked["step"] / 2, "bf16") - (20 + asked["step"] / 2)))
    assert 100 * (worst - 1) == pytest.approx(asked["ratio"])


def test_an_outlier_in_e4m3_and_in_int8():
    asked = values(10)
    draw = torch.Generator().manual_seed(0)
    t = torch.randn(2_000_000, generator=draw)
    assert 100 * lost(t * asked["scale"], "e4m3").flushed == pytest.approx(asked["share"], rel=0.05)
    step = 1000 / 127
    assert (t / step).round().eq(0).float().mean() > 0.9998
    assert round(0.99 * asked["int_zero"] / step) == 0 != round(1.01 * asked["int_zero"] / step)


def test_decibels_that_hide_what_is_flushed():
    asked = values(11)
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(400_000, generator=draw, dtype=torch.float64).clamp(max=4.5)
    t = torch.cat([z, torch.tensor([4.5])]).mul(4).exp().float()
    for name, edge, decibels in (
        ("e4m3", asked["z4"], asked["db3"]),
        ("e5m2", asked["z5"], asked["db2"]),
    ):
        share = lost(t * (FORMATS[name].largest / t.max()), name).flushed
        assert share == pytest.approx(0.5 * (1 + math.erf(edge / math.sqrt(2))), abs=0.002)
        assert statistics(t, name, "tensor").sqnr_db == pytest.approx(decibels, abs=6)


def test_formats_of_eight_bits():
    asked, sixteen = values(32), values(16)
    assert (
        (asked["top4"], asked["top5"])
        == (448, 57344)
        == tuple(FORMATS[name].largest for name in ("e4m3", "e5m2"))
    )
    assert asked["error4"] == 100 * FORMATS["e4m3"].unit
    assert asked["error5"] == 100 * FORMATS["e5m2"].unit
    assert 2 ** asked["span4"] == pytest.approx(448 / FORMATS["e4m3"].smallest)
    every = torch.arange(256, dtype=torch.uint8)
    fn = every.view(torch.float8_e4m3fn).float()
    fnuz = every.view(torch.float8_e4m3fnuz).float()
    same = fn.isfinite() & fnuz.isfinite()
    assert torch.equal(fn[same], 2 * fnuz[same])
    assert fn[fnuz.isnan()].tolist() == [0.0] and sixteen["reads"] == 224
    assert fnuz[fnuz.isfinite()].max() == sixteen["fnuz"] == 240


def test_a_second_moment_in_bf16():
    asked = values(17)

    def after(ratio: float, beta: float) -> float:
        return in_format(beta + (1 - beta) * ratio, "bf16")

    for beta, edge in ((0.999, asked["slow"]), (0.95, asked["fast"])):
        assert after(1.001 * edge, beta) > 1 == after(0.999 * edge, beta)
    for start in (1.0, 1.5, 1.984375):  # what it can lose is never half a step
        assert in_format(0.999 * start, "bf16") == start > in_format(0.95 * start, "bf16")
    assert in_format(1e-8, "fp16") == 0
    for beta, edge in ((0.999, asked["g16"]), (0.95, asked["g16_fast"])):  # v starts at zero
        grown = [in_format((1 - beta) * (near * edge) ** 2, "fp16") for near in (0.99, 1.01)]
        assert grown[0] == 0 < grown[1]


def test_stochastic_rounding_moves_as_far_as_it_should():
    asked = values(22)
    draw, w = torch.Generator().manual_seed(0), torch.full((4000,), 1.25, dtype=torch.float64)
    for _ in range(1000):
        w = round_to(w + 1e-4, "bf16", stochastic=draw)
    moved = w - 1.25
    assert moved.mean().item() == pytest.approx(asked["moved"], rel=0.02)
    assert moved.std().item() == pytest.approx(asked["deviation"], rel=0.05)


def lowered(wait_doubles: bool) -> int:
    step, wait, count = 0, 50, 0
    while step + wait + 1 <= 10_000:
        step, count = step + wait + 1, count + 1
        wait *= 2 if wait_doubles else 1
    return count


def test_a_controller_that_oscillates_and_ours_that_does_not():
    asked = values(25)
    assert lowered(False) == asked["often"] and lowered(True) == asked["doubled"]
    adjuster = DynamicPrecisionAdjuster(
        {"a": "fp8"}, ["fp8", "bf16"], Limits(clean=50, cool_down=1, window=2, least=2)
    )
    tries = 0
    for step in range(10_000):
        low = adjuster.formats["a"] == "fp8"
        if low:
            adjuster.bad(step, Objection("planted", True), {"a": 1.0}, back=step)
        tries += bool(adjuster.good(step, 1.0, 1.0))
    assert tries <= 3 < asked["doubled"]


def test_bits_of_a_number_in_a_block():
    asked = values(33)
    held = to_blocks(torch.ones(64, 96))
    assert 8 * held.nbytes / (64 * 96) == asked["mx"] == asked["tile"]


def test_products_of_masked_rows_are_not_numbers():
    """mp-019: a row that may see nothing, and how far it spreads in backward."""
    q, k, v = (torch.randn(4, 8, requires_grad=True) for _ in range(3))
    scores = (q @ k.T).masked_fill(torch.tensor([[False], [False], [False], [True]]), -math.inf)
    y = scores.softmax(-1) @ v
    assert y[:3].isfinite().all() and y[3].isnan().all()
    (y[:3].sum() + 0 * y[3].nan_to_num().sum()).backward()
    assert v.grad.isnan().all(), "zero times NaN: every token that the row might see"


def test_a_wrong_number_is_seen(monkeypatch):
    """Mutant: the bank with half a step taken for a whole one."""
    real = values(1)
    monkeypatch.setitem(globals(), "values", lambda _: real | {"edge": 2 * real["edge"]})
    with pytest.raises(AssertionError):
        test_where_a_weight_stops_moving()
