"""Parallelism: one model on many ranks, computing what it computes on one.

    data.py            replicas that see different samples: the naive loop, and buckets that overlap
    zero.py            replicas that keep their rows only; zero_comm.py how rows travel together,
                       zero_gather.py parameters that are whole only while they are used
    buckets.py         gradients in flat buffers: when one is full, in which order they go
    tensor.py          what is split inside a layer, and tensor_comm.py how the halves talk (f, g)
    vocabulary.py      the embedding and the loss, split along the vocabulary
    experts.py         a layer of experts (picolab.moe) under tensor and context parallelism
    pipeline.py        layers on different ranks, in the order that a schedule says
    stage_costs.py     what each layer, the embedding and the head cost, measured
    split_backward.py  a backward in two halves: the input's gradient now, the weights' later
    micro_batches.py   the step without a pipeline: micro-batches one after the other
    context.py         puts one of the next three into a model
    sequence_split.py  one sequence on many ranks: who holds which tokens, and computes what
    ring.py            attention over a split sequence: keys and values go round
    ulysses.py         the same by exchanging heads
    gathered.py        the same in the simple way, for any mask
    attention_block.py one block of attention, with the log-sum-exp by which blocks are merged
    random_streams.py  dropout: who draws the same random numbers, and who must not
    whole.py           from what ranks hold to what the model has: gathering, the gradient norm
    three_d.py         the composition, in one page: `parallelize(model, layout)`

The classes are called optimizers because they optimise where a model is placed; they are not
`torch.optim` optimizers. With torch missing, importing this room says what to install.
"""

from picolab.specs.needed import torch_needed

try:
    import torch  # noqa: F401
except ImportError as error:
    raise torch_needed("picolab.parallel needs", error) from error

from picolab.parallel.data import DataParallelOptimizer, naive_sync
from picolab.parallel.gathered import gathered_attention
from picolab.parallel.ring import ring_attention
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
from picolab.parallel.ulysses import ulysses_attention
from picolab.parallel.vocabulary import VocabularyParallelEmbedding, VocabularyParallelLoss
from picolab.parallel.zero import ZeroOptimizer, naive_gather, naive_reduce

__all__ = [
    "ColumnParallelLinear",
    "DataParallelOptimizer",
    "RowParallelLinear",
    "TensorParallelOptimizer",
    "ThreeDParallelOptimizer",
    "VocabularyParallelEmbedding",
    "VocabularyParallelLoss",
    "ZeroOptimizer",
    "column_linear",
    "f",
    "g",
    "g_",
    "gather",
    "gather_linear",
    "gathered_attention",
    "naive_gather",
    "naive_reduce",
    "naive_sync",
    "parallelize",
    "ring_attention",
    "scatter_sum",
    "ulysses_attention",
]
