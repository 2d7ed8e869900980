"""Exercise: the loss-scale machine (chapter 4, section 4).

Scripts of steps, on ranks that hold different shards: each step is a setting of its own, with the
state that a right machine has by then, so what goes wrong later is told where it begins. A rank's
gradients are drawn from a seed of its own, and nobody else's are in its memory.
"""

import math

import torch

from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_scaled_step(gradients, scale, streak, patience, settings):
    raise NotImplementedError(f"{len(gradients)} gradients of {scale:g} times the loss")


def solution(gradients, scale, streak, patience, settings):
    import torch

    import picolab as pico

    mine = all(bool(of.isfinite().all()) for of in gradients if of is not None)
    bad = torch.tensor(0.0 if mine else 1.0)
    if pico.comm.all_reduce(bad, "world", "loss scale: did any overflow?", op="max").item():
        patience -= 1
        if patience <= 0:
            scale = max(scale * settings["backoff"], settings["least"])
        return None, scale, 0, patience
    unscaled = [None if of is None else of.float() / scale for of in gradients]  # by this scale
    streak += 1
    if streak == settings["interval"]:
        scale = min(scale * settings["growth"], settings["most"])
        streak, patience = 0, settings["hysteresis"]
    return unscaled, scale, streak, patience


def judge(learner, attempt: Attempt) -> None:
    world = attempt.case.values["world"]
    machines = [
        (name, settings, script, [start, 0, settings["hysteresis"]])
        for name, settings, start, script in _SCRIPTS
    ]
    for step in range(max(len(script) for _, _, script, _ in machines)):
        for name, settings, script, state in machines:  # in turn: each has a state of its own
            if step >= len(script):
                continue
            attempt.setting(f"{name}, step {step + 1}")
            gradients = _draw(step, attempt.rank, state[0], _is_bad(script[step], attempt, world))
            given = {
                "gradients": gradients, "scale": state[0], "streak": state[1],
                "patience": state[2], "settings": settings,
            }  # fmt: skip
            result = attempt.call(learner, given)
            bad = script[step] != "."
            own = _is_bad(script[step], attempt, world) != "."
            _compare(attempt, result, gradients, tuple(state), settings, bad, own)
            attempt.only("all_reduce")
            hint = "whether another rank overflowed, a rank can only be told"
            attempt.budget("all_reduce", count=1, at_least=1, hint=hint)
            attempt.budget("all_reduce", payload_bytes=8, least_bytes=1, hint=hint)
            # The right one: a rank that is wrong must still take part in the next step.
            state[:] = _machine(tuple(state), settings, bad)


# Of each step: "." nothing overflows, "0", "1", ... on that rank alone, "*" on all; "n" a NaN on
# the last rank, "b" both infinities of a tensor whose sum is NaN on the first one.
_TORCHS = {
    "growth": 2.0, "backoff": 0.5, "interval": 3, "hysteresis": 1, "least": 1.0, "most": 2.0**24,
}  # fmt: skip
_SCRIPTS = (
    ("as torch's, growth after 3", _TORCHS, 2.0**10, "...0..1....n...*b......"),
    (
        "patience of 2, growth after 4",
        {**_TORCHS, "interval": 4, "hysteresis": 2},
        2.0**16,
        "0...1..0.1*....n.0.....b....",
    ),
    (
        "patience of 3, times 4 and by 8",
        {**_TORCHS, "growth": 4.0, "backoff": 0.125, "interval": 2, "hysteresis": 3},
        2.0**8,
        "1.0*n..0.b1..",
    ),
    (
        "between 8 and 64",
        {**_TORCHS, "interval": 1, "least": 8.0, "most": 64.0},
        32.0,
        "...0*1n....",
    ),
    ("from the least scale on", _TORCHS, 1.0, "01n*..0...."),
    (
        "between 8 and 64, by steps that overshoot both",
        {
            **_TORCHS,
            "growth": 4.0,
            "backoff": 0.125,
            "interval": 1,
            "hysteresis": 2,
            "least": 8.0,
            "most": 64.0,
        },
        32.0,
        ".0.00n..",
    ),
)


def _is_bad(event: str, attempt: Attempt, world: int) -> str:
    """What this rank has of the step's event: ".", "i" an infinity, "n" a NaN, "b" both signs."""
    if event in ".":
        return "."
    at = {"n": world - 1, "b": 0}.get(event)
    if event == "*":
        return "i"
    if at is not None:
        return event if attempt.rank == at else "."
    return "i" if attempt.rank == int(event) % world else "."


