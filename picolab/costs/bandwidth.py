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


def group_bandwidth(
    hardware: Hardware, layout: Layout | str, axis: str, op: str = "all_reduce"
) -> float:
    """Bytes a second that one rank of a group along an axis ("tp", "dp_cp", "ep", ...) can send: a
    peak, one direction.

    A group of n, q of them in each node, links of rate L inside a node and N a card between nodes:

        in one node              L
        ring (all-reduce, ...)   min(L, q N)
        all-to-all               min(L, N (n-1)/(n-q))     so much of it leaves the node
        send, recv               N: some neighbour along the axis is in another node

    Source: derived, for nodes with a card for each device, as in arXiv 2104.04473, section 5, and
    2407.21783, section 3.3.1; rings side by side as in NCCL. What is left out: oversubscribed
    switches, reduction in the switch, protocols.
    """
    layout = Layout.parse(layout)
    n, q = layout.size(axis), _per_node(layout, axis, hardware.node_size)
    card = hardware.network_bytes_per_s
    if q == n:
        return hardware.link_bytes_per_s
    if op == "all_to_all":
        card *= (n - 1) / (n - q)
    elif op not in ("send", "recv"):
        card *= q
    return min(hardware.link_bytes_per_s, card)


def link(hardware: Hardware, layout: Layout | str, axis: str, op: str = "all_reduce") -> Link:
    """`group_bandwidth` with the seconds of a message; of measured hardware, what it measured."""
    layout = Layout.parse(layout)
    if hardware.collectives is not None and op in hardware.collectives:
        return Link(*hardware.collectives[op])
    inside = _per_node(layout, axis, hardware.node_size) == layout.size(axis)
    alpha = hardware.link_alpha_s if inside else hardware.network_alpha_s
    return Link(alpha, group_bandwidth(hardware, layout, axis, op))


def axis_time(
    hardware: Hardware, layout: Layout | str, axis: str, op: str, payload_bytes: float
) -> float:
    """Seconds of a collective along an axis: `collective_time` over its link."""
    layout = Layout.parse(layout)
    alpha, rate = link(hardware, layout, axis, op)
    return collective_time(op, payload_bytes, layout.size(axis), alpha, 1 / rate)


def _per_node(layout: Layout, axis: str, node: int) -> int:
    """Members of a group in one node, the fewest of any; all where no group leaves its node."""
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
