"""The chapter's figures, tables and observers: each says what is so.

Wrong versions these catch: a plan's budget drawn at its peak, a share of what is idle turned round,
a table that forgets what sp cuts, a loss that is not cut, ranks that collect at the same step
although they were told not to.
"""

import pytest

import picolab as pico
from picolab import costs
from picolab.chapters import c05_memory as chapter
from picolab.chapters.c05_memory import at_scale
from picolab.memory import scheduler
from picolab.show.block_letters import LETTERS

FRONTIER = [
    [8_000_000, 0.020, ["recompute", "recompute"]],
    [12_000_000, 0.004, ["offload", "selective"]],
    [20_000_000, 0.0, ["keep", "keep"]],
]
SMALL = dict(
    layers=1, seq=16, hidden=16, heads=2, kv_heads=2, ffn=24, micro_batch=2, data="random",
    progress=False,
)  # fmt: skip


def test_each_choice_has_a_letter():
    assert tuple(LETTERS) == scheduler.CHOICES and len({*LETTERS.values()}) == len(LETTERS)


def test_bytes_against_time():
    shown = chapter.frontier_figure(FRONTIER, [(12_000_000, 0.006)], [(14_000_000, 11_500_000)])
    assert "From 20 MB down to 8 MB (40 %) for 20.0 ms" in repr(shown)
    assert " RR" in repr(shown) and " OS" in repr(shown)
    best, others, run = shown.figure.data
    assert list(best.x)[:3] == [8, 12, 20] and list(best.y)[:3] == [20, 4, 0]
    assert (list(others.x), list(others.y)) == ([12], [6])
    assert list(run.x) == [11.5, 14] and list(run.y) == [4, 4]
    with pytest.raises(ValueError, match="no plan to draw"):
        chapter.frontier_figure([])


def test_what_pools_hold():
    shown = chapter.held_figure({"a": [4, 8], "b": [4, 4]}, [3, 2])
    assert "a: 75 % idle; b: 50 % idle" in repr(shown)
    assert [trace.name for trace in shown.figure.data] == ["asked for in the step", "a", "b"]
    for wrong in ({}, {"a": [1]}):
        with pytest.raises(ValueError, match="every pool has its bytes"):
            chapter.held_figure(wrong, [3, 2])


def test_the_published_table_is_the_formulas_in_print():
    """arXiv 2205.05198, table 2; but for statistics, a thousandth."""
    rows = {row[0]: row[1:] for row in chapter.published_table().rows}
    for name, (a, h, _) in at_scale.SHAPES.items():
        s, t, scores = 2048, 8, 5 * a * 2048 / h
        tp = 10 + 24 / t + scores / t
        mb, sp, flash, proposal, selective, full = rows[name]
        assert mb * 1e6 == pytest.approx(s * h * tp, rel=2e-3)
        assert sp == pytest.approx(100 * (34 + scores) / t / tp, rel=2e-3)
        assert flash == pytest.approx(100 * (10 + 24 / t) / tp, rel=5e-3)
        assert proposal == pytest.approx(100 * 34 / t / tp, rel=5e-3)
        assert selective < proposal
        assert full == pytest.approx(100 * 2 / tp, rel=2e-3)


def test_what_fits_on_one_card():
    model = at_scale.one_card()
    assert costs.parameters(model).total == 1_235_814_400  # Llama 3.2 1B
    fits = [row[-1] for row in chapter.one_card_table().rows]
    assert fits == ["does not"] * 3 + ["fits"] * 3
    whole, cut = at_scale.parts("full"), at_scale.parts("full", pieces=8)
    assert cut[2] == pytest.approx(whole[2] / 8) and cut[:2] == whole[:2]
    assert at_scale.parts(cards=2)[0] == whole[0] / 2


def held_up(run) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for event in run.events:
        if event.kind == "collected":
            found.setdefault(event.rank, []).append(event.data["step"])
    return found


def test_ranks_collect_apart_from_each_other_as_asked():
    observers = [chapter.litter(50), chapter.collecting(every=4, apart=1)]
    run = pico.train("tiny", "dp2", steps=8, observers=observers, **SMALL)
    assert held_up(run) == {0: [0, 4], 1: [1, 5]}
    observers = [chapter.litter(50), chapter.collecting(every=4, apart=0)]
    together = pico.train("tiny", "dp2", steps=8, observers=observers, **SMALL)
    assert held_up(together) == {0: [0, 4], 1: [0, 4]}
    assert run.losses == together.losses == pico.train("tiny", "dp2", steps=8, **SMALL).losses
    with pytest.raises(ValueError, match="this run has no plan"):
        chapter.plan_of(run)


def test_a_plan_is_read_from_a_run():
    run = pico.train("tiny", steps=1, memory_budget="1GB", **SMALL)
    told = chapter.plan_of(run)
    assert told["choices"] == ["keep"] and told["least"] <= told["peak"]


def test_bad_input():
    with pytest.raises(ValueError, match="it is a number of circles"):
        chapter.litter(-1)
    with pytest.raises(ValueError, match="they are steps, from 1 and 0"):
        chapter.collecting(every=0, apart=2)
