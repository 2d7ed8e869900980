"""The search: bounds that are safe, and so the same ten best as trying everything.

Wrong versions these tests catch, kept below as mutants: a bound on seconds that has 1F1B's bubble,
one of twice the seconds, a layout's that counts recomputation, a bound on bytes that forgets that
ZeRO shards.
"""

import dataclasses
import itertools
import math

import pytest

from picolab.planner import bounds as bounds_module
from picolab.planner import search as search_module
from picolab.planner.bounds import bounds
from picolab.planner.costing import Candidate, Costing
from picolab.planner.request import Request
from picolab.planner.search import search, splits

from .conftest import SMALL


def ten_best(request, tried):
    """Of everything: each layout's fastest candidate that fits, the ten fastest of them."""
    best = {}
    for _, candidate, needed, seconds in tried:
        step = sum(seconds.values())
        if needed <= request.memory_bytes and step < best.get(candidate.layout, (float("inf"),))[0]:
            best[candidate.layout] = step, candidate
    return sorted(step for step, _ in best.values())[:10], best


def check_same_ten(tried, names=SMALL):
    for name in names:
        request, _, candidates = tried(name)
        steps, best = ten_best(request, candidates)
        found = search_module.search(request).best
        assert len(found) == min(10, len(best)) > 0, name
        assert [verdict.step_s for verdict in found] == steps, name
        for verdict in found:
            assert verdict.step_s == best[verdict.layout][0], name


def test_the_ten_best_are_those_of_trying_everything(tried):
    check_same_ten(tried)


def check_safe(tried):
    """No candidate beats the bounds of its split."""
    for name in SMALL:
        _, costing, candidates = tried(name)
        known = {}
        for split, candidate, needed, seconds in candidates:
            if split not in known:
                known[split] = {
                    (b.sp, b.micro_batch, b.recompute): b
                    for b in bounds_module.bounds(costing, split)
                }
            layout, micro_batch, recompute = candidate
            bound = known[split][layout.sp, micro_batch, recompute]
            assert bound.bytes <= needed * (1 + 1e-12), (name, str(candidate))
            assert bound.seconds <= sum(seconds.values()) * (1 + 1e-12), (name, str(candidate))
            least = costing.least_seconds(layout, micro_batch)
            assert least <= sum(seconds.values()) * (1 + 1e-12), (name, str(candidate))


def test_no_candidate_beats_the_bounds(tried):
    check_safe(tried)


def bubble_of_1f1b(costing, split, room=math.inf):
    """Wrong: interleaved stages and split backwards have less."""
    for bound in bounds(costing, split):
        m = costing.request.global_batch // (split.dp * bound.micro_batch)
        steps = m + split.pp - 1
        mine = m + ((split.pp - 1) / 6 if costing.turns == 1 else 0)
        yield bound._replace(seconds=bound.seconds / mine * steps)


def without_zero(costing, split, room=math.inf):
    """Wrong: as if states were never sharded."""
    for bound in bounds(costing, split):
        held = costing.parameters(costing.whole(), split.tp, split.ep).total
        states = held / split.pp * sum(costing.practice.recipe.values())
        yield bound._replace(bytes=states)


def twice(costing, split, room=math.inf):
    """Wrong: above what candidates take."""
    for bound in bounds(costing, split):
        yield bound._replace(seconds=2 * bound.seconds)


def test_a_layouts_own_bound_that_counts_recomputation_is_caught(tried, monkeypatch):
    def recomputed(self, layout, micro_batch):
        """Wrong: some candidates recompute nothing."""
        return sum(self.seconds(Candidate(layout, micro_batch, "full")).values())

    monkeypatch.setattr(Costing, "least_seconds", recomputed)
    with pytest.raises(AssertionError):
        check_safe(tried)


def test_what_is_not_worked_out_would_not_have_told_otherwise(tried):
    """With a room, bounds leave out what cannot be a split's fastest or leanest."""
    for name in SMALL:
        request, costing, _ = tried(name)
        room = request.memory_bytes
        for split in splits(request):
            everything, some = list(bounds(costing, split)), list(bounds(costing, split, room))
            fastest = min((b.seconds for b in everything if b.bytes <= room), default=None)
            assert min((b.seconds for b in some if b.bytes <= room), default=None) == fastest
            if fastest is None and everything:
                assert min(b.bytes for b in some) == min(b.bytes for b in everything)


