"""Experts that move: loads of ranks are as planned, and the trajectory is the one without moves.

The wrong versions this file catches: moments that stay where the expert was, a router whose rows
keep their order, a plan that is made and not carried out.
"""

import time
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import picolab as pico
from picolab.costs import ExpertSlots
from picolab.moe import ExpertLayer, LoadBalancer, placement

SETTINGS = dict(
    layers=2, seq=32, hidden=32, heads=4, kv_heads=2, experts=8, expert_ffn=16, ffn=32, steps=6,
    micro_batch=2, dtype="fp64", eps=1e-5, aux_loss=0.0, progress=False,
)  # fmt: skip


def least(load, ranks):
    """The smallest possible largest load of two ranks, by trying all."""
    total, half = sum(load), len(load) // 2
    sums = [sum(load[e] for e in held) for held in combinations(range(len(load)), half)]
    return min(max(one, total - one) for one in sums)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=4, max_size=8).filter(lambda load: len(load) % 2 == 0))
def test_packing_is_within_the_bound_of_the_best(load):
    order = placement.pack(load, 2)
    assert sorted(order) == list(range(len(load)))
    if sum(load):
        found = placement.imbalance_of_ranks(load, 2, order) * sum(load) / 2
        assert found <= 4 / 3 * least(load, 2) + 1e-9


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3).flatmap(
        lambda each: st.lists(st.integers(0, 50), min_size=3 * each, max_size=3 * each)
    ),
    st.lists(st.integers(0, 2), min_size=3, max_size=3),
)
def test_a_plan_fills_the_slots_and_counts_each_row_once(load, slots):
    copies = placement.plan(load, slots)
    assert [len(of) for of in copies] == slots
    now = ExpertSlots(len(load), copies)
    assert all(len(set(held)) == len(held) for held in now.held)
    assert sum(now.rows_of_ranks(load)) == pytest.approx(sum(load))


def test_a_copy_goes_where_it_helps():
    assert placement.plan([90, 10, 10, 10], [0, 1]) == ((), (0,))
    assert placement.imbalance_of_ranks([90, 10, 10, 10], 2) == 100 / 60
    # 55 and 65 rows, in place of 100 and 20
    assert placement.imbalance_of_ranks([90, 10, 10, 10], 2, copies=((), (0,))) == 65 / 60
    # Half of the hottest's rows would come to a rank that has enough: 14 in place of 10.
    assert placement.plan([10, 0, 5, 4], [0, 1]) == ((), (1,))
    with pytest.raises(ValueError, match="no slots for more than all others"):
        placement.plan([1, 1, 1, 1], [0, 3])


def broken(what):
    """A LoadBalancer in whose ranks one thing is forgotten."""

    class Broken(LoadBalancer):
        def start(self, run):
            super().start(run)
            if what == "moments":
                placement.with_moments = lambda parameter, optimizer: [parameter.data]
            elif what == "router":
                real = placement.move

                def move(layer, order, optimizer, axis):
                    kept = layer.router.weight.detach().clone()
                    real(layer, order, optimizer, axis)
                    layer.router.weight.data.copy_(kept)

                placement.move = move

    return Broken(every=2, at_least=0.0)


@pytest.fixture(scope="module")
def without():
    return pico.train("tiny-moe", "dp2ep2", **SETTINGS)


def distance(one, other):
    return max(abs(a - b) / b for a, b in zip(one.losses, other.losses))


def moves(result):
    return [event.data for event in result.events if event.kind == "experts moved"]


