"""Stage 3 of ZeRO: parameters are whole only while they are used.

    forward     gather 1 | compute 1, gather 2 | free 1, compute 2, gather 3 | free 2, ...
    backward    gather L | compute L, gather L-1 | free L, compute L-1, ... | gradients leave

What is gathered together is a *use*: the embedding, each block, and the last norm with the head.
While one is computed with, the next is under way, so a rank holds two of them whole at most, beside
its shards. Between forward and backward they are freed, and gathered again: that is why stage 3
sends half as much again as stage 2, and in every micro-batch. Two are gathered once: the last,
whose backward follows its forward, and the embedding, whose backward needs no values, only rows.

**With a pipeline** every micro-batch of a stage gathers the stage's blocks in its forward and again
in its backward, and between the two lie other micro-batches (so there the last is freed, too): 2 m
all-gathers of every block a step, which a pipeline's many micro-batches make dear. That is why few
do it; where both are wanted, stage 2 is taken, or parameters stay gathered for the whole step
(torchtitan). Where a rank has several stages, nothing is let come across the border between them:
other micro-batches are computed before it is used, and it would be a third one all that time.

How it is done: `whole` is the leaf that autograd knows. It stands in the module during forward, and
what forward saved for backward is its memory, one for all of a use. To free is to resize that
memory to nothing, to gather is to resize it back and write it (not noticed by autograd's version
counter: by `.data`); the module has its shard back at once, so that whoever looks at the model
between steps sees what is kept. Twin: `torch.distributed.fsdp.fully_shard`, whose
`reshard_after_forward` this is (its root, with embedding and head, is kept, too).

**Recomputation** runs a block's forward again in its backward, when its parameters are whole: it
gathers nothing, and frees nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from picolab import comm
from picolab.model import Piece, Transformer, meta_parameter
from picolab.parallel.buckets import Only
from picolab.parallel.zero_comm import Line, Sharded, side_by_side

CutRows = Callable[[tuple[Piece, ...]], tuple[tuple[Piece, ...], tuple[int, ...]]]


@dataclass(eq=False)
class Owned:
    """A parameter that was replaced by its shard: where it stands, and what it was."""

    places: list[tuple[nn.Module, str]]
    pieces: tuple[Piece, ...]
    ends: tuple[int, ...]
    shape: tuple[int, ...]


def take_shards(model: nn.Module, cut: CutRows, only: Only | None = None) -> list[Owned]:
    """Put this rank's rows in the place of every parameter (or of those that `only` takes): on the
    meta device, so that nobody ever has the whole, or of values that are there."""
    found: dict[nn.Parameter, Owned] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if only is not None and not only(parameter):
                continue
            if parameter not in found:
                pieces, ends = cut(parameter.pieces)
                found[parameter] = Owned([], parameter.pieces, ends, tuple(parameter.shape))
            found[parameter].places.append((module, name))
    for parameter, owned in found.items():
        pieces, ends = cut(parameter.pieces)
        if parameter.is_meta:
            shard = meta_parameter(pieces, parameter.dtype)
        else:
            index = pieces[0].cuts[-1].index
            shard = nn.Parameter(parameter.detach()[ends[index] : ends[index + 1]].clone())
            shard.pieces = pieces
        shard.requires_grad_(parameter.requires_grad)
        for module, name in owned.places:
            setattr(module, name, shard)
    return list(found.values())


class Use:
    """Parameters that are used, gathered and freed together, by one module or several in a row."""

    def __init__(
        self,
        modules: list[nn.Module],
        places: list[tuple[nn.Module, str, Sharded]],
        memories: list[torch.UntypedStorage],
        line: Line,
        axis: str,
        of: str,
    ):
        self.modules, self.axis, self.of, self._line = modules, axis, of, line
        self._places, self._memories = places, [(memory, memory.nbytes()) for memory in memories]
        self.live = False
        self._pending: comm.Pending | None = None

    def start(self, when: str) -> None:
        """Let the other ranks' rows come, if they are not here or under way."""
        if not self.live and self._pending is None:
            self._pending = self._line.gather(self.axis, f"{self.of}: parameters, {when}")

    def ready(self, when: str) -> None:
        """From here on every parameter is whole."""
        self.start(when)
        if self._pending is not None:
            lines, self._pending = self._pending.wait(), None
            for memory, size in self._memories:
                memory.resize_(size)
            self._line.unpack(lines)
            self.live = True

    def free(self) -> None:
        if self.live:
            for memory, _ in self._memories:
                memory.resize_(0)
            self.live = False

    def put(self, whole: bool) -> None:
        """What stands in the modules: the whole parameters, or the shards."""
        for module, name, of in self._places:
            # (setattr would ask each time whether the name is a parameter's)
            module._parameters[name] = of.whole if whole else of.shard


