"""Two trainings of one recipe, and what is written down about each.

    one_process(recipe)    one process, no ranks, no code of `parallel`, `comm` or the trainer's
                           step: a loop as short as a first lesson's
    observe(recipe)        one rank of the layout: the package's own `parallelize` and `train_step`

The rank changes nothing about the step; it listens. Beside the numbers that are compared (losses,
norms, gradients, parameters) it notes what a diagnosis needs: which sequences it was given, what
flowed through the first forward and backward pass, whether parameters moved before the optimizer
did, and the ledger.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.distributed as dist
from torch import nn

from picolab import comm
from picolab.debug.awkward import AwkwardText, Recipe
from picolab.model import Piece, Transformer, initialise, slices
from picolab.model.transformer import IGNORED
from picolab.parallel import parallelize
from picolab.training import trainer

Held = dict[str, tuple[Piece, torch.Tensor]]  # global name -> which slice, and its values
# Where the residual stream or what is added to it can be looked at, in the names of the model.
_POINT = re.compile(r"embed|norm|layers\.\d+\.(attention_norm|attention|mlp_norm|mlp)")


@dataclass
class Reference:
    """What one process computes."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    count: int = 0
    """Labels that count in the first step."""
    start: dict[str, torch.Tensor] = field(default_factory=dict)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    """Of the first step, before clipping."""
    end: dict[str, torch.Tensor] = field(default_factory=dict)
    parts: dict[tuple[int, int], dict[str, torch.Tensor]] = field(default_factory=dict)
    """(replica, micro-batch) -> its summand of the first step's gradients."""
    sums: dict[tuple[int, int], float] = field(default_factory=dict)
    """(replica, micro-batch) -> the sum of its losses in the first step."""
    forward: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    """replica -> point -> its output in the first micro-batch."""
    backward: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    """replica -> point -> the gradient of that output."""


@dataclass
class Observation:
    """What one rank did. Lists have one entry a step."""

    rank: int
    place: dict[str, int]
    device: str
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    ledger: list[dict[tuple[str, str, str], tuple[int, int]]] = field(default_factory=list)
    """(op, axis, reason) -> count and payload bytes."""
    moved: list[bool] = field(default_factory=list)
    """Whether a parameter changed before the optimizer's turn."""
    start: Held = field(default_factory=dict)
    gradients: Held = field(default_factory=dict)
    end: Held = field(default_factory=dict)
    read: list[torch.Tensor] = field(default_factory=list)
    """The tokens of each micro-batch of the first step, as they entered the model."""
    sums: list[float] = field(default_factory=list)
    """The sum of losses of each micro-batch of the first step, as it left the model."""
    forward: dict[str, torch.Tensor] = field(default_factory=dict)
    backward: dict[str, torch.Tensor] = field(default_factory=dict)


