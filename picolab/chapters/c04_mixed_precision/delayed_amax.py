"""Exercise: amaxes over the right ranks, for delayed scaling (chapter 4, section 2).

Several steps in a row. A rank's operands come from a seed of its own and those of other ranks are
drawn only after it has answered, so that what it knows of them it was told.
"""

import math

import torch

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise

OTHER = 2.0**-9  # the history of a run that is taken up again, beside the one just returned


def my_delayed(tensors, history, scales, largest):
    raise NotImplementedError(f"{len(tensors)} operands of this step, {len(history)} steps known")


def solution(tensors, history, scales, largest):
    import torch

    import picolab as pico

    own = [of.abs().max().float() if of.numel() else torch.zeros(()) for of in tensors]
    amax = torch.stack(own).nan_to_num(nan=torch.inf, posinf=torch.inf)  # a NaN has no maximum
    for axis in ("dp", "cp", "tp"):  # other tokens, other tokens, other columns; pp: other layers
        amax = pico.comm.all_reduce(amax, axis, f"fp8: amaxes over {axis}", op="max")
    history = torch.cat([history[1:], amax[None]])
    most = history.amax(0)
    known = (most > 0) & most.isfinite()
    # frexp is exact, log2 of a number just below a power of two is not.
    power = torch.frexp(largest.double() / most.double().where(known, 1.0))[1] - 1
    found = torch.ldexp(torch.ones_like(scales), power.clamp(-126, 126))
    return torch.where(known, found, scales), history


def judge(learner, attempt: Attempt) -> None:
    mesh, seed = comm.mesh(), attempt.case.values["seed"]
    steps = attempt.case.values["steps"]
    axes = [axis for axis in ("dp", "cp", "tp") if mesh.size(axis) > 1]
    stage = mesh.size("world") // mesh.size("pp")
    ours = range(attempt.rank // stage * stage, (attempt.rank // stage + 1) * stage)
    # The one of 1.75 is no fp8, and the only one whose scale can come to 2^-126.
    largest = torch.tensor([448.0, 1.75, 57344.0, 448.0, 57344.0, 448.0])
    state = [torch.zeros(steps, len(largest)), torch.ones(len(largest))]  # history, scales
    for step, kind in enumerate(_STEPS):
        attempt.setting(f"step {step + 1}, {kind}" if kind else f"step {step + 1}")
        mine = _draw(seed, step, attempt.rank, kind, largest)
        if kind == "of a run that is taken up again":  # what comes in is what counts
            state = [state[0] * OTHER, state[1] * 0.5]
        given = {
            "tensors": mine, "history": state[0], "scales": state[1], "largest": largest,
        }  # fmt: skip
        result = attempt.call(learner, given)
        attempt.only("all_reduce")
        _within(attempt, ours)
        everyones = {
            rank: _amaxes(_draw(seed, step, rank, kind, largest))
            for rank in range(mesh.size("world"))
        }
        right = _compare(attempt, result, everyones, ours, axes, state, largest)
        n = 4 * len(largest)
        hint = "the largest of another rank's part of a tensor, a rank can only be told"
        attempt.budget("all_reduce", count=len(axes), at_least=1, hint=hint)
        attempt.budget("all_reduce", payload_bytes=len(axes) * n, least_bytes=n, hint=hint)
        state = right  # a rank that is wrong must still take part in the next step


_STEPS = (
    "", "", "", "the largest are on one rank", "", "all zero on every rank but one", "",
    "the largest is 448 or a little beside it", "an infinity on some ranks", "", "", "", "",
    "a NaN on some ranks", "no tokens on some ranks", "of a run that is taken up again", "", "",
    "tiny numbers",
    "", "a little more than 2^-60 of the end of the format", "", "huge ones", "",
)  # fmt: skip


def _draw(seed: int, step: int, rank: int, kind: str, largest) -> list[torch.Tensor]:
    """A rank's parts of six operands. (The last one is all zero until step 6, on all ranks.)"""
    draw = torch.Generator().manual_seed(seed + 100 * step + rank)
    shapes = ((3 + rank, 5), (4, 2), (2, 3, 4), (11,), (1, 1), (5, 2))
    of = [torch.randn(shape, generator=draw) for shape in shapes]
    # Of another size on each rank and in each step, and of either sign.
    sizes = torch.randint(-6, 7, (len(of),), generator=draw)
    of = [one * 2.0 ** int(size) for one, size in zip(of, sizes)]
    for one in of:
        one.view(-1)[0] = -one.abs().max() * (1 + rank / 8)
    if step < 6:
        of[-1].zero_()
    if kind == "the largest are on one rank":
        of = [one * 1000.0 if rank == step % 2 else one for one in of]
    if kind == "all zero on every rank but one" and rank != 1:
        of = [one * 0.0 for one in of]
    if kind == "the largest is 448 or a little beside it":
        edge = torch.tensor([448.0, 448.00003, 57344.0, 447.99997, 57340.0, 1.0])
        of = [one / one.abs().max() * at for one, at in zip(of, edge)]
        for one, at in zip(of, edge):
            one.view(-1)[0] = -at
    if kind == "an infinity on some ranks" and rank % 2 == 1:
        of[1][-1, -1], of[3][2] = -math.inf, math.inf
    if kind == "a NaN on some ranks" and rank % 2 == 0:
        of[2][0, 0, 1] = math.nan
    if kind == "no tokens on some ranks" and rank % 2 == 0:
        of = [one[:0] for one in of]
    if kind == "tiny numbers" or (step > 18 and kind != "huge ones"):
        of = [one * small for one, small in zip(of, (1e-30, 1e-38, 1e-20, 1e-37, 1e-10, 1e-36))]
    if kind.startswith("a little more"):  # log2 of the ratio is 59.9999999
        of = [one.clamp(-1e-30, 1e-30) for one in of]
        for one, end in zip(of, largest.tolist()):
            one.view(-1)[0] = -end * 2.0**-60 * (1 + 2.0**-23)
    if kind == "huge ones":
        of = [one / one.abs().max() * 3e38 for one in of]
    # Activations are in bf16, what else there is in fp32.
    return [one.bfloat16() if i in (0, 4) else one for i, one in enumerate(of)]


def _amaxes(tensors: list[torch.Tensor], of=lambda t: t.abs().max()) -> torch.Tensor:
    """NaN counts as infinite."""
    found = [of(t.float()) if t.numel() else torch.zeros(()) for t in tensors]
    return torch.stack(found).nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)


