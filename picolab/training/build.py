"""The one place where a model is built from its description.

`model` knows decoders whose blocks have a dense feed-forward; other kinds come from rooms beside it
and are picked here, so that the trainer, a result and a lesson build the same.
"""

import torch

from picolab.model import Transformer
from picolab.moe import feed_forward
from picolab.specs import ModelConfig


def build(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Transformer:
    """The model on the meta device: shapes only, until `parallelize`, `initialise` or `load`."""
    return Transformer(config, feed_forward=feed_forward, dtype=dtype)
