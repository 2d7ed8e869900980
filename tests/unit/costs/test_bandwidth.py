"""How fast a group can send: cards that work at once, and the mistakes that are made with them.

Mutants: one card for a whole group, however many of its ranks are in a node; the network for a
group that never leaves it; a rate above the fast link.
"""

import pytest

from picolab import costs
from picolab.costs import bandwidth
from picolab.specs import Hardware

H100 = Hardware.preset("h100-sxm")
# layout, axis, GB/s: eight cards of 50 GB/s in a node, 450 GB/s inside of it
CASES = [
    ("tp8dp32", "tp", 450),
    ("tp8dp32", "dp", 50),  # one rank of each group in a node
    ("tp4dp64", "dp", 100),
    ("dp256", "dp", 400),  # all eight cards
    ("tp16dp16", "tp", 400),
    ("tp8pp4dp8", "pp", 50),
    ("tp8cp8pp4", "dp_cp", 50),
    ("tp2cp4dp8", "cp", 450),
]


def check(group_bandwidth):
    for layout, axis, gb in CASES:
        assert group_bandwidth(H100, layout, axis) == gb * 1e9, (layout, axis)


def test_by_hand():
    check(costs.group_bandwidth)


def test_more_cards_than_the_link_carries_are_the_link():
    wide = Hardware(
        name="x", peak_flops=1, memory_bytes=1, memory_bytes_per_s=1, link_bytes_per_s=100,
        network_bytes_per_s=50, source="made up",
    )  # fmt: skip
    assert costs.group_bandwidth(wide, "dp16", "dp") == 100


@pytest.mark.parametrize(
    "wrong",
    [
        lambda hw, layout, axis: min(
            hw.network_bytes_per_s, bandwidth.group_bandwidth(hw, layout, axis)
        ),
        lambda hw, layout, axis: hw.link_bytes_per_s,
    ],
)
def test_one_card_for_all_and_one_rate_for_all_are_noticed(wrong):
    with pytest.raises(AssertionError):
        check(wrong)


def test_checkpoints_by_hand():
    """Llama 3: 466 interruptions in 54 days; a save of a minute (teaching example)."""
    mtbf = 54 * 86400 / 466
    interval = costs.checkpoint_interval(60, mtbf)
    assert round(interval) == 1096
    assert round(100 * costs.checkpoint_waste(interval, 60, mtbf), 1) == 10.9
    for other in (0.5, 2):
        assert costs.checkpoint_waste(other * interval, 60, mtbf) > costs.checkpoint_waste(
            interval, 60, mtbf
        )
    with pytest.raises(ValueError, match="mtbf_s is 0; it must be positive"):
        costs.checkpoint_interval(60, 0)
