"""What one training step sends: the ledger, predicted.

`step_ledger` lists every collective that one rank takes part in during one optimizer step, with the
reasons that the code gives. It is exact: a run's ledger must equal it in count and payload, to the
byte, and a test holds it to that.
"""

from collections.abc import Sequence
from typing import NamedTuple

from picolab.costs.collectives import ring_bytes
from picolab.costs.memory import dtype_bytes
from picolab.costs.parameters import local_parameters, require_llama
from picolab.costs.slices import even_slices
from picolab.costs.stages import stage_layers
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
    gradients of the column-parallel inputs). With sp the same bytes, as four all-gathers and four
    reduce-scatters. Source: arXiv 1909.08053, section 3, figure 4; 2205.05198, section 4.2.2.
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
    rank: int = 0,
) -> dict[tuple[str, str, str], Expected]:
    """Every collective of one rank in one optimizer step: (op, axis, reason) -> Expected.

    micro_batch is in sequences and, like accumulate (micro-batches a step), of one data-parallel
    replica; seq, the whole sequence, defaults to config.seq. With b*s tokens a micro-batch, of
    which a rank of cp has s' = s/c, h hidden, and l layers on the rank's stage:

        dp: count of valid tokens            1              8 bytes     the loss is divided by it
        tp: embedding output                 each mb        b*s'*h      first stage
        tp: row-parallel output              2l each mb     b*s'*h      attention's o, MLP's down
        tp: column-parallel input gradient   2l+1 each mb   b*s'*h      qkv, gate and up; the head
        tp: cross entropy maximum            each mb        b*s'        in fp32 or better
        tp: cross entropy sums               each mb        2*b*s'      sum of exponentials, target
        tp: gradient norm                    1              8 bytes     of the sharded parameters
        dp: gradient bucket                  each bucket    its bytes   last micro-batch only
        dp: loss                             1              8 bytes

    (the head's, and the cross entropy's, on the last stage). Buckets and the loss are summed over
    "dp", "cp" or, where both are split, "dp_cp". With sp the all-reduces of activations become
    pairs, which put the same bytes on the wire; payloads are those of the whole b*s'*h:

        sp: embedding output, sp: gather output gradient        reduce-scatter, all-gather
        sp: gather input, sp: scatter input gradient            all-gather, reduce-scatter
        sp: scatter output, sp: gather output gradient          reduce-scatter, all-gather
        sp: gradients of the norms           1              their bytes, in one all-reduce

    pp and cp send and receive; sp divides what pp sends by tp:

        pp: activations                      each mb        b*s'*h      from the stage before
        pp: gradients of activations         each mb        b*s'*h      from the stage behind
        pp: tied embedding gradient          1              the shard   first and last stage
        pp: loss, pp: gradient norm          1 each         8 bytes     all-reduce
        cp: keys and values                  2(c-1)l each mb  2*b*s'*k  forward, backward; k: width
        cp: gradients of keys and values     (c-1)l each mb   2*b*s'*k  of this rank's keys; fp32

    An axis of size 1 has no entries. Sources: arXiv 1909.08053, section 3 (layers, embedding and
    cross entropy), 2006.15704, section 3.2 (buckets), 2205.05198, section 4.2.2 (sp), 2310.01889,
    section 3 (ring attention). Raises ValueError for ep and ZeRO, and for a layout that cannot
    split the model or the sequence.
    """
    layout = Layout.parse(layout)
    require_llama(config)
    _refuse_others(layout)
    seq = config.seq if seq is None else seq
    for name, value in (("micro_batch", micro_batch), ("accumulate", accumulate), ("seq", seq)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be an integer of 1 or more")
    layout.check(config.replace(seq=seq))
    place, size = layout.coordinates(rank), dtype_bytes(dtype)
    step = _Step(layout)
    parameters = local_parameters(config, layout, rank)
    first, last = place["pp"] == 0, place["pp"] == layout.pp - 1
    layers = len(stage_layers(config.layers, layout.pp)[place["pp"]])
    tokens = micro_batch * (seq // layout.cp)

    activation = tokens * config.hidden * size
    if layout.sp:
        inputs, outputs = (2 * layers + last) * accumulate, 2 * layers * accumulate
        embeddings = first * accumulate
        step.add("reduce_scatter", "tp", "sp: embedding output", [activation] * embeddings)
        step.add("all_gather", "tp", "sp: gather input", [activation] * inputs)
        step.add("reduce_scatter", "tp", "sp: scatter output", [activation] * outputs)
        gradients = [activation] * (outputs + embeddings)
        step.add("all_gather", "tp", "sp: gather output gradient", gradients)
        step.add("reduce_scatter", "tp", "sp: scatter input gradient", [activation] * inputs)
        norms = sum(parameter.numel for parameter in parameters if not parameter.sharded)
        step.add("all_reduce", "tp", "sp: gradients of the norms", [norms * size])
    else:
        inputs, outputs = (2 * layers + last) * accumulate, 2 * layers * accumulate
        step.add(
            "all_reduce", "tp", "tp: embedding output", [activation] * (first * accumulate)
        )
        step.add("all_reduce", "tp", "tp: row-parallel output", [activation] * outputs)
        step.add("all_reduce", "tp", "tp: column-parallel input gradient", [activation] * inputs)
    if last:
        scalars = tokens * max(size, 4)  # cross entropy is computed in fp32 at least
        step.add("all_reduce", "tp", "tp: cross entropy maximum", [scalars] * accumulate)
        step.add("all_reduce", "tp", "tp: cross entropy sums", [2 * scalars] * accumulate)
    step.add("all_reduce", "tp", "tp: gradient norm", [8])

    kv_heads = len(even_slices(config.kv_heads, layout.tp)[place["tp"]])
    keys_values = 2 * tokens * kv_heads * config.head_dim
    hops = (layout.cp - 1) * layers * accumulate
    for op in ("send", "recv"):
        step.add(op, "cp", "cp: keys and values", [keys_values * size] * (2 * hops))
        gradients = [keys_values * max(size, 4)] * hops
        step.add(op, "cp", "cp: gradients of keys and values", gradients)

    boundary = [activation // (layout.tp if layout.sp else 1)] * accumulate
    step.add("recv", "pp", "pp: activations", [] if first else boundary)
    step.add("send", "pp", "pp: activations", [] if last else boundary)
    step.add("recv", "pp", "pp: gradients of activations", [] if last else boundary)
    step.add("send", "pp", "pp: gradients of activations", [] if first else boundary)
    if config.tied and (first or last):
        table = len(even_slices(config.vocab, layout.tp)[place["tp"]]) * config.hidden * size
        step.add("send", "pp", "pp: tied embedding gradient", [table])
        step.add("recv", "pp", "pp: tied embedding gradient", [table])
    step.add("all_reduce", "pp", "pp: loss", [8])
    step.add("all_reduce", "pp", "pp: gradient norm", [8])

    step.add("all_reduce", "dp", "dp: count of valid tokens", [8])
    sizes = [parameter.numel * size for parameter in parameters]
    groups = [sum(sizes[i] for i in group) for group in buckets(sizes, bucket_bytes)]
    step.add("all_reduce", step.data_axis, "dp: gradient bucket", groups)
    step.add("all_reduce", step.data_axis, "dp: loss", [8])
    return step.expected


class _Step:
    """Collects what a step sends; knows the axes' sizes."""

    def __init__(self, layout: Layout):
        self.sizes = {**layout.axes, "dp_cp": layout.dp * layout.cp}
        # As `comm.Mesh.data_axis`: the ranks that hold the same parameters and see other tokens.
        self.data_axis = "dp" if layout.cp == 1 else "cp" if layout.dp == 1 else "dp_cp"
        self.expected: dict[tuple[str, str, str], Expected] = {}

    def add(self, op: str, axis: str, reason: str, payloads: Sequence[int]) -> None:
        n = self.sizes[axis]
        if n > 1 and payloads:
            ring = sum(ring_bytes(op, payload, n) for payload in payloads)
            self.expected[op, axis, reason] = Expected(len(payloads), sum(payloads), ring)


def _refuse_others(layout: Layout) -> None:
    found = [name for name, used in (("ep", layout.ep > 1), ("zero", layout.zero > 0)) if used]
    if found:
        raise ValueError(
            f"step_ledger predicts dp, tp, sp, pp and cp, and {layout} also has "
            f"{' and '.join(found)}; leave {'it' if len(found) == 1 else 'them'} out"
        )
