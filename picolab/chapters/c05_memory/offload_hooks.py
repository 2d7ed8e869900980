"""Exercise: offload by saved-tensor hooks, fetched before it is needed (chapter 5, section 5).

The far memory is the judge's, and so are the blocks. So it sees which storage is moved, how often,
and whether it was one that stays; during which block's backward a fetch was asked for and during
which one it was taken; when fetched memory was let go; and what was freed. The same blocks without
offload say what autograd keeps of each, and what the gradients are, to the last bit.
"""

import bisect
import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise
from picolab.memory import Watch
from picolab.memory.pool import borrowed

SLACK = 4096  # bytes of what is near all the same


def my_offload(blocks, x, far, stays):
    raise NotImplementedError(f"{len(blocks)} blocks, {len(stays)} tensors that stay")


def solution(blocks, x, far, stays):
    import weakref

    import torch

    home = {one.untyped_storage().data_ptr() for one in stays}
    known = {}  # address -> a storage and what stands for it, neither of them held by this

    class Away:
        """A storage that is away. The graph holds it, and with the graph it goes."""

        def __init__(self, storage):
            self.ticket, self.asked, self.near = far.put(storage), False, None
            weakref.finalize(self, far.free, self.ticket)

        def fetch(self):
            if not self.asked:
                far.fetch(self.ticket)
            self.asked = True

        def back(self):
            self.fetch()
            if self.near is None:
                self.near = far.take(self.ticket)
            return self.near

    def away(storage):
        of, entry = known.get(storage.data_ptr(), (lambda: None, lambda: None))
        found = entry() if of() is storage else None  # an address may be another's by now
        if found is None:
            found = Away(storage)
            known[storage.data_ptr()] = weakref.ref(storage), weakref.ref(found)
        return found

    def run(block, x, before):
        here = []

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() in home:
                return tensor
            entry = away(storage)
            here.append(weakref.ref(entry))
            return entry, tensor.dtype, tensor.storage_offset(), tensor.size(), tensor.stride()

        def unpack(packed):
            if isinstance(packed, torch.Tensor):
                return packed
            entry, dtype, *view = packed
            return torch.empty(0, dtype=dtype).set_(entry.back(), *view)

        def begins(_):
            for entry in filter(None, (ref() for ref in reversed(before))):
                entry.fetch()

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            y = block(x)
        if y.requires_grad:
            y.register_hook(begins)  # the backward of this block: the one before it may come
        return y, here

    before = []
    for block in blocks:
        x, before = run(block, x, before)
    return x


# -- the far memory


@dataclass(eq=False)
class Place:
    """What `put` gives."""

    run: int
    block: int
    nbytes: int
    data: bytearray
    near: torch.UntypedStorage | None = None
    fetched_in: int | None = None
    """The block whose backward was under way."""
    taken: bool = False
    freed: bool = False


