"""Which links a group talks over.

Wrong versions these tests catch, kept below as mutants: one card for a whole node's ring, the rate
of the node's own links for everybody.
"""

from collections import Counter

import pytest

from picolab import costs
from picolab.specs import Hardware, Layout

H100 = Hardware.preset("h100")

# layout, axis, op -> members in a node, GB/s
CASES = [
    ("tp8dp32", "tp", "all_reduce", 8, 450),
    ("tp8dp32", "dp", "all_reduce", 1, 50),  # eight such rings, a card each
    ("tp4dp64", "dp", "reduce_scatter", 2, 100),
    ("dp256", "dp", "all_gather", 8, 400),
    ("tp16dp2", "tp", "all_reduce", 8, 400),
    ("dp8", "dp", "all_reduce", 8, 450),
    ("tp8pp4", "pp", "send", 1, 50),
    ("tp2pp4", "pp", "send", 4, 450),
    ("tp4cp4", "cp", "send", 2, 50),
    ("dp16ep16", "ep", "all_to_all", 8, 50 * 15 / 8),
    ("dp64ep8", "ep", "all_to_all", 8, 450),
    ("dp64ep8", "edp", "all_reduce", 1, 50),
    ("dp4cp4tp2", "dp_cp", "all_reduce", 4, 200),
    ("tp3dp3", "dp", "all_reduce", 1, 50),  # 2, 5 and 8 of nine
]


def check_links(link):
    for layout, axis, op, per_node, rate in CASES:
        found = link(H100, Layout.parse(layout), axis, op)
        assert (found.per_node, found.bytes_per_s) == (per_node, pytest.approx(rate * 1e9)), layout


def test_groups_and_their_links():
    check_links(costs.link)


def one_card_for_all(hardware, layout, axis, op):
    found = costs.link(hardware, layout, axis, op)
    return found._replace(bytes_per_s=min(found.bytes_per_s, hardware.network_bytes_per_s))


def always_inside(hardware, layout, axis, op):
    return costs.link(hardware, layout, axis, op)._replace(bytes_per_s=hardware.link_bytes_per_s)


@pytest.mark.parametrize("wrong", [one_card_for_all, always_inside])
def test_a_wrong_link_is_caught(wrong):
    with pytest.raises(AssertionError):
        check_links(wrong)


@pytest.mark.parametrize("text", ["dp6tp2cp3pp2", "dp4ep2tp4", "pp5dp3", "dp16ep4", "tp3dp3pp2"])
def test_members_in_a_node_are_those_of_the_grid(text):
    layout = Layout.parse(text)
    for axis in ("dp", "tp", "pp", "cp", "dp_cp", "ep", "edp"):
        held = [Counter(rank // 8 for rank in line) for line in layout.lines(axis)]
        fewest = min(min(counts.values()) for counts in held)
        assert costs.link(H100, layout, axis).per_node == fewest, axis


def test_time_over_an_axis_is_the_collectives_over_its_link():
    layout = Layout.parse("tp8dp32")
    seconds = costs.axis_time(H100, layout, "dp", "all_reduce", 8e9)
    assert seconds == costs.collective_time("all_reduce", 8e9, 32, 10e-6, 1 / 50e9)
    assert costs.axis_time(H100, "tp8", "dp", "all_reduce", 8e9) == 0


def test_measured_hardware_speaks_for_itself():
    mine = Hardware(
        name="mine", peak_flops=1e11, memory_bytes=8e9, memory_bytes_per_s=1e10, source="here",
        link_bytes_per_s=1e9, network_bytes_per_s=1e9, measured=True, cores=2,
        collectives={"all_reduce": (1e-4, 2e9)},
    )  # fmt: skip
    assert costs.link(mine, "dp4", "dp", "all_reduce") == (1e-4, 2e9, 4)
    assert costs.link(mine, "dp4", "dp", "all_gather").bytes_per_s == 1e9
