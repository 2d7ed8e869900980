"""Which links a group of ranks talks over, and so how fast.

Neighbours in a node reach each other over its links (NVLink), ranks of different nodes through the
network card that each device has: a factor of ten. Ranks fill nodes in their order, so where the
lines of an axis run follows from the layout: tp is innermost and stays in a node while it fits, pp
is outermost.

Of a ring that spans nodes, and has q of its members in each, every chunk enters and leaves a node
once. Libraries run q rings side by side, each through another card: so the group gets q cards' rate
(and no more than the links carry). dp alone over nodes of eight has eight cards for each ring; with
tp=8 it has one, because seven other groups use theirs. In an all-to-all each rank sends to every
other by itself: what leaves the node has its own card only.

This is the one place where bandwidth is chosen: the planner and the questions both ask it.
"""

from collections import Counter
from typing import NamedTuple

from picolab.costs.collectives import collective_time
from picolab.specs import Hardware, Layout


class Link(NamedTuple):
    """What one rank of a group sends over, in one collective."""

    alpha_s: float
    """Seconds a message."""
    bytes_per_s: float
    """Of this rank's bytes, those that cross nodes and those that do not taken together."""
    per_node: int
    """Members of the group in one node, the fewest of any; all where no group leaves its node."""


def link(hardware: Hardware, layout: Layout | str, axis: str, op: str = "all_reduce") -> Link:
    """The link of the groups along an axis of the layout ("tp", "dp", "dp_cp", "ep", ...).

    A group of n, q of them in each node, links of rate L inside a node and N a card between nodes:

        in one node              L
        ring (all-reduce, ...)   min(L, q N)
        all-to-all               min(L, N (n-1)/(n-q))     so much of it leaves the node
        send, recv               N, if the neighbour on the axis is in another node

    Measured hardware says itself what a collective reaches. Source of the rings side by side: NCCL,
    nccl-tests PERFORMANCE.md (bus bandwidth).
    """
    layout = Layout.parse(layout)
    n = layout.size(axis)
    if hardware.collectives is not None and op in hardware.collectives:
        return Link(*hardware.collectives[op], n)
    per_node = _per_node(layout, axis, hardware.devices_per_node)
    inside, card = hardware.link_bytes_per_s, hardware.network_bytes_per_s
    if per_node == n:
        return Link(hardware.link_alpha_s, inside, n)
    if op == "all_to_all":
        card *= (n - 1) / (n - per_node)
    elif op not in ("send", "recv"):  # of these, some neighbour along the axis is in another node
        card *= per_node
    return Link(hardware.network_alpha_s, min(inside, card), per_node)


def axis_time(
    hardware: Hardware, layout: Layout | str, axis: str, op: str, payload_bytes: float
) -> float:
    """Seconds of a collective along an axis: `collective_time` over its link."""
    layout = Layout.parse(layout)
    alpha, rate, _ = link(hardware, layout, axis, op)
    return collective_time(op, payload_bytes, layout.size(axis), alpha, 1 / rate)


def _per_node(layout: Layout, axis: str, node: int) -> int:
    n, stride = layout.size(axis), layout.stride(axis)
    block = n * stride  # a line lies in a block of so many neighbouring ranks
    if layout.world <= node:
        return n
    if stride % node == 0:
        return 1
    if node % stride == 0 and (block % node == 0 or node % block == 0):
        return min(n, node // stride)
    counts = (Counter(rank // node for rank in line) for line in layout.lines(axis))
    return min(min(held.values()) for held in counts)
