"""Which links a group talks over.

Wrong versions these tests catch, kept below as mutants: one card for a whole node's ring, the rate
of the node's own links for everybody.
"""

from collections import Counter

import pytest

from picolab import costs
from picolab.specs import Hardware, Layout

H100 = Hardware.preset("h100")

# layout, axis, op -> GB/s
CASES = [
    ("tp8dp32", "tp", "all_reduce", 450),
    ("tp8dp32", "dp", "all_reduce", 50),  # eight such rings, a card each
    ("tp4dp64", "dp", "reduce_scatter", 100),
    ("dp256", "dp", "all_gather", 400),
    ("tp16dp2", "tp", "all_reduce", 400),
    ("dp8", "dp", "all_reduce", 450),
    ("tp8pp4", "pp", "send", 50),
    ("tp2pp4", "pp", "send", 450),
    ("tp4cp4", "cp", "send", 50),
    ("dp16ep16", "ep", "all_to_all", 50 * 15 / 8),
    ("dp64ep8", "ep", "all_to_all", 450),
    ("dp64ep8", "edp", "all_reduce", 50),
    ("dp4cp4tp2", "dp_cp", "all_reduce", 200),
    ("tp3dp3", "dp", "all_reduce", 50),  # 2, 5 and 8 of nine
]


def check_bandwidths(bandwidth):
    for layout, axis, op, rate in CASES:
        assert bandwidth(H100, layout, axis, op) == pytest.approx(rate * 1e9), (layout, axis)


def test_groups_and_their_links():
    check_bandwidths(costs.group_bandwidth)


def one_card_for_all(hardware, layout, axis, op):
    found = costs.group_bandwidth(hardware, layout, axis, op)
    return min(found, hardware.network_bytes_per_s)


def always_inside(hardware, layout, axis, op):
    return hardware.link_bytes_per_s


@pytest.mark.parametrize("wrong", [one_card_for_all, always_inside])
def test_a_wrong_link_is_caught(wrong):
    with pytest.raises(AssertionError):
        check_bandwidths(wrong)


@pytest.mark.parametrize("text", ["dp6tp2cp3pp2", "dp4ep2tp4", "pp5dp3", "dp16ep4", "tp3dp3pp2"])
def test_a_ring_has_the_cards_of_its_members_in_a_node(text):
    layout = Layout.parse(text)
    for axis in ("dp", "tp", "pp", "cp", "dp_cp", "ep", "edp"):
        held = [Counter(rank // 8 for rank in line) for line in layout.lines(axis)]
        fewest = min(min(counts.values()) for counts in held)
        rate = 450e9 if fewest == layout.size(axis) else min(450e9, fewest * 50e9)
        assert costs.group_bandwidth(H100, layout, axis) == rate, axis


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
    assert costs.link(mine, "dp4", "dp", "all_reduce") == (1e-4, 2e9)
    assert costs.link(mine, "dp4", "dp", "all_gather").bytes_per_s == 1e9
