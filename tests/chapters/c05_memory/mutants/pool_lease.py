"""Wrong answers to memory.pool.lease, what each author must be told, and right ones."""

import contextlib
import math
import threading
import time
import weakref
from collections import defaultdict


def _pool(
    cap,
    least,
    source,
    *,
    lock=threading.RLock,
    waits=True,
    twice=False,
    forgets=True,
    clears=True,
    swallows=False,
    ends=True,
    size_of=None,
    room=lambda held, size, cap: held + size <= cap,
    reuse=True,
    trims="as needed",
    counts_first=False,
    counts_idle=True,
    never=ValueError,
    checks_size=True,
    full=MemoryError,
    fits=lambda one, size: one.size == size,
    both=False,
    in_order=False,
    stands=False,
):
    """The solution in another style, with one thing to be done otherwise."""
    guard, idle, leaving, held = lock(), [], [], [0]

    def back(slab, after=None):
        with guard:
            leaving.append((slab, after if waits else None))

    class Lease:
        def __init__(self, slab):
            self.slab, self.free_before = slab, False
            self.end = weakref.finalize(self, back, slab) if forgets else None

        def free(self, after=None):
            if self.free_before and not twice:
                raise ValueError("freed before")
            self.free_before, slab = True, self.slab
            if self.end is not None and not both:
                self.end.detach()
            if clears:
                self.slab = None
            while stands and after is not None and not after():
                time.sleep(0.01)
            if slab is not None:
                back(slab, after)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            if ends and not (self.free_before and not twice):
                self.free()
            return swallows

    class Pool:
        def lease(self, nbytes):
            size = least
            while size < nbytes:
                size *= 2
            size = size if size_of is None else size_of(nbytes, least)
            if checks_size and (nbytes < 0 or size > cap):
                raise never("never")
            with guard:
                for one in list(leaving):
                    if one[1] is None or one[1]():
                        leaving.remove(one)
                        idle.append(one[0])
                    elif in_order:
                        break
                slab = next((one for one in idle if fits(one, size)), None) if reuse else None
                if slab is not None:
                    idle.remove(slab)
                    return Lease(slab)
                while idle and (trims == "all" or (trims == "as needed" and held[0] + size > cap)):
                    held[0] -= idle[-1].size
                    source.give_back(idle.pop())
                others = sum(one.size for one in idle) if not counts_idle else 0
                if not room(held[0] - others, size, cap):
                    raise full("full")
                if counts_first:
                    held[0] += size
                slab = source.take(size)
                held[0] += 0 if counts_first else size
                return Lease(slab)

    return Pool()


def lent_while_it_is_copied(cap, least, source):
    return _pool(cap, least, source, waits=False)


def never_comes_back_if_dropped(cap, least, source):
    return _pool(cap, least, source, forgets=False)


def freed_twice(cap, least, source):
    return _pool(cap, least, source, twice=True)


def freed_and_then_dropped(cap, least, source):
    """The finalizer comes after `free` as well: the slab is there twice."""
    return _pool(cap, least, source, both=True)


def finalizer_knows_the_lease(cap, least, source):
    """`weakref.finalize(self, self.free)` keeps the lease alive for ever."""
    pool = _pool(cap, least, source, forgets=False)
    lease_of = pool.lease

    def lease(nbytes):
        found = lease_of(nbytes)
        weakref.finalize(found, found.free).atexit = False
        return found

    pool.lease = lease
    return pool


def keeps_its_slab(cap, least, source):
    return _pool(cap, least, source, clears=False)


def swallows(cap, least, source):
    return _pool(cap, least, source, swallows=True)


def with_does_nothing(cap, least, source):
    return _pool(cap, least, source, ends=False)


def without_a_lock(cap, least, source):
    return _pool(cap, least, source, lock=contextlib.nullcontext)


def a_lock_that_is_not_reentrant(cap, least, source):
    return _pool(cap, least, source, lock=threading.Lock)


def exact_sizes(cap, least, source):
    return _pool(cap, least, source, size_of=lambda nbytes, least: max(least, nbytes))


def always_new(cap, least, source):
    return _pool(cap, least, source, reuse=False)


def gives_all_back(cap, least, source):
    """As soon as a new slab is needed."""
    return _pool(cap, least, source, trims="all")


def never_gives_back(cap, least, source):
    """Idle slabs of other classes stay, and the pool is full of them."""
    return _pool(cap, least, source, trims="never")


def idle_ones_are_free_of_charge(cap, least, source):
    return _pool(cap, least, source, trims="never", counts_idle=False)


def less_than_the_cap(cap, least, source):
    return _pool(cap, least, source, room=lambda held, size, cap: held + size < cap)


def a_soft_cap(cap, least, source):
    return _pool(cap, least, source, room=lambda held, size, cap: held <= cap)


def counted_before_it_is_there(cap, least, source):
    """The source refuses, and the bytes are counted all the same."""
    return _pool(cap, least, source, counts_first=True)


def full_for_what_never_fits(cap, least, source):
    return _pool(cap, least, source, checks_size=False)


def value_error_where_it_is_full(cap, least, source):
    return _pool(cap, least, source, full=ValueError)


def a_larger_one_will_do(cap, least, source):
    return _pool(cap, least, source, fits=lambda one, size: one.size >= size)


def by_the_package(cap, least, source):
    from picolab.memory import MemoryPool

    pool = MemoryPool(cap, source=lambda size: memoryview(bytearray(size)), least=least)
    pool.lease(1)
    return pool


