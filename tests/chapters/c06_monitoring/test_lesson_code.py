"""The mechanisms that stand in chapter 6 compute what they say. Cells are found by their ids and
executed as they are saved; the mutants are edits of the cells' own text.
"""

import math
from types import SimpleNamespace

import pytest
import torch

from picolab import costs
from picolab.monitoring import Entry
from picolab.monitoring.step_split import waiting_of
from tests.chapters.c06_monitoring.nearest import cell


def entry(rank, came, stood, left):
    """An asynchronous all-reduce: it came, stood still from then on, and left."""
    return Entry(
        rank, 3, "all_reduce", "dp", (0, 1, 2), "float32", 8, 10.7, "dp: gradient bucket",
        stood, left - came, left - stood, None, None, None,
    )  # fmt: skip


ENTRIES = [entry(0, 1.0, 1.5, 3.5), entry(1, 2.5, 2.5, 3.25), entry(2, 1.25, 1.25, 3.5)]


def late(mutant=None):
    return cell("slow-by-hand", mutant)["arrivals"](ENTRIES)


def test_arrivals_are_those_of_the_package():
    found = late()
    assert found == {0: (1.5, 0.75, 0.0), 1: (0.0, 0.75, 1.5), 2: (1.25, 0.75, 0.25)}
    blocking = {e.rank: w for e, w in waiting_of(ENTRIES) if e.seconds == e.exposed_s}
    assert blocking == {rank: found[rank][0] for rank in blocking}


@pytest.mark.parametrize(
    "mutant",
    [
        ("e.start + e.exposed_s - e.seconds", "e.start"),
        ("min(left.values()) - last", "max(left.values()) - last"),
        ("(last - at, transfer, at - first)", "(at - first, transfer, last - at)"),
    ],
    ids=["where it stood still, not where it came", "the last that leaves", "turned round"],
)
def test_wrong_arrivals_are_told_apart(mutant):
    assert late(mutant) != late()


# --- the detector ---------------------------------------------------------------------------------


def second_spike(mutant=None, n=16) -> float:
    detector = cell("detector-by-hand", mutant)["ZScore"](window=n)
    for i in range(n):
        detector.add(1.0 + 1e-9 * i)
    detector.add(3.0)
    detector.add(3.0)
    return detector.z


@pytest.mark.parametrize("n", [5, 16, 50])
def test_a_second_spike_has_this_z_whatever_its_height(n):
    assert second_spike(n=n) == pytest.approx((n - 1) / math.sqrt(n), rel=1e-6)


@pytest.mark.parametrize(
    "mutant", [("(self.window - 1)", "self.window"), ("[-self.window :]", "[: self.window]")]
)
def test_another_deviation_or_window_gives_another_z(mutant):
    assert second_spike(mutant) != pytest.approx(15 / 4, rel=1e-3)


def test_a_nan_blinds_it_for_a_window():
    detector = cell("detector-by-hand")["ZScore"]()
    quiet = [1.0, 1.1] * 20
    flags = [detector.add(value) for value in [*quiet, math.nan, *quiet[:15], 100.0]]
    assert not any(flags)
    assert detector.add(1.0) is False and not math.isnan(detector.z)  # it has left the window


# --- thresholds, failures -------------------------------------------------------------------------


def roc_of(times, k, size, mutant=None):
    names = cell("roc-by-hand", mutant, times=times)
    names["thresholds"] = [0.7 + i / 30 for i in range(40)]  # at none of the times
    return list(zip(names["thresholds"], names["roc"](k, size)))


def test_the_sort_says_what_counting_says():
    draw = torch.Generator().manual_seed(0)
    times = (1 + torch.rand(60, generator=draw, dtype=torch.float64)).float().tolist()
    usual = sorted(times)[29:31]
    middle = sum(usual) / 2
    for k in (1, 3, 8):
        for limit, (quiet, faulty) in roc_of(times, k, 0.25):
            for share, factor in ((quiet, 1.0), (faulty, 1.25)):
                spoke = sum(
                    sum(t / middle * factor > limit for t in times[i : i + 10]) >= k
                    for i in range(51)
                )
                assert share == pytest.approx(spoke / 51, abs=1.01 / 51)  # (float32, at a limit)


def test_a_rule_that_takes_the_shortest_is_another():
    times = [1.0 + (i % 7) / 10 for i in range(40)]
    wrong = ("descending=True", "descending=False")
    assert roc_of(times, 3, 0.1, wrong) != roc_of(times, 3, 0.1)


def waste(mutant=None) -> float:
    return cell("answer-simulated", mutant, random=__import__("random"))["lost"](300, 10, 5000)


def test_what_failures_cost_is_the_formulas():
    assert waste() == pytest.approx(costs.checkpoint_waste(300, 10, 5000), rel=0.06)


@pytest.mark.parametrize(
    "mutant", [("interval * (until", "until * (until"), ("(interval + save)", "interval")]
)
def test_a_wrong_simulation_is_told_apart(mutant):
    assert waste(mutant) != pytest.approx(costs.checkpoint_waste(300, 10, 5000), rel=0.06)


def test_a_rule_tells_twice_an_episode_and_a_bare_one_at_each_change():
    told_of = cell("alert-rule")["told_of"]
    above = [20 <= step < 40 or step % 9 == 0 for step in range(120)]
    assert [text.split(":")[0] for text in told_of("8 of 10 steps", "12 steps", above)] == [
        "ticket"
    ]
    above = [20 <= step < 40 for step in range(120)]
    told = told_of("8 of 10 steps", "12 steps", above)
    assert [text.split(":")[0] for text in told] == ["ticket", "resolved"]
    assert told_of("8 of 10 steps", "12 steps", [step % 9 == 0 for step in range(120)]) == []


def test_a_stand_in_entry_has_what_the_cell_reads():
    one = SimpleNamespace(rank=0, start=1.0, exposed_s=1.0, seconds=1.0)
    assert cell("slow-by-hand")["arrivals"]([one]) == {0: (0.0, 1.0, 0.0)}
