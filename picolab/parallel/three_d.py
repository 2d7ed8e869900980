"""The composition: one model, one layout, in one page of ordered lines.

    parallel = parallelize(Transformer(config), "dp2tp2", seed=0)
    loss = parallel.forward_backward(tokens, labels)     # all micro-batches; gradients are complete
    norm = parallel.clip(1.0)

It composes, and does nothing else: which placements a layout asks for, in which order. What each of
them does is in its own file; gathering and the norm follow from the pieces (whole.py). Everything
that leaves has global, unfused names.

Twin: torchtitan's `parallelize.py`.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
import torch.distributed as dist

from picolab import comm, costs, schedules
from picolab.model import Transformer, initialise
from picolab.model.placement import Batch, Placement
from picolab.model.transformer import IGNORED
from picolab.moe import ExpertLayer, MoEParallelStrategy
from picolab.moe.router import WholePool, is_bias
from picolab.parallel import micro_batches
from picolab.parallel.buckets import Buffer, GradientBuckets
from picolab.parallel.context import ContextParallelOptimizer
from picolab.parallel.data import DataParallelOptimizer
from picolab.parallel.experts import SequencePool, split_experts
from picolab.parallel.micro_batches import Valid, count_valid
from picolab.parallel.pipeline import PipelineParallelOptimizer
from picolab.parallel.random_streams import RandomStreams
from picolab.parallel.same_start import check_same_start
from picolab.parallel.tensor import RULES, TensorParallelOptimizer
from picolab.parallel.tensor_comm import Inputs
from picolab.parallel.whole import gather_all, square_norm
from picolab.parallel.zero import ZeroOptimizer
from picolab.specs import Layout
from picolab.specs.expert_copies import Copies, parse_copies

TENSOR_RULES = {**RULES, ExpertLayer: split_experts}
EXPERT_GRADIENTS = "ep: gradient bucket"


def placements(
    layout: Layout,
    bucket_bytes: int,
    find_unused: bool,
    sp_inputs: Inputs = "keep",
    experts: bool = False,
    copies: Mapping[int, Copies] | None = None,
) -> list[Placement]:
    """What a layout asks for, in the order in which it is put on the model. experts: the model has
    some. copies: of them, see `MoEParallelStrategy`."""
    found: list[Placement] = []
    # While there are only shapes: a rank never holds a whole matrix.
    if layout.tp > 1:
        found.append(
            TensorParallelOptimizer(
                axis="tp", sequence=layout.sp, rules=TENSOR_RULES, sp_inputs=sp_inputs
            )
        )
    # Also where no expert is elsewhere: loads are evened out in every layout.
    if experts:
        pool = SequencePool if layout.cp > 1 else WholePool
        found.append(
            MoEParallelStrategy(None, None, data_axis=layout.data_axis, pool=pool, copies=copies)
        )
    # Stages are picked out after the split, which knows the whole model.
    if layout.pp > 1:
        found.append(PipelineParallelOptimizer(None, "pp", layout.schedule, layout.stages))
    # It changes no parameter, only what attention does and which tokens a rank has.
    if layout.cp > 1:
        found.append(ContextParallelOptimizer(axis="cp"))
    # Last: its buffers have the size and the place of the final parameters. Ranks of cp hold the
    # same parameters and see other tokens, just as those of dp do; of an expert, only those of edp
    # do.
    if layout.dp * layout.cp > 1:
        options = {"bucket_bytes": bucket_bytes, "find_unused": find_unused}
        if layout.zero:  # it cuts what the others left
            axis, copies = layout.shard_axis, "replica" if layout.shard else None
            dense = ZeroOptimizer(
                None, axis, layout.zero, replica_axis=copies, only=_not_apart, **options
            )
            of_experts = ZeroOptimizer(
                None, "edp", layout.zero, only=_apart, of="zero of experts", **options
            )
        else:
            dense = DataParallelOptimizer(None, layout.data_axis, only=_not_apart, **options)
            of_experts = DataParallelOptimizer(
                None, "edp", only=_apart, reason=EXPERT_GRADIENTS, **options
            )
        found.append(dense)
        if layout.ep > 1 and layout.size("edp") > 1:
            found.append(of_experts)
    return found


def _apart(parameter: torch.nn.Parameter) -> bool:
    """Whether it is of experts that are dealt out."""
    return any("ep" in piece.axes for piece in parameter.pieces)


def _not_apart(parameter: torch.nn.Parameter) -> bool:
    """A router's bias needs nobody: no gradient trains it, and every rank moves it alike."""
    return not _apart(parameter) and not is_bias(parameter)


