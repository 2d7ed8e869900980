"""What a parameter is, independently of how it is cut: its global name, its global shape, its
initial values.

A layout decides which part of each matrix a rank holds. If a rank filled what it holds from its own
random numbers, the model would depend on the layout; worse, with one seed for all ranks every shard
would be a *copy* of the same numbers, and since equal shards get equal gradients they would stay
copies for ever. So a parameter here is made of pieces:

    Piece   one global tensor of the model ("layers.0.attention.q.weight"), and the slice of it
            that is held here
    Cut     how the slice came about: along which dim, over which axis of the mesh, who holds what

A piece may be cut several times, by rows over one axis and by columns over another, or twice by
rows; what is left is always a rectangle. Nobody outside asks "is it tensor parallel?": the gradient
norm sums over the axes of a piece's cuts, gathering undoes them, checkpoints write the rectangle.
Of a cut with fewer slices than ranks, neighbours hold the same one.

A parameter is filled by drawing the *whole* global tensor from a generator that is seeded by (seed,
name), and keeping the slice. Any sharding, on any device, in any order of construction starts from
the same model.

A parameter may hold several pieces, stacked along dim 0: q, k and v are one matrix, so that one
product computes all three. The names stay those of the unfused tensors, and everything that leaves
the ranks (checkpoints, gathered gradients) uses them.

Leaves out: drawing only the slice (a counter-based generator could; here each rank draws one global
tensor at a time and drops the rest, which costs 0.1 s for eight million parameters).
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from picolab.costs import even_slices


@dataclass(frozen=True)
class Cut:
    """A tensor dealt out along one of its dims over the ranks of an axis."""

    axis: str
    """Of the mesh: "tp"."""
    dim: int
    """Of the tensor."""
    ends: tuple[int, ...]
    """n + 1 places along `dim` of the global tensor: rank i has ends[i] ... ends[i+1]-1."""
    index: int
    """My place on the axis; of a copy of one slice of another rank's, that slice's."""
    copies: int = 1
    """So many neighbours hold the same slice (a key-value head that several ranks read); `ends`
    then has so many times fewer slices."""

    @property
    def start(self) -> int:
        return self.ends[self.index // self.copies]

    @property
    def stop(self) -> int:
        return self.ends[self.index // self.copies + 1]

    @property
    def sizes(self) -> list[int]:
        """How much of `dim` each rank of the axis has."""
        sizes = [stop - start for start, stop in zip(self.ends, self.ends[1:])]
        return [size for size in sizes for _ in range(self.copies)]


@dataclass(frozen=True)
class Piece:
    """One global tensor, and which slice of it is held here."""

    name: str
    """The global, unfused name: "layers.0.mlp.gate.weight"."""
    shape: tuple[int, ...]
    """The global shape."""
    init: Literal["normal", "ones"] = "normal"
    std: float = 1.0
    """Standard deviation of the initial values, where init is "normal" (mean 0)."""
    cuts: tuple[Cut, ...] = ()
    """How it was cut, in order; () if it is held whole."""
    blocks: int | None = None
    """What tensor parallelism cuts consists of so many equal blocks, which stay whole (an attention
    head's rows). None: of single rows or columns."""
    finer: int | None = None
    """Where there are more ranks than blocks: so many smaller blocks it has then (query heads)."""
    shared: bool = False
    """Where there are more ranks than blocks: neighbours hold the same one (key-value heads)."""
    copy: bool = False
    """Another rank holds the same slice and answers for it: this one is not counted in the gradient
    norm, not gathered and not saved (the tied head, a copy of an expert)."""

    @property
    def axes(self) -> frozenset[str]:
        """The axes it is cut along: over these its squares are summed."""
        return frozenset(cut.axis for cut in self.cuts)

    @property
    def copies(self) -> int:
        """How many ranks of its axes hold the same slice: its squares are summed so often."""
        return math.prod(cut.copies for cut in self.cuts)

    @property
    def ranges(self) -> tuple[range, ...]:
        """The slice along each dim: a rectangle of the global tensor."""
        found = [range(size) for size in self.shape]
        for cut in self.cuts:  # the later cut of a dim lies within the earlier one
            found[cut.dim] = range(cut.start, cut.stop)
        return tuple(found)

    @property
    def local_shape(self) -> tuple[int, ...]:
        return tuple(len(held) for held in self.ranges)

    def take(self, whole: torch.Tensor) -> torch.Tensor:
        """My slice of the global tensor (a view)."""
        return whole[tuple(slice(held.start, held.stop) for held in self.ranges)]

    def shard(
        self, axis: str, dim: int, index: int, n: int, *, blocks: int | None = None
    ) -> "Piece":
        """The index-th of n slices along `dim` of what is held, as even as they go, the larger
        first; `blocks` of them stay whole. Slices may be empty, or, of a `shared` piece, the same
        on n / blocks neighbours."""
        held, copies = self.ranges[dim], 1
        if blocks is not None and blocks < n:
            if self.shared and n % blocks == 0:
                copies = n // blocks
            blocks = self.finer or blocks
        slices = even_slices(len(held), n // copies, blocks)
        ends = (held.start, *(held.start + part.stop for part in slices))
        return replace(self, cuts=(*self.cuts, Cut(axis, dim, ends, index, copies)))


def meta_parameter(pieces: tuple[Piece, ...], dtype: torch.dtype) -> nn.Parameter:
    """A parameter that holds these pieces, stacked along dim 0: a shape without memory, until
    `initialise` or `load`.
    """
    shapes = [piece.local_shape for piece in pieces]
    rows = sum(shape[0] for shape in shapes)
    parameter = nn.Parameter(torch.empty(rows, *shapes[0][1:], dtype=dtype, device="meta"))
    parameter.pieces = pieces
    return parameter


def slices(
    parameter: nn.Parameter, tensor: torch.Tensor | None = None
) -> Iterator[tuple[Piece, torch.Tensor]]:
    """Each piece with its rows (views) of the parameter, or of a tensor of the same shape, such as
    its gradient.
    """
    tensor = parameter.detach() if tensor is None else tensor
    start = 0
    for piece in parameter.pieces:
        rows = piece.local_shape[0]
        yield piece, tensor[start : start + rows]
        start += rows


def initialise(
    module: nn.Module,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Give every parameter its initial values, the same for every sharding. Returns the module.

    The values are drawn on the CPU in fp32 and then cast, so device and dtype do not change them.
    `dtype` None keeps the module's own.
    """
    return fill(module, lambda piece: piece.take(draw(piece, seed)), device, dtype)


def load(
    module: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Give every parameter its values from global tensors by name, whatever layout they came from.
    Returns the module.

    Raises ValueError if a name is missing or a shape differs.
    """

    def value(piece: Piece) -> torch.Tensor:
        if piece.name not in tensors:
            raise ValueError(f"there is no tensor {piece.name!r} among the {len(tensors)} given")
        whole = tensors[piece.name]
        if tuple(whole.shape) != piece.shape:
            raise ValueError(f"{piece.name} should be {piece.shape}, but is {tuple(whole.shape)}")
        return piece.take(whole)

    return fill(module, value, device, dtype)


def global_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Global name -> tensor (on the CPU, a copy), for a module that is held whole; sharded ones are
    gathered by `parallel`.
    """
    tensors = {}
    for parameter in module.parameters():
        for piece, part in slices(parameter):
            assert not piece.cuts, f"{piece.name} is a shard here"
            tensors[piece.name] = part.to("cpu", copy=True)
    return tensors


def draw(piece: Piece, seed: int) -> torch.Tensor:
    """The whole global tensor, from a generator that knows only the seed and the name."""
    if piece.init == "ones":
        return torch.ones(piece.shape)
    digest = hashlib.sha256(f"{seed}/{piece.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.empty(piece.shape).normal_(0.0, piece.std, generator=generator)


@torch.no_grad()
def fill(
    module: nn.Module,
    value: Callable[[Piece], torch.Tensor],
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Give every parameter its values piece by piece: `value(piece)` is the slice that is held
    here. Returns the module.

    What is on the meta device gets memory (on `device`, of `dtype` or its own dtype); what has
    values is written over in place, so that optimizers and hooks which know it stay right.
    """
    filled: dict[int, nn.Parameter] = {}  # a tied parameter has two owners and must stay one
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if id(parameter) not in filled:
                if not hasattr(parameter, "pieces"):
                    raise ValueError(
                        f"the parameter {name!r} of {type(owner).__name__} does not say what it "
                        "holds; make it with meta_parameter, or give it `pieces`"
                    )
                new = parameter
                if parameter.is_meta:
                    # Not empty_like: for a meta tensor that imports sympy, which takes 0.4 s.
                    memory = torch.empty(
                        parameter.shape, device=device, dtype=dtype or parameter.dtype
                    )
                    new = nn.Parameter(memory, requires_grad=parameter.requires_grad)
                    new.pieces = parameter.pieces
                for piece, part in slices(new):
                    part.copy_(value(piece))
                filled[id(parameter)] = new
            setattr(owner, name, filled[id(parameter)])
        # A buffer has no name in `tensors` and no rule to draw it: it must have had its values all
        # along.
        for name, buffer in owner.named_buffers(recurse=False):
            if buffer.is_meta:
                raise ValueError(
                    f"the buffer {name!r} of {type(owner).__name__} is on the meta device and has "
                    "lost its values; build it with an explicit device='cpu'"
                )
            setattr(owner, name, buffer.to(device))
    return module
