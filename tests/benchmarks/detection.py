"""Does the monitor find what is wrong, and accuse nobody else?

    python tests/benchmarks/detection.py [--seeds 30] [--clean 6] [--only NAME ...] [--seconds 3600]
                                         [--results FILE]

With --results each run is appended to the file when it is over, and those that are in it already
are not done again: the same command goes on where it was interrupted, or where --seconds ended it.
The tables are of all that the file holds of what is asked for.

Every fault of `debug.run_faults` is put into a real training run, once a seed; the seed draws the
culprit and the step. The detector hears what the notebook hears. Scored strictly: found means
under one of its names *and* with the right rank (or link, or nobody, where it is nobody's); every
finding that names another rank is a false accusation, also after the hit. Hangs are found by the
monitor's own timer, while they hang.

Printed: recall and right rank with Wilson's 95 % interval, delay in steps, false accusations; for
runs without a fault, false accusations per rank-step, and apart what names nobody: on a busy
machine ranks wait for a core, which is told as a busy host.
"""

import argparse
import json
import math
import random
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import picolab as pico
from picolab.debug.run_faults import CATALOGUE, InRun, Pace, Quiet
from picolab.monitoring.anomalies import Anomaly
from picolab.monitoring.system import BasicMonitoringSystem
from picolab.show.table import Table
from picolab.training.probe import Probe

# What a rank sleeps in a step, in the place of a device of its own. Four ranks on two cores compute
# 15 to 30 ms beside it, each a few ms more or less than the others: a small part of a pace is seen
# in a longer one only.
PACE_S, LONG_PACE_S, LONGEST_PACE_S = 0.04, 0.1, 0.2
SMALL = dict(hidden=32, ffn=48, layers=2, heads=4, kv_heads=2, vocab=256, seq=32)
# (256 tokens a rank: own losses of 16 differ by half, and gradients of some by seven times.)
NUMBERS = dict(layout="dp4", micro_batch=8, steps=70, **SMALL)
PACED = dict(layout="dp4", micro_batch=4, steps=90, **SMALL)
RING = dict(layout="cp4", micro_batch=2, **SMALL | {"seq": 64})
HANGS = dict(layout="dp4", micro_batch=4, steps=45, **SMALL)
# fault -> the settings of its run, and what is between the names (the step is drawn about `at`).
RUNS: dict[str, dict] = {
    "slow rank": dict(
        settings=dict(layout="dp2", hidden=64, ffn=176, layers=4, heads=4, kv_heads=2, seq=64,
                      micro_batch=8, steps=75), at=45),
    "slow pace": dict(settings=PACED, at=50, pace=PACE_S),
    "slow pace +15 %": dict(
        settings=PACED | dict(steps=70), at=42, pace=LONGEST_PACE_S, fault="slow pace",
        slower=0.15),
    "slow stage": dict(
        settings=dict(layout="pp4", micro_batch=2, accumulate=4, steps=75,
                      stage_cost_s=(0.005, 0.01), **SMALL | {"layers": 4}), at=45),
    "all ranks slow": dict(settings=PACED, at=36, pace=LONG_PACE_S, slower=0.2),
    "late data": dict(settings=PACED, at=45, pace=PACE_S),
    "slow link": dict(
        settings=dict(layout="pp4", micro_batch=2, accumulate=4, steps=75,
                      stage_cost_s=(0.001, 0.002), **SMALL | {"layers": 4}), at=45, first=1),
    "slow link, a ring": dict(
        settings=RING | dict(steps=75), at=45, first=1, pace=PACE_S, fault="slow link"),
    "leak": dict(settings=NUMBERS | dict(steps=110), at=50),
    "NaN": dict(settings=NUMBERS, at=50),
    "loss spike": dict(settings=NUMBERS, at=50),
    "gradient spike": dict(settings=NUMBERS, at=50),
    "expert collapse": dict(
        settings=dict(model="tiny-moe", layout="dp2ep2", hidden=32, heads=4, kv_heads=2, seq=32,
                      layers=2, micro_batch=4, steps=60), at=35),
    "skipped step": dict(settings=HANGS, at=30),
    "extra collective": dict(settings=HANGS, at=30),
    "wrong shape": dict(settings=HANGS, at=30),
    "dead rank": dict(settings=HANGS, at=30),
    "hang: sleeps": dict(settings=HANGS, at=30),
    "hang: spins": dict(settings=HANGS, at=30),
    "hang: holds the GIL": dict(settings=HANGS, at=30),
    "hang: stopped": dict(settings=HANGS, at=30),
    "hang: stage stuck": dict(
        settings=dict(layout="pp4", micro_batch=2, accumulate=4, steps=45,
                      **SMALL | {"layers": 4}), at=30),
}  # fmt: skip
CLEAN = {
    "clean, four paced ranks": dict(settings=PACED | dict(steps=400), pace=PACE_S),
    "clean, with pauses": dict(settings=PACED | dict(steps=400), pace=PACE_S, pauses=True),
    "clean, two ranks of kernels": dict(
        settings=RUNS["slow rank"]["settings"] | dict(steps=400)),
    "clean, a ring": dict(settings=RING | dict(steps=200), pace=PACE_S),
    "clean, a pipeline": dict(settings=RUNS["slow stage"]["settings"] | dict(steps=200)),
}  # fmt: skip
SILENCE_S = 1.0


