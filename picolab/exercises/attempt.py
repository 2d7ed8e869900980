"""What a judge may ask, in a rank.

    def judge(learner, attempt):
        x = attempt.tensor(4, 3)                                  # the same on every rank
        y = attempt.call(learner, {"x": x, "axis": "tp"})         # on copies; times are not counted
        attempt.equal("the output", y, expected)
        attempt.budget("send", count=2 * (n - 1))

A judge does no communication of its own: every rank draws *all* ranks' inputs from the same seed
and computes the expected result densely. So whatever the ledger holds is the learner's, and a rank
that finds something wrong cannot leave the others waiting. Nothing here raises for a wrong answer;
what is wrong is collected, and the first thing found is what the learner is told first.
"""

from collections.abc import Callable

import torch

from picolab import comm
from picolab.comm.mesh import AXES
from picolab.exercises.case import Case
from picolab.show.table import bytes_text

# Rounding of sums in another order; in fp64 a wrong factor or a missing term is far above it.
RTOL = {torch.float64: 1e-10, torch.float32: 1e-5}


class Attempt:
    """One run of the learner's function in this rank."""

    def __init__(self, case: Case):
        self.case = case
        self.problems: list[str] = []
        self.counted: list[tuple[str, str, int | float, int | float]] = []  # what, unit, used, most
        self.entries: list = []
        self._draw = torch.Generator().manual_seed(0)

    @property
    def rank(self) -> int:
        return comm.mesh().rank("world")

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Normal numbers of this shape: the same on every rank, others at each call."""
        return torch.randn(shape, generator=self._draw, dtype=dtype)

    def call(self, learner: Callable, arguments: dict, may_change: tuple[str, ...] = ()):
        """learner(*arguments), given copies of the tensors; its result.

        Writes down the collectives it entered, and whether it changed a tensor that it was not
        asked to change. A tensor in `may_change` is given as it is, so that the judge sees what
        became of it.
        """
        given = {
            name: value if name in may_change else _copy(value) for name, value in arguments.items()
        }
        ledger = comm.ledger()
        before = len(ledger.kept)
        result = learner(*given.values())
        self.entries += ledger.kept[before:]
        for name, value in arguments.items():
            if name not in may_change and not _same(value, given[name]):
                self.wrong(f"it changed its input `{name}`, which the caller still needs")
        return result

    def wrong(self, sentence: str) -> None:
        """Something is wrong on this rank: in one sentence, without the rank."""
        self.problems.append(sentence)

    def require(self, holds: bool, sentence: str) -> bool:
        """`wrong(sentence)` unless it holds."""
        if not holds:
            self.wrong(sentence)
        return holds

    def returned(self, result, *names: str) -> bool:
        """The result is a tuple (or list) of so many things."""
        if isinstance(result, tuple | list) and len(result) == len(names):
            return True
        kind = f"{len(result)} things" if isinstance(result, tuple | list) else "one thing"
        what = "None" if result is None else kind
        return self.require(False, f"it returns {what}; asked for is `return {', '.join(names)}`")

    def equal(
        self,
        name: str,
        got,
        expected: torch.Tensor,
        rtol: float | None = None,
        mistakes: dict[str, torch.Tensor | tuple[torch.Tensor, ...]] | None = None,
    ) -> bool:
        """got has expected's shape and numbers, up to rounding. name: "the output", "dw".

        mistakes: what to say -> the numbers by which that mistake is recognised, or several that
        it may give; of several mistakes that fit, the first is said.
        """
        if got is None:
            return self.require(False, f"{name} is None: is a `return` missing?")
        if not isinstance(got, torch.Tensor):
            kind = type(got).__name__
            return self.require(False, f"{name} is of type {kind}, and a tensor was expected")
        if got.shape != expected.shape:
            shapes = f"{tuple(got.shape)}, and should have {tuple(expected.shape)}"
            return self.require(False, f"{name} has the shape {shapes}")
        got, expected = got.detach().double(), expected.detach().double()
        if not torch.isfinite(got).all():
            count = int((~torch.isfinite(got)).sum())
            return self.require(False, f"{name} has {count} entries that are not finite")
        rtol = RTOL[torch.float64] if rtol is None else rtol
        if _near(got, expected, rtol):
            return True
        for says, wrong in (mistakes or {}).items():
            known = wrong if isinstance(wrong, tuple) else (wrong,)
            if any(_near(got, one.detach().double(), rtol) for one in known):
                return self.require(False, f"{name} is wrong: {says}")
        apart = (got - expected).abs()
        return self.require(False, f"{name} is wrong: {_how(got, expected, apart)}")

    def budget(
        self,
        op: str | None = None,
        count: int | None = None,
        payload_bytes: int | None = None,
        axis: str | None = None,
    ) -> None:
        """At most so many collectives of this kind (all kinds, if op is None), and bytes in them.

        Calls of torch.distributed itself are entries too (axis "raw"): they count for every axis,
        unless they are over the ranks of another.
        """
        entries = [e for e in self.entries if op in (None, e.op) and _counts_for(e, axis)]
        what, over = _plural(op) if op else "collectives", f" over {axis}" if axis else ""
        if count is not None:
            self.counted.append((what + over, "", len(entries), count))
            if len(entries) > count:
                self.wrong(f"it takes {len(entries)} {what}, and the budget is {count}{over}")
        if payload_bytes is not None:
            used = sum(e.payload_bytes for e in entries)
            self.counted.append((f"payload of {what}{over}", "bytes", used, payload_bytes))
            if used > payload_bytes:
                self.wrong(
                    f"its {what} carry {bytes_text(used)}, and the budget is "
                    f"{bytes_text(payload_bytes)}{over}"
                )

    def only(self, *allowed: str) -> None:
        """No other collectives than these."""
        for op in sorted({e.op for e in self.entries} - set(allowed)):
            may = " and ".join(_plural(a) for a in allowed) or "none at all"
            self.wrong(f"it uses {_plural(op)}; allowed are {may}")

    def along(self, *axes: str) -> None:
        """No collective over other ranks than those of my lines along these axes."""
        mesh = comm.mesh()
        lines = {axis: mesh.ranks(axis) for axis in axes if mesh.size(axis) > 1}
        asked = " and ".join(f"over {axis}, here {ranks}" for axis, ranks in lines.items())
        for ranks in sorted({e.ranks for e in self.entries} - set(lines.values())):
            self.wrong(
                f"it communicates over the ranks {ranks}, and should {asked or 'not at all'}"
            )

    def report(self) -> dict:
        """Plain data, for the way back to the kernel."""
        return {
            "problems": self.problems,
            "counted": self.counted,
            "collectives": len(self.entries),
        }


def _counts_for(entry, axis: str | None) -> bool:
    if axis is None or entry.axis != "raw":
        return axis in (None, entry.axis)
    mesh = comm.mesh()
    return entry.ranks == mesh.ranks(axis) or entry.ranks not in map(mesh.ranks, AXES)


def _plural(op: str) -> str:
    words = op.replace("_", "-")
    return {"all-to-all": "all-to-alls", "recv": "receives", "broadcast": "broadcasts"}.get(
        words, words + "s"
    )


def _copy(value):
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, list | tuple):
        return type(value)(_copy(one) for one in value)
    return value


def _same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and torch.equal(a.detach(), b.detach())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b))
    return True


def _near(got: torch.Tensor, expected: torch.Tensor, rtol: float) -> bool:
    """The same numbers, up to rtol of the largest; nothing is near infinity."""
    if expected.numel() == 0 or got.shape != expected.shape:
        return got.shape == expected.shape
    if not torch.isfinite(expected).all():
        return False
    scale = max(expected.abs().max().item(), 1e-300)
    return (got - expected).abs().max().item() <= rtol * scale


def _how(got: torch.Tensor, expected: torch.Tensor, apart: torch.Tensor) -> str:
    """Where and how much; and the factor, if it is one factor throughout."""
    worst = int(apart.argmax())
    index = [int(i) for i in torch.unravel_index(torch.tensor(worst), expected.shape)]
    place = f"at {index} " if index else ""
    text = f"{place}it is {got.flatten()[worst]:.6g}, and should be {expected.flatten()[worst]:.6g}"
    if expected.numel() == 1:
        return text
    if not got.any():
        return f"all of it is zero ({text})"
    big = expected.abs() > 1e-6 * expected.abs().max()
    ratio = got[big] / expected[big]
    if ratio.numel() > 1 and (ratio - ratio[0]).abs().max() <= 1e-6 * ratio[0].abs():
        return f"all of it is {ratio[0]:.4g} times what it should be ({text})"
    right = int((apart <= 1e-10 * expected.abs().max()).sum())
    return f"{text}; {right} of {expected.numel()} numbers are right"
