"""What autograd keeps, in another memory until it is needed.

    forward     block 0 | copy away | block 1 | copy away | ...
    backward    block L, fetch L-1 | block L-1, fetch L-2 | ...

autograd asks two functions about each tensor that an operator keeps for its backward
(`saved_tensors_hooks`): one gives away something in its place, the other makes the tensor of it
again. Here the first copies the tensor's memory into the far one, and the second brings it back.

    each memory once    several operators keep the same tensor, or views of it: what travels is the
                        storage, and a view is a shape over it
    nothing that stays  parameters (also whole ones of ZeRO 3), tables, tensors below `LEAST` bytes
    reverse order       when the backward of a block begins, the block before it is already coming,
                        in a thread, into buffers of the near pool
    until it is over    a fetched storage belongs to autograd; its buffer is free when the last
                        operator that needs it has run (split backwards keep some for longer), and
                        its place in the far memory when the graph is gone

Copies keep every bit, so gradients are those of a run that keeps everything. The far memory of a
GPU is pinned host memory; that of a CPU is a file, mapped into memory (`far_file`), so that bytes
really leave. Its space is reserved before it is written to: a full disk is then an error of one
call, and not a signal in the middle of a copy.

Sources: arXiv 1602.08124 (vDNN); Megatron-LM's fine-grained activation offload. Twin:
`torch.autograd.graph.save_on_cpu`, which copies views as often as they are kept.
"""

import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import torch

from picolab.memory.pool import Lease, MemoryPool, PoolFull

LEAST = 1024
"""Bytes of a storage that is worth the way."""


class FarFile:
    """Slabs in a file without a name. They are the file's, and take memory only as the system's
    cache."""

    def __init__(self, folder: str | Path | None = None):
        self.folder = Path(folder or tempfile.gettempdir())
        self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
        self._size = 0

    def slab(self, size: int) -> memoryview:
        size_in_file = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            _reserve(self._file.fileno(), self._size, size_in_file)
        except OSError as error:
            raise OSError(
                error.errno,
                f"the far memory is full: {self._size:,} bytes of activations are in a file in "
                f"{self.folder}, and {size:,} more were refused ({error.strerror}); free space "
                "there, or give a larger memory budget, so that less is offloaded",
            ) from None
        mapped = mmap.mmap(self._file.fileno(), size_in_file, offset=self._size)
        self._size += size_in_file
        return memoryview(mapped)[:size]

    def close(self) -> None:
        self._file.close()


def _reserve(handle: int, begin: int, size: int) -> None:
    """Let so many bytes of a file be there."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, begin, size)
        return
    end = begin + size  # macOS has no such call
    while begin < end:
        begin += os.pwrite(handle, bytes(min(end - begin, 1 << 20)), begin)


def far_file(cap: int, folder: str | Path | None = None) -> MemoryPool:
    """A pool of places in a file, of at most so many bytes."""
    return MemoryPool(cap, source=FarFile(folder).slab, give_back=lambda slab: None)


class _Entry:
    """A storage that is away."""

    def __init__(self, far: Lease, nbytes: int, device: torch.device):
        self.far, self.nbytes, self.device = far, nbytes, device
        self.near: torch.Tensor | None = None
        self.coming: Future | None = None
        weakref.finalize(self, far.free).atexit = False


class _View(NamedTuple):
    """What stands in a graph in a tensor's place."""

    entry: _Entry
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class Parcel:
    """What one run of a block gave away; the graph holds it, and nobody else."""

    def __init__(self, before: "Parcel | None"):
        self.entries: list[weakref.ref[_Entry]] = []
        self.before = before


