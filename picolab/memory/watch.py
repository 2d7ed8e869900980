"""Which memory is alive when, and what for: every storage of this process, from its birth to its
death.

    watch = Watch(model)
    with watch:
        ...                                    # forward, backward, whatever
    watch.peaks()                              # {"activations": 1_234_567, ..., "total": ...}

torch counts tensors, and memory is of *storages*: a view has none of its own, and what a name no
longer refers to may be kept by autograd for the backward pass. So the watch stands where every
operator comes by (a `TorchDispatchMode`; in backward, too), takes a weak reference to each storage
that comes out, and is called when that dies. A storage that is resized (a pipeline and ZeRO 3 free
so) changes its bytes. In between, the sum of what is alive is known after each change.

What a storage is *for* is often known only later: a gradient is any tensor until autograd puts it
where a parameter looks for it. So a storage has one category for all of its life, and gets it in
hindsight; of several the first in this list:

    parameters     what the optimizer steps, or this model computes with
    gathered       parameters that are whole only while they are used (ZeRO 3)
    copies         weights in a short format, from their first product to the update
    gradients      where a parameter found its own: in a bucket, in autograd's tensor
    optimizer      moments, and counts of steps
    pool           host buffers, used or not
    activations    born in a forward pass (or given to it) and alive when the backward pass begins;
                   born in a second forward and alive at its end
    communication  given to a collective, and none of the above
    temporaries    what is over before: born and dead in one pass
    other          alive before the watch began, and none of these

The sum over the categories is the total, always. Left out: what a kernel takes and gives back
before it returns, torch's own code, memory of a file. Twin: torch's `MemTracker`
(tests/distributed/memory/test_monitor.py compares).
"""

import gc
import time
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from picolab.comm.every_call import group_of

CATEGORIES = (
    "parameters",
    "gathered",
    "copies",
    "gradients",
    "optimizer",
    "pool",
    "activations",
    "communication",
    "temporaries",
    "other",
)
PHASES = ("forward", "backward", "recompute", "between")


class Life:
    """One storage."""

    __slots__ = ("before", "called", "cause", "module", "nbytes", "sent", "travelled")

    def __init__(self, nbytes: int, module: str, before: bool):
        self.nbytes, self.module, self.before = nbytes, module, before
        self.called: str | None = None
        self.cause = ""
        self.travelled = self.sent = False

    @property
    def category(self) -> str:
        if self.called is not None:
            return self.called
        if self.travelled:
            return "communication"
        return "other" if self.before else "temporaries"


def in_backward() -> bool:
    """Whether autograd is at work in this thread."""
    return torch._C._current_graph_task_id() != -1


