"""Adaptive precision on one model, in one process: it looks, decides by what it saw, and computes
in what it decided.

The wrong versions this file catches: a decision that ignores what was seen, a product that goes on
in its old format, copies that outlive a change, and NaN that is lost in a cast.
"""

import json
import math

import pytest
import torch

from picolab.model import Transformer
from picolab.precision import AdaptiveMixedPrecision, adaptive
from picolab.precision.adaptive import BYTES, LADDER, AdaptiveProduct
from picolab.specs import ModelConfig

CONFIG = ModelConfig(hidden=32, ffn=48, layers=2, heads=4, kv_heads=2, vocab=64, seq=16)
TOKENS = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(2))
NAME = "layers.1.mlp.down.weight"
ROUNDED = {"products": "rounded"}


def loss_of(model):
    model.zero_grad()
    loss = model.loss(TOKENS[:, :-1], TOKENS[:, 1:]).div(64)
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters()]


def looked_at(settings, plant=1.0, decide=True):
    """A model that was looked at; one layer's input has a row `plant` times as large."""
    model = Transformer(CONFIG, device="cpu", seed=0)

    def planted(_, args):
        x = args[0].clone()
        x[0, 3] *= plant
        return (x,)

    if plant != 1:
        model.layers[1].mlp.down.register_forward_pre_hook(planted)
    made = AdaptiveMixedPrecision(model, {**ROUNDED, **settings})
    made.look()
    first = loss_of(model)
    if decide:
        made.decide()
    return model, made, first


def formats(made):
    return {name: of.format for name, of in made.choices.items()}


def test_with_no_budget_it_is_the_fp32_model_bit_for_bit():
    """Also while it is looked at."""
    exact = loss_of(Transformer(CONFIG, device="cpu", seed=0))
    model, made, first = looked_at({"budget": 0})
    assert set(formats(made).values()) == {"fp32"} and made.share_below_fp32() == 0
    for loss, gradients in (first, loss_of(model)):
        assert loss == exact[0] and all(map(torch.equal, gradients, exact[1]))


def test_it_decides_for_every_linear_and_computes_so():
    model, made, (exact, _) = looked_at({})
    found = formats(made)
    assert len(found) == 4 * CONFIG.layers + 1 and found.pop("head.weight") == "fp32"
    assert set(found.values()) == {"fp8"} and 0.8 < made.share_below_fp32() < 1
    assert "always high" in made.choices["head.weight"].reason
    loss, gradients = loss_of(model)
    assert loss == pytest.approx(exact, rel=0.01) and loss != exact
    assert all(of.dtype == torch.float32 for of in gradients)
    _, any_, _ = looked_at({"budget": math.inf, "formats": ("bf16",)})
    assert set(formats(any_).values()) == {"fp32", "bf16"}


def test_a_planted_row_changes_its_own_layer_and_blocks_are_the_cheaper_cure():
    _, made, _ = looked_at({"budget": 0.15}, plant=1e5)
    others = {name: of for name, of in formats(made).items() if of != "fp8"}
    assert others == {"head.weight": "fp32", NAME: "fp8-blocks"}
    _, without, _ = looked_at({"budget": 0.15, "formats": ("fp8", "bf16")}, plant=1e5)
    assert formats(without)[NAME] == "bf16"


def test_a_mutant_that_ignores_what_it_saw_is_caught(monkeypatch):
    monkeypatch.setattr(adaptive, "damage", lambda *operands: 0.001)
    with pytest.raises(AssertionError):
        test_a_planted_row_changes_its_own_layer_and_blocks_are_the_cheaper_cure()


def test_what_it_saves_is_bytes_or_measured_seconds(monkeypatch):
    class Timed:
        def __init__(self, short):
            self.fp32, self.rounded, self.native, self.way = 1.0, short, 9.0, "rounded"

    for short, expected in ((0.5, {"bf16"}), (1.5, {"fp32"})):
        found = {which: Timed(short) for which in ("y", "dx", "dw")}

        class Detector:
            def __init__(self, device): ...

            def products(self, format, found=found, **sizes):
                return found

        monkeypatch.setattr(adaptive, "HardwareDetector", Detector)
        _, made, _ = looked_at({"save": "seconds", "budget": math.inf})
        found = formats(made)
        del found["head.weight"]
        assert set(found.values()) == expected  # (fp8 is emulated: no faster than bf16)


