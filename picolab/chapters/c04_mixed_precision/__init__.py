"""Chapter 4, mixed precision: formats, what they lose, and who decides."""

from picolab.chapters.c04_mixed_precision.formats_figure import bits, formats_figure
from picolab.chapters.c04_mixed_precision.losses_figure import losses_figure
from picolab.chapters.c04_mixed_precision.range_figure import range_figure
from picolab.chapters.c04_mixed_precision.scale_figure import scale_figure
from picolab.chapters.record import Chapter
from picolab.exercises.catalogue import About

__all__ = [
    "CHAPTER",
    "bits",
    "counted",
    "formats_figure",
    "gradient_sizes",
    "losses_figure",
    "operand_bytes",
    "range_figure",
    "scale_figure",
    "shaken",
    "sizes",
    "spiked",
    "updates_of",
]


def sizes(step: int):
    """The observer of section 4: how large the gradients of a step are."""
    from picolab.chapters.c04_mixed_precision.watched_runs import Sizes

    return Sizes(step)


def counted():
    """The observer of section 7: bytes of what the products read."""
    from picolab.chapters.c04_mixed_precision.watched_runs import Counted

    return Counted()


def spiked(step: int, layer: str, factor: float):
    """The observer of section 7: a gradient that is far too large, once."""
    from picolab.chapters.c04_mixed_precision.watched_runs import Spiked

    return Spiked(step, layer, factor)


def shaken(step: int, rank: int, alone: bool = False):
    """The observer of section 4: an overflow on one rank, which may decide alone."""
    from picolab.chapters.c04_mixed_precision.watched_runs import Shaken

    return Shaken(step, rank, alone)


def gradient_sizes(result) -> dict[int, int]:
    """What a run with `sizes` has told: exponent -> gradients of this size."""
    from picolab.chapters.c04_mixed_precision import watched_runs

    return watched_runs.gradient_sizes(result)


def operand_bytes(result) -> dict[int, float]:
    """What a run with `counted` has told: step -> bytes, on rank 0."""
    from picolab.chapters.c04_mixed_precision import watched_runs

    return watched_runs.operand_bytes(result)


def updates_of(result) -> list[int]:
    """What a run with `shaken` has told: updates that each rank made."""
    from picolab.chapters.c04_mixed_precision import watched_runs

    return watched_runs.updates_of(result)


_EXERCISES: dict[str, About] = {}

_COVERED: dict[str, str] = {}

CHAPTER = Chapter(
    notebook="04_mixed_precision",
    key="precision",
    title="Mixed precision",
    evenings=(
        ("04_mixed_precision", 65, "number formats, what they lose; who decides, and taking back"),
    ),
    topic="mixed_precision",
    areas={},
    taught=(),
    counts={"questions": 0, "numeric": 0, "code": 0, "diagnose": 0},
    exercises={id: about.within(__name__) for id, about in _EXERCISES.items()},
    mysteries=f"{__name__}.mysteries",
    cheatsheet=f"{__name__}.cheatsheet",
    covered=_COVERED,
)
