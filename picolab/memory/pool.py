"""A pool of buffers: memory that is taken once, lent, and lent again.

    pool = MemoryPool(cap=64_000_000)
    lease = pool.lease(1_000_000)          # lease.tensor: a million bytes
    lease.free()

Not an allocator of device memory, where torch's own cannot be beaten from Python, but of what it
does not keep: host memory that is copied to and from. Fresh memory costs a page fault for every
4 KiB when it is first written (a copy of 64 MiB took 4 to 8 times as long: as dear as faults are
beside a machine's memcpy), and pinned memory milliseconds for each call. So

    slabs      are taken from `source` in classes of size (1, 1.25, 1.5, 1.75 times a power of
               two, of at least `least` bytes), so that at most a fifth of one is idle, and sizes
               that differ a little (experts' rows) share them
    a lease    is one slab, for whoever has it alone, until it is freed: once. It may be freed
               while a copy to or from it is still under way: then it is lent again when that is
               done (`after`)
    the cap    is hard. Where it would be passed, idle slabs of other classes are given back, and
               where that is not enough the lease is refused (`PoolFull`): a sentence, and no
               process that is killed

    fragmentation    idle bytes of slabs over all: of slabs that nobody has, and the rest of those
                     that somebody has. Of a run: at the moment when most was lent (`told`)

`lend` ties a lease to a tensor: it is freed when nobody has that memory any more (autograd, say).
All of it may be called from several threads. Twins: Megatron-LM's `OffloadTensorPool` (by exact
shape), torch's pinned-memory allocator (without a cap).
"""

import threading
import weakref
from collections import defaultdict
from collections.abc import Callable

import torch


class PoolFull(MemoryError):
    """The cap would be passed."""


class Lease:
    """A slab that is somebody's. `tensor`: its first nbytes, as bytes, a storage of its own."""

    def __init__(self, pool: "MemoryPool", slab: memoryview, nbytes: int):
        self._pool, self._slab, self.nbytes = pool, slab, nbytes
        self.tensor: torch.Tensor | None = borrowed(slab, nbytes)

    def free(self, after: Callable[[], bool] | None = None) -> None:
        """Give it back. after: tells whether the last copy to or from it is done; until then it is
        not lent again. ValueError if it was given back before."""
        slab, self._slab, self.tensor = self._slab, None, None
        if slab is None:
            raise ValueError(
                f"this lease of {self.nbytes:,} bytes was freed before, and its memory may be "
                "another's by now; free a lease once"
            )
        self._pool._take_back(slab, self.nbytes, after)


def borrowed(memory: memoryview, nbytes: int) -> torch.Tensor:
    """A tensor of bytes over somebody else's memory: whoever counts storages counts that one."""
    tensor = torch.frombuffer(memory, dtype=torch.uint8, count=max(1, nbytes))
    tensor.untyped_storage().borrowed = True
    return tensor[:nbytes]


