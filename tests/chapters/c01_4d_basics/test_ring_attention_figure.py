"""The figure of ring attention: what it draws is what the mask, and the package's own plan, say.

Wrong versions these tests catch (kept below as mutants): keys and values that go round to the left,
a diagonal block counted whole, a zig-zag whose second chunk is not the mirrored one, and a step
that lasts as long as the mean block instead of the slowest.
"""

import itertools
from fractions import Fraction

import pytest

from picolab.chapters.c01_4d_basics import ring_attention_figure as module
from picolab.chapters.c01_4d_basics.ring_attention_figure import (
    MAX_RANKS,
    SPLITS,
    AttentionStep,
    chunks_held,
    computed,
    ring_attention_frames,
    simulate_ring_attention,
)
from picolab.show.picture import GRID, TEXT, contrast


def masked_part(rank, owner, n, split, held=chunks_held):
    """By brute force: the share of a block that causality leaves; a token on the diagonal half."""
    size = 4 if split == "contiguous" else 2
    rows, columns = (
        [chunk * size + i for chunk in held(who, n, split) for i in range(size)]
        for who in (rank, owner)
    )
    pairs = [
        Fraction(1) if key < query else Fraction(1, 2) if key == query else Fraction(0)
        for query, key in itertools.product(rows, columns)
    ]
    return sum(pairs) / len(pairs)


def check(n, split, simulate, part=computed):
    steps = simulate(n, split)
    assert [step.step for step in steps] == list(range(1, n + 1))
    met, elapsed = set(), 0
    for step in steps:
        for rank, row in enumerate(step.states):
            owner = (rank - step.step + 1) % n  # from the left: the neighbour before had it before
            share = masked_part(rank, owner, n, split)
            assert row[owner] == ("now" if share else "skipped")
            assert step.now[rank] == part(rank, owner, split) == share
            met.add((rank, owner))
            for other, state in enumerate(row):
                assert (state == "unseen") == ((rank, other) not in met)
                if other != owner and (rank, other) in met:
                    assert state == ("done" if part(rank, other, split) else "skipped")
        elapsed += max(step.now)
        assert step.elapsed == elapsed
    totals = [sum(step.now[rank] for step in steps) for rank in range(n)]
    assert totals == steps[-1].work and sum(totals) == n * n / 2
    return steps[-1]


@pytest.mark.parametrize("n", range(2, MAX_RANKS + 1))
def test_the_figure_shows_what_the_mask_leaves(n):
    contiguous = check(n, "contiguous", simulate_ring_attention)
    assert contiguous.work == [rank + 0.5 for rank in range(n)]
    assert contiguous.elapsed == n - 0.5
    zigzag = check(n, "zigzag", simulate_ring_attention)
    assert zigzag.work == [n / 2] * n and zigzag.elapsed == n / 2


@pytest.mark.parametrize("n", [2, 4, 8])
@pytest.mark.parametrize("split", SPLITS)
def test_the_figure_is_the_package(n, split):
    split_rules = pytest.importorskip("picolab.parallel.sequence_split")
    end = simulate_ring_attention(n, split)[-1]
    size = 16  # tokens of a rank
    for rank in range(n):
        assert chunks_held(rank, n, split) == split_rules.chunks(rank, n, split)
        assert end.work[rank] * size**2 == split_rules.causal_work(rank, n, n * size, split)
        for owner in range(n):
            block = split_rules.visible(rank, owner, size, split)
            assert computed(rank, owner, split) * size**2 == (block.work if block else 0)


def _to_the_left(n, split):
    steps = simulate_ring_attention(n, split)
    return [
        step._replace(states=[row[rank:] + row[:rank] for rank, row in enumerate(step.states)])
        for step in steps
    ]


def _mean_step(n, split):
    steps, elapsed = [], 0.0
    for step in simulate_ring_attention(n, split):
        elapsed += sum(step.now) / n
        steps.append(AttentionStep(step.step, step.states, step.work, step.now, elapsed))
    return steps


@pytest.mark.parametrize("mutant", [_to_the_left, _mean_step])
def test_a_wrong_simulation_is_noticed(mutant):
    with pytest.raises(AssertionError):
        check(4, "contiguous", mutant)


def test_a_whole_diagonal_is_noticed(monkeypatch):
    monkeypatch.setattr(
        module, "computed", lambda r, o, split: 1.0 if r == o else computed(r, o, split)
    )
    for split in SPLITS:
        with pytest.raises(AssertionError):
            check(4, split, simulate_ring_attention)


def test_a_zigzag_that_is_not_mirrored_is_noticed():
    def not_mirrored(rank, n, split):
        return rank, n + rank

    work = [
        sum(masked_part(rank, owner, 4, "zigzag", not_mirrored) for owner in range(4))
        for rank in range(4)
    ]
    assert len(set(work)) == 4, "pairs like (0, 4), (1, 5) leave the imbalance"


def test_the_frames_and_the_text():
    shown = ring_attention_frames(4)
    figure = shown.figure
    assert [frame.name for frame in figure.frames] == ["1", "2", "3", "4"]
    assert [step.label for step in figure.layout.sliders[0].steps] == ["1", "2", "3", "4"]
    assert all("simulated" in frame.layout.title.subtitle.text for frame in figure.frames)
    last = figure.frames[-1]
    assert last.layout.title.text == (
        "The busiest rank has 43.8 % of the work contiguous, 25.0 % zig-zag"
    )
    assert "contiguous 0.5 to 2.5, zig-zag 1.5" in figure.frames[2].layout.title.text
    for frame in figure.frames:  # each frame changes every trace
        assert [t.type for t in frame.data] == [t.type for t in figure.data]
    bars = {(t.xaxis, t.name): list(change.x or ()) for t, change in zip(figure.data, last.data)}
    assert bars["x2", "waiting"] == [3.0, 2.0, 1.0, 0.0]
    assert bars["x4", "waiting"] == [0.0] * 4
    assert "simulated" in repr(shown) and "– – – 1" in repr(shown)
    assert "43.8 % of the work contiguous and 25.0 % zig-zag" in repr(shown)
    assert len(ring_attention_frames(MAX_RANKS).figure.to_json()) < 80_000


def check_digits(figure):
    """Each has 4.5 to its cell; what stands on no colour is in the page's own (TEXT)."""
    for data in [figure.data, *(frame.data for frame in figure.frames)]:
        for cells, labels in ((data[0], data[1]), (data[6], data[7])):
            states = [state for row in cells.customdata for state in row]
            for state, ink, text in zip(states, labels.textfont.color, labels.text, strict=True):
                ground = module._FILL[state]
                assert contrast(ink, ground) >= 4.5 if ground != GRID else ink == TEXT
                assert (text == "–") == (state == "skipped"), "masked is told without colour"


def test_digits_can_be_read_in_every_cell(monkeypatch):
    check_digits(ring_attention_frames(4).figure)
    monkeypatch.setattr(module, "ink", lambda ground: "#ffffff")
    with pytest.raises(AssertionError):  # white on green has 3.2
        check_digits(ring_attention_frames(4).figure)


@pytest.mark.parametrize("n", [1, 0, -2, 9, 2.5, True, "4"])
def test_a_ring_that_cannot_be_drawn_is_refused(n):
    with pytest.raises(ValueError, match="2 to 8 ranks"):
        ring_attention_frames(n)
