"""What a judge may ask, in a rank.

    def judge(learner, attempt):
        x = attempt.tensor(4, 3)                                  # the same on every rank
        y = attempt.call(learner, {"x": x, "axis": "tp"})         # on copies; times are not counted
        attempt.only("send", "recv")                              # the ways that are allowed,
        attempt.equal("the output", y, expected, parts={"tp": every_ranks_part})
        attempt.budget("send", count=2 * (n - 1), at_least=2 * (n - 1))   # and how much by them

A judge does no communication of its own: every rank draws *all* ranks' inputs from the same seed
and computes the expected result densely. So whatever the ledger holds is the learner's, and a rank
that finds something wrong cannot leave the others waiting. Nothing here raises for a wrong answer;
what is wrong is collected, and the first thing found is what the learner is told first.

Every way of communicating is seen (comm/every_call.py), so what is not in `only` is refused. A
budget has a *floor* too: right numbers without the bytes that must have travelled came by some
other way.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from picolab import comm
from picolab.comm.every_call import EveryCall
from picolab.comm.mesh import AXES
from picolab.exercises import diagnosis
from picolab.exercises.case import Case
from picolab.exercises.diagnosis import near
from picolab.show.table import bytes_text

# Rounding of sums in another order; in fp64 a wrong factor or a missing term is far above it.
RTOL = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}

Suspect = torch.Tensor | tuple[torch.Tensor, ...] | Callable[[], "Suspect"]
"""What a known mistake gives: numbers, several that it may give, or a function that computes them
(called only if the answer is wrong)."""


class Attempt:
    """One run of the learner's function in this rank."""

    def __init__(self, case: Case):
        self.case = case
        self.about = case.about
        self.problems: list[str] = []
        # what, unit, used, most, least
        self.counted: list[tuple[str, str, int | float, int | float, int | float]] = []
        self.entries: list = []
        self._draw = torch.Generator().manual_seed(0)
        self._earlier: list[tuple[str, list[str]]] = []
        self._unfinished = 0

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
        with self.watching():
            result = learner(*given.values())
        for name, value in arguments.items():
            if name not in may_change and not _same(value, given[name]):
                self.wrong(f"it changed its input `{name}`, which the caller still needs")
        return result

    @contextmanager
    def watching(self) -> Iterator[list]:
        """What is entered in the block is the learner's, by whatever way: for what `call` gave back
        and the judge runs later, a module or a hook. The list has the entries after the block.
        """
        ledger, entries = comm.ledger(), []
        before, under_way = len(ledger.kept), ledger.under_way
        with EveryCall() as every:
            yield entries
        entries += ledger.kept[before:]
        self.entries += entries
        self._unfinished += ledger.under_way - under_way
        for called in sorted(set(every.followed)):
            self.wrong(
                f"`{called}` writes into a tensor that autograd follows, and autograd does not "
                "learn of it: call it in an `autograd.Function`, or on a tensor that was detached"
            )

    def setting(self, about: str) -> None:
        """What follows is about another setting, in the same ranks: "14 tokens". Budgets begin
        anew, and of several settings with something wrong the first is told.
        """
        self._close()
        self._earlier.append((self.about, self.problems))
        self.about, self.problems, self.entries, self.counted = about, [], [], []

    @contextmanager
    def aside(self, about: str) -> Iterator[None]:
        """`setting(about)`, of which is told what is wrong only: if nothing is, the verdict's table
        stays that of the setting before.
        """
        told = self.about, self.counted
        self.setting(about)
        yield
        if not self.problems:
            self.about, self.counted = told

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

    def in_order(self, **asked) -> bool:
        """name=(got, expected), ...: whether a tuple has the right tensors in another order."""
        names, pairs = list(asked), list(asked.values())
        if not all(isinstance(got, torch.Tensor) for got, _ in pairs):
            return True
        order = []
        for got, _ in pairs:
            same = [
                name
                for name, (_, expected) in asked.items()
                if got.shape == expected.shape and near(got.detach(), expected.detach(), 1e-6)
            ]
            order += same if len(same) == 1 else []
        if sorted(order) != sorted(names) or order == names:
            return True
        return self.require(
            False,
            f"it returns the right tensors in the order {', '.join(order)}, and asked for is "
            f"`return {', '.join(names)}`",
        )

    def equal(
        self,
        name: str,
        got,
        expected: torch.Tensor,
        rtol: float | None = None,
        mistakes: dict[str, Suspect] | None = None,
        parts: dict[str, torch.Tensor] | None = None,
        dtype: torch.dtype | None = None,
    ) -> bool:
        """got has expected's shape, dtype and numbers, up to rounding. name: "the output", "dw".

        mistakes: what to say -> the numbers by which that mistake is recognised; of several
        mistakes that fit, the first is said. Sentences about a tensor that is what another one
        should be belong here, too.
        parts: axis -> (ranks of the axis, *shape), what each rank adds, if expected is a sum of
        them: then a part that is missing or counted twice is named.
        dtype: the one to come in, if it is not expected's. What no mistake fits, diagnosis.py
        looks at. With rtol=0 only the very numbers are right; a mistake is known up to rounding.
        """
        if got is None:
            return self.require(False, f"{name} is None: is a `return` missing?")
        if not isinstance(got, torch.Tensor):
            kind = type(got).__name__
            return self.require(False, f"{name} is of type {kind}, and a tensor was expected")
        got, wanted = got.detach(), dtype or expected.dtype
        rtol = RTOL.get(expected.dtype, RTOL[torch.float64]) if rtol is None else rtol
        if got.shape != expected.shape:
            shapes = f"{tuple(got.shape)}, and should have {tuple(expected.shape)}"
            why = diagnosis.shape_says(got, expected)
            return self.require(False, f"{name} has the shape {shapes}{why}")
        if got.dtype != wanted and (got.is_floating_point() or expected.is_floating_point()):
            return self.require(
                False,
                f"{name} is in {got.dtype}, and should be in {wanted}, as what comes in is",
            )
        got, expected = got.double(), expected.detach().double()
        if near(got, expected, rtol):
            return True
        bad, alike = diagnosis.not_finite_says(got, expected), rtol or RTOL[torch.float32]
        for says, suspect in (mistakes or {}).items():
            if any(near(got, one.detach().double(), alike) for one in _numbers(suspect)):
                return self.require(False, f"{name} is wrong: {says}")
        if bad:
            return self.require(False, f"{name} {bad}")
        axes = {axis: (comm.mesh().rank(axis), comm.mesh().size(axis)) for axis in (*AXES, "world")}
        return self.require(False, f"{name} is wrong: {diagnosis.says(got, expected, axes, parts)}")

    def budget(
        self,
        op: str | None = None,
        count: int | None = None,
        payload_bytes: int | None = None,
        axis: str | None = None,
        at_least: int = 0,
        least_bytes: int = 0,
        hint: str = "an asynchronous one is finished once `wait()` returns",
    ) -> None:
        """At most so many collectives of this kind (all kinds, if op is None), and bytes in them;
        and at least so many: whoever has the right numbers with less got them by another way.
        Over an axis of one rank nothing has to travel. A floor is told only of right numbers, by
        allowed ways: ask for it last. hint: what is added where less travelled.

        Calls of torch.distributed itself are entries too (axis "raw"): they count for every axis,
        unless they are over the ranks of another.
        """
        entries = [e for e in self.entries if op in (None, e.op) and _counts_for(e, axis)]
        what, over = _plural(op) if op else "collectives", f" over {axis}" if axis else ""
        if axis is not None and comm.mesh().size(axis) == 1:
            at_least = least_bytes = 0
        if count is not None:
            self.counts(what + over, len(entries), count, at_least)
            if len(entries) > count:
                self.wrong(f"it takes {len(entries)} {what}, and the budget is {count}{over}")
            if len(entries) < at_least and not self.problems:
                self.wrong(
                    f"it takes {len(entries)} {what}{over}, and what has to travel needs "
                    f"{at_least} ({hint})"
                )
        if payload_bytes is not None:
            used = sum(e.payload_bytes for e in entries)
            self.counts(f"payload of {what}{over}", used, payload_bytes, least_bytes, "bytes")
            if used > payload_bytes:
                self.wrong(
                    f"its {what} carry {bytes_text(used)}, and the budget is "
                    f"{bytes_text(payload_bytes)}{over}"
                )
            if used < least_bytes and not self.problems:
                self.wrong(
                    f"its {what} carry {bytes_text(used)}{over}, and what has to travel is "
                    f"{bytes_text(least_bytes)} ({hint})"
                )

    def counts(self, what: str, used, most, least=0, unit: str = "") -> None:
        """A line of the table that is shown with a right answer."""
        self.counted.append((what, unit, used, most, least))

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
        # A message is between two ranks, whatever group it was sent in.
        entries = [e for e in self.entries if not any(e.peer in line for line in lines.values())]
        for ranks in sorted({e.ranks for e in entries} - set(lines.values())):
            self.wrong(
                f"it communicates over the ranks {ranks}, and should {asked or 'not at all'}"
            )

    def peers(self, most: int, sentence: str) -> None:
        """Messages go to so many ranks at most, and come from so many."""
        for op in ("send", "recv"):
            others = {e.peer for e in self.entries if e.op == op and e.peer is not None}
            if len(others) > most:
                whom = "to" if op == "send" else "from"
                self.wrong(f"it has messages {whom} the ranks {_listed(others)}: {sentence}")

    def report(self) -> dict:
        """Plain data, for the way back to the kernel: of the first setting with something wrong."""
        self._close()
        settings = [*self._earlier, (self.about, self.problems)]
        wrong = [(i, about, found) for i, (about, found) in enumerate(settings) if found]
        index, about, problems = wrong[0] if wrong else (len(settings), self.about, [])
        return {
            "problems": problems,
            "setting": index,
            "about": about,
            "counted": self.counted,
            "collectives": len(self.entries),
        }

    def _close(self) -> None:
        """At the end of a setting."""
        if self._unfinished > 0:
            self.wrong(
                f"{self._unfinished} of what it started was never waited for: call `wait()` on "
                "what an asynchronous call returns"
            )
        self._unfinished = 0


