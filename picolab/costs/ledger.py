"""What one training step sends: the ledger, predicted.

`step_ledger` lists every collective that one rank takes part in during one optimizer step, with the
reasons that the code gives. It is exact: a run's ledger must equal it in count and payload, to the
byte, on every rank, and tests/distributed/test_formula_ledger.py holds it to that.
"""

from collections.abc import Sequence
from typing import NamedTuple

from picolab.costs.collectives import ring_bytes
from picolab.costs.memory import dtype_bytes
from picolab.costs.parameters import local_parameters, require_llama
from picolab.costs.slices import even_slices
from picolab.costs.stages import rank_stages
from picolab.costs.traffic import buckets
from picolab.specs import DEFAULT_BUCKET_BYTES, Layout, ModelConfig


class Expected(NamedTuple):
    """One kind of collective in a step, of one rank: how many, and their bytes added up."""

    count: int
    payload_bytes: int
    ring_bytes: float


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
        pp: tied embedding gradient          1              the shard   first and last stage, where
                                                                        they are on two ranks
        pp: loss, pp: gradient norm          1 each         8 bytes     all-reduce
        cp: keys and values                  2(c-1)l each mb  2*b*s'*k  forward, backward; k: width
        cp: gradients of keys and values     (c-1)l each mb   2*b*s'*k  of this rank's keys; fp32

    A rank with several stages has the messages of each, but for those between two of its own. An
    axis of size 1 has no entries. Sources: arXiv 1909.08053, section 3 (layers, embedding and
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
    config = config.replace(seq=seq)
    layout.check(config)

    step = _Step(config, layout, rank, micro_batch, accumulate, dtype_bytes(dtype))
    parameters = local_parameters(config, layout, rank)
    data_axis = layout.data_axis

    step.add("all_reduce", "dp", "dp: count of valid tokens", [8])
    if layout.sp:
        step.sequence_parallel()
        norms = sum(parameter.numel for parameter in parameters if "tp" not in parameter.axes)
        step.add("all_reduce", "tp", "sp: gradients of the norms", [norms * step.size])
    else:
        step.tensor_parallel()
    step.cross_entropy()
    step.context_parallel()
    step.pipeline()
    sizes = [parameter.numel * step.size for parameter in parameters]
    filled = [sum(sizes[i] for i in group) for group in buckets(sizes, bucket_bytes)]
    step.add("all_reduce", data_axis, "dp: gradient bucket", filled)
    step.add("all_reduce", data_axis, "dp: loss", [8])
    step.add("all_reduce", "pp", "pp: loss", [8])
    step.gradient_norm({parameter.axes for parameter in parameters})
    return step.expected


class _Step:
    """One rank's step: its sizes, and what it sends axis by axis."""

    def __init__(
        self,
        config: ModelConfig,
        layout: Layout,
        rank: int,
        micro_batch: int,
        accumulate: int,
        size: int,
    ):
        place = layout.coordinates(rank)
        self.config, self.layout, self.accumulate, self.size = config, layout, accumulate, size
        self.tp_rank = place["tp"]
        self.stages = rank_stages(config.layers, layout, place["pp"])
        self.first, self.last = 0 in self.stages, layout.stage_count - 1 in self.stages
        self.layers = sum(map(len, self.stages.values()))
        self.tokens = micro_batch * (config.seq // layout.cp)
        self.activation = self.tokens * config.hidden * size
        self.expected: dict[tuple[str, str, str], Expected] = {}

    def add(self, op: str, axis: str, reason: str, payloads: Sequence[int]) -> None:
        n = self.layout.size(axis)
        if n > 1 and payloads:
            ring = sum(ring_bytes(op, payload, n) for payload in payloads)
            self.expected[op, axis, reason] = Expected(len(payloads), sum(payloads), ring)

    def activations(self, each_micro_batch: int) -> list[int]:
        return [self.activation] * (each_micro_batch * self.accumulate)

    def share(self, size: int) -> int:
        """What this rank of tp has of a size that is dealt out over tp."""
        return len(even_slices(size, self.layout.tp)[self.tp_rank])

    def tensor_parallel(self) -> None:
        rows, columns = 2 * self.layers, 2 * self.layers + self.last
        for reason, count in (
            ("tp: embedding output", int(self.first)),
            ("tp: row-parallel output", rows),
            ("tp: column-parallel input gradient", columns),
        ):
            self.add("all_reduce", "tp", reason, self.activations(count))

    def sequence_parallel(self) -> None:
        rows, columns = 2 * self.layers, 2 * self.layers + self.last
        for op, reason, count in (
            ("reduce_scatter", "sp: embedding output", int(self.first)),
            ("all_gather", "sp: gather input", columns),
            ("reduce_scatter", "sp: scatter output", rows),
            ("all_gather", "sp: gather output gradient", rows + self.first),
            ("reduce_scatter", "sp: scatter input gradient", columns),
        ):
            self.add(op, "tp", reason, self.activations(count))

    def cross_entropy(self) -> None:
        if self.last:
            numbers = self.tokens * max(self.size, 4)  # computed in fp32 at least
            maxima, sums = [numbers] * self.accumulate, [2 * numbers] * self.accumulate
            self.add("all_reduce", "tp", "tp: cross entropy maximum", maxima)
            self.add("all_reduce", "tp", "tp: cross entropy sums", sums)

    def context_parallel(self) -> None:
        """Keys and values go round the ring in both directions, their gradients backward."""
        numbers = 2 * self.tokens * self.share(self.config.kv_heads) * self.config.head_dim
        hops = (self.layout.cp - 1) * self.layers * self.accumulate
        gradients = [numbers * max(self.size, 4)] * hops
        for op in ("send", "recv"):
            self.add(op, "cp", "cp: keys and values", [numbers * self.size] * (2 * hops))
            self.add(op, "cp", "cp: gradients of keys and values", gradients)

    def pipeline(self) -> None:
        shares = self.layout.tp if self.layout.sp else 1
        boundary = [self.activation // shares] * self.accumulate
        ranks = self.layout.stage_ranks
        # Boundaries to a stage of the same rank send nothing.
        here = [(stage - 1, stage) for stage in self.stages if stage > 0]
        there = [(stage, stage + 1) for stage in self.stages if stage + 1 < len(ranks)]
        for boundaries, op, back in ((here, "recv", "send"), (there, "send", "recv")):
            crossed = sum(ranks[one] != ranks[other] for one, other in boundaries)
            self.add(op, "pp", "pp: activations", boundary * crossed)
            self.add(back, "pp", "pp: gradients of activations", boundary * crossed)
        if self.config.tied and self.first != self.last:
            table = self.share(self.config.vocab) * self.config.hidden * self.size
            self.add("send", "pp", "pp: tied embedding gradient", [table])
            self.add("recv", "pp", "pp: tied embedding gradient", [table])

    def gradient_norm(self, cut_along: set[frozenset[str]]) -> None:
        """Axis by axis: the sums of squares of what is cut along it, side by side, 8 bytes each."""
        for axis in sorted({axis for axes in cut_along for axis in axes}):
            squares = [axes for axes in cut_along if axis in axes]
            self.add("all_reduce", axis, f"{axis}: gradient norm", [8 * len(squares)])
            cut_along = {axes - {axis} for axes in cut_along}
        self.add("all_reduce", "pp", "pp: gradient norm", [8])


def _refuse_others(layout: Layout) -> None:
    found = [name for name, used in (("ep", layout.ep > 1), ("zero", layout.zero > 0)) if used]
    if found:
        raise ValueError(
            f"step_ledger predicts dp, tp, sp, pp and cp, and {layout} also has "
            f"{' and '.join(found)}; leave {'it' if len(found) == 1 else 'them'} out"
        )
