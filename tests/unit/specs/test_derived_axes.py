"""Derived axes regroup the ranks of others; the grid in another shape is all there is to them."""

import numpy as np
import pytest

from picolab.specs import Layout

LAYOUTS = [
    "dp4cp2zero1shard2tp2",
    "dp1",
    "dp2cp2tp2",
    "pp2dp4ep2",
    "dp4ep4",
    "dp2cp2ep4tp2",
    "pp2cp4ep2",
]


def slices_of(grid: np.ndarray, dim: int) -> list[tuple[int, ...]]:
    return sorted(map(tuple, np.moveaxis(grid, dim, -1).reshape(-1, grid.shape[dim]).tolist()))


@pytest.mark.parametrize("text", LAYOUTS)
def test_lines_are_slices_of_the_grid(text):
    layout = Layout.parse(text)
    pp, dp, cp, tp = layout.axes.values()
    grid = np.arange(layout.world).reshape(pp, dp, cp, tp)
    for dim, axis in enumerate(layout.axes):
        assert sorted(layout.lines(axis)) == slices_of(grid, dim)
    assert sorted(layout.lines("dp_cp")) == slices_of(grid.reshape(pp, dp * cp, tp), 1)
    experts = grid.reshape(pp, dp * cp // layout.ep, layout.ep, tp)
    assert sorted(layout.lines("ep")) == slices_of(experts, 2)
    assert sorted(layout.lines("edp")) == slices_of(experts, 1)
    shard = layout.shard or dp
    groups = grid.reshape(pp, dp // shard, shard * cp, tp)
    assert sorted(layout.lines("shard")) == slices_of(groups, 2)
    assert sorted(layout.lines("replica")) == slices_of(groups, 1)
    assert layout.lines("world") == [tuple(range(layout.world))]
    # An expert is on as many ranks as there are replicas of it, and all ranks hold some.
    assert layout.size("ep") * layout.size("edp") == layout.size("dp_cp")
    for axis in ("dp_cp", "ep", "edp"):
        assert sorted(rank for line in layout.lines(axis) for rank in line) == [
            *range(layout.world)
        ]
        assert {len(line) for line in layout.lines(axis)} == {layout.size(axis)}


def test_the_data_axis_is_decided_by_what_is_split():
    texts = ("dp1", "dp2", "cp2", "dp2cp2", "tp2", "pp2")
    assert [Layout.parse(text).data_axis for text in texts] == [
        "dp",
        "dp",
        "cp",
        "dp_cp",
        "dp",
        "dp",
    ]


def test_an_unknown_axis_is_a_sentence():
    with pytest.raises(
        ValueError, match=r"no axis 'dq'; it has pp, dp, .*, dp_cp, ep, edp, shard, "
    ):
        Layout().size("dq")
