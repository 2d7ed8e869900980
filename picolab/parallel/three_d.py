"""The composition: one model, one layout, in one page of ordered lines.

    parallel = parallelize(Transformer(config), "dp2tp2", seed=0)
    for each micro-batch:
        with parallel.no_sync() (all but the last):
            (parallel.model.loss(tokens, labels) / global count of valid tokens).backward()
    parallel.finish_gradients()
    norm = parallel.clip(1.0)

Here, and only here, is known which ranks hold what: which parameters are shards (their squares are
summed over tp for the norm) and which are replicas (counted once), and what a checkpoint has to
gather. Everything that leaves has global, unfused names.

Twin: torchtitan's `parallelize.py`. Leaves out, so far: every axis but dp and tp.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn

from picolab import comm, costs
from picolab.model import Transformer, initialise, slices
from picolab.parallel.data import DataParallelOptimizer
from picolab.parallel.tensor import TensorParallelOptimizer
from picolab.specs import Layout

IMPLEMENTED_AXES = ("dp", "tp")


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
    """Composes data and tensor parallelism on one model. Not a `torch.optim` optimizer.

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
        self.tensor = TensorParallelOptimizer(model, "tp") if layout.tp > 1 else None

        # 3. Values after the split, because only then is it known which slices to keep.
        if any(parameter.is_meta for parameter in model.parameters()):
            initialise(model, seed, device or _own_device(), dtype)

        # 4. Data parallelism last: its buffers have the size and the place of the final parameters,
        #    and `initialise` makes new parameters, on which older hooks would never be called.
        self.data = None
        if layout.dp > 1:
            self.data = DataParallelOptimizer(model, "dp", bucket_bytes, find_unused)

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

    def zero_grad(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None

    def grad_norm(self) -> float:
        """The norm of the whole model's gradient: every element counted once, on whichever ranks it
        is.

        Squares of tp shards are summed over tp; replicated parameters (the norms) have the same
        gradient on every rank of tp and are counted here once. Over dp nothing is summed: all
        replicas hold the same.
        """
        shards, replicas = [], []
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                sharded = any(piece.dim is not None for piece in parameter.pieces)
                (shards if sharded else replicas).append(parameter.grad)
        total = _square_sum(shards)
        if self.layout.tp > 1:
            total = total.to(next(self.model.parameters()).device)
            comm.all_reduce(total, "tp", "tp: gradient norm")
        return math.sqrt(float(total) + float(_square_sum(replicas)))

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
        """Global name -> whole tensor, on the CPU, on every rank. All ranks of tp must call it."""
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
                    part = comm.all_gather(part.contiguous(), "tp", reason, dim=piece.dim)
                found[piece.name] = part.to("cpu", copy=True)
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
    wanted = {"pp": layout.pp > 1, "cp": layout.cp > 1, "ep": layout.ep > 1}
    wanted |= {"sp": layout.sp, "zero": layout.zero > 0}
    missing = [name for name, used in wanted.items() if used]
    if missing:
        raise ValueError(
            f"{layout} has {' and '.join(missing)}, and training runs "
            f"{' and '.join(IMPLEMENTED_AXES)} so far; leave {' and '.join(missing)} out"
        )
