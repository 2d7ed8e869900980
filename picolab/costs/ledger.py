"""What one training step sends: the ledger, predicted.

`step_ledger` lists every collective that one rank takes part in during one optimizer step, with the
reasons that the code gives. It is exact: a run's ledger must equal it in count and payload, to the
byte, on every rank, and tests/distributed/test_formula_ledger.py holds it to that.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from picolab.costs.collectives import ring_bytes
from picolab.costs.expert_slots import ExpertSlots
from picolab.costs.memory import dtype_bytes
from picolab.costs.parameters import (
    BUILT,
    LocalParameter,
    has_experts,
    local_parameters,
    require_llama,
)
from picolab.costs.slices import even_slices, head_slices
from picolab.costs.stages import rank_stages
from picolab.costs.traffic import buckets
from picolab.costs.zero import apart, shard_of, zero3_uses, zero_shards
from picolab.specs import DEFAULT_BUCKET_BYTES, Layout, ModelConfig
from picolab.specs.expert_copies import Copies, parse_copies
from picolab.specs.precision import PRECISIONS, Numbers, PrecisionName

TABLES = ("embed.weight", "head.weight")


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
    precision: PrecisionName | None = None,
    bucket_bytes: int = DEFAULT_BUCKET_BYTES,
    sp_inputs: Literal["keep", "gather"] = "keep",
    rank: int = 0,
    routed: Sequence[Sequence] | None = None,
    expert_copies: str | None = None,
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
        tp: gradients of shared heads        1              their bytes k and v, if neighbours have
                                                                        the same key-value head
        dp: gradient bucket                  each bucket    its bytes   last micro-batch only
        dp: loss                             1              8 bytes

    (the head's, and the cross entropy's, on the last stage). Buckets and the loss are summed over
    "dp", "cp" or, where both are split, "dp_cp". With sp the all-reduces of activations become
    pairs, which put the same bytes on the wire; payloads are those of the whole b*s'*h:

        sp: embedding output, sp: gather output gradient        reduce-scatter, all-gather
        sp: gather input, sp: scatter input gradient            all-gather, reduce-scatter
        sp: gather input again               as often as that, with sp_inputs "gather"
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

    ZeRO has, in place of the gradient buckets, over the data axis or the shard group of n ranks; a
    payload is n times the first rank's rows of what travels together, shorter shards being padded:

        zero: gradient bucket                each bucket               reduce-scatter
        zero: gradient shards                each bucket    1/n of it  all-reduce over the groups
        zero: updated parameters             each bucket               all-gather; stages 1, 2
        zero: parameters, forward            each mb: embedding, each block, norm and head; stage 3
        zero: parameters, backward           each mb: the same without the embedding and, where
                                             there is no pipeline, without norm and head

    Experts, in each of the lm layers that have some (E experts, k choices a token, w bytes of a
    router's number: 4 or, in fp64, 8). Rows of a rank are one for each choice of its tokens,
    b*s'*k if nothing is dropped; those that come to it depend on what all ranks chose, and are as
    many if loads are even:

        ep: rows for each expert             lm each mb     E*8         all-to-all
        ep: rows to experts                  lm each mb     rows*h      all-to-all, and "gradients
                                                                        of rows back" as much
        ep: rows back                        lm each mb     what came   and "gradients of rows from
                                                                        experts" as much
        tp: gradient of the router's weights lm each mb     rows*w
        sp: router logits                    lm each mb     b*s'*E*w    all-gather
        cp: router logits                    lm each mb     b*s*E*w     if anything depends on which
                                                                        tokens stand together
        moe: loads of experts                1              lm*(E+1)*8  over the data axis
        moe: loads of the global batch       lm each mb     E*8         over dp, aux_over "global
                                                                        batch"
        ep: gradient bucket                  each bucket    its bytes   of experts, over edp
        zero of experts: ...                                            as of zero, over edp
        ep: gradients of copies              1              the copies' all-to-all, to the owners
        ep: sums of copies' gradients        1              of copies   all-to-all, of what is owned
        tp: gradients of heads' norms        1              their bytes with qk_norm; not with sp

    dtype: of everything; precision, which goes before it: of activations one, and of gradients and
    parameters perhaps another (specs/precision.py). With fp16 all ranks agree whether to skip, with
    adaptive precision whether to go back (what is agreed on in the first step, which layer gets
    which format, is not in here):

        precision: does any rank object?     1              8 bytes     all-reduce over all ranks

    routed: rank -> expert -> the rows that it sends in the step, over all layers of its stage and
    its micro-batches; None: nothing is dropped, and loads are even.
    expert_copies: as in TrainConfig. Rows for each expert are then rows for each slot, copies
    included. And as each exchange shares out its rows by itself, `routed` is then rank -> exchange
    -> (layer, expert -> rows).

    A rank with several stages has the messages of each, but for those between two of its own. An
    axis of size 1 has no entries. Sources: arXiv 1909.08053, section 3 (layers, embedding and
    cross entropy), 2006.15704, section 3.2 (buckets), 2205.05198, section 4.2.2 (sp), 2310.01889,
    section 3 (ring attention), 1910.02054, section 7 (ZeRO). Raises ValueError for a layout that
    cannot split the model or the sequence.
    """
    layout = Layout.parse(layout)
    require_llama(config, but=BUILT)
    seq = config.seq if seq is None else seq
    for name, value in (("micro_batch", micro_batch), ("accumulate", accumulate), ("seq", seq)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be an integer of 1 or more")
    config = config.replace(seq=seq)
    layout.check(config)

    numbers = PRECISIONS.get(precision)
    sizes = [dtype_bytes(of) for of in (numbers or Numbers(dtype, dtype)).travelling]
    step = _Step(config, layout, rank, micro_batch, accumulate, *sizes)
    parameters, kept = (
        of(config, layout, rank, expert_copies=expert_copies)
        for of in (local_parameters, zero_shards)
    )

    step.add("all_reduce", "dp", "dp: count of valid tokens", [8])
    if layout.sp:
        step.sequence_parallel(sp_inputs)
        norms = sum(parameter.numel for parameter in kept if "tp" not in parameter.axes)
        step.add("all_reduce", "tp", "sp: gradients of the norms", [norms * step.of_parameters])
    else:
        step.tensor_parallel()
    step.shared_heads(rank)
    step.head_norms(kept)
    step.experts(rank, routed, parse_copies(expert_copies, config, layout))
    step.cross_entropy()
    step.context_parallel()
    step.pipeline([parameter.numel for parameter in kept if parameter.name in TABLES])
    uses = zero3_uses(config, layout, rank) if layout.zero else []
    dense = [p for p in parameters if not apart(p, layout)]
    of_experts = [p for p in parameters if apart(p, layout)]
    for mine, axis, of in (
        (dense, layout.shard_axis, "zero"),
        (of_experts, "edp", "zero of experts"),
    ):
        sizes = [parameter.numel * step.of_parameters for parameter in mine]
        together = [[mine[i] for i in group] for group in buckets(sizes, bucket_bytes)]
        if layout.zero:
            own = [[p for p in use if p in mine] for use in uses]
            step.zero(together, [use for use in own if use], axis, of)
        else:
            filled = [step.of_parameters * sum(p.numel for p in group) for group in together]
            axis, of = ("edp", "ep") if mine is of_experts else (layout.data_axis, "dp")
            step.add("all_reduce", axis, f"{of}: gradient bucket", filled)
    step.add("all_reduce", layout.data_axis, "dp: loss", [8])
    step.add("all_reduce", "pp", "pp: loss", [8])
    step.gradient_norm({parameter.axes for parameter in kept})
    if numbers is not None and numbers.agreed:
        step.add("all_reduce", "world", "precision: does any rank object?", [8], layout.world)
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
        of_parameters: int,
    ):
        place = layout.coordinates(rank)
        self.config, self.layout, self.accumulate = config, layout, accumulate
        # Of an activation, and of a parameter and its gradient.
        self.size, self.of_parameters = size, of_parameters
        self.tp = place["tp"]
        self.heads = head_slices(config.heads, config.kv_heads, layout.tp, place["tp"])
        self.stages = rank_stages(config.layers, layout, place["pp"])
        self.first, self.last = 0 in self.stages, layout.stage_count - 1 in self.stages
        numbers = [layer for layers in self.stages.values() for layer in layers]
        self.layers = len(numbers)
        self.with_experts = [layer for layer in numbers if has_experts(config, layer)]
        self.sparse = len(self.with_experts)
        self.tokens = micro_batch * (config.seq // layout.cp)
        self.activation = self.tokens * config.hidden * size
        self.expected: dict[tuple[str, str, str], Expected] = {}

    def add(
        self, op: str, axis: str, reason: str, payloads: Sequence[int], n: int | None = None
    ) -> None:
        n = self.layout.size(axis) if n is None else n
        if n > 1 and payloads:
            ring = sum(ring_bytes(op, payload, n) for payload in payloads)
            self.expected[op, axis, reason] = Expected(len(payloads), sum(payloads), ring)

    def activations(self, each_micro_batch: int) -> list[int]:
        return [self.activation] * (each_micro_batch * self.accumulate)

    def shared_heads(self, rank: int) -> None:
        """k and v of every layer, as far as this rank keeps their rows, where neighbours have the
        same head."""
        config, layout = self.config, self.layout
        copies = layout.head_copies(config)
        queries, keys = (len(held) * config.head_dim for held in self.heads)
        width = config.hidden + config.qkv_bias  # matrix and bias are cut by the same rows
        rows = range(queries + 2 * keys)
        if layout.zero and layout.size(layout.shard_axis) > 1:
            (line,) = (line for line in layout.lines(layout.shard_axis) if rank in line)
            rows = even_slices(len(rows), len(line))[line.index(rank)]
        kept = self.layers * len(range(max(rows.start, queries), rows.stop)) * width
        if copies > 1 and kept:
            axis = f"tp_copies{copies}"
            reason = "tp: gradients of shared heads"
            self.add("all_reduce", axis, reason, [kept * self.of_parameters], copies)

    def head_norms(self, kept: list[LocalParameter]) -> None:
        mine = sum(p.numel for p in kept if ".q_norm." in p.name or ".k_norm." in p.name)
        if mine and not self.layout.sp:
            payload = mine * self.of_parameters
            self.add("all_reduce", "tp", "tp: gradients of heads' norms", [payload])

    def experts(
        self, rank: int, routed: Sequence[Sequence] | None, copies: dict[int, Copies]
    ) -> None:
        config, layout = self.config, self.layout
        times, number = self.sparse * self.accumulate, max(self.size, 4)
        if not times:
            return
        rows = came = times * self.tokens * config.experts_per_token
        (line,) = (line for line in layout.lines("ep") if rank in line)
        me, none = line.index(rank), ((),) * layout.ep
        slots = {i: ExpertSlots(config.experts, copies.get(i, none)) for i in self.with_experts}
        if routed is None and copies:
            even = [rows * layout.ep / self.sparse / config.experts] * config.experts
            came = round(sum(of.rows_of_ranks(even)[me] for of in slots.values()))
        elif copies:
            rows = sum(sum(rows_E) for _, rows_E in routed[rank])
            came = sum(
                len(share)
                for sender, other in enumerate(line)
                for layer, rows_E in routed[other]
                for share in slots[layer].share_out(rows_E, sender)[me]
            )
        elif routed is not None:
            rows = sum(routed[rank])
            mine = next(iter(slots.values())).held[me]
            came = sum(routed[other][expert] for other in line for expert in mine)
        row = config.hidden * self.size
        counted = [8 * sum(of.sizes) for of in slots.values()] * self.accumulate
        self.add("all_to_all", "ep", "ep: rows for each expert", counted)
        self.copies(slots, me)
        for reason, of in (
            ("ep: rows to experts", rows),
            ("ep: gradients of rows back", rows),
            ("ep: rows back", came),
            ("ep: gradients of rows from experts", came),
        ):
            self.add_total("all_to_all", "ep", reason, times, of * row)
        reason = "tp: gradient of the router's weights"
        self.add_total("all_reduce", "tp", reason, times, rows * number)
        logits = self.tokens * config.experts * number
        if layout.sp:
            self.add("all_gather", "tp", "sp: router logits", [logits] * times)
        if config.pools_tokens:
            self.add("all_gather", "cp", "cp: router logits", [logits * layout.cp] * times)
        loads = [8 * self.sparse * (config.experts + 1)]
        self.add("all_reduce", layout.data_axis, "moe: loads of experts", loads)
        if config.aux_loss and config.aux_over == "global batch":
            loads = [8 * config.experts] * times
            self.add("all_reduce", "dp", "moe: loads of the global batch", loads)

    def copies(self, slots: dict[int, ExpertSlots], me: int) -> None:
        """A copy's gradient goes to the expert's owner, and the sum to each copy."""
        plans = [of for of in slots.values() if any(of.copies)]
        if not plans:
            return
        wide = len(even_slices(self.config.expert_ffn, self.layout.tp)[self.tp])
        each = 3 * self.config.hidden * wide * self.of_parameters
        here = sum(len(of.copies[me]) for of in plans)
        owned = sum(of.owner(e) == me for of in plans for held in of.copies for e in held)
        self.add("all_to_all", "ep", "ep: gradients of copies", [here * each])
        self.add("all_to_all", "ep", "ep: sums of copies' gradients", [owned * each])

    def add_total(self, op: str, axis: str, reason: str, count: int, payload: int) -> None:
        """So many collectives, of which only the sum of the payloads is known."""
        n = self.layout.size(axis)
        if n > 1:
            self.expected[op, axis, reason] = Expected(count, payload, ring_bytes(op, payload, n))

    def tensor_parallel(self) -> None:
        rows, columns = 2 * self.layers, 2 * self.layers + self.last
        for reason, count in (
            ("tp: embedding output", int(self.first)),
            ("tp: row-parallel output", rows),
            ("tp: column-parallel input gradient", columns),
        ):
            self.add("all_reduce", "tp", reason, self.activations(count))

    def sequence_parallel(self, inputs: str) -> None:
        rows, columns = 2 * self.layers, 2 * self.layers + self.last
        again = columns - self.sparse  # a layer of experts keeps its input
        for op, reason, count in (
            ("reduce_scatter", "sp: embedding output", int(self.first)),
            ("all_gather", "sp: gather input", columns),
            ("all_gather", "sp: gather input again", again if inputs == "gather" else 0),
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
        numbers = 2 * self.tokens * len(self.heads[1]) * self.config.head_dim
        hops = (self.layout.cp - 1) * self.layers * self.accumulate
        gradients = [numbers * max(self.size, 4)] * hops
        for op in ("send", "recv"):
            self.add(op, "cp", "cp: keys and values", [numbers * self.size] * (2 * hops))
            self.add(op, "cp", "cp: gradients of keys and values", gradients)

    def zero(
        self,
        together: list[list[LocalParameter]],
        uses: list[list[LocalParameter]],
        axis: str,
        of: str,
    ) -> None:
        """Lines of shards, as long as the first rank's."""
        stage, n = self.layout.zero, self.layout.size(axis)

        def lines(groups: list[list[LocalParameter]]) -> list[int]:
            first = [sum(shard_of(p, self.layout, 0).numel for p in group) for group in groups]
            return [n * numel * self.of_parameters for numel in first]

        filled = lines(together)
        self.add("reduce_scatter", axis, f"{of}: gradient bucket", filled)
        if self.layout.shard and axis == "shard":
            shards = [payload // n for payload in filled]
            self.add("all_reduce", "replica", f"{of}: gradient shards", shards)
        if stage < 3:
            self.add("all_gather", axis, f"{of}: updated parameters", filled)
        else:
            again = uses[1:] if uses and uses[0][0].name == "embed.weight" else uses
            if self.layout.pp == 1:  # the last is kept for its backward
                again = again[:-1]
            for when, groups in (("forward", uses), ("backward", again)):
                gathers = lines(groups) * self.accumulate
                self.add("all_gather", axis, f"{of}: parameters, {when}", gathers)

    def pipeline(self, tables: list[int]) -> None:
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
            table = [numel * self.of_parameters for numel in tables]
            self.add("send", "pp", "pp: tied embedding gradient", table)
            self.add("recv", "pp", "pp: tied embedding gradient", table)

    def gradient_norm(self, cut_along: set[frozenset[str]]) -> None:
        """Axis by axis: the sums of squares of what is cut along it, side by side, 8 bytes each."""
        wide = {axis for axes in cut_along for axis in axes if self.layout.size(axis) > 1}
        cut_along = {axes & wide for axes in cut_along}
        for axis in sorted(wide):
            squares = [axes for axes in cut_along if axis in axes]
            self.add("all_reduce", axis, f"{axis}: gradient norm", [8 * len(squares)])
            cut_along = {axes - {axis} for axes in cut_along}
        self.add("all_reduce", "pp", "pp: gradient norm", [8])