@pytest.mark.parametrize("layout", ["dp2ep2", pytest.param("dp2tp2ep2", marks=pytest.mark.weekly)])
def test_the_trajectory_does_not_change_and_experts_do_move(without, layout):
    moved = pico.train(
        "tiny-moe", layout, **SETTINGS, observers=[LoadBalancer(every=2, at_least=0.0)]
    )
    assert any(event["order"] != list(range(8)) for event in moves(moved))
    assert distance(moved, without) < 1e-10
    # The same experts under other numbers: each one's matrix is there, with its row of the router.
    name = "layers.0.mlp.experts.down.weight"
    before, after = (result.state_dict() for result in (without, moved))
    order = [int((before[name] - expert).flatten(1).norm(dim=1).argmin()) for expert in after[name]]
    assert sorted(order) == list(range(8)) and order != list(range(8))
    router = "layers.0.mlp.router.weight"
    torch.testing.assert_close(after[name], before[name][order], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(after[router], before[router][order], rtol=1e-8, atol=1e-9)


def test_loads_of_ranks_are_more_even_for_the_same_tokens(without):
    """Both runs send the same tokens to the same matrices; only where these are differs."""
    moved = pico.train("tiny-moe", "dp2ep2", **SETTINGS, observers=[LoadBalancer(every=2)])
    first = min(event["step"] for event in moves(moved))

    def after(result):
        told = [e.data for e in result.events if e.kind == "experts"]
        return [
            placement.imbalance_of_ranks(load, 2)
            for event in told
            if event["step"] > first
            for load in event["loads"].values()
        ]

    one, other = after(without), after(moved)
    assert len(one) == len(other) > 0 and sum(other) < sum(one)


@pytest.mark.parametrize("what", ["moments", "router"])
def test_mutants_change_the_trajectory(without, what):
    wrong = pico.train("tiny-moe", "dp2ep2", **SETTINGS, observers=[broken(what)])
    assert moves(wrong) and distance(wrong, without) > 1e-6


def test_what_it_cannot_do_gets_a_sentence():
    with pytest.raises(ValueError, match="every is 0; it is a number of steps"):
        LoadBalancer(every=0)
    with pytest.raises(pico.RankFailure, match="tiny has no experts that a LoadBalancer could"):
        pico.train("tiny", "dp1", steps=1, progress=False, observers=[LoadBalancer()])


class SlowRows(pico.Observer):
    """An expert takes so long for each row; and two experts of one rank are asked for most."""

    def __init__(self, seconds):
        self.seconds = seconds

    def start(self, run):
        for layer in filter(lambda module: isinstance(module, ExpertLayer), run.model.modules()):
            layer.router.bias[:2] = 1.0
            layer.experts.register_forward_pre_hook(
                lambda module, given: time.sleep(self.seconds * sum(given[1]))
            )


@pytest.mark.alone
def test_the_wait_for_a_hot_rank_falls_by_what_was_predicted():
    """All rows meet experts 0 and 1, both on rank 0, for which rank 1 waits; once they are on two
    ranks, nobody waits. By half of it at least, since there is more to wait for than these."""
    seconds, steps, every, imbalance = 4e-4, 6, 3, placement.imbalance_of_ranks
    slow = {**SETTINGS, "steps": steps, "router_bias": 1e-9}

    def waits(result):
        """On the ranks together, before the move and after it: the least of the steps, since other
        programs only add to it."""
        by_step = [
            sum(rank.waiting_s for rank in result.explain(step).split.values())
            for step in range(1, steps)
        ]
        return min(by_step[: every - 1]), min(by_step[every - 1 :])

    def predicted(result):
        """Every rank waits until the busiest has computed its rows, which are `imbalance` times the
        mean: together, for sum(load) * (imbalance - 1) rows."""
        loads = {}
        for event in result.events:
            if event.kind == "experts" and event.data["step"] == 1:
                loads |= event.data["loads"]
        fewer = [
            sum(load) * (imbalance(load, 2) - imbalance(load, 2, placement.pack(load, 2)))
            for load in loads.values()
        ]
        return seconds * sum(fewer)

    moved = pico.train(
        "tiny-moe", "dp2ep2", **slow, observers=[SlowRows(seconds), LoadBalancer(every=every)]
    )
    still = pico.train("tiny-moe", "dp2ep2", **slow, observers=[SlowRows(seconds)])
    (before, after), expected = waits(moved), predicted(moved)
    print(f"wait {before:.3f} -> {after:.3f} s a step; expected to fall by {expected:.3f}")
    assert before - after > 0.5 * expected > 0.05
    # Mutant: a plan that is made and not carried out.
    before, after = waits(still)
    assert before - after < 0.5 * expected
