"""The zoo in one figure: every place of the slider shows its schedule, every gap says who is waited
for, and the text says the same.

Wrong versions these catch: a frame that holds another schedule than it is named after, a gap that
is nobody's, several stages a rank that look like one, halves of a backward in one colour.
"""

import pytest

from picolab import costs
from picolab.monitoring.gantt_figure import gantt
from picolab.monitoring.schedule_figure import schedule_figure
from picolab.schedules import SCHEDULES, Timeline, make, simulate
from picolab.show.picture import TIME


@pytest.fixture(scope="module")
def zoo():
    return schedule_figure(first="zb-h1")


def bars_in(traces, kind_names):
    return [t for t in traces if t.type == "bar" and t.name in kind_names]


def test_every_frame_is_the_schedule_it_is_named_after(zoo):
    figure = zoo.figure
    (slider,) = figure.layout.sliders
    assert slider.steps[slider.active].args[0] == ("zb-h1",)
    assert [step.args[0][0] for step in slider.steps] == list(SCHEDULES)
    for frame in figure.frames:
        schedule = make(frame.name, 4, 8)
        share = schedule.stages // 4
        done = simulate(schedule)
        drawn = [t for t in frame.data if t.type == "bar" and t.showlegend is not False]
        halves = ["forward", "backward, inputs", "backward, weights"]
        names = halves if schedule.splits_backward else ["forward", "backward"]
        assert [t.name for t in drawn] == [*names, "waiting (bubble)"]
        for trace, kind in zip(drawn, schedule.kinds):
            spans = [s for s in done.spans if s.action.kind == kind]
            assert list(trace.base) == pytest.approx([s.start / share for s in spans])
            assert list(trace.y) == [s.rank for s in spans]
        said = " ".join(str(t.text) for t in frame.data)
        total = costs.bubble_of_total(4, 8, frame.name)
        assert f"bubble {100 * total:.1f} % of total" in said


def test_every_gap_has_a_reason(zoo):
    for frame in zoo.figure.frames:
        (gaps,) = bars_in(frame.data, {"waiting (bubble)"})
        done = simulate(make(frame.name, 4, 8))
        share = done.schedule.stages // 4
        assert sum(gaps.x) == pytest.approx(sum(done.idle) / share)
        assert all("waits for" in text or "nothing left" in text for text in gaps.customdata)


def test_waits_are_the_idle_time_and_name_the_right_rank():
    done = simulate(make("zb-v", 3, 6), forward=2, latency=1)
    for rank in range(3):
        mine = [wait for wait in done.waits() if wait.rank == rank]
        assert sum(wait.end - wait.start for wait in mine) == done.idle[rank]
        for wait in mine:
            if wait.action is not None:
                assert done.schedule.rank_of(wait.action.stage) == wait.source
    first = simulate(make("1f1b", 2, 2)).waits()
    assert [(w.rank, str(w.action), w.source) for w in first[:2]] == [
        (0, "B0 of stage 1", 1),
        (0, "B1 of stage 1", 1),
    ]
    assert (first[-1].rank, first[-1].action) == (1, None)


def test_its_text(zoo):
    lines = zoo.text.splitlines()
    assert lines[0] == "Bubble of the total, simulated: 11.1 % of ZB-H1, 5.9 % of ZB-V"
    assert "interleaved 1F1B    0.1579   0.1579    0.1875        5.5       112" in zoo.text
    assert "ZB-H1: who waits" in zoo.text and "for rank 1" in zoo.text
    costly = schedule_figure(("1f1b", "zb-v"), 3, 6, forward=2, hop=0.5).text
    assert "3 stages, 6" not in costly and "formula" in costly


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"schedules": ()}, "names of schedules, each once"),
        ({"schedules": ("1f1b", "1f1b")}, "names of schedules, each once"),
        ({"first": "zbv"}, "first is 'zbv', which is none of 1f1b, gpipe"),
        ({"ranks": 65}, "a Gantt of 65 ranks"),
        ({"micro_batches": 6}, "rounds of 4, which do not divide 6; take 4 or 8"),
        ({"schedules": ("zb-h",)}, "did you mean 'zb-h1'"),
        ({"hop": -1}, "latency costs -1"),
    ],
)
def test_choices_that_are_none(given, says):
    with pytest.raises(ValueError, match=says):
        schedule_figure(**given)


# -- the Gantt of such schedules ------------------------------------------------------------------


def test_b_and_w_apart_and_several_stages_a_rank():
    sim = simulate(make("zb-v", 2, 4))
    run = Timeline([s._replace(start=s.start + 9, end=s.end + 9) for s in sim.spans], name="zb-v")
    figure = gantt(sim, run).figure
    drawn = [t for t in figure.data if t.type == "bar"]
    assert [t.name for t in drawn[:3]] == ["forward", "backward, inputs", "backward, weights"]
    assert len({t.marker.color for t in drawn}) == 3
    assert drawn[2].marker.color == TIME["backward-weight"]
    for trace, kind in zip(drawn, "FBWFBW"):
        spans = [s for s in sim.spans if s.action.kind == kind]
        low = [s.action.stage >= 2 for s in spans]  # the second stage of each rank
        assert [w < 0.8 for w in trace.width] == low
        assert list(trace.customdata) == [f", stage {s.action.stage}" for s in spans]
    said = figure.layout.annotations[0].text
    assert "2 ranks, 4 stages" in said and "later stages lower" in said
    assert list(figure.layout.yaxis.ticktext) == ["rank 0", "rank 1"]
    text = repr(sim)
    assert "0F0" in text and "2F0 is of stage 2" in text
    # One stage a rank looks as it did: a number alone, one height.
    assert gantt(simulate(make("1f1b", 2, 4))).figure.data[0].customdata is None