@dataclass(eq=False)
class Far:
    """Another memory. `put(storage)` copies a storage there and gives a ticket; `fetch(ticket)`
    lets it come back; `take(ticket)` waits for it and gives its new storage, once; `free(ticket)`
    when it is not needed any more."""

    stays: set[int] = field(default_factory=set)
    places: list[Place] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    near: int = 0
    """Bytes of what was fetched and is alive."""
    most: int = 0
    run: int = 0
    block: int = 0
    keep: list[int] = field(default_factory=list)
    """The blocks of which anything is kept."""
    _there: dict = field(default_factory=dict)

    def put(self, storage: torch.UntypedStorage) -> Place:
        if not isinstance(storage, torch.UntypedStorage):
            raise ValueError(
                f"far.put takes a storage, as tensor.untyped_storage() gives, not {type(storage)}"
            )
        address, nbytes = storage.data_ptr(), storage.nbytes()
        if address in self.stays:
            self._wrong(
                f"in block {self.block} a storage is moved that stays where it is (a parameter, a "
                "table, or what a view of one is of)"
            )
        before = self._there.get(address)
        if before is not None and before[0]() is storage and before[1].run == self.run:
            old = before[1]
            where = f"block {old.block} and " if old.block != self.block else ""
            self._wrong(
                f"the same storage is moved twice, for {where}block {self.block}: several "
                "operators keep it, or views of it, and it has to travel once"
            )
        place = Place(self.run, self.block, nbytes, bytearray(nbytes))
        if nbytes:
            _copy(borrowed(memoryview(place.data), nbytes), storage)
        self._there[address] = weakref.ref(storage), place
        self.places.append(place)
        return place

    def fetch(self, place: Place) -> None:
        if self._is_gone(place):
            return
        if place.fetched_in is not None:
            self._wrong(f"what block {place.block} gave away is fetched twice")
            return
        if place.run != self.run:
            self._wrong(
                f"what block {place.block} of one graph gave away is fetched in the backward of "
                "another: each call has a graph of its own"
            )
        place.fetched_in, place.near = self.block, torch.UntypedStorage(place.nbytes)
        if place.nbytes:
            _back(place.near, borrowed(memoryview(place.data), place.nbytes))
        self.near += place.nbytes
        self.most = max(self.most, self.near)
        weakref.finalize(place.near, self._let_go, place.nbytes).atexit = False

    def take(self, place: Place) -> torch.UntypedStorage:
        if self._is_gone(place):
            raise RuntimeError("its place in the far memory was freed")
        if place.taken:
            self._wrong(
                f"what block {place.block} gave away is taken twice: several operators need it, "
                "and what `take` gave is to be there for all of them"
            )
            place.taken = place.fetched_in = None
        early = place.fetched_in is not None
        if not early:
            self.fetch(place)
        if place.nbytes:
            self._in_time(place, early)
        place.taken, found = True, place.near
        place.near = None
        return found

    def _in_time(self, place: Place, early: bool) -> None:
        if self.block != self.keep[-1] and place.fetched_in == self.block:
            when = "had begun" if early else "asked for it"
            early = ", or what the block before it needs is waited for there already"
            self._wrong(
                f"in the backward of block {self.block} everybody waits: what it needs is fetched "
                f"when that backward {when}, and should be while block {self.block + 1} is at work"
                + early
                * (place.block < self.block)
            )
        if self._behind(place.fetched_in) > self._behind(self.block) + 1:
            self._wrong(
                f"what block {self.block} needs is fetched while block {place.fetched_in} is at "
                f"work: too early, there is room for one block beside the one that runs"
            )

    def free(self, place: Place) -> None:
        if place.freed:
            self._wrong(f"a place of block {place.block} in the far memory is freed twice")
        place.freed, place.near = True, None

    def _behind(self, block: int) -> int:
        """How many blocks that keep anything are before it."""
        return bisect.bisect_left(self.keep, block)

    def _is_gone(self, place: Place) -> bool:
        if place.freed:
            self._wrong(f"what block {place.block} gave away is asked for after it was freed")
        return place.freed

    def _let_go(self, nbytes: int) -> None:
        self.near -= nbytes

    def _wrong(self, sentence: str) -> None:
        if sentence not in self.problems:
            self.problems.append(sentence)


def _bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)


@torch.no_grad()
def _copy(to: torch.Tensor, storage: torch.UntypedStorage) -> None:
    to.copy_(_bytes(storage))


@torch.no_grad()
def _back(storage: torch.UntypedStorage, data: torch.Tensor) -> None:
    _bytes(storage).copy_(data)


# -- the runs


@dataclass(eq=False)
class _Setup:
    blocks: list[Callable]
    x: torch.Tensor
    stays: list[torch.Tensor]
    parameters: dict[str, torch.Tensor]

    @property
    def leaves(self) -> dict[str, torch.Tensor]:
        return {"x": self.x, **self.parameters}


@dataclass
class _Right:
    """Of a run that keeps everything near."""

    y: torch.Tensor
    grads: dict[str, torch.Tensor | None]
    moved: int
    """Bytes of all storages that are kept and do not stay, and of how many."""
    storages: int
    keep: list[int]
    """The blocks of which anything is kept."""
    near: int
    """The most that two neighbours of these need."""
    forward: int
    """The most that one block's forward takes."""


_TWO = {"two in flight": (0, 1), "last first": (1, 0)}  # whose backward comes first


def judge(learner, attempt: Attempt) -> None:
    gc.freeze()  # a `Watch` collects first
    for about, make, how in _SETTINGS:
        attempt.setting(about)
        right = _keeping_all(make(), how)
        if not _offloaded(attempt, learner, make(), right, how):
            return


