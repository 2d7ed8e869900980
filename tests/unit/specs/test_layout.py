"""Layout: text to ranks and back, the grid, and the nearest layout that works.

Wrong versions these tests catch: axes in another order (so that tp neighbours are not neighbours),
coordinates that do not invert the grid, ep multiplying the world, a suggestion that does not work
itself or is not the nearest, text that loses sp, zero or the schedule.
"""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from picolab.specs import Layout, ModelConfig
from picolab.specs.layout import MAX_WORLD, check_world_size
from picolab.specs.schedule_name import SCHEDULES

TINY = ModelConfig.preset("tiny")
ROOT = Path(__file__).parents[3]
sizes = st.integers(1, 5)


@st.composite
def layouts(draw):
    dp, tp, pp, cp = (draw(sizes) for _ in range(4))
    ep = draw(st.sampled_from([n for n in range(1, dp * cp + 1) if dp * cp % n == 0]))
    zero = draw(st.integers(0, 3))
    groups = [None, *(n for n in range(2, dp + 1) if dp % n == 0)] if zero else [None]
    schedule = draw(st.sampled_from((*SCHEDULES, "interleaved-v4")))
    count = Layout(pp=pp, schedule=schedule).stage_count
    by_hand = st.lists(st.integers(1, 12), min_size=count, max_size=count)
    return Layout(
        dp=dp, tp=tp, pp=pp, cp=cp, ep=ep, sp=draw(st.booleans()), zero=zero,
        shard=draw(st.sampled_from(groups)), schedule=schedule,
        stages=draw(st.just(()) | by_hand.map(tuple)),
    )  # fmt: skip


@given(layouts())
def test_text_and_back(layout):
    assert Layout.parse(str(layout)) == layout
    assert Layout.parse(layout) is layout


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("dp1", Layout()),
        ("dp2tp2", Layout(dp=2, tp=2)),
        ("tp2dp2", Layout(dp=2, tp=2)),
        (" DP2tp2pp2cp1 ", Layout(dp=2, tp=2, pp=2)),
        ("dp4ep2", Layout(dp=4, ep=2)),
        ("tp2sp", Layout(tp=2, sp=True)),
        ("sptp2", Layout(tp=2, sp=True)),
        ("tp2spzero1", Layout(tp=2, sp=True, zero=1)),
        ("dp4zero1", Layout(dp=4, zero=1)),
        ("dp4zero3shard2", Layout(dp=4, zero=3, shard=2)),
        ("dp4zero3shard4", Layout(dp=4, zero=3)),  # all of dp: no groups
        ("dp4tp2spzero1shard2", Layout(dp=4, tp=2, sp=True, zero=1, shard=2)),
        ("pp4:gpipe", Layout(pp=4, schedule="gpipe")),
        ("pp2:zb-h1", Layout(pp=2, schedule="zb-h1")),
        ("pp2:interleaved-v2", Layout(pp=2, schedule="interleaved")),
        ("pp2:interleaved-v4", Layout(pp=2, schedule="interleaved-v4")),
        ("pp3:1f1b/3-3-2", Layout(pp=3, stages=[3, 3, 2])),
        ("dp2pp2:zb-v/1-2-2-1", Layout(dp=2, pp=2, schedule="zb-v", stages=(1, 2, 2, 1))),
    ],
)
def test_parse(text, layout):
    assert Layout.parse(text) == layout


