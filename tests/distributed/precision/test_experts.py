"""Experts in bf16 and fp16 on ranks: what the oracle finds with planted choices, and would not with
worse ones. (That it passes what is right is in test_low_precision.py, too.)

The wrong versions this file catches: rows that come back to other tokens, rows that meet another
expert, and a plan that is alike for all tokens, which hides the second.
"""

from contextlib import contextmanager

import pytest

from picolab.debug import observe, planted, verify
from picolab.debug.faults import Fault, patched
from picolab.debug.oracle import verify_each, verify_layouts
from picolab.moe import dispatch

MORE = ["dp2tp2ep2", "dp4ep2", "dp4ep4", "dp2cp2ep2", "dp2pp2ep2", "dp2pp2ep2:zb-v"]
MORE += ["dp2tp2ep2sp", "dp4ep2zero2"]


@contextmanager
def rows_to_other_tokens(layout):
    """What comes back is added to the token before, with that token's weight."""
    real = dispatch.Travelling.back
    with patched(dispatch.Travelling, "back", lambda self, y_AD: real(self, y_AD).roll(1, 0)):
        yield


@contextmanager
def rows_not_regrouped(layout):
    """Rows stay in the order of the ranks they came from: some meet another of the experts here."""
    with patched(dispatch, "_transposed", lambda x, sizes: x):
        yield


def fault(applied):
    return Fault(applied.__name__, applied.__doc__, "tests", "ep", applied)


OTHERS, MIXED_UP = fault(rows_to_other_tokens), fault(rows_not_regrouped)


def test_bugs_of_dispatch_are_seen_through_the_rounding():
    right, *wrong = verify_each("dp2ep2", [None, OTHERS, MIXED_UP], precision="bf16", steps=2)
    assert right.ok and any("were given to both sides" in note for note in right.notes)
    for verdict in wrong:
        worst = verdict.worst
        assert not verdict.ok and worst.difference > 4 * worst.allowed, verdict
    # What is planted is worth comparing: experts here differ, replicas differ, rows are dropped.
    evidence = right.evidence
    rows = evidence._rows(0)
    assert rows[0] != rows[1] and all(sum(n > 0 for n in of) > 4 for of in rows)
    config, (first, *_) = evidence.recipe.config, evidence.reference.routed[0].values()
    asked = first.shape[:2].numel() * config.experts_per_token
    assert any(int(of.sum()) < asked for of in evidence.reference.routed[0].values())


def test_in_fp64_nothing_is_planted():
    (verdict,) = verify_each("dp2ep2", [None], steps=1)
    assert not planted.needed(verdict.evidence.recipe)
    assert not any("given to both sides" in note for note in verdict.notes)
    assert verdict.evidence.recipe.config.qk_norm


def alike(recipe, layer, place):
    """The first and the last expert for every token."""
    numbers_TE = plan(recipe, layer, place) / 2
    numbers_TE[:, 0], numbers_TE[:, -1] = 1, 0.9
    return numbers_TE


plan = planted.plan


@contextmanager
def in_place_of(attribute, value):
    """Here, and by a fault in the ranks, too; what one process computes with it is not kept."""

    @contextmanager
    def also_there(layout):
        with patched(planted, attribute, value), MIXED_UP.applied(layout):
            yield

    observe.one_process.cache_clear()
    with patched(planted, attribute, value):
        yield fault(also_there)
    observe.one_process.cache_clear()


def test_mutant_a_plan_alike_for_all_tokens_hides_a_bug():
    with in_place_of("plan", alike) as mixed_up:
        verdict = verify("dp2ep2", precision="bf16", fault=mixed_up, steps=1)
    assert verdict.ok, "the plan is not as blind as this test says"


@pytest.mark.weekly
@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_more_layouts_with_experts_equal_one_process(name):
    for verdict in verify_layouts(MORE, precision=name, steps=3):
        assert verdict.ok, verdict
