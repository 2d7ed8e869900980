"""The pool, against a model of it: whatever is leased and freed in whatever order, nobody's bytes
are written by somebody else, the cap holds, and nothing new is taken once all was taken.

Wrong versions kept below: a slab that is lent while a copy is under way, a lease that may be freed
twice, a cap that is only a hint, classes that do not hold what they promise.
"""

import gc
import random
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from picolab.memory import MemoryPool, MemoryReport, PoolFull, pool
from picolab.memory.watch import CATEGORIES
from picolab.monitoring.events import Event

CAP = 200_000
SIZES = st.sampled_from([0, 1, 4096, 5000, 9000, 20_000, 40_000, 70_000])


@given(st.integers(0, 1 << 40))
def test_a_class_holds_what_it_promises_and_wastes_at_most_a_fifth(nbytes):
    size = pool.size_class(nbytes)
    assert size >= nbytes and (nbytes <= 4096 or size - nbytes < size / 5)
    assert pool.size_class(size) == size


class Leases(RuleBasedStateMachine):
    """Each lease is filled with a byte of its own, which must still be there when it is freed."""

    leases = Bundle("leases")
    made = MemoryPool

    def __init__(self):
        super().__init__()
        self.pool, self.out, self.next = self.made(CAP), [], 0
        self.copies: list[list[bool]] = []  # under way: done or not
        self.written: list[tuple[torch.Tensor, int]] = []

    @rule(target=leases, nbytes=SIZES)
    def lease(self, nbytes):
        try:
            lease = self.pool.lease(nbytes)
        except PoolFull:
            return multiple()
        self.next = (self.next + 1) % 256
        lease.tensor.fill_(self.next)
        self.out.append((lease, lease.tensor, self.next))
        return lease

    @rule(lease=leases)
    def free(self, lease):
        mine = [one for one in self.out if one[0] is lease]
        if not mine:
            with pytest.raises(ValueError, match="was freed before"):
                lease.free()
            return
        self.out.remove(mine[0])
        lease.free()

    @rule(lease=leases)
    def free_while_a_copy_reads_it(self, lease):
        mine = [one for one in self.out if one[0] is lease]
        if mine:
            self.out.remove(mine[0])
            done = [False]
            self.copies.append(done)
            self.written.append((mine[0][1], mine[0][2], done))
            lease.free(after=lambda: done[0])

    @rule()
    def a_copy_is_done(self):
        if self.copies:
            self.copies.pop(0)[0] = True

    @invariant()
    def nobody_wrote_to_anothers(self):
        for _, tensor, byte in self.out:
            assert (tensor == byte).all()
        for tensor, byte, done in self.written:
            assert done[0] or (tensor == byte).all()

    @invariant()
    def the_cap_holds(self):
        assert self.pool.held <= CAP
        assert self.pool.wanted == sum(lease.nbytes for lease, _, _ in self.out)
        assert 0 <= self.pool.fragmentation <= 1


class TestLeases(Leases.TestCase):
    settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


class LentTooEarly(MemoryPool):
    def _take_back(self, slab, nbytes, after):
        super()._take_back(slab, nbytes, None)


class NoCap(MemoryPool):
    def _make(self, size):
        self.cap, cap = 1 << 60, self.cap
        super()._make(size)
        self.cap = cap


class ShortClasses(MemoryPool):
    """Two leases in one slab."""

    def _take_back(self, slab, nbytes, after):
        super()._take_back(slab, nbytes, after)
        self._idle[len(slab)].append(slab)


@pytest.mark.parametrize("wrong", [LentTooEarly, NoCap, ShortClasses])
def test_a_wrong_pool_is_caught(wrong):
    machine, draw, leases = Leases(), random.Random(0), []
    machine.pool = wrong(CAP)
    with pytest.raises(AssertionError):
        for _ in range(300):
            kind = draw.choice(["lease", "lease", "free", "free while copying", "done"])
            if kind == "lease":
                try:
                    made = machine.pool.lease(draw.randrange(70_000))
                except PoolFull:
                    continue
                made.tensor.fill_(len(leases) % 256)
                leases.append(made)
                machine.out.append((made, made.tensor, len(leases) - 1 & 255))
            elif kind == "done":
                machine.a_copy_is_done()
            elif machine.out:
                lease, tensor, byte = machine.out.pop(draw.randrange(len(machine.out)))
                done = [kind == "free"]
                machine.copies += [] if done[0] else [done]
                machine.written += [] if done[0] else [(tensor, byte, done)]
                lease.free(after=lambda done=done: done[0])
            machine.nobody_wrote_to_anothers()
            machine.the_cap_holds()


