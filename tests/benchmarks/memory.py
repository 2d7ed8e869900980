"""Memory, as ratios within one run.

    python tests/benchmarks/memory.py [copies] [garbage] [budgets] [knapsack]

1. Copies of 64 MiB into fresh memory, over copies into a pool's; and what touching one byte of each
   fresh page takes, over the pooled copy: of the first number all that is above 1 is page faults,
   so it says how dear they are beside the machine's memcpy, and no pool makes it larger. (The
   source has been written to: an untouched one is a single page of zeros that the cache holds.)
2. Garbage: four ranks make circles of objects. The 99th percentile of step times with Python's own
   collector, over that with collection at the same step on all ranks. In turns.
3. Budgets: seconds of a step at several budgets, over those of a run that keeps everything, and
   what was chosen.
4. Knapsack: what is kept for backward under torch's `activation_memory_budget`, and by our plans
   with as many flops again (tests/unit/memory/test_knapsack.py says why which is lower).
"""

import runpy
import statistics
import sys
import time
from pathlib import Path

import torch

import picolab as pico
from picolab.memory import GarbageCollector, MemoryPool
from picolab.show.table import Table

ROUNDS = 5


class Garbage(pico.Observer):
    """Objects that refer to themselves, on each rank as many, in other portions."""

    def __init__(self, objects: int = 3000):
        self.objects, self.kept = objects, []

    def start(self, run) -> None:
        # A program with a history: a full pass has to look at it.
        self.kept = [[i] for i in range(500_000)]

    def step(self, run, report) -> None:
        pass

    def gradients(self, run) -> None:
        rank = torch.distributed.get_rank()
        for _ in range(self.objects + 500 * rank):
            circle = []
            circle.append([circle])


def copies() -> None:
    size, pool = 64 << 20, MemoryPool(128 << 20)
    source = torch.ones(size, dtype=torch.uint8)

    def fresh() -> None:
        torch.empty(size, dtype=torch.uint8).copy_(source)

    def pooled() -> None:
        lease = pool.lease(size)
        lease.tensor.copy_(source)
        lease.free()

    def faults() -> None:
        torch.empty(size, dtype=torch.uint8)[::4096] = 1

    ratios, of_faults = [], []
    for _ in range(ROUNDS):
        warm = seconds(pooled)
        ratios.append(seconds(fresh) / warm)
        of_faults.append(seconds(faults) / warm)
    print(
        f"copies of 64 MiB, fresh / pooled: {statistics.median(ratios):.1f}; "
        f"page faults alone / pooled: {statistics.median(of_faults):.1f}"
    )


def seconds(work) -> float:
    work()
    began = time.perf_counter()
    for _ in range(3):
        work()
    return time.perf_counter() - began


def garbage(steps: int = 60) -> None:
    ratios = []
    for _ in range(3):
        p99 = []
        for observers in ([Garbage()], [Garbage(), GarbageCollector(every=20)]):
            result = pico.train(
                "tiny", "dp4", steps=steps, data="random", progress=False, observers=observers
            )
            p99.append(statistics.quantiles(result.step_s[5:], n=100)[98])
        ratios.append(p99[0] / p99[1])
    print(f"p99 of a step, Python's collector / aligned: {statistics.median(ratios):.2f} "
          f"({', '.join(f'{ratio:.2f}' for ratio in ratios)})")  # fmt: skip


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
