"""What a short format would do to a model: measured at every product, and told in numbers that do
not lie together.

Of each linear and each of its operands (x, W, dy) and each candidate format:

    amax, crest     the largest size, and how many times the root mean square it is
    SQNR            |t|^2 / |t - q(t)|^2 in dB: how large the error is beside the whole
    flushed         share of elements that are not 0, and 0 in the format
    saturated       share that is beyond its largest number, counted before the cast

SQNR alone lies. It is made by the few largest elements: of a log-normal tensor e4m3 keeps 30 dB and
yet flushes most of the elements to zero. So there is a measure of what the format is *for*, the
three products of the layer with quantised operands:

    damage    the largest of   1 - cos(dW, its own from quantised x and dy)
                               mean over tokens of 1 - cos(y_t, ...) and of 1 - cos(dx_t, ...)

By tokens, because a single one that is a thousand times as large makes up dW, and hides that the
others' x has vanished beside it. Scaling comes first, as it will in use: a tensor (or each of its
rows, "rows", or every 32 of its numbers, "blocks") is brought to where the format is widest
(`scale_of`).

The cheap mode looks at a sample of rows and at one format's amax and shares, every so many steps;
the full one at everything. The analyzer listens by hooks, changes nothing, and sends nothing: it
tells of this rank's part.

Leaves out: the change of the loss with one layer quantised.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import nn

from picolab.model import PLAIN, Linear
from picolab.precision.blocks import block_scales, exponents
from picolab.precision.formats import Format, cast, lost

Role = Literal["x", "w", "dy"]
Scaling = Literal["none", "tensor", "rows", "blocks"]


class Statistics(NamedTuple):
    """Of one operand in one format."""

    amax: float
    crest: float
    sqnr_db: float
    flushed: float
    saturated: float


def scale_of(
    t: torch.Tensor, format: Format | str, scaling: Scaling, dim: int = -1
) -> torch.Tensor:
    """A power of two by which t (or each of its rows, or blocks along dim) is multiplied before the
    cast, so that its largest element is near the format's largest number; 1 for what is all zero.
    What is not finite has no scale: ValueError."""
    if scaling == "none" or not t.numel():
        return torch.ones((), device=t.device)
    if scaling == "blocks":
        return block_scales(t, format, dim)
    size = t.detach().abs().float()
    amax = size.amax(-1, keepdim=True) if scaling == "rows" else size.amax()
    return torch.ldexp(torch.ones_like(amax), -exponents(amax, format))


def quantised(
    t: torch.Tensor, format: Format | str, scaling: Scaling = "tensor", dim: int = -1
) -> torch.Tensor:
    """t as the format has it: scaled, rounded (saturated at the ends), and scaled back; fp32. dim:
    along which blocks run."""
    scale = scale_of(t, format, scaling, dim)
    return cast(t.float() * scale, format, saturate=True).float() / scale


def statistics(t: torch.Tensor, format: Format | str, scaling: Scaling = "none") -> Statistics:
    """Of one tensor. All-zero and empty ones lose nothing."""
    t = t.detach().float()
    amax = float(t.abs().amax()) if t.numel() else 0.0
    if amax == 0.0:
        return Statistics(0.0, 0.0, math.inf, 0.0, 0.0)
    scale = scale_of(t, format, scaling)
    scaled = t * scale
    share = lost(scaled, format)
    if not math.isfinite(amax):
        return Statistics(amax, math.nan, math.nan, share.flushed, share.saturated)
    rough = cast(scaled, format, saturate=True).float() / scale  # `quantised`, of what is there
    norm, error = (
        float(torch.linalg.vector_norm(of, dtype=torch.float64)) for of in (t, t - rough)
    )
    sqnr = 20 * math.log10(norm / error) if error else math.inf
    crest = amax * math.sqrt(t.numel()) / norm
    return Statistics(amax, crest, sqnr, share.flushed, share.saturated)


def damage(
    x: torch.Tensor,
    w: torch.Tensor,
    dy: torch.Tensor,
    formats: tuple[Format | str, Format | str],
    scaling: Scaling = "tensor",
) -> float:
    """Of a linear's three products, 0 to 2: 1 - cosine with those of quantised operands, of dW as a
    whole, of y and dx by tokens. formats: of x and W, and of dy."""
    x, w, dy = (t.detach().float().flatten(0, -2) for t in (x, w, dy))
    forward, backward = formats

    def q(t: torch.Tensor, format: Format | str, over: int) -> torch.Tensor:
        return quantised(t, format, scaling, dim=over)  # what the product sums over

    y, dx, dw = PLAIN.y(x, w), PLAIN.dx(dy, w), PLAIN.dw(dy, x)
    y_ = PLAIN.y(q(x, forward, -1), q(w, forward, -1))
    dx_ = PLAIN.dx(q(dy, backward, -1), q(w, forward, 0))
    dw_ = PLAIN.dw(q(dy, backward, 0), q(x, forward, 0))
    return max(_apart(y, y_), _apart(dx, dx_), _apart(dw.view(1, -1), dw_.view(1, -1)))


def _apart(exact: torch.Tensor, rough: torch.Tensor) -> float:
    """The mean over rows of 1 - cosine. A row that is 0 has nothing to lose; one that has become 0
    has lost everything."""
    exact, rough = exact.double(), rough.double()
    sizes = exact.norm(dim=-1) * rough.norm(dim=-1)
    cosines = torch.where(sizes > 0, (exact * rough).sum(-1) / sizes.clamp(min=1e-300), 0.0)
    there = exact.norm(dim=-1) > 0
    return float((1 - cosines)[there].mean()) if bool(there.any()) else 0.0


class LayerReport(NamedTuple):
    """What was seen of one linear."""

    statistics: dict[tuple[Role, str], Statistics]
    """(operand, format) -> the numbers."""
    damage: dict[str, float]
    """format -> see `damage`; only in the full mode."""


# What a product is in a format of the list: its x and W, and its dy.
PAIRS = {"bf16": ("bf16", "bf16"), "fp16": ("fp16", "fp16"), "fp8": ("e4m3", "e5m2")}


class PrecisionAnalyzer:
    """Listens to the linears of a model while it is trained.

        analyzer = PrecisionAnalyzer(model)
        with analyzer.listening():
            model.loss(tokens, labels).backward()
        analyzer.report()["layers.0.mlp.down.weight"].damage["fp8"]

    formats: candidates, keys of PAIRS. mode: "full", or "cheap": amax and shares of a sample of
    rows. scaling: as the format will be used. A linear whose weight got no gradient (frozen, or not
    used) is not in the report.
    """

    def __init__(
        self,
        model: nn.Module,
        formats: Sequence[str] = tuple(PAIRS),
        *,
        mode: Literal["full", "cheap"] = "full",
        scaling: Scaling = "tensor",
        sample_rows: int = 16,
    ):
        unknown = [name for name in formats if name not in PAIRS]
        if unknown:
            raise ValueError(
                f"there is no format {unknown[0]!r}; candidates are {', '.join(PAIRS)}"
            )
        self.formats, self.mode, self.scaling = tuple(formats), mode, scaling
        self.sample_rows = sample_rows
        self._linears = {
            name: module
            for module in model.modules()
            if isinstance(module, Linear)
            for name in [module.weight.pieces[0].name]
        }
        self._x: dict[str, torch.Tensor] = {}
        self._dy: dict[str, torch.Tensor] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While open, the last x and dy of each linear are kept."""
        self._x.clear()
        self._dy.clear()
        handles = [
            linear.register_forward_hook(
                lambda _, args, y, name=name: self._heard(name, args[0], y)
            )
            for name, linear in self._linears.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _heard(self, name: str, x: torch.Tensor, y: torch.Tensor) -> None:
        if y.requires_grad:
            self._x[name] = self._sample(x)
            y.register_hook(lambda dy: self._dy.update({name: self._sample(dy)}))

    def _sample(self, t: torch.Tensor) -> torch.Tensor:
        """Every row, or, in the cheap mode, some at even distances (the same of x and of dy)."""
        rows = t.detach().flatten(0, -2)
        if self.mode == "full":
            return rows
        return rows[:: max(1, len(rows) // self.sample_rows)].clone()

    def operands(self) -> dict[str, dict[Role, torch.Tensor]]:
        """Global name of a linear's (first) weight -> x, w and dy as they were heard last.
        ValueError before anything was."""
        if not self._dy:
            raise ValueError(
                "nothing was heard: run a forward and a backward pass inside `listening()`"
            )
        return {
            name: {
                "x": self._x[name],
                "w": self._sample(linear.weight.detach()),
                "dy": self._dy[name],
            }
            for name, linear in self._linears.items()
            if name in self._dy
        }

    def report(self) -> dict[str, LayerReport]:
        """What was seen of each of them; ValueError as there."""
        return {name: self._of(operands) for name, operands in self.operands().items()}

    def _of(self, operands: dict[Role, torch.Tensor]) -> LayerReport:
        found, damages = {}, {}
        for format in self.formats:
            forward, backward = PAIRS[format]
            for role, t in operands.items():
                own = backward if role == "dy" else forward
                found[role, format] = statistics(t, own, self.scaling)
            if self.mode == "full":
                damages[format] = damage(*operands.values(), PAIRS[format], self.scaling)
        return LayerReport(found, damages)
