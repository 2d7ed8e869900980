"""Chapter 5, memory: where the bytes go, and what to give up for fewer."""

from picolab.chapters.c05_memory.at_scale import one_card_table, published_table
from picolab.chapters.c05_memory.frontier_figure import frontier_figure
from picolab.chapters.c05_memory.held_figure import held_figure
from picolab.chapters.record import Chapter
from picolab.exercises.catalogue import About

__all__ = [
    "CHAPTER",
    "collecting",
    "example_blocks",
    "frontier_figure",
    "gpt_layer",
    "held_figure",
    "litter",
    "one_card_table",
    "plan_of",
    "product_work",
    "published_table",
]


def collecting(every: int, apart: int):
    """The observer of section 7: on each rank a full pass after every so many steps, later by so
    many on each next one."""
    from picolab.chapters.c05_memory.watched_runs import Collecting

    return Collecting(every, apart)


def litter(objects: int):
    """The observer of section 7: circles of objects in each step, in a program with a history."""
    from picolab.chapters.c05_memory.watched_runs import Litter

    return Litter(objects)


def gpt_layer(x, weights: dict, heads: int):
    """The layer of section 8: GPT's, with scores and dropout."""
    from picolab.chapters.c05_memory import counted_layers

    return counted_layers.gpt_layer(x, weights, heads)


def product_work(config, run_block) -> int:
    """Of section 4: operations of a block's matrix products in a step, when it is run so."""
    from picolab.chapters.c05_memory import counted_layers

    return counted_layers.product_work(config, run_block)


def plan_of(result) -> dict:
    """What a run under a budget has told of rank 0: the plan, the curve, the blocks."""
    from picolab.chapters.c05_memory import watched_runs

    return watched_runs.plan_of(result)


def example_blocks():
    """The blocks of section 6, with made-up bytes and seconds, as the scheduler takes them."""
    from picolab.chapters.c05_memory import watched_runs

    return watched_runs.example_blocks()


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
    "interview.memory.chunked_loss": About(
        "interview_chunked_loss", "A loss that never has all logits", 20, 4
    ),
    "interview.memory.early_step": About(
        "interview_early_step", "A step inside of the backward pass", 20, 4
    ),
    "interview.memory.allocator": About(
        "interview_allocator", "An allocator that splits and merges", 20, 4
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
    evenings=(("05_memory", 67, "where the bytes go, and what to give up for fewer"),),
    topic="memory",
    areas={
        "states": "States and optimizers",
        "activations": "Activations",
        "recompute": "Recomputation",
        "offload": "Offloading and pools",
        "allocator": "The allocator",
        "peaks": "Peaks, and what fits",
        "leaks": "Leaks and garbage",
    },
    taught=tuple(f"mem-{number:03}" for number in (1, 2, 13, 14, 15, 20, 25, 27, 30, 32)),
    counts={"questions": 32, "numeric": 16, "code": 3, "diagnose": 5, "warm_ups": 8},
    exercises={id: about.within(__name__) for id, about in _EXERCISES.items()},
    mysteries=f"{__name__}.mysteries",
    cheatsheet=f"{__name__}.cheatsheet",
    covered=_COVERED,
)