def test_reports_of_all_ranks_are_put_together_and_the_first_decides():
    """Another rank saw another damage of the same layer, and holds another stage's layer."""
    model = Transformer(CONFIG, device="cpu", seed=0)
    told = []

    def agree(value):
        if isinstance(value, dict) and NAME in value and "damage" in value[NAME]:
            other = {**value[NAME], "damage": dict.fromkeys(value[NAME]["damage"], 9.0)}
            return [value, {NAME: other, "layers.7.mlp.down.weight": value[NAME]}]
        told.append(value)
        return [value, None]

    made = AdaptiveMixedPrecision(model, ROUNDED, agree=agree)
    made.look()
    loss_of(model)
    found = {name: of.format for name, of in made.decide().items()}
    assert found[NAME] == "fp32" and found["layers.7.mlp.down.weight"] == "fp8"
    model_ = Transformer(CONFIG, device="cpu", seed=0)
    follower = AdaptiveMixedPrecision(
        model_,
        ROUNDED,
        agree=lambda value: [value] if value else [told[0], value],
        leads=False,
    )
    follower.look()
    loss_of(model_)
    follower.decide()
    assert formats(follower) == found


def test_a_layer_that_is_raised_computes_in_its_new_format():
    model, made, _ = looked_at({})
    low, _ = loss_of(model)
    why = made.adjuster.objection(math.nan, 1.0)
    moved = made.moved({name: 1.0 for name in made.products} | {NAME: 50.0})
    assert moved[NAME] == 0.0  # nothing is usual yet
    for _ in range(3):
        made.movements.remember(made.norms(model.parameters()))
    far = made.norms(model.parameters())
    far[NAME] *= 1024
    assert made.moved(far)[NAME] == pytest.approx(10, abs=0.01)
    assert made.adjuster.bad(1, why, made.moved(far), 0).raised == (NAME,)
    made.apply()
    assert made.products[NAME].format == "fp8-blocks"
    made.adjuster.bad(1, why, {}, 0)
    made.apply()
    exact = loss_of(Transformer(CONFIG, device="cpu", seed=0))[0]
    assert loss_of(model)[0] == exact != low


def test_copies_do_not_outlive_a_change():
    product, w = AdaptiveProduct(), torch.nn.Parameter(torch.randn(48, 32))
    x = torch.randn(2, 5, 32)
    for format in (*LADDER, "fp8"):
        product.become(format)
        assert product.y(x, w).dtype == product.dw(torch.randn(2, 5, 48), x).dtype == torch.float32
        held = [name for name, of in product._low.items() if of._copies]
        assert held == ([format] if format != "fp32" else [])
    before = product.y(x, w)
    w.data.mul_(2)
    assert torch.equal(product.y(x, w), before)
    product.forget()
    assert torch.equal(product.y(x, w), 2 * before)


def test_nan_and_infinities_pass():
    for format in LADDER:
        product, w = AdaptiveProduct(), torch.randn(8, 4)
        product.become(format)
        x = torch.randn(3, 4)
        x[1, 2] = math.nan
        y = product.y(x, w)
        assert y[1].isnan().all() and y[[0, 2]].isfinite().all()
        product.forget()
        assert not product.y(x, torch.full((8, 4), math.inf)).isfinite().any()


def test_what_it_remembers_is_what_json_says():
    _, made, _ = looked_at({})
    state = json.loads(json.dumps(made.state_dict()))
    again = AdaptiveMixedPrecision(Transformer(CONFIG, device="cpu", seed=0), ROUNDED)
    again.look()
    again.load_state_dict(state)
    assert not again.looking and again.choices == made.choices
    assert {n: p.format for n, p in again.products.items()} == formats(made)


def test_bytes_of_a_number_are_the_formats():
    assert [BYTES[name] for name in LADDER] == [1, 1 + 1 / 32, 2, 4]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"budgett": 1}, "no setting 'budgett'; did you mean 'budget'"),
        ({"budget": -1}, "budget is -1; it is a sum of damages, 0 or more"),
        ({"save": "time"}, "save is 'time'; it is 'bytes' or 'seconds'"),
        ({"formats": ("int8",)}, "no format 'int8'; candidates are fp8, fp8-blocks, bf16"),
        ({"every": 0}, "every is 0; it is a count of steps, 1 or more"),
        ({"products": "fast"}, "products is 'fast'; it is 'auto', 'native' or 'rounded'"),
        ({"ratio": 0.5}, "ratio is 0.5; it must be a number above 1"),
    ],
)
def test_bad_settings(settings, says):
    with pytest.raises(ValueError, match=says):
        AdaptiveMixedPrecision(Transformer(CONFIG), settings)


def test_deciding_before_anything_was_seen():
    with pytest.raises(ValueError, match="no product was seen: call `look"):
        AdaptiveMixedPrecision(Transformer(CONFIG), {}).decide()
