"""`picolab demo memory`: a minute in a terminal. Where a step's bytes go; what a budget makes of
it, block by block and why; and that the peak stays under it."""

from collections.abc import Iterator

from picolab.memory import MemoryMonitor, MemoryReport
from picolab.memory.scheduler import Cost, Measured, MemoryPlan
from picolab.memory.watch import CATEGORIES
from picolab.show.table import bytes_text
from picolab.training.start import train

SHARES = (0.6, 0.2)
"""Of the way from the least budget to what keeping everything takes."""
WIDTH, LINES = 60, 16
SHOWN = {"activations": "#", "temporaries": "+", "pool": "o"}
"""How a timeline's bytes are drawn; all that a step has throughout is a line of dots."""


def memory_demo(**settings) -> Iterator[object]:
    """What to print, one after the other. settings: of `train`."""
    settings = {"model": "tiny", "data": "random", "steps": 3, "progress": False, **settings}
    yield "1. Everything is kept. Of the second step of rank 0:"
    plain = _report(train(**settings, observers=[MemoryMonitor()]))
    yield plain.table()
    yield timeline(plain)
    most = plain.most["total"]
    least = next(_plan_events(train(**settings, memory_budget=2 * most)))["least"]
    for number, share in enumerate(SHARES, 2):
        budget = round(least + share * (most - least))
        yield (
            f"{number}. With memory_budget={budget:,}, between the least ({bytes_text(least)}) and "
            f"what keeping takes ({bytes_text(most)}):"
        )
        result = train(**settings, memory_budget=budget, observers=[MemoryMonitor()])
        (plan, measured), *_ = plans(result)
        yield plan.table(measured)
        seen = _report(result)
        yield timeline(seen, budget)
        kept = "kept" if seen.most["total"] <= budget else "NOT kept"
        yield f"   peak {seen.most['total']:,} bytes: the budget is {kept}."


def plans(result) -> list[tuple[MemoryPlan, Measured]]:
    """Of each rank, what was chosen, and what was known of its blocks."""
    found = []
    for data in _plan_events(result):
        blocks = tuple({c: Cost(*cost) for c, cost in of.items()} for of in data["blocks"])
        plan = MemoryPlan(tuple(data["choices"]), data["peak"], data["seconds"])
        found.append((plan, Measured(blocks)))
    return found


def _plan_events(result) -> Iterator[dict]:
    found = [event for event in result.events if event.kind == "memory plan"]
    return (event.data for event in sorted(found, key=lambda event: event.rank))


def timeline(report: MemoryReport, budget: int | None = None) -> str:
    """The step from top to bottom, bytes from left to right."""
    full = max(report.most["total"], budget or 0)
    points = report.timeline
    every = max(1, len(points) // LINES)
    lines = []
    for i in range(0, len(points), every):
        seconds, *alive = max(points[i : i + every], key=lambda point: sum(point[1:]))
        by = dict(zip(CATEGORIES, alive))
        rest = sum(by.values()) - sum(by[name] for name in SHOWN)
        bar = "." * round(WIDTH * rest / full)
        bar += "".join(sign * round(WIDTH * by[name] / full) for name, sign in SHOWN.items())
        if budget is not None:
            at = round(WIDTH * budget / full)
            bar = f"{bar:<{at}}|" if len(bar) <= at else bar
        lines.append(f"   {seconds * 1e3:7.1f} ms  {bar}")
    signs = ", ".join(f"{sign} {name}" for name, sign in SHOWN.items())
    lines.append(f"   . states and the rest, {signs}" + ", | the budget" * (budget is not None))
    return "\n".join(lines)


def _report(result) -> MemoryReport:
    return MemoryReport.of(result.events)[0]
