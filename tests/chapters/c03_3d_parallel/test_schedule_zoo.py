"""The zoo's figure and its sliders.

Wrong versions these catch: a schedule on the slider that cannot have so many micro-batches, a
slider that changes nothing, an input that is refused without a sentence, a headless widget.
"""

import pytest

import picolab as pico
from picolab.chapters.c03_3d_parallel import schedule_zoo as module
from picolab.chapters.c03_3d_parallel.schedule_zoo import CHOICES, zoo


def test_only_schedules_that_work_are_drawn():
    shown = zoo(ranks=4, micro_batches=6)
    assert [name for name, why in shown.schedules.items() if why] == ["interleaved", "dualpipe-v"]
    drawn = {step.label for step in shown.figure.figure.layout.sliders[0].steps}
    assert drawn == {"GPipe", "1F1B", "ZB-H1", "ZB-V"}
    assert "take 4 or 8" in shown.missing() and "needs 8 micro-batches" in shown.missing()
    assert "All six" in zoo(ranks=4, micro_batches=8).missing()


def test_the_numbers_are_the_formulas():
    text = repr(zoo(ranks=4, micro_batches=8))
    assert f"{100 * pico.costs.bubble_of_total(4, 8):.1f} %" in text
    assert f"{float(pico.costs.bubble_of_total(4, 8, 'zb-h1')):.4g}"[:5] in text


def test_a_choice_changes_the_figure():
    shown = zoo()
    before = repr(shown.figure)
    assert repr(shown.choose(hop=0.5)) != before
    assert shown.asked["hop"] == 0.5 and shown.asked["ranks"] == 4


def test_headless_it_is_the_figure_alone():
    bundle = zoo()._repr_mimebundle_()
    assert "application/vnd.plotly.v1+json" in bundle
    assert "application/vnd.jupyter.widget-view+json" not in bundle


def test_with_a_front_end_every_argument_has_a_slider(monkeypatch):
    monkeypatch.setattr(module, "has_front_end", lambda: True)
    shown = zoo(ranks=3, micro_batches=4)
    bundle = shown._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    sliders = shown._box.children[0].children
    assert len(sliders) == len(CHOICES)
    assert "take 3 or 6" in shown._said.value
    place = shown._place.children
    sliders[1].value = 6
    assert shown.asked["micro_batches"] == 6 and shown._place.children != place
    assert "All six" in shown._said.value


@pytest.mark.parametrize(
    "asked", [{"ranks": 1}, {"ranks": 2.5}, {"hop": -1}, {"forward": True}, {"micro_batches": 99}]
)
def test_what_cannot_be_is_refused(asked):
    with pytest.raises(ValueError, match="here it is from"):
        zoo(**asked)


def test_an_unknown_argument_names_the_known():
    with pytest.raises(ValueError, match="'stages' is none of ranks"):
        zoo(stages=4)
