"""A layout: how many ranks each axis of the mesh has, and which rank stands where.

All of it is one line: the ranks are arange(world).reshape(pp, dp, cp, tp), so that neighbours in
tp, which talk most, have neighbouring numbers (and share a node), and pipeline stages, which talk
least, are farthest apart (arXiv 2104.04473, section 3). world = dp * tp * pp * cp.

ep never multiplies the world: experts are spread over ranks that hold different tokens, so ep
divides dp * cp. `dp4ep2` is four ranks, each expert on two of them.

A layout is written as its axes, in any order, ones left out: `dp2tp2pp2`, `dp4ep2`, `tp2sp`
(sequence parallel), `dp4zero1`, `dp4zero3shard2`, `pp4:gpipe`. One rank is `dp1`. After the
colon stands the pipeline's schedule (schedule_name.py has the names) and, if the layers are dealt
out by hand, how many each stage gets: `pp2:interleaved-v4`, `pp3:1f1b/3-3-2`.
"""

import dataclasses
import math
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from picolab.specs.model_config import ModelConfig
from picolab.specs.schedule_name import ScheduleName

AXES = ("dp", "tp", "pp", "cp", "ep")
# Axes that are regroupings of others: the grid seen in another shape, and which dim of it is meant.
# dp_cp are the ranks that hold the same parameters and see other tokens; of these, ZeRO deals out
# what it shards over the ranks of a shard group, and replicas hold the same shard.
DERIVED = {
    "dp_cp": lambda layout: ((layout.pp, layout.dp * layout.cp, layout.tp), 1),
    "ep": lambda layout: (_experts_apart(layout), 2),
    "edp": lambda layout: (_experts_apart(layout), 1),
    "shard": lambda layout: (_shard_groups(layout), 2),
    "replica": lambda layout: (_shard_groups(layout), 1),
}
MAX_WORLD = 2**20  # far above any run that was ever made: beyond it lies a typing error
# Known words first, so that "spzero1" is sp and zero1; other letters are a word to complain of.
_WORD = re.compile(r"(dp|tp|pp|cp|ep|sp|zero|shard|[a-z]+)(\d*)")