def _counts_for(entry, axis: str | None) -> bool:
    """Whatever it was called: over the ranks of this axis. (A group of the function's own that is
    none of the mesh's counts for all.)
    """
    if axis in (None, entry.axis):
        return True
    mesh = comm.mesh()
    if entry.peer is not None:
        return entry.peer in mesh.ranks(axis)
    foreign = entry.axis == "raw" and entry.ranks not in map(mesh.ranks, AXES)
    return entry.ranks == mesh.ranks(axis) or foreign


def _plural(op: str) -> str:
    if "object" in op:
        return f"`{op}`"
    words = op.replace("_", "-")
    return "receives" if op == "recv" else words + "s"


def _listed(numbers) -> str:
    return ", ".join(map(str, sorted(numbers)))


def _numbers(suspect: Suspect) -> tuple[torch.Tensor, ...]:
    found = suspect() if callable(suspect) else suspect
    return tuple(found) if isinstance(found, tuple | list) else (found,)


def _copy(value):
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, list | tuple):
        return type(value)(_copy(one) for one in value)
    if isinstance(value, dict):
        return {key: _copy(one) for key, one in value.items()}
    return value


def _same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        alike = isinstance(b, torch.Tensor) and a.shape == b.shape and a.dtype == b.dtype
        return alike and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if a is None or b is None:
        return a is b
    return not isinstance(a, int | float | str) or a == b or (a != a and b != b)  # NaN stays NaN
