"""The precision that a run's settings name."""

from picolab.specs import TrainConfig
from picolab.training.adaptive import AdaptivePrecision
from picolab.training.precision import (
    DTYPES,
    Fp8Precision,
    LowPrecision,
    Precision,
    ScaledPrecision,
)


def of_config(config: TrainConfig) -> Precision:
    """What the settings name."""
    numbers = config.numbers
    if numbers.watched:
        return AdaptivePrecision(config)
    if numbers.activations not in DTYPES:
        return Precision()
    if config.precision == "fp8":
        return Fp8Precision(config)
    return ScaledPrecision(config) if numbers.scaled else LowPrecision(config)
