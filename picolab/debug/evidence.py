"""Evidence: what one process computed, what the ranks did, and three ways to compare them.

One reduction that is wrong has a signature, wherever it is in the model. If the right tensor is a
sum over the n ranks of an axis, then

    missing     each rank has its own summand, and the sum over the ranks is the right tensor
    doubled     a sum of n sums: every rank has n times the right tensor
    averaged    every rank has 1/n of it

The weights of the samples separate what is wrong between replicas and micro-batches from what is
wrong inside the model. The gradient is a sum over replicas r and micro-batches m of known parts,

    g = sum over r, m of  w[r, m] * g[r, m],        and every weight should be 1

so the weights follow from a rank's gradient by least squares. If nothing remains, the model itself
is right and the weights say what happened: 0 for the other replicas (never summed), 1/dp everywhere
(averaged), the number of micro-batches everywhere (not scaled), powers of dp (summed again and
again). If much remains, the error is inside the model.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import torch

from picolab import costs
from picolab.debug.awkward import Recipe
from picolab.debug.observe import Held, Observation, Reference

# Two results of the same sums in another order agree to this, relatively (see oracle.py); and this
# is how well a ratio or a fit must do to be called exact. Far above rounding, far below any bug.
TOLERANCE = {"fp64": 1e-12, "fp32": 2e-6, "bf16": 16 * 2.0**-8, "fp16": 16 * 2.0**-11}
EXACT = {"fp64": 1e-8, "fp32": 2e-4, "bf16": 0.1, "fp16": 0.02}


@dataclass
class Evidence:
    """All that a diagnosis may look at."""

    recipe: Recipe
    reference: Reference
    ranks: list[Observation]

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.recipe.precision]

    @property
    def exact(self) -> float:
        return EXACT[self.recipe.precision]

    def size(self, axis: str) -> int:
        """Ranks of an axis, derived ones included."""
        return self.recipe.layout.size(axis)

    def lines(self, axis: str) -> list[list[Observation]]:
        """The ranks in groups that differ in this axis only, in the order of the axis."""
        by_rank = {seen.rank: seen for seen in self.ranks}
        return [
            [by_rank[rank] for rank in line if rank in by_rank]
            for line in self.recipe.layout.lines(axis)
        ]

    @cached_property
    def cut_along(self) -> dict[str, set[str]]:
        """axis -> the names of the tensors that are cut along it."""
        found: dict[str, set[str]] = {}
        for seen in self.ranks:
            for name, (piece, _) in seen.start.items():
                for axis in piece.axes:
                    found.setdefault(axis, set()).add(name)
        return found

    def columns(self, seen: Observation) -> torch.Tensor:
        """Which places of the replica's sequences this rank has, found by looking for its tokens
        (of a later stage: for those of the first one). -1 where they are not in the sequences."""
        (line,) = (line for line in self.lines("pp") if seen in line)
        tokens = line[0].tokens
        whole, _ = self.recipe.part(0, 0, seen.place["dp"])
        if tokens.shape[0] != whole.shape[0]:
            return torch.full((tokens.shape[1],), -1)
        same = (tokens.unsqueeze(2) == whole.unsqueeze(1)).all(0)  # (mine, places)
        return torch.where(same.any(1), same.int().argmax(1), -1)

    def share(self, seen: Observation, whole: torch.Tensor) -> torch.Tensor:
        """Of (B, S, ...) of the replica what a rank has between the layers: its columns, and of
        those, under sequence parallelism, its part."""
        part = whole[:, self.columns(seen)]
        if self.recipe.layout.sp:
            part = part.chunk(self.size("tp"), dim=1)[seen.place["tp"]]
        return part

    @cached_property
    def ledger(self) -> list["LedgerLine"]:
        """Each kind of collective in a step, as the formula has it and as it was: of a rank and a
        step where the two differ, or else of the first rank that has any."""
        settings, lines = self.recipe.training, {}
        for seen in self.ranks:
            formula = None
            for number, step in enumerate(seen.ledger):
                if formula is None or settings.model.experts:  # rows to experts: every step others
                    formula = costs.step_ledger(
                        settings.model,
                        settings.layout,
                        micro_batch=settings.micro_batch,
                        accumulate=settings.accumulate,
                        precision=settings.precision,
                        bucket_bytes=settings.bucket_bytes,
                        sp_inputs=settings.sp_inputs,
                        rank=seen.rank,
                        routed=self._rows(number),
                        expert_copies=settings.expert_copies,
                    )
                for key in dict.fromkeys([*formula, *step]):
                    right = formula.get(key, (0, 0))
                    line = LedgerLine(*key, expected=tuple(right[:2]), found=step.get(key, (0, 0)))
                    if key not in lines or (lines[key].ok and not line.ok):
                        lines[key] = line
        return list(lines.values())

    def _rows(self, step: int) -> list[list]:
        """rank -> expert -> the rows that it should send in a step: of its stage's layers; with
        copies rank -> exchange -> (layer, expert -> rows)."""
        layout, config = self.recipe.layout, self.recipe.config
        rows = []
        for seen in self.ranks:
            stages = costs.rank_stages(config.layers, layout, seen.place["pp"])
            mine = {layer for layers in stages.values() for layer in layers}
            each = [
                (layer, self.tokens_of(seen, routed).sum((0, 1)).tolist())
                for (replica, _, layer), routed in self.reference.routed[step].items()
                if replica == seen.place["dp"] and layer in mine
            ]
            total = [sum(of[expert] for _, of in each) for expert in range(config.experts)]
            rows.append(each if self.recipe.expert_copies else total)
        return rows

    def tokens_of(self, seen: Observation, whole: torch.Tensor) -> torch.Tensor:
        """Of (B, S, ...) of the replica the columns that the layout gives this rank."""
        n, chunks = self.size("cp"), whole.shape[1] // (2 * self.size("cp"))
        if n == 1:
            return whole
        parts = whole.split(chunks, dim=1)
        return torch.cat([parts[i] for i in costs.zigzag_chunks(seen.place["cp"], n)], dim=1)

    @cached_property
    def of_experts(self) -> set[str]:
        """The names of what ep deals out."""
        return self.cut_along.get("ep", set())

    def compared(self, seen: Observation) -> list[str]:
        """The names of this rank's gradients that are sums over all replicas."""
        names = [name for name in seen.gradients if name in self.reference.gradients]
        return [name for name in names if name not in self.of_experts]

    @cached_property
    def sample_weights(self) -> dict[int, torch.Tensor] | None:
        """rank -> (replicas, micro-batches): how often each sample counts in its gradient. None
        where the rank's gradient is not made of the samples' gradients at all."""
        parts = self.reference.parts
        weights = {}
        for seen in self.ranks:
            names = self.compared(seen)
            if not names:
                return None
            y = torch.cat([seen.gradients[name][1].double().flatten() for name in names])
            columns = [
                torch.cat(
                    [slice_of(seen.gradients, name, part).double().flatten() for name in names]
                )
                for part in parts.values()
            ]
            x = torch.stack(columns, dim=1)
            if not torch.isfinite(y).all():
                return None
            solution = torch.linalg.lstsq(x, y.unsqueeze(1)).solution
            rest = (x @ solution).squeeze(1) - y
            if float(rest.norm()) > self.exact * float(y.norm()):
                return None
            weights[seen.rank] = solution.view(self.recipe.accumulate, -1).T
        return weights

    def signature(
        self, axis: str, found: dict[int, torch.Tensor], right: dict[int, torch.Tensor]
    ) -> str | float | None:
        """How tensors (rank -> tensor) that should be a sum over the axis differ from it: "right",
        "missing", "doubled", "averaged", a number if they are that many times as large, or None."""
        kinds = set()
        for line in self.lines(axis):
            line = [seen.rank for seen in line if seen.rank in found]
            if line:
                kinds.add(self._signature_of([found[r] for r in line], [right[r] for r in line]))
        kinds -= {"right"} if len(kinds) > 1 else set()
        numbers = [kind for kind in kinds if isinstance(kind, float)]
        if numbers and len(numbers) == len(kinds):  # each line's ratio has its own last digits
            close = max(numbers) - min(numbers) <= self.exact * abs(numbers[0])
            return numbers[0] if close else None
        return kinds.pop() if len(kinds) == 1 else None

    def _signature_of(
        self, found: list[torch.Tensor], right: list[torch.Tensor]
    ) -> str | float | None:
        n = len(found)  # of the axis's ranks those that hold the tensor at all
        if all(self.close(a, b) for a, b in zip(found, right)):
            return "right"
        ratios = [self.ratio(a, b) for a, b in zip(found, right)]
        alike = None not in ratios and max(ratios) - min(ratios) <= self.exact * abs(ratios[0])
        for word, value in (("doubled", n), ("averaged", 1 / n)):
            if alike and n > 1 and abs(ratios[0] - value) < self.exact * value:
                return word
        # After "averaged", whose tensors add up to the right one too.
        one_shape = len({tensor.shape for tensor in (*found, *right)}) == 1
        if n > 1 and one_shape and self.close(sum(a.double() for a in found), right[0]):
            return "missing"
        return ratios[0] if alike else None

    def gradient_signature(self, axis: str) -> str | float | None:
        """The signature of all gradients of a rank together."""
        found, right = {}, {}
        for seen in self.ranks:
            names = self.compared(seen)
            if not names:
                return None
            found[seen.rank] = torch.cat([seen.gradients[name][1].flatten() for name in names])
            right[seen.rank] = torch.cat(
                [
                    slice_of(seen.gradients, name, self.reference.gradients).flatten()
                    for name in names
                ]
            )
        return self.signature(axis, found, right)

    def close(self, found: torch.Tensor, right: torch.Tensor) -> bool:
        # Looser than the comparison: single activations have fewer digits than whole gradients.
        return difference(found, right) <= 100 * self.tolerance

    def ratio(self, found: torch.Tensor, right: torch.Tensor) -> float | None:
        """r, if found = r * right throughout; else None."""
        return ratio(found, right, self.exact)


