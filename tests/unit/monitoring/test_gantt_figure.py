"""The Gantt shows what the timeline says, says what it is, and reads without a picture.

Wrong versions these catch: a measured chart that calls itself simulated (or does not say), one
trace an operation, stage 0 at the bottom, the two charts on different time axes.
"""

import json

import pytest

from picolab import costs
from picolab.monitoring.gantt_figure import gantt
from picolab.schedules import Schedule, Span, Timeline, make, simulate


def simulated(name="1f1b", p=4, m=8, **given):
    return simulate(make(name, p, m), **given)


def measured(shift=50.0):
    """A run a little slower than the simulation, on a clock of its own."""
    spans = simulated(forward=1.1).spans
    return Timeline([Span(r, a, s + shift, e + shift) for r, a, s, e in spans], name="1f1b")


def bars(figure):
    return [trace for trace in figure.data if trace.type == "bar"]


def test_a_trace_a_kind_with_every_action_at_its_time():
    done = simulated()
    figure = gantt(done, unit="forwards").figure
    assert [trace.name for trace in bars(figure)] == ["forward", "backward"]
    for trace, kind in zip(bars(figure), "FB"):
        drawn = set(zip(trace.y, trace.text, trace.base, trace.x))
        spans = [span for span in done.spans if span.action.kind == kind]
        assert drawn == {(r, str(a.micro_batch), s, e - s) for r, a, s, e in spans}
    low, high = figure.layout.yaxis.range
    assert low > high and figure.layout.yaxis.ticktext[0] == "stage 0"
    assert "forwards" in figure.layout.xaxis.title.text


def test_what_is_held_is_drawn_beneath():
    figure = gantt(simulated()).figure
    (held,) = [t for t in figure.data if t.type == "scatter" and t.mode == "lines"]
    assert held.line.shape == "hv"
    for rank, most in enumerate((4, 3, 2, 1)):
        lane = [
            (y, said[1]) for y, said in zip(held.y, held.customdata) if said and said[0] == rank
        ]
        assert max(count for _, count in lane) == most
        # In a lane of its own, on one scale: the fullest stage's lane is full.
        assert all(y == pytest.approx(rank + 0.44 - 0.88 * count / 4) for y, count in lane)
    (peaks,) = [t for t in figure.data if t.type == "scatter" and t.mode == "text"]
    assert [text.strip() for text in peaks.text] == [f"holds {n}" for n in (4, 3, 2, 1)]
    bars_at, held_at = figure.layout.yaxis.domain, figure.layout.yaxis2.domain
    assert held_at[1] < bars_at[0]


def test_simulated_above_measured_on_one_axis():
    sim, run = simulated(), measured()
    figure = gantt(sim, run, formula=costs.bubble_of_total(4, 8))
    assert figure.figure.layout.title.text.replace("<br>", " ") == (
        f"Bubble of the total: 27.3 % simulated, {100 * run.bubble_of_total:.1f} % measured, "
        "27.3 % by formula"
    )
    notes = [note.text for note in figure.figure.layout.annotations]
    lines = [
        line for text in [figure.figure.layout.title.text, *notes] for line in text.split("<br>")
    ]
    assert max(map(len, lines)) <= 66 + len("<b></b>")  # a page of 1,000 pixels cuts the rest
    assert "simulated" in notes[0] and "measured" in notes[1] and "simulated" not in notes[1]
    drawn = bars(figure.figure)
    assert [trace.yaxis for trace in drawn] == ["y", "y", "y3", "y3"]
    assert {trace.xaxis for trace in drawn} == {None}  # the one and only
    assert sum(trace.showlegend for trace in drawn) == 2
    assert min(drawn[2].base) == 0, "measured times count from the first start"
    assert figure.figure.layout.xaxis.range[1] >= run.makespan


def test_measured_spans_alone_never_say_simulated():
    figure = gantt(measured().spans)
    assert "simulated" not in repr(figure) and "measured" in repr(figure)
    assert "simulated" not in figure.figure.to_json()


def test_it_reads_without_a_picture():
    text = repr(gantt(simulated(), measured(), formula=3 / 11))
    assert text.splitlines()[0].startswith("Bubble of the total: 27.3 % simulated")
    assert "rank 0 |F0" in text and "(measured)" in text
    bundle = gantt(simulated())._repr_mimebundle_()
    assert bundle["text/plain"].count("|") == 8
    json.dumps(bundle["application/vnd.plotly.v1+json"])  # Fractions have become numbers


def test_a_split_backward_and_links_are_kinds_of_their_own():
    split = Schedule.parse(
        "split: 2 stages, 2 micro-batches\nrank 0: F0 F1 B0 B1 W0 W1\nrank 1: F0 B0 F1 W0 B1 W1"
    )
    drawn = bars(gantt(simulate(split, latency=1)).figure)
    assert [trace.name for trace in drawn] == [
        "forward",
        "backward, inputs",
        "backward, weights",
        "on its way",
    ]
    assert len({trace.marker.color for trace in drawn}) == 4
    assert len(drawn[3].x) == 4 and set(drawn[3].x) == {1}


def test_a_rank_with_two_stages_is_called_a_rank():
    looped = Schedule.parse(
        "looped: 2 stages, 1 micro-batch, on ranks 0 0\nrank 0: 0F0 1F0 1B0 0B0"
    )
    assert gantt(simulate(looped)).figure.layout.yaxis.ticktext == ("rank 0",)


def test_numbers_are_shown_for_a_whole_row_or_not_at_all():
    wide, narrow = gantt(simulated()).figure, gantt(simulated(p=4, m=64)).figure
    assert [trace.textposition for trace in bars(wide)] == ["inside", "inside"]
    assert [trace.textposition for trace in bars(narrow)] == ["none", "none"]


def test_512_operations_stay_small():
    figure = gantt(simulated(p=8, m=32)).figure
    assert len(figure.to_json()) < 20_000 and len(figure.data) == 4


def test_a_figure_that_cannot_be_read():
    with pytest.raises(ValueError, match="cannot be read"):
        gantt(simulated(p=65, m=1))
