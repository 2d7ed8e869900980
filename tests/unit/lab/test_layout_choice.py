"""What a panel may offer, and the formulas beside it.

Wrong versions these tests catch: offering a layout that `Layout.check` refuses or that is too many
ranks, leaving out one that works, a table whose numbers are not those of `costs`, the first stage's
numbers shown for all stages, layouts that are compared on different batches, a pipeline with fewer
micro-batches than stages, a slider that moves more than it has to.
"""

import itertools

import pytest

from picolab import costs
from picolab.lab.layout_choice import (
    MICRO_BATCHES,
    accumulated,
    choices_table,
    formula_table,
    formula_traffic,
    nearest,
    working_layouts,
)
from picolab.specs import Layout, ModelConfig

TINY = ModelConfig.preset("tiny")
STEP = {"micro_batch": 4, "accumulate": 2}


@pytest.mark.parametrize("max_world", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(
    "config", [TINY, TINY.replace(heads=6, kv_heads=3, hidden=96, layers=2, seq=120)]
)
def test_exactly_what_works_is_offered(config, max_world):
    offered = working_layouts(config, max_world)
    for dp, tp, pp, cp in itertools.product(range(1, max_world + 1), repeat=4):
        layout = Layout(dp=dp, tp=tp, pp=pp, cp=cp)
        try:
            works = layout.world <= max_world  # the cheaper question first: most are too many
            works and layout.check(config)
        except ValueError:
            works = False
        assert offered.get((dp, tp, pp, cp)) == (layout if works else None)


def test_schedule_and_sp_are_kept_where_they_can_be():
    offered = set(map(str, working_layouts(TINY, 4, like="tp2sp:gpipe").values()))
    assert {"tp2sp:gpipe", "tp4sp:gpipe", "dp2tp2sp:gpipe", "pp4:gpipe"} <= offered
    assert "tp2:gpipe" not in offered and "pp4sp:gpipe" not in offered


@pytest.mark.parametrize(
    "now, axis, size, then",
    [
        ("dp2", "tp", 2, "dp2tp2"),  # there is room for both
        ("dp2tp2", "dp", 4, "dp4"),
        ("dp2tp2", "pp", 2, "dp2pp2"),  # one of two has to give way: dp comes first
        ("tp2cp2", "cp", 4, "cp4"),
        ("dp4", "cp", 2, "dp2cp2"),
        ("dp2tp2", "tp", 3, "tp3"),
    ],
)
def test_the_nearest_layout_gives_way(now, axis, size, then):
    assert str(nearest(working_layouts(TINY, 4), Layout.parse(now), axis, size)) == then


def test_the_stage_of_zero_is_kept_and_halves_what_it_shards():
    offered = set(map(str, working_layouts(TINY, 4, like="dp2zero3").values()))
    assert {"dp2zero3", "dp2tp2zero3", "dp4zero3"} <= offered
    table = formula_table(TINY, Layout.parse("dp2zero3"), **STEP)
    rows = {row[0]: row[1] for row in table.rows}
    held = sum(p.numel for p in costs.zero_shards(TINY, "dp2zero3"))
    assert rows["parameters"] == f"{held:,} of {costs.parameters(TINY).total:,}"
    assert rows["optimizer, in fp32"].startswith(f"{8 * held + 4 * (6 * TINY.layers + 3):,} bytes")
    assert "zero: parameters, backward" in rows


def test_a_size_that_nothing_has_is_none():
    assert nearest(working_layouts(TINY, 4), Layout(), "pp", 5) is None


def test_all_layouts_see_one_batch_and_no_stage_is_left_without_work():
    for layout in working_layouts(TINY, 4).values():
        assert layout.dp * accumulated(layout) == MICRO_BATCHES
        assert accumulated(layout) >= layout.pp
    assert accumulated(Layout(dp=2, pp=8)) == 8
    assert accumulated(Layout(dp=2, pp=8), given=3) == 3


def test_the_stages_of_a_pipeline_are_averaged():
    layout = Layout(pp=4)
    rows = formula_traffic(TINY, layout, **STEP)
    ranks = [costs.step_ledger(TINY, layout, rank=rank, **STEP) for rank in range(4)]
    sent = sum(e.payload_bytes for of in ranks for k, e in of.items() if k[2] == "pp: activations")
    assert rows["pp: activations"] == (3.0, sent / 4, "message")  # 2 x (1 + 2 + 2 + 1) / 4
    # The mutant shows the first stage's, which only sends: 2.
    assert ranks[0]["send", "pp", "pp: activations"].count == 2
    table = formula_table(TINY, layout, **STEP)
    assert ["pipeline bubble, of the total", "60.0 %, 2 micro-batches"] in table.rows


@pytest.mark.parametrize("max_world", [0, -1, 2.0, True])
def test_a_world_that_is_none_is_refused(max_world):
    with pytest.raises(ValueError, match="1 or more"):
        working_layouts(TINY, max_world)


def test_the_table_holds_the_formulas_numbers():
    layout = Layout(dp=2, tp=2)
    table = formula_table(TINY, layout, **STEP)
    rows = {row[0]: row[1] for row in table.rows}
    expected = costs.step_ledger(TINY, layout, **STEP)
    assert set(rows) == {"parameters", *(reason for _, _, reason in expected)}
    for (_, _, reason), found in expected.items():
        assert rows[reason].startswith(f"{found.payload_bytes:,} bytes")
        assert f"in {found.count} collective" in rows[reason]


def test_measured_stands_beside_the_formula_even_if_no_formula_expects_it():
    measured = {"dp: gradient bucket": (4.0, 3_215_872.0), "surprise": (1.0, 8.0)}
    rows = {row[0]: row for row in formula_table(TINY, Layout(dp=2), measured, **STEP).rows}
    assert rows["dp: gradient bucket"][1] == rows["dp: gradient bucket"][2]
    assert rows["surprise"][1:] == ["none", "8 bytes in 1 collective"]
    assert rows["dp: loss"][2] == "none"


def test_parameters_are_those_of_the_ranks():
    rows = {row[0]: row[1] for row in formula_table(TINY, Layout(pp=2), **STEP).rows}
    held = [
        sum(p.numel for p in costs.local_parameters(TINY, Layout(pp=2), rank)) for rank in (0, 1)
    ]
    total = costs.parameters(TINY).total
    assert rows["parameters"] == f"{min(held):,} to {max(held):,} of {total:,}"


def test_one_rank_talks_to_nobody():
    assert "talks to nobody" in repr(formula_table(TINY, Layout(), **STEP))
    assert choices_table(TINY, working_layouts(TINY, 4), **STEP).rows[0] == [
        "dp1",
        1,
        costs.parameters(TINY).total,
        0,
    ]