def _within(attempt: Attempt, ours: range) -> None:
    """Nobody is asked who holds other layers."""
    for ranks in sorted({entry.ranks for entry in attempt.entries}):
        others = [rank for rank in ranks if rank not in ours]
        if others:
            attempt.wrong(
                f"it communicates over the ranks {ranks}, and {others} hold other layers: their "
                f"amaxes are of other tensors. Of the same ones are {list(ours)}"
            )


def _compare(attempt: Attempt, result, everyones, ours, axes, state, largest) -> list:
    history, scales = state
    group = torch.stack([everyones[rank] for rank in ours])
    right_history = torch.cat([history[1:], group.amax(0)[None]])
    right = _scales(right_history.amax(0), scales, largest)
    following = [right_history, right]
    if not attempt.returned(result, "scales", "history"):
        return following
    got, kept = result
    if not attempt.in_order(scales=(got, right), history=(kept, right_history)):
        return following
    own, whole = everyones[attempt.rank], torch.stack(list(everyones.values())).amax(0)
    mesh = comm.mesh()

    def after(newest: torch.Tensor) -> torch.Tensor:
        return torch.cat([history[1:], newest[None]])

    along = {
        axis: torch.stack([everyones[rank] for rank in mesh.ranks(axis)]).amax(0) for axis in axes
    }
    mistakes = {
        "its newest amaxes are this rank's own: the other parts of the same tensors are on other "
        "ranks": after(own),
        **(
            {
                f"its newest amaxes are those over {axis} alone; the parts are on the ranks of "
                f"{' and '.join(axes)}": after(of)
                for axis, of in along.items()
            }
            if len(axes) > 1
            else {}
        ),
        "ranks of pp hold other layers, and their amaxes are in it": after(whole),
        "amaxes were added up over the ranks; the largest is asked for": after(group.sum(0)),
        "amaxes were averaged over the ranks; the largest is asked for": after(group.mean(0)),
        "it is the smallest of the ranks' amaxes": after(group.amin(0)),
        "the newest amaxes come last, and the oldest go: the first row": (
            torch.cat([group.amax(0)[None], history[:-1]]),
            torch.cat([group.amax(0)[None], history[1:]]),
            torch.cat([history[:-1], group.amax(0)[None]]),
        ),
        "it is the history of the step before: this step's amaxes are missing": history,
        "it goes on from what it returned before, and not from the history that is given": (
            torch.cat([history[1:] / OTHER, group.amax(0)[None]])
        ),
        "it has the largest so far in its newest row; asked for is this step's": after(
            torch.maximum(history.amax(0), group.amax(0))
        ),
        "an amax that is not finite was put aside; it is an infinity in the history": (
            after(group.amax(0).nan_to_num(posinf=0.0)),
            after(group.nan_to_num(posinf=0.0).amax(0)),
        ),
    }
    if not attempt.equal("history", kept, right_history, rtol=0.0, mistakes=mistakes):
        return following
    most = right_history.amax(0)
    known = (most > 0) & most.isfinite()
    safe = most.where(known, 1.0)
    exact = (largest.double() / safe.double()).float()
    says = {
        "it is the largest number of the format by the amax, and no power of two": (
            torch.where(known, exact, scales)
        ),
        "it is the power of two above: what is largest then lies beyond the format": (
            _scales(most, scales, largest, up=1)
        ),
        "it is a power of two less than it could be": _scales(most, scales, largest, up=-1),
        "it is of this step's amaxes alone, and should be of the largest in the history": _scales(
            group.amax(0), scales, largest
        ),
        "it is of the history without this step": _scales(history.amax(0), scales, largest),
        "it is the inverse: numbers are multiplied by the scale before they are cast": (
            torch.where(known, 1 / right, scales)
        ),
        "it is of 448 for every operand; each has a format of its own": _scales(
            most, scales, torch.full_like(largest, 448.0)
        ),
        "where the largest amax is 0 or not finite, the scale stays what it was": (
            torch.where(known, right, 1.0),
            torch.where(known, right, 0.0),
            torch.where(known, right, largest / most),
            torch.where(most.isfinite(), right, 0.0),
            torch.where(most.isfinite(), right, 2.0**-126),
            torch.where(most > 0, right, 2.0**126),
            torch.where(most > 0, right, 1.0),
            torch.where(most.isfinite(), right, 1.0),
        ),
        "it went beyond 2^-126 or 2^126": (
            _scales(most, scales, largest, ends=(-127, 127)),
            _scales(most, scales, largest, ends=(-149, 126)),
            torch.where(right == 2.0**126, math.inf, right),
        ),
    }
    attempt.equal("scales", got, right, rtol=0.0, mistakes=says)
    return following


