"""Wrong answers to precision.scale.amax, what each author must be told, and right ones."""

import gc
import math

import torch
import torch.distributed as dist

from picolab import comm
from picolab.chapters.c04_mixed_precision.delayed_amax import solution


def _amax(of):
    return of.abs().max().float() if of.numel() else torch.zeros(())


def _over(amax, *axes, op="max"):
    for axis in axes:
        amax = comm.all_reduce(amax, axis, f"amaxes over {axis}", op=op)
    return amax


def _scale(most, largest, scales):
    known = (most > 0) & most.isfinite()
    power = torch.frexp(largest.double() / most.double().where(known, 1.0))[1] - 1
    return torch.ldexp(torch.ones_like(scales), power.clamp(-126, 126)), known


def _answer(
    tensors,
    history,
    scales,
    largest,
    *,
    amax=_amax,
    over=lambda amax: _over(amax, "dp", "cp", "tp"),
    nan=True,
    roll=lambda history, newest: torch.cat([history[1:], newest[None]]),
    most=lambda history: history.amax(0),
    scale=_scale,
    unknown=lambda scales: scales,
):
    """The solution, with one thing to be done otherwise."""
    own = torch.stack([amax(of) for of in tensors])
    own = own.nan_to_num(nan=math.inf, posinf=math.inf) if nan else own
    history = roll(history, over(own))
    found, known = scale(most(history), largest, scales)
    return torch.where(known, found, unknown(scales)), history


def its_own_alone(tensors, history, scales, largest):
    return _answer(tensors, history, scales, largest, over=lambda amax: amax)


def replicas_alone(tensors, history, scales, largest):
    """Over dp (and cp), as gradients are."""
    return _answer(tensors, history, scales, largest, over=lambda amax: _over(amax, "dp", "cp"))


def columns_alone(tensors, history, scales, largest):
    return _answer(tensors, history, scales, largest, over=lambda amax: _over(amax, "tp"))


def the_whole_world(tensors, history, scales, largest):
    return _answer(tensors, history, scales, largest, over=lambda amax: _over(amax, "world"))


def stages_too(tensors, history, scales, largest):
    return _answer(
        tensors, history, scales, largest, over=lambda amax: _over(amax, "dp", "cp", "tp", "pp")
    )


def sums(tensors, history, scales, largest):
    return _answer(
        tensors, history, scales, largest,
        over=lambda amax: _over(amax, "dp", "cp", "tp", op="sum"),
    )  # fmt: skip


def averages(tensors, history, scales, largest):
    def over(amax):
        ranks = [comm.mesh().size(axis) for axis in ("dp", "cp", "tp")]
        return _over(amax, "dp", "cp", "tp", op="sum") / math.prod(ranks)

    return _answer(tensors, history, scales, largest, over=over)


def the_smallest(tensors, history, scales, largest):
    return _answer(
        tensors, history, scales, largest,
        over=lambda amax: _over(amax, "dp", "cp", "tp", op="min"),
    )  # fmt: skip


def without_sign(tensors, history, scales, largest):
    """The largest, not the largest size."""

    def amax(of):
        return of.max().float() if of.numel() else torch.zeros(())

    return _answer(tensors, history, scales, largest, amax=amax)


def one_message_each(tensors, history, scales, largest):
    def over(amax):
        return torch.cat([_over(one.clone(), "dp", "cp", "tp") for one in amax.split(1)])

    return _answer(tensors, history, scales, largest, over=over)


def history_travels(tensors, history, scales, largest):
    """The whole history is agreed on, in each step anew."""

    def roll(history, newest):
        return _over(torch.cat([history[1:], newest[None]]), "dp", "cp", "tp")

    return _answer(tensors, history, scales, largest, over=lambda amax: amax, roll=roll)


def in_fp64(tensors, history, scales, largest):
    def over(amax):
        return _over(amax.double(), "dp", "cp", "tp").float()

    return _answer(tensors, history, scales, largest, over=over)


def returns_fp64(tensors, history, scales, largest):
    return tuple(of.double() for of in solution(tensors, history, scales, largest))


def newest_first(tensors, history, scales, largest):
    return _answer(
        tensors, history, scales, largest,
        roll=lambda history, newest: torch.cat([newest[None], history[:-1]]),
    )  # fmt: skip


