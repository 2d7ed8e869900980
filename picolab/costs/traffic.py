"""What one training step sends: the ledger, predicted.

`step_ledger` lists every collective that one rank takes part in during one optimizer step, with the
reasons that the code gives. It is exact: a run's ledger must equal it in count and payload, to the
byte, and a test holds it to that.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from picolab.costs.collectives import ring_bytes
from picolab.costs.memory import dtype_bytes
from picolab.costs.parameters import local_parameters, require_llama
from picolab.specs import Layout, ModelConfig

# torch's DDP takes 25 MB (arXiv 2006.15704, section 3.2). A small model would be one bucket then,
# and nothing of its communication could overlap with the backward pass.
DEFAULT_BUCKET_BYTES = 1_000_000


class Expected(NamedTuple):
    """One kind of collective in a step, of one rank: how many, and their bytes added up."""

    count: int
    payload_bytes: int
    ring_bytes: float


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
    gradients of the column-parallel inputs). Source: arXiv 1909.08053, section 3, figure 4.
    """
    payload = micro_batch * seq * config.hidden * dtype_bytes(dtype)
    return 4 * ring_bytes("all_reduce", payload, tp)


def step_ledger(
    config: ModelConfig,
    layout: Layout | str,
    *,
    micro_batch: int,
    accumulate: int = 1,
    seq: int | None = None,
    dtype: object = "fp32",
    bucket_bytes: int = DEFAULT_BUCKET_BYTES,
) -> dict[tuple[str, str, str], Expected]:
    """Every collective of one rank in one optimizer step: (op, axis, reason) -> Expected.

    micro_batch is in sequences and, like accumulate (micro-batches a step), of one data-parallel
    replica; seq defaults to config.seq. Payloads, with b*s tokens a micro-batch, h hidden, L
    layers:

        dp: count of valid tokens            1              8 bytes     the loss is divided by it
        tp: embedding output                 each mb        b*s*h
        tp: row-parallel output              2L each mb     b*s*h       attention's o, MLP's down
        tp: column-parallel input gradient   2L+1 each mb   b*s*h       qkv, gate and up; the head
        tp: cross entropy maximum            each mb        b*s         in fp32 or better
        tp: cross entropy sums               each mb        2*b*s       sum of exponentials, target
        dp: gradient bucket                  each bucket    its bytes   last micro-batch only
        dp: loss                             1              8 bytes
        tp: gradient norm                    1              8 bytes     of the sharded parameters

    An axis of size 1 has no entries. Source: arXiv 1909.08053, section 3 (layers, embedding and
    cross entropy), arXiv 2006.15704, section 3.2 (buckets). Raises ValueError for axes beyond dp
    and tp, and for a layout that cannot split the model.
    """
    layout = Layout.parse(layout)
    require_llama(config)
    layout.check(config)
    _require_dp_and_tp(layout)
    seq = config.seq if seq is None else seq
    for name, value in (("micro_batch", micro_batch), ("accumulate", accumulate), ("seq", seq)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be an integer of 1 or more")

    size = dtype_bytes(dtype)
    tokens = micro_batch * seq
    activation = tokens * config.hidden * size
    scalar = tokens * max(size, 4)  # cross entropy is computed in fp32 at least
    expected: dict[tuple[str, str, str], Expected] = {}

    def all_reduces(axis: str, reason: str, payloads: Iterable[int]) -> None:
        n = layout.axes[axis]
        if n > 1:
            sizes = list(payloads)
            ring = sum(ring_bytes("all_reduce", payload, n) for payload in sizes)
            expected["all_reduce", axis, reason] = Expected(len(sizes), sum(sizes), ring)

    all_reduces("dp", "dp: count of valid tokens", [8])
    all_reduces("tp", "tp: embedding output", [activation] * accumulate)
    all_reduces("tp", "tp: row-parallel output", [activation] * (2 * config.layers * accumulate))
    all_reduces(
        "tp",
        "tp: column-parallel input gradient",
        [activation] * ((2 * config.layers + 1) * accumulate),
    )
    all_reduces("tp", "tp: cross entropy maximum", [scalar] * accumulate)
    all_reduces("tp", "tp: cross entropy sums", [2 * scalar] * accumulate)
    sizes = [parameter.numel * size for parameter in local_parameters(config, layout)]
    groups = buckets(sizes, bucket_bytes)
    all_reduces("dp", "dp: gradient bucket", [sum(sizes[i] for i in group) for group in groups])
    all_reduces("dp", "dp: loss", [8])
    all_reduces("tp", "tp: gradient norm", [8])
    return expected


def _require_dp_and_tp(layout: Layout) -> None:
    beyond = {
        "pp": layout.pp > 1,
        "cp": layout.cp > 1,
        "ep": layout.ep > 1,
        "sp": layout.sp,
        "zero": layout.zero > 0,
    }
    found = [name for name, used in beyond.items() if used]
    if found:
        raise ValueError(
            f"step_ledger predicts dp and tp, and {layout} also has {' and '.join(found)}; "
            f"leave {'it' if len(found) == 1 else 'them'} out"
        )
