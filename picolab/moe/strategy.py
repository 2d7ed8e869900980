"""Experts on ranks: the placement that deals them out, and keeps their loads even.

The ranks of an axis, by default `ep`, have other tokens each: `ep` is a part of dp x cp, and adds
no ranks. Of each layer's E experts a rank holds E / ep; attention and all else is whole on each, as
under data parallelism. So there are two groups of replicas:

    everything but experts     dp x cp ranks hold the same, and gradients are summed over them
    an expert                  edp = dp x cp / ep ranks: a rank's experts have seen the tokens of
                               all of its ep group already, so over that nothing is left to sum

Gradients are sums of what tokens contribute (the loss was divided once, by the global count), so
nothing is divided by ep. (Where replicas *average*, an expert's gradient averaged over edp is ep
times too large, a known bug: Megatron-LM PR 5956, pytorch issue 160285.)

Once a step the loads of all experts are added up over dp x cp; biases follow them, and everybody
who looks at the run is told (the event "experts").

Source: arXiv 2006.16668; 2504.14960 (expert and attention meshes folded). Twin: torchtitan's
`ExpertParallel`.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist

from picolab import comm
from picolab.costs import ExpertSlots
from picolab.model import Transformer, meta_parameter
from picolab.model.placement import Batch, Placement
from picolab.moe.balance import imbalance, move_bias
from picolab.moe.copies import copy_of, sum_gradients
from picolab.moe.dispatch import ExpertCommunication
from picolab.moe.experts import ExpertLayer
from picolab.moe.router import Pool, WholePool
from picolab.monitoring import events
from picolab.specs.expert_copies import Copies

LOADS, OVER_BATCH = "moe: loads of experts", "moe: loads of the global batch"


class MoEParallelStrategy(Placement):
    """Deals out each layer's experts over the ranks of an axis.

        strategy = MoEParallelStrategy(num_experts=8, expert_parallel_size=2)
        strategy.shard(model)             # on the meta device: a rank keeps 4 of 8 experts

    num_experts, expert_parallel_size: checked against the model and the axis; None: what they are.
    data_axis: over which ranks hold other tokens. pool: makes the `Pool` of a router (router.py).
    copies: layer -> rank of the axis -> which experts of others it has, too (copies.py).

    With it a rank holds 1/ep of the experts, and rows travel; without it, all of them, and none
    do. Not a `torch.optim` optimizer. Raises ValueError if ep does not divide the experts.
    """

    def __init__(
        self,
        num_experts: int | None = 8,
        expert_parallel_size: int | None = 2,
        *,
        axis: str = "ep",
        data_axis: str = "dp",
        pool: Callable[[], Pool] = WholePool,
        copies: Mapping[int, Copies] | None = None,
    ):
        if num_experts and expert_parallel_size and num_experts % expert_parallel_size:
            raise ValueError(
                f"{num_experts} experts cannot be dealt out evenly to {expert_parallel_size} ranks;"
                f" take {_near(num_experts, expert_parallel_size)} ranks"
            )
        self.num_experts, self.expert_parallel_size = num_experts, expert_parallel_size
        self.axis, self.data_axis, self._pool = axis, data_axis, pool
        self._copies = copies or {}
        self.loads: dict[int, torch.Tensor] = {}
        """Of the step that is over: layer -> how many choices fell on each expert, of all ranks."""

    def shard(self, model: Transformer) -> None:
        self._check(model)
        self.model = model
        ranks = comm.axis_size(self.axis)
        for layer in self.layers:
            layer.router.pool = self._pool()
            layer.router.over_batch = _OverBatch()
            if ranks > 1:
                slots, copied = None, ()
                if layer.number in self._copies:
                    slots = ExpertSlots(model.config.experts, self._copies[layer.number])
                    copied = slots.copies[comm.mesh().rank(self.axis)]
                layer.communication = ExpertCommunication(self.axis, slots=slots)
                _keep(layer, self.axis, comm.mesh().rank(self.axis), ranks, copied)

    @property
    def layers(self) -> list[ExpertLayer]:
        """Those of this rank; a pipeline takes some away."""
        return expert_layers(self.model)

    def split(self, batch: Batch) -> Batch:
        """The step's pools are its micro-batches, of every replica."""
        share_loss(self.model, len(batch.tokens_MBS) * comm.axis_size("dp"), batch.scale)
        for layer in self.layers:
            layer.router.over_batch.begin()
        return batch

    def finish_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        sum_gradients(self.layers, self.axis)

    def zero_grad(self) -> None:
        """A step begins: what a skipped one counted is not its."""
        for layer in self.layers:
            forget_counts(layer)

    def after_step(self) -> None:
        layers = self.layers
        if not layers:
            return
        # A row of loads for each layer, and how many rows were dropped.
        counts = torch.stack(
            [torch.cat((layer.router.counts_E, layer.router.dropped.view(1))) for layer in layers]
        )
        if comm.axis_size(self.data_axis) > 1:
            comm.all_reduce(counts, self.data_axis, LOADS)
        loads_LE, dropped_L = counts[:, :-1], counts[:, -1]
        for layer, load_E in zip(layers, loads_LE):
            update_bias(layer, load_E)
            forget_counts(layer)
        self.loads = {layer.number: load_E for layer, load_E in zip(layers, loads_LE)}
        if not self._tells:
            return
        events.write(
            "experts",
            step=comm.ledger().step,
            loads={name: load.tolist() for name, load in self.loads.items()},
            dropped=dropped_L.tolist(),
            imbalance=[imbalance(load) for load in loads_LE],
        )

    @property
    def _tells(self) -> bool:
        """One rank of those that know the same."""
        return not dist.is_initialized() or all(
            comm.mesh().rank(axis) == 0 for axis in ("dp", "cp", "tp")
        )

    def _check(self, model: Transformer) -> None:
        config, ranks = model.config, comm.axis_size(self.axis)
        for name, asked, there in (
            ("experts", self.num_experts, config.experts),
            (f"ranks of {self.axis}", self.expert_parallel_size, ranks),
        ):
            if asked is not None and asked != there:
                raise ValueError(
                    f"the strategy is for {asked} {name}, and there are {there}; give it the same"
                )
        if config.experts % ranks:
            raise ValueError(
                f"{config.experts} experts cannot be dealt out evenly to {ranks} ranks of "
                f"{self.axis}; take {_near(config.experts, ranks)} ranks"
            )


