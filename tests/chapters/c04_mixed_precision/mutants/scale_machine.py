"""Wrong answers to precision.scale.machine, what each author must be told, and right ones."""

import inspect

import torch
import torch.distributed as dist

from picolab import comm
from picolab.chapters.c04_mixed_precision.scale_machine import solution


def _agreed(bad):
    flag = torch.tensor(float(bad))
    return bool(comm.all_reduce(flag, "world", "overflow?", op="max").item())


def _finite(gradients):
    return all(bool(of.isfinite().all()) for of in gradients if of is not None)


def _unscaled(gradients, scale):
    return [None if of is None else of.float() / scale for of in gradients]


def _answer(
    gradients,
    scale,
    streak,
    patience,
    settings,
    *,
    finite=_finite,
    agreed=_agreed,
    unscale=_unscaled,
    fall=None,
    after_fall=lambda patience, settings: patience,
    grow=lambda streak, settings: streak == settings["interval"],
    refill=lambda patience, settings: settings["hysteresis"],
    after_good=lambda patience, settings: patience,
    least=True,
    most=True,
    streak_after=lambda streak: 0,
    skipped=lambda gradients: None,
    later=False,
):
    """The solution, with one thing to be done otherwise."""
    fall = fall or (lambda patience: patience <= 0)
    if agreed(not finite(gradients)):
        patience -= 1
        if fall(patience):
            scale = scale * settings["backoff"]
            scale = max(scale, settings["least"]) if least else scale
            patience = after_fall(patience, settings)
        return skipped(gradients), scale, streak_after(streak), patience
    before, streak = scale, streak + 1
    patience = after_good(patience, settings)
    if grow(streak, settings):
        scale = scale * settings["growth"]
        scale = min(scale, settings["most"]) if most else scale
        streak, patience = 0, refill(patience, settings)
    return unscale(gradients, scale if later else before), scale, streak, patience


def decides_alone(gradients, scale, streak, patience, settings):
    def agreed(bad):
        _agreed(bad)  # and looks at nothing but its own
        return bad

    return _answer(gradients, scale, streak, patience, settings, agreed=agreed)


def says_nothing(gradients, scale, streak, patience, settings):
    return _answer(gradients, scale, streak, patience, settings, agreed=lambda bad: bad)


def asks_the_rows_alone(gradients, scale, streak, patience, settings):
    """Over dp, and ranks of tp have other shards."""

    def agreed(bad):
        flag = torch.tensor(float(bad))
        return bool(comm.all_reduce(flag, "dp", "overflow?", op="max").item())

    return _answer(gradients, scale, streak, patience, settings, agreed=agreed)


def both_axes_in_turn(gradients, scale, streak, patience, settings):
    """Right, and one all-reduce too many where there are two axes."""

    def agreed(bad):
        flag = torch.tensor(float(bad))
        for axis in ("dp", "cp", "tp", "pp"):
            flag = comm.all_reduce(flag, axis, "overflow?", op="max")
        return bool(flag.item())

    return _answer(gradients, scale, streak, patience, settings, agreed=agreed)


def needs_all_of_them(gradients, scale, streak, patience, settings):
    """The minimum of "bad": one rank that is fine is enough to go on."""

    def agreed(bad):
        flag = torch.tensor(float(bad))
        return bool(comm.all_reduce(flag, "world", "overflow?", op="min").item())

    return _answer(gradients, scale, streak, patience, settings, agreed=agreed)


def by_a_vote(gradients, scale, streak, patience, settings):
    def agreed(bad):
        flag = torch.tensor(float(bad))
        votes = comm.all_reduce(flag, "world", "overflow?").item()
        return votes > dist.get_world_size() / 2

    return _answer(gradients, scale, streak, patience, settings, agreed=agreed)


def by_the_sum(gradients, scale, streak, patience, settings):
    """A sum of finite numbers that is not finite counts as an overflow."""

    def finite(gradients):
        return all(bool(of.sum().isfinite()) for of in gradients if of is not None)

    return _answer(gradients, scale, streak, patience, settings, finite=finite)


def infinities_alone(gradients, scale, streak, patience, settings):
    def finite(gradients):
        return not any(bool(of.isinf().any()) for of in gradients if of is not None)

    return _answer(gradients, scale, streak, patience, settings, finite=finite)


