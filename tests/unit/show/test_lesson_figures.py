"""The lessons' figures: the ring and the rank grid.

Wrong versions these tests catch: a ring that sends the wrong chunk, one that adds in the second
half (contributions counted twice), one that passes on what arrived in the same step; groups along
the wrong axis.
"""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picolab.chapters.c01_4d_basics import (
    ring_all_reduce_frames,
    ring_attention_frames,
    ring_figure,
)
from picolab.chapters.c01_4d_basics.ring_figure import RingStep, simulate_ring
from picolab.monitoring.figures import schedule_slider
from picolab.show.picture import GROUPS, PLAY_MS
from picolab.show.rank_grid_figure import groups, rank_grid_figure
from picolab.specs import Layout


def check_ring(n, simulate):
    steps = simulate(n)
    assert len(steps) == 2 * (n - 1) + 1
    everyone = frozenset(range(n))
    for before, step in itertools.pairwise(steps):
        assert sorted(a for a, _, _ in step.sends) == sorted(everyone)  # each rank sends one chunk
        for a, b, chunk in step.sends:
            assert b == (a + 1) % n
            sent, had = before.chunks[a][chunk], before.chunks[b][chunk]
            if step.phase == "reduce-scatter":
                assert not sent & had  # nothing is added twice
                assert step.chunks[b][chunk] == sent | had
            else:
                assert sent == everyone  # only finished chunks go round
                assert step.chunks[b][chunk] == everyone
    half = steps[n - 1].chunks
    assert all([chunk == everyone for chunk in row].count(True) == 1 for row in half)
    assert all(chunk == everyone for row in steps[-1].chunks for chunk in row)


@pytest.mark.parametrize("n", range(2, ring_figure.MAX_RANKS + 1))
def test_the_ring_is_right(n):
    check_ring(n, simulate_ring)


def _wrong_chunk(n):
    chunks = [[frozenset({r}) for _ in range(n)] for r in range(n)]
    steps = [RingStep(0, "start", [], [row[:] for row in chunks])]
    for s in range(1, 2 * n - 1):
        sends = [(r, (r + 1) % n, r) for r in range(n)]  # always its own number
        for r, to, c in sends:
            chunks[to][c] = chunks[to][c] | chunks[r][c]
        phase = "reduce-scatter" if s < n else "all-gather"
        steps.append(RingStep(s, phase, sends, [row[:] for row in chunks]))
    return steps


def _same_step(n):
    chunks = [[frozenset({r}) for _ in range(n)] for r in range(n)]
    steps = [RingStep(0, "start", [], [row[:] for row in chunks])]
    for s in range(1, 2 * n - 1):
        sends = [(r, (r + 1) % n, 0) for r in range(n)]  # one chunk runs round within a step
        for r, to, c in sends:
            chunks[to][c] = chunks[to][c] | chunks[r][c]
        phase = "reduce-scatter" if s < n else "all-gather"
        steps.append(RingStep(s, phase, sends, [row[:] for row in chunks]))
    return steps


@pytest.mark.parametrize("mutant", [_wrong_chunk, _same_step])
def test_a_wrong_ring_is_noticed(mutant):
    with pytest.raises(AssertionError):
        check_ring(4, mutant)


def test_the_ring_figure_needs_no_kernel_and_says_it_is_simulated():
    shown = ring_all_reduce_frames(4)
    figure = shown.figure
    assert [frame.name for frame in figure.frames] == [str(s) for s in range(7)]
    assert [step.label for step in figure.layout.sliders[0].steps] == [str(s) for s in range(7)]
    assert all("simulated" in frame.layout.title.text for frame in figure.frames)
    assert "simulated" in repr(shown) and "16 of 16" in repr(shown)
    assert len(figure.to_json()) < 40_000


@pytest.mark.parametrize("n", [2, 4, 7])
def test_a_cell_of_the_ring_shows_whose_parts_it_holds(n):
    """By place and by colour, in every step; as many as its label says; and what arrived just now
    is marked, without colour."""
    figure = ring_all_reduce_frames(n).figure
    assert len(figure.data[0].x) == n * (n + 1) + 1  # edges
    for step, frame in zip(simulate_ring(n), figure.frames, strict=True):
        cells, _, labels = frame.data
        kept = figure.data[2]  # where labels stand, in all steps
        places = [(round(y - 0.4), round(x)) for x, y in zip(kept.x, kept.y)]
        said = dict(zip(places, labels.text, strict=True))
        for rank, row in enumerate(step.chunks):
            drawn = cells.z[2 * rank]
            for c, chunk in enumerate(row):
                parts = drawn[c * (n + 1) : c * (n + 1) + n]
                assert {k for k, part in enumerate(parts) if part > 1} == chunk
                assert all(parts[k] == 2 + k % len(GROUPS) for k in chunk)
                arrived = (rank, c) in {(to, i) for _, to, i in step.sends}
                assert said[rank, c] == f"{len(chunk)}/{n}" + " ●" * arrived