def _keeping_all(setup: _Setup, how: str) -> _Right:
    torch.manual_seed(5)
    own = {one.untyped_storage().data_ptr() for one in setup.stays}
    saved: list[list[torch.Tensor]] = []
    x, largest = setup.x, 0
    watch = Watch()
    with watch, torch.set_grad_enabled(how != "no gradient"):
        for block in setup.blocks:
            mine: list[torch.Tensor] = []
            before, begin = watch.live, len(watch.totals)
            hooks = torch.autograd.graph.saved_tensors_hooks(
                lambda t, mine=mine: mine.append(t) or t, lambda t: t
            )
            given = x
            with hooks:
                x = block(x)
            most = max(watch.totals[begin:], default=before) - before
            largest = max(largest, most + given.untyped_storage().nbytes())
            saved.append(mine)
    sizes = [
        {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in mine
            if t.untyped_storage().data_ptr() not in own and t.untyped_storage().nbytes()
        }
        for mine in saved
    ]
    everything = {address: size for of in sizes for address, size in of.items()}
    keep = [number for number, of in enumerate(sizes) if of]
    kept = [sizes[number] for number in keep]
    two = [sum((a | b).values()) for a, b in zip([{}, *kept], kept)]
    if x.requires_grad:
        _loss(x).backward()
    grads = {name: of.grad for name, of in setup.leaves.items()}
    total = sum(everything.values())
    near = max(two, default=0)
    return _Right(x.detach(), grads, total, len(everything), keep, near, largest)


def _loss(y: torch.Tensor) -> torch.Tensor:
    return (y * torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view_as(y)).sum()


def _offloaded(attempt: Attempt, learner, setup: _Setup, right: _Right, how: str) -> bool:
    far = Far({one.untyped_storage().data_ptr() for one in setup.stays})
    far.keep = right.keep
    runs = 2 if how in _TWO else 1
    results = []
    for run in range(runs):
        torch.manual_seed(5)
        y = _forward(attempt, learner, setup, far, run, right, how)
        if y is None:
            return False
        results.append(y)
    if not _moved_enough(attempt, far, right, runs):
        return False
    if runs == 2:
        with torch.no_grad():  # gradients of both are added up
            for name, grad in right.grads.items():
                right.grads[name] = None if grad is None else grad + grad
    for run in _TWO.get(how, (0,)):
        far.run = run
        y = results[run]
        if not attempt.equal("the result", y, right.y, rtol=0.0):
            return False
        if how not in ("no gradient", "dropped"):
            with attempt.watching():
                _loss(y).backward()
        results[run] = y = None
    gc.collect()
    attempt.only()
    attempt.budget(count=0)
    return _looks_right(attempt, setup, far, right, how)


def _forward(attempt: Attempt, learner, setup, far: Far, run: int, right: _Right, how: str):
    blocks = [_watched(block, i, run, far) for i, block in enumerate(setup.blocks)]
    given = {"blocks": blocks, "x": setup.x, "far": far, "stays": setup.stays}
    watch = Watch()
    with watch, torch.set_grad_enabled(how != "no gradient"):
        before = watch.live
        y = attempt.call(learner, given, may_change=tuple(given))
        most = max(watch.totals, default=before) - before
        gc.collect()
        kept = watch.live - before
    if not isinstance(y, torch.Tensor):
        attempt.equal("the result", y, right.y)
        return None
    if far.problems:
        return attempt.wrong(far.problems[0])
    if not attempt.require(y.requires_grad or how == "no gradient", "its result wants no gradient"):
        return None
    kept -= y.untyped_storage().nbytes()
    if not attempt.require(
        kept <= SLACK,
        f"after the forward pass {kept:,} bytes of what operators keep are still near (autograd "
        f"keeps {right.moved:,} in all)",
    ) or not attempt.require(
        most <= right.forward + SLACK,
        f"in the forward pass {most:,} bytes are near at one time, and no block takes more than "
        f"{right.forward:,}: what was put away is still held by somebody",
    ):
        return None
    return y


def _watched(block: Callable, number: int, run: int, far: Far) -> Callable:
    """Tells the far memory where forward and backward are."""

    def begins(_):
        far.run, far.block = run, number

    def call(x):
        far.run, far.block = run, number
        y = block(x)
        if y.requires_grad:
            y.register_hook(begins)
        return y

    return call


def _moved_enough(attempt: Attempt, far: Far, right: _Right, runs: int) -> bool:
    places = [place for place in far.places if place.nbytes]
    moved, wanted = sum(place.nbytes for place in places), runs * right.moved
    why = "small ones travel, too, and an address may be another storage's by now"
    if moved > wanted:
        why = "what travels is a storage, and not the numbers of each view"
    return attempt.require(
        moved == wanted,
        f"{moved:,} bytes of {len(places)} storages are put into the far memory, and autograd "
        f"keeps {wanted:,} of {runs * right.storages} that do not stay: {why}",
    )


