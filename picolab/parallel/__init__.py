"""Parallelism: one model on many ranks, computing what it computes on one.

    data.py         replicas that see different samples: the naive loop, and buckets that overlap
    tensor.py       what is split inside a layer, and tensor_comm.py how the halves talk (f and g)
    vocabulary.py   the embedding and the loss, split along the vocabulary
    three_d.py      the composition, in one page: `parallelize(model, layout)`

The classes are called optimizers because they optimise where a model is placed; they are not
`torch.optim` optimizers. With torch missing, importing this room says what to install.
"""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "picolab.parallel needs PyTorch, which is not installed here: pip install 'picolab[torch]'"
    ) from error

from picolab.parallel.data import DataParallelOptimizer, naive_sync
from picolab.parallel.tensor import (
    ColumnParallelLinear,
    RowParallelLinear,
    TensorParallelOptimizer,
)
from picolab.parallel.tensor_comm import (
    column_linear,
    f,
    g,
    g_,
    gather,
    gather_linear,
    scatter_sum,
)
from picolab.parallel.three_d import ThreeDParallelOptimizer, parallelize
from picolab.parallel.vocabulary import VocabularyParallelEmbedding, VocabularyParallelLoss

__all__ = [
    "ColumnParallelLinear",
    "DataParallelOptimizer",
    "RowParallelLinear",
    "TensorParallelOptimizer",
    "ThreeDParallelOptimizer",
    "VocabularyParallelEmbedding",
    "VocabularyParallelLoss",
    "column_linear",
    "f",
    "g",
    "g_",
    "gather",
    "gather_linear",
    "naive_sync",
    "parallelize",
    "scatter_sum",
]
