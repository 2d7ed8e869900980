"""`pico.plan`: the question, and the answer as a table, as text and as JSON."""

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from picolab import costs
from picolab.planner.blocks import refined
from picolab.planner.blocks import table as table_of_blocks
from picolab.planner.changes import Change, remedy, smallest_changes
from picolab.planner.costing import Candidate, Costing
from picolab.planner.request import Request
from picolab.planner.search import BEST, Searched, order, search
from picolab.planner.verdict import Verdict, cuts, judge, objection
from picolab.show.table import Table
from picolab.specs import Hardware, Layout, ModelConfig


def plan(
    model: ModelConfig | str,
    gpus: int | None = None,
    hardware: Hardware | str = "h100",
    *,
    global_batch: int,
    seq: int | None = None,
    layout: Layout | str | None = None,
    micro_batch: int | None = None,
    recompute: str | None = None,
    practice: Any = None,
    imbalance: float = 1.0,
) -> "Plan | Judged":
    """Every layout of so many devices with a verdict, the ten fastest first; or, with `layout`, the
    verdict on that one.

        pico.plan("llama-3-70b", 256, "h100", seq=8192, global_batch=1024)
        pico.plan("llama-3-70b", layout="dp8zero3tp8pp8:interleaved", global_batch=1024)

    model         a preset, a ModelConfig, or a folder with a Hugging Face config.json
    gpus          devices; may be left out where the layout says it
    hardware      a preset ("h100"), a JSON file, or a Hardware, such as a measured one
    seq           tokens of a sequence; None: the model's
    global_batch  sequences of one optimizer step
    micro_batch, recompute   of a judged layout; None: the fastest that fit
    practice      how the code is written, see `planner.PRACTICES`
    imbalance     of routing: the rows of the rank of ep with the most, over the mean

    Searched are dp, tp, pp, cp, ep, zero, sp, micro-batch, recomputation and all schedules but
    dualpipe-v; that one and shard groups of ZeRO are judged where `layout` names them.
    Recomputation is proposed layer by layer: how many layers of each stage keep everything,
    recompute selectively, or recompute. (The search itself lets all layers do the same; the twenty
    fastest get their mix.)
    What is reported are estimates, from data sheets and one fitted set of efficiencies; how far
    they are off on published runs, tests/unit/planner/test_published.py prints row by row.
    """
    given = None if layout is None else Layout.parse(layout)
    if gpus is None and given is None:
        raise ValueError("how many devices? say gpus, as in gpus=256")
    request = Request(
        model=model, gpus=given.world if gpus is None else gpus, hardware=hardware, seq=seq,
        global_batch=global_batch, practice=practice, imbalance=imbalance,
    )  # fmt: skip
    if given is None:
        for name, value in (("micro_batch", micro_batch), ("recompute", recompute)):
            if value is not None:
                raise ValueError(f"{name} is of one layout; give the layout too")
        return Plan(search(request))
    costing = Costing(request)
    given.check_world(request.gpus, lambda layout: objection(costing, layout) is None)
    _check_cut(costing, given, micro_batch)
    if recompute not in (None, *costs.RECOMPUTE):
        raise ValueError(
            f"recompute {recompute!r} is not known; it is {', '.join(costs.RECOMPUTE)}"
        )
    verdict = judge(costing, given, micro_batch=micro_batch, recompute=recompute)
    if recompute is None:
        verdict = refined(verdict, micro_batch)
    return Judged(costing, verdict, micro_batch, recompute)


