"""Adaptive mixed precision: measure what each layer bears, decide, watch, and take back.

    adaptive = AdaptiveMixedPrecision(model, {})
    adaptive.look()                                   # the next backward pass is looked at, in fp32
    model.loss(tokens, labels).backward()
    adaptive.decide()["layers.0.mlp.down.weight"]     # ("fp8", "the smallest: damage 0.0017, ...")

    analyzer     what a format would do to the three products of each linear, of what they were
                 given: `damage`
    detector     what it would save: seconds that were measured, or bytes that are counted
    selector     the most saved within a budget of damage; why, for each layer
    adjuster     whether a step may be taken, and who is raised if not

What flows between layers stays fp32, and so do masters, gradients, norms, attention's own products
and experts: a layer's format is its own affair and can change from one step to the next. With a
budget of 0 the model computes what an fp32 model does, bit for bit.

`save`: "bytes" of the operands that the three products read, 4, 2, 1.03 or 1 a number, the same on
every machine; or "seconds", as this machine takes. fp8 is emulated by products in bf16 here, so it
takes bf16's seconds at least, and is never chosen for them.

Ranks that hold parts of the same layer must use the same format, or one multiplies what another
does not: the reports of all are put together (of a layer the largest damage), the first rank
decides, and the others are told. `agree` is how: a value of each rank -> the values of all.

Twin: none; TransformerEngine's recipes name a format for all layers, torchao's filters a rule for
each by its size.

Leaves out: experts' grouped products, attention, and looking again later in a run.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import nn

from picolab.model import PLAIN, Product
from picolab.precision.adjuster import DynamicPrecisionAdjuster, Limits, Movements
from picolab.precision.analyzer import PAIRS, damage
from picolab.precision.blocks import BLOCK
from picolab.precision.fp8 import Fp8Product
from picolab.precision.hardware import HardwareDetector, Timed
from picolab.precision.lower import linears
from picolab.precision.products import ROUNDED, LowProduct, Ways, _Products
from picolab.precision.selector import AdaptivePrecisionSelector, Choice, Cost

LADDER = ("fp8", "fp8-blocks", "bf16", "fp32")
"""From the lowest to the highest."""
BYTES = {"fp8": 1.0, "fp8-blocks": 1 + 1 / BLOCK, "bf16": 2.0, "fp32": 4.0}
"""Of a number of an operand."""
MEASURED = {"fp8": ("fp8", "tensor"), "fp8-blocks": ("fp8", "blocks"), "bf16": ("bf16", "tensor")}
"""As the analyzer measures them: a key of PAIRS, and how it is scaled."""
SAMPLE_ROWS = 256
"""Tokens of a product that are looked at."""

Save = Literal["bytes", "seconds"]


@dataclass(frozen=True, kw_only=True)
class Settings(Limits):
    """Of AdaptiveMixedPrecision: the adjuster's, and these."""

    budget: float | None = None
    """Damage of all layers together; None: `BUDGET` for each of them. 0: all stay in fp32."""
    save: Save = "bytes"
    products: Literal["auto", "native", "rounded"] = "auto"
    """How bf16 products are computed; "auto": the way that was faster here."""
    formats: tuple[str, ...] = LADDER[:-1]
    """Candidates beside fp32."""
    every: int = 5
    """Good steps from one state that can be gone back to to the next."""

    def __post_init__(self):
        super().__post_init__()
        unknown = [name for name in self.formats if name not in MEASURED]
        if unknown:
            raise ValueError(
                f"there is no format {unknown[0]!r}; candidates are {', '.join(MEASURED)}"
            )
        if self.save not in get_args(Save):
            raise ValueError(f"save is {self.save!r}; it is 'bytes' or 'seconds'")
        if self.products not in ("auto", "native", "rounded"):
            raise ValueError(f"products is {self.products!r}; it is 'auto', 'native' or 'rounded'")
        if not isinstance(self.every, int) or isinstance(self.every, bool) or self.every < 1:
            raise ValueError(f"every is {self.every!r}; it is a count of steps, 1 or more")
        AdaptivePrecisionSelector(self.budget or 0)  # (says what a budget is)

    @classmethod
    def of(cls, given: "Mapping[str, Any] | Settings") -> "Settings":
        if isinstance(given, cls):
            return given
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
                raise ValueError(f"adaptive precision has no setting {name!r}; {hint}")
        return cls(**given)


BUDGET = 0.004
"""For a layer: an fp8 product of operands with nothing odd about them does half of that."""


