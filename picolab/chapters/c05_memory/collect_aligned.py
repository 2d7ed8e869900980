"""Exercise: garbage collected by all ranks at the same step (chapter 5, section 7).

The judge's step makes circles of objects, on each rank other numbers of them, and Python tells it
of every pass of the collector (`gc.callbacks`): where it is, and how thorough. Which passes are
right is simulated beforehand, with all ranks' numbers; so are the usual mistakes.
"""

import gc
import weakref
from dataclasses import dataclass, field

from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise

UNIT = 10_000  # of objects: what a rank makes besides is far less
GROWTH = 45_000
MARGIN = 4_000


def my_steps(step, steps, every, growth):
    raise NotImplementedError(f"{steps} steps, a look after every {every}, at {growth:,} objects")


def solution(step, steps, every, growth):
    import gc

    import torch

    import picolab as pico

    passes, was_on = [], gc.isenabled()
    gc.disable()
    try:
        gc.collect()
        alive = len(gc.get_objects())
        for i in range(steps):
            step(i)
            if (i + 1) % every:
                continue
            grown = torch.tensor(len(gc.get_objects()) - alive)
            pico.comm.all_reduce(grown, "world", "gc: objects more than after a pass", op="max")
            if grown >= growth:
                gc.collect()
                alive = len(gc.get_objects())
                passes.append(i)
    finally:
        if was_on:
            gc.enable()
    return passes


class Overflow(RuntimeError):
    """A step that fails, on all ranks."""


class Stopped(BaseException):
    """What ends a run and is no Exception, as the stop button's."""