def _check_cut(costing: Costing, layout: Layout, micro_batch: int | None) -> None:
    if micro_batch is None or costing.request.global_batch % layout.dp:
        return
    sequences = costing.request.global_batch // layout.dp
    whole = isinstance(micro_batch, int) and not isinstance(micro_batch, bool)
    if not whole or micro_batch < 1 or sequences % micro_batch:
        raise ValueError(
            f"micro_batch is {micro_batch!r}; the {sequences:,} sequences of a replica are cut "
            f"into equal ones, so take one of {', '.join(map(str, cuts(costing, layout)))}"
        )
    if not costing.holds(layout, sequences // micro_batch):
        possible = ", ".join(map(str, cuts(costing, layout))) or "another schedule"
        raise ValueError(
            f"micro_batch {micro_batch} gives {sequences // micro_batch} micro-batches, which "
            f"{layout.schedule} on {layout.pp} stages cannot have; take {possible}"
        )


class _Shown:
    """Shown as its tables, one below the other."""

    def __rich__(self):
        from rich.console import Group

        return Group(*self.shown())

    def __repr__(self) -> str:
        return "\n\n".join(map(str, self.shown()))

    def _repr_html_(self) -> str:
        parts = self.shown()
        return "".join(
            part._repr_html_() if isinstance(part, Table) else f"<p>{part}</p>" for part in parts
        )


@dataclass(frozen=True, eq=False, repr=False)
class Plan(_Shown):
    """All layouts of a request."""

    searched: Searched

    @property
    def best(self) -> list[Verdict]:
        """The ten fastest, the fastest first."""
        return self._living[:BEST]

    @cached_property
    def _living(self) -> list[Verdict]:
        """The fastest of the search, which lets all layers recompute the same, each with its mix
        layer by layer; and the others."""
        living = self.searched.living
        return [*sorted(map(refined, living[: 2 * BEST]), key=order), *living[2 * BEST :]]

    @property
    def verdicts(self) -> list[Verdict]:
        """The whole table: those that live, those too slow to be looked at, those that died."""
        return [*self._living, *self.searched.slower, *self.searched.dead]

    @cached_property
    def remedy(self) -> str | None:
        """Where nothing lives: the smallest thing that would help."""
        return None if self.best else remedy(self.searched.costing)

    def shown(self) -> list:
        if self.remedy:
            return [self.remedy, self.deaths()]
        request = self.searched.request
        title = (
            f"{request.model.name} on {request.gpus:,} x {request.hardware.name}, "
            f"{request.global_batch:,} x {request.seq:,} tokens a step: the "
            f"{len(self.best)} fastest of {len(self.verdicts):,} layouts and splits (estimates)"
        )
        table = verdict_table(self.searched.costing, self.best, title)
        return [table, *unknown_speed(request), self.deaths()]

    def whole(self) -> Table:
        """A row for each verdict."""
        return verdict_table(self.searched.costing, self.verdicts, "all verdicts")

    def deaths(self) -> Table:
        """What kills how many, and the nearest miss of each."""
        counts = Counter(v.killed_by.constraint for v in self.searched.dead)
        rows = []
        for constraint, count in counts.items():
            nearest = next(v for v in self.searched.dead if v.killed_by.constraint == constraint)
            rows.append([constraint, count, f"{nearest.layout}: {nearest.killed_by.sentence}"])
        slower = self.searched.slower
        if slower:
            nearest = f"{slower[0].layout}: a step of at least {slower[0].at_least_s:.4g} s"
            rows.append(["slower than the ten", len(slower), nearest])
        return Table(["not among them", "how many", "the nearest miss"], rows)

    def to_json(self) -> str:
        costing = self.searched.costing
        return json.dumps(
            {
                **_asked(costing.request),
                "remedy": self.remedy,
                "best": [as_dict(costing, verdict) for verdict in self.best],
                "layouts": [as_dict(costing, verdict) for verdict in self.verdicts],
            }
        )


@dataclass(frozen=True, eq=False, repr=False)
class Judged(_Shown):
    """The verdict on one layout."""

    costing: Costing
    verdict: Verdict
    micro_batch: int | None
    recompute: str | None

    @property
    def fits(self) -> bool:
        return bool(self.verdict.fits)

    @cached_property
    def changes(self) -> list[Change]:
        """If it dies: the three smallest changes with which it lives."""
        if self.fits:
            return []
        return smallest_changes(
            self.costing, self.verdict.layout, micro_batch=self.micro_batch,
            recompute=self.recompute,
        )  # fmt: skip

    def shown(self) -> list:
        verdict, request = self.verdict, self.costing.request
        title = (
            f"{verdict.candidate or verdict.layout} on {request.gpus:,} x {request.hardware.name}"
        )
        if self.fits:
            parts = [f"{title}: lives, and {_dominated(verdict)}", self.times()]
            parts += [*unknown_speed(request), self.stages()]
            if verdict.candidate.recomputes == "mixed":
                parts.append(table_of_blocks(self.costing, verdict.candidate))
        else:
            parts = [f"{title}: dies of {verdict.killed_by.constraint}", verdict.killed_by.sentence]
            parts += [self.stages()] if verdict.candidate else []
            parts.append(self.changes_table())
        return parts

    def times(self) -> Table:
        """Seconds of a step, by term."""
        step = self.verdict.step_s
        rows = [[term, s, 100 * s / step] for term, s in self.verdict.seconds.items() if s > 0]
        rows.append(["step", step, 100.0])
        request = self.costing.request
        share = 100 * mfu(self.costing, self.verdict)
        title = f"{request.tokens / step:,.0f} tokens/s, MFU {share:.1f} %"
        return Table(["term", "seconds", "% of the step"], rows, title=title)

    def stages(self) -> Table:
        """GB by category, for each place on pp."""
        held = self.costing.memory_by_place(self.verdict.candidate)
        used = [category for category in held[0] if any(place[category] for place in held)]
        rows = [
            [i, *(place[category] / 1e9 for category in used), sum(place.values()) / 1e9]
            for i, place in enumerate(held)
        ]
        room = self.costing.request.memory_bytes / 1e9
        title = f"GB a rank, of {room:.1f} that tensors may use"
        return Table(["stage", *used, "total"], rows, title=title)

    def changes_table(self) -> Table | str:
        if not self.changes:
            return remedy(self.costing)
        rows = [
            [str(change), str(change.verdict.candidate), change.verdict.memory_bytes / 1e9,
             change.verdict.step_s]
            for change in self.changes
        ]  # fmt: skip
        return Table(
            ["it would live with", "which is", "GB", "step s"], rows, title="The smallest changes:"
        )

    def to_json(self) -> str:
        changes = [
            {"changed": {name: list(pair) for name, pair in change.settings.items()},
             **as_dict(self.costing, change.verdict)}
            for change in self.changes
        ]  # fmt: skip
        found = as_dict(self.costing, self.verdict)
        return json.dumps({**_asked(self.costing.request), **found, "changes": changes})


def mfu(costing: Costing, verdict: Verdict) -> float:
    """Model flops (see `costs.flops_per_token`) over what the devices could do in a step."""
    request = costing.request
    devices = min(request.gpus, request.hardware.cores or request.gpus)
    peak = request.hardware.matrix_flops(request.practice.multiplied)
    return request.model_flops / (verdict.step_s * devices * peak)


def unknown_speed(request: Request) -> list[str]:
    """A sentence, where products are planned at the speed of another format."""
    practice, hardware = request.practice, request.hardware
    if practice.states == "adaptive":
        return [
            "adaptive chooses each layer's format in the run, so its products are planned at "
            "fp32's speed"
        ]
    unknown = [of for of in (practice.multiplied, practice.dtype) if not hardware.knows(of)]
    if not unknown:
        return []
    measured = " measured" if hardware.measured else ""
    return [
        f"there is no{measured} rate of {unknown[0]} for {hardware.name}, so its products are "
        f"planned at {hardware.peak_formats[0]}'s speed"
    ]


def _dominated(verdict: Verdict) -> str:
    lost = _lost(verdict)
    return f"is dominated by {verdict.dominated_by}" + (f"; most is lost to {lost}" if lost else "")


def _lost(verdict: Verdict) -> str:
    """The term that takes most apart from compute, if it is a thousandth or more."""
    term = verdict.lost_to
    share = verdict.seconds[term] / verdict.step_s if term else 0
    return f"{term}, {100 * share:.1f} %" if share >= 0.001 else ""


def verdict_table(costing: Costing, verdicts: list[Verdict], title: str) -> Table:
    """A row for each verdict."""
    columns = ("layout", "micro-batch", "recompute", "GB", "step s", "tokens/s", "MFU %")
    rows = []
    for verdict in verdicts:
        if verdict.fits:
            rows.append(
                [
                    str(verdict.layout), verdict.candidate.micro_batch,
                    recomputes(verdict.candidate), verdict.memory_bytes / 1e9, verdict.step_s,
                    round(costing.request.tokens / verdict.step_s),
                    100 * mfu(costing, verdict), verdict.dominated_by,
                    _lost(verdict),
                ]
            )  # fmt: skip
        elif verdict.killed_by:
            why = f"{verdict.killed_by.constraint}: {verdict.killed_by.sentence}"
            rows.append([str(verdict.layout), *[None] * 6, "dies", why])
        else:
            why = f"a step of at least {verdict.at_least_s:.4g} s"
            rows.append([str(verdict.layout), *[None] * 6, "slower", why])
    return Table([*columns, "dominated by", "loses most to"], rows, title=title)


def recomputes(candidate: Candidate) -> str:
    """In a word, or what the first place on pp does; it has most to keep."""
    if isinstance(candidate.recompute, str):
        return candidate.recompute
    first, more = candidate.recompute[0], len(set(candidate.recompute)) > 1
    return f"{first}" + (" on stage 0" if more else "")


def layers_of(costing: Costing, candidate: Candidate) -> list[dict[str, int]]:
    """For JSON: of each place on pp, how many layers do what."""
    layout = candidate.layout
    where = layout.pp, layout.schedule, layout.stages
    return [
        dict(zip(("keep", "selective", "recompute"), map(sum, zip(*mix))))
        for _, mix in costing.mixes(where, candidate.recompute)
    ]


def _asked(request: Request) -> dict[str, Any]:
    return {
        "model": request.model.name,
        "gpus": request.gpus,
        "hardware": request.hardware.name,
        "seq": request.seq,
        "global_batch": request.global_batch,
        "remarks": unknown_speed(request),
    }


def as_dict(costing: Costing, verdict: Verdict) -> dict[str, Any]:
    """A verdict for JSON."""
    found: dict[str, Any] = {"layout": str(verdict.layout), "fits": verdict.fits}
    killed = verdict.killed_by
    found["killed_by"] = None
    if killed:
        found["killed_by"] = {
            "constraint": killed.constraint, "number": killed.number, "limit": killed.limit,
            "sentence": killed.sentence,
        }  # fmt: skip
    if verdict.at_least_s is not None:
        found["at_least_s"] = verdict.at_least_s
    if verdict.candidate is None:
        none = ("memory_bytes", "seconds", "tokens_per_s", "mfu", "dominated_by")
        return found | dict.fromkeys(none)
    return found | {
        "micro_batch": verdict.candidate.micro_batch,
        "micro_batches": verdict.micro_batches,
        "recompute": verdict.candidate.recomputes,
        "layers": layers_of(costing, verdict.candidate),
        "memory_bytes": {"worst_stage": verdict.memory_bytes, "by_category": verdict.memory},
        "seconds": {"step": verdict.step_s, "by_term": verdict.seconds},
        "tokens_per_s": costing.request.tokens / verdict.step_s,
        "mfu": mfu(costing, verdict),
        "dominated_by": verdict.dominated_by,
    }
