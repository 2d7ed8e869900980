"""What is described: a model, a layout of ranks, a device, a training run. Frozen data, validated,
no torch."""

from picolab.specs.hardware import Hardware
from picolab.specs.layout import Layout
from picolab.specs.model_config import LatentAttention, ModelConfig
from picolab.specs.train_config import (
    DEFAULT_BUCKET_BYTES,
    TrainConfig,
    assemble,
)

__all__ = [
    "DEFAULT_BUCKET_BYTES",
    "Hardware",
    "LatentAttention",
    "Layout",
    "ModelConfig",
    "TrainConfig",
    "assemble",
]