@dataclass(frozen=True, repr=False)
class Layout:
    """How many ranks each axis has. Raises ValueError, and says what would work, for nonsense."""

    dp: int = 1
    """Data parallel: replicas that see different samples."""
    tp: int = 1
    """Tensor parallel: ranks that share every matrix."""
    pp: int = 1
    """Pipeline parallel: stages that hold different layers."""
    cp: int = 1
    """Context parallel: ranks that share one sequence."""
    ep: int = 1
    """Expert parallel: a regrouping of dp * cp over which the experts are spread."""
    sp: bool = False
    """Sequence parallel: between tp's matrices, activations are split along the sequence."""
    zero: int = 0
    """ZeRO stage: 1 shards the optimizer over dp (and cp), 2 gradients too, 3 parameters too."""
    shard: int | None = None
    """Hybrid ZeRO: so many replicas make a shard group, inside which each holds a shard; the groups
    are copies of each other. None: all of dp is one group."""
    schedule: str = "1f1b"
    """In which order a pipeline stage runs its micro-batches: a name of schedule_name.py."""
    stages: tuple[int, ...] = ()
    """Layers of each pipeline stage, by hand; (): as even as they go."""

    def __post_init__(self):
        for axis in AXES:
            object.__setattr__(self, axis, _axis_size(axis, getattr(self, axis)))
        if not isinstance(self.sp, bool):
            raise ValueError(f"sp is {self.sp!r}; it is True or False")
        if self.zero not in (0, 1, 2, 3) or isinstance(self.zero, bool):
            raise ValueError(f"zero is {self.zero!r}; ZeRO stages are 0 (off), 1, 2 and 3")
        object.__setattr__(self, "schedule", str(ScheduleName.parse(self.schedule)))
        object.__setattr__(self, "stages", self._stages_by_hand())
        check_world_size(self.world)
        self._check_shard()
        if self.dp * self.cp % self.ep:
            works = dataclasses.replace(self, ep=math.gcd(self.ep, self.dp * self.cp))
            raise ValueError(
                f"ep={self.ep} does not divide dp*cp = {self.dp * self.cp}: ep regroups ranks that "
                f"hold different tokens, it adds none; the nearest layout that works is {works}"
            )

    @classmethod
    def parse(cls, text: "str | Layout") -> "Layout":
        """`"dp2tp2"` -> Layout(dp=2, tp=2). A Layout is returned as it is."""
        if isinstance(text, Layout):
            return text
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"{text!r} is not a layout: write its axes as in 'dp2tp2', or 'dp1' for one rank"
            )
        axes, colon, pipeline = text.strip().lower().partition(":")
        schedule, slash, stages = pipeline.partition("/")
        fields: dict[str, int | bool | str | tuple] = {"schedule": schedule} if colon else {}
        if slash:
            if not re.fullmatch(r"\d{1,6}(-\d{1,6})*", stages):
                raise ValueError(
                    f"{text}: after '/' stand the layers of each stage, as in '/3-3-2'"
                )
            fields["stages"] = tuple(map(int, stages.split("-")))
        end = 0
        for word in _WORD.finditer(axes):
            name, digits = word.groups()
            if word.start() != end:
                break
            end = word.end()
            if name not in (*AXES, "sp", "zero", "shard"):
                raise ValueError(f"{text}: {name!r} is not an axis; axes are {', '.join(AXES)}")
            if name in fields:
                raise ValueError(f"{text}: {name} is given twice; give each axis once")
            if name == "sp" and digits:
                raise ValueError(f"{text}: sp takes no number; it splits over the ranks of tp")
            if name != "sp" and not digits:
                raise ValueError(f"{text}: {name} needs a number, as in {name}2")
            fields[name] = True if name == "sp" else int(digits)
        if end != len(axes):
            raise ValueError(
                f"{text}: {axes[end:]!r} cannot be read; give each axis a number, as in dp2tp2"
            )
        return cls(**fields)

    def _stages_by_hand(self) -> tuple[int, ...]:
        sizes = tuple(self.stages)
        count = self.stage_count
        if sizes and len(sizes) != count:
            raise ValueError(
                f"stages {'-'.join(map(str, sizes))} are {len(sizes)}, and pp{self.pp} with "
                f"{self.schedule} has {count}; give the layers of each"
            )
        if any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in sizes):
            raise ValueError(f"stages are {sizes}; each has one layer or more, a whole number")
        return sizes

    @property
    def stage_count(self) -> int:
        """Pipeline stages: pp, or as many times that as a rank has."""
        return self.pp * ScheduleName.parse(self.schedule).stages_a_rank if self.pp > 1 else 1

    @property
    def stage_ranks(self) -> tuple[int, ...]:
        """The place on pp of each pipeline stage. One stage where there is no pipeline."""
        return ScheduleName.parse(self.schedule).stage_ranks(self.pp) if self.pp > 1 else (0,)

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.dp * self.tp * self.pp * self.cp

    @property
    def axes(self) -> dict[str, int]:
        """The mesh's axes and their sizes, outermost first."""
        return {"pp": self.pp, "dp": self.dp, "cp": self.cp, "tp": self.tp}

    def grid(self) -> list:
        """arange(world).reshape(pp, dp, cp, tp), nested lists: grid()[pp][dp][cp][tp] is a rank."""
        grid: list = list(range(self.world))
        for size in (self.tp, self.cp, self.dp):
            grid = [grid[start : start + size] for start in range(0, len(grid), size)]
        return grid

    @property
    def data_axis(self) -> str:
        """The axis over which ranks hold the same parameters and see other tokens: what gradients
        are summed over. "dp", "cp", or "dp_cp" where both are split."""
        if self.cp == 1:
            return "dp"
        return "cp" if self.dp == 1 else "dp_cp"

    @property
    def shard_axis(self) -> str:
        """The axis over which ZeRO deals out what it shards: the data axis, or "shard", a part of
        it, where groups are copies of each other (then "replica" is the rest)."""
        return "shard" if self.shard else self.data_axis

    @property
    def remarks(self) -> list[str]:
        """What is asked for and does nothing, a sentence each."""
        if self.zero and self.size(self.shard_axis) == 1:
            return [
                f"{self}: zero{self.zero} shards over replicas, and there is one (dp and cp are 1),"
                " so it changes nothing"
            ]
        return []

    def resized(self, **axes: int) -> "Layout":
        """The same with other sizes of axes; a shard group that no longer fits becomes all of dp,
        sp goes where tp is 1, and so do stages by hand where pp changes."""
        dp, tp = axes.get("dp", self.dp), axes.get("tp", self.tp)
        by_hand = self.stages if axes.get("pp", self.pp) == self.pp else ()
        shard = self.shard if self.shard and dp % self.shard == 0 else None
        return dataclasses.replace(self, **axes, shard=shard, sp=self.sp and tp > 1, stages=by_hand)

    def size(self, axis: str) -> int:
        """Ranks along an axis of the mesh, a derived one or "world"."""
        shape, dim = self._shape(axis)
        return shape[dim]

    def lines(self, axis: str) -> list[tuple[int, ...]]:
        """All lines of ranks along an axis: each rank is in one of them."""
        shape, dim = self._shape(axis)
        size, inner = shape[dim], math.prod(shape[dim + 1 :])
        first = [rank for rank in range(self.world) if rank // inner % size == 0]
        return [tuple(range(rank, rank + size * inner, inner)) for rank in first]

    def stride(self, axis: str) -> int:
        """How far apart neighbours along an axis are, in ranks."""
        shape, dim = self._shape(axis)
        return math.prod(shape[dim + 1 :])

    def same_groups(self, other: "Layout") -> bool:
        """Whether ranks are grouped alike along every axis, derived ones included."""
        names = (*self.axes, *DERIVED)
        return all(self._shape(axis) == other._shape(axis) for axis in names)

    def _shape(self, axis: str) -> tuple[tuple[int, ...], int]:
        """The grid in the shape in which the axis is one of its dims, and which."""
        if axis in self.axes:
            return tuple(self.axes.values()), list(self.axes).index(axis)
        if axis == "world":
            return (self.world,), 0
        if axis in DERIVED:
            return DERIVED[axis](self)
        known = ", ".join((*self.axes, *DERIVED, "world"))
        raise ValueError(f"the mesh has no axis {axis!r}; it has {known}")

    def coordinates(self, rank: int) -> dict[str, int]:
        """Where a rank stands, as an index on each axis: the inverse of grid()."""
        rank = operator.index(rank)
        if not 0 <= rank < self.world:
            raise ValueError(f"rank {rank} is not in {self}; its ranks are 0 to {self.world - 1}")
        found = {}
        for axis, size in reversed(self.axes.items()):
            rank, found[axis] = divmod(rank, size)
        return {axis: found[axis] for axis in self.axes}

    def check(self, config: ModelConfig) -> None:
        """Raise ValueError if this layout cannot split this model, with the nearest one that can.

        "Nearest" keeps the number of ranks and moves as little as possible: the smallest sum, over
        the axes, of |log(new size / old size)|; of two equally near ones the one with more dp.
        """
        reasons = self.objections(config)
        if not reasons:
            return
        works = self.nearest(self.world, lambda layout: not any(layout._objections(config)))
        assert works, "data parallelism alone splits no matrix and no stack, so it always works"
        raise ValueError(
            f"{self} cannot split {config.name}: {'; '.join(reasons)}; "
            f"the nearest layout of {_ranks(self.world)} that works is {works}"
        )

    def check_world(
        self, world_size: int, works: Callable[["Layout"], bool] = lambda layout: True
    ) -> None:
        """Raise ValueError unless there are exactly this many ranks, with the nearest layout of so
        many that works: whoever knows the model says which do."""
        check_world_size(world_size)
        if world_size != self.world:
            sizes = [
                f"{axis} {getattr(self, axis)}" for axis in AXES[:4] if getattr(self, axis) > 1
            ]
            product = f" ({' x '.join(sizes)})" if len(sizes) > 1 else ""
            near = self.nearest(world_size, works)
            raise ValueError(
                f"{self} is {_ranks(self.world)}{product}, not {world_size}; "
                + (
                    f"the nearest layout of {_ranks(world_size)} is {near}"
                    if near
                    else f"and no layout of {_ranks(world_size)} works"
                )
            )

    def objections(self, config: ModelConfig) -> list[str]:
        """Why this layout cannot split this model, a phrase for each reason; [] if it can."""
        return list(self._objections(config))

    def head_copies(self, config: ModelConfig) -> int:
        """How many neighbours of tp hold the same key-value head, each with its own queries: 1
        where there are enough heads. 0: they cannot be shared evenly."""
        if self.tp <= config.kv_heads:
            return 1
        even = self.tp % config.kv_heads == 0 and config.heads % self.tp == 0
        return self.tp // config.kv_heads if even else 0

    def _objections(self, config: ModelConfig) -> Iterator[str]:
        """Only what cannot work. Sizes that an axis does not divide are dealt out unevenly
        (`costs.even_slices`); a key-value head and its queries stay on one rank, or, of more ranks
        than heads, neighbours hold the same one.
        """
        names = ("kv_heads",) * (not self.head_copies(config)) + ("ffn", "vocab")
        sizes = {name: getattr(config, name) for name in names}
        if config.experts:
            sizes["expert_ffn"] = config.expert_ffn
        few = [f"{name} ({size})" for name, size in sizes.items() if size < self.tp]
        if few:
            yield f"tp={self.tp} leaves ranks with nothing of {_listed(few)}"
        stages = self.stage_count
        if stages > config.layers:
            many = "" if stages == self.pp else f" with {self.schedule} is {stages} stages, which"
            yield f"pp={self.pp}{many} is more stages than the model has layers ({config.layers})"
        if self.stages and sum(self.stages) != config.layers:
            yield (
                f"stages {'-'.join(map(str, self.stages))} are {sum(self.stages)} layers, and the "
                f"model has {config.layers}"
            )
        if self.cp > 1 and config.seq % (2 * self.cp):
            near = _multiples(config.seq, 2 * self.cp)
            yield (
                f"cp={self.cp} cuts a sequence into 2 * cp = {2 * self.cp} equal chunks, and seq "
                f"is {config.seq} (take {near})"
            )
        if self.sp and self.tp == 1:
            yield "sp splits activations over the ranks of tp, and tp is 1"
        if self.sp and config.seq % (self.cp * self.tp):
            split = "cp * tp" if self.cp > 1 else "tp"
            near = _multiples(config.seq, self.cp * self.tp)
            yield (
                f"sp splits a sequence into {split} = {self.cp * self.tp} equal parts, and seq is "
                f"{config.seq} (take {near})"
            )
        if self.ep > 1 and config.experts % self.ep:
            yield f"ep={self.ep} does not divide experts ({config.experts})"
        if self.ep > 1 and not config.experts:
            yield f"ep={self.ep} has nothing to spread, the model has no experts"

    def _check_shard(self) -> None:
        """A group of all replicas is the same as none given, and is written so."""
        if self.shard is None:
            return
        object.__setattr__(self, "shard", _axis_size("shard", self.shard))
        if not self.zero:
            raise ValueError(
                f"shard={self.shard} says over how many replicas ZeRO shards, and zero is 0; "
                "give a stage too, as in dp4zero3shard2"
            )
        if self.shard == 1 or self.dp % self.shard:
            sizes = [size for size in divisors(self.dp) if size > 1] or [None]
            near = min(sizes, key=lambda size: (abs((size or 0) - self.shard), size))
            works = dataclasses.replace(self, shard=near)
            what = "is no group" if self.shard == 1 else f"does not divide dp={self.dp}"
            raise ValueError(
                f"shard={self.shard} {what}: the replicas are dealt out to shard groups of equal "
                f"size; the nearest layout that works is {works}"
            )
        if self.shard == self.dp:
            object.__setattr__(self, "shard", None)

    def nearest(self, world: int, works: Callable[["Layout"], bool]) -> "Layout | None":
        """The layout of so many ranks that works and moves the axes least; None: none does."""

        def distance(sizes: tuple[int, ...]) -> tuple:
            old = (self.dp, self.tp, self.pp, self.cp)
            moved = sum(abs(math.log2(new / was)) for new, was in zip(sizes, old))
            return round(moved, 9), *(-size for size in sizes)

        for dp, tp, pp, cp in sorted(factorisations(world, 4), key=distance):
            for ep in sorted(divisors(dp * cp), key=lambda ep: (abs(math.log2(ep / self.ep)), ep)):
                for sp in (True, False) if self.sp and tp > 1 else (False,):
                    # Layers dealt out by hand are of this model and this many stages.
                    layout = dataclasses.replace(self, stages=())
                    layout = layout.resized(dp=dp, tp=tp, pp=pp, cp=cp, ep=ep)
                    layout = dataclasses.replace(layout, sp=sp)
                    if works(layout):
                        return layout
        return None

    def __str__(self) -> str:
        text = "".join(f"{axis}{getattr(self, axis)}" for axis in AXES if getattr(self, axis) > 1)
        text = text or "dp1"
        text += "sp" if self.sp else ""
        text += f"zero{self.zero}" if self.zero else ""
        text += f"shard{self.shard}" if self.shard else ""
        if self.schedule != "1f1b" or self.stages:
            text += f":{self.schedule}"
        return text + ("/" + "-".join(map(str, self.stages)) if self.stages else "")

    def __repr__(self) -> str:
        """The layout and its rank grid: rows for places on the outer axes, columns for tp.

        Large grids are shortened in the middle.
        """
        outer = [axis for axis in ("pp", "dp", "cp") if self.axes[axis] > 1] or ["dp"]
        columns = _shortened(range(self.tp), 16)
        cells = [[*outer, *("..." if i is None else f"tp{i}" for i in columns)]]
        for row in _shortened(range(self.world // self.tp), 32):
            if row is None:
                cells.append(["..."] * len(cells[0]))
                continue
            place = self.coordinates(row * self.tp)
            ranks = ["..." if i is None else str(row * self.tp + i) for i in columns]
            cells.append([*(str(place[axis]) for axis in outer), *ranks])
        width = max(len(cell) for row in cells for cell in row)
        lines = [
            "  ".join(cell.rjust(2 if i < len(outer) else width) for i, cell in enumerate(row))
            for row in cells
        ]
        lines = [f"Layout {self}: {_ranks(self.world)}", *(f"  {line}" for line in lines)]
        return "\n".join([*lines, *self.remarks])


def _experts_apart(layout: Layout) -> tuple[int, ...]:
    """ep is the inner part of dp * cp, so that ranks that exchange tokens are close."""
    return layout.pp, layout.dp * layout.cp // layout.ep, layout.ep, layout.tp


def _shard_groups(layout: Layout) -> tuple[int, ...]:
    """The ranks of cp hold the same parameters too, so they are always in one group."""
    shard = layout.shard or layout.dp
    return layout.pp, layout.dp // shard, shard * layout.cp, layout.tp


def check_world_size(world_size: int) -> None:
    """Raise ValueError for a number of ranks that makes no sense."""
    if not isinstance(world_size, int) or isinstance(world_size, bool):
        raise ValueError(f"world_size is {world_size!r}; it must be an integer, one or more")
    if world_size < 1:
        raise ValueError(f"world_size is {world_size}; a run needs at least one rank")
    if world_size > MAX_WORLD:
        raise ValueError(
            f"world_size is {world_size:,}, beyond sense; the limit is {MAX_WORLD:,} ranks"
        )


def _axis_size(axis: str, value) -> int:
    try:
        size = operator.index(value)
    except TypeError:
        size = None
    if size is None or isinstance(value, bool) or size < 1:
        raise ValueError(f"{axis} is {value!r}; an axis has an integer size of 1 or more")
    return size


def divisors(n: int) -> list[int]:
    """In their order."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def factorisations(n: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every ordered way to write n as a product of so many factors."""
    if parts == 1:
        yield (n,)
        return
    for first in divisors(n):
        for rest in factorisations(n // first, parts - 1):
            yield first, *rest


def _shortened(items: range, most: int) -> list[int | None]:
    """The items, with None in place of the middle ones if there are more than `most`."""
    if len(items) <= most:
        return list(items)
    return [*items[: most // 2], None, *items[-2:]]


def _multiples(size: int, n: int) -> str:
    """The multiples of n next to size, in words: "8 or 12"."""
    below = size - size % n
    return f"{below} or {below + n}" if below else str(n)


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _ranks(n: int) -> str:
    return "1 rank" if n == 1 else f"{n:,} ranks"
