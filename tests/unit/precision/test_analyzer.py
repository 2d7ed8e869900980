"""The analyzer: each number is what its definition says, and together they tell what one of them
hides. A planted row of outliers is seen in the layer in which it is, and nowhere else.

The wrong versions this file catches: saturation counted after the cast, a scale that saturates, a
decision by SQNR alone, and one scale where rows need their own.
"""

import math

import pytest
import torch

from picolab.model import Transformer
from picolab.precision import PrecisionAnalyzer
from picolab.precision.analyzer import PAIRS, damage, quantised, scale_of, statistics
from picolab.precision.selector import AdaptivePrecisionSelector, Cost
from picolab.specs import ModelConfig

CONFIG = ModelConfig(hidden=32, ffn=48, layers=3, heads=4, kv_heads=2, vocab=64, seq=16)


def test_sqnr_hides_what_the_share_of_zeros_shows():
    """A log-normal tensor, sigma 3: e4m3 by its amax keeps about 30 dB and flushes most of it; e5m2
    has the worse SQNR and flushes next to nothing."""
    draw = torch.Generator().manual_seed(0)
    t = torch.randn(200_000, generator=draw).mul(3.0).exp()
    narrow, wide = statistics(t, "e4m3", "tensor"), statistics(t, "e5m2", "tensor")
    assert narrow.sqnr_db > 28 and narrow.sqnr_db > wide.sqnr_db + 3
    assert narrow.flushed > 0.5 and wide.flushed < 0.01
    assert narrow.saturated == wide.saturated == 0


def test_the_numbers_are_their_definitions():
    t = torch.tensor([[3.0, -4.0, 0.0, 1000.0, 1e-4]])
    found = statistics(t, "e4m3")
    assert found.amax == 1000 and found.saturated == 0.2 and found.flushed == 0.2
    assert found.crest == pytest.approx(1000 / math.sqrt(float(t.square().mean())))
    error = 552.0**2 + 1e-8  # 1000 becomes 448, 1e-4 becomes 0
    assert found.sqnr_db == pytest.approx(10 * math.log10(float(t.square().sum()) / error), 1e-4)


def test_a_scale_brings_the_largest_just_below_the_end_and_is_exact():
    for amax in (1e-30, 1e-3, 0.99, 1.0, 447.0, 448.0, 449.0, 3e38):
        t = torch.tensor([amax, -amax / 3])
        for name in ("e4m3", "e5m2"):
            scale = scale_of(t, name, "tensor")
            top = float(amax * scale)
            largest = 448.0 if name == "e4m3" else 57344.0
            assert largest / 2 < top <= largest or amax == 3e38
            assert float(torch.frexp(scale)[0]) == 0.5  # a power of two
            assert statistics(t, name, "tensor").saturated == 0


def test_empty_zero_and_broken_tensors():
    for t in (torch.zeros(3, 4), torch.empty(0, 4)):
        assert statistics(t, "e4m3", "tensor") == (0, 0, math.inf, 0, 0)
        assert torch.equal(quantised(t, "e4m3"), t)
    for bad in (math.nan, math.inf):
        t = torch.tensor([1.0, bad])
        with pytest.raises(ValueError, match="NaN or infinite elements has no scale"):
            quantised(t, "e4m3")
        found = statistics(t, "e4m3")
        assert math.isnan(found.sqnr_db) and found.saturated == (0.5 if bad == math.inf else 0)


def test_damage_is_one_minus_the_cosine():
    draw = torch.Generator().manual_seed(1)
    x, w, dy = (torch.randn(size, generator=draw) for size in ((50, 8), (6, 8), (50, 6)))
    x_, w_, dy_ = quantised(x, "e4m3"), quantised(w, "e4m3"), quantised(dy, "e5m2")

    def apart(a, b, dim):
        return 1 - float(torch.nn.functional.cosine_similarity(a, b, dim=dim).mean())

    expected = [
        apart(x @ w.T, x_ @ w_.T, 1),
        apart(dy @ w, dy_ @ w_, 1),
        apart((dy.T @ x).flatten(), (dy_.T @ x_).flatten(), 0),
    ]
    assert damage(x, w, dy, PAIRS["fp8"]) == pytest.approx(max(expected), abs=1e-6)
    assert damage(x, w, dy, ("fp32", "fp32")) == pytest.approx(0, abs=1e-12)
    assert damage(torch.zeros(50, 8), w, torch.zeros(50, 6), PAIRS["fp8"]) == 0


def heard(scaling="tensor", mode="full", outliers=None, formats=tuple(PAIRS), size=1e5):
    """A real model, and one layer whose input has one row that is `size` times as large."""
    net = Transformer(CONFIG, device="cpu", seed=0)
    if outliers is not None:

        def plant(_, args):
            x = args[0].clone()
            x[0, 3] *= size
            return (x,)

        net.layers[outliers].mlp.down.register_forward_pre_hook(plant)
    draw = torch.Generator().manual_seed(2)
    tokens = torch.randint(64, (4, 17), generator=draw)
    analyzer = PrecisionAnalyzer(net, formats, mode=mode, scaling=scaling)
    with analyzer.listening():
        net.loss(tokens[:, :-1], tokens[:, 1:]).div(64).backward()
    return net, analyzer.report()


