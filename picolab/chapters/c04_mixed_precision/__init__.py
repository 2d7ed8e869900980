"""Chapter 4, mixed precision: formats, what they lose, and who decides."""

from picolab.chapters.record import Chapter
from picolab.exercises.catalogue import About

__all__ = ["CHAPTER"]

_EXERCISES = {
    "interview.precision.step": About(
        "interview_step", "One step in half precision, or none", 15, 3
    ),
    "interview.precision.wire": About("interview_wire", "Half the bytes, the whole sum", 15, 3),
    "interview.precision.kahan": About(
        "interview_kahan", "AdamW on weights of sixteen bits", 15, 3
    ),
}

CHAPTER = Chapter(
    notebook="04_mixed_precision",
    key="precision",
    title="Mixed precision",
    evenings=(),
    topic="mixed_precision",
    areas={
        "formats": "Number formats",
        "masters": "Master weights and optimizer states",
        "scaling": "Loss scaling",
        "sums": "Sums, softmax and reductions",
        "fp8": "fp8 and block formats",
        "runs": "Watching a run",
        "serving": "Quantised serving",
    },
    taught=tuple(f"mp-{number:03}" for number in (1, 2, 7, 11, 25, 27, 28, 29, 30, 32, 33)),
    counts={"questions": 35, "numeric": 20, "code": 3, "diagnose": 4, "warm_ups": 9},
    exercises={id: about.within(__name__) for id, about in _EXERCISES.items()},
    mysteries=f"{__name__}.mysteries",
    cheatsheet=f"{__name__}.cheatsheet",
)