def test_str_is_short():
    assert str(Layout()) == "dp1"
    assert str(Layout(dp=2, tp=2)) == "dp2tp2"
    assert str(Layout(tp=2, sp=True, zero=1, schedule="gpipe")) == "tp2spzero1:gpipe"
    assert str(Layout(dp=4, zero=3, shard=2)) == "dp4zero3shard2"
    assert str(Layout(pp=2, schedule="interleaved-v2")) == "pp2:interleaved"
    assert str(Layout(pp=3, stages=(3, 3, 2))) == "pp3:1f1b/3-3-2"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("dp2xx3", "dp2xx3: 'xx' is not an axis; axes are dp, tp, pp, cp, ep"),
        ("dp2dp4", "dp2dp4: dp is given twice; give each axis once"),
        ("dp", "dp: dp needs a number, as in dp2"),
        ("dp2.5", "dp2.5: '.5' cannot be read; give each axis a number, as in dp2tp2"),
        ("dp2 tp2", "dp2 tp2: ' tp2' cannot be read; give each axis a number, as in dp2tp2"),
        ("4", "4: '4' cannot be read; give each axis a number, as in dp2tp2"),
        ("tp2sp2", "tp2sp2: sp takes no number; it splits over the ranks of tp"),
        ("dp0", "dp is 0; an axis has an integer size of 1 or more"),
        ("dp2zero4", "zero is 4; ZeRO stages are 0 (off), 1, 2 and 3"),
        (
            "dp4shard2",
            "shard=2 says over how many replicas ZeRO shards, and zero is 0; give",
        ),
        (
            "dp4zero3shard3",
            "shard=3 does not divide dp=4: the replicas are dealt out to shard",
        ),
        ("dp6zero3shard4", "the nearest layout that works is dp6zero3shard3"),
        ("dp4zero3shard1", "shard=1 is no group"),
        ("dp1zero3shard2", "the nearest layout that works is dp1zero3"),
        ("pp2:foo", "schedule 'foo' is not known; schedules are 1f1b, gpipe, interleaved, zb-h1"),
        ("pp2:zbh1", "zb-v, dualpipe-v; did you mean 'zb-h1'?"),
        ("pp2:", "schedule '' is not known"),
        (
            "pp2:interleaved-v1",
            "interleaved-v1 has 1 stages a rank; interleaved has 2 to 16, and 1f1b",
        ),
        ("pp2:interleaved-v99", "interleaved-v99 has 99 stages a rank; interleaved has 2 to 16"),
        ("pp3:1f1b/3-3", "stages 3-3 are 2, and pp3 with 1f1b has 3; give the layers of each"),
        ("pp2:zb-v/3-3", "stages 3-3 are 2, and pp2 with zb-v has 4; give the layers of each"),
        ("pp3:1f1b/3-0-3", "stages are (3, 0, 3); each has one layer or more, a whole number"),
        ("pp3:1f1b/3,3,2", "after '/' stand the layers of each stage, as in '/3-3-2'"),
        ("pp3:1f1b/", "after '/' stand the layers of each stage, as in '/3-3-2'"),
        ("", "'' is not a layout: write its axes as in 'dp2tp2', or 'dp1' for one rank"),
        (None, "None is not a layout: write its axes as in 'dp2tp2', or 'dp1' for one rank"),
        ("dp2000000", "world_size is 2,000,000, beyond sense; the limit is 1,048,576 ranks"),
    ],
)
def test_what_cannot_be_parsed_gets_a_sentence(text, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Layout.parse(text)


def test_zero_over_one_replica_is_a_remark_and_no_error():
    layout = Layout.parse("tp2zero1")
    (said,) = layout.remarks
    assert said.startswith("tp2zero1: zero1 shards over replicas, and there is one")
    assert repr(layout).endswith(said)
    for text in ("dp2zero1", "cp2zero1", "tp2", "dp1"):  # ranks of cp hold the same numbers, too
        assert Layout.parse(text).remarks == []


@given(layouts())
def test_resized_keeps_what_it_can(layout):
    for dp in (1, 2, 3, layout.dp):
        other = layout.resized(dp=dp, tp=1, cp=layout.cp, ep=1)
        assert (other.dp, other.zero, other.sp) == (dp, layout.zero, False)
        assert other.shard in (layout.shard, None)
    assert layout.resized().shard == layout.shard


def test_flags_have_their_types():
    with pytest.raises(ValueError, match="sp is 1; it is True or False"):
        Layout(tp=2, sp=1)
    with pytest.raises(ValueError, match="zero is True; ZeRO stages are"):
        Layout(dp=2, zero=True)


@pytest.mark.parametrize("bad", [0, -1, 1.0, True, "2", None])
def test_an_axis_is_a_positive_integer(bad):
    with pytest.raises(ValueError, match=r"tp is .*; an axis has an integer size of 1 or more"):
        Layout(tp=bad)


# ---- the grid


@given(layouts())
def test_stages_are_counted_as_they_are_placed(layout):
    assert len(layout.stage_ranks) == layout.stage_count
    assert set(layout.stage_ranks) == set(range(layout.pp))


@given(layouts())
def test_the_grid_is_one_reshape(layout):
    shape = (layout.pp, layout.dp, layout.cp, layout.tp)
    assert layout.grid() == np.arange(layout.world).reshape(shape).tolist()
    assert tuple(layout.axes.values()) == shape
    assert tuple(layout.axes) == ("pp", "dp", "cp", "tp")


def check_inverse(layout, coordinates):
    grid = layout.grid()
    for rank in range(layout.world):
        place = coordinates(layout, rank)
        assert grid[place["pp"]][place["dp"]][place["cp"]][place["tp"]] == rank


@given(layouts())
def test_coordinates_invert_the_grid(layout):
    check_inverse(layout, Layout.coordinates)


def tp_outermost(layout, rank):
    """Wrong: the axes are taken apart in another order, so tp neighbours are far apart."""
    found = {}
    for axis in ("pp", "dp", "cp", "tp"):
        rank, found[axis] = divmod(rank, layout.axes[axis])
    return found


def dp_inside_tp(layout, rank):
    """Wrong: dp and tp exchanged. With dp == tp every rank still has a place of its own."""
    place = layout.coordinates(rank)
    return {**place, "dp": place["tp"], "tp": place["dp"]}


@pytest.mark.parametrize("wrong", [tp_outermost, dp_inside_tp])
def test_a_wrong_order_of_axes_is_caught(wrong):
    with pytest.raises(AssertionError):
        check_inverse(Layout(dp=2, tp=2), wrong)


@pytest.mark.parametrize("rank", [-1, 4])
def test_a_rank_outside_the_layout_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank {rank} is not in dp2tp2; its ranks are 0 to 3"):
        Layout(dp=2, tp=2).coordinates(rank)


def test_repr_prints_the_rank_grid():
    assert repr(Layout(dp=2, tp=2)) == (
        "Layout dp2tp2: 4 ranks\n"
        "  dp  tp0  tp1\n"
        "   0    0    1\n"
        "   1    2    3"
    )  # fmt: skip
    assert repr(Layout()) == "Layout dp1: 1 rank\n  dp  tp0\n   0    0"
    assert repr(Layout(pp=2, dp=2)).splitlines()[1].split() == ["pp", "dp", "tp0"]


def test_repr_of_a_large_layout_is_short_and_keeps_the_last_rank():
    text = repr(Layout(dp=2048, tp=32))
    assert len(text.splitlines()) < 40 and max(map(len, text.splitlines())) < 100
    assert text.endswith("65535")


# ---- what cannot work


def test_ep_never_multiplies_the_world():
    assert Layout(dp=4, ep=2).world == 4
    assert Layout(dp=2, cp=2, ep=4).world == 4
    with pytest.raises(ValueError, match=r"ep=4 does not divide dp\*cp = 2: .* works is dp2ep2"):
        Layout(dp=2, ep=4)
    with pytest.raises(ValueError, match=r"ep=2 does not divide dp\*cp = 1: .* works is tp2"):
        Layout(tp=2, ep=2)


@pytest.mark.parametrize(
    ("text", "changes", "sentence"),
    [
        ("dp2tp8", {"heads": 4}, "tp=8 leaves ranks with nothing of kv_heads (4)"),
        ("tp4", {"ffn": 3, "vocab": 2}, "tp=4 leaves ranks with nothing of ffn (3) and vocab (2)"),
        ("pp8", {}, "pp=8 is more stages than the model has layers (4)"),
        (
            "pp4:interleaved",
            {},
            "pp=4 with interleaved is 8 stages, which is more stages than the model has layers (4)",
        ),
        (
            "pp2:1f1b/3-3",
            {},
            "stages 3-3 are 6 layers, and the model has 4; the nearest layout of 2",
        ),
        ("cp2", {"seq": 130}, "2 * cp = 4 equal chunks, and seq is 130 (take 128 or 132)"),
        ("cp4", {"seq": 6}, "2 * cp = 8 equal chunks, and seq is 6 (take 8)"),
        ("tp4sp", {"seq": 6}, "sp splits a sequence into tp = 4 equal parts, and seq is 6"),
        ("tp3cp2sp", {}, "sp splits a sequence into cp * tp = 6 equal parts, and seq is 128"),
        ("dp2sp", {}, "sp splits activations over the ranks of tp, and tp is 1"),
        ("dp2ep2", {}, "ep=2 has nothing to spread, the model has no experts"),
    ],
)
def test_what_a_layout_cannot_split_is_refused_with_the_reason(text, changes, sentence):
    layout, config = Layout.parse(text), TINY.replace(**changes)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        layout.check(config)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        *(("tp16", "dp2tp8"), ("dp2tp16", "dp4tp8"), ("tp5", "dp5"), ("tp6", "dp2tp3")),
        *(("pp8", "dp2pp4"), ("dp4ep2", "dp4"), ("cp3", "dp3"), ("dp2sp", "dp2")),
        *(("tp16sp", "dp2tp8sp"), ("tp3sp", "tp3")),  # sp is left out where tp can stay
    ],
)
def test_the_nearest_layout_is_named(text, nearest):
    with pytest.raises(ValueError, match=f"works is {nearest}$"):
        Layout.parse(text).check(TINY)