def _looks_right(attempt: Attempt, setup: _Setup, far: Far, right: _Right, how: str) -> bool:
    if far.problems:
        return attempt.require(False, far.problems[0])
    for name, of in setup.leaves.items():
        wanted = right.grads[name] if how not in ("no gradient", "dropped") else None
        if wanted is None:
            if not attempt.require(of.grad is None, f"{name} has a gradient, and should have none"):
                return False
        elif not attempt.equal(f"the gradient of {name}", of.grad, wanted, rtol=0.0):
            return False
    kept = sum(not place.freed for place in far.places)
    if not attempt.require(
        kept == 0,
        f"{kept} of {len(far.places)} places in the far memory are never freed"
        + (" (the graph was dropped without a backward)" if how == "dropped" else ""),
    ):
        return False
    most = right.near * (2 if how in _TWO else 1)
    if not attempt.require(
        far.most <= most,
        f"{far.most:,} bytes are fetched and near at one time; two neighbouring blocks need "
        f"{most:,} at most: what a block has used is let go when it has run",
    ):
        return False
    moved = sum(place.nbytes for place in far.places)
    attempt.counts("put away", moved, moved, moved, "bytes")  # (as many as `_moved_enough` wants)
    attempt.counts("fetched and near", far.most, most, 0, "bytes")
    return True


# -- blocks


def _leaf(*shape, scale=0.3, grad=True) -> torch.Tensor:
    seed = sum(p * n for p, n in zip((7, 31, 101), shape)) + 3
    draw = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=draw, dtype=torch.float64)).requires_grad_(grad)


def _mlp(w, v):
    return lambda x: F.gelu(x @ w) @ v


def _setup(blocks, parameters, x=None, tables=()) -> _Setup:
    x = _leaf(37, 24) if x is None else x
    return _Setup(blocks, x, [*parameters.values(), *tables], parameters)


def _mlps(*widths: int, x=None) -> _Setup:
    parameters = {}
    for i, width in enumerate(widths):
        parameters |= {f"w{i}": _leaf(24, width), f"v{i}": _leaf(width, 24)}
    blocks = [_mlp(parameters[f"w{i}"], parameters[f"v{i}"]) for i in range(len(widths))]
    return _setup(blocks, parameters, x)


def _of_views() -> _Setup:
    """Attention: q, k and v are views of one product, and a table turns two of them."""
    w, o = _leaf(24, 72), _leaf(24, 24)
    table = torch.linspace(0, 6, 37 * 8, dtype=torch.float64).view(37, 8)

    def attention(x):
        q, k, v = ((x @ w)[:, i : i + 24].view(37, 3, 8).transpose(0, 1) for i in (0, 24, 48))
        y = F.scaled_dot_product_attention((q * table)[None], (k * table)[None], v[None])
        return x + y[0].transpose(0, 1).reshape(37, 24) @ o

    def fused(x):
        qkv = x @ w
        q, k, v = (qkv[:, i : i + 24] for i in (0, 24, 48))
        return torch.tanh(q * k) * v + q.t().contiguous().t()

    return _setup([attention, fused, attention], {"w": w, "o": o}, tables=(table,))


def _turned_weights() -> _Setup:
    w, v = _leaf(24, 24), _leaf(60, 24)
    blocks = [
        lambda x: torch.sigmoid(x @ w.t()),
        lambda x: F.silu(x @ v[12:36].t()) * v[3],
        lambda x: (x @ w[:, :24]) @ w.t(),
    ]
    return _setup(blocks, {"w": w, "v": v})


def _shared() -> _Setup:
    """A result that its own block keeps, and the next one as its input."""
    w = _leaf(24, 24)
    blocks = [lambda x: F.relu(x @ w), lambda x: torch.exp(-F.relu(x @ w)), lambda x: (x @ w) * x]
    return _setup([*blocks, blocks[0], blocks[2]], {"w": w})


def _of_nothing() -> _Setup:
    """Blocks that keep nothing stand between those that do."""
    one = _mlps(40, 50, 60)
    plus = [lambda x: x + 1, lambda x: 2 - x]
    blocks = [plus[0], one.blocks[0], *plus, one.blocks[1], plus[0], one.blocks[2], plus[1]]
    return _Setup(blocks, one.x, one.stays, one.parameters)


def _masks() -> _Setup:
    """Indices, masks of one byte, tensors that are expanded, one number, and dropout."""
    w = _leaf(24, 24)

    def indexed(x):
        rows = torch.arange(36, -1, -1)
        return x[rows] * (x > 0) @ w

    def expanded(x):
        return (x * x.mean(0, keepdim=True).expand_as(x)).cumsum(0) @ w

    def dropping(x):
        return F.layer_norm(F.dropout(x, 0.2), (24,)) @ w

    def scaled(x):
        return x * x.square().mean()  # (one number is kept, too)

    return _setup([indexed, expanded, scaled, dropping, indexed], {"w": w})


