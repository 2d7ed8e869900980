"""Who writes which numbers of a checkpoint, and who reads them, whatever either layout was.

A rank holds parts: rectangles of global tensors, each with the tensor's name and shape and the
place where it begins. torch.distributed.checkpoint (DCP) wants to be told exactly that:

    saving    every rank lists its parts; one rank collects the lists, drops doubles (replicas hold
              the same part) and decides who writes what; each writes its own file, and `.metadata`
              says which rectangle of which tensor lies where
    loading   every rank lists the parts it needs; where a part overlaps a written rectangle, the
              overlap is read and copied

So a tensor that was cut in thirds by rows can be read back in halves by columns, and no rank ever
holds a whole one. The two planners below are all that DCP has to be told; the reading, writing and
agreeing is its own.

AdamW's moments have the shape of their parameter, so they are cut like it and named like it:
"optimizer.exp_avg.layers.0.attention.q.weight". q, k and v are one parameter here and three tensors
there. The step count is one number a parameter, written for each of its tensors. Copies of what
another rank answers for (`Piece.copy`) are not written, and are read like everything else.
"""

import dataclasses
import io
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from picolab.model import slices


@dataclass(frozen=True)
class Part:
    """A rectangle of a global tensor. `values` is a view: what is read goes into it."""

    values: torch.Tensor
    shape: tuple[int, ...]
    """Of the global tensor."""
    offsets: tuple[int, ...]
    """Where in it the rectangle begins."""

    @property
    def chunk(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(torch.Size(self.offsets), self.values.size())


def whole(tensor: torch.Tensor) -> Part:
    """A tensor that is held in one piece."""
    return Part(tensor.detach(), tuple(tensor.shape), (0,) * tensor.dim())


def parts(optimizer: torch.optim.Optimizer, copies: bool) -> dict[str, list[Part]]:
    """What this rank holds of the model and of the optimizer's state, by global names. copies: also
    of what others answer for.

    Every parameter must say its pieces (see model/parameters.py). Empty slices are left out.
    """
    found: dict[str, list[Part]] = {}

    def add(kind: str, parameter: nn.Parameter, tensor: torch.Tensor) -> None:
        for piece, values in slices(parameter, tensor):
            if values.numel() and (copies or not piece.copy):
                offsets = tuple(held.start for held in piece.ranges)
                part = Part(values, piece.shape, offsets)
                found.setdefault(f"{kind}.{piece.name}", []).append(part)

    for parameter in _parameters(optimizer):
        add("model", parameter, parameter.detach())
        for key, value in optimizer.state[parameter].items():
            if value.dim() > 0:
                add(f"optimizer.{key}", parameter, value)
            else:
                names = {piece.name for piece in parameter.pieces if copies or not piece.copy}
                found |= {f"optimizer.{key}.{name}": [whole(value)] for name in names}
    return found


def make_state(optimizer: torch.optim.Optimizer, metadata: Metadata) -> None:
    """Memory for the optimizer state that was saved of these parameters: the optimizer itself makes
    it in its first step, which is too late to read into."""
    saved: dict[str, dict[str, TensorStorageMetadata]] = {}
    for full, about in metadata.state_dict_metadata.items():
        kind, _, rest = full.partition(".")
        if kind == "optimizer":
            key, _, name = rest.partition(".")
            saved.setdefault(name, {})[key] = about
    for parameter in _parameters(optimizer):
        state = {}
        for key, about in saved.get(parameter.pieces[0].name, {}).items():
            shape = parameter.shape if about.size else ()
            state[key] = torch.zeros(shape, dtype=about.properties.dtype, device=parameter.device)
        if state:
            optimizer.state[parameter] = state


class SavePlanner(DefaultSavePlanner):
    """The state dict is {name: [Part]}. DCP drops what several ranks hold alike, and checks that
    what is left covers each tensor."""

    def __init__(self):
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan(
            [_write_item(name, part) for name, of in self.state_dict.items() for part in of]
        )
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        return _values(self.state_dict, index)


class LoadPlanner(DefaultLoadPlanner):
    """The state dict is {name: [Part]}, and is filled. ValueError for a tensor that is not there or
    has another shape."""

    def __init__(self):
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(self, state_dict, metadata=None, is_coordinator=False) -> None:
        self.state_dict, self.metadata = state_dict, metadata
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> LoadPlan:
        items: list[ReadItem] = []
        for name, of in self.state_dict.items():
            saved, shape = self.metadata.state_dict_metadata.get(name), of[0].shape
            if saved is None:
                raise ValueError(f"it has no tensor {name!r}")
            if tuple(saved.size) != shape:
                raise ValueError(f"its {name} is {tuple(saved.size)}, and here it is {shape}")
            items += create_read_items_for_chunk_list(name, saved, [part.chunk for part in of])
        return LoadPlan(items)

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise AssertionError("everything we write is a tensor")

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        return _values(self.state_dict, index)


def _parameters(optimizer: torch.optim.Optimizer) -> Iterable[nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _values(state_dict: dict[str, list[Part]], index: MetadataIndex) -> torch.Tensor:
    """Of the parts of a name the one that begins there."""
    (part,) = (p for p in state_dict[index.fqn] if p.offsets == tuple(index.offset))
    return part.values


def _write_item(name: str, part: Part) -> WriteItem:
    properties = TensorProperties.create_from_tensor(part.values)
    return WriteItem(
        # The place is part of the index: by it DCP sees that two ranks hold the same part.
        index=MetadataIndex(name, torch.Size(part.offsets)),
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=part.chunk,
            properties=dataclasses.replace(properties, requires_grad=False),
            size=torch.Size(part.shape),
        ),
    )