class Watch(TorchDispatchMode):
    """While it is entered, storages of this process are known. model: gives modules their names;
    None: they are called after their types. Several may be entered, and left in any order.

    After it: `changes`, one for each birth, death and new size.
    """

    _entered: ClassVar[list["Watch"]] = []

    def __init__(self, model: nn.Module | None = None):
        super().__init__()
        self.changes: list[tuple[Life, int, str, float]] = []
        """The life, the bytes by which it grew (or shrank), in which phase, and when."""
        self.totals: list[int] = []
        """Bytes alive after each change."""
        self.marks: list[tuple[str, int]] = []
        """Names that `mark` was given, and how many changes there were before."""
        self.collectives: list[tuple[str, int, dict[Life, int]]] = []
        """Of each call its group, how many changes there were before, and its storages' bytes."""
        self.live = 0
        self._lives: dict[int, tuple[weakref.ref, Life]] = {}
        self._names = {id(m): n for n, m in model.named_modules()} if model is not None else {}
        self._stack: list[str] = []
        self._born: list[Life] = []  # in this forward pass, or in this second forward of a block
        self._again: list[Life] = []
        self._hooks: list[Any] = []
        self._soon: list[str] = []

    # -- what is alive --

    def see(self, tensor: torch.Tensor, before: bool = False) -> Life | None:
        """The life of a tensor's storage, which may begin now. None: it takes no memory here."""
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # a sparse one
            return None
        if tensor.is_meta or getattr(storage, "borrowed", False):
            return None
        key = storage._cdata
        known = self._lives.get(key)
        if known is not None and known[0]() is storage:
            return known[1]
        life = Life(storage.nbytes(), self._stack[-1] if self._stack else "", before)
        self._lives[key] = weakref.ref(storage, lambda _: self._dies(key, life)), life
        self._change(life, life.nbytes)
        if self._stack and not before:
            (self._again if in_backward() else self._born).append(life)
        return life

    def call(self, tensors: Iterable[torch.Tensor], category: str) -> None:
        """Say what tensors are for, with effect from their birth."""
        for tensor in tensors:
            life = self.see(tensor)
            if life is not None and (
                life.called is None or CATEGORIES.index(category) < CATEGORIES.index(life.called)
            ):
                life.called = category

    def mark(self, name: str) -> None:
        """A moment to find again: `totals[at]` is what is alive from there on."""
        self._settle()
        self.marks.append((name, len(self.totals) - 1))

    def mark_soon(self, name: str) -> None:
        """The same at the next operator, when what callers are about to let go is gone."""
        self._soon.append(name)

    def _dies(self, key: int, life: Life) -> None:
        known = self._lives.get(key)
        if known is not None and known[1] is life:
            del self._lives[key]
        self._change(life, -life.nbytes)
        life.nbytes = 0

    def _resized(self, storage: torch.UntypedStorage) -> None:
        known = self._lives.get(storage._cdata)
        if known is not None and known[0]() is storage:
            life = known[1]
            grown, life.nbytes = storage.nbytes() - life.nbytes, storage.nbytes()
            self._change(life, grown)

    def _change(self, life: Life, grown: int) -> None:
        if grown:
            self.live += grown
            self.changes.append((life, grown, self.phase, time.perf_counter()))
            self.totals.append(self.live)

    # -- where the process is --

    @property
    def phase(self) -> str:
        if in_backward():
            return "recompute" if self._stack else "backward"
        return "forward" if self._stack else "between"

    def _settle(self) -> None:
        """Of a pass that is over, what is alive is kept for backward."""
        if in_backward():
            self._keep(self._born)
        if not self._stack:
            self._keep(self._again)

    def _keep(self, born: list[Life]) -> None:
        for life in born:
            if life.nbytes and life.called is None and not life.sent:
                life.called = "activations"
        born.clear()

    def _enter_module(self, module: nn.Module, args: tuple) -> None:
        if not self._stack and not in_backward() and torch.is_grad_enabled():
            self._begins(args)
        self._stack.append(self._names.get(id(module), type(module).__name__))

    def _begins(self, args: tuple) -> None:
        """A forward pass, or one of its parts: what it is given is kept, if it lives on."""
        given = [a for a in args if isinstance(a, torch.Tensor) and a.is_floating_point()]
        if any(a.grad_fn is None for a in given) or not given:
            self._keep(self._born)  # of another micro-batch
        self._born += [life for a in given if (life := self.see(a)) is not None]

    def _leave_module(self, module: nn.Module, args: tuple, out: Any) -> None:
        if self._stack:
            self._stack.pop()
        if not self._stack and not in_backward() and not torch.is_grad_enabled():
            self._born.clear()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._settle()
        while self._soon:
            self.mark(self._soon.pop(0))
        out = func(*args, **(kwargs or {}))
        if func.namespace == "c10d":
            name = func.overloadpacket.__name__
            given = [*args, *(kwargs or {}).values(), out]
            lives = dict.fromkeys(of for t in _tensors(given) if (of := self.see(t)) is not None)
            for life in lives:
                life.travelled, life.sent = True, life.sent or name == "send"
            if name not in ("send", "recv_"):
                nbytes = {life: life.nbytes for life in lives}
                group = group_of(given)
                name = group.group_name if group is not None else ""
                self.collectives.append((name, len(self.changes), nbytes))
        else:
            for tensor in _tensors(out):
                life = self.see(tensor)
                if life is not None and not life.cause:
                    life.cause = func.overloadpacket.__name__
        return out

    def __enter__(self) -> "Watch":
        gc.collect()  # what only circles hold may go at any time, and is nobody's
        for tensor in _all_tensors():
            self.see(tensor, before=True)
        everywhere = nn.modules.module
        self._hooks = [
            everywhere.register_module_forward_pre_hook(self._enter_module),
            everywhere.register_module_forward_hook(self._leave_module, always_call=True),
        ]
        self._entered.append(self)
        torch.UntypedStorage.resize_ = _resize  # no operator: the dispatcher does not see it
        return super().__enter__()

    def __exit__(self, *error) -> None:
        later = []  # torch takes the last mode off its stack, whoever leaves
        while (mode := _get_current_dispatch_mode()) is not self:
            TorchDispatchMode.__exit__(mode, None, None, None)
            later.append(mode)
        super().__exit__(*error)
        for mode in reversed(later):
            TorchDispatchMode.__enter__(mode)
        self._entered.remove(self)
        if not self._entered:
            torch.UntypedStorage.resize_ = _torchs_resize
        for hook in self._hooks:
            hook.remove()
        self._settle()
        self._lives = {}  # what outlives the watch is none of its business

    # -- gradients --

    def follow_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Call gradients what these will find as theirs. Where one is packed for the others and
        dropped as it arrives (ZeRO 2), it is what arrived."""
        for parameter in parameters:
            arriving: list[weakref.ref] = []

            def comes(gradient, arriving=arriving):
                arriving[:] = [weakref.ref(gradient.untyped_storage())]

            def is_there(of, arriving=arriving):
                if of.grad is not None:
                    self.call([of.grad], "gradients")
                else:
                    storage = arriving[0]() if arriving else None
                    known = storage is not None and self._lives.get(storage._cdata)
                    if known:
                        known[1].called = "gradients"
                arriving.clear()

            self._hooks.append(parameter.register_hook(comes))
            self._hooks.append(parameter.register_post_accumulate_grad_hook(is_there))

    # -- in hindsight --

    def by_category(self) -> Iterator[tuple[dict[str, int], str, float]]:
        """What is alive after each change, by category, with the phase and the time. (The same
        dictionary each time.)"""
        alive = dict.fromkeys(CATEGORIES, 0)
        for life, grown, phase, when in self.changes:
            alive[life.category] += grown
            yield alive, phase, when

    def peaks(self, begin: int = 0) -> dict[str, int]:
        """The most that each category ever had, and the total; from a mark on."""
        most = dict.fromkeys((*CATEGORIES, "total"), 0)
        for at, (alive, _, _) in enumerate(self.by_category()):
            if at >= begin:
                for name, nbytes in alive.items():
                    most[name] = max(most[name], nbytes)
                most["total"] = max(most["total"], self.totals[at])
        return most


_torchs_resize = torch.UntypedStorage.resize_


def _resize(storage: torch.UntypedStorage, size: int):
    result = _torchs_resize(storage, size)
    for watch in Watch._entered:
        watch._resized(storage)
    return result


def _tensors(of: Any) -> list[torch.Tensor]:
    if isinstance(of, torch.Tensor):
        return [of]
    if isinstance(of, list | tuple):
        return [tensor for one in of for tensor in _tensors(one)]
    return []


def _all_tensors() -> list[torch.Tensor]:
    """Those that Python knows of."""
    return [of for of in gc.get_objects() if issubclass(type(of), torch.Tensor)]
