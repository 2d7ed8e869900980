"""What data and tensor parallelism send, in closed form, and how gradients are put into buckets.

Every single collective of a step, exactly, is `step_ledger` (ledger.py).
"""

from collections.abc import Sequence

from picolab.costs.collectives import ring_bytes
from picolab.costs.memory import dtype_bytes
from picolab.specs import ModelConfig


def buckets(sizes_bytes: Sequence[int], bucket_bytes: int) -> list[list[int]]:
    """Group parameters into buckets, each reduced by one all-reduce. Returns lists of indices.

    In reverse order, because the backward pass finishes the last parameter's gradient first. A
    bucket is closed when the next parameter would take it over bucket_bytes; a parameter that is
    larger than that has a bucket of its own. `parallel/data.py` forms its buckets with this
    function.

    Source: arXiv 2006.15704, section 3.2 (gradient bucketing).
    """
    if bucket_bytes < 1:
        raise ValueError(f"bucket_bytes is {bucket_bytes}; a bucket holds at least 1 byte")
    groups: list[list[int]] = []
    filled = 0
    for index in reversed(range(len(sizes_bytes))):
        size = sizes_bytes[index]
        if not groups or filled + size > bucket_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(index)
        filled += size
    return groups


def data_parallel_bytes(params: float, dp: int, *, grad_bytes: float = 4) -> float:
    """Bytes one rank sends to all-reduce the gradients, once an optimizer step: 2(d-1)/d * N * g.

    N are the parameters that the rank holds, g the bytes of a gradient. It does not depend on the
    batch or on the number of micro-batches. Source: arXiv 1910.02054, section 7.1 (there 2 N, for
    many ranks, in elements).
    """
    return ring_bytes("all_reduce", params * grad_bytes, dp)


def tensor_parallel_layer_bytes(
    config: ModelConfig, tp: int, *, micro_batch: int, seq: int, dtype: object = "fp32"
) -> float:
    """Bytes one rank sends for one layer and micro-batch: 4 all-reduces, 8(t-1)/t * b*s*h*dtype.

    Two forward (after attention and after the MLP: the row-parallel outputs) and two backward (the
    gradients of the column-parallel inputs). With sp the same bytes, as four all-gathers and four
    reduce-scatters. Source: arXiv 1909.08053, section 3, figure 4; 2205.05198, section 4.2.2.
    """
    payload = micro_batch * seq * config.hidden * dtype_bytes(dtype)
    return 4 * ring_bytes("all_reduce", payload, tp)