@dataclass
class Score:
    """Of one run."""

    found: bool
    right: bool
    delay: int | None
    accused: list[Anomaly] | list[str]
    """Findings that name a rank which did nothing; in words, as read from a file."""
    unnamed: list[str]
    """Other findings that name nobody."""
    rank_steps: int


def run(name: str, seed: int) -> Score:
    plan = RUNS.get(name) or CLEAN[name]
    draw = random.Random(f"{name} {seed}")
    settings, world = plan["settings"], pico.Layout.parse(plan["settings"]["layout"]).world
    fault = None if name in CLEAN else CATALOGUE[plan.get("fault", name)]
    rank, observers = draw.randrange(plan.get("first", 0), world), [Probe()]
    at = plan.get("at", 0) + draw.randrange(8)
    pace_s = plan.get("pace", 0.0)
    if pace_s:
        observers.append(Pace(pace_s))
    if plan.get("pauses"):
        observers.append(Quiet(seed=seed))
    if fault is not None:
        options = dict(slower=plan.get("slower", 0.3), pace_s=pace_s)
        observers.append(InRun(fault.name, rank=rank, at=at, **options))
    system = BasicMonitoringSystem({"silence_s": SILENCE_S, "samples": False})
    job = pico.train(
        **settings, seed=seed, data="stdlib", observers=observers, progress=False, wait=False,
        timeout=20,
    )  # fmt: skip
    system.watch(job)
    hangs = fault is not None and "hang" in fault.found_as
    until = time.monotonic() + 120
    while not job.done and time.monotonic() < until:
        time.sleep(0.02)
        if hangs and any(anomaly.name == "hang" for anomaly in system.anomalies):
            job.stop()
    system.close()
    if job.state == "failed" and not (fault and fault.ends):
        job.result()  # raises what went wrong: nothing was judged, so there is no score
    return score(fault, rank, at, system.anomalies, settings["steps"] * world, name)


def score(fault, rank, at, anomalies, rank_steps, name) -> Score:
    if fault is None:
        named = [a for a in anomalies if a.ranks]
        return Score(
            False, False, None, named, [a.name for a in anomalies if not a.ranks], rank_steps
        )
    whose = {"rank": (rank,), "link": (rank - 1, rank), "nobody": ()}[fault.whose]
    hits = [a for a in anomalies if a.name in fault.found_as and (a.step is None or a.step >= at)]
    right = [a for a in hits if a.ranks == whose]
    accused = [a for a in anomalies if a.ranks and not set(a.ranks) <= set(whose)]
    unnamed = [a.name for a in anomalies if not a.ranks and a not in hits]
    delay = right[0].step - at if right and right[0].step is not None else None
    return Score(bool(hits), bool(right), delay, accused, unnamed, rank_steps)