def _draw(step: int, rank: int, scale: float, bad: str) -> list[torch.Tensor | None]:
    """This rank's gradients of the scaled loss, of another number of elements on each rank."""
    draw = torch.Generator().manual_seed(1000 * step + rank + 1)
    of = [torch.randn(shape, generator=draw) for shape in ((3 + rank, 5), (7,), (1,), (0, 4))]
    of = [scale * one for one in of]
    of[0][0, :2] = torch.tensor([3e38, 3e38])  # finite, and their sum is not
    of[1][:2] = torch.tensor([1e-30, -1e-38]) * scale
    half = torch.randn((2, 6), generator=draw).half()  # as a product in fp16 gives it
    half[0, :3] = torch.tensor([6e-8, -6e-8, 65504.0]).half()
    if bad == "i":
        (half, of[1], of[2])[step % 3].view(-1)[-1] = -math.inf if step % 2 else math.inf
    if bad == "n":
        half[-1, -1] = math.nan
    if bad == "b":
        of[0][-1, :2] = torch.tensor([math.inf, -math.inf])
    return [of[0], None, half, of[3], of[1], of[2]]


def _machine(
    state: tuple[float, int, int],
    settings: dict,
    bad: bool,
    *,
    late: int = 0,
    streak_stays: bool = False,
    refilled: str = "by growth",
    bounds: bool = True,
    whole_steps: bool = False,
    ignores_patience: bool = False,
    spent_at: int = 0,
) -> tuple[float, int, int]:
    """A step of it, or of one with a mistake."""
    scale, streak, patience = state
    least, most = (settings["least"], settings["most"]) if bounds else (0.0, math.inf)
    if bad:
        patience -= 1
        if patience <= spent_at or ignores_patience:
            fallen = max(scale * settings["backoff"], least)
            scale = fallen if fallen == scale * settings["backoff"] or not whole_steps else scale
            if refilled == "by backoff":
                patience = settings["hysteresis"]
        return scale, streak if streak_stays else 0, patience
    streak += 1
    if refilled == "by a good step":
        patience = settings["hysteresis"]
    if streak == settings["interval"] + late:
        grown = min(scale * settings["growth"], most)
        scale = grown if grown == scale * settings["growth"] or not whole_steps else scale
        streak = 0
        if refilled == "by growth":
            patience = settings["hysteresis"]
    return scale, streak, patience


_MISTAKES = {
    "patience was not heeded: the scale falls once that many have overflowed": {
        "ignores_patience": True
    },
    "the scale falls at the overflow that uses the last of the patience, and not one later": {
        "spent_at": -1
    },
    "growth comes a step late: after `interval` good steps": {"late": 1},
    "growth comes a step early: after `interval` good steps": {"late": -1},
    "the streak goes on over an overflow; it begins anew": {"streak_stays": True},
    "patience came back with a good step, and comes back with growth only": {
        "refilled": "by a good step"
    },
    "patience came back when the scale fell, and comes back with growth only": {
        "refilled": "by backoff"
    },
    "patience did not come back with growth": {"refilled": "never"},
    "it went beyond `least` or `most`": {"bounds": False},
    "a step that would go beyond `least` or `most` was left out; it goes as far as there": {
        "whole_steps": True
    },
}


def _compare(attempt: Attempt, result, gradients, state, settings, bad: bool, own: bool) -> None:
    if not attempt.returned(result, "gradients", "scale", "streak", "patience"):
        return
    got, *found = result
    if not _decision(attempt, got, bad, own):
        return
    if not bad and not _unscaled(attempt, got, gradients, state, settings):
        return
    right = _machine(state, settings, bad)
    numbers = [_number(one) for one in found]
    for name, number, given in zip(("scale", "streak", "patience"), numbers, found):
        if not attempt.require(number is not None, f"{name} is {given!r}, and should be a number"):
            return
    if tuple(numbers) == right:
        return
    before = "scale {:g}, streak {}, patience {}".format(*state)
    wrong = next(i for i in range(3) if numbers[i] != right[i])
    name = ("scale", "streak", "patience")[wrong]
    why = [
        says
        for says, how in _MISTAKES.items()
        if _machine(state, settings, bad, **how) == tuple(numbers)
    ]
    attempt.wrong(
        f"{name} is {numbers[wrong]:g} after {before} and {'an overflow' if bad else 'none'}; it "
        f"should be {right[wrong]:g}{': ' if why else ''}{', or '.join(why[:2])}"
    )


