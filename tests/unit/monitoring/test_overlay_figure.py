"""Runs over one another.

Wrong versions these tests catch: the second run's line drawn with the first one's numbers, two runs
of one layout under one name, a distance of only the last step, steps that one run has not.
"""

import pytest

from picolab.monitoring import Event
from picolab.monitoring.overlay_figure import findings, names, overlay_figure
from picolab.monitoring.run_state import RunState


def state(layout, losses):
    told = [
        Event("values", 0, 0.0, {"step": step, "loss": loss, "tokens_per_s": 100.0 + step})
        for step, loss in losses.items()
    ]
    made = RunState([*told, Event("state", -1, 0.0, {"state": "done"})])
    made.layout = layout
    return made


A = {0: 6.0, 1: 5.0, 2: 4.0}
B = {0: 6.0, 1: 5.25, 2: 4.125, 3: 3.0}


def test_each_line_is_its_run():
    figure = overlay_figure([state("dp2", A), state("tp2", B)]).figure
    lines = {(trace.legendgroup, trace.yaxis): dict(zip(trace.x, trace.y)) for trace in figure.data}
    assert lines["dp2", "y"] == A and lines["tp2", "y"] == B
    assert lines["tp2", "y2"] == {step: 100.0 + step for step in B}
    assert figure.data[2].name == "tp2: 102 tokens/s"
    assert [trace.showlegend for trace in figure.data] == [True, False, True, False]
    one, other = figure.data[0].line, figure.data[2].line
    assert one.color != other.color and one.dash != other.dash  # also told apart without colour


def test_the_title_says_how_far_apart_they_are():
    loss, speed = findings([state("dp2", A), state("tp2", B)])
    assert loss == "losses 2.5e-01 apart at most"
    assert speed == "tokens/s (median): dp2 102, tp2 102"
    assert findings([state("dp2", A), state("dp2", {})])[0] == "losses: no step in common"


def test_the_text_has_the_same_numbers():
    text = repr(overlay_figure([state("dp2", A), state("tp2", B)]))
    assert "2.5e-01 apart" in text and "5.25" in text and "tp2" in text
    assert text.splitlines()[-1].split() == ["3", "3.00"]  # a step that only one has


@pytest.mark.parametrize(
    "layouts, labels",
    [(["dp2", "dp2", "dp2"], ["dp2", "dp2 (2)", "dp2 (3)"]), (["", "pp2"], ["run", "pp2"])],
)
def test_runs_of_one_layout_are_told_apart(layouts, labels):
    assert names([state(layout, A) for layout in layouts]) == labels
