"""Chapter 6, monitoring: what to watch, what is wrong, and whose it is."""

from picolab.chapters.c06_monitoring.roc_figure import area, roc_figure
from picolab.chapters.record import Chapter
from picolab.exercises.catalogue import About

__all__ = ["CHAPTER", "area", "nudged", "on_call", "roc_figure", "switchboard"]


def switchboard(layout: str, steps: int, pace_s: float = 0.03, **settings):
    """Section 3: a run that goes on, and a button for each fault."""
    from picolab.chapters.c06_monitoring.live_faults import Switchboard

    return Switchboard(layout, steps, pace_s, settings)


def nudged(name: str, rank: int, at: int):
    """The observer of section 7: one weight of one rank has another last bit."""
    from picolab.chapters.c06_monitoring.one_bit import Nudged

    return Nudged(name, rank, at)


def on_call(seed: int, layout: str = "dp4", **settings):
    """Section 9: five runs with hidden faults, in about twenty seconds."""
    from picolab.chapters.c06_monitoring.night import OnCall

    return OnCall(seed, layout, settings)


_EXERCISES = {
    "monitoring.spike.robust": About("spike", "One value far above the others", 15, 2),
    "monitoring.drift.cusum": About("drift", "A level that has changed for good", 20, 3),
    "monitoring.histogram.bounded": About(
        "histogram", "Quantiles over ranks, with a bounded error", 20, 4, starred=True
    ),
    "monitoring.arrival.lateness": About(
        "lateness", "Who is late, what is waiting, what is transfer", 20, 4, starred=True
    ),
    "monitoring.hang.who_waits": About("who_waits", "Who waits for whom", 20, 3),
    "monitoring.alerts.inhibit": About("inhibit", "From conditions to messages", 20, 3),
    "interview.monitoring.finite": About("interview_finite", "Whose number it was", 15, 3),
    "interview.monitoring.rate": About(
        "interview_rate", "Growth over restarts and missing readings", 15, 2
    ),
    "interview.monitoring.desync": About("interview_desync", "Where the scripts part", 15, 3),
}

_COVERED = {
    "picolab.monitoring.rules.Spike": "monitoring.spike.robust",
    "picolab.monitoring.rules.Drift": "monitoring.drift.cusum",
    "picolab.monitoring.blame.of_hang": "monitoring.hang.who_waits",
    "picolab.monitoring.blame.missing": "monitoring.hang.who_waits",
    "picolab.monitoring.blame.awaits": "monitoring.hang.who_waits",
    "picolab.monitoring.who_waits.of_standstill": "monitoring.hang.who_waits",
    "picolab.monitoring.alerts.AlertManager.observe": "monitoring.alerts.inhibit",
    "picolab.monitoring.alerts.AlertManager._advance": "monitoring.alerts.inhibit",
    "picolab.monitoring.alerts.AlertManager._pending": "monitoring.alerts.inhibit",
    "picolab.monitoring.alerts.AlertManager._hidden": "monitoring.alerts.inhibit",
}

CHAPTER = Chapter(
    notebook="06_monitoring",
    key="monitoring",
    title="Monitoring",
    evenings=(("06_monitoring", 56, "what to watch; faults found, alerts, a hang read by rank"),),
    topic="monitoring",
    areas={
        "goodput": "Throughput, MFU and goodput",
        "slow": "Slow ranks and slow links",
        "detect": "Detecting, and false alarms",
        "numbers": "Bad numbers, spikes and silent errors",
        "metrics": "Metrics and what they cost",
        "alerts": "Alerts",
        "hangs": "Hangs, desyncs and dead ranks",
        "fleet": "A fleet",
    },
    taught=tuple(f"mon-{number:03}" for number in (3, 6, 8, 11, 12, 13, 14, 16, 27, 30, 33, 34)),
    counts={"questions": 37, "numeric": 13, "code": 3, "diagnose": 4, "warm_ups": 11},
    exercises={id: about.within(__name__) for id, about in _EXERCISES.items()},
    mysteries=f"{__name__}.mysteries",
    cheatsheet=f"{__name__}.cheatsheet",
    covered=_COVERED,
)
