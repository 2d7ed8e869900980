"""Bars of what the formulas say and what a run measured.

Wrong versions these tests catch: a bar that is not as long as its bytes, formula and measured on
scales of their own, a difference that is called none, what only one side has left out, messages
called collectives.
"""

import re

import pytest

from picolab import costs
from picolab.lab.layout_choice import formula_traffic
from picolab.lab.traffic_bars import traffic_bars
from picolab.specs import Layout, ModelConfig

TINY = ModelConfig.preset("tiny")
STEP = {"micro_batch": 4, "accumulate": 2}


def bars(page):
    """(name, width in percent), in their order."""
    found = re.findall(r'class="bar (\w+)" style="width:([\d.e-]+)%', page)
    return [(name, float(width)) for name, width in found]


@pytest.mark.parametrize("layout", ["dp2tp2", "pp2cp2", "dp4"])
def test_a_bar_is_as_long_as_its_bytes(layout):
    layout = Layout.parse(layout)
    rows = formula_traffic(TINY, layout, **STEP)
    most = max(row.payload_bytes for row in rows.values())
    drawn = bars(traffic_bars(TINY, layout, **STEP))
    assert [name for name, _ in drawn] == ["formula"] * len(rows)
    expected = [100 * row.payload_bytes / most for row in rows.values()]
    assert [width for _, width in drawn] == pytest.approx(expected, rel=1e-5)


def test_measured_stands_under_the_formula_on_the_same_scale():
    layout = Layout(dp=2)
    rows = {r: row[:2] for r, row in formula_traffic(TINY, layout, **STEP).items()}
    page = traffic_bars(TINY, layout, rows, **STEP)
    assert page.count("the same") == len(rows) and "not the" not in page
    twice = {r: (count, 2 * size) for r, (count, size) in rows.items()}
    page = traffic_bars(TINY, layout, twice, **STEP)
    assert page.count("not the formula's") == len(rows)
    assert bars(page)[:2] == [("formula", 50.0), ("measured", 100.0)]
    once = {**rows, "dp: gradient bucket": (1 + rows["dp: gradient bucket"][0], 3_215_872.0)}
    assert "not the formula's" in traffic_bars(TINY, layout, once, **STEP)


def test_what_only_one_side_has_is_there():
    page = traffic_bars(TINY, Layout(dp=2), {"surprise": (1.0, 8.0)}, **STEP)
    assert "surprise" in page and "8 bytes in 1 collective" in page
    assert page.count("none; <b>not the formula's") == 3 and "the same" not in page


def test_counts_say_what_they_count():
    page = traffic_bars(TINY, Layout(pp=2), **STEP)
    assert "in 2 messages" in page and "in 1 collective" in page
    assert "in 2 collectives" not in page
    assert f"of {costs.parameters(TINY).total:,}" in page and "pipeline bubble" in page
    assert "talks to nobody" in traffic_bars(TINY, Layout(), **STEP)
