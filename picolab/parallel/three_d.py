"""The composition: one model, one layout, in one page of ordered lines.

    parallel = parallelize(Transformer(config), "dp2tp2", seed=0)
    loss = parallel.forward_backward(tokens, labels)     # all micro-batches; gradients are complete
    norm = parallel.clip(1.0)

Here, and only here, is known which ranks hold what: which parameters are shards (their squares are
summed over tp for the norm) and which are replicas (counted once), and what a checkpoint has to
gather. Everything that leaves has global, unfused names.

Twin: torchtitan's `parallelize.py`. Leaves out, so far: expert parallelism and ZeRO.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
import torch.distributed as dist
from torch import nn

from picolab import comm, costs, schedules
from picolab.model import Transformer, initialise, slices
from picolab.model.transformer import IGNORED
from picolab.parallel.context import ring_attention, split_batch
from picolab.parallel.data import DataParallelOptimizer
from picolab.parallel.pipeline import PipelineParallelOptimizer
from picolab.parallel.tensor import TensorParallelOptimizer
from picolab.parallel.tensor_comm import gather_shards
from picolab.specs import IMPLEMENTED_AXES, Layout


def parallelize(
    model: Transformer,
    layout: Layout | str,
    *,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    bucket_bytes: int = costs.DEFAULT_BUCKET_BYTES,
    find_unused: bool = False,
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
    )


class ThreeDParallelOptimizer:
    """Composes data, tensor, pipeline and context parallelism on one model. Not a `torch.optim`
    optimizer.

    model: on the meta device (or, where tp is 1, with values, which it keeps). Every rank calls
    this with the same arguments. The mesh is the current one if it has the layout's axes, else it
    is built. device None: this rank's GPU under NCCL, else the CPU. dtype None: the model's own.

    Raises ValueError for an axis that is not implemented and for a layout that cannot split the
    model.
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
    ):
        layout = Layout.parse(layout)
        _check_implemented(layout)
        layout.check(model.config)
        self.model, self.layout = model, layout

        # 1. The mesh, before anything asks for its place in it. One rank needs none.
        alone = layout.world == 1 and not dist.is_initialized()
        if not alone and comm.mesh().layout.axes != layout.axes:
            comm.build_mesh(layout)

        # 2. Tensor parallelism while there are only shapes: a rank never holds a whole matrix.
        self.tensor = TensorParallelOptimizer(model, "tp", layout.sp) if layout.tp > 1 else None

        # 3. The stage's layers are picked out after the split, which knows the whole model.
        #    Under sp a stage hands on only its rank's share of each sequence.
        shares = layout.tp if layout.sp else 1
        self.pipeline = PipelineParallelOptimizer(model, "pp", shares) if layout.pp > 1 else None

        # 4. Context parallelism changes no parameter, only what attention does.
        if layout.cp > 1:
            for block in model.layers:
                block.attention.attend = partial(ring_attention, axis="cp", split="zigzag")

        # 5. Values after the splits, because only then is it known which slices to keep.
        if any(parameter.is_meta for parameter in model.parameters()):
            initialise(model, seed, device or _own_device(), dtype)

        # 6. Data parallelism last: its buffers have the size and the place of the final parameters,
        #    and `initialise` makes new parameters, on which older hooks would never be called.
        #    Ranks of cp hold the same parameters and see other tokens, just as those of dp do.
        self.data, self.data_axis = None, "dp" if alone else comm.mesh().data_axis
        if layout.dp * layout.cp > 1:
            self.data = DataParallelOptimizer(model, self.data_axis, bucket_bytes, find_unused)

    def forward_backward(
        self,
        tokens_MBS: torch.Tensor,
        labels_MBS: torch.Tensor,
        count: int | None = None,
        stage_cost_s: tuple[float, float] = (0.0, 0.0),
    ) -> torch.Tensor:
        """All micro-batches of a step, in the layout's way; gradients are complete afterwards.

        tokens and labels: (M, B, S), this replica's whole sequences. count: the global number of
        valid tokens, None to sum it. Returns the mean loss of the global batch (fp64 scalar), the
        same on every rank. stage_cost_s: see `PipelineParallelOptimizer.run`.
        """
        if count is None:
            count = self.count_valid(labels_MBS)
        positions_S = None
        if self.layout.cp > 1:
            shares = [split_batch(*batch) for batch in zip(tokens_MBS, labels_MBS)]
            tokens_MBS, labels_MBS = (torch.stack([s[i] for s in shares]) for i in (0, 1))
            positions_S = shares[0][2]
        if self.pipeline is not None:
            total = self.pipeline.run(
                schedules.make(self.layout.schedule, self.layout.pp, len(tokens_MBS)),
                tokens_MBS,
                labels_MBS,
                count,
                no_sync=self.no_sync,
                positions_S=positions_S,
                stage_cost_s=stage_cost_s,
            )
        else:
            device = next(self.model.parameters()).device
            total = torch.zeros((), dtype=torch.float64, device=device)
            last = len(tokens_MBS) - 1
            for m, (tokens_BS, labels_BS) in enumerate(zip(tokens_MBS, labels_MBS)):
                # Gradients go over dp once a step, while the last backward pass is running.
                with nullcontext() if m == last else self.no_sync():
                    loss = self.model.loss(tokens_BS, labels_BS, positions_S) / count
                    loss.backward()
                total += loss.detach()
        self.finish_gradients()
        if self.layout.world > 1:
            comm.all_reduce(total, self.data_axis, "dp: loss")
            comm.all_reduce(total, "pp", "pp: loss")  # the last stage knows it, the others add zero
        return total

    def count_valid(self, labels_MBS: torch.Tensor) -> int:
        """How many labels of the global batch count (1 if none does): what losses are divided by.

        The labels are those of whole sequences, so ranks of cp count the same ones.
        """
        count = (labels_MBS != IGNORED).sum()
        if self.layout.dp > 1:
            comm.all_reduce(count, "dp", "dp: count of valid tokens")
        return max(1, int(count))

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """For all micro-batches but the last: gradients are added up here, and not yet over dp."""
        if self.data is None:
            yield
        else:
            with self.data.no_sync():
                yield

    def finish_gradients(self) -> None:
        """After the last backward: from here on every gradient is that of the global batch."""
        if self.data is not None:
            self.data.finish()
        if self.tensor is not None:
            self.tensor.sum_norm_gradients()
        if self.pipeline is not None:
            self.pipeline.sum_tied_gradients()

    def zero_grad(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None

    def grad_norm(self) -> float:
        """The norm of the whole model's gradient: every element counted once, on whichever ranks it
        is.

        Squares of tp shards are summed over tp; replicated parameters (the norms) have the same
        gradient on every rank of tp and are counted here once. Over dp and cp nothing is summed:
        all replicas hold the same. Stages hold different layers, so over pp all is summed, but for
        a tied embedding, which the last stage holds once more.
        """
        shards, replicas = [], []
        twice = self.pipeline.copy_of_embedding if self.pipeline is not None else None
        for parameter in self.model.parameters():
            if parameter.grad is not None and parameter is not twice:
                sharded = any(piece.dim is not None for piece in parameter.pieces)
                (shards if sharded else replicas).append(parameter.grad)
        total = _square_sum(shards)
        if self.layout.tp > 1:
            total = total.to(next(self.model.parameters()).device)
            comm.all_reduce(total, "tp", "tp: gradient norm")
        total = total.cpu() + _square_sum(replicas).cpu()
        if self.layout.pp > 1:
            total = total.to(next(self.model.parameters()).device)
            comm.all_reduce(total, "pp", "pp: gradient norm")
        return math.sqrt(float(total))

    def clip(self, max_norm: float) -> float:
        """Scale all gradients so that their global norm is at most max_norm; returns the norm
        before.

        The factor is that of `torch.nn.utils.clip_grad_norm_`: min(1, max_norm / (norm + 1e-6)).
        """
        norm = self.grad_norm()
        factor = max_norm / (norm + 1e-6)
        if factor < 1:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, factor)
        return norm

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Global name -> whole tensor, on the CPU, on every rank. All ranks must call it."""
        return self._gathered(lambda parameter: parameter.detach(), "tp: gather the state")

    def gradients(self) -> dict[str, torch.Tensor]:
        """The same of the gradients; parameters without one are left out."""
        return self._gathered(lambda parameter: parameter.grad, "tp: gather the gradients")

    def _gathered(
        self, tensor_of: Callable[[nn.Parameter], torch.Tensor | None], reason: str
    ) -> dict[str, torch.Tensor]:
        found = {}
        for parameter in self.model.parameters():
            tensor = tensor_of(parameter)
            if tensor is None:
                continue
            for piece, part in slices(parameter, tensor):
                if piece.dim is not None:
                    cuts = piece.cuts(piece.dim, self.layout.tp)
                    part = gather_shards(part, cuts, "tp", reason, piece.dim)
                found[piece.name] = part.to("cpu", copy=True)
        return self._from_all_stages(found, reason) if self.layout.pp > 1 else found

    def _from_all_stages(
        self, mine: dict[str, torch.Tensor], reason: str
    ) -> dict[str, torch.Tensor]:
        """Every stage tells its names and shapes, and then its tensors, one after the other."""
        reason = reason.replace("tp:", "pp:")
        names: list[list] = [None] * self.layout.pp
        group = comm.mesh().group("pp")
        listing = [(name, tuple(t.shape), t.dtype) for name, t in mine.items()]
        dist.all_gather_object(names, listing, group=group)
        found: dict[str, torch.Tensor] = {}
        for stage, listing in enumerate(names):
            for name, shape, dtype in listing:
                tensor = mine[name] if name in mine else torch.empty(shape, dtype=dtype)
                tensor = tensor.to(_own_device()).contiguous()
                comm.broadcast(tensor, "pp", reason, source=stage)
                found.setdefault(name, tensor.cpu())
        return found


def _square_sum(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Sum of squares as an fp64 scalar.

    One fp32 sum over a large matrix is wrong by some 1e-6; so norms of rows in their own dtype
    (short sums), and the rest in fp64.
    """
    if not tensors:
        return torch.zeros((), dtype=torch.float64)
    rows = [torch.linalg.vector_norm(t, dim=-1).flatten() for t in tensors]
    return torch.cat(rows).double().square().sum()


def _own_device() -> torch.device:
    if dist.is_initialized() and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _check_implemented(layout: Layout) -> None:
    wanted = {"ep": layout.ep > 1, "zero": layout.zero > 0}
    missing = [name for name, used in wanted.items() if used]
    if missing:
        raise ValueError(
            f"{layout} has {' and '.join(missing)}, and training runs "
            f"{', '.join(IMPLEMENTED_AXES)} so far; leave {' and '.join(missing)} out"
        )
