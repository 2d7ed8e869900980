"""What the oracle says: equal or not, by how much, and why not.

`print(verdict)` is for a learner, `verdict.table()` has every number, `to_json` is for a program.
"""

import html
import json
import math
from dataclasses import asdict, dataclass, field

from picolab.debug.cause import Cause
from picolab.debug.evidence import Evidence, LedgerLine, number_text, ranks_text
from picolab.show.table import Table

KINDS = ("start", "loss", "gradient norm", "gradient", "parameter", "copy", "gathered")


@dataclass(frozen=True)
class Row:
    """One number or tensor, compared with that of one process; the worst of all ranks."""

    kind: str
    """start, loss, gradient norm, gradient, parameter, gathered, or copy (of an expert, of which
    any of the others)."""
    name: str
    """The tensor's global name; of a loss or norm the step."""
    difference: float
    """Relative: to the number, or to the norm of the tensor. Infinite if it is not there."""
    allowed: float
    ratio: float | None
    """If it is a constant multiple of the right one: how many times, on the ranks that differ."""
    ranks: tuple[int, ...]
    """The ranks that differ by more than is allowed."""

    @property
    def ok(self) -> bool:
        return self.difference <= self.allowed

    @property
    def times(self) -> str:
        """ "exactly 2 x", "1.372 x" or nothing."""
        if self.ratio is None:
            return ""
        text = number_text(self.ratio)
        return f"{text} x" if "." in text else f"exactly {text} x"