def test_experts_are_split_evenly():
    config = ModelConfig.preset("tiny-moe")
    Layout(dp=4, ep=4).check(config)
    with pytest.raises(ValueError, match=r"ep=3 does not divide experts \(8\).*works is dp3$"):
        Layout(dp=3, ep=3).check(config)
    with pytest.raises(ValueError, match=r"tp=4 leaves ranks with nothing of expert_ffn \(3\)"):
        Layout(tp=4).check(config.replace(expert_ffn=3))


def test_layouts_that_work_pass():
    for text in ("dp1", "dp2", "dp4", "tp2", "tp4", "dp2tp2", "dp2tp2pp2", "dp3", "pp4", "cp2"):
        assert Layout.parse(text).check(TINY) is None
    for text in ("pp2:interleaved", "pp2:zb-v", "pp2:1f1b/3-1", "dp2:zb-v", "pp2:zb-v/1-1-1-1"):
        assert Layout.parse(text).check(TINY) is None
    for text in ("tp3", "pp3", "tp3pp3", "tp2sp", "tp2cp4sp"):  # nothing has to divide but seq
        assert Layout.parse(text).check(TINY.replace(vocab=257, ffn=351)) is None
    Layout.parse("tp8").check(TINY)  # two ranks to a key-value head
    assert Layout.parse("tp8").head_copies(TINY) == 2
    assert [Layout(tp=tp).head_copies(TINY) for tp in (1, 3, 4, 6, 16)] == [1, 1, 1, 0, 0]
    Layout.parse("dp128tp8pp16").check(ModelConfig.preset("llama-3.1-405b"))