def a_generator_as_context(cap, least, source):
    """`@contextmanager` without try and finally: an exception leaks."""
    pool = _pool(cap, least, source, ends=False)
    inner = pool.lease

    class Scoped:
        def __init__(self, lease):
            self._lease = lease

        slab = property(lambda self: self._lease.slab)

        def free(self, after=None):
            self._lease.free(after)

        def __enter__(self):
            return self

        def __exit__(self, kind, *error):
            if kind is None and self._lease.slab is not None:
                self._lease.free()

    pool.lease = lambda nbytes: Scoped(inner(nbytes))
    return pool


def nothing(cap, least, source):
    return None


def copies_in_order(cap, least, source):
    """A queue: the first copy that is not done hides those behind it."""
    return _pool(cap, least, source, in_order=True)


def by_a_logarithm(cap, least, source):
    def size_of(nbytes, least):
        return least * 2 ** max(0, math.ceil(math.log2(max(1, nbytes) / least)))

    return _pool(cap, least, source, size_of=size_of)


def waits_for_the_copy(cap, least, source):
    """In `free`, until `after()` says that it is done."""
    return _pool(cap, least, source, stands=True)


MUTANTS = {
    lent_while_it_is_copied: "is still copied to or from",
    freed_and_then_dropped: "is still copied to or from",
    never_comes_back_if_dropped: "is to come back at once",
    freed_twice: "freed again, and nobody objects",
    finalizer_knows_the_lease: "drop it, not freed",
    keeps_its_slab: "`slab` is None then",
    swallows: "swallows what was raised",
    with_does_nothing: "the end of the `with` does not free",
    without_a_lock: "between the question and the slab nobody else may come",
    a_lock_that_is_not_reentrant: "an RLock lets it in",
    exact_sizes: "and the class is",
    always_new: "an idle slab of",
    gives_all_back: "although there is room",
    never_gives_back: "it is refused, and there is room",
    idle_ones_are_free_of_charge: "and its cap is",
    less_than_the_cap: "it is refused, and there is room",
    a_soft_cap: "and its cap is",
    counted_before_it_is_there: "the source had no memory the first time",
    full_for_what_never_fits: "that is a ValueError",
    value_error_where_it_is_full: "it raises ValueError(full)",
    a_larger_one_will_do: "and the class is 64",
    by_the_package: "is what this exercise asks you to write",
    a_generator_as_context: "in which something was raised, does not free",
    nothing: "has no attribute 'lease'",
    copies_in_order: "the last copy done, not those before",
    by_a_logarithm: "a logarithm of floats is not exact",
    waits_for_the_copy: "wait for no copy",
}


def by_classes_and_del(cap, least, source):
    """Lists by class, a condition of its own, and `__del__`."""

    class Lease:
        def __init__(self, pool, slab):
            self._pool, self.slab = pool, slab

        def free(self, after=None):
            with self._pool.lock:
                slab, self.slab = self.slab, None
            if slab is None:
                raise ValueError("a lease is freed once")
            self._pool.take_back(slab, after)

        def _over(self):
            with contextlib.suppress(ValueError):
                self.free()

        __del__ = _over

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self._over()

    class Pool:
        def __init__(self):
            self.lock = threading.RLock()
            self.idle, self.busy, self.held = defaultdict(list), {}, 0

        def take_back(self, slab, after):
            with self.lock:
                if after is None or after():
                    self.idle[slab.size].append(slab)
                else:
                    self.busy[slab] = after

        def lease(self, nbytes):
            size = least * 2 ** max(0, (max(nbytes, 1) - 1) // least).bit_length()
            if nbytes < 0 or size > cap:
                raise ValueError(f"{nbytes} bytes never fit")
            with self.lock:
                for slab in [slab for slab, after in self.busy.items() if after()]:
                    del self.busy[slab]
                    self.idle[slab.size].append(slab)
                if not self.idle[size]:
                    for of in sorted(self.idle, reverse=True):
                        while self.idle[of] and self.held + size > cap:
                            source.give_back(self.idle[of].pop())
                            self.held -= of
                    if self.held + size > cap:
                        raise MemoryError("the cap is reached")
                    slab = source.take(size)
                    self.held += size
                    return Lease(self, slab)
                return Lease(self, self.idle[size].pop())

    return Pool()


def reserved_outside_the_lock(cap, least, source):
    """The room is reserved in the lock, the slab is made outside of it."""
    lock, idle, late, held = threading.RLock(), set(), {}, [0]

    class Lease:
        def __init__(self, slab):
            self.slab, self._end = slab, weakref.finalize(self, give, slab, None)

        def free(self, after=None):
            found = self._end.detach()
            if not found:
                raise ValueError("twice")
            self.slab = None
            give(found[2][0], after)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return self.free() if self._end.alive else None

    def give(slab, after):
        with lock:
            late[slab] = after

    def lease(nbytes):
        size = least
        while size < nbytes:
            size += size
        if size > cap or nbytes < 0:
            raise ValueError("never")
        with lock:
            over = [slab for slab, after in late.items() if after is None or after()]
            for slab in over:
                late.pop(slab)
                idle.add(slab)
            for slab in idle:
                if slab.size == size:
                    idle.remove(slab)
                    return Lease(slab)
            for slab in sorted(idle, key=lambda slab: slab.size):
                if held[0] + size > cap:
                    idle.remove(slab)
                    held[0] -= slab.size
                    source.give_back(slab)
            if held[0] + size > cap:
                raise MemoryError("full")
            held[0] += size
        try:
            slab = source.take(size)
        except MemoryError:
            with lock:
                held[0] -= size
            raise
        return Lease(slab)

    return type("Pool", (), {"lease": staticmethod(lease)})()


RIGHT = (by_classes_and_del, reserved_outside_the_lock)