def expert_layers(model: Transformer) -> list[ExpertLayer]:
    return [block.mlp for block in model.layers if isinstance(block.mlp, ExpertLayer)]


def share_loss(model: Transformer, pools: int, scale: float = 1.0) -> None:
    """Let each pool's balance loss be 1 / pools of the step's, which is scaled like the other."""
    for layer in expert_layers(model):
        layer.loss_share = scale / pools


@torch.no_grad()
def update_bias(layer: ExpertLayer, load_E: torch.Tensor) -> None:
    """By the loads of a whole step, the same on every rank."""
    router = layer.router
    if router.bias is not None:
        router.bias.copy_(move_bias(router.bias, load_E, router.config.router_bias))


def forget_counts(layer: ExpertLayer) -> None:
    layer.router.counts_E.zero_()
    layer.router.dropped.zero_()


def _keep(
    layer: ExpertLayer, axis: str, index: int, ranks: int, copied: Sequence[int] = ()
) -> None:
    """Cut every parameter of the experts along its first dim; behind its own a rank has copies."""
    for module in layer.experts.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.is_meta:
                raise ValueError(
                    "experts are dealt out before they have values: build the model on the meta "
                    "device, shard it, and then initialise it"
                )
            pieces = [piece.shard(axis, 0, index, ranks) for piece in parameter.pieces]
            pieces += [copy_of(p, axis, expert) for expert in copied for p in parameter.pieces]
            own = meta_parameter(tuple(pieces), parameter.dtype)
            setattr(module, name, own.requires_grad_(parameter.requires_grad))


class _OverBatch:
    """Counts of the global batch: over the replicas, and over the step's micro-batches so far
    (arXiv 2501.11873, section 3)."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self._counts_E, self._tokens = 0, 0

    def __call__(self, counts_E: torch.Tensor, tokens: int) -> tuple[torch.Tensor, int]:
        # The pool's counts are the same on every rank of cp; replicas differ.
        if comm.axis_size("dp") > 1:
            counts_E = comm.all_reduce(counts_E.clone(), "dp", OVER_BATCH)
        self._counts_E = self._counts_E + counts_E
        self._tokens += tokens * comm.axis_size("dp")
        return self._counts_E, self._tokens


def _near(experts: int, ranks: int) -> int:
    return max(n for n in range(1, min(experts, ranks) + 1) if experts % n == 0)
