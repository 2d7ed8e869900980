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


_EXERCISES = {
    "precision.format.round": About("rounding", "Rounding by integers, to any short format", 20, 3),
    "precision.format.stochastic": About("stochastic", "Rounding by chance", 15, 3),
    "precision.scale.machine": About("scale_machine", "The loss-scale machine, over ranks", 20, 3),
    "precision.scale.amax": About(
        "delayed_amax", "Scales in fp8, agreed on by the right ranks", 20, 4, starred=True
    ),
    "precision.select.knapsack": About("knapsack", "Which layer in which format, exactly", 20, 4),
    "precision.block.linear": About(
        "block_linear", "A block-scaled linear layer, with its backward", 25, 5, starred=True
    ),
    "interview.precision.step": About(
        "interview_step", "One step in half precision, or none", 15, 3
    ),
    "interview.precision.wire": About("interview_wire", "Half the bytes, the whole sum", 15, 3),
    "interview.precision.kahan": About(
        "interview_kahan", "AdamW on weights of sixteen bits", 15, 3
    ),
}

_COVERED = {
    "picolab.precision.formats.round_to": "precision.format.stochastic",
    "picolab.precision.scaler.LossScaler.update": "precision.scale.machine",
    "picolab.precision.scaler.finite": "precision.scale.machine",
    "picolab.precision.fp8.Fp8Product.remember": "precision.scale.amax",
    "picolab.training.precision.Fp8Precision.after_step": "precision.scale.amax",
    "picolab.training.precision.amax_axes": "precision.scale.amax",
    "picolab.precision.selector.AdaptivePrecisionSelector._solve": "precision.select.knapsack",
    "picolab.precision.blocks.exponents": "precision.block.linear",
    "picolab.precision.fp8.Fp8Product.dx": "precision.block.linear",
    "picolab.precision.fp8.Fp8Product._multiply": "precision.block.linear",
}

CHAPTER = Chapter(
    notebook="04_mixed_precision",
    key="precision",
    title="Mixed precision",
    evenings=(
        ("04_mixed_precision", 65, "number formats, what they lose; who decides, and taking back"),
    ),
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
    covered=_COVERED,
)
