"""Chapter 5, memory: where the bytes go, predicted and kept under a budget."""

from picolab.chapters.record import Chapter
from picolab.exercises.catalogue import About

_EXERCISES = {
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

CHAPTER = Chapter(
    notebook="05_memory",
    key="memory",
    title="Memory",
    evenings=(("05_memory", 90, "where the bytes go; recompute, offload, a budget kept"),),
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
)
