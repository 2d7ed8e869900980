"""Chapter 4, mixed precision: formats, what they lose, and who decides."""

from picolab.chapters.record import Chapter
from picolab.exercises.catalogue import About

__all__ = ["CHAPTER"]

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
    areas={},
    taught=(),
    counts={"questions": 0, "numeric": 0, "code": 0, "diagnose": 0},
    exercises={id: about.within(__name__) for id, about in _EXERCISES.items()},
    mysteries=f"{__name__}.mysteries",
    cheatsheet=f"{__name__}.cheatsheet",
    covered=_COVERED,
)