def test_the_second_round_takes_nothing_new():
    made = MemoryPool(10_000_000)
    for step in range(4):
        leases = [made.lease(nbytes) for nbytes in (1_000_000, 300_000, 5_000, 0)]
        for lease in leases:
            lease.free()
        if step:
            assert made.made == 4
    assert made.lent == 16 and made.wanted == 0


def test_sizes_that_differ_a_little_share_slabs():
    made = MemoryPool(10_000_000)
    for nbytes in (100_000, 101_000, 112_000, 99_999):
        made.lease(nbytes).free()
    assert made.made == 1


def test_idle_slabs_of_other_classes_give_way():
    made = MemoryPool(100_000)
    made.lease(90_000).free()
    lease = made.lease(60_000)
    assert made.held <= 100_000
    with pytest.raises(PoolFull, match=r"the pool's cap is 100,000; free leases first"):
        made.lease(60_000)
    lease.free()


def test_what_is_lent_comes_back_when_nobody_has_it():
    made = MemoryPool(100_000)
    tensor = made.lend(50_000)
    view = torch.empty(0).set_(tensor.untyped_storage(), 0, (10, 10))
    del tensor
    gc.collect()
    assert made.wanted == 50_000
    del view
    assert made.wanted == 0


def leased_while_the_collector_frees(within_s=60):
    """Whether a slab is made although its making lets the collector free one of the same pool."""

    def source(size):
        gc.collect()
        return memoryview(bytearray(size))

    made = MemoryPool(1_000_000, source=source)
    circle = [made.lend(5000)]
    circle.append(circle)
    del circle
    asking = threading.Thread(target=lambda: made.lease(70_000), daemon=True)
    asking.start()
    asking.join(within_s)
    return not asking.is_alive() and made.wanted == 70_000


def test_the_collector_may_free_what_was_lent_while_a_slab_is_made():
    assert leased_while_the_collector_frees()


def test_mutant_a_lock_that_its_own_thread_waits_for(monkeypatch):
    monkeypatch.setattr(pool.threading, "RLock", threading.Lock)
    assert not leased_while_the_collector_frees(within_s=2)


def test_bad_input_gets_a_sentence():
    with pytest.raises(ValueError, match="the cap is 100; it is a number of bytes"):
        MemoryPool(100)
    made = MemoryPool(100_000)
    with pytest.raises(ValueError, match=r"200,000 bytes takes 229,376, and .* 100,000"):
        made.lease(200_000)
    lease = made.lease(10)
    lease.free()
    with pytest.raises(ValueError, match="this lease of 10 bytes was freed before"):
        lease.free()


@given(st.lists(st.lists(SIZES, min_size=1, max_size=8), min_size=2, max_size=4))
@settings(max_examples=15, deadline=None)
def test_threads_do_not_meet(of_threads):
    made, wrong = MemoryPool(1_000_000), []
    start = threading.Barrier(len(of_threads))

    def work(mine: int, sizes: list[int]) -> None:
        start.wait()
        for _ in range(5):
            try:
                leases = [made.lease(nbytes) for nbytes in sizes]
            except PoolFull:
                continue
            for lease in leases:
                lease.tensor.fill_(mine)
            for lease in leases:
                if not (lease.tensor == mine).all():
                    wrong.append(mine)
                lease.free()

    threads = [
        threading.Thread(target=work, args=(number + 1, sizes))
        for number, sizes in enumerate(of_threads)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert made.held <= 1_000_000


def report_of(told):
    """Of a run of one step, with a pool on rank 0 alone."""
    most = dict.fromkeys((*CATEGORIES, "total"), 8)
    seen = dict(step=1, most=most, at_peak={}, phases={}, kept={}, timeline=[])
    said = [Event("memory", rank, 0.0, seen) for rank in (1, 0)]
    return MemoryReport.of([*said, Event("pool", 0, 1.0, {"name": "near", "late": 0, **told})])


def test_a_report_has_the_pools_own_fragmentation():
    made = MemoryPool(CAP)
    made.lease(5000)  # in a class of 5120
    mine, other = report_of(made.told())
    assert (mine.rank, mine.fragmentation) == (0, {"near": made.fragmentation})
    assert mine.fragmentation["near"] == pytest.approx(1 - 5000 / made.held) and made.held > 5000
    assert other.fragmentation == {}  # (mutant: a pool that is everybody's)
    share = f"idle in pools: near {100 * made.fragmentation:.1f} %"
    assert share in str(mine.table()) and "idle" not in str(other.table())
