"""Chapter 3, 3D parallelism at work: ZeRO, the schedules, why a step is slow, and the planner."""

from picolab.chapters.record import Chapter
from picolab.exercises.catalogue import About

__all__ = ["CHAPTER"]

_EXERCISES: dict[str, About] = {
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

_COVERED: dict[str, str] = {}

CHAPTER = Chapter(
    notebook="03_3d_parallel",
    key="3d",
    title="3D parallelism",
    evenings=(
        ("03_3d_parallel, sections 1 to 3", 45, "ZeRO, and the zoo of schedules"),
        (
            "03_3d_parallel to its end, 03_3d_parallel_exercises",
            80,
            "why a step is slow, and which layout to choose; the two starred exercises",
        ),
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
    taught=(),
    counts={"questions": 41, "numeric": 25, "code": 4, "diagnose": 6, "warm_ups": 10},
    exercises={id: about.within(__name__) for id, about in _EXERCISES.items()},
    mysteries=f"{__name__}.mysteries",
    cheatsheet=f"{__name__}.cheatsheet",
    covered=_COVERED,
)