def grows_for_ever(tensors, history, scales, largest):
    return _answer(
        tensors, history, scales, largest,
        roll=lambda history, newest: torch.cat([history, newest[None]]),
    )  # fmt: skip


def rolls_the_wrong_way(tensors, history, scales, largest):
    def roll(history, newest):
        history = history.roll(1, 0)
        history[-1] = newest
        return history

    return _answer(tensors, history, scales, largest, roll=roll)


def a_running_maximum(tensors, history, scales, largest):
    def roll(history, newest):
        newest = torch.maximum(newest, history.amax(0))
        return torch.cat([history[1:], newest[None]])

    return _answer(tensors, history, scales, largest, roll=roll)


def of_this_step_alone(tensors, history, scales, largest):
    return _answer(tensors, history, scales, largest, most=lambda history: history[-1])


def of_the_steps_before(tensors, history, scales, largest):
    return _answer(tensors, history, scales, largest, most=lambda history: history[:-1].amax(0))


def any_number(tensors, history, scales, largest):
    def scale(most, largest, scales):
        known = (most > 0) & most.isfinite()
        return largest / most.where(known, 1.0), known

    return _answer(tensors, history, scales, largest, scale=scale)


def rounds_up(tensors, history, scales, largest):
    def scale(most, largest, scales):
        found, known = _scale(most, largest, scales)
        return (found * 2).clamp(max=2.0**126), known

    return _answer(tensors, history, scales, largest, scale=scale)


def by_log2_in_fp32(tensors, history, scales, largest):
    """A ratio that is just below a power of two, or beyond fp32."""

    def scale(most, largest, scales):
        known = (most > 0) & most.isfinite()
        power = torch.log2(largest / most.where(known, 1.0)).floor()
        return torch.exp2(power.clamp(-126, 126)), known

    return _answer(tensors, history, scales, largest, scale=scale)


def to_the_nearest_power(tensors, history, scales, largest):
    def scale(most, largest, scales):
        known = (most > 0) & most.isfinite()
        power = torch.log2(largest.double() / most.double().where(known, 1.0)).round()
        return torch.exp2(power.clamp(-126, 126)).float(), known

    return _answer(tensors, history, scales, largest, scale=scale)


def the_inverse(tensors, history, scales, largest):
    def scale(most, largest, scales):
        found, known = _scale(most, largest, scales)
        return 1 / found, known

    return _answer(tensors, history, scales, largest, scale=scale)


def of_e4m3_for_all(tensors, history, scales, largest):
    return _answer(
        tensors, history, scales, largest,
        scale=lambda most, largest, scales: _scale(most, torch.full_like(largest, 448.0), scales),
    )  # fmt: skip


def one_for_what_is_zero(tensors, history, scales, largest):
    return _answer(tensors, history, scales, largest, unknown=torch.ones_like)


def without_bounds(tensors, history, scales, largest):
    def scale(most, largest, scales):
        known = (most > 0) & most.isfinite()
        power = torch.frexp(largest.double() / most.double().where(known, 1.0))[1] - 1
        return torch.ldexp(torch.ones_like(largest).double(), power.double()).float(), known

    return _answer(tensors, history, scales, largest, scale=scale)


def an_infinity_is_put_aside(tensors, history, scales, largest):
    def over(amax):
        return _over(amax.nan_to_num(posinf=0.0), "dp", "cp", "tp")

    return _answer(tensors, history, scales, largest, over=over)


def nan_travels(tensors, history, scales, largest):
    """A NaN is sent as it is, and a rank that has one keeps it."""
    own = torch.stack([_amax(of) for of in tensors])

    def over(amax):
        told = _over(amax, "dp", "cp", "tp")
        return torch.where(own.isnan(), own, told)

    return _answer(tensors, history, scales, largest, over=over, nan=False)


def needs_elements(tensors, history, scales, largest):
    return _answer(tensors, history, scales, largest, amax=lambda of: of.abs().max().float())


def empty_ones_stay_away(tensors, history, scales, largest):
    """A rank without tokens has nothing to say, and does not."""
    if all(of.numel() == 0 for of in tensors):
        return scales, history
    return solution(tensors, history, scales, largest)