_SETTINGS = (
    ("3 blocks", lambda: _mlps(48, 48, 48), ""),
    ("one block", lambda: _mlps(48), ""),
    ("weights that are turned round, and parts of them", _turned_weights, ""),
    ("views of one product, and a table", _of_views, ""),
    ("blocks that keep what the next one keeps, too", _shared, ""),
    ("blocks between that keep nothing", _of_nothing, ""),
    ("masks, indices, expanded tensors, dropout", _masks, ""),
    ("blocks of very uneven sizes", lambda: _mlps(30, 400, 7, 150, 1, 90, 24), ""),
    ("an input that wants no gradient", lambda: _mlps(48, 30, x=_leaf(37, 24, grad=False)), ""),
    ("no rows", lambda: _mlps(48, 30, x=_leaf(0, 24)), ""),
    ("no gradient is wanted", lambda: _mlps(48, 30), "no gradient"),
    ("a graph that is dropped", lambda: _mlps(48, 30, 20), "dropped"),
    ("two micro-batches in flight", lambda: _mlps(48, 30, 64), "two in flight"),
    ("two micro-batches in flight, last first", lambda: _mlps(48, 30, 64), "last first"),
    ("7 equal blocks", lambda: _mlps(*[48] * 7), ""),
)


EXERCISE = Exercise(
    id="memory.offload.hooks",
    goal="Run blocks so that all that autograd keeps of them goes to a far memory, and comes back "
    "in the backward before it is needed: while a block's backward runs, what the block before it "
    "needs is already on its way.",
    interface="`my_offload(blocks, x, far, stays)` returns `blocks[-1](... blocks[0](x))`. "
    "`far.put(storage)` copies a storage (`tensor.untyped_storage()`) away and gives a ticket; "
    "`far.fetch(ticket)` lets it come back and returns at once; `far.take(ticket)` waits for it "
    "and gives the new storage, once for each ticket (without a fetch before it everybody waits); "
    "`far.free(ticket)` when nobody needs the place any more, once. What `take` gives is near "
    "memory for as long as you hold it. `stays`: tensors (parameters, tables) whose storages do "
    "not travel, nor views of them. Everything else that autograd keeps does: each storage once, "
    "whoever keeps it, also if two blocks do. Gradients are those of a run without offload, to the "
    "last bit. Each graph is gone through once, or dropped; two may be in flight at a time.",
    budget=f"After the forward pass: the result and {SLACK:,} bytes near. In the backward: what "
    "two neighbouring blocks need. Each fetch while the block behind is at work, but for the last "
    "block's (of those that keep anything). At the end no place taken.",
    hints=(
        "`torch.autograd.graph.saved_tensors_hooks(pack, unpack)` around each block. What has to "
        "stand in a tensor's place so that the very same view can be made of a storage again? And "
        "how do you find out that two tensors have one storage, when an address may be another's "
        "as soon as the first is gone?",
        "One object for each storage that is away: ticket, near storage or None. The graph holds "
        "it (it is what `pack` returns, with dtype, offset, size, stride), nobody else does, so it "
        "ends with the graph: `weakref.finalize(entry, far.free, ticket)`. A dictionary address -> "
        "(weakref to the storage, weakref to the entry); valid only if that *is* the storage.",
        "`y.register_hook` is called when the gradient of a block's result arrives, so when its "
        "backward begins: fetch then what the block before it has given away (a list of weakrefs "
        "that `pack` filled). In `unpack`: fetch if nobody has, take if it is not near, and "
        "`torch.empty(0, dtype=...).set_(storage, offset, size, stride)`.",
    ),
    stub_function=my_offload,
    solution_function=solution,
    why="What autograd keeps is storages under views; copying tensors as they come moves a fused "
    "product three times and brings back three memories for one. Copies keep every bit, so nothing "
    "changes but where the bytes are. Fetching a block ahead hides the way behind a backward as "
    "long as a block computes longer than its bytes travel; fetching everything at once hides it "
    "too, and needs the memory that was to be saved. Who owns an entry decides when it ends: the "
    "graph does, so a dropped graph gives its places back as well. The package's Offload adds "
    "near buffers out of a pool, a thread that copies, and leaves tensors below a kilobyte where "
    "they are (`pico.source('picolab.memory.offload')`); `torch.autograd.graph.save_on_cpu` copies "
    "each view and fetches when asked; arXiv 1602.08124 (vDNN) had the prefetch by layers.",
    judge=judge,
    cases=(Case("dp1", "blocks of many kinds"),),
    blocked=("picolab.memory.offload.Offload.saving", "picolab.memory.offload.Offload.fetch"),
    timeout=20.0,
)