class AdaptiveMixedPrecision:
    """Replaces the products of a model's linears; see above.

    settings: fields of `Settings`. agree: a value of this rank -> those of all. leads: whether this
    rank is the one that decides. keep: whether working copies outlive a product. Raises ValueError
    for a setting that does not exist or makes no sense.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: "Mapping[str, Any] | Settings",
        *,
        agree: Callable[[Any], list[Any]] = lambda value: [value],
        leads: bool = True,
        device: torch.device | str = "cpu",
        keep: bool = True,
    ):
        self.settings, self._agree, self._leads = Settings.of(settings), agree, leads
        self._device = device
        self.products: dict[str, AdaptiveProduct] = {}
        for linear in linears(model):
            linear.product = AdaptiveProduct(keep)
            self.products[linear.weight.pieces[0].name] = linear.product
        self.looking = False
        self.decided: dict[str, Decided] = {}
        self.adjuster = DynamicPrecisionAdjuster({}, LADDER, self.settings)
        self.movements = Movements()

    def look(self) -> None:
        """The next products are computed in fp32, and looked at."""
        self.looking = True
        for product in self.products.values():
            product.become("fp32")
            product.look()

    @property
    def choices(self) -> dict[str, Choice]:
        """A format for each layer, and why; it may have been raised since."""
        return {name: Choice(of.format, of.reason) for name, of in self.decided.items()}

    def decide(self) -> dict[str, Choice]:
        """Choose by what was seen: the same on all ranks, which all call it. ValueError before
        anything was seen."""
        mine = {name: vars(p.seen) for name, p in self.products.items() if p.seen is not None}
        self.looking = False
        for product in self.products.values():
            product.looks, product.seen = False, None
        seen = _together(self._agree(mine))
        if not seen:
            raise ValueError(
                "no product was seen: call `look()`, and then run a forward and a backward pass"
            )
        told = self._agree(self._choose(seen) if self._leads else None)
        found = next(of for of in told if of is not None)
        self.decided = {name: Decided(*of) for name, of in found.items()}
        formats = {name: of.format for name, of in self.decided.items()}
        self.adjuster = DynamicPrecisionAdjuster(formats, LADDER, self.settings)
        self.apply()
        return self.choices

    def apply(self) -> None:
        """Compute in the formats that the adjuster has."""
        for name, format in self.adjuster.formats.items():
            if name in self.products:  # (it may be another stage's)
                self.products[name].become(format, Ways(*self.decided[name].ways))

    def forget(self) -> None:
        """The masters have changed."""
        for product in self.products.values():
            product.forget()

    def share_below_fp32(self) -> float:
        """Of the operations in linears, those that are not in fp32 now."""
        formats = self.adjuster.formats
        below = sum(of.size for name, of in self.decided.items() if formats[name] != "fp32")
        return below / max(1, sum(of.size for of in self.decided.values()))

    def norms(self, parameters: Iterable[nn.Parameter]) -> dict[str, float]:
        """Of the gradient of each linear's weight, of what this rank holds of it. parameters: what
        the optimizer steps."""
        there = {p.pieces[0].name: p.grad for p in parameters if p.grad is not None and p.numel()}
        there = {name: grad for name, grad in there.items() if name in self.products}
        if not there:
            return {}
        norms = torch.stack(torch._foreach_norm(list(there.values())))
        return dict(zip(there, norms.tolist()))

    def moved(self, norms: Mapping[str, float]) -> dict[str, float]:
        """How far each layer's gradient is from what it was, on the rank where it is farthest; all
        ranks call it."""
        found: dict[str, float] = {}
        for of_rank in self._agree(self.movements.of(norms)):
            for name, far in of_rank.items():
                found[name] = max(found.get(name, 0.0), far)
        return found

    def _choose(self, seen: dict[str, "Seen"]) -> dict[str, "Decided"]:
        settings = self.settings
        costs = {name: self._costs(of) for name, of in seen.items()}
        budget = BUDGET * len(costs) if settings.budget is None else settings.budget
        chosen = AdaptivePrecisionSelector(budget, saves=settings.save).select(costs)
        return {
            name: Decided(*choice, self._ways(seen[name]), seen[name].size, seen[name].numbers)
            for name, choice in chosen.items()
        }

    def _costs(self, seen: "Seen") -> dict[str, Cost]:
        names = ("fp32", *self.settings.formats)
        if self.settings.save == "bytes":
            each = {name: seen.numbers * BYTES[name] for name in names}
        else:
            each = self._seconds(seen, names)
        return {name: Cost(each[name], seen.damage.get(name, 0.0)) for name in names}

    def _seconds(self, seen: "Seen", names: tuple[str, ...]) -> dict[str, float]:
        timed = list(self._timed(seen).values())
        exact = sum(of.fp32 for of in timed)
        short = sum(getattr(of, way) for of, way in zip(timed, self._ways(seen)))
        return {name: exact if name == "fp32" else short for name in names}

    def _ways(self, seen: "Seen") -> Ways:
        if self.settings.products != "auto":
            return Ways(*[self.settings.products] * 3)
        return Ways(**{which: of.way for which, of in self._timed(seen).items()})

    def _timed(self, seen: "Seen") -> dict[str, Timed]:
        """Measured once on a machine; the detector remembers."""
        return HardwareDetector(self._device).products(
            "bf16", tokens=seen.tokens, inputs=seen.inputs, outputs=seen.outputs
        )

    def state_dict(self) -> dict:
        """As JSON has it."""
        return {"decided": self.decided, "adjuster": self.adjuster.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.decided = {name: Decided(*of) for name, of in state["decided"].items()}
        self.adjuster.load_state_dict(state["adjuster"])
        self.looking = False
        for product in self.products.values():
            product.looks = False
        self.apply()
        self.forget()


class Decided(NamedTuple):
    """About one layer."""

    format: str
    reason: str
    ways: tuple[str, str, str]
    """Of y, dx and dw in bf16."""
    size: int
    """Numbers of the weight, as one rank multiplies with it."""
    numbers: int = 0
    """That its three products read."""


@dataclass
class Seen:
    """Of one linear, in a forward and a backward pass."""

    tokens: int
    inputs: int
    outputs: int
    damage: dict[str, float]

    @property
    def size(self) -> int:
        return self.inputs * self.outputs

    @property
    def numbers(self) -> int:
        """That y, dx and dw read: each operand twice."""
        t, i, o = self.tokens, self.inputs, self.outputs
        return 2 * (t * i + i * o + t * o)


def _together(of_ranks: list[dict[str, dict]]) -> dict[str, Seen]:
    """What any rank saw; of a layer the largest damage."""
    found: dict[str, Seen] = {}
    for of_rank in of_ranks:
        for name, values in of_rank.items():
            seen = Seen(**values)
            if name in found:
                for format, of in found[name].damage.items():
                    seen.damage[format] = max(seen.damage[format], of)
            found[name] = seen
    return found


class AdaptiveProduct(Product):
    """The products of a linear in a format that may change from one step to the next; what comes
    and goes has the dtype of x and of the master."""

    def __init__(self, keep: bool = True):
        self.format, self.looks = "fp32", False
        self.seen: Seen | None = None
        self._x: torch.Tensor | None = None
        self._low: dict[str, LowProduct] = {
            "fp8": _Passing("current", keep=keep),
            "fp8-blocks": _Passing("blocks", keep=keep),
            "bf16": LowProduct(torch.bfloat16, keep=keep),
        }

    @property
    def _now(self) -> Product:
        return self._low.get(self.format, PLAIN)

    def __call__(self, x: torch.Tensor, weight: nn.Parameter) -> torch.Tensor:
        if self.format == "fp32" and not self.looks:
            return PLAIN(x, weight)
        return _Products.apply(x, weight, self)

    def y(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        if self.looks and self._x is None and self.seen is None:
            self._x = _sample(x)
        return self._now.y(x, w).to(x.dtype)

    def dx(self, dy: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        if self._x is not None:  # here W is whole, also where ZeRO gathers it
            self.seen, self._x = _seen(self._x, w.detach(), _sample(dy), dy), None
        return self._now.dx(dy, w).to(dy.dtype)

    def dw(self, dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self._now.dw(dy, x).to(dy.dtype)

    def look(self) -> None:
        self.looks, self.seen, self._x = True, None, None

    def become(self, format: str, ways: Ways = ROUNDED) -> None:
        if format != self.format:
            self.forget()
            self.format = format
        if format in self._low:
            self._low[format].ways = ways

    def forget(self) -> None:
        for product in self._low.values():
            product.forget()


class _Passing(Fp8Product):
    """NaN and infinities pass, and are found by who watches the step: elsewhere they end it."""

    def quantise(self, operand: str, t: torch.Tensor, dim: int = -1) -> torch.Tensor:
        if not bool(t.isfinite().all()):
            return t.float()
        return super().quantise(operand, t, dim)


def _sample(t: torch.Tensor) -> torch.Tensor:
    rows = t.detach().flatten(0, -2)
    return rows[:: max(1, len(rows) // SAMPLE_ROWS)].clone()


def _seen(x: torch.Tensor, w: torch.Tensor, dy: torch.Tensor, whole: torch.Tensor) -> Seen:
    damages = {}
    for name, (pair, scaling) in MEASURED.items():
        finite = all(bool(t.isfinite().all()) for t in (x, w, dy))
        found = damage(x, w, dy, PAIRS[pair], scaling) if finite else math.inf
        damages[name] = max(0.0, found)  # (a cosine of 1 may come out a rounding above)
    tokens = whole.flatten(0, -2).shape[0]
    return Seen(tokens, w.shape[1], w.shape[0], damages)
