"""One test a signal: what a rule must find, when, and what it must let pass. With the wrong rule.

Streams are drawn from seeds: a loss that falls with 4 % of noise, step times with 2 % and a pause
now and then, memory that starts up, grows in one leap, and then leaks.
"""

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picolab.monitoring import rules
from picolab.monitoring.rules import (
    Divergence,
    Drift,
    Often,
    Plateau,
    Silence,
    Slope,
    Spike,
    dead_experts,
    non_finite,
    odd_calls,
)

SEEDS, STEPS, AT = 20, 600, 400


def losses(seed, steps=STEPS):
    draw = random.Random(seed)
    return [(5 * 0.99**i + 1.5) * math.exp(draw.gauss(0, 0.04)) for i in range(steps)]


def times(seed, steps=STEPS, rise=0.0, at=AT):
    draw = random.Random(seed)
    return [
        0.1 * (1 + rise * (i >= at)) * math.exp(draw.gauss(0, 0.02)) + 0.04 * (draw.random() < 0.03)
        for i in range(steps)
    ]


def flagged(rule, values):
    return [i for i, value in enumerate(values) if rule.add(value)]


# -- finite --


def test_what_is_no_number_and_whose_it_is():
    assert non_finite({0: 1.0, 1: math.nan, 2: None, 3: -math.inf}) == [1, 3]


def test_after_the_reduction_a_nan_is_everybodys():
    """The mutant: the same rule on the mean."""
    own = {0: 2.0, 1: math.nan, 2: 2.1}
    reduced = dict.fromkeys(own, sum(own.values()) / 3)
    assert non_finite(own) == [1] and non_finite(reduced) == [0, 1, 2]


# -- spikes --


def test_a_spike_is_found_at_once_and_a_clean_loss_has_none():
    late = []
    for seed in range(SEEDS):
        values = losses(seed)
        assert flagged(Spike(), values) == []
        values[AT] *= 1.8
        late += [i - AT for i in flagged(Spike(), values)]
    assert late == [0] * SEEDS


def test_what_was_flagged_does_not_hide_the_next():
    """Twelve spikes in a window of twenty. The mutant lets them into the window."""

    class Poisoned(Spike):
        def add(self, value):
            found = self.above(math.log(value))
            self._logs.append(math.log(value))
            return found

    def stream(seed):
        values = losses(seed, 200)
        spikes = [i for i in range(100, 124) if i % 2]
        for i in spikes:
            values[i] *= 2.5
        return values, spikes

    for seed in range(5):
        values, spikes = stream(seed)
        assert flagged(Spike(window=20), values) == spikes
        assert len(set(flagged(Poisoned(window=20), values)) & set(spikes)) < len(spikes)


def test_mean_and_deviation_are_blown_up_by_a_single_outlier(monkeypatch):
    """A spike enters the window unjudged, as one of the first values; the next must be found. The
    mutant takes mean and standard deviation."""
    values = losses(0, 100)
    values[7] *= 6
    values[60] *= 1.8
    assert flagged(Spike(), values) == [60]
    monkeypatch.setattr(rules, "robust", lambda x: (statistics.fmean(x), statistics.stdev(x)))
    assert flagged(Spike(), values) == []


def test_a_steep_fall_is_no_spread():
    """Mutant: the same without the trend taken out, whose spread is the fall."""
    values = [10 * 0.95**i for i in range(80)]
    values[70] = values[60]  # as high as ten steps ago
    assert flagged(Spike(), values) == [70]

    class Flat(Spike):
        def above(self, log):
            middle, sigma = rules.robust(self._logs) if self._logs else (log, 0.0)
            return len(self._logs) >= self.least and log - middle > max(8 * sigma, 0.1)

    assert flagged(Flat(), values) == []


def test_a_fall_that_gets_slower_has_no_spikes(monkeypatch):
    """One rank's own losses in a real run. The mutant expects what a line through the window says,
    which is too little where the fall gets slower."""
    values = [
        6.04, 5.93, 5.93, 5.66, 5.76, 5.73, 5.57, 5.45, 5.35, 5.0, 4.63, 4.88, 4.31, 4.48, 4.52,
        3.97, 3.98, 4.07, 4.12, 3.96, 3.83, 3.4, 3.69, 3.26, 3.42, 3.33, 3.27, 3.06, 3.23, 2.99,
        2.93, 3.56, 2.78, 3.45, 3.46, 2.7, 3.02, 2.54, 2.84, 3.12,
    ]  # fmt: skip
    assert flagged(Spike(), values) == []
    monkeypatch.setattr(Spike, "recent", staticmethod(lambda logs: -math.inf))
    assert flagged(Spike(), values) == [34]


def test_a_new_level_is_no_endless_row_of_spikes():
    values = [1.0 + 0.01 * (i % 5) for i in range(50)] + [2.0 + 0.01 * (i % 5) for i in range(100)]
    assert flagged(Spike(), values) == list(range(50, 65))


@given(st.lists(st.one_of(st.floats(), st.just(math.nan), st.just(0.0)), max_size=60))
def test_no_value_breaks_a_rule(values):
    for rule in (Spike(least=3), Drift(least=3), Plateau(window=3), Divergence(window=3)):
        for value in values:
            rule.add(value)


