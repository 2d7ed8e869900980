"""A ring all-reduce from send and receive: the first lesson, and the reason why so many formulas
say 2(n-1)/n.

Cut the tensor into n chunks and stand in a circle. In n-1 steps each rank passes one chunk to its
right and adds what comes from its left; then rank r holds the finished sum of chunk r+1 (the
reduce-scatter half). In n-1 more steps the finished chunks go round once (the all-gather half).
Every rank has sent 2(n-1) chunks of B/n bytes, and no rank more: the wire carries 2(n-1)/n B per
rank, which hardly depends on n.

Leaves out what makes it fast in earnest (several rings at once, pipelining inside a chunk). Twin
in torch: `torch.distributed.all_reduce`; tests/distributed/comm compares them. Source: Patarasuk
and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations"."""

import torch

from picolab.comm.collectives import exchange
from picolab.comm.mesh import mesh


def ring_all_reduce(x: torch.Tensor, axis: str = "world") -> torch.Tensor:
    """The sum of all ranks' x, in place, by 2(n-1) sends a rank. x: any shape, contiguous, also
    fewer than n elements.
    """
    m = mesh()
    n, me = m.size(axis), m.rank(axis)
    right, left = (me + 1) % n, (me - 1) % n
    chunks = x.view(-1).tensor_split(n)
    for step in range(n - 1):
        mine, theirs = chunks[(me - step) % n], chunks[(me - step - 1) % n]
        arrived = torch.empty_like(theirs)
        exchange(mine, right, arrived, left, axis, "ring: reduce-scatter half")
        theirs += arrived
    for step in range(n - 1):
        mine, theirs = chunks[(me + 1 - step) % n], chunks[(me - step) % n]
        exchange(mine, right, theirs, left, axis, "ring: all-gather half")
    return x
