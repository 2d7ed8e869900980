"""Chapter 2, mixture of experts: routing, balance, capacity, the all-to-all, experts on ranks."""

from picolab.chapters.record import Chapter
from picolab.exercises.catalogue import About

__all__ = ["CHAPTER"]

_EXERCISES = {
    "interview.moe.global-loss": About(
        "interview_global_loss", "One balance for all replicas", 15, 3
    ),
    "interview.moe.room": About(
        "interview_room", "Room for a pool that is spread over ranks", 15, 3
    ),
    "interview.moe.clip": About(
        "interview_clip", "Clipping when a part of the model is elsewhere", 15, 3
    ),
}

CHAPTER = Chapter(
    notebook="02_moe",
    key="moe",
    title="Mixture of experts",
    evenings=(("02_moe", 75, "routing, balance, capacity, the all-to-all, experts on ranks"),),
    topic="moe",
    areas={
        "routing": "Routing",
        "balance": "Balance",
        "capacity": "Capacity and dropping",
        "exchange": "The all-to-all",
        "ep": "Experts on ranks",
        "experts_at_scale": "Experts at scale",
    },
    taught=tuple(f"moe-{number:03}" for number in (1, 6, 7, 10, 20, 29, 30, 31, 32, 33, 34)),
    counts={"questions": 37, "numeric": 26, "code": 3, "diagnose": 5, "warm_ups": 9},
    exercises={id: about.within(__name__) for id, about in _EXERCISES.items()},
    mysteries=f"{__name__}.mysteries",
    cheatsheet=f"{__name__}.cheatsheet",
)