@dataclass
class Script:
    """What one rank's steps make: circles, in units; and from when to when some are held."""

    made: list[int]
    held: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Step -> (units, the step that lets go of them)."""


class _Steps:
    """The step that is given; and all that is seen meanwhile."""

    def __init__(self, script: Script, fails: tuple[int, BaseException] | None):
        self.script, self.fails = script, fails
        self.done, self.inside, self.failed = -1, False, False
        self.on: list[int] = []
        self.passes: list[tuple[int, bool, int]] = []
        """(after which step, within one, how thorough)"""
        self.old_is_gone: bool | None = None
        self._held: dict[int, list] = {}
        self.old = _Old()
        self.old.itself = self.old
        self.gone = _Gone(self.old)
        del self.old

    def __call__(self, i: int) -> None:
        self.inside = True
        if self.old_is_gone is None:
            self.old_is_gone = self.gone.happened
        if gc.isenabled():
            self.on.append(i)
        self._held.pop(i, None)
        _circles(self.script.made[i] * UNIT)
        if i in self.script.held:
            units, until = self.script.held[i]
            self._held[until] = _circles(units * UNIT)
        if self.fails is not None and i == self.fails[0]:
            self.inside, self.failed = False, True
            raise self.fails[1]
        self.done, self.inside = i, False

    def told(self, phase: str, info: dict) -> None:
        # (Switched on again after the last step, it may pass at once.)
        over = self.done == len(self.script.made) - 1 or self.failed
        if phase == "start" and not (over and gc.isenabled()):
            self.passes.append((self.done, self.inside, info["generation"]))


class _Old:
    """What is garbage before the first step."""


class _Gone:
    def __init__(self, of: _Old):
        self.happened = False
        weakref.finalize(of, self._happen).atexit = False

    def _happen(self) -> None:
        self.happened = True


def _circles(n: int) -> list[list]:
    found: list[list] = [[] for _ in range(n)]
    for one in found:
        one.append(one)
    return found


def judge(learner, attempt: Attempt) -> None:
    world = attempt.case.values["world"]
    gc.freeze()  # what is here now is none of the exercise: passes are quick
    for about, every, was_on, fails, scripts in _settings(world):
        attempt.setting(about)
        steps = _Steps(scripts[attempt.rank], fails)
        number = len(scripts[0].made)
        gc.enable() if was_on else gc.disable()
        gc.callbacks.append(steps.told)
        given = {"step": steps, "steps": number, "every": every, "growth": GROWTH}
        try:
            answer = attempt.call(_caught(learner), given)
        finally:
            is_on = gc.isenabled()
            gc.callbacks.remove(steps.told)
            gc.enable()
        _look(attempt, steps, answer, is_on, was_on, (every, fails, scripts))
        attempt.only("all_reduce")
        looks = (number if fails is None else fails[0]) // every
        hint = "how much the others have, a rank can only be told"
        attempt.budget("all_reduce", count=looks, at_least=looks, hint=hint)
        attempt.budget("all_reduce", payload_bytes=8 * looks, least_bytes=looks, hint=hint)
    _exactly(attempt, learner)


def _exactly(attempt: Attempt, learner) -> None:
    """Where `gc.get_objects` gives what is written here, to the object."""
    attempt.setting("exactly as much more as is asked for, or one less")
    counts = _Counts(attempt.rank == attempt.case.values["world"] - 1)
    gc.callbacks.append(counts.told)
    real, gc.get_objects = gc.get_objects, counts.get_objects
    frozen, given = gc.get_freeze_count(), {"step": counts, "steps": 5, "every": 1}
    try:
        attempt.call(learner, {**given, "growth": GROWTH})
    finally:
        gc.get_objects = real
        gc.callbacks.remove(counts.told)
    attempt.only("all_reduce")
    attempt.budget("all_reduce", count=5, at_least=5)
    if not attempt.require(
        gc.get_freeze_count() <= frozen,
        "it freezes objects: a full pass looks at them no more, and nobody asked for that",
    ):
        return
    why = {
        (): "so it is if objects are counted before the first pass: compare with what is alive "
        "after it",
        (4,): "exactly `growth` more is enough",
        (1, 3, 4): "so it is if a count that fell is what one compares with: that is the count "
        "after the last full pass",
        (0, 1, 4): "so it is if numbers are rounded on their way (bf16, fp16)",
    }.get(tuple(counts.passes))
    attempt.require(
        counts.passes == [1, 4] or not counts.asked,
        f"there are full passes after the steps {counts.passes}, and should be after [1, 4]"
        + (f": {why}" if why else ""),
    )


class _Counts:
    """The step, and what is alive after it; a full pass leaves less."""

    def __init__(self, busy: bool):
        base = 10_000
        self.after_step = [
            base + GROWTH - 1, base + GROWTH, 5_000, 5_000 + GROWTH, 2 * base + GROWTH,
        ]  # fmt: skip
        self.after_pass = [base, 2 * base, 2 * base, 2 * base, 2 * base]
        if not busy:
            self.after_step = self.after_pass = [base] * 5
        self.alive, self.first, self.done = 3 * base, base, -1
        self.passes: list[int] = []
        self.asked = False
        """Not if somebody has imported the function itself: then nothing is known here."""

    def __call__(self, i: int) -> None:
        self.done, self.alive = i, self.after_step[i]

    def get_objects(self, generation: int | None = None) -> list:
        self.asked = True
        return [None] * (0 if generation in (0, 1) else self.alive)

    def told(self, phase: str, info: dict) -> None:
        if phase != "stop" or info["generation"] != 2:
            return
        self.alive = self.first if self.done < 0 else self.after_pass[self.done]
        if self.done >= 0 and self.done not in self.passes:
            self.passes.append(self.done)


def _caught(learner):
    """What it raises is looked at as what it returns is."""

    def run(*arguments):
        try:
            return learner(*arguments)
        except (Overflow, Stopped) as error:
            return error

    return run


def _settings(world: int):
    def on_one(rank, made, others=None):
        quiet = others or [0] * len(made)
        return [Script(list(made) if r == rank else list(quiet)) for r in range(world)]

    last = world - 1
    yield "one rank makes garbage", 2, True, None, on_one(last, [1, 2, 2, 1, 2, 1, 1, 0, 3, 1])
    first, others = [2, 1, 0, 1, 1, 0, 3, 0, 0], [3, 0, 0, 2, 0, 0, 1, 0, 0]
    both = [Script(others if r else first) for r in range(world)]
    yield "each a little, together much", 3, True, None, both
    yield "no garbage", 2, True, None, on_one(0, [0] * 6)
    yield "a look after each step", 1, True, None, on_one(0, [5, 1, 1, 1, 1, 1, 5, 0])
    yield "fewer steps than a look takes", 5, True, None, on_one(0, [9, 9, 9])
    yield "no steps", 2, True, None, on_one(0, [])
    yield "it was off before", 2, False, None, on_one(last, [3, 3, 0, 0, 3, 2])
    held = on_one(0, [0, 0, 1, 0, 1, 1, 4, 1], [1] * 8)
    held[0].held = {0: (6, 4)}
    yield "circles that live through a pass", 2, True, None, held
    turns = [Script([5 if i % world == r else 0 for i in range(7)]) for r in range(world)]
    yield "each rank in its turn, steps that no look comes after", 3, True, None, turns
    fails = (3, Overflow("the loss is not finite"))
    yield "a step that fails", 2, True, fails, on_one(last, [3, 3, 1, 1, 1, 1])
    yield "a step that fails, and it was off", 2, False, fails, on_one(0, [3, 3, 1, 1, 1, 1])
    stop = (4, Stopped())
    yield "a run that is stopped", 2, True, stop, on_one(0, [3, 3, 1, 1, 1, 1])


def _passes(scripts, rank, every, fails, *, agree=max, baseline="after", every_step=False):
    """After which steps there is a full pass, on this rank."""
    world = len(scripts)
    alive, base, found = [0] * world, [0] * world, []
    held: list[dict[int, int]] = [{} for _ in range(world)]
    end = len(scripts[0].made) if fails is None else fails[0]
    for i in range(end):
        for r, script in enumerate(scripts):
            held[r].pop(i, None)
            alive[r] += script.made[i]
            if i in script.held:
                units, until = script.held[i]
                held[r][until] = units
                alive[r] += units
        if (i + 1) % every and not every_step:
            continue
        grown = [UNIT * (a - b) for a, b in zip(alive, base)]
        if agree is None:
            asks = [one >= GROWTH for one in grown]
        else:
            agreed = agree(grown)
            assert agree is not max or abs(agreed - GROWTH) >= MARGIN
            asks = [agreed >= GROWTH] * world
        for r in range(world):
            if asks[r]:
                before, alive[r] = alive[r], sum(held[r].values())
                if baseline != "never":
                    base[r] = alive[r] if baseline == "after" else before
        if asks[rank]:
            found.append(i)
    return found


def _variants(scripts, rank, every, fails) -> dict[str, list[int]]:
    def mean(grown):
        return sum(grown) / len(grown)

    made = {
        "so it is if each rank goes by its own garbage: all ranks have to decide alike": (
            {"agree": None}
        ),
        "so it is by the mean over the ranks: the largest decides, since one slow rank is enough": (
            {"agree": mean}
        ),
        "so it is by the sum over the ranks: the largest decides": {"agree": sum},
        "so it is by the smallest of the ranks: the largest decides": {"agree": min},
        "so it is if objects are always compared with the beginning: compare with after the last "
        "full pass": {"baseline": "never"},
        "so it is if objects are counted before the pass: compare with what is alive after it": (
            {"baseline": "before"}
        ),
        "so it is if it looks after each step: after every `every` steps": {"every_step": True},
    }
    return {says: _passes(scripts, rank, every, fails, **how) for says, how in made.items()}


def _look(attempt: Attempt, steps: _Steps, answer, is_on, was_on, setting) -> None:
    every, fails, scripts = setting
    if fails is not None:
        attempt.require(answer is fails[1], "the step's exception has to go on to the caller")
    on = {True: "on", False: "off"}
    attempt.require(
        is_on == was_on,
        f"the collector was {on[was_on]} before and is {on[is_on]} afterwards"
        + (", since the step raised: `finally`" if fails is not None else "")
        + ("; who had switched it off wants it off" if not was_on else ""),
    )
    if scripts[0].made:
        if not attempt.require(
            not steps.on, f"the collector is switched on while the steps {_short(steps.on)} run"
        ):
            return
        within = sorted({after + 1 for after, inside, _ in steps.passes if inside})
        if not attempt.require(
            not within, f"there are passes of the collector within the steps {_short(within)}"
        ):
            return
        first = [how for after, _, how in steps.passes if after == -1]
        attempt.require(
            bool(steps.old_is_gone) and first == [2],
            f"before the first step there are {len(first)} passes, of the generations {first}; one "
            "full pass is asked for, so that what set-up left is not counted later",
        )
    young = [after for after, _, how in steps.passes if how != 2]
    if not attempt.require(
        not young,
        f"after the steps {_short(young)} a pass looks at young objects only: a circle that lived "
        "through one pass is never found by those",
    ):
        return
    right = _passes(scripts, attempt.rank, every, fails)
    done = [after for after, _, _ in steps.passes if after >= 0]
    if not attempt.require(
        done == right,
        f"there are full passes after the steps {_short(done)}, and should be after "
        f"{_short(right)}{_why(done, setting, attempt.rank)}",
    ):
        return
    if fails is None:
        got = list(answer) if isinstance(answer, list | tuple) else answer
        attempt.require(
            got == right,
            f"it returns {answer!r}; asked for is the list of the steps after which there was a "
            f"full pass, {_short(right)}",
        )


def _why(done: list[int], setting, rank: int) -> str:
    every, fails, scripts = setting
    variants = _variants(scripts, rank, every, fails)
    why = [says for says, passes in variants.items() if passes == done]
    if not why and len(set(done)) < len(done):
        why = ["one pass is enough"]
    return f": {'; or '.join(why[:3])}" if why else ""


def _short(steps: list[int]) -> str:
    text = str(steps)
    return text if len(text) <= 40 else f"{text[:36]} ..."


EXERCISE = Exercise(
    id="memory.collect.aligned",
    goal="Run the steps of a training with Python's garbage collector switched off, and collect by "
    "appointment: when any rank has many more objects than after its last pass, all ranks make a "
    "full pass, after the same step.",
    interface="`my_steps(step, steps, every, growth)` calls `step(0)`, `step(1)`, ... `steps` of "
    "them, and returns the list of the steps after which there was a full pass. Before the first "
    "step one full pass, which is not in the list. While a step runs the collector is off, and "
    "there are no other passes, young ones neither. After every `every` steps (after step every - "
    "1, 2 * every - 1, ...) all ranks look: if on any of them `len(gc.get_objects())` is at least "
    "`growth` above what it was after that rank's last full pass, all make one. At the end the "
    "collector is on or off as it was before, however the end comes: a step may raise, on all "
    "ranks, and what it raises goes on to the caller. `pico.comm.all_reduce(t, axis, reason, op)` "
    "sums in place; the axis of all ranks is 'world', op 'sum', 'max' or 'min'.",
    budget="One all-reduce of 8 bytes at most for each look, and none besides.",
    hints=(
        "What does each rank know that the others do not, and what has to be the same on all of "
        "them? Who has to enter the all-reduce, if only one rank has anything to collect?",
        "Each rank: objects now less objects after its last full pass. The *largest* of these over "
        "'world'. Everybody enters at every look, whatever it has itself; everybody compares the "
        "same number with `growth`.",
        "`was_on = gc.isenabled()`, `gc.disable()`, then `try: ... finally:` switch it on if it "
        "was on. In the try: `gc.collect()`, count, then the loop. After an agreed pass count "
        "again, or everything that ever lived asks for the next pass.",
    ),
    stub_function=my_steps,
    solution_function=solution,
    why="A pass takes as long on one rank as on all, but the others wait for it in their next "
    "collective; if n ranks collect at n different steps the run waits n times. Aligned, it waits "
    "once. What decides must be the same number everywhere, and the largest: the rank with most "
    "garbage is the one that runs out of memory. A full pass, and not generation 1: what was alive "
    "in an earlier pass has grown old, and a tensor in an old circle would stay for ever. The "
    "package also calls `gc.freeze` after set-up, so that a full pass looks at nothing of torch's "
    "and costs almost nothing, and makes young passes in between "
    "(`pico.source('picolab.memory.collector')`). Twins: torchtitan's `GarbageCollection`, "
    "Megatron-LM's `--manual-gc`; both at a fixed interval.",
    judge=judge,
    cases=(
        Case("dp2", values={"world": 2}, if_apart="every rank enters the all-reduce of every look"),
        Case("dp3", values={"world": 3}, if_apart="every rank enters the all-reduce of every look"),
        Case("dp2tp2", "dp and tp: garbage is of all ranks", values={"world": 4}),
    ),
    blocked=("picolab.memory.collector.GarbageCollector._look",),
    timeout=6.0,
)