def nan_alone(gradients, scale, streak, patience, settings):
    def finite(gradients):
        return not any(bool(of.isnan().any()) for of in gradients if of is not None)

    return _answer(gradients, scale, streak, patience, settings, finite=finite)


def the_first_gradient_alone(gradients, scale, streak, patience, settings):
    return _answer(gradients, scale, streak, patience, settings, finite=lambda of: _finite(of[:1]))


def heeds_no_patience(gradients, scale, streak, patience, settings):
    return _answer(gradients, scale, streak, patience, settings, fall=lambda patience: True)


def one_too_patient(gradients, scale, streak, patience, settings):
    return _answer(gradients, scale, streak, patience, settings, fall=lambda patience: patience < 0)


def falls_once_alone(gradients, scale, streak, patience, settings):
    """At patience 0 exactly, and not below."""
    return _answer(
        gradients, scale, streak, patience, settings, fall=lambda patience: patience == 0
    )


def patience_back_at_once(gradients, scale, streak, patience, settings):
    return _answer(
        gradients, scale, streak, patience, settings,
        after_fall=lambda patience, settings: settings["hysteresis"],
    )  # fmt: skip


def patience_back_by_a_good_step(gradients, scale, streak, patience, settings):
    return _answer(
        gradients, scale, streak, patience, settings,
        after_good=lambda patience, settings: settings["hysteresis"],
    )  # fmt: skip


def patience_never_back(gradients, scale, streak, patience, settings):
    return _answer(
        gradients, scale, streak, patience, settings, refill=lambda patience, settings: patience
    )


def grows_a_step_late(gradients, scale, streak, patience, settings):
    return _answer(
        gradients, scale, streak, patience, settings,
        grow=lambda streak, settings: streak > settings["interval"],
    )  # fmt: skip


def grows_a_step_early(gradients, scale, streak, patience, settings):
    return _answer(
        gradients, scale, streak, patience, settings,
        grow=lambda streak, settings: streak == max(1, settings["interval"] - 1),
    )  # fmt: skip


def never_grows(gradients, scale, streak, patience, settings):
    return _answer(
        gradients, scale, streak, patience, settings, grow=lambda streak, settings: False
    )


def streak_goes_on(gradients, scale, streak, patience, settings):
    return _answer(gradients, scale, streak, patience, settings, streak_after=lambda streak: streak)


def knows_no_least(gradients, scale, streak, patience, settings):
    return _answer(gradients, scale, streak, patience, settings, least=False)


def knows_no_most(gradients, scale, streak, patience, settings):
    return _answer(gradients, scale, streak, patience, settings, most=False)


def stays_scaled(gradients, scale, streak, patience, settings):
    return _answer(
        gradients, scale, streak, patience, settings,
        unscale=lambda gradients, _: _unscaled(gradients, 1.0),
    )  # fmt: skip


def divides_by_the_next_scale(gradients, scale, streak, patience, settings):
    return _answer(gradients, scale, streak, patience, settings, later=True)


def divides_in_fp16(gradients, scale, streak, patience, settings):
    def unscale(gradients, scale):
        return [None if of is None else (of / scale).float() for of in gradients]

    return _answer(gradients, scale, streak, patience, settings, unscale=unscale)


def leaves_fp16(gradients, scale, streak, patience, settings):
    def unscale(gradients, scale):
        return [None if of is None else (of.float() / scale).to(of.dtype) for of in gradients]

    return _answer(gradients, scale, streak, patience, settings, unscale=unscale)


def in_fp64(gradients, scale, streak, patience, settings):
    def unscale(gradients, scale):
        return [None if of is None else of.double() / scale for of in gradients]

    return _answer(gradients, scale, streak, patience, settings, unscale=unscale)


def zeros_for_none(gradients, scale, streak, patience, settings):
    def unscale(gradients, scale):
        return [torch.zeros(1) if of is None else of.float() / scale for of in gradients]

    return _answer(gradients, scale, streak, patience, settings, unscale=unscale)


def leaves_none_out(gradients, scale, streak, patience, settings):
    def unscale(gradients, scale):
        return [of.float() / scale for of in gradients if of is not None]

    return _answer(gradients, scale, streak, patience, settings, unscale=unscale)


