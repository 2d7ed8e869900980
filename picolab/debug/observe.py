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
from torch.nn.functional import cross_entropy

from picolab import comm
from picolab.debug.awkward import AwkwardText, Recipe
from picolab.model import Piece, Transformer, initialise, slices
from picolab.model.transformer import IGNORED
from picolab.parallel import ThreeDParallelOptimizer, parallelize
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
    token_losses: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    """(replica, micro-batch) -> the loss of each of its tokens in the first step, (B, S)."""
    forward: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    """replica -> point -> its output in the first micro-batch."""
    backward: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    """replica -> point -> the gradient of that output."""


@dataclass(eq=False)
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
    """Of the first step, before clipping."""
    end: Held = field(default_factory=dict)
    read: list[torch.Tensor] = field(default_factory=list)
    """The replica's tokens of each micro-batch of the first step."""
    sums: list[float] = field(default_factory=list)
    """The sum of losses of each of its micro-batches, where this stage computes it."""
    tokens: torch.Tensor | None = None
    """Those that the embedding was given in the first micro-batch, where this stage has one."""
    labels: torch.Tensor | None = None
    """Those that the loss was given in the first micro-batch, where this stage has one."""
    positions: torch.Tensor | None = None
    """The places in the sequence that the rotation was given."""
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
                    logits = model(tokens)
                    each = cross_entropy(logits.transpose(1, 2), labels, reduction="none")
                    loss = each.sum()
                    summands = torch.autograd.grad(loss / count, parameters)
                total += float(loss.detach())
                for gradient, summand in zip(gradients, summands):
                    gradient += summand
                if step == 0:
                    of = dict(zip(parameters, summands))
                    found.parts[replica, micro] = _whole(model, lambda p, of=of: of[p])
                    found.token_losses[replica, micro] = each.detach().cpu()
                if seen is not None:
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
    before: list[torch.Tensor] = []
    _listen(parallel, found, before)
    with _first_inputs(model, found), _points(model) as (found.forward, found.backward):
        _step(0, parallel, optimizer, text, recipe, found, before)
    for step in range(1, recipe.steps):
        _step(step, parallel, optimizer, text, recipe, found, before)
    ledger.step = None
    found.end = _held(model)
    return found


def _step(step, parallel, optimizer, text, recipe: Recipe, found: Observation, before) -> None:
    ledger, settings = comm.ledger(), recipe.training
    ledger.step = step
    before[:] = [parameter.detach().clone() for parameter in parallel.model.parameters()]
    lr = settings.learning_rate(step)
    loss, norm, count = trainer.train_step(parallel, optimizer, text, settings, lr)
    found.losses.append(loss)
    found.norms.append(norm)
    found.counts.append(count)
    entries = ledger.snapshot().where(step=step).by("op", "axis", "reason")
    found.ledger.append({key: (t.count, t.payload_bytes) for key, t in entries.items()})


def _listen(
    parallel: ThreeDParallelOptimizer, found: Observation, before: list[torch.Tensor]
) -> None:
    """Note what enters the step, each loss, and the gradients when they are complete."""
    model = parallel.model
    run, finish, loss_of = parallel.forward_backward, parallel.finish_gradients, model.cross_entropy

    def forward_backward(tokens_MBS: torch.Tensor, *rest) -> torch.Tensor:
        if not found.read:
            found.read = list(tokens_MBS.cpu())
        return run(tokens_MBS, *rest)

    def cross_entropy(logits_BSV: torch.Tensor, labels_BS: torch.Tensor) -> torch.Tensor:
        loss = loss_of(logits_BSV, labels_BS)
        if not found.losses:  # still the first step
            found.labels = labels_BS.cpu() if found.labels is None else found.labels
            found.sums.append(float(loss.detach()))
        return loss

    def finish_gradients() -> None:
        finish()
        now = list(model.parameters())
        found.moved.append(any(not torch.equal(a, b) for a, b in zip(before, now, strict=True)))
        if not found.gradients:
            found.gradients = _held(model, lambda p: p.grad)

    parallel.forward_backward, parallel.finish_gradients = forward_backward, finish_gradients
    model.cross_entropy = cross_entropy


@contextmanager
def _first_inputs(model: nn.Module, found: Observation) -> Iterator[None]:
    """While open, the first tokens and positions that the model is given are noted."""

    def tokens(_, inputs) -> None:
        if found.tokens is None:
            found.tokens = inputs[0].cpu()

    def positions(_, inputs) -> None:
        if found.positions is None:
            length, given = inputs[0], inputs[3] if len(inputs) > 3 else None
            found.positions = torch.arange(length) if given is None else given.cpu()

    handles = [model.rotary.register_forward_pre_hook(positions)]
    if model.embed is not None:
        handles.append(model.embed.register_forward_pre_hook(tokens))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _points(model: nn.Module) -> Iterator[tuple[dict, dict]]:
    """While open, what leaves each point of the model the first time is noted; its gradient, when
    it comes."""
    forward: dict[str, torch.Tensor] = {}
    backward: dict[str, torch.Tensor] = {}

    def note(name: str, output: torch.Tensor) -> None:
        if name not in forward:
            forward[name] = output.detach().to("cpu", copy=True)
            output.register_hook(lambda grad: backward.update({name: grad.to("cpu", copy=True)}))

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, module in _named_points(model)
    ]
    try:
        yield forward, backward
    finally:
        for handle in handles:
            handle.remove()


def _named_points(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The points by their global names: a later stage counts its own layers from 0."""
    for name, module in model.named_modules():
        if not _POINT.fullmatch(name):
            continue
        if name.startswith("layers."):
            _, local, rest = name.split(".")
            (piece,) = model.layers[int(local)].attention_norm.weight.pieces
            name = f"layers.{piece.name.split('.')[1]}.{rest}"
        yield name, module


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
