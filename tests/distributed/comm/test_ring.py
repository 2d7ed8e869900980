"""The first lesson: a ring all-reduce from send and receive equals c10d's, with 2(n-1) sends a
rank.

Wrong versions these catch: the second half missing (each rank then holds only its own finished
chunk), chunks that must divide."""

import pytest
import torch

import picolab as pico
from picolab import comm

SIZES = [1, 2, 3, 7, 1000, 4096]


def both_ways(sizes, half=False):
    differences = []
    for size in sizes:
        torch.manual_seed(100 * comm.mesh().rank("world") + size)
        x = torch.randn(size, dtype=torch.float64)
        expected = comm.all_reduce(x.clone(), "world", "c10d")
        got = only_first_half(x) if half else comm.ring_all_reduce(x)
        differences.append(float((got - expected).abs().max()))
    return differences


def only_first_half(x):
    """Mutant: the reduce-scatter half alone."""
    m = comm.mesh()
    n, me = m.size("world"), m.rank("world")
    chunks = x.view(-1).tensor_split(n)
    for step in range(n - 1):
        mine, theirs = chunks[(me - step) % n], chunks[(me - step - 1) % n]
        arrived = torch.empty_like(theirs)
        theirs += comm.exchange(mine, (me + 1) % n, arrived, (me - 1) % n, "world", "half")
    return x


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_equal_to_c10d_and_no_rank_sends_more(world):
    result = pico.run(both_ways, SIZES, world_size=world)
    assert (
        max(max(d) for d in result) < 1e-13
    )  # the order of the sum differs: a few units in the last place
    for rank in range(world):
        sends = [e for e in result.ledger.rank(rank) if e.op == "send"]
        assert len(sends) == len(SIZES) * 2 * (world - 1)
        even = [e for e in sends[-2 * (world - 1) :]]  # 4096 elements: divides by 2 and 4
        if world in (2, 4):
            assert sum(e.payload_bytes for e in even) == 2 * (world - 1) * 4096 * 8 // world


def test_the_mutant_is_caught():
    result = pico.run(both_ways, [1000], True, world_size=4)
    assert min(max(d) for d in result) > 0.1