def _scales(most, scales, largest, up: int = 0, ends=(-126, 126)) -> torch.Tensor:
    """Number by number, in whole powers of two."""
    found = scales.clone()
    for i, (amax, top) in enumerate(zip(most.tolist(), largest.tolist())):
        if 0 < amax < math.inf:
            power = math.frexp(top / amax)[1] - 1 + up
            found[i] = 2.0 ** max(ends[0], min(ends[1], power))
    return found


EXERCISE = Exercise(
    id="precision.scale.amax",
    goal="The scales of delayed scaling in fp8, for a model that is spread over ranks. A step is "
    "over in which this rank cast its parts of some tensors; for the next step it needs, for each "
    "tensor, the power of two by which the largest element of the last steps comes to just below "
    "the end of its format. Ranks that have parts of one tensor must find the same scale, and what "
    "other tensors have is none of their business.",
    interface="`my_delayed(tensors, history, scales, largest)` returns `scales, history` for the "
    "next step. tensors: a list of n, this rank's parts (fp32 or bf16, any shape, perhaps without "
    "elements: amax 0). The mesh may have the axes dp, cp, tp and pp: ranks that differ in dp or "
    "cp have other tokens of the same tensors, in tp other columns, in pp other layers. history: "
    "(steps, n) in fp32, the amaxes over all parts, the newest last; the oldest goes, this step's "
    "comes. A NaN counts as an infinity. scales, largest: (n,) in fp32; `largest` is the largest "
    "number of each tensor's format. A new scale is the largest power of two that is not above "
    "largest / (the largest amax in the new history), but between 2^-126 and 2^126; where that "
    "amax is 0 or not finite, the scale stays what it was. `pico.comm.mesh().size(axis)`, "
    "`pico.comm.all_reduce(t, axis, reason, op)` with op 'max': in place; over an axis of one rank "
    "it does nothing.",
    budget="One all-reduce for each of dp, cp and tp that has more than one rank, of n fp32 "
    "numbers; none with ranks of another pp.",
    hints=(
        "Which ranks hold a part of the very same tensor? Go through the axes one by one. Is the "
        "maximum over one axis, and then over another, that over both?",
        "First this rank's amaxes, side by side in one tensor; a NaN becomes infinite *before* it "
        "travels, since a maximum with NaN is whatever the transport makes of it. Then an "
        "all-reduce for each axis, then the history, then its maximum over the steps.",
        "`torch.frexp(ratio)[1] - 1` is the exponent of the largest power of two that is not above "
        "the ratio, exactly (log2 rounds); the ratio in fp64, since 448 / 1e-37 is beyond fp32.",
    ),
    stub_function=my_delayed,
    solution_function=solution,
    why="A scale that is known beforehand saves a pass over the tensor before each cast; in "
    "exchange what grows between steps is saturated, once. What matters is whom it is agreed with. "
    "Too few ranks, and tensor-parallel neighbours cast the same weight or activation by different "
    "scales, or one saturates what the other does not (over dp alone, with tp 8, runs of 40 B "
    "diverged after some 1,000 steps: Megatron-LM pull request 442); too many, and the outlier of "
    "another layer pushes small numbers out of the format. A maximum over dp of maxima over tp is "
    "the maximum over both, so two small collectives do; all tensors of a step travel side by "
    "side, since each of them costs a latency. A power of two rounds nothing. "
    "`pico.source('picolab.precision.fp8')`.",
    judge=judge,
    cases=(
        Case("dp3", values={"seed": 10_000, "steps": 4}),
        Case(
            "dp2tp2",
            "dp and tp",
            {"seed": 20_000, "steps": 3},
            if_apart="every rank takes part in each all-reduce of its line, whatever it has",
        ),
        Case("pp2cp2", "cp and pp", {"seed": 30_000, "steps": 1}),
    ),
    blocked=("picolab.precision.fp8.Fp8Product.remember",),
    timeout=5.0,
)