@pytest.mark.parametrize("wrong", [bubble_of_1f1b, without_zero, twice])
def test_an_unsafe_bound_is_caught(wrong, tried, monkeypatch):
    monkeypatch.setattr(bounds_module, "bounds", wrong)
    with pytest.raises(AssertionError):
        check_safe(tried)


def test_an_unsafe_bound_loses_one_of_the_ten(tried, monkeypatch):
    monkeypatch.setattr(search_module, "bounds", without_zero)
    with pytest.raises(AssertionError):
        check_same_ten(tried, ["70b on 16, memory short"])


def test_more_recomputation_is_never_faster(tried):
    """Why the first of them that fits is the fastest."""
    for name in SMALL:
        _, _, candidates = tried(name)
        for i in range(0, len(candidates), 3):
            three = candidates[i : i + 3]
            assert [c.recompute for _, c, _, _ in three] == ["none", "selective", "full"]
            steps = [sum(seconds.values()) for _, _, _, seconds in three]
            for less, more in itertools.pairwise(steps):
                assert less <= more * (1 + 1e-12), (name, str(three[0][1]))


def test_a_larger_micro_batch_never_needs_less_memory(tried):
    """Why a layout whose smallest micro-batch does not fit is dead."""
    for name in SMALL:
        known = {}
        for _, (layout, _, recompute), needed, _ in tried(name)[2]:
            assert known.get((layout, recompute), 0) <= needed * (1 + 1e-12), (name, str(layout))
            known[layout, recompute] = needed


def test_every_layout_has_a_verdict():
    """Each split is in the table: judged layout by layout, or told from its bounds."""
    request = Request(**SMALL["8b on 8"])
    found = search(request)
    assert len(found.verdicts) == len(found.living) + len(found.slower) + len(found.dead)
    there = {(v.layout.dp, v.layout.tp, v.layout.pp, v.layout.cp) for v in found.verdicts}
    every = {tuple(split)[:4] for split in search_module.splits(request)}
    assert there == every
    layouts = [str(v.layout) for v in found.verdicts]
    assert len(set(layouts)) == len(layouts)


def test_pruned_or_not_the_verdicts_agree():
    request = Request(**SMALL["8b on 8"])
    whole = {str(v.layout): v for v in search(request, prune=False).verdicts}
    pruned = search(request).verdicts
    assert len(pruned) < len(whole)
    for verdict in pruned:
        other = whole.get(str(verdict.layout))
        if verdict.fits:
            assert other.step_s == verdict.step_s
        elif verdict.fits is None and other and other.fits:
            assert other.step_s >= verdict.at_least_s * (1 - 1e-12)


def test_who_dies_says_of_what_and_by_how_much():
    found = [
        search(Request(model="llama-3-70b", gpus=gpus, hardware="h200", seq=8192, global_batch=12))
        for gpus in (12, 16)
    ]
    dead = [verdict for one in found for verdict in one.dead]
    kinds = {verdict.killed_by.constraint for verdict in dead}
    assert kinds == {"memory", "layout", "batch", "schedule"}
    for verdict in dead:
        killed = verdict.killed_by
        assert verdict.fits is False and killed.sentence
        if killed.constraint == "memory":
            assert killed.number > killed.limit == found[0].request.memory_bytes
            assert f"{killed.number / 1e9:.1f} GB" in killed.sentence


def test_a_batch_that_replicas_cannot_share():
    request = Request(model="llama-3-8b", gpus=8, hardware="h100", seq=1024, global_batch=12)
    dead = {str(v.layout): v.killed_by for v in search(request).dead}
    assert dead["dp8"].constraint == "batch"
    assert (dead["dp8"].number, dead["dp8"].limit) == (8, 12)


def test_the_search_is_the_same_twice():
    request = Request(**SMALL["experts on 16"])
    once, again = (search(dataclasses.replace(request)) for _ in range(2))
    assert [str(v.candidate) for v in once.best] == [str(v.candidate) for v in again.best]
