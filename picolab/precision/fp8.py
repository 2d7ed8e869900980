"""Products of fp8 operands: x and W in e4m3, dy in e5m2, each times a scale that brings its largest
element to where the format ends.

    y = (q(sx x) q(sw W)^T) / (sx sw)        s = the power of two below  largest / amax

    current   amax of this very tensor: right, and one pass over it more before it can be cast
    delayed   the largest amax of the last `HISTORY` steps: known beforehand. What grows meanwhile
              is saturated, once
    rows      an amax for each row: an outlier costs its own row only
    blocks    an amax for every 32 numbers along what is summed over (blocks.py): its block only

Gradients have the wider format (e5m2: 32 powers of two) since their sizes differ more, and x and W
the finer one. A number of fp8 times a power of two is a number of bf16, so the product of quantised
operands *is* a bf16 product, by either way of products.py: exact for small integers, else within
that file's bound of `torch._scaled_mm`. What fp8 saves is time on hardware that multiplies it, and
here nothing: the detector says so.

**Whose amax.** Replicas see other tokens and ranks of tp other columns of the same tensor. With
delayed scaling every rank has to use the same scale, or what one saturates another does not: once a
step the amaxes of all products travel side by side, and their maximum is taken over the ranks of
the data axes *and* of tp. (Over the wrong group, runs diverged after a thousand steps: Megatron-LM
pull request 442.) A current scale is each rank's own, and never coarser than that of the whole
tensor.

Sources: arXiv 2209.05433; TransformerEngine's `DelayedScaling`, which corrects as here: an amax
that is 0 or not finite leaves the scale as it was.
"""

import math
from collections import deque
from typing import Literal, get_args

import torch

from picolab.precision.analyzer import Scaling, quantised
from picolab.precision.formats import cast, find
from picolab.precision.products import ROUNDED, LowProduct, Way, Ways, multiply

Fp8Scaling = Literal["current", "delayed", "rows", "blocks"]
SCALED: dict[str, Scaling] = {"rows": "rows", "blocks": "blocks"}
"""What is scaled together; else the tensor."""
OPERANDS = {"x": "e4m3", "w": "e4m3", "dy": "e5m2"}
HISTORY = 16


class Fp8Product(LowProduct):
    """The products of one linear with fp8 operands; outputs are bf16, the weight's gradient too.

    amax: of each operand, the largest since `remember`.
    """

    def __init__(self, scaling: Fp8Scaling = "current", ways: Ways = ROUNDED, keep: bool = True):
        if scaling not in get_args(Fp8Scaling):
            raise ValueError(
                f"scaling is {scaling!r}; it is 'current', 'delayed', 'rows' or 'blocks'"
            )
        super().__init__(torch.bfloat16, ways, keep)
        self.scaling = scaling
        self.amax = torch.zeros(len(OPERANDS))
        self.history: deque[torch.Tensor] = deque(maxlen=HISTORY)
        self.scales = dict.fromkeys(OPERANDS, 0.0)
        """Of delayed scaling; 0: not known yet."""

    def quantise(self, operand: str, t: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """As the format has it, scaled back: numbers that bf16 has, too. dim: what the product sums
        over."""
        format = OPERANDS[operand]
        if self.scaling == "delayed":
            place = list(OPERANDS).index(operand)
            amax = t.detach().abs().amax().float().cpu() if t.numel() else torch.zeros(())
            self.amax[place] = torch.maximum(self.amax[place], amax)
            if scale := self.scales[operand]:
                return cast(t.float() * scale, format, saturate=True).float() / scale
        return quantised(t, format, SCALED.get(self.scaling, "tensor"), dim)

    def remember(self, amax: torch.Tensor) -> None:
        """A step is over, in which the operands' amaxes over all ranks were these."""
        self.history.append(amax)
        self.amax = torch.zeros(len(OPERANDS))
        largest = torch.stack(list(self.history)).amax(0).tolist()
        for (operand, format), most in zip(OPERANDS.items(), largest):
            if 0 < most < float("inf"):
                self.scales[operand] = 2.0 ** (_exponent(find(format).largest / most))

    def dx(self, dy: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return self._multiply("dx", dy, self.copy(w, self.ways.dx, dim=0))

    def copy(self, w: torch.Tensor, way: Way, dim: int = -1) -> torch.Tensor:
        held = self.dtype if way == "native" else torch.float32
        key = held, dim if self.scaling == "blocks" else -1
        if key not in self._copies:
            made = self.quantise("w", w.detach(), dim).to(held)
            if not self.keep:
                return made
            self._copies[key] = made
        return self._copies[key]

    def _multiply(self, which: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if which == "dw":
            a = self.quantise("dy", a.flatten(0, -2), dim=0)
            b = self.quantise("x", b.flatten(0, -2), dim=0)
        else:
            a = self.quantise("x" if which == "y" else "dy", a)
        return multiply(which, a.to(self.dtype), b, self.dtype, getattr(self.ways, which))


def _exponent(ratio: float) -> int:
    """Of the largest power of two that is not above it."""
    return math.frexp(ratio)[1] - 1