def wilson(hits: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927): also where all were hits."""
    if not of:
        return 0.0, 1.0
    p, n = hits / of, of
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def shown(hits: int, of: int) -> str:
    low, high = wilson(hits, of)
    return f"{hits}/{of} ({low:.2f} to {high:.2f})"


def table(scores: dict[str, list[Score]]) -> Table:
    rows, pooled = [], [0, 0, 0]
    for name, of in scores.items():
        if name in CLEAN or not of:
            continue
        found, right = sum(s.found for s in of), sum(s.right for s in of)
        pooled = [a + b for a, b in zip(pooled, (found, right, len(of)))]
        delays = sorted(s.delay for s in of if s.delay is not None)
        delay = f"{statistics.median(delays):.0f} / {delays[-1]}" if delays else "at its end"
        rows.append([name, shown(found, len(of)), shown(right, len(of)), delay,
                     sum(len(s.accused) for s in of)])  # fmt: skip
    rows.append(["pooled", shown(pooled[0], pooled[2]), shown(pooled[1], pooled[2]), "",
                 sum(row[4] for row in rows)])  # fmt: skip
    head = ["fault", "found", "and whose it is", "delay: median / most", "false accusations"]
    return Table(head, rows)


def clean_table(scores: dict[str, list[Score]]) -> Table:
    rows = []
    for name in CLEAN:
        of = scores.get(name, [])
        if of:
            unnamed = [what for s in of for what in s.unnamed]
            named = [str(a) for s in of for a in s.accused]
            rank_steps = sum(s.rank_steps for s in of)
            others = ", ".join(f"{w} x{unnamed.count(w)}" for w in sorted(set(unnamed)))
            rows.append([name, len(of), rank_steps, len(named), others or "none"])
    head = ["runs without a fault", "runs", "rank-steps", "false accusations", "names nobody"]
    return Table(head, rows)


def kept(results: Path | None) -> dict[tuple[str, int], Score]:
    """What the file holds of (run, seed); a torn last line is a run that is done again."""
    if results is None or not results.exists():
        return {}
    found = {}
    for line in results.read_text().splitlines():
        try:
            one = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[one["run"], one["seed"]] = Score(**one["score"])
    return found


def keep(results: Path, name: str, seed: int, score: Score) -> None:
    said = asdict(score) | {"accused": [str(a) for a in score.accused]}
    torn = results.exists() and not results.read_text().endswith("\n")
    with open(results, "a") as file:
        file.write("\n" * torn + json.dumps({"run": name, "seed": seed, "score": said}) + "\n")


def measure(
    seeds: int, only: list[str], clean: int, limit_s: float, results: Path | None = None
) -> dict[str, list[Score]]:
    began, scores = time.monotonic(), {name: [] for name in [*RUNS, *CLEAN]}
    done, left = kept(results), 0
    for seed in range(max(seeds, clean)):
        for name in scores:
            wanted = seed < (clean if name in CLEAN else seeds) and (not only or name in only)
            if wanted and (name, seed) in done:
                scores[name].append(done[name, seed])
                continue
            if not wanted or time.monotonic() - began > limit_s:
                left += wanted
                continue
            one = run(name, seed)
            scores[name].append(one)
            if results is not None:
                keep(results, name, seed, one)
            if name in CLEAN or one.accused or not one.right:
                said = "; ".join(map(str, one.accused)) or "nobody accused"
                print(f"  {name}, seed {seed}: found {one.found}, right {one.right}; {said}; "
                      f"{', '.join(one.unnamed)}", file=sys.stderr, flush=True)  # fmt: skip
    if left:
        print(f"  {left} runs are still to be done", file=sys.stderr, flush=True)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--clean", type=int, default=6)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    began = time.monotonic()
    scores = measure(given.seeds, given.only, given.clean, given.seconds, given.results)
    print(table(scores))
    print(clean_table(scores))
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