def in_the_given_history(tensors, history, scales, largest):
    found, rolled = solution(tensors, history, scales, largest)
    history.copy_(rolled)
    return found, history


def in_the_given_scales(tensors, history, scales, largest):
    found, rolled = solution(tensors, history, scales, largest)
    return scales.copy_(found), rolled


def takes_sizes_in_place(tensors, history, scales, largest):
    for of in tensors:
        of.abs_()
    return solution(tensors, history, scales, largest)


_known: dict = {}


def keeps_its_own_history(tensors, history, scales, largest):
    """What is given is looked at in the first call, and the argument is not."""
    history = _known.get("history", history[:-1])
    found, history = solution(tensors, history, scales, largest)
    _known["history"] = history
    return found, history


def every_second_step(tensors, history, scales, largest):
    """To save a latency: in between, what the others had in the step before has to do."""
    _known["step"] = _known.get("step", 0) + 1
    if _known["step"] % 2:
        return solution(tensors, history, scales, largest)
    return its_own_alone(tensors, history, scales, largest)


def travels_in_bf16(tensors, history, scales, largest):
    def over(amax):
        return _over(amax.bfloat16(), "dp", "cp", "tp").float()

    return _answer(tensors, history, scales, largest, over=over)


def powers_travel(tensors, history, scales, largest):
    """What is agreed on is the exponent, a byte each; the history has this rank's own amaxes."""

    def over(amax):
        power = torch.frexp(amax)[1].to(torch.int8)
        told = _over(power, "dp", "cp", "tp")
        return torch.where(told == power, amax, torch.exp2(told.float()))

    return _answer(tensors, history, scales, largest, over=over)


def the_other_order(tensors, history, scales, largest):
    return solution(tensors, history, scales, largest)[::-1]


def scales_alone(tensors, history, scales, largest):
    return solution(tensors, history, scales, largest)[0]


def gathers(tensors, history, scales, largest):
    def over(amax):
        parts = [torch.empty_like(amax) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, amax)
        return torch.stack(parts).amax(0)

    return _answer(tensors, history, scales, largest, over=over)


def gathers_objects(tensors, history, scales, largest):
    def over(amax):
        parts = [None] * dist.get_world_size()
        dist.all_gather_object(parts, amax)
        return torch.stack(parts).amax(0)

    return _answer(tensors, history, scales, largest, over=over)


def reads_the_judges_memory(tensors, history, scales, largest):
    """Other ranks' operands, if the judge has them: nothing would have to travel."""
    shapes = [of.shape[1:] for of in tensors]
    for found in gc.get_objects():
        if isinstance(found, dict) and found and all(isinstance(key, int) for key in found):
            values = list(found.values())
            if all(isinstance(one, torch.Tensor) and len(one) == len(shapes) for one in values):
                amax = torch.stack(values).amax(0)
                return _answer(tensors, history, scales, largest, over=lambda _, amax=amax: amax)
    return its_own_alone(tensors, history, scales, largest)


def four_steps_always(tensors, history, scales, largest):
    def roll(history, newest):
        return torch.cat([history[-3:], newest[None]])

    return _answer(tensors, history, scales, largest, roll=roll)


def knows_no_least(tensors, history, scales, largest):
    def scale(most, largest, scales):
        known = (most > 0) & most.isfinite()
        power = torch.frexp(largest.double() / most.double().where(known, 1.0))[1] - 1
        return torch.ldexp(torch.ones_like(scales), power.clamp(max=126)), known

    return _answer(tensors, history, scales, largest, scale=scale)


def goes_on_with_its_own(tensors, history, scales, largest):
    """The history that it returned last, whatever is given."""
    history = _known.get(history.shape, history)
    found, history = solution(tensors, history, scales, largest)
    _known[history.shape] = history
    return found, history