def _number(value) -> float | None:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _decision(attempt: Attempt, got, bad: bool, own: bool) -> bool:
    if bad and got is not None:
        who = "this rank" if own else "another rank"
        return attempt.require(
            False,
            f"{who} has a gradient that is not finite, so the step is skipped: the gradients "
            "returned are None"
            + ("" if own else ". All ranks decide alike, or they step apart from here on"),
        )
    if not bad and got is None:
        return attempt.require(
            False,
            "it skips a step in which every gradient of every rank is finite (a sum of finite "
            "numbers need not be)",
        )
    return True


def _unscaled(attempt: Attempt, got, gradients, state, settings) -> bool:
    kind = f"a list of {len(got)}" if isinstance(got, list | tuple) else "one thing"
    if not attempt.require(
        isinstance(got, list | tuple) and len(got) == len(gradients),
        f"the gradients returned are {kind}; asked for is a list of {len(gradients)}, as they came",
    ):
        return False
    scale, (next_scale, *_) = state[0], _machine(state, settings, bad=False)
    for i, (mine, of) in enumerate(zip(got, gradients)):
        if of is None:
            if not attempt.require(mine is None, f"gradient {i} is None, and should stay so"):
                return False
            continue
        mistakes = {
            "it is still multiplied by the scale": of.float(),
            "it was divided by the scale of the next step": of.float() / next_scale,
            "it was divided in fp16, where small numbers vanish: first to fp32, then divide": (
                (of.half() / scale).float() if of.dtype == torch.float16 else of.float()
            ),
            "it was multiplied by the scale once more": of.float() * scale,
        }
        right = of.float() / scale
        if not attempt.equal(f"gradient {i}", mine, right, rtol=0.0, mistakes=mistakes):
            return False
    return True


EXERCISE = Exercise(
    id="precision.scale.machine",
    goal="A step of mixed precision in fp16, between the backward pass and the optimizer. The "
    "gradients are those of `scale` times the loss. If one of them, on any rank, is not finite, "
    "all ranks skip the step; else they are divided by the scale. Then the scale moves: after an "
    "overflow down, but only once `patience` is used up; after `interval` good steps in a row up.",
    interface="`my_scaled_step(gradients, scale, streak, patience, settings)` returns `gradients, "
    "scale, streak, patience`, the last three for the next step. gradients: a list of tensors in "
    "fp32 or fp16, this rank's own (other ranks have other shards), some None, some empty; "
    "returned is a new list, all in fp32 (a None stays None), or None if the step is skipped. An "
    "overflow takes 1 from patience and sets streak to 0; if patience is then 0 or less, the scale "
    "becomes scale * settings['backoff'], and at least settings['least']. A good step adds 1 to "
    "streak; when it is settings['interval'], the scale becomes scale * settings['growth'], at "
    "most settings['most'], streak 0 and patience settings['hysteresis']. That is the only way for "
    "patience to come back. Scales are powers of two. `pico.comm.all_reduce(t, axis, reason, op)`; "
    "the axis of all ranks is 'world', op 'sum', 'max' or 'min'.",
    budget="One all-reduce of 8 bytes at most.",
    hints=(
        "What do the ranks have to tell each other, and when? A rank that skips alone has another "
        "scale from then on, and other weights.",
        "`of.isfinite().all()` of each gradient, never of a sum of them. One number, 1 if anything "
        "is bad, the maximum over 'world'. Then two branches, and in each the state for the next "
        "step; the gradients are divided by *this* step's scale.",
        "fp16 has nothing below 6e-8: `of.float() / scale`, in this order. Overflow: `patience - "
        "1`, then ask whether it is <= 0. Good: `streak + 1`, then ask whether it is the interval.",
    ),
    stub_function=my_scaled_step,
    solution_function=solution,
    why="Many gradients of a large run are too small for fp16, so the loss is made larger before "
    "it is differentiated, by a power of two, which rounds nothing. How large, the run finds out: "
    "it grows until something overflows, so a skipped step now and then is how it works and no "
    "sign of trouble. With hysteresis 1 this is `torch.amp.GradScaler`, with more Megatron-LM's "
    "`DynamicGradScaler`, which does not blame the scale for one odd batch. With sharded gradients "
    "only one rank may see the overflow, so the decision travels: 4 bytes a step. Clipping comes "
    "after dividing, or its limit is in scaled units. `pico.source('picolab.precision.scaler')`; "
    "arXiv 1710.03740, section 3.2.",
    judge=judge,
    cases=(
        Case("tp2", values={"world": 2}),
        Case("dp3", values={"world": 3}),
        Case("dp2tp2", "dp and tp: the decision is of all ranks", values={"world": 4}),
    ),
    blocked=(
        "picolab.precision.scaler.LossScaler.update",
        "picolab.precision.scaler.finite",
    ),
    timeout=5.0,
)
