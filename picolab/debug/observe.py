"""Two trainings of one recipe, and what is written down about each.

    one_process(recipe)    one process, no ranks, no code of `parallel`, `comm` or the trainer's
                           step: a loop as short as a first lesson's
    observe(recipe)        one rank of the layout: the package's own `train_rank`, with an observer

The rank changes nothing about the run; it listens. Beside the numbers that are compared (losses,
norms, gradients, parameters) it notes what a diagnosis needs: which sequences it was given, what
flowed through the first forward and backward pass, whether parameters moved before the optimizer
did, and the ledger.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy

from picolab import comm
from picolab.debug.awkward import AwkwardText, Recipe
from picolab.debug.planted import planted
from picolab.model import Piece, initialise, slices
from picolab.model.transformer import IGNORED
from picolab.moe import Routed, Router, expert_layers
from picolab.moe.strategy import forget_counts, share_loss, update_bias
from picolab.monitoring import Observer, StepReport
from picolab.training import trainer
from picolab.training.build import build
from picolab.training.one_thread import one_thread
from picolab.training.precision_named import of_config

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
    after: list[dict[str, torch.Tensor]] = field(default_factory=list)
    """The parameters, after each step."""
    parts: dict[tuple[int, int], dict[str, torch.Tensor]] = field(default_factory=dict)
    """(replica, micro-batch) -> its summand of the first step's gradients."""
    token_losses: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    """(replica, micro-batch) -> the loss of each of its tokens in the first step, (B, S)."""
    forward: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    """replica -> point -> its output in the first micro-batch."""
    backward: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    """replica -> point -> the gradient of that output."""
    routed: list[dict[tuple[int, int, int], torch.Tensor]] = field(default_factory=list)
    """A step: (replica, micro-batch, layer) -> which token goes to which expert, (B, S, E)."""
    of_balance: dict[str, torch.Tensor] = field(default_factory=dict)
    """What the balance losses are of the first step's gradients."""

    @property
    def end(self) -> dict[str, torch.Tensor]:
        return self.after[-1]


@dataclass(eq=False)
class Observation:
    """What one rank did. Lists have one entry a step."""

    rank: int = 0
    place: dict[str, int] = field(default_factory=dict)
    device: str = "cpu"
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
    after: list[Held] = field(default_factory=list)
    """The parameters that it steps."""
    copies: dict[str, Held] = field(default_factory=dict)
    """start, gradient (of the first step), parameter (after the last) -> the copies that it has of
    what other ranks answer for, by the name and the first row of the slice."""
    state: dict[str, torch.Tensor] | None = None
    """The gathered parameters after the last step, where this rank has them (rank 0)."""
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
    routed: dict[int, torch.Tensor] = field(default_factory=dict)
    """Layer -> which of its tokens goes to which expert in the first micro-batch, (T, E)."""
    forward: dict[str, torch.Tensor] = field(default_factory=dict)
    backward: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def end(self) -> Held:
        return self.after[-1]


@lru_cache(maxsize=8)
@one_thread()
def one_process(recipe: Recipe, device: str = "cpu") -> Reference:
    """Train the recipe here. In the first step the replicas' samples are taken one after the other,
    so that each one's share of the gradient is known; that sum is the gradient of all samples."""
    with planted(recipe):
        return _one_process(recipe, device)


def _one_process(recipe: Recipe, device: str) -> Reference:
    settings = recipe.training
    model = initialise(build(recipe.config, settings.torch_dtype), recipe.seed, device)
    precision = of_config(settings)
    precision.prepare(model, None)
    optimizer = trainer.adamw(model.parameters(), settings)
    found = Reference(start=_whole(model, lambda p: p), count=sum(recipe.counts()))
    parameters = [p for p in model.parameters() if p.requires_grad]
    # A replica's micro-batch is what a router looks at together.
    apart = bool(recipe.config.experts)
    share_loss(model, recipe.layout.dp * recipe.accumulate, precision.scale)
    for step in range(recipe.steps):
        replicas = recipe.layout.dp if step == 0 or apart else 1
        found.routed.append({})
        total, gradients, count = 0.0, [torch.zeros_like(p) for p in parameters], 0
        for micro in range(recipe.accumulate):
            count += int((recipe.batch(step, micro)[1] != IGNORED).sum())
        for micro in range(recipe.accumulate):
            for replica in range(replicas):
                batch = (
                    recipe.part(step, micro, replica)
                    if step == 0 or apart
                    else recipe.batch(step, micro)
                )
                tokens, labels = (tensor.to(device) for tensor in batch)
                with ExitStack() as open_:
                    points = _points(model) if step == 0 and micro == 0 else nullcontext()
                    seen = open_.enter_context(points)
                    routed = open_.enter_context(_routed(model))
                    logits = model(tokens)
                    if step == 0 and routed:
                        _add_balance(found, model, routed, parameters, precision.scale)
                    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
                    each = cross_entropy(exact.transpose(1, 2), labels, reduction="none")
                    loss = each.sum()
                    summands = torch.autograd.grad(loss / (count / precision.scale), parameters)
                    summands = [summand / precision.scale for summand in summands]
                total += float(loss.detach())
                for layer, of in routed.items():
                    admitted = of.admitted_TE.view(*tokens.shape, -1).cpu()
                    found.routed[step][replica, micro, layer] = admitted
                for gradient, summand in zip(gradients, summands):
                    gradient += summand
                if step == 0:
                    of = dict(zip(parameters, summands))
                    found.parts[replica, micro] = _whole(model, of.get)
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
        precision.after_step(taken=True)
        for layer in expert_layers(model):
            update_bias(layer, layer.router.counts_E)
            forget_counts(layer)
        found.losses.append(total / count)
        found.norms.append(norm)
        found.after.append(_whole(model, lambda p: p))
    return found


