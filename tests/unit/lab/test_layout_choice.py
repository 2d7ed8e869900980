"""What a panel may offer, and the formulas beside it.

Wrong versions these tests catch: offering a layout that `Layout.check` refuses or that is too many
ranks, leaving out one that works, a table whose numbers are not those of `costs`.
"""

import itertools

import pytest

from picolab import costs
from picolab.lab.layout_choice import choices_table, formula_table, working_layouts
from picolab.specs import Layout, ModelConfig

TINY = ModelConfig.preset("tiny")
STEP = {"micro_batch": 4, "accumulate": 2}


@pytest.mark.parametrize("max_world", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("config", [TINY, TINY.replace(heads=6, kv_heads=3, hidden=96)])
def test_exactly_what_works_is_offered(config, max_world):
    offered = {(dp, tp) for dp, tps in working_layouts(config, max_world).items() for tp in tps}
    for dp, tp in itertools.product(range(1, max_world + 1), repeat=2):
        try:
            Layout(dp=dp, tp=tp).check(config)
            works = dp * tp <= max_world
        except ValueError:
            works = False
        assert ((dp, tp) in offered) == works


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
        assert rows[reason].endswith(f"in {found.count}")


def test_measured_stands_beside_the_formula_even_if_no_formula_expects_it():
    measured = {"dp: gradient bucket": (4.0, 3_215_872.0), "surprise": (1.0, 8.0)}
    rows = {row[0]: row for row in formula_table(TINY, Layout(dp=2), measured, **STEP).rows}
    assert rows["dp: gradient bucket"][1] == rows["dp: gradient bucket"][2]
    assert rows["surprise"][1:] == ["none", "8 bytes in 1"]
    assert rows["dp: loss"][2] == "none"


def test_one_rank_talks_to_nobody():
    assert "talks to nobody" in repr(formula_table(TINY, Layout(), **STEP))
    assert choices_table(TINY, 4, **STEP).rows[0] == ["dp1", 1, costs.parameters(TINY).total, 0]
