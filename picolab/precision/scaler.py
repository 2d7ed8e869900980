"""The loss scale: a power of two that lifts fp16's gradients out of the range where they vanish.

fp16 has nothing below 6e-8, and most gradients of a large model are smaller. The loss is multiplied
by a scale S before it is differentiated, so all gradients are; they are divided by it, in fp32,
before the optimizer sees them. Too large a scale makes infinities, and then the step is skipped and
the scale halved; when nothing has overflowed for a while, it is doubled:

    overflow        patience - 1; once that is used up, S * backoff       streak = 0
    none            streak + 1; after `interval` of them  S * growth, patience is full again

With `hysteresis` (the patience) above 1 a single overflow, one odd batch, does not lower the scale.
Patience comes back with growth only, as in Megatron-LM's `DynamicGradScaler`; with 1 this is
`torch.amp.GradScaler`, step by step (a test runs both). Powers of two, so scaling rounds nothing.
"""

from collections.abc import Iterable

import torch
from torch import nn

MOST = 2.0**127
"""The largest power of two of fp32, in which the loss is."""


class LossScaler:
    """The machine that follows from whether gradients overflowed, and from nothing else.

    Raises ValueError for factors that do not grow or back off, or that are no power of two.
    """

    def __init__(
        self,
        scale: float = 2.0**16,
        *,
        growth: float = 2.0,
        backoff: float = 0.5,
        interval: int = 2000,
        hysteresis: int = 1,
        least: float = 1.0,
    ):
        for name, value in (("scale", scale), ("growth", growth), ("backoff", backoff)):
            if value <= 0 or torch.frexp(torch.tensor(float(value)))[0] != 0.5:
                raise ValueError(f"{name} is {value!r}; it is a power of two, so that it is exact")
        if not growth > 1 > backoff:
            raise ValueError(f"growth {growth} should be above 1, and backoff {backoff} below")
        for name, value in (("interval", interval), ("hysteresis", hysteresis)):
            if value < 1:
                raise ValueError(f"{name} is {value!r}; it is a count of steps, 1 or more")
        self.scale, self.growth, self.backoff = float(scale), growth, backoff
        self.interval, self.hysteresis, self.least = interval, hysteresis, least
        self.streak, self.patience = 0, hysteresis

    @property
    def exhausted(self) -> bool:
        """The scale cannot fall any further: what overflows now is not the scale's fault."""
        return self.scale <= self.least

    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide all gradients by the scale."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, 1 / self.scale)

    def update(self, overflow: bool) -> None:
        """After a step, or after one that was skipped because gradients were not finite."""
        if overflow:
            self.streak, self.patience = 0, self.patience - 1
            if self.patience <= 0:
                self.scale = max(self.scale * self.backoff, self.least)
            return
        self.streak += 1
        if self.streak == self.interval:
            self.streak, self.patience = 0, self.hysteresis
            self.scale = min(self.scale * self.growth, MOST)

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale, "streak": self.streak, "patience": self.patience}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.scale, self.streak = state["scale"], state["streak"]
        self.patience = state["patience"]


def finite(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether all gradients that are there are numbers."""
    return all(bool(p.grad.isfinite().all()) for p in parameters if p.grad is not None)