# -- levels --


def test_a_slower_run_is_found_by_its_duration():
    late = []
    for seed in range(SEEDS):
        assert flagged(Drift(), times(seed, AT)) == []
        late += [i - AT for i in flagged(Drift(), times(seed, rise=0.1))[:1]]
    assert len(late) == SEEDS and min(late) >= 0 and statistics.median(late) <= 16


def test_a_pause_is_no_drift():
    """Mutant: z is not clipped, and one pause is enough."""
    values = [0.1 + 1e-4 * (i % 7) for i in range(100)]
    values[60] = 0.5
    assert flagged(Drift(), values) == []
    assert flagged(Drift(clip=math.inf), values) == [60]


def test_a_drift_is_told_once_and_then_it_is_the_level():
    found = flagged(Drift(), times(1, rise=0.3))
    assert len(found) == 1


def test_often_is_k_of_n_once_an_episode():
    often = Often(k=8, n=10)
    bad = [True] * 7 + [False] * 3 + [True] * 30 + [False] * 20 + [True] * 10
    assert flagged(often, bad) == [17 - 2 + 0] or len(flagged(Often(), bad)) == 2
    assert flagged(Often(), [True, False] * 50) == []
    assert flagged(Often(), [True] * 8) == [7]


def memory(seed, leak):
    draw = random.Random(seed)
    grown, found = 300e6, []
    for i in range(300):
        grown += 5e6 * (i < 5) + 40e6 * (i == 100) + leak * (i >= 200)
        found.append(grown + draw.gauss(0, 5e4))
    return found


@pytest.mark.parametrize(("leak", "within"), [(1e6, 40), (3e5, 45)])
def test_a_leak_rises_in_every_block(leak, within):
    for seed in range(SEEDS):
        assert flagged_slope(memory(seed, 0.0)) == []
        (step, slope), *_ = flagged_slope(memory(seed, leak))
        assert 200 <= step <= 200 + within and slope == pytest.approx(leak, rel=0.5)


def flagged_slope(values):
    rule = Slope(least=1e5)
    return [(i, slope) for i, value in enumerate(values) if (slope := rule.add(value)) is not None]


def test_a_leap_is_no_leak():
    """Mutant: the slope from the first point to the last."""
    values = memory(0, 0.0)[80:130]
    assert flagged_slope(values) == []
    assert (values[-1] - values[0]) / len(values) > 1e5


def test_a_loss_that_stays_and_one_that_rises():
    falls = [3 * 0.999**i + 1 for i in range(1000)]
    assert flagged(Plateau(), falls[:600]) == [] and flagged(Divergence(), falls) == []
    stays = falls[:300] + [falls[300]] * 400
    assert flagged(Plateau(), stays)[0] < 300 + 400
    rises = falls[:300] + [falls[300] * 1.01**i for i in range(100)]
    assert 300 < flagged(Divergence(), rises)[0] < 340
    spike = [*falls]
    spike[500] *= 5
    assert flagged(Divergence(), spike) == []


def test_experts_without_tokens():
    assert dead_experts([100, 100, 1, 0]) == [2, 3] and dead_experts([30, 25, 35, 10]) == []
    assert dead_experts([0, 0]) == []


# -- ranks that part ways --

DP, TP = ("dp", (0, 1, 2)), ("tp", (0, 1))


def test_who_did_something_else():
    same = {r: [(DP, "all_reduce 8"), (DP, "all_reduce 64")] for r in range(3)}
    assert odd_calls(same) == {}
    one_less = same | {1: same[1][:1]}
    (group, did), *others = odd_calls(one_less).items()
    assert group == DP and not others and len(did[1]) == 1 and len(did[0]) == len(did[2]) == 2
    none_at_all = same | {2: []}
    assert odd_calls(none_at_all)[DP][2] == ()
    another = same | {0: [(DP, "all_reduce 8"), (DP, "broadcast 64")]}
    assert odd_calls(another)[DP][0] != odd_calls(another)[DP][1]
    # Who is in no group has nothing to do there.
    assert odd_calls({0: [(TP, "x")], 1: [(TP, "x")], 2: []}) == {}


def test_counting_alone_does_not_see_another_operation():
    """The mutant compares numbers of calls, as a sequence number does."""
    calls = {0: [(DP, "all_reduce")], 1: [(DP, "all_reduce")], 2: [(DP, "all_gather")]}
    assert odd_calls(calls)
    assert not odd_calls({r: [(group, "a call") for group, _ in c] for r, c in calls.items()})


def test_silence_is_measured_in_the_runs_own_steps():
    quiet = Silence(at_least_s=1.0, times=20)
    assert quiet.overdue(100.0) is None  # nothing was heard yet: it may be starting
    for i in range(50):
        quiet.hear(float(i), step_s=0.2)
    assert quiet.limit_s == pytest.approx(4.0)
    assert quiet.overdue(52.9) is None and quiet.overdue(53.5) == pytest.approx(4.5)
