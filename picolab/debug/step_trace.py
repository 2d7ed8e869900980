"""`pico.trace_step()`: one step of a run, module by module, as numbers that can be compared; and
the first module in which two runs, or two ranks, part ways.

    a = pico.train(layout="dp2", observers=[pico.trace_step(3)])
    b = pico.train(layout="dp2", observers=[pico.trace_step(3), ...])
    pico.compare_steps(a, b)     # the same run twice, or what was changed, and where it shows first
    pico.compare_steps(a)        # ranks that must agree, with each other

What is noted, in one step and on every rank: of each parameter's slice, of what leaves each module,
of the gradient that comes back to it, and of each parameter's gradient (complete, not clipped) the
norm and the sum, both in fp64. So one number of thousands that is off in its last digit shows; a
permutation does not, but what is computed of it does. It costs two passes over what is there
anyway, and no collective; other steps pay nothing.

Who must agree: of parameters and their gradients, all ranks that hold the same slice (replicas, and
what tensor parallelism does not cut). Of what leaves a module, ranks that differ in tp only: they
have the same tokens, and a row-parallel product ends in a sum. Not where sequence parallelism cuts
tokens, and not the logits, which are cut. Replicas read other samples: what they compute of them
says nothing.

The order is that in which a step runs: forward, with a module's parameters before its output, one
micro-batch after the other; then backward, from the end; then the gradients of parameters. By
default nothing may differ: on one kind of machine the same step is the same to the last bit. The
oracle (`pico.verify`) is for other layouts, whose sums are rounded in another order.
"""

import html
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from picolab.debug.observe import named_points
from picolab.launch import rundirs
from picolab.model import Piece, slices
from picolab.monitoring import History, Observer, StepReport, blame, events
from picolab.show.table import Table
from picolab.specs import Layout

KINDS = ("parameter", "output", "gradient of the output", "gradient of the parameter")
_PARTS = ("attention_norm", "attention", "mlp_norm", "mlp")
_MODULE = re.compile(r"embed|head|norm|layers\.\d+\.\w+")
SHOWN = 20


class Point(NamedTuple):
    """One place of a step, on one rank."""

    kind: str
    name: str
    """Of the module; of a parameter, its global name."""
    call: int
    """Which micro-batch; 0 of parameters."""
    cut: str
    """Of a parameter, which slice of it: "0:64,0:32"."""
    norm: float
    sum: float

    @property
    def module(self) -> str:
        found = _MODULE.match(self.name)
        return found[0] if found else self.name

    @property
    def order(self) -> tuple:
        """When in a step it is computed."""
        kind, parts = KINDS.index(self.kind), self.module.split(".")
        place = {"embed": (-1, 0), "norm": (math.inf, 0), "head": (math.inf, 1)}.get(parts[0])
        if place is None:
            part = _PARTS.index(parts[2]) if parts[2] in _PARTS else len(_PARTS)
            place = int(parts[1]), part
        if kind < 2:
            return 0, self.call, *place, kind, self.name
        return kind, self.call, -place[0], -place[1], 0, self.name

    @property
    def what(self) -> str:
        if "parameter" in self.kind:
            return f"the {self.kind} {self.name}"
        return f"its {self.kind}" + (f" of micro-batch {self.call}" if self.call else "")


def trace_step(step: int = 0) -> "TraceStep":
    """For `observers=[...]` of a run: note this step of it. See `compare_steps`."""
    return TraceStep(step)


