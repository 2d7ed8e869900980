"""Chapter 3, 3D parallelism at work: ZeRO, the schedules, why a step is slow, and the planner."""

from picolab.chapters.c03_3d_parallel.schedule_zoo import zoo
from picolab.chapters.record import Chapter
from picolab.exercises.catalogue import About

__all__ = ["CHAPTER", "patient", "zoo"]


def patient():
    """The observer of section 4's slow run; what is wrong with it stands in slow_run.py."""
    from picolab.chapters.c03_3d_parallel.slow_run import Patient

    return Patient()


_EXERCISES = {
    "3d.zero.ranges": About("zero_ranges", "ZeRO-1 over one flat buffer", 20, 3, starred=True),
    "3d.zero.gather": About("gathered_linear", "A linear layer, whole only while used", 25, 4),
    "3d.pp.interleaved": About("interleaved_order", "The order of interleaved 1F1B", 20, 4),
    "3d.pp.split": About(
        "split_product", "A product whose backward comes in two halves", 20, 4, starred=True
    ),
    "3d.pp.stages": About("stage_partition", "Stages by time and within memory", 20, 3),
    "3d.plan.budget": About("better_plan", "A better plan with forty questions", 25, 4),
    "interview.3d.sharded-step": About(
        "interview_sharded_step", "A step of the optimizer on shards, with clipping", 20, 4
    ),
    "interview.3d.hybrid-sync": About(
        "interview_hybrid_sync", "Gradients under hybrid sharding", 15, 3
    ),
    "interview.3d.clock": About("interview_clock", "The clock of a pipeline", 20, 4),
    "interview.3d.reshard": About(
        "interview_reshard", "Reads of a checkpoint for another number of ranks", 20, 4
    ),
}

_COVERED = {
    "picolab.schedules.generators.interleaved": "3d.pp.interleaved",
    "picolab.parallel.split_backward": "3d.pp.split",
    "picolab.costs.stages.balanced_stages": "3d.pp.stages",
}

CHAPTER = Chapter(
    notebook="03_3d_parallel",
    key="3d",
    title="3D parallelism",
    evenings=(
        ("03_3d_parallel", 69, "ZeRO, schedules, why a step is slow, which layout to choose"),
    ),
    topic="3d_parallel",
    areas={
        "zero": "ZeRO",
        "schedules": "Pipeline schedules",
        "memory": "Memory of a layout",
        "slow": "Why a step is slow",
        "planning": "Choosing a layout",
        "scale": "At scale",
    },
    taught=tuple(f"3d-{number:03}" for number in (1, 2, 3, 10, 12, 17, 28, 32, 33, 34, 35, 41)),
    counts={"questions": 41, "numeric": 25, "code": 4, "diagnose": 6, "warm_ups": 10},
    exercises={id: about.within(__name__) for id, about in _EXERCISES.items()},
    mysteries=f"{__name__}.mysteries",
    cheatsheet=f"{__name__}.cheatsheet",
    covered=_COVERED,
)