def zeros_instead_of_a_skip(gradients, scale, streak, patience, settings):
    def skipped(gradients):
        return [None if of is None else torch.zeros_like(of).float() for of in gradients]

    return _answer(gradients, scale, streak, patience, settings, skipped=skipped)


def in_place(gradients, scale, streak, patience, settings):
    def unscale(gradients, scale):
        for of in gradients:
            if of is not None:
                of /= scale
        return _unscaled(gradients, 1.0)

    return _answer(gradients, scale, streak, patience, settings, unscale=unscale)


def in_its_own_list(gradients, scale, streak, patience, settings):
    """The list that came in is filled anew."""

    def unscale(gradients, scale):
        gradients[:] = _unscaled(gradients, scale)
        return gradients

    return _answer(gradients, scale, streak, patience, settings, unscale=unscale)


def keeps_its_state_in_settings(gradients, scale, streak, patience, settings):
    found = solution(gradients, scale, streak, patience, settings)
    settings["streak"] = found[2]
    return found


_state: dict = {}


def keeps_its_own_state(gradients, scale, streak, patience, settings):
    """The arguments are looked at in the first call alone."""
    state = _state.setdefault("state", (scale, streak, patience))
    found = solution(gradients, *state, settings)
    _state["state"] = found[1:]
    return found


def torchs_defaults(gradients, scale, streak, patience, settings):
    """Hard-coded: growth 2, backoff 1/2, hysteresis 1, as in the first setting."""
    torchs = {"growth": 2.0, "backoff": 0.5, "interval": 3, "hysteresis": 1}
    return solution(gradients, scale, streak, patience, settings | torchs)


def sends_everything(gradients, scale, streak, patience, settings):
    """All gradients travel, and then everybody knows."""

    def agreed(bad):
        flat = torch.cat([of.float().flatten() for of in gradients if of is not None][1:2])
        flat = torch.nn.functional.pad(flat, (0, 20 - len(flat)))
        comm.all_reduce(flat, "world", "all of it")
        return _agreed(bad)

    return _answer(gradients, scale, streak, patience, settings, agreed=agreed)


def gathers_objects(gradients, scale, streak, patience, settings):
    def agreed(bad):
        told = [None] * dist.get_world_size()
        dist.all_gather_object(told, bad)
        return any(told)

    return _answer(gradients, scale, streak, patience, settings, agreed=agreed)


def the_largest_travels(gradients, scale, streak, patience, settings):
    """A maximum with NaN in it is whatever the transport makes of it."""

    def agreed(_):
        largest = [of.float().abs().max() for of in gradients if of is not None and of.numel()]
        most = torch.stack(largest).max()
        most = torch.where(most.isnan(), torch.tensor(0.0), most)  # (what some make of it)
        return not comm.all_reduce(most, "world", "largest", op="max").isfinite().item()

    return _answer(gradients, scale, streak, patience, settings, agreed=agreed)


def forgets_the_state(gradients, scale, streak, patience, settings):
    return solution(gradients, scale, streak, patience, settings)[:2]


def reads_the_judges_frames(gradients, scale, streak, patience, settings):
    """Whether the step is bad stands in the judge's script; nothing has to travel for that."""
    for frame in inspect.stack():
        found = frame.frame.f_locals
        if "script" in found and "step" in found:
            bad = found["script"][found["step"]] != "."
            return _answer(
                gradients, scale, streak, patience, settings, agreed=lambda _, bad=bad: bad
            )
    return says_nothing(gradients, scale, streak, patience, settings)


def leaves_out_what_overshoots(gradients, scale, streak, patience, settings):
    """A growth that would go beyond the most is none."""
    found, now, *others = solution(gradients, scale, streak, patience, settings)
    now = scale if scale < now < scale * settings["growth"] else now
    return found, now, *others


def patience_back_below_the_most(gradients, scale, streak, patience, settings):
    """Only a growth that moves the scale gives patience back."""
    found, now, streak, after = solution(gradients, scale, streak, patience, settings)
    stays = found is not None and now == scale
    return found, now, streak, patience if stays else after


def the_last_gradient_is_forgotten(gradients, scale, streak, patience, settings):
    """An index that ends too early."""
    return _answer(gradients, scale, streak, patience, settings, finite=lambda of: _finite(of[:-1]))