MUTANTS = {
    its_own_alone: "its newest amaxes are this rank's own",
    the_whole_world: "hold other layers",
    replicas_alone: "its newest amaxes are those over dp alone",
    columns_alone: "its newest amaxes are this rank's own",
    stages_too: "hold other layers",
    sums: "amaxes were added up over the ranks",
    averages: "amaxes were averaged over the ranks",
    the_smallest: "it is the smallest of the ranks' amaxes",
    without_sign: "history is wrong",
    one_message_each: "it takes 6 all-reduces, and the budget is 1",
    history_travels: "carry",
    in_fp64: "carry",
    returns_fp64: "is in torch.float64, and should be in torch.float32",
    newest_first: "the newest amaxes come last",
    grows_for_ever: "has the shape (5, 6), and should have (4, 6)",
    rolls_the_wrong_way: "history is wrong",
    a_running_maximum: "it has the largest so far in its newest row",
    of_this_step_alone: "it is of this step's amaxes alone",
    of_the_steps_before: "it is of the history without this step",
    any_number: "and no power of two",
    rounds_up: "it is the power of two above",
    by_log2_in_fp32: "scales",
    to_the_nearest_power: "scales",
    the_inverse: "it is the inverse",
    of_e4m3_for_all: "it is of 448 for every operand",
    one_for_what_is_zero: "the scale stays what it was",
    without_bounds: "it went beyond 2^-126 or 2^126",
    an_infinity_is_put_aside: "an amax that is not finite was put aside",
    nan_travels: "nan",
    needs_elements: "input.numel() == 0",
    empty_ones_stay_away: "still waits for them in all_reduce",
    in_the_given_history: "it changed its input `history`",
    in_the_given_scales: "it changed its input `scales`",
    takes_sizes_in_place: "it changed its input `tensors`",
    keeps_its_own_history: "has the shape (3, 6)",
    every_second_step: "its newest amaxes are this rank's own",
    travels_in_bf16: "history",
    powers_travel: "history",
    the_other_order: "in the order history, scales",
    scales_alone: "it returns one thing",
    gathers: "it uses all-gathers",
    gathers_objects: "`all_gather_object`",
    reads_the_judges_memory: "its newest amaxes are this rank's own",
    four_steps_always: "has the shape (4, 6), and should have (3, 6)",
    knows_no_least: "it went beyond 2^-126 or 2^126",
    goes_on_with_its_own: "it goes on from what it returned before",
}


def with_one_group(tensors, history, scales, largest):
    """One raw all-reduce over all ranks of the stage, as bits: positive numbers sort like them."""
    mesh, me = comm.mesh(), dist.get_rank()
    stage = dist.get_world_size() // mesh.size("pp")
    if "groups" not in _known:
        firsts = range(0, dist.get_world_size(), stage)
        _known["groups"] = [dist.new_group(list(range(f, f + stage))) for f in firsts]
    groups = _known["groups"]
    own = torch.zeros(len(tensors))
    for i, of in enumerate(tensors):
        if of.numel():
            size = of.float().abs().amax()
            own[i] = math.inf if size.isnan() else size
    bits = own.view(torch.int32)
    dist.all_reduce(bits, op=dist.ReduceOp.MAX, group=groups[me // stage])
    history = torch.vstack([history[1:], bits.view(torch.float32)])
    found = scales.clone()
    for i, (most, top) in enumerate(zip(history.amax(0).tolist(), largest.tolist())):
        if 0 < most < math.inf:
            power = math.floor(math.log2(top / most))
            power -= 2.0**power > top / most  # (log2 rounds)
            found[i] = 2.0 ** min(126, max(-126, power))
    return found, history


def over_dp_cp(tensors, history, scales, largest):
    """The derived axis of all ranks with other tokens, then the columns."""
    own = [of.float().abs().flatten().tolist() for of in tensors]
    own = [max((math.inf if x != x else x for x in of), default=0.0) for of in own]
    amax = torch.tensor(own, dtype=torch.float32)
    for axis in ("tp", "dp_cp"):
        if comm.mesh().size(axis) > 1:
            amax = comm.all_reduce(amax, axis, "amax", op="max")
    rolled = history.roll(-1, 0)
    rolled[-1] = amax
    ratio = largest.double() / rolled.amax(0).double()
    known = (rolled.amax(0) > 0) & rolled.amax(0).isfinite()
    power = torch.frexp(ratio.where(known, 1.0)).exponent
    new = torch.pow(2.0, (power - 1).clamp(-126, 126).double()).float()
    return [new.where(known, scales), rolled]


RIGHT = (with_one_group, over_dp_cp)