@pytest.mark.parametrize("n", [1, 0, -2, 17, 2.5, True, "4"])
def test_a_ring_that_cannot_be_drawn_is_refused(n):
    with pytest.raises(ValueError, match="2 to 16 ranks"):
        ring_all_reduce_frames(n)


sizes = st.integers(1, 4)


@given(dp=sizes, tp=sizes, pp=sizes, cp=st.integers(1, 2))
def test_groups_cut_the_grid_along_one_axis(dp, tp, pp, cp):
    layout = Layout(dp=dp, tp=tp, pp=pp, cp=cp)
    for axis, size in layout.axes.items():
        members = groups(layout, axis)
        assert sorted(rank for group in members for rank in group) == list(range(layout.world))
        assert {len(group) for group in members} == {size}
        for group in members:
            places = [layout.coordinates(rank) for rank in group]
            assert [place[axis] for place in places] == list(range(size))
            others = {tuple(v for a, v in p.items() if a != axis) for p in places}
            assert len(others) == 1


def test_the_grid_of_a_small_layout():
    shown = rank_grid_figure(Layout(dp=2, tp=2))
    assert "(0 2)  (1 3)" in repr(shown) and "(0 1)  (2 3)" in repr(shown)
    assert [frame.name for frame in shown.figure.frames] == ["dp", "tp"]
    trace = shown.figure.data[0]
    assert list(zip(trace.x, trace.y)) == [(0, 0), (1, 0), (0, 1), (1, 1)]
    colours = shown.figure.frames[0].data[0].marker.color  # dp groups are the columns
    assert colours[0] == colours[2] != colours[1] == colours[3]


def test_a_grid_that_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="512 ranks"):
        rank_grid_figure(Layout(dp=64, tp=8))
    assert (
        rank_grid_figure(Layout()).figure.layout.title.text
        == "dp1: one rank, which talks to nobody"
    )


LESSONS = pytest.mark.parametrize(
    "shown",
    [
        ring_all_reduce_frames(4),
        rank_grid_figure(Layout.parse("dp2tp2")),
        ring_attention_frames(4),
        schedule_slider(),
    ],
    ids=["ring", "grid", "attention", "schedule"],
)


@LESSONS
def test_every_figure_with_frames_can_be_played(shown):
    """All frames in their order, drawn anew each; and stopped. Without a kernel."""
    (menu,) = shown.figure.layout.updatemenus
    play, pause = menu.buttons
    assert play.label == "▶ Play" and pause.label == "❚❚ Pause"
    assert play.method == pause.method == "animate"
    names, how = play.args
    assert names is None  # all of them
    assert how["fromcurrent"] and how["frame"] == {"duration": PLAY_MS, "redraw": True}
    stopped, how = pause.args
    assert list(stopped) == [None] and how["mode"] == "immediate"
    assert ' Play"' in shown.to_html(include_plotlyjs=False)


def test_a_figure_without_frames_has_no_button():
    assert len(rank_grid_figure(Layout()).figure.layout.updatemenus) == 0


@LESSONS
def test_no_rank_is_called_rank_rank(shown):
    """Where an axis is labelled "rank 1", a hover text takes the label."""
    axes = {name: shown.figure.layout[name] for name in shown.figure.layout if "axis" in name}
    for trace in shown.figure.data:
        for letter in "xy":
            axis = axes.get(f"{letter}axis{(getattr(trace, f'{letter}axis') or letter)[1:]}")
            if axis is not None and str((axis.ticktext or [""])[0]).startswith("rank"):
                assert f"rank %{{{letter}}}" not in str(trace.hovertemplate)


@LESSONS
def test_every_frame_says_how_high_the_figure_is(shown):
    """JupyterLab's view forgets it otherwise: at the first move of the slider it is gone."""
    figure = shown.figure
    assert {frame.layout.height for frame in figure.frames} == {figure.layout.height}
    assert figure.layout.height > 100
    for step in (step for slider in figure.layout.sliders for step in slider.steps):
        if step.method == "update":  # it sets the layout itself, without a frame
            assert step.args[1]["height"] == figure.layout.height
