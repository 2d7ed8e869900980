"""Of each exercise the nearest that the chapter's cells have, as ../test_given_away.py asks."""

import json
import math
import re
import statistics
from pathlib import Path
from types import SimpleNamespace

import torch

import picolab as pico
from picolab.monitoring.alert_rules import Duration, Hit, Rule

CHAPTER = Path(__file__).resolve().parents[3] / "notebooks" / "06_monitoring.ipynb"


def cell(cell_id: str, mutant: tuple[str, str] | None = None, **known) -> dict:
    """The names that this cell defines, with one edit of its text if a mutant is asked for. known:
    what cells before it have defined."""
    cells = json.loads(CHAPTER.read_text(encoding="utf-8"))["cells"]
    (text,) = ("".join(cell["source"]) for cell in cells if cell["id"] == cell_id)
    if mutant is not None:
        assert mutant[0] in text, f"the lesson no longer says {mutant[0]!r}: renew the mutant"
        text = text.replace(*mutant, 1)
    names = {
        "__name__": "__main__", "pico": pico, "torch": torch, "math": math,
        "statistics": statistics, "Duration": Duration, "Hit": Hit, "Rule": Rule,
    }  # fmt: skip
    names |= known
    exec(compile(text, "chapter", "exec"), names)
    return names


def z_score():
    """Section 2's detector."""
    made = cell("detector-by-hand")["ZScore"]

    def adapted(values, window, sigmas, factor):
        detector = made(sigmas, window)
        return [detector.add(value) for value in values]

    return adapted


def z_score_of_a_level():
    made = cell("detector-by-hand")["ZScore"]

    def adapted(values, first):
        detector = made()
        return [(at, +1) for at, value in enumerate(values) if detector.add(value)]

    return adapted


def packages_drift():
    """What section 2 calls of the package: of logarithms, and rises only."""

    def adapted(values, first):
        detector = pico.monitoring.rules.Drift(least=first)
        return [(at, +1) for at, value in enumerate(values) if detector.add(value)]

    return adapted


def sort():
    """Section 4 sorts what one process has."""

    def adapted(values, shares, error, axis):
        ordered = values[~values.isnan()].double().sort().values
        if not len(ordered):
            return [math.nan for _ in shares]
        return [ordered[max(1, math.ceil(q * len(ordered))) - 1].item() for q in shares]

    return adapted


def arrivals():
    """Section 1's function: one clock, and every rank is there."""
    of_one = cell("slow-by-hand")["arrivals"]

    def adapted(entered, left, least, usual):
        waited, transfer, lateness = [], [], {}
        for into, out in zip(entered[1:], left[1:]):
            there = [rank for rank, at in enumerate(into) if at is not None]
            entries = [
                SimpleNamespace(
                    rank=r, start=into[r], exposed_s=out[r] - into[r], seconds=out[r] - into[r]
                )
                for r in there
            ]
            found = of_one(entries)
            waited.append([found[r][0] if r in found else None for r in range(len(into))])
            transfer.append(found[there[0]][1])
            for r in there:
                lateness.setdefault(r, []).append(found[r][2])
        late = [r for r, of in sorted(lateness.items()) if statistics.median(of) > least]
        return waited, transfer, late, statistics.median(transfer) > 3 * usual

    return adapted


def behind():
    """Section 6 reads whose number is behind."""

    def adapted(groups, entered, inside):
        done = {rank: sum(of.values()) for rank, of in entered.items()}
        return [rank for rank in sorted(done) if done[rank] == min(done.values())]

    return adapted


def each_alone():
    """Section 5's rule, for each condition by itself."""
    told_of = cell("alert-rule")["told_of"]

    def adapted(steps, hold, quiet, hides):
        messages = []
        for name, rank in sorted({key for true in steps for key in true}):
            above = [(name, rank) in true for true in steps]
            for text in told_of(f"{hold} steps", f"{quiet} steps", above):
                state = "resolved" if text.startswith("resolved") else "firing"
                at = int(re.search(r"\(step (\d+)\)", text)[1])
                messages.append((at, state, name, rank))
        return sorted(messages, key=lambda told: (told[0], told[1] == "firing", *told[2:]))

    return adapted


NEAREST = {
    "monitoring.spike.robust": [z_score],
    "monitoring.drift.cusum": [z_score_of_a_level, packages_drift],
    "monitoring.histogram.bounded": [sort],
    "monitoring.arrival.lateness": [arrivals],
    "monitoring.hang.who_waits": [behind],
    "monitoring.alerts.inhibit": [each_alone],
}
