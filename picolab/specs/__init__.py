"""What is described: a model, a layout of ranks, a device. Frozen data, validated, no torch."""

from picolab.specs.hardware import Hardware
from picolab.specs.layout import Layout
from picolab.specs.model_config import LatentAttention, ModelConfig

__all__ = ["Hardware", "LatentAttention", "Layout", "ModelConfig"]
