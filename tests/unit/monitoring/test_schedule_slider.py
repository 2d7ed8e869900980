"""Every place of the two sliders shows the case its labels name; the figure says it is simulated.

Wrong versions these catch: frames that hold another case than they are named after, a slider of
stages that shows another's traces, an opening that is not where the sliders stand, more frames
than a reader can use.
"""

import pytest

from picolab import costs
from picolab.monitoring.schedule_slider import MAX_FRAMES, schedule_slider
from picolab.schedules import make, simulate

STAGES, MICRO_BATCHES = (2, 4), (1, 3, 8)


@pytest.fixture(scope="module")
def slider():
    return schedule_slider(STAGES, MICRO_BATCHES, first=(4, 8))


def shown(traces, chosen):
    """The bars seen of a frame's traces, by schedule."""
    seen = [trace for trace, visible in zip(traces, chosen) if visible]
    half = len(seen) // 2
    return [[t for t in part if t.type == "bar"] for part in (seen[:half], seen[half:])]


def test_each_place_of_the_two_sliders_shows_its_case(slider):
    by_stages, by_micro_batches = slider.figure.layout.sliders
    frames = {frame.name: frame for frame in slider.figure.frames}
    assert [step.label for step in by_micro_batches.steps] == [str(m) for m in MICRO_BATCHES]
    for p, step in zip(STAGES, by_stages.steps):
        visible = step.args[0]["visible"]
        assert len(visible) == len(slider.figure.data)
        for m, turn in zip(MICRO_BATCHES, by_micro_batches.steps):
            assert turn.method == "animate" and turn.args[1]["frame"]["redraw"]
            frame = frames[turn.args[0][0]]
            for name, drawn in zip(("gpipe", "1f1b"), shown(frame.data, visible)):
                spans = simulate(make(name, p, m)).spans
                for trace, kind in zip(drawn, "FB", strict=True):
                    assert list(zip(trace.y, trace.base, trace.x)) == [
                        (s.rank, s.start, s.end - s.start) for s in spans if s.action.kind == kind
                    ]
            said = [t.text[0] for t, v in zip(frame.data, visible) if v and "bubble" in str(t.text)]
            assert all(f"{100 * costs.bubble_of_total(p, m):.1f} % of total" in s for s in said)
            assert len(said) == 2


def test_it_opens_where_its_sliders_stand(slider):
    figure = slider.figure
    by_stages, by_micro_batches = figure.layout.sliders
    assert by_stages.steps[by_stages.active].label == "4"
    assert by_micro_batches.steps[by_micro_batches.active].label == "8"
    assert [t.visible for t in figure.data] == by_stages.steps[1].args[0]["visible"]
    frame = figure.frames[2]
    for trace, later in zip(figure.data, frame.data, strict=True):
        assert trace.type == later.type and trace.x == later.x and trace.text == later.text


def test_it_says_that_it_is_simulated_and_reads_as_text(slider):
    assert "simulated" in slider.figure.layout.title.text
    text = repr(slider)
    assert "gpipe" in text and "1f1b" in text and "rank 3 |" in text
    assert len([line for line in text.splitlines() if line.startswith(("gpipe  ", "1f1b  "))]) == 12
    alone = schedule_slider((2,), (2,), ("gpipe",), first=(2, 2))
    assert "1F1B" not in alone.figure.layout.title.text


def test_the_default_is_small_enough():
    figure = schedule_slider().figure
    assert len(figure.frames) <= MAX_FRAMES and len(figure.to_json()) < 250_000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (((), (1,)), "needs stages"),
        (((2,), tuple(range(1, MAX_FRAMES + 2))), f"at most {MAX_FRAMES}"),
        (((2,), (1,)), "first is"),
        (((4,), (4,), ("gpipe", "1f1b", "gpipe")), "one or two schedules"),
        (((4,), (4,), ("dance",)), "schedules are"),
    ],
)
def test_sliders_that_cannot_be_drawn(arguments, says):
    with pytest.raises(ValueError, match=says):
        schedule_slider(*arguments)