class GatheredModel:
    """A model of shards whose parameters are whole while they are used."""

    def __init__(self, model: Transformer, owners: list[Owned], axis: str, of: str = "zero"):
        known: dict[Owned, tuple[Sharded, torch.UntypedStorage]] = {}
        self.uses, stages = [], []
        for stage, modules in _in_order(model):
            inside = {inner for module in modules for inner in module.modules()}
            here = [(*place, owned) for owned in owners for place in owned.places]
            here = [place for place in here if place[0] in inside]
            if not here:
                continue
            used = list(dict.fromkeys(owned for *_, owned in here))
            new = [owned for owned in used if owned not in known]  # a tied head is the embedding's
            flat = None
            if new:
                known |= _with_memory(new, axis)
                flat = side_by_side([known[owned][0] for owned in new])
            members, memories = zip(*(known[owned] for owned in used))
            line = Line(members, flat if new == used else None, apart=True)
            places = [(module, name, known[owned][0]) for module, name, owned in here]
            self.uses.append(Use(modules, places, list(dict.fromkeys(memories)), line, axis, of))
            stages.append(stage)
        for memory in {memory for _, memory in known.values()}:
            memory.resize_(0)
        self.sharded = [known[owned][0] for owned in owners]
        for i, use in enumerate(self.uses):
            use.modules[0].register_forward_pre_hook(lambda _, args, i=i: self._before(i, args))
            use.modules[-1].register_forward_hook(
                lambda _, __, out, i=i: self._after(i, out), always_call=True
            )
        # Of its backward the embedding needs the tokens only.
        self._first = int(bool(self.uses) and self.uses[0].modules[0] is model.embed)
        self._follows = [mine == before for before, mine in zip([None, *stages], stages)]
        self._kept = None if comm.axis_size("pp") > 1 else len(self.uses) - 1

    def free(self) -> None:
        """Nothing is whole any more. (A use whose input needs no gradient is not told that its
        backward is over.)"""
        for use in self.uses:
            use.free()

    def _before(self, i: int, args: tuple) -> tuple:
        use = self.uses[i]
        if _again():  # its backward, which is about to begin, has gathered it, and will free it
            use.ready("backward")
            use.put(whole=True)
            return args
        if i == 0:
            self.free()
        use.ready("forward")
        use.put(whole=True)
        if i + 1 < len(self.uses) and self._follows[i + 1]:
            self.uses[i + 1].start("forward")
        x, *rest = args
        if torch.is_grad_enabled() and x.requires_grad:
            x = _WhenBackwardIsOver.apply(x, use.free)
        return x, *rest

    def _after(self, i: int, out: torch.Tensor | None) -> torch.Tensor | None:
        use = self.uses[i]
        use.put(whole=False)
        if out is None or _again():  # (a second forward ends when it has what it is run for)
            return out
        comes_back = i >= self._first and torch.is_grad_enabled() and out.requires_grad
        if not comes_back or i != self._kept:
            use.free()
        if comes_back:
            return _BeforeBackward.apply(out, lambda: self._backward(i))
        return out

    def _backward(self, i: int) -> None:
        self.uses[i].ready("backward")
        if i > self._first and self._follows[i]:
            self.uses[i - 1].start("backward")


def _again() -> bool:
    """Whether this is a block's second forward, in its backward."""
    return torch._C._current_graph_task_id() != -1


def _with_memory(
    owners: list[Owned], axis: str
) -> dict[Owned, tuple[Sharded, torch.UntypedStorage]]:
    """What is computed with, in one memory, in the place of these shards."""
    shards = [getattr(*owned.places[0]) for owned in owners]
    sizes = [math.prod(owned.shape) for owned in owners]
    flat = shards[0].detach().new_empty(sum(sizes))
    memory, found = flat.untyped_storage(), {}
    for owned, shard, part in zip(owners, shards, flat.split(sizes)):
        whole = nn.Parameter(part.view(owned.shape), requires_grad=shard.requires_grad)
        whole.pieces = owned.pieces
        found[owned] = Sharded(whole, shard, owned.ends, comm.mesh().rank(axis)), memory
    return found


def _in_order(model: Transformer) -> list[tuple[int, list[nn.Module]]]:
    """What is used one after the other, and in which of this rank's stages of a pipeline."""
    first = [] if model.embed is None else [(0, [model.embed])]
    last = [] if model.head is None else [(len(model.breaks), [model.norm, model.head])]
    blocks = [
        (sum(begin <= place for begin in model.breaks), [block])
        for place, block in enumerate(model.layers)
    ]
    return [*first, *blocks, *last]


class _BeforeBackward(torch.autograd.Function):
    """Its output is its input; in backward it calls first, and passes the gradient on."""

    @staticmethod
    def forward(ctx, x, call):
        ctx.call = call
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dy):
        ctx.call()
        return dy, None


class _WhenBackwardIsOver(_BeforeBackward):
    """The same of a module's input: its gradient comes when all of its backward is done."""