@lru_cache(maxsize=8)
def one_process(recipe: Recipe, device: str = "cpu") -> Reference:
    """Train the recipe here. In the first step the replicas' samples are taken one after the other,
    so that each one's share of the gradient is known; that sum is the gradient of all samples."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the ranks; products this small only wait for threads
    try:
        return _one_process(recipe, device)
    finally:
        torch.set_num_threads(threads)


def _one_process(recipe: Recipe, device: str) -> Reference:
    settings, model = recipe.training, Transformer(recipe.config)
    initialise(model, recipe.seed, device, settings.torch_dtype)
    optimizer = trainer.adamw(model, settings)
    found = Reference(start=_whole(model, lambda p: p), count=sum(recipe.counts()))
    parameters = list(model.parameters())
    for step in range(recipe.steps):
        replicas = recipe.layout.dp if step == 0 else 1
        total, gradients, count = 0.0, [torch.zeros_like(p) for p in parameters], 0
        for micro in range(recipe.accumulate):
            count += int((recipe.batch(step, micro)[1] != IGNORED).sum())
        for micro in range(recipe.accumulate):
            for replica in range(replicas):
                batch = (
                    recipe.part(step, micro, replica) if step == 0 else recipe.batch(step, micro)
                )
                tokens, labels = (tensor.to(device) for tensor in batch)
                with _points(model) if step == 0 and micro == 0 else nullcontext() as seen:
                    loss = model.loss(tokens, labels)
                    summands = torch.autograd.grad(loss / count, parameters)
                total += float(loss.detach())
                for gradient, summand in zip(gradients, summands):
                    gradient += summand
                if step == 0:
                    of = dict(zip(parameters, summands))
                    found.parts[replica, micro] = _whole(model, lambda p, of=of: of[p])
                    found.sums[replica, micro] = float(loss.detach())
                if seen:
                    found.forward[replica], found.backward[replica] = seen
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient
        if step == 0:
            found.gradients = _whole(model, lambda p: p.grad)
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        for gradient in gradients:
            gradient *= min(1.0, settings.clip / (norm + 1e-6))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate(step)
        optimizer.step()
        found.losses.append(total / count)
        found.norms.append(norm)
    found.end = _whole(model, lambda p: p)
    return found


def observe(recipe: Recipe) -> Observation:
    """Train the recipe as one rank of its layout; torch.distributed must be initialised."""
    settings, ledger = recipe.training, comm.ledger()
    mesh = comm.build_mesh(recipe.layout)
    model = Transformer(recipe.config, dtype=settings.torch_dtype)
    parallel = parallelize(
        model, recipe.layout, seed=recipe.seed, bucket_bytes=settings.bucket_bytes
    )
    optimizer = trainer.adamw(model, settings)
    text, device = AwkwardText(recipe), next(model.parameters()).device
    found = Observation(dist.get_rank(), dict(mesh.coordinates), device.type, start=_held(model))
    finish, loss_of = parallel.finish_gradients, model.loss
    before: list[torch.Tensor] = []

    def finish_gradients() -> None:
        finish()
        now = list(model.parameters())
        found.moved.append(any(not torch.equal(a, b) for a, b in zip(before, now, strict=True)))
        if not found.gradients:
            found.gradients = _held(model, lambda p: p.grad)

    def loss(tokens_BS: torch.Tensor, *rest) -> torch.Tensor:
        if found.losses:  # no longer the first step
            return loss_of(tokens_BS, *rest)
        found.read.append(tokens_BS.cpu())
        with _points(model) if len(found.read) == 1 else nullcontext() as seen:
            result = loss_of(tokens_BS, *rest)
        if seen:
            found.forward, found.backward = seen
        found.sums.append(float(result.detach()))
        return result

    parallel.finish_gradients, model.loss = finish_gradients, loss
    for step in range(recipe.steps):
        ledger.step = step
        before[:] = [parameter.detach().clone() for parameter in model.parameters()]
        lr = settings.learning_rate(step)
        reported, norm, count = trainer.train_step(parallel, optimizer, text, settings, lr)
        found.losses.append(reported)
        found.norms.append(norm)
        found.counts.append(count)
        entries = ledger.snapshot().where(step=step).by("op", "axis", "reason")
        found.ledger.append({key: (t.count, t.payload_bytes) for key, t in entries.items()})
    ledger.step = None
    found.end = _held(model)
    return found


@contextmanager
def _points(model: nn.Module) -> Iterator[tuple[dict, dict]]:
    """While open, what leaves each point of the model is noted; its gradient, when it comes."""
    forward: dict[str, torch.Tensor] = {}
    backward: dict[str, torch.Tensor] = {}

    def note(name: str, output: torch.Tensor) -> None:
        forward[name] = output.detach().to("cpu", copy=True)
        output.register_hook(lambda grad: backward.update({name: grad.to("cpu", copy=True)}))

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, module in model.named_modules()
        if _POINT.fullmatch(name)
    ]
    try:
        yield forward, backward
    finally:
        for handle in handles:
            handle.remove()


TensorOf = Callable[[nn.Parameter], torch.Tensor | None]


def _held(model: nn.Module, tensor_of: TensorOf = lambda p: p.detach()) -> Held:
    """What this rank holds of each global tensor. Nothing is gathered: a collective would be one
    more thing that may be wrong, and who holds what is evidence."""
    found: Held = {}
    for parameter in model.parameters():
        tensor = tensor_of(parameter)
        if tensor is not None:
            for piece, part in slices(parameter, tensor):
                found[piece.name] = piece, part.detach().to("cpu", copy=True)
    return found


def _whole(model: nn.Module, tensor_of: TensorOf) -> dict[str, torch.Tensor]:
    return {name: tensor for name, (_, tensor) in _held(model, tensor_of).items()}