@dataclass(repr=False)
class Verdict:
    """Whether a layout computed what one process computes. True in an `if` where it did."""

    evidence: Evidence
    rows: list[Row]
    ledger: list[LedgerLine]
    cause: Cause | None
    """The most likely cause of what differs, None where nothing does."""
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    others: "list[Verdict]" = field(default_factory=list)
    """Those over the oracle's other models: right where this one is, or not looked at."""

    @property
    def ok(self) -> bool:
        """Every number within its tolerance, and every collective as the formula has it."""
        return self.numbers_ok and all(line.ok for line in self.ledger)

    @property
    def numbers_ok(self) -> bool:
        return all(row.ok for row in self.rows)

    def __bool__(self) -> bool:
        return self.ok

    @property
    def worst(self) -> Row:
        """The row that is farthest beyond its tolerance, or nearest to it."""
        return max(self.rows, key=lambda row: row.difference / row.allowed)

    @property
    def first(self) -> Row | None:
        """The first row that is wrong, in the order in which a step computes."""
        return next((row for row in self.rows if not row.ok), None)

    @property
    def title(self) -> str:
        recipe = self.evidence.recipe
        equal = "equals one process" if self.ok else "does NOT equal one process"
        if self.numbers_ok and not self.ok:
            equal = "equals one process in its numbers, but NOT in its collectives"
        return f"{recipe.layout} in {recipe.precision} {equal}"

    def table(self) -> Table:
        """Every comparison; what differs first."""
        rows = [
            [
                row.kind,
                row.name,
                row.difference,
                row.allowed,
                "ok" if row.ok else f"wrong on {ranks_text(list(row.ranks))}",
                row.times,
            ]
            for row in sorted(self.rows, key=lambda row: row.ok)
        ]
        columns = ["what", "which", "largest difference", "allowed", "", "ratio"]
        wrong = range(sum(not row.ok for row in self.rows))
        return Table(columns, rows, self.title, wrong)

    def summary(self) -> Table:
        """One row for each kind of comparison."""
        rows = []
        for kind in KINDS:
            of_kind = [row for row in self.rows if row.kind == kind]
            if kind == "copy" and not of_kind:
                continue
            wrong = [row for row in of_kind if not row.ok]
            worst = max(of_kind, key=lambda row: row.difference)
            verdict = "ok" if not wrong else f"{len(wrong)} of {len(of_kind)} wrong"
            rows.append([_KIND_TEXT[kind], len(of_kind), worst.difference, worst.allowed, verdict])
        wrong = [line for line in self.ledger if not line.ok]
        verdict = "ok" if not wrong else f"{len(wrong)} of {len(self.ledger)} wrong"
        rows.append(["collectives, count and bytes", len(self.ledger), None, None, verdict])
        wrong = [number for number, row in enumerate(rows) if row[-1] != "ok"]
        return Table(["compared", "how many", "largest difference", "allowed", ""], rows, "", wrong)

    @property
    def _findings(self) -> list[str]:
        """The cause, and where it shows first."""
        lines = []
        if self.cause is not None:
            lines.append(f"most likely cause: {self.cause}")
        row = self.first
        if row is not None:
            times = f", {row.times} the right one" if row.ratio is not None else ""
            lines.append(
                f"first wrong: {row.kind} {row.name}{times}, on {ranks_text(list(row.ranks))} "
                f"(difference {row.difference:.2g}, allowed {row.allowed:.2g})."
            )
            lines.append(f"which tensors: {self.pattern}.")
        return lines

    @property
    def _also(self) -> list[str]:
        """What the other models gave, where all is right."""
        return [
            f"also equal: {verdict.notes[0].split('; ', 1)[1]} (largest difference "
            f"{verdict.worst.difference:.2g}, {len(verdict.rows)} comparisons)"
            for verdict in self.others
        ]

    @property
    def pattern(self) -> str:
        """Which of the first step's gradients differ, in words."""
        cut = {
            name: piece.axes
            for seen in self.evidence.ranks
            for name, (piece, _) in seen.gradients.items()
            if piece.cuts
        }
        sharded, axes = set(cut), " and ".join(sorted({a for of in cut.values() for a in of}))
        rows = [row for row in self.rows if row.kind == "gradient"]
        wrong = {row.name for row in rows if not row.ok}
        everything = {row.name for row in rows}
        replicated = everything - sharded
        if not wrong:
            return "none of the first step's gradients"
        if wrong == everything:
            ratios = {row.times for row in rows}
            alike = f", each {ratios.pop()}" if len(ratios) == 1 and "" not in ratios else ""
            return f"all {len(rows)} gradients{alike}"
        if sharded and wrong <= sharded:
            kind = "all" if wrong == sharded else "only"
            return f"{kind} tensors that are split over {axes} ({len(wrong)} of {len(rows)})"
        if sharded and wrong <= replicated:
            return f"only tensors that every rank of {axes} holds ({len(wrong)} of {len(rows)})"
        right = sorted(everything - wrong)
        return f"{len(wrong)} of {len(rows)} gradients; right are {', '.join(right[:3])}" + (
            ", ..." if len(right) > 3 else ""
        )

    def __repr__(self) -> str:
        return "\n".join(
            [self.title, *_indented(self.notes), "", repr(self.summary()), ""]
            + (self._findings or [*self._also, f"{self.seconds:.1f} s"])
        )

    def _repr_html_(self) -> str:
        mark = "&#10003;" if self.ok else "&#10007;"
        parts = [f"<b>{mark} {html.escape(self.title)}</b>"]
        parts += [f"<div>{html.escape(note)}</div>" for note in self.notes]
        parts.append(self.summary()._repr_html_())
        lines = self._findings or self._also
        parts += [f"<p>{html.escape(line)}</p>" for line in lines]
        return "".join(parts)

    def to_json(self) -> str:
        """One object; a difference that is not finite is null."""
        recipe = self.evidence.recipe
        rows = [
            asdict(row) | {"ok": row.ok, "difference": _finite(row.difference)} for row in self.rows
        ]
        return json.dumps(
            {
                "layout": str(recipe.layout),
                "precision": recipe.precision,
                "steps": recipe.steps,
                "ok": self.ok,
                "cause": asdict(self.cause) if self.cause else None,
                "worst": rows[self.rows.index(self.worst)],
                "rows": rows,
                "ledger": [asdict(line) | {"ok": line.ok} for line in self.ledger],
                "notes": self.notes,
                "seconds": self.seconds,
            },
            allow_nan=False,
        )


_KIND_TEXT = {
    "start": "parameters at the start",
    "loss": "loss of each step",
    "gradient norm": "gradient norm of each step",
    "gradient": "gradients at step 1",
    "parameter": "parameters after the last step",
    "copy": "copies of experts: the same three",
    "gathered": "the same, gathered by state_dict()",
}


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
