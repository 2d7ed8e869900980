"""The adjuster as a machine: what it objects to, whom it raises, and that it always comes to rest.

The wrong versions this file catches: a layer that is lowered again and again, a bad step that is
tried for ever, a culprit chosen without looking, a layer lowered before its time, and statistics
that keep what was taken back.
"""

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picolab.precision.adjuster import (
    DynamicPrecisionAdjuster,
    Limits,
    Movements,
    Objection,
)

LADDER = ("fp8", "bf16", "fp32")
LAYERS = {"a": "fp8", "b": "fp8", "c": "bf16"}
LIMITS = Limits(clean=4, cool_down=2, tries=2, least=3, window=8)
NAN = Objection("the loss is nan", finite=False)
HIGH = Objection("the loss is high", finite=True)


def adjuster(**limits):
    changed = {**vars(LIMITS), **limits}
    return DynamicPrecisionAdjuster(LAYERS, LADDER, Limits(**changed))


def objections(values, **limits):
    """Of one (loss, norm) after the other, the good ones remembered."""
    machine, found = adjuster(**limits), []
    for step, (loss, norm) in enumerate(values):
        found.append(machine.objection(loss, norm))
        if found[-1] is None:
            machine.good(step, loss, norm)
    return found


CALM = [(3.0 - 0.01 * i, 1.0 + 0.1 * (i % 2)) for i in range(6)]


def test_what_it_objects_to():
    assert objections(CALM) == [None] * 6
    *_, high = objections([*CALM, (4.0, 1.0)])
    assert high == (
        "the loss is 4, and the last good ones are 2.975 with a deviation of 0.03",
        True,
    )
    *_, steep = objections([*CALM, (2.9, 12.0)])
    assert steep == ("the gradient's norm is 11.4 times the median of the last good ones", True)
    assert objections([*CALM, (2.0, 0.01)])[-1] is None  # lower is no spike
    for value in ((math.nan, 1.0), (1.0, math.inf)):
        assert not objections([value])[0].finite
    assert objections([(3.0, 1.0), (9.0, 1e6)]) == [None, None]  # too early to say
    assert objections([(0.0, 0.0)] * 5) == [None] * 5


def test_the_culprit_is_raised_and_lowered_when_it_was_clean_for_long_enough():
    machine = adjuster()
    machine.good(0, 1.0, 1.0)
    answer = machine.bad(1, HIGH, {"a": 0.1, "b": 5.0, "c": 0.2}, back=0)
    assert answer[:2] == ("go back", ("b",)) and "b's gradient has moved most" in answer.reason
    assert machine.formats == {"a": "fp8", "b": "bf16", "c": "bf16"}
    lowered = [machine.good(step, 1.0, 1.0) for step in range(6)]
    assert lowered == [[], [], [], ["b"], [], []]  # after `clean` good steps
    assert machine.formats == LAYERS


def test_one_that_was_just_lowered_is_the_culprit_and_waits_twice_as_long():
    machine, waits = adjuster(), []
    machine.good(0, 1.0, 1.0)
    machine.bad(1, HIGH, {"b": 5.0}, back=0)
    for _ in range(LIMITS.tries):
        wait, step = 0, 1
        while not machine.good(step, 1.0, 1.0):
            wait, step = wait + 1, step + 1
        waits.append(wait + 1)
        answer = machine.bad(step + 1, HIGH, {"a": 9.0}, back=0)
        assert answer.raised == ("b",) and "had just been lowered" in answer.reason
    assert waits == [4, 8]
    assert not any(machine.good(step, 1.0, 1.0) for step in range(1, 200))  # it stays
    assert machine.formats["b"] == "bf16"


