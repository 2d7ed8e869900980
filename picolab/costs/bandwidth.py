"""How fast a rank of a group can send: one function of hardware, layout and axis.

A link is not a rate that every group has. Inside a node it is the fast link. A group that leaves
the node sends through network cards, one for each device; how many of them it may use is decided by
how many of its ranks stand in a node together.
"""

from picolab.specs import Hardware, Layout


def group_bandwidth(hardware: Hardware, layout: Layout | str, axis: str) -> float:
    """Bus bandwidth, bytes per second, that a group along the axis can reach: a peak, one way.

        all ranks in one node          link
        k of its ranks in each node    min(link, k * network)

    A ring enters and leaves a node once. So one ring uses one card; a group with k ranks in a node
    runs k rings over a k-th of the tensor each, through k cards, while NVLink carries all k. The
    other groups of the node do the same with the other cards, so nothing is promised twice. A send
    along a line of ranks in different nodes has k = 1.

    Ranks are dealt out to nodes in order, `node_size` to a node. Source: derived, for nodes with a
    card for each device, as in arXiv 2104.04473, section 5, and 2407.21783, section 3.3.1. What is
    left out: oversubscribed switches, reduction in the switch, protocols.
    """
    layout = Layout.parse(layout)
    line = layout.lines(axis)[0]
    nodes = [rank // hardware.node_size for rank in line]
    if len(set(nodes)) == 1:
        return hardware.link_bytes_per_s
    together = max(nodes.count(node) for node in set(nodes))
    return min(hardware.link_bytes_per_s, together * hardware.network_bytes_per_s)