def observe(recipe: Recipe, *others: Observer) -> Observation:
    """Train the recipe as one rank of its layout; torch.distributed must be initialised. others:
    observers that come first."""
    found = Observation()
    observers = [*others, Listener(found)]
    with planted(recipe, lambda: comm.mesh().rank("dp")):
        report = trainer.train_rank(recipe.training, observers=observers, text=AwkwardText(recipe))
    found.state = report.state
    return found


class Listener(Observer):
    """Notes what the oracle compares and what a diagnosis needs. It changes nothing."""

    def __init__(self, found: Observation):
        self._found, self._before, self._first = found, [], ExitStack()

    def start(self, run) -> None:
        found, model, mine = self._found, run.model, run.parallel.parameters()
        found.rank, found.place = dist.get_rank(), dict(comm.mesh().coordinates)
        found.device, found.start = run.device.type, held(mine)
        found.copies["start"] = held_copies(mine)
        self._remember(mine)
        # Of the first step, what flows through the model.
        self._first.enter_context(_first_inputs(model, found))
        found.forward, found.backward = self._first.enter_context(_points(model))
        self._routed = self._first.enter_context(_routed(model))

    def gradients(self, run) -> None:
        found, now = self._found, run.parallel.parameters()
        pairs = zip(self._before, now, strict=True)
        found.moved.append(any(not torch.equal(a, b) for a, b in pairs))
        if not found.gradients:
            found.read = list(run.tokens_MBS.cpu())
            found.gradients = held(now, lambda p: p.grad)
            found.copies["gradient"] = held_copies(now, lambda p: p.grad)

    def step(self, run, report: StepReport) -> None:
        found = self._found
        self._first.close()
        found.routed = {layer: of.admitted_TE.cpu() for layer, of in self._routed.items()}
        self._remember(run.parallel.parameters())
        found.losses.append(report.loss)
        found.norms.append(report.grad_norm)
        found.counts.append(report.tokens)
        entries = run.ledger.by("op", "axis", "reason")
        found.ledger.append({key: (t.count, t.payload_bytes) for key, t in entries.items()})
        found.after.append(held(run.parallel.parameters()))
        found.copies["parameter"] = held_copies(run.parallel.parameters())

    def _remember(self, parameters: Iterable[nn.Parameter]) -> None:
        self._before = [parameter.detach().clone() for parameter in parameters]


@contextmanager
def _first_inputs(model: nn.Module, found: Observation) -> Iterator[None]:
    """While open, the first tokens, positions and labels that the model is given are noted, and
    each loss."""

    def tokens(_, inputs) -> None:
        if found.tokens is None:
            found.tokens = inputs[0].cpu()

    def positions(_, inputs) -> None:
        if found.positions is None:
            length, given = inputs[0], inputs[3] if len(inputs) > 3 else None
            found.positions = torch.arange(length) if given is None else given.cpu()

    def losses(_, inputs, loss) -> None:
        if found.labels is None:
            found.labels = inputs[1].cpu()
        found.sums.append(float(loss.detach()))

    handles = [model.rotary.register_forward_pre_hook(positions)]
    handles.append(model.cross_entropy.register_forward_hook(losses))
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
        for name, module in named_points(model)
    ]
    try:
        yield forward, backward
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _routed(model: nn.Module) -> Iterator[dict[int, Routed]]:
    """While open, what each layer's router says the first time."""
    found: dict[int, Routed] = {}
    handles = [
        router.register_forward_hook(
            lambda router, _, routed: (
                found.setdefault(int(router.name.split(".")[1]), routed) and None
            )
        )
        for router in model.modules()
        if isinstance(router, Router)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _add_balance(
    found: Reference,
    model: nn.Module,
    routed: dict[int, Routed],
    parameters: list[nn.Parameter],
    scale: float,
) -> None:
    """The gradients of this pool's balance losses, by themselves."""
    share = expert_layers(model)[0].loss_share / scale
    total = share * sum(of.loss for of in routed.values())
    gradients = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
    of = dict(zip(parameters, gradients))
    for name, gradient in _whole(model, of.get).items():
        found.of_balance[name] = found.of_balance.get(name, 0) + gradient


def named_points(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
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


def held(parameters: Iterable[nn.Parameter], tensor_of: TensorOf = lambda p: p.detach()) -> Held:
    """What this rank holds (and steps) of each global tensor. Nothing is gathered: a collective
    would be one more thing that may be wrong, and who holds what is evidence. Copies beside a slice
    of the same tensor that is its own are `held_copies`."""
    found: Held = {}
    for piece, part in _pieces(parameters, tensor_of):
        found.setdefault(piece.name, (piece, part))
    return found


def held_copies(
    parameters: Iterable[nn.Parameter], tensor_of: TensorOf = lambda p: p.detach()
) -> Held:
    """Copies beside a slice that is the rank's own: "layers.0.mlp.experts.down.weight[5]"."""
    pieces = list(_pieces(parameters, tensor_of))
    own = {piece.name for piece, _ in pieces if not piece.copy}
    return {
        f"{piece.name}[{piece.ranges[0].start}]": (piece, part)
        for piece, part in pieces
        if piece.copy and piece.name in own
    }


def _pieces(
    parameters: Iterable[nn.Parameter], tensor_of: TensorOf
) -> Iterator[tuple[Piece, torch.Tensor]]:
    for parameter in parameters:
        tensor = tensor_of(parameter)
        if tensor is not None:
            for piece, part in slices(parameter, tensor):
                yield piece, part.detach().to("cpu", copy=True)


def _whole(model: nn.Module, tensor_of: TensorOf) -> dict[str, torch.Tensor]:
    return {name: tensor for name, (_, tensor) in held(model.parameters(), tensor_of).items()}