def size_class(nbytes: int, least: int = 4096) -> int:
    """The size of the slab that holds so many bytes."""
    if nbytes <= least:
        return least
    quarter = 1 << max(0, (nbytes - 1).bit_length() - 3)
    return -(-nbytes // quarter) * quarter


class MemoryPool:
    """Buffers of at most `cap` bytes together. source: makes a slab of so many bytes, None: host
    memory, pinned where there is a GPU. `least`: of the smallest class.

    With it the copies of step 2 take no new memory; without it, every copy does.
    """

    def __init__(
        self,
        cap: int,
        *,
        source: Callable[[int], memoryview] | None = None,
        give_back: Callable[[memoryview], None] | None = None,
        least: int = 4096,
    ):
        if not isinstance(cap, int) or cap < least:
            raise ValueError(
                f"the cap is {cap!r}; it is a number of bytes, of at least one buffer: {least:,}"
            )
        self.cap, self.least = cap, least
        self._source, self._give_back = source or self._host, give_back
        # (Python's collector may free what was lent while this very thread makes a slab.)
        self._lock = threading.RLock()
        self._idle: dict[int, list[memoryview]] = defaultdict(list)
        self._cooling: list[tuple[Callable[[], bool], memoryview]] = []
        self.slabs: list[torch.Tensor] = []
        """Those in host memory, for whoever counts it."""
        self.held = 0
        """Bytes of all slabs."""
        self.wanted = 0
        """Bytes that leases asked for, of those that are out."""
        self.most_wanted = 0
        """The most that it ever was."""
        self.made = self.lent = 0
        """Slabs that were taken, and leases, since the beginning."""

    @property
    def fragmentation(self) -> float:
        """Which share of the pool's bytes is of no use just now."""
        return 1 - self.wanted / self.held if self.held else 0.0

    def told(self) -> dict[str, float]:
        """Of a run that is over: fragmentation is the share of the pool's bytes that was of no use
        when most was lent."""
        idle = max(0, self.held - self.most_wanted)
        return {
            "held": self.held,
            "most": self.most_wanted,
            "fragmentation": idle / self.held if self.held else 0.0,
            "slabs": self.made,
            "leases": self.lent,
        }

    def lease(self, nbytes: int) -> Lease:
        """PoolFull if the cap does not allow it, ValueError if it never can."""
        if nbytes < 0 or size_class(nbytes, self.least) > self.cap:
            raise ValueError(
                f"a buffer of {nbytes:,} bytes takes {size_class(nbytes, self.least):,}, and the "
                f"pool's cap is {self.cap:,}; give it a cap of at least one buffer"
            )
        size = size_class(nbytes, self.least)
        with self._lock:
            self._cool_down()
            if not self._idle[size]:
                self._make(size)
            slab = self._idle[size].pop()
            self.wanted += nbytes
            self.most_wanted = max(self.most_wanted, self.wanted)
            self.lent += 1
        return Lease(self, slab, nbytes)

    def lend(self, nbytes: int) -> torch.Tensor:
        """The tensor of a lease that ends when nobody has its memory any more."""
        lease = self.lease(nbytes)
        tensor = lease.tensor
        lease.tensor = None
        weakref.finalize(tensor.untyped_storage(), lease.free).atexit = False
        return tensor

    def like(self, tensor: torch.Tensor, numbers: int) -> torch.Tensor:
        """The same for so many numbers like a tensor's, in a line."""
        return self.lend(numbers * tensor.element_size()).view(tensor.dtype)

    def empty(self) -> None:
        """Give back every slab that nobody has."""
        with self._lock:
            self._cool_down()
            self._drop(self.held)

    # -- with the lock --

    def _make(self, size: int) -> None:
        if self.held + size > self.cap:
            self._drop(self.held + size - self.cap)
        if self.held + size > self.cap:
            raise PoolFull(
                f"a buffer of {size:,} bytes is asked for, {self.held:,} are lent, and the pool's "
                f"cap is {self.cap:,}; free leases first, or give it a larger cap"
            )
        slab = self._source(size)
        assert len(slab) == size
        self.held += size
        self.made += 1
        self._idle[size].append(slab)

    def _drop(self, enough: int) -> None:
        """Give idle slabs back, the largest first, until so many bytes are gone."""
        for size in sorted(self._idle, reverse=True):
            while self._idle[size] and enough > 0:
                slab = self._idle[size].pop()
                self.held -= size
                enough -= size
                if self._give_back is not None:
                    self._give_back(slab)
                else:
                    start = torch.frombuffer(slab, dtype=torch.uint8).data_ptr()
                    self.slabs = [one for one in self.slabs if one.data_ptr() != start]

    def _take_back(self, slab: memoryview, nbytes: int, after: Callable[[], bool] | None) -> None:
        with self._lock:
            self.wanted -= nbytes
            if after is None or after():
                self._idle[len(slab)].append(slab)
            else:
                self._cooling.append((after, slab))

    def _cool_down(self) -> None:
        still = []
        for after, slab in self._cooling:
            if after():
                self._idle[len(slab)].append(slab)
            else:
                still.append((after, slab))
        self._cooling = still

    def _host(self, size: int) -> memoryview:
        pinned = torch.cuda.is_available()
        slab = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self.slabs.append(slab)
        return memoryview(slab.numpy())
