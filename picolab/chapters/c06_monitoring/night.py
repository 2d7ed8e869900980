"""Section 9: five runs with hidden faults. The reader looks and says what is wrong; then the
monitor says it, and both are scored.

The seed draws which five of the pool, in which order, on which ranks and in which steps. The
monitor hears the same events as it would live, and is scored as tests/benchmarks/detection.py does:
found is under the fault's name, and right is with its rank; whoever else is named is accused.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from picolab.debug.run_faults import CATALOGUE, InRun, Pace
from picolab.launch import RankFailure
from picolab.monitoring import History
from picolab.monitoring.anomalies import Anomaly, work_of
from picolab.monitoring.system import BasicMonitoringSystem
from picolab.show.picture import GROUPS, LabFigure, template
from picolab.show.table import Table
from picolab.training.probe import Probe

KINDS = {
    "slow pace": "one rank computes for longer",
    "late data": "one rank waits for its batches",
    "loss spike": "one rank had one bad batch",
    "gradient spike": "one rank had one steep gradient",
    "NaN": "a number that is none",
    "dead rank": "one rank has died",
    None: "nothing is wrong",
}
"""fault -> how a reader calls it"""
PACE_S, STEPS, SLOWER = 0.02, 56, 0.5


@dataclass
class Case:
    fault: str | None
    rank: int
    at: int
    events: History | None = None
    anomalies: tuple[Anomaly, ...] = ()

    @property
    def what(self) -> str:
        return KINDS[self.fault]

    @property
    def hits(self) -> list[Anomaly]:
        if self.fault is None:
            return []
        names = CATALOGUE[self.fault].found_as
        return [
            a for a in self.anomalies
            if a.name in names and (a.step is None or a.step >= self.at)
        ]  # fmt: skip

    @property
    def right(self) -> bool:
        """The monitor names the fault with its rank; or nobody, where there is nothing."""
        if self.fault is None:
            return not any(a.ranks for a in self.anomalies)
        return any(a.ranks == (self.rank,) for a in self.hits)

    @property
    def accused(self) -> int:
        """Findings that name a rank which did nothing."""
        did = set() if self.fault is None else {self.rank}
        return sum(not set(a.ranks) <= did for a in self.anomalies)


class OnCall:
    """`figure(i)` for the reader's eyes, `what(i)` the truth, `scored(...)` the table at the end.
    Runs are numbered from 1."""

    def __init__(self, seed: int, layout: str, settings: dict):
        draw = random.Random(f"on call {seed}")
        faults = draw.sample(list(KINDS), 5)
        world = int(layout.removeprefix("dp"))
        self.cases = [Case(f, draw.randrange(world), 34 + draw.randrange(8)) for f in faults]
        for number, case in enumerate(self.cases):
            _happens(case, layout, settings | {"seed": seed + number})

    kinds = tuple(KINDS.values())

    def what(self, number: int) -> str:
        return self.cases[number - 1].what

    def figure(self, number: int) -> LabFigure:
        return case_figure(self.cases[number - 1].events, f"Run {number}")

    def scored(self, asked: Sequence[Any]) -> "Scored":
        """asked: what `pico.guess` returned, run by run."""
        return Scored(self.cases, asked)


def _happens(case: Case, layout: str, settings: dict) -> None:
    from picolab.training import train

    observers = [Probe(), Pace(PACE_S)]
    if case.fault is not None:
        fault = InRun(case.fault, rank=case.rank, at=case.at, slower=SLOWER, pace_s=PACE_S)
        observers.append(fault)
    job = train("tiny", layout, steps=STEPS, observers=observers, progress=False, wait=False,
                **settings)  # fmt: skip
    try:
        case.events = job.result().events
    except RankFailure:
        case.events = job.events
    system = BasicMonitoringSystem({"notify": [], "samples": False}).read(case.events)
    case.anomalies = tuple(system.anomalies)


class Scored:
    """The table, made when it is looked at: guesses may have been given since."""

    def __init__(self, cases: list[Case], asked: Sequence[Any]):
        self.cases, self.asked = cases, asked

    def table(self) -> Table:
        rows, mine, tools = [], 0, 0
        for number, (case, asked) in enumerate(zip(self.cases, self.asked, strict=True), 1):
            found = asked.value == case.what
            mine += found
            tools += case.right
            first = next((a for a in case.hits if a.ranks == (case.rank,)), None)
            delay = first.step - case.at if first and first.step is not None else ""
            whose = "" if case.fault is None else case.rank
            said = "right" if case.right else "wrong rank" if case.hits else "not found"
            you = "right" if found else "skipped" if asked.how == "skipped" else "wrong"
            rows.append([number, case.what, whose, you, said, delay, case.accused])
        columns = ["run", "what it was", "rank", "you", "the monitor", "steps late",
                   "false accusations"]  # fmt: skip
        return Table(columns, rows, f"You: {mine} of {len(rows)}. The monitor: {tools}")

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


# -- what a reader sees --


def case_figure(events, name: str) -> LabFigure:
    """Four lines a rank: its own loss, its own gradient's norm, its own time outside of collectives
    and of it what it waited for its batch."""
    said = {(e.rank, e.data["step"]): e.data for e in events if e.kind == "step"}
    entries: dict[tuple, list] = {}
    for event in events:
        if event.kind == "ledger":
            for entry in event.data["entries"]:
                entries.setdefault((entry.rank, entry.step), []).append(entry)
    ranks, lines = sorted({rank for rank, _ in said}), {}
    for rank in ranks:
        steps = sorted(step for r, step in said if r == rank and step)
        work = {step: work_of(said[rank, step], entries.get((rank, step), [])) for step in steps}
        lines[rank] = {
            "its own loss": [said[rank, s]["own_loss"] for s in steps],
            "its own gradient's norm": [said[rank, s]["own_grad_norm"] for s in steps],
            "its own time, ms": [1e3 * work[s].own for s in steps],
            "of it, waited for its batch, ms": [1e3 * work[s].data for s in steps],
        }
    return LabFigure(_text(lines, name), lambda: _build(lines, name))


def _text(lines: dict, name: str) -> str:
    rows = []
    for rank, of in lines.items():
        row = [rank, len(next(iter(of.values())))]
        for values in of.values():
            there = [v for v in values if v is not None]
            row += [median(there[5:30]), median(there[-16:]), max(there)]
        rows.append(row)
    columns = ["rank", "steps"]
    for what in ("loss", "norm", "own ms", "batch ms"):
        columns += [f"{what}: before", "at the end", "most"]
    return repr(Table(columns, rows, name))


def _build(lines: dict, name: str):
    from plotly.subplots import make_subplots

    kinds = list(next(iter(lines.values())))
    figure = make_subplots(2, 2, subplot_titles=kinds, vertical_spacing=0.16)
    for rank, of in lines.items():
        for place, values in enumerate(of.values()):
            figure.add_scatter(
                x=list(range(1, len(values) + 1)), y=values, mode="lines", name=f"rank {rank}",
                legendgroup=rank, showlegend=place == 0, line={"color": GROUPS[rank], "width": 1.5},
                row=place // 2 + 1, col=place % 2 + 1,
            )  # fmt: skip
    figure.update_xaxes(range=[0, STEPS])  # of all runs alike: one that ends early is seen
    figure.update_xaxes(title_text="step", row=2)
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(
        template=template(), height=460, title={"text": name}, margin={"t": 96},
        legend={"orientation": "h", "y": 1.1, "yanchor": "bottom", "x": 0.3},
    )  # fmt: skip
    return figure