def test_again_everything_and_once_more_it_is_not_the_precision():
    machine = adjuster()
    machine.good(0, 1.0, 1.0)
    assert machine.bad(1, HIGH, {"a": 1.0}, 0).raised == ("a",)
    machine.good(0, 1.0, 1.0)
    assert machine.bad(1, HIGH, {"b": 1.0}, 0).raised == ("a", "b", "c")
    assert set(machine.formats.values()) == {"fp32"}
    machine.good(0, 1.0, 1.0)
    answer = machine.bad(1, HIGH, {}, 0)
    assert answer.action == "accept" and "it is the batch's own" in answer.reason
    assert machine.formats == LAYERS  # raised in vain
    machine.good(1, 5.0, 1.0)  # accepted, so the run is past it
    for times in range(3):
        if times == 2:
            with pytest.raises(FloatingPointError, match="also with every layer in fp32"):
                machine.bad(2, NAN, {}, 0)
        else:
            machine.bad(2, NAN, {}, 0)


def test_with_nothing_to_raise_the_same_is_tried_once_more():
    machine = DynamicPrecisionAdjuster({}, LADDER, LIMITS)
    machine.good(0, 1.0, 1.0)
    assert machine.bad(1, HIGH, {}, 0)[:2] == ("go back", ())
    assert machine.bad(1, HIGH, {}, 0).action == "accept"


def test_nothing_to_go_back_to():
    with pytest.raises(FloatingPointError, match="nan at step 0, and there is no good state to go"):
        adjuster().bad(0, NAN, {}, back=None)


def test_what_was_taken_back_is_forgotten():
    """Else the steps after `back` would count twice, the bad ones' neighbours among them."""
    machine = adjuster()
    for step in range(6):
        machine.good(step, 3.0 if step < 3 else 100.0, 1.0)
    machine.bad(6, HIGH, {}, back=3)
    assert machine.objection(50.0, 1.0).finite
    assert [of[0] for of in machine._seen] == [0, 1, 2]


class Run:
    """A run of `steps`, whose step is bad with a chance that depends on the formats; a good state
    is kept every so often. trace: what happened."""

    def __init__(self, machine, steps, seed, every, causes=(), always=()):
        self.machine, self.steps, self.every, self.causes = machine, steps, every, causes
        self.always, self.went_back = always, 0  # always: steps that are bad in every precision
        self.seed, self.draw = seed, random.Random(seed)
        self.tries, self.lowered, self.ended = {}, {name: 0 for name in LAYERS}, None

    def verdict(self, step):
        chance = self.draw.random() if self.seed is not None else 0.5
        if step in self.always:
            return HIGH, {}
        blamed = [name for name in self.causes if self.machine.formats[name] == "fp8"]
        if blamed and chance < 0.3:
            return HIGH, {blamed[0]: 9.0}
        if chance > 0.97:
            return (NAN if chance > 0.99 else HIGH), {self.draw.choice("abc"): 3.0}
        return None, {}

    def go(self, reload=False):
        step, kept = 0, None
        while step < self.steps:
            self.tries[step] = self.tries.get(step, 0) + 1
            if reload:
                state = json.loads(json.dumps(self.machine.state_dict()))
                self.machine = adjuster()
                self.machine.load_state_dict(state)
            why, moved = self.verdict(step)
            if why is not None:
                try:
                    answer = self.machine.bad(step, why, moved, kept)
                except FloatingPointError as error:
                    self.ended = str(error)
                    return self
                if answer.action == "go back":
                    step, self.went_back = kept, self.went_back + 1
                    assert self.went_back <= 2 * self.steps
                    continue
            elif kept is None or step - kept >= self.every:
                kept = step
            for name in self.machine.good(step, 1.0, 1.0):
                self.lowered[name] += 1
            check_places(self.machine)
            step += 1
        return self


def check_places(machine):
    for name, format in machine.formats.items():
        assert LADDER.index(format) >= LADDER.index(LAYERS[name])


seeds = st.integers(0, 10_000)


def comes_to_rest(seed, every=1, causes=(), always=()):
    run = Run(adjuster(), 120, seed, every, causes, always).go()
    assert max(run.lowered.values()) <= LIMITS.tries
    assert run.ended is None or "no good state" in run.ended or "not the precision" in run.ended
    assert len(run.tries) == run.steps or run.ended
    return run


