"""Chapter 3, 3D parallelism at work: ZeRO, the schedules, why a step is slow, and the planner."""

from picolab.chapters.record import Chapter
from picolab.exercises.catalogue import About

__all__ = ["CHAPTER"]

_EXERCISES: dict[str, About] = {}

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
    counts={"questions": 30, "numeric": 12, "code": 3, "diagnose": 4, "warm_ups": 7},
    exercises={id: about.within(__name__) for id, about in _EXERCISES.items()},
    mysteries=f"{__name__}.mysteries",
    cheatsheet=f"{__name__}.cheatsheet",
    covered=_COVERED,
)