MUTANTS = {
    decides_alone: "All ranks decide alike",
    patience_back_by_a_good_step: "patience came back with a good step",
    says_nothing: "a rank can only be told",
    asks_the_rows_alone: "a rank can only be told",
    both_axes_in_turn: "it takes 2 all-reduces, and the budget is 1",
    needs_all_of_them: "has a gradient that is not finite, so the step is skipped",
    by_a_vote: "has a gradient that is not finite, so the step is skipped",
    by_the_sum: "a sum of finite numbers need not be",
    infinities_alone: "has a gradient that is not finite",
    nan_alone: "has a gradient that is not finite",
    the_first_gradient_alone: "has a gradient that is not finite",
    heeds_no_patience: "patience was not heeded",
    one_too_patient: "at the overflow that uses the last of the patience",
    falls_once_alone: "scale is",
    patience_back_at_once: "patience came back when the scale fell",
    patience_never_back: "patience did not come back with growth",
    grows_a_step_late: "growth comes a step late",
    grows_a_step_early: "growth comes a step early",
    never_grows: "growth comes a step late",
    streak_goes_on: "the streak goes on over an overflow",
    knows_no_least: "it went beyond `least` or `most`",
    knows_no_most: "it went beyond `least` or `most`",
    stays_scaled: "it is still multiplied by the scale",
    divides_by_the_next_scale: "it was divided by the scale of the next step",
    divides_in_fp16: "it was divided in fp16",
    leaves_fp16: "is in torch.float16, and should be in torch.float32",
    in_fp64: "is in torch.float64, and should be in torch.float32",
    zeros_for_none: "gradient 1 is None, and should stay so",
    leaves_none_out: "asked for is a list of 6",
    zeros_instead_of_a_skip: "the gradients returned are None",
    in_place: "it changed its input `gradients`",
    in_its_own_list: "it changed its input `gradients`",
    keeps_its_state_in_settings: "it changed its input `settings`",
    keeps_its_own_state: "patience of 2, growth after 4",
    torchs_defaults: "between 8 and 64",
    sends_everything: "it takes 2 all-reduces",
    gathers_objects: "`all_gather_object`",
    the_largest_travels: "so the step is skipped",
    forgets_the_state: "it returns 2 things",
    reads_the_judges_frames: "a rank can only be told",
    patience_back_below_the_most: "patience did not come back with growth",
    the_last_gradient_is_forgotten: "has a gradient that is not finite",
    leaves_out_what_overshoots: "a step that would go beyond `least` or `most` was left out",
}


def with_a_sum(gradients, scale, streak, patience, settings):
    """How many ranks are bad, by the raw all-reduce; gradients by a reciprocal."""
    bad = torch.zeros(1, dtype=torch.int32)
    for of in gradients:
        if of is not None and (~torch.isfinite(of)).any():
            bad[0] = 1
    dist.all_reduce(bad)
    overflow = bad.item() > 0
    patience -= overflow
    if overflow and patience < 1:
        scale = max(settings["least"], settings["backoff"] * scale)
    if overflow:
        return None, scale, 0, patience
    found = [of if of is None else of.to(torch.float32) * (1 / scale) for of in gradients]
    if streak + 1 < settings["interval"]:
        return found, scale, streak + 1, patience
    return found, min(settings["most"], settings["growth"] * scale), 0, settings["hysteresis"]


def with_a_minimum(gradients, scale, streak, patience, settings):
    """Is everything fine everywhere? The minimum of yes and no, as bytes."""
    there = [of for of in gradients if of is not None]
    # 0 * x is 0 for what is finite and NaN for all else, so this sum is 0 or NaN.
    fine = torch.tensor(float(sum((0 * of.double()).sum() for of in there)) == 0)
    fine = comm.all_reduce(fine.to(torch.uint8), "world", "fine?", op="min")
    if fine.item():
        unscaled = [None if of is None else of.float().div(scale) for of in gradients]
        state = (scale, streak + 1, patience)
        if state[1] == settings["interval"]:
            grown = min(scale * settings["growth"], settings["most"])
            state = (grown, 0, settings["hysteresis"])
        return [unscaled, *state]
    fallen = max(scale * settings["backoff"], settings["least"]) if patience <= 1 else scale
    return [None, fallen, 0, patience - 1]


RIGHT = (with_a_sum, with_a_minimum)