class Offload:
    """Takes what blocks keep to the far memory, and back into near buffers.

    near: None for fresh memory of the device that a tensor came from (a GPU's allocator keeps it),
    and so it is where the pool's cap leaves no room: experts may have got more rows than in the
    step that a cap was measured in. stays: tensors that do not travel. With it a block keeps next
    to nothing between its forward and its backward; without it, all that its operators need.
    """

    def __init__(
        self,
        far: MemoryPool,
        near: MemoryPool | None,
        stays: Iterable[torch.Tensor] = (),
    ):
        self.far, self.near, self._stays = far, near, tuple(stays)
        self.moved = 0
        """Bytes that were copied away, since the beginning."""
        self._worker: ThreadPoolExecutor | None = None

    def saving(self, parcel: Parcel, *stays: torch.Tensor) -> AbstractContextManager:
        """While it is entered, what operators keep is given away into the parcel."""
        home = {t.untyped_storage()._cdata for t in (*self._stays, *stays)}
        known: dict[int, tuple[weakref.ref, _Entry]] = {}

        def pack(tensor: torch.Tensor):
            storage = tensor.untyped_storage()
            if storage._cdata in home or storage.nbytes() < LEAST:
                return tensor.detach()
            entry = self._entry(storage, known, parcel)
            return _View(
                entry, tensor.dtype, tensor.size(), tensor.stride(), tensor.storage_offset()
            )

        return _Hooks(pack, self._unpack, known)

    def fetch(self, parcel: Parcel | None) -> bool:
        """Let what is away come back, as far as there are buffers for it; whether there were. What
        was given away last is needed first."""
        for ref in reversed(parcel.entries) if parcel is not None else ():
            entry = ref()
            if entry is None or entry.near is not None:
                continue
            try:
                entry.near = self._room(entry)
            except (PoolFull, ValueError):
                return False  # when it is asked for, others will have gone
            entry.coming = self._thread().submit(_copy, entry.near, entry.far.tensor)
        return True

    def close(self) -> None:
        if self._worker is not None:
            self._worker.shutdown()
            self._worker = None

    def _entry(self, storage: torch.UntypedStorage, known: dict, parcel: Parcel) -> _Entry:
        """The one of this storage, which travels the first time that it is seen."""
        before = known.get(storage._cdata)
        if before is not None and before[0]() is storage:
            return before[1]
        entry = self._take_away(storage)
        parcel.entries.append(weakref.ref(entry))
        known[storage._cdata] = weakref.ref(storage), entry
        return entry

    @torch.no_grad()
    def _take_away(self, storage: torch.UntypedStorage) -> _Entry:
        nbytes = storage.nbytes()
        entry = _Entry(self.far.lease(nbytes), nbytes, storage.device)
        there = torch.empty(0, dtype=torch.uint8, device=storage.device)
        _copy(entry.far.tensor, there.set_(storage))
        self.moved += nbytes
        return entry

    def _unpack(self, view):
        if isinstance(view, torch.Tensor):
            return view
        entry = view.entry
        if entry.near is None:
            try:
                entry.near = self._room(entry)
            except (PoolFull, ValueError):  # what has gone is not enough, or it is above the cap
                entry.near = self._fresh(entry)
            _copy(entry.near, entry.far.tensor)
        elif entry.coming is not None:
            entry.coming.result()
            entry.coming = None
        made = torch.empty(0, dtype=view.dtype, device=entry.near.device)
        return made.set_(entry.near.untyped_storage(), view.offset, view.size, view.stride)

    def _room(self, entry: _Entry) -> torch.Tensor:
        return self._fresh(entry) if self.near is None else self.near.lend(entry.nbytes)

    def _fresh(self, entry: _Entry) -> torch.Tensor:
        return torch.empty(entry.nbytes, dtype=torch.uint8, device=entry.device)

    def _thread(self) -> ThreadPoolExecutor:
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="picolab-fetch")
        return self._worker


class _Hooks(torch.autograd.graph.saved_tensors_hooks):
    """Forgets afterwards which storage was which: an entry belongs to the graph."""

    def __init__(self, pack, unpack, known: dict):
        super().__init__(pack, unpack)
        self._known = known

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self._known.clear()


@torch.no_grad()
def _copy(to: torch.Tensor, source: torch.Tensor) -> None:
    to.copy_(source)