class TraceStep(Observer):
    """Notes one step. With it a run has "trace" events; its numbers are the same."""

    def __init__(self, step: int = 0):
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"step is {step!r}; it is the number of a step, from 0")
        self.at = step
        self._found: list[tuple[str, str, int, str, torch.Tensor]] = []
        self._calls: dict[str, int] = defaultdict(int)
        self._handles: list[Any] = []

    def start(self, run) -> None:
        if run.first_step == self.at:
            self._listen(run.model)

    def step(self, run, report: StepReport) -> None:
        if report.step == self.at - 1:
            self._listen(run.model)
        elif report.step == self.at:
            self._tell(run)

    def back(self, run, report: StepReport) -> None:
        """What was undone is noted when it is done again."""
        self._close()
        if report.back_to == self.at:
            self._listen(run.model)

    @torch.no_grad()
    def gradients(self, run) -> None:
        if run.step != self.at:
            return
        # The model's own where they have memory: ZeRO 3 frees them, and then each rank has rows.
        seen: set[tuple[str, str]] = set()
        for parameter in (*run.model.parameters(), *run.parallel.parameters()):
            if parameter.untyped_storage().nbytes() == 0:
                continue
            for piece, part in slices(parameter):
                cut = _cut(piece)
                if (piece.name, cut) not in seen:
                    seen.add((piece.name, cut))
                    self._note(KINDS[0], piece.name, 0, cut, part)
        for parameter in run.parallel.parameters():
            if parameter.grad is not None:
                for piece, part in slices(parameter, parameter.grad):
                    self._note(KINDS[3], piece.name, 0, _cut(piece), part)

    def _listen(self, model: torch.nn.Module) -> None:
        self._found.clear()
        self._calls.clear()
        points = [*named_points(model), *([("head", model.head)] if model.head else [])]
        for name, module in points:
            hook = module.register_forward_hook(
                lambda _, __, output, name=name: self._output(name, output)
            )
            self._handles.append(hook)

    def _output(self, name: str, output: torch.Tensor) -> None:
        if torch._C._current_graph_task_id() != -1:
            return  # computed again, in backward: a block that is recomputed
        call = self._calls[name]
        self._calls[name] += 1
        self._note(KINDS[1], name, call, "", output)
        if output.requires_grad:
            output.register_hook(lambda grad: self._note(KINDS[2], name, call, "", grad))

    def _note(self, kind: str, name: str, call: int, cut: str, x: torch.Tensor) -> None:
        x = x.detach()
        norm = torch.linalg.vector_norm(x, dtype=torch.float64)
        both = torch.stack((norm, x.sum(dtype=torch.float64)))
        self._found.append((kind, name, call, cut, both))

    def _close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _tell(self, run) -> None:
        self._close()
        numbers = torch.stack([both for *_, both in self._found]).tolist()
        points = [[*about, *both] for (*about, _), both in zip(self._found, numbers)]
        self._found.clear()
        events.write("trace", step=self.at, layout=str(run.config.layout), points=points)


def _cut(piece: Piece) -> str:
    """Which slice of its parameter: "0:64,0:32"."""
    return ",".join(f"{held.start}:{held.stop}" for held in piece.ranges)


@dataclass
class StepTrace:
    """What a run noted of its step: rank -> points."""

    step: int
    layout: Layout
    points: dict[int, list[Point]]

    @classmethod
    def of(cls, run: Any) -> "StepTrace":
        """run: a result, or a run directory. ValueError if it noted nothing."""
        if isinstance(run, cls):
            return run
        if isinstance(run, str | Path):
            run = History.read(rundirs.find(str(run)))
        told = [e for e in getattr(run, "events", run) if e.kind == "trace"]
        if not told:
            raise ValueError(
                "this run noted no step: give it observers=[pico.trace_step(K)], K being one of "
                "its steps"
            )
        step = told[-1].data["step"]
        points = {
            e.rank: [Point(*point) for point in e.data["points"]]
            for e in told
            if e.data["step"] == step
        }
        return cls(step, Layout.parse(told[-1].data["layout"]), dict(sorted(points.items())))

    @property
    def modules(self) -> list[str]:
        """In the order in which they run."""
        points = sorted((p for of in self.points.values() for p in of), key=lambda p: p.order)
        return list(dict.fromkeys(point.module for point in points))


class Differing(NamedTuple):
    """A point that should be the same and is not."""

    point: Point
    values: dict[str, tuple[float, float]]
    """"rank 0", or "rank 0 of a" -> (norm, sum)."""
    rank: int | None
    """The only rank that has another value than the others, or than itself in the other run."""


@dataclass(repr=False)
class Comparison:
    """Where two runs or the ranks of one part ways. True in an `if` if they do not."""

    differing: list[Differing]
    """In the order of the step."""
    modules: int
    compared: int
    what: str

    @property
    def first(self) -> Differing | None:
        return self.differing[0] if self.differing else None

    @property
    def module(self) -> str | None:
        """The first one that differs."""
        return self.first and self.first.point.module

    @property
    def rank(self) -> int | None:
        return self.first and self.first.rank

    def __bool__(self) -> bool:
        return not self.differing

    @property
    def verdict(self) -> str:
        if not self.differing:
            return f"{self.what}: the same in all {self.modules} modules ({self.compared:,} points)"
        point, values, _ = self.first
        norms = len({norm for norm, _ in values.values()}) > 1
        kind, column = ("norm", 0) if norms else ("sum", 1)
        each = ", ".join(f"{who} has {value[column]!r}" for who, value in values.items())
        return (
            f"{self.what} part ways first in {point.module}, in {point.what}: its {kind} differs, "
            f"{each}"
        )

    def table(self) -> Table:
        """The first ones that differ."""
        rows = [
            [d.point.module, d.point.what, who, *value]
            for d in self.differing[:SHOWN]
            for who, value in d.values.items()
        ]
        more = len(self.differing) - SHOWN
        title = f"{more} more that differ after these" if more > 0 else ""
        return Table(["module", "what", "who", "norm", "sum"], rows, title)

    def __repr__(self) -> str:
        return f"{self.verdict}\n\n{self.table()!r}" if self.differing else self.verdict

    def _repr_html_(self) -> str:
        table = self.table()._repr_html_() if self.differing else ""
        return f"<p><b>{html.escape(self.verdict)}</b></p>{table}"


