"""The loss scale: torch's machine step by step where a single overflow counts, and patience."""

import random

import pytest
import torch

from picolab.precision.scaler import LossScaler, finite


def scales(overflows, **settings):
    scaler, found = LossScaler(**settings), []
    for overflow in overflows:
        scaler.update(overflow)
        found.append(scaler.scale)
    return found


def torchs(overflows, interval):
    """GradScaler, with gradients that overflow when they should."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=interval)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer, found = torch.optim.SGD([parameter], lr=0.0), []
    for overflow in overflows:
        scaler.scale(torch.ones(1))
        parameter.grad = torch.tensor([float("inf") if overflow else 1.0])
        scaler.step(optimizer)
        scaler.update()
        found.append(scaler.get_scale())
    return found


DRAW = random.Random(3)
SCRIPT = [DRAW.random() < 0.15 for _ in range(300)]


@pytest.mark.parametrize("interval", [1, 3, 7])
def test_without_hysteresis_it_is_torchs(interval):
    mine = scales(SCRIPT, scale=2.0**10, interval=interval, least=2.0**-100)
    assert mine == torchs(SCRIPT, interval) and len(set(mine)) > 5


def test_a_mutant_that_forgets_to_begin_anew_is_caught(monkeypatch):
    real = LossScaler.update

    def update(self, overflow):
        streak = self.streak
        real(self, overflow)
        self.streak = streak if overflow else self.streak

    monkeypatch.setattr(LossScaler, "update", update)
    assert scales(SCRIPT, scale=2.0**10, interval=3, least=2.0**-100) != torchs(SCRIPT, 3)


def test_patience_outlives_single_overflows_and_comes_back_with_growth():
    no, yes = False, True
    found = scales([yes, no, yes, yes, no, no, no, yes], scale=8, interval=3, hysteresis=2)
    assert found == [8, 8, 4, 2, 2, 2, 4, 4]


def test_the_scale_has_a_floor_and_says_so():
    scaler = LossScaler(scale=2)
    assert not scaler.exhausted
    for _ in range(3):
        scaler.update(overflow=True)
    assert scaler.scale == 1 and scaler.exhausted


def test_what_it_remembers_is_all_there_is():
    one, other = (LossScaler(interval=5, hysteresis=2) for _ in range(2))
    for overflow in SCRIPT[:40]:
        one.update(overflow)
    other.load_state_dict(one.state_dict())
    for overflow in SCRIPT[40:80]:
        one.update(overflow)
        other.update(overflow)
        assert one.state_dict() == other.state_dict()


def test_unscaling_is_exact():
    parameters = [torch.nn.Parameter(torch.randn(5)) for _ in range(2)]
    parameters[0].grad = torch.randn(5)
    before = parameters[0].grad.clone()
    scaler = LossScaler()
    parameters[0].grad *= scaler.scale
    scaler.unscale(parameters)
    assert torch.equal(parameters[0].grad, before) and finite(parameters)
    parameters[0].grad[2] = float("nan")
    assert not finite(parameters) and finite([])
    scaler.unscale([])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (dict(scale=3), "scale is 3; it is a power of two"),
        (dict(scale=0), "scale is 0; it is a power of two"),
        (dict(growth=0.5), "growth 0.5 should be above 1"),
        (dict(interval=0), "interval is 0; it is a count of steps"),
        (dict(hysteresis=0), "hysteresis is 0; it is a count of steps"),
    ],
)
def test_bad_settings(settings, says):
    with pytest.raises(ValueError, match=says):
        LossScaler(**settings)