@dataclass(frozen=True)
class LedgerLine:
    """One kind of collective in one step of one rank: (count, payload bytes) expected and found."""

    op: str
    axis: str
    reason: str
    expected: tuple[int, int]
    found: tuple[int, int]

    @property
    def ok(self) -> bool:
        return self.expected == self.found


def difference(found: torch.Tensor, right: torch.Tensor) -> float:
    """|found - right| / |right|, infinite where the shapes differ or a number is not finite."""
    if found.shape != right.shape or not torch.isfinite(found).all():
        return float("inf")
    found, right = found.double(), right.double()
    distance, size = float((found - right).norm()), float(right.norm())
    return distance / size if size else (0.0 if distance == 0 else float("inf"))


def ratio(found: torch.Tensor, right: torch.Tensor, exact: float) -> float | None:
    """r, if found = r * right to within `exact` of the norm; else None."""
    if found.shape != right.shape or not torch.isfinite(found).all():
        return None
    a, b = found.double().flatten(), right.double().flatten()
    if not b.any():
        return None
    r = float(a @ b) / float(b @ b)
    return r if float((a - r * b).norm()) <= exact * float(a.norm()) else None


def simple(value: float, exact: float) -> float | None:
    """The fraction with small numbers that a ratio is, other than 1: 1.9999999999 -> 2.0."""
    near = float(Fraction(value).limit_denominator(16))
    return near if near not in (0.0, 1.0) and abs(value - near) <= exact * near else None


def number_text(value: float) -> str:
    """2.0000000003 -> '2', 0.25 -> '1/4', 1.8372 -> '1.837'."""
    near = Fraction(value).limit_denominator(16)
    return str(near) if near and abs(value - near) < 1e-6 * abs(value) else f"{value:.4g}"


def ranks_text(ranks: list[int]) -> str:
    """[0, 1, 2, 5] -> 'ranks 0, 1, 2, 5'."""
    return f"rank{'' if len(ranks) == 1 else 's'} {', '.join(map(str, ranks))}"


def slice_of(held: Held, name: str, whole: dict[str, torch.Tensor]) -> torch.Tensor:
    return held[name][0].take(whole[name])
