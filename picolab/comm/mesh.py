"""The rank grid, as process groups.

All of 4D is one line: `arange(world).reshape(pp, dp, cp, tp)`. The last axis varies fastest, so
tensor-parallel neighbours have adjacent ranks (they talk most, and belong inside a node);
pipeline stages are furthest apart. An axis's group is the line of ranks through mine along that
axis:

    dp2tp2        tp 0  tp 1          rank 0: tp group (0, 1), dp group (0, 2)
          dp 0      0     1           rank 3: tp group (2, 3), dp group (1, 3)
          dp 1      2     3

torch's DeviceMesh makes the groups from the grid; axes of size 1 get none, since nothing travels
along them. Some axes are regroupings of others (dp_cp: all ranks with the same parameters); they
are one table, `specs.layout.DERIVED`. Twin in torch:
`torch.distributed.device_mesh.init_device_mesh`, whose ranks the test compares."""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from picolab.comm import io_threads
from picolab.specs import Layout
from picolab.specs.layout import DERIVED

AXES = ("pp", "dp", "cp", "tp")  # outermost first


class Mesh:
    """The groups of one rank. `mesh.size("tp")`, `mesh.rank("tp")`, `mesh.ranks("tp")`,
    `mesh.group("tp")`.
    """

    def __init__(self, layout: Layout, device_type: str = "cpu"):
        world = dist.get_world_size()
        if layout.world != world:
            raise ValueError(
                f"layout {layout} needs {layout.world} ranks (pp*dp*cp*tp), but {world} are "
                "running; "
                f"start it with world_size={layout.world}"
            )
        self.layout = layout
        self._sizes = {axis: getattr(layout, axis) for axis in AXES}
        self._groups: dict[str, dist.ProcessGroup | None] = {axis: None for axis in AXES}
        wide = [axis for axis in AXES if self._sizes[axis] > 1]
        if wide:
            self.device_mesh = init_device_mesh(
                device_type, tuple(self._sizes[axis] for axis in wide), mesh_dim_names=tuple(wide)
            )
            for axis in wide:
                self._groups[axis] = self.device_mesh.get_group(axis)
        self._ranks = {
            axis: tuple(dist.get_process_group_ranks(group)) if group else (dist.get_rank(),)
            for axis, group in self._groups.items()
        }
        self._ranks["world"] = tuple(range(world))
        self._sizes["world"] = world
        self._groups["world"] = dist.group.WORLD
        for axis in DERIVED:
            self._derive(axis)
        self._mine = {axis: ranks.index(dist.get_rank()) for axis, ranks in self._ranks.items()}

    def _derive(self, axis: str) -> None:
        """The group of a derived axis, which may be one that is there already. Every rank makes
        every group."""
        lines, size, me = self.layout.lines(axis), self.layout.size(axis), dist.get_rank()
        same = [known for known in self._ranks if self.layout.lines(known) == lines]
        self._groups[axis] = self._groups[same[0]] if same else None
        for line in lines if size > 1 and not same else ():
            group = dist.new_group(line)
            if me in line:
                self._groups[axis] = group
        (self._ranks[axis],) = (line for line in lines if me in line)
        self._sizes[axis] = size

    def neighbours(self, axis: str, size: int) -> str:
        """Make an axis of groups of so many neighbours along an axis, if it is not there; its name.
        All ranks call it, in the same order."""
        name, me = f"{axis}_copies{size}", dist.get_rank()
        if name not in self._sizes:
            for line in self.layout.lines(axis):
                for start in range(0, len(line), size):
                    ranks = line[start : start + size]
                    group = dist.new_group(ranks)
                    if me in ranks:
                        self._groups[name], self._ranks[name] = group, tuple(ranks)
            self._sizes[name], self._mine[name] = size, self._ranks[name].index(me)
        return name

    def size(self, axis: str) -> int:
        return self._look_up(self._sizes, axis)

    def rank(self, axis: str) -> int:
        """My index along the axis."""
        return self._look_up(self._mine, axis)

    def ranks(self, axis: str) -> tuple[int, ...]:
        """The global ranks of my line along the axis, in order."""
        return self._look_up(self._ranks, axis)

    def group(self, axis: str):
        return self._look_up(self._groups, axis)

    @property
    def coordinates(self) -> dict[str, int]:
        return {axis: self._mine[axis] for axis in AXES}

    def _look_up(self, table, axis):
        try:
            return table[axis]
        except KeyError:
            raise ValueError(f"the mesh has no axis {axis!r}; it has {', '.join(table)}") from None


_current: Mesh | None = None


def build_mesh(layout: Layout | str, device_type: str | None = None) -> Mesh:
    """Make the groups of this layout and let them be the current mesh. All ranks call it, in the
    same order.
    """
    global _current
    if device_type is None:
        device_type = "cuda" if dist.get_backend() == "nccl" else "cpu"
    _current = Mesh(Layout.parse(layout), device_type)
    io_threads.give_way()
    return _current


def mesh() -> Mesh:
    """The current mesh; without one, every rank along dp, which gives at least the axis "world"."""
    if _current is None:
        if not dist.is_initialized():
            raise RuntimeError(
                "there is no process group here: call this inside a rank, that is in a function "
                "given to pico.run(...) or in a %%ranks cell"
            )
        build_mesh(Layout(dp=dist.get_world_size()))
    return _current


def axis_size(axis: str) -> int:
    """Ranks along an axis of the current mesh; 1 in a process that is alone, without a group."""
    return mesh().size(axis) if dist.is_initialized() else 1


def device() -> torch.device:
    """Where this rank's tensors belong: its GPU under NCCL, else the CPU."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
