"""The model: a Llama-family decoder, built without memory and filled by global parameter names.

    model = Transformer(ModelConfig.preset("tiny"))  # on the meta device: shapes only
    initialise(model, seed=0, device="cpu")          # the values, the same for every sharding

With torch missing, importing this room says what to install.
"""

from picolab.specs.needed import torch_needed

try:
    import torch  # noqa: F401
except ImportError as error:
    raise torch_needed("picolab.model needs", error) from error

from picolab.model.generate import generate
from picolab.model.hugging_face import hf_config, load_hf, save_hf
from picolab.model.layers import PLAIN, Dropout, Embedding, Linear, Product, RMSNorm, RotaryTables
from picolab.model.parameters import (
    Piece,
    fill,
    global_tensors,
    initialise,
    load,
    meta_parameter,
    slices,
)
from picolab.model.transformer import Attention, Block, SwiGLU, Transformer, cross_entropy

__all__ = [
    "PLAIN",
    "Attention",
    "Block",
    "Dropout",
    "Embedding",
    "Linear",
    "Piece",
    "Product",
    "RMSNorm",
    "RotaryTables",
    "SwiGLU",
    "Transformer",
    "cross_entropy",
    "fill",
    "generate",
    "global_tensors",
    "hf_config",
    "initialise",
    "load",
    "load_hf",
    "meta_parameter",
    "save_hf",
    "slices",
]