def suggestion(error) -> Layout:
    return Layout.parse(str(error.value).rsplit("is ", 1)[1])


def moved(old: Layout, new: Layout) -> float:
    axes = old.axes
    return sum(abs(math.log2(new.axes[axis] / axes[axis])) for axis in axes)


@given(dp=st.integers(1, 4), tp=st.integers(1, 12), pp=st.integers(1, 6), cp=st.integers(1, 3))
def test_the_suggestion_works_and_none_is_nearer(dp, tp, pp, cp):
    layout = Layout(dp=dp, tp=tp, pp=pp, cp=cp)
    # What tiny refuses: 4 kv_heads, of which 8 ranks can share each with a neighbour, 4 layers,
    # seq 128.
    assume((tp > 4 and tp != 8) or pp > 4 or cp == 3)
    with pytest.raises(ValueError) as caught:
        layout.check(TINY)
    named = suggestion(caught)
    named.check(TINY)
    assert named.world == layout.world
    for t, p, c in itertools.product((1, 2, 3, 4, 8), (1, 2, 3, 4), (1, 2, 4, 8, 16, 32, 64)):
        if layout.world % (t * p * c) == 0:
            other = Layout(dp=layout.world // (t * p * c), tp=t, pp=p, cp=c)
            assert moved(layout, named) <= moved(layout, other) + 1e-6


@pytest.mark.parametrize(
    ("world", "sentence"),
    [
        (3, r"dp2tp2 is 4 ranks \(dp 2 x tp 2\), not 3; the nearest layout of 3 ranks is dp3"),
        (8, "not 8; the nearest layout of 8 ranks is dp4tp2"),
        (1, "the nearest layout of 1 rank is dp1"),
        (0, "world_size is 0; a run needs at least one rank"),
        (-2, "world_size is -2; a run needs at least one rank"),
        (10**9, "world_size is 1,000,000,000, beyond sense"),
        (2.0, "world_size is 2.0; it must be an integer"),
        (True, "world_size is True; it must be an integer"),
    ],
)
def test_a_world_that_does_not_multiply_is_refused(world, sentence):
    with pytest.raises(ValueError, match=sentence):
        Layout(dp=2, tp=2).check_world(world)


@given(layouts(), st.integers(1, 48))
def test_the_suggested_layout_has_that_world(layout, world):
    if layout.world == world:
        layout.check_world(world)
        return
    with pytest.raises(ValueError) as caught:
        layout.check_world(world)
    assert suggestion(caught).world == world


def test_the_largest_world_is_allowed():
    check_world_size(MAX_WORLD)
    with pytest.raises(ValueError, match="beyond sense"):
        check_world_size(MAX_WORLD + 1)


NAME = re.compile(r"\b(?:(?:dp|tp|pp|cp|ep)\d+){2,}\b")
WRITTEN = [ROOT / "README.md", *(ROOT / "picolab").rglob("*.py"), *(ROOT / "summary").glob("*.md")]


def other_orders(text: str) -> list[str]:
    """Names of layouts that are not written as they are printed."""
    return [name for name in NAME.findall(text) if not str(Layout.parse(name)).startswith(name)]


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_layouts_are_written_in_the_order_in_which_they_are_printed(path):
    assert other_orders(path.read_text(encoding="utf-8")) == []


def test_another_order_is_noticed():
    assert other_orders("dp2tp2, tp2dp2 and pp2dp2tp2") == ["tp2dp2", "pp2dp2tp2"]
