"""Memory, as ratios within one run.

    python tests/benchmarks/memory.py [copies] [garbage] [budgets] [knapsack]

1. Copies of 1 to 256 MiB into a pool's buffers, and, over these: into what `torch.empty` gives;
   into pages that were never there; the same in huge pages. The last column is what the second of
   these can come to: 1 + (touching a byte of each fresh page) / (the pooled copy). All above 1 is
   page faults, so no pool makes it more. Of each way the quickest of some rounds, in turns. (The
   source has been written to: an untouched one is a single page of zeros that the cache holds.
   Below 32 MiB glibc keeps what is freed, once that has happened: `torch.empty` has a pool itself.)
2. Garbage: four ranks make circles of objects that live for fifty steps. The 99th percentile, and
   the mean, from one step to the next with Python's own collector, over those with collection at
   the same steps on all ranks, every 130: about as often as Python's full passes on one rank.
   In turns. (Each rank sleeps in a step: computing ranks on two cores take turns anyway.)
3. Budgets: seconds of a step at several budgets, over those of a run that keeps everything, and
   what was chosen.
4. Knapsack: the peak of a step under torch's `activation_memory_budget`, and by our plans with as
   many flops again (tests/unit/memory/test_knapsack.py says how both are measured).
"""

import gc
import mmap
import runpy
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch

import picolab as pico
from picolab.memory import GarbageCollector, MemoryPool
from picolab.monitoring import events
from picolab.show.table import Table


class Garbage(pico.Observer):
    """Objects that refer to themselves and live for some steps, on each rank as many more than on
    the one before; and the pace of the run."""

    def __init__(self, objects: int = 500, age: int = 50):
        self.objects, self.circles, self.began = objects, deque(maxlen=age), []

    def start(self, run) -> None:
        # A program with a history: a full pass has to look at it.
        self.history = [[i] for i in range(500_000)]
        self.passes = gc.get_stats()[2]["collections"]

    def gradients(self, run) -> None:
        self.began.append(time.perf_counter())
        time.sleep(0.01)  # a device computes: ranks that share cores overlap in this
        made = []
        for _ in range(self.objects + 100 * torch.distributed.get_rank()):
            circle = []
            circle.append([circle])
            made.append(circle)
        self.circles.append(made)

    def end(self, run) -> None:
        paces = [b - a for a, b in pairwise(self.began)][5:]
        passes = gc.get_stats()[2]["collections"] - self.passes
        events.write("paces", seconds=paces, passes=passes)


def copies() -> None:
    rows = []
    for mib in (1, 4, 16, 64, 256):
        took = quickest(ways_to_copy(mib << 20), 3 if mib > 64 else 10)
        pooled = took.pop("pooled")
        faults = took.pop("faults")
        rows.append([
            mib, (mib << 20) / pooled / 1e9, *(one / pooled for one in took.values()),
            1 + faults / pooled,
        ])  # fmt: skip
    columns = ["MiB", "pooled, GB/s", "torch.empty", "fresh pages", "huge pages", "1 + faults"]
    print(Table(columns, rows, "Copies, over the pooled copy"))


def ways_to_copy(size: int) -> dict[str, Callable[[], object]]:
    pool, source = MemoryPool(2 * size), torch.ones(size, dtype=torch.uint8)

    def pooled() -> None:
        lease = pool.lease(size)
        lease.tensor.copy_(source)
        lease.free()

    def pages(huge: bool = False) -> torch.Tensor:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
        return torch.frombuffer(memory, dtype=torch.uint8)

    return {
        "pooled": pooled,
        "torch.empty": lambda: torch.empty(size, dtype=torch.uint8).copy_(source),
        "fresh pages": lambda: pages().copy_(source),
        "huge pages": lambda: pages(huge=True).copy_(source),
        "faults": lambda: pages()[:: mmap.PAGESIZE].fill_(1),
    }


def quickest(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each: a pause of the machine makes one longer, and nothing makes it shorter."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            way()
            began = time.perf_counter()
            way()
            took[name].append(time.perf_counter() - began)
    return {name: min(of) for name, of in took.items()}


def garbage(steps: int = 400) -> None:
    rows = []
    small = dict(layers=1, hidden=32, ffn=32, heads=4, kv_heads=2, seq=16, micro_batch=1)
    for _ in range(3):
        row, p99, means = [], [], []
        for observers in ([Garbage()], [Garbage(), GarbageCollector(every=130)]):
            result = pico.train(
                "tiny", "dp4", steps=steps, data="random", progress=False, observers=observers,
                **small,
            )  # fmt: skip
            told = [e.data for e in result.events if e.kind == "paces"]
            paces = told[0]["seconds"]
            p99.append(statistics.quantiles(paces, n=100)[98])
            row += [statistics.fmean(of["passes"] for of in told), 1e3 * p99[-1]]
            means.append(statistics.fmean(paces))
        rows.append([*row, p99[0] / p99[1], means[0] / means[1]])
    columns = ["Python's: passes", "p99, ms", "aligned: passes", "p99, ms", "ratio", "of means"]
    print(Table(columns, rows, f"Full passes a rank, and {steps} steps from one to the next"))


def budgets(steps: int = 12) -> None:
    base = dict(model="tiny", data="random", steps=steps, progress=False)
    plain = statistics.median(pico.train(**base).step_s[2:])
    rows = []
    for budget in ("40MB", "30MB", "24MB", "20MB", "18MB"):
        try:
            result = pico.train(**base, memory_budget=budget)
        except pico.RankFailure as failure:
            rows.append([budget, "", str(failure).strip().splitlines()[-1][:60]])
            continue
        plan = next(e.data for e in result.events if e.kind == "memory plan")
        rows.append([budget, statistics.median(result.step_s[2:]) / plain, plan["choices"]])
    print(Table(["budget", "seconds / keep all", "blocks"], rows))


def knapsack() -> None:
    test = Path(__file__).parent.parent / "unit" / "memory" / "test_knapsack.py"
    runpy.run_path(str(test), run_name="__main__")


PARTS = {"copies": copies, "garbage": garbage, "budgets": budgets, "knapsack": knapsack}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
