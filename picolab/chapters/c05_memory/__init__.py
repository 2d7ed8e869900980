"""Chapter 5, memory: where the bytes go, and a budget for them."""

from picolab.chapters.record import Chapter
from picolab.exercises.catalogue import About

__all__ = ["CHAPTER"]

_EXERCISES = {
    "memory.saved.operator": About(
        "saved_operator", "What operators keep for their backward, to the byte", 20, 3
    ),
    "memory.checkpoint.function": About(
        "checkpoint_function", "A checkpoint by hand", 25, 4, starred=True
    ),
    "memory.offload.hooks": About(
        "offload_hooks", "Offload by hooks, fetched before it is needed", 25, 5, starred=True
    ),
    "memory.pool.lease": About("pool_lease", "A lease that cannot leak", 20, 4),
    "memory.plan.knapsack": About(
        "plan_knapsack", "Keep, compute again or offload, within a budget", 20, 4
    ),
    "memory.collect.aligned": About(
        "collect_aligned", "Garbage collected by all ranks at the same step", 15, 3
    ),
}

_COVERED = {
    "picolab.costs.saved.saved_bytes": "memory.saved.operator",
    "picolab.memory.offload.Offload.saving": "memory.offload.hooks",
    "picolab.memory.offload.Offload.fetch": "memory.offload.hooks",
    "picolab.memory.pool.MemoryPool.lease": "memory.pool.lease",
    "picolab.memory.pool.Lease.free": "memory.pool.lease",
    "picolab.memory.scheduler._frontier": "memory.plan.knapsack",
    "picolab.memory.collector.GarbageCollector._look": "memory.collect.aligned",
}

CHAPTER = Chapter(
    notebook="05_memory",
    key="memory",
    title="Memory",
    evenings=(("05_memory", 60, "where the bytes go; a budget, kept by recompute and offload"),),
    topic="memory",
    areas={},
    taught=(),
    counts={"questions": 20, "numeric": 10, "code": 3, "diagnose": 4, "warm_ups": 5},
    exercises={id: about.within(__name__) for id, about in _EXERCISES.items()},
    mysteries=f"{__name__}.mysteries",
    cheatsheet=f"{__name__}.cheatsheet",
    covered=_COVERED,
)