def parallelize(
    model: Transformer,
    layout: Layout | str,
    *,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    bucket_bytes: int = costs.DEFAULT_BUCKET_BYTES,
    find_unused: bool = False,
    sp_inputs: Inputs = "keep",
    expert_copies: str | None = None,
) -> "ThreeDParallelOptimizer":
    """Place the model on the ranks of the layout. See `ThreeDParallelOptimizer`."""
    return ThreeDParallelOptimizer(
        model,
        layout,
        seed=seed,
        device=device,
        dtype=dtype,
        bucket_bytes=bucket_bytes,
        find_unused=find_unused,
        sp_inputs=sp_inputs,
        expert_copies=expert_copies,
    )


class ThreeDParallelOptimizer:
    """Composes data, tensor, pipeline, context and expert parallelism on one model. Not a
    `torch.optim` optimizer.

    model: on the meta device (or, where tp is 1, with values, which it keeps). Every rank calls
    this with the same arguments. The mesh is the current one if it has the layout's axes, else it
    is built. device None: this rank's GPU under NCCL, else the CPU. dtype None: the model's own.
    expert_copies: as in TrainConfig.

    Raises ValueError for a layout that cannot split the model, and for ranks that should hold the
    same parameters and do not (same_start.py).
    """

    def __init__(
        self,
        model: Transformer,
        layout: Layout | str,
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        bucket_bytes: int = costs.DEFAULT_BUCKET_BYTES,
        find_unused: bool = False,
        sp_inputs: Inputs = "keep",
        expert_copies: str | None = None,
    ):
        layout = Layout.parse(layout)
        layout.check(model.config)
        copies = parse_copies(expert_copies, model.config, layout)
        self.model, self.layout = model, layout

        # 1. The mesh, before anything asks for its place in it. One rank needs none.
        alone = layout.world == 1 and not dist.is_initialized()
        if not alone and not layout.same_groups(comm.mesh().layout):
            comm.build_mesh(layout)

        # 2. Everything is cut while the model is on the meta device.
        experts = model.config.experts > 0
        self.placements = placements(layout, bucket_bytes, find_unused, sp_inputs, experts, copies)
        for placement in self.placements:
            placement.shard(model)

        # 3. Values after the cuts, because only then is it known which slices to keep.
        drawn = any(parameter.is_meta for parameter in model.parameters())
        if drawn:
            initialise(model, seed, device or comm.device(), dtype)

        # 4. Before anything is dealt out that replicas hold alike.
        if not alone:
            check_same_start(model, layout.data_axis, seed if drawn else None)

        # 5. Hooks and buffers at the end: `initialise` makes new parameters, on which older hooks
        #    would never be called.
        for placement in self.placements:
            placement.attach(model)

        self._own: tuple[torch.Tensor, float, torch.Tensor] | None = None  # see `own_loss`

        # 6. Where ranks hold the same, they drop the same (a model without dropout draws nothing).
        RandomStreams(seed, comm.device()).install(model, layout.sp)

    def forward_backward(
        self,
        tokens_MBS: torch.Tensor,
        labels_MBS: torch.Tensor,
        valid: Valid | None = None,
        stage_cost_s: tuple[float, float] = (0.0, 0.0),
        scale: float = 1.0,
    ) -> torch.Tensor:
        """All micro-batches of a step, in the layout's way; gradients are complete afterwards.

        tokens and labels: (M, B, S), this replica's whole sequences. valid: how many of them
        count, None to sum it. Returns the mean loss of the global batch (fp64 scalar), the
        same on every rank. stage_cost_s: see `PipelineParallelOptimizer.run`. scale: gradients are
        those of so many times the loss (and the loss is returned as it is).
        """
        valid = count_valid(labels_MBS) if valid is None else valid
        count = valid.all / scale
        batch = self._split(tokens_MBS, labels_MBS, scale)
        if self.pipeline is None:
            total = micro_batches.run(self.model, batch, count, self.no_sync)
        else:
            total = self.pipeline.run(
                schedules.make(self.layout.schedule, self.layout.pp, len(tokens_MBS)),
                batch.tokens_MBS,
                batch.labels_MBS,
                count,
                no_sync=self.no_sync,
                positions_S=batch.positions_S,
                stage_cost_s=stage_cost_s,
            )
        self.finish_gradients()
        self._keep_own(total, count, valid.own if batch.labels_MBS is labels_MBS else batch)
        return self._over_all_ranks(total) / scale

    def _keep_own(self, total: torch.Tensor, count: float, of: torch.Tensor | Batch) -> None:
        """of: how many of the rank's own labels count, where that is known: in all layouts but
        those of cp, which give it another share of the sequences."""
        self._own = None
        if self.pipeline is None or self.pipeline.last:
            valid = (of.labels_MBS != IGNORED).sum() if isinstance(of, Batch) else of
            self._own = total.clone(), count, valid

    @property
    def own_loss(self) -> float | None:
        """The mean over this rank's own tokens in the last step: of before the reduction, which
        spreads one rank's NaN over all. None where the rank knows no loss."""
        if self._own is None:
            return None
        total, count, valid = self._own
        return total.item() * count / max(1, valid.item())

    def evaluate(self, tokens_MBS: torch.Tensor, labels_MBS: torch.Tensor) -> torch.Tensor:
        """The mean loss of the global batch, as `forward_backward` returns it, and no gradients."""
        count, batch = count_valid(labels_MBS).all, self._split(tokens_MBS, labels_MBS)
        if self.pipeline is None:
            total = micro_batches.forward_only(self.model, batch, count)
        else:
            total = self.pipeline.forward_only(batch, count)
        return self._over_all_ranks(total)

    def _split(
        self, tokens_MBS: torch.Tensor, labels_MBS: torch.Tensor, scale: float = 1.0
    ) -> Batch:
        batch = Batch(tokens_MBS, labels_MBS, scale=scale)
        for placement in self.placements:
            batch = placement.split(batch)
        return batch

    def _over_all_ranks(self, total: torch.Tensor) -> torch.Tensor:
        """The loss of this rank's tokens, which its stage may not know, -> that of all tokens."""
        if self.layout.world > 1:
            comm.all_reduce(total, self.layout.data_axis, "dp: loss")
            comm.all_reduce(total, "pp", "pp: loss")  # the last stage knows it, others add zero
        return total

    @property
    def pipeline(self) -> PipelineParallelOptimizer | None:
        """The placement that runs micro-batches in an order of its own, if there is one."""
        found = [p for p in self.placements if isinstance(p, PipelineParallelOptimizer)]
        return found[0] if found else None

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """For all micro-batches but the last: gradients are added up here, and not yet over dp."""
        with ExitStack() as stack:
            for placement in self.placements:
                stack.enter_context(placement.no_sync())
            yield

    def finish_gradients(self) -> None:
        """After the last backward: from here on every gradient is that of the global batch. In the
        reverse of the order of placing: the buckets hold what the others go on with."""
        mine = self.parameters()
        for placement in reversed(self.placements):
            placement.finish_gradients(mine)

    def parameters(self) -> list[torch.nn.Parameter]:
        """What the optimizer steps."""
        mine = list(self.model.parameters())
        for placement in self.placements:
            mine = placement.parameters(mine)
        return mine

    def after_step(self) -> None:
        """After the optimizer's step."""
        for placement in self.placements:
            placement.after_step()

    def after_load(self) -> None:
        """After `parameters()` were given other values, by a checkpoint. All ranks call it."""
        for placement in self.placements:
            placement.after_load()

    def zero_grad(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None
        for placement in self.placements:
            placement.zero_grad()

    def use_buffers(self, buffer: Buffer) -> None:
        """Where buckets are packed, if not in fresh memory each time."""
        for placement in self.placements:
            if isinstance(placement, GradientBuckets):
                placement.buffer = buffer

    def held(self) -> list[torch.Tensor]:
        """Every parameter that takes memory here, what it is for aside: the model's, and what
        placements keep beside it. Views of one another among them."""
        besides = [tensor for placement in self.placements for tensor in placement.held()]
        return [*self.model.parameters(), *besides]

    def grad_norm(self) -> float:
        """The norm of the whole model's gradient: every element counted once."""
        return math.sqrt(float(square_norm(self.parameters())))

    def clip(self, max_norm: float) -> float:
        """Scale all gradients so that their global norm is at most max_norm; returns the norm
        before.

        The factor is that of `torch.nn.utils.clip_grad_norm_`: min(1, max_norm / (norm + 1e-6)).
        """
        norm = self.grad_norm()
        factor = max_norm / (norm + 1e-6)
        if factor < 1:
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            if gradients:  # all that a stage has may be frozen
                torch._foreach_mul_(gradients, factor)
        return norm

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Global name -> whole tensor, on the CPU, on every rank. All ranks must call it."""
        return gather_all(self.parameters(), torch.Tensor.detach, "gather the state")

    def gradients(self) -> dict[str, torch.Tensor]:
        """The same of the gradients; parameters without one are left out."""
        return gather_all(self.parameters(), lambda p: p.grad, "gather the gradients")