@settings(max_examples=60)
@given(seeds, st.integers(1, 4), st.sets(st.sampled_from("abc")), st.sets(st.integers(1, 20)))
def test_whatever_happens_it_comes_to_rest(seed, every, causes, always):
    comes_to_rest(seed, every, sorted(causes), always)


def test_a_mutant_that_accepts_one_step_at_a_time_goes_round_for_ever(monkeypatch):
    """Two bad steps since the last good state: each sends back before the other."""
    comes_to_rest(None, every=4, always={5, 6})
    real = DynamicPrecisionAdjuster._not_the_precisions

    def forgets(self, step, why):
        answer = real(self, step, why)
        self._trouble, self._accepts = None, False
        return answer

    monkeypatch.setattr(DynamicPrecisionAdjuster, "_not_the_precisions", forgets)
    with pytest.raises(AssertionError):
        comes_to_rest(None, every=4, always={5, 6})


def test_a_cause_that_stays_is_raised_in_the_end_and_others_are_not_lost():
    run = comes_to_rest(7, causes=["b"])
    assert run.ended is None and run.machine.formats["b"] != "fp8"
    assert run.lowered["b"] == LIMITS.tries


def oscillates(self, layer):
    return layer.now != layer.chosen


def test_a_mutant_that_never_learns_is_caught(monkeypatch):
    monkeypatch.setattr(DynamicPrecisionAdjuster, "_is_due", oscillates)
    with pytest.raises(AssertionError):
        comes_to_rest(7, causes=["b"])


def test_a_mutant_that_does_not_look_for_the_culprit_is_caught(monkeypatch):
    monkeypatch.setattr(
        DynamicPrecisionAdjuster, "_culprit", lambda self, able, moved: (able[:1], "the first")
    )
    with pytest.raises(AssertionError):
        test_the_culprit_is_raised_and_lowered_when_it_was_clean_for_long_enough()


@settings(max_examples=20)
@given(seeds, st.sets(st.sampled_from("abc")))
def test_what_it_remembers_is_all_there_is(seed, causes):
    one = Run(adjuster(), 60, seed, 2, sorted(causes)).go()
    other = Run(adjuster(), 60, seed, 2, sorted(causes)).go(reload=True)
    assert one.machine.state_dict() == other.machine.state_dict()
    assert (one.tries, one.lowered, one.ended) == (other.tries, other.lowered, other.ended)


def test_a_permutation_of_the_layers_permutes_what_is_raised():
    for name in LAYERS:
        machine = adjuster()
        moved = {other: 7.0 if other == name else 1.0 for other in LAYERS}
        assert machine.bad(1, HIGH, moved, 0).raised == (name,)


def test_movements_are_powers_of_two_from_the_usual():
    movements = Movements(memory=0.5)
    assert movements.of({"a": 1.0}) == {"a": 0.0}
    for _ in range(3):
        movements.remember({"a": 2.0, "b": 1.0, "c": 0.0})
    found = movements.of({"a": 16.0, "b": 0.25, "c": 1.0, "d": math.nan})
    assert found == {"a": 3.0, "b": 2.0, "c": 0.0, "d": math.inf}
    movements.remember({"a": 8.0})
    assert movements.of({"a": 4.0, "b": 0.0}) == {"a": 0.0, "b": math.inf}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (dict(ratio=1), "ratio is 1; it must be a number above 1"),
        (dict(deviations=0), "deviations is 0; it must be a number above 0"),
        (dict(clean=-1), "clean is -1; it must be an integer of at least 0"),
        (dict(window=1), "window is 1; it must be an integer of at least 2"),
        (dict(tries=True), "tries is True; it must be an integer"),
    ],
)
def test_bad_limits(given, says):
    with pytest.raises(ValueError, match=says):
        Limits(**given)


def test_a_format_that_is_not_on_the_ladder():
    with pytest.raises(ValueError, match="a is in 'fp7', which is not among fp8, bf16, fp32"):
        DynamicPrecisionAdjuster({"a": "fp7"}, LADDER)