def compare_steps(a: Any, b: Any = None, tolerance: float = 0.0) -> Comparison:
    """The first module in which two runs differ, or (b None) ranks of one that must agree.

    a, b        results or run directories of runs that had a `trace_step`
    tolerance   by how much of itself a norm may differ. With one, sums (in which everything may
                cancel) are not compared

    ValueError if there is nothing to compare: a run that noted nothing, other layouts, other steps.
    """
    first = StepTrace.of(a)
    if b is None:
        alike, what = _alike(first), f"the ranks of {first.layout} in step {first.step}"
    else:
        alike, what = _both(first, StepTrace.of(b)), f"the two runs in step {first.step}"
    found = []
    for of in alike:
        values = {who: (point.norm, point.sum) for who, point in of.items()}
        if any(_differ(one, other, tolerance) for one in values.values()
               for other in values.values()):  # fmt: skip
            rank = blame.odd_one_out(values) if b is None else next(iter(of))[1]
            point = next(iter(of.values()))
            named = {
                f"rank {key}" if b is None else f"rank {key[1]} of {key[0]}": value
                for key, value in values.items()
            }
            found.append(Differing(point, named, rank))
    found.sort(key=lambda differing: differing.point.order)
    return Comparison(found, len(first.modules), len(alike), what)


def _differ(one: tuple[float, float], other: tuple[float, float], tolerance: float) -> bool:
    """Of what is no number on both sides nobody can say more."""
    pairs = list(zip(one, other))[: 1 if tolerance else 2]
    return any(
        x != y and not abs(x - y) <= tolerance * max(abs(x), abs(y))
        for x, y in pairs
        if not (math.isnan(x) and math.isnan(y))
    )


def _alike(trace: StepTrace) -> list[Mapping[Any, Point]]:
    """The points that ranks should agree in: rank -> its own, of those that at least two have."""
    found: dict[tuple, dict[int, Point]] = defaultdict(dict)
    activations = trace.layout.tp > 1 and not trace.layout.sp
    for rank, points in trace.points.items():
        place = trace.layout.coordinates(rank)
        same_tokens = tuple((axis, i) for axis, i in place.items() if axis != "tp")
        for point in points:
            if "parameter" in point.kind:
                found[point[:4]][rank] = point
            elif activations and point.module != "head":
                found[*point[:4], same_tokens][rank] = point
    several = [of for of in found.values() if len(of) > 1]
    if not several:
        raise ValueError(
            f"on {trace.layout} no two ranks hold the same slice of a parameter or compute the "
            "same activations, so there is nothing to compare; compare two runs: "
            "compare_steps(a, b)"
        )
    return several


def _both(a: StepTrace, b: StepTrace) -> list[Mapping[Any, Point]]:
    """The points of two runs: (run, rank) -> it."""
    if a.layout != b.layout:
        raise ValueError(
            f"the runs have other layouts, {a.layout} and {b.layout}, so their ranks hold other "
            "slices and round in another order; pico.verify compares a layout with one process"
        )
    if a.step != b.step:
        raise ValueError(f"one run noted step {a.step}, the other step {b.step}; note the same")
    found: dict[tuple, dict[tuple[str, int], Point]] = defaultdict(dict)
    for run, trace in (("a", a), ("b", b)):
        for rank, points in trace.points.items():
            for point in points:
                found[rank, *point[:4]][run, rank] = point
    alone = next((of for of in found.values() if len(of) < 2), None)
    if alone is not None:
        ((run, rank), point), *_ = alone.items()
        raise ValueError(
            f"only run {run} has {point.what} in {point.module} on rank {rank}: the two trained "
            "other models, or other micro-batches"
        )
    return list(found.values())