NAME = "layers.1.mlp.down.weight"
SECONDS = {"fp32": 1.0, "bf16": 0.5, "fp8 by rows": 0.3, "fp8": 0.25}


def decided(report, by_rows=None):
    """layer -> format. by_rows: the report with a scale for each row, if that is on offer."""
    costs = {}
    for layer, of in report.items():
        damages = {"fp32": 0.0, **of.damage}
        if by_rows is not None:
            damages["fp8 by rows"] = by_rows[layer].damage["fp8"]
        costs[layer] = {name: Cost(SECONDS[name], max(0.0, d)) for name, d in damages.items()}
    decision = AdaptivePrecisionSelector(0.15, always_high={}).select(costs)
    return {layer: choice.format for layer, choice in decision.items()}


def test_a_planted_row_promotes_its_layer_and_a_scale_for_each_row_is_the_cheaper_cure():
    """With one scale for the tensor the other rows' x vanishes; with one a row nothing does."""
    formats = ("bf16", "fp8")
    (_, before), (_, planted) = heard(formats=formats), heard(outliers=1, formats=formats)
    _, by_rows = heard(outliers=1, scaling="rows", formats=formats)
    share = {
        what: report[NAME].statistics["x", "fp8"].flushed
        for what, report in (("before", before), ("planted", planted), ("by rows", by_rows))
    }
    assert share["planted"] > 0.5 and share["by rows"] <= share["before"] + 0.01
    # A thousand is within e4m3's range of 2^18: seen, and no reason to promote.
    _, thousand = heard(outliers=1, formats=formats, size=1e3)
    assert share["before"] + 0.03 < thousand[NAME].statistics["x", "fp8"].flushed < 0.1
    assert set(decided(thousand).values()) == {"fp8"}
    assert set(decided(before).values()) == {"fp8"}
    assert {name for name, of in decided(planted).items() if of != "fp8"} == {NAME}
    assert decided(planted)[NAME] == "bf16"
    cured = decided(planted, by_rows)
    assert {name: of for name, of in cured.items() if of != "fp8"} == {NAME: "fp8 by rows"}


def test_a_mutant_that_looks_at_the_weight_gradient_alone_does_not_see_it(monkeypatch):
    """One token makes up dW, and it is kept."""
    from picolab.precision import analyzer

    real = analyzer._apart
    monkeypatch.setattr(analyzer, "_apart", lambda a, b: real(a, b) if len(a) == 1 else 0.0)
    _, planted = heard(outliers=1, formats=("bf16", "fp8"))
    assert decided(planted)[NAME] == "fp8"


def test_the_report_covers_every_linear_and_reads_only():
    net, report = heard()
    assert len(report) == 4 * CONFIG.layers + 1
    alone = Transformer(CONFIG, device="cpu", seed=0)
    draw = torch.Generator().manual_seed(2)
    tokens = torch.randint(64, (4, 17), generator=draw)
    alone.loss(tokens[:, :-1], tokens[:, 1:]).div(64).backward()
    for mine, other in zip(net.parameters(), alone.parameters()):
        assert torch.equal(mine.grad, other.grad)
    for of in report.values():
        assert set(of.statistics) == {(role, f) for role in ("x", "w", "dy") for f in PAIRS}
        assert of.damage["fp16"] < of.damage["bf16"] < of.damage["fp8"]


def test_the_cheap_mode_looks_at_some_rows():
    _, report = heard(mode="cheap", formats=("fp8",))
    assert all(of.damage == {} for of in report.values())
    assert set(report[NAME].statistics) == {("x", "fp8"), ("w", "fp8"), ("dy", "fp8")}


def test_a_layer_without_gradient_is_not_in_it():
    net = Transformer(CONFIG, device="cpu", seed=0)
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    analyzer = PrecisionAnalyzer(net)
    with pytest.raises(ValueError, match="nothing was heard"):
        analyzer.report()
    with analyzer.listening():
        x = net.embed(tokens).detach()
        net.layers[0].mlp.gate_up.weight.requires_grad_(False)
        net.layers[0].mlp.down(net.layers[0].mlp.gate_up(x)[..., :48]).sum().backward()
    assert list(analyzer.report()) == ["layers.0.mlp.down.weight"]


def test_an_unknown_format():
    with pytest.raises(ValueError, match="no format 'int8'; candidates are bf16, fp16, fp8"):
        PrecisionAnalyzer(Transformer(CONFIG), ["int8"])


def test_operands_are_what_the_products_were_given():
    model = Transformer(CONFIG, device="cpu", seed=0)
    analyzer = PrecisionAnalyzer(model)
    with pytest.raises(ValueError, match="nothing was heard"):
        analyzer.operands()
    ids = torch.zeros(2, 16, dtype=torch.long)
    with analyzer.listening():
        model.loss(ids, ids).backward()
    found = analyzer.operands()["layers.1.mlp.down.weight"]
    assert torch.equal(found["w"], model.layers[1].mlp.down.weight.detach())
    gradient = model.layers[1].mlp.down.weight.grad
    torch.testing.assert_close(found["dy"].T @ found["x"], gradient)
