"""Exercise: ZeRO-1 over one flat buffer (chapter 3, section 1).

The numbers that a rank may step are a range of the buffer, wherever that begins and ends; what each
number belongs to matters, since the judge's `step` treats every parameter in its own way.
"""

import torch

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_zero_1(parameters, gradients, axis, step):
    import picolab as pico

    n, me = pico.comm.mesh().size(axis), pico.comm.mesh().rank(axis)
    total = sum(p.numel() for p in parameters)
    raise NotImplementedError(f"which of {total} numbers are those of rank {me} of {n}?")


def solution(parameters, gradients, axis, step):
    import torch

    import picolab as pico

    n, me = pico.comm.mesh().size(axis), pico.comm.mesh().rank(axis)
    flat = torch.cat([g.reshape(-1) for g in gradients])
    share = -(-len(flat) // n)  # rounded up: the last ranks' ranges may be shorter, or empty
    padded = torch.nn.functional.pad(flat, (0, n * share - len(flat)))
    gradient = pico.comm.reduce_scatter(padded, axis, "zero: gradients, flat")
    mine, first = torch.zeros_like(gradient), me * share
    begins = 0  # of a parameter, in the buffer
    for index, p in enumerate(parameters):
        ends = begins + p.numel()
        start, stop = max(begins, first), min(ends, first + share)
        if start < stop:
            here = slice(start - first, stop - first)
            old = p.reshape(-1)[start - begins : stop - begins]
            mine[here] = step(index, start - begins, old, gradient[here])
        begins = ends
    whole = pico.comm.all_gather(mine, axis, "zero: parameters, flat")[: len(flat)]
    pieces = whole.split([p.numel() for p in parameters])
    return [piece.view_as(p) for piece, p in zip(pieces, parameters)]


def judge(learner, attempt: Attempt) -> None:
    axis, shapes = attempt.case.values["axis"], attempt.case.values["shapes"]
    mesh = comm.mesh()
    n, me, world = mesh.size(axis), mesh.rank(axis), mesh.size("world")
    parameters = [attempt.tensor(*shape) for shape in shapes]
    everyones = [attempt.tensor(world, *shape) for shape in shapes]
    for of in everyones:  # as gradients have them: zeros, and something tiny
        of.view(world, -1)[:, ::4] = 0
        of.view(world, -1)[:, :1] *= 1e-30
    gradients = [of[attempt.rank] for of in everyones]
    parts = [of[list(mesh.ranks(axis))] for of in everyones]
    total = sum(p.numel() for p in parameters)
    share = -(-total // n)
    seen: list[tuple[int, int, int]] = []

    def step(index, start, weight, gradient):
        if index not in range(len(parameters)):
            raise ValueError(
                f"step was told parameter {index}; there are {len(parameters)}, from 0"
            )
        seen.append((index, start, weight.numel()))
        if weight.shape != gradient.shape:
            raise ValueError(
                f"step was given {tuple(weight.shape)} numbers of parameter {index} and a gradient "
                f"of {tuple(gradient.shape)}: they are of the same numbers"
            )
        return _step(index, weight, gradient)

    given = {"parameters": parameters, "gradients": gradients, "axis": axis, "step": step}
    result = attempt.call(learner, given)
    attempt.only("reduce_scatter", "all_gather")
    attempt.along(axis)
    _compare(attempt, result, parameters, parts, n)
    _ranges(attempt, seen, parameters, me, n)
    size = parameters[0].element_size()
    for op in ("reduce_scatter", "all_gather"):
        attempt.budget(op, count=1, at_least=1)
        attempt.budget(op, payload_bytes=n * share * size, least_bytes=total * size)


def _step(index: int, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Not linear in the gradient, and another one for each parameter, as where norms' weights do
    not decay."""
    return weight * (1 - 0.1 * (index % 2)) - 0.1 * (index + 1) * gradient / (gradient.abs() + 0.5)


def _compare(attempt: Attempt, result, parameters, parts, n: int) -> None:
    kind = f"{len(result)} tensors" if isinstance(result, list | tuple) else type(result).__name__
    if not attempt.require(
        isinstance(result, list | tuple) and len(result) == len(parameters),
        f"it returns {'None' if result is None else kind}; asked for is a list of the "
        f"{len(parameters)} updated parameters",
    ):
        return
    begins, share = 0, -(-sum(p.numel() for p in parameters) // n)
    for index, (got, old, of) in enumerate(zip(result, parameters, parts)):
        total = of.sum(0)
        mine = of[comm.mesh().rank(attempt.case.values["axis"])]
        owner = (begins + torch.arange(old.numel())) // share  # whose range each number is in
        owners = of.flatten(1).gather(0, owner.unsqueeze(0)).view_as(old)
        begins += old.numel()
        mistakes = {
            "it is the old one: what `step` returns is the new one": old,
            "it was stepped with this rank's own gradient: nothing was summed": _step(
                index, old, mine
            ),
            "each rank stepped its range with its own gradient: nothing was summed": _step(
                index, old, owners
            ),
            "it was stepped with the mean of the gradients, and asked for is the sum": _step(
                index, old, total / n
            ),
            "it was stepped twice": _step(index, _step(index, old, total), total),
            "each rank stepped with its own gradient, and the results were summed": sum(
                _step(index, old, one) for one in of
            ),
            "it was stepped as another parameter: `step` is told which one it is": tuple(
                _step(other, old, total) for other in range(len(parameters)) if other != index
            ),
            "`step` was given the gradient as the weight, and the weight as the gradient": _step(
                index, total, old
            ),
            "gradients were rounded on the way, to 2 or 4 bytes": tuple(
                _step(index, old, of.to(low).sum(0).double())
                for low in (torch.bfloat16, torch.float16, torch.float32)
            ),
            "`step` was given zeros for the weight": _step(index, 0 * old, total),
            "it is the gradient, and asked for is the parameter": total,
        }
        if not attempt.equal(f"parameter {index}", got, _step(index, old, total), None, mistakes):
            return


def _ranges(attempt: Attempt, seen, parameters, me: int, n: int) -> None:
    """A rank steps the numbers of its range of the flat buffer, and no other."""
    begins, total = [], 0
    for p in parameters:
        begins.append(total)
        total += p.numel()
    share = -(-total // n)
    first, end = me * share, min((me + 1) * share, total)
    mine = set(range(first, end))
    for i, start, count in seen:
        if count and not 0 <= start <= start + count <= parameters[i].numel():
            attempt.wrong(
                f"on this rank `step` was given the numbers {start} to {start + count - 1} of "
                f"parameter {i}, which has {parameters[i].numel()}"
                + _counted_from(seen, begins, parameters, first, end)
            )
            return
    stepped = [begins[i] + start + k for i, start, count in seen for k in range(count)]
    others = len(set(stepped) - mine)
    if others:
        attempt.wrong(
            f"on this rank `step` was given {others} numbers of other ranks' ranges; its own are "
            f"{first} to {end - 1} of the buffer"
            + _counted_from(seen, begins, parameters, first, end)
            if mine
            else f"on this rank `step` was given {others} numbers, and its range is empty"
        )
    elif len(stepped) != len(set(stepped)):
        attempt.wrong("on this rank `step` was given some numbers twice")
    elif len(stepped) < len(mine) and not attempt.problems:
        attempt.wrong(
            f"on this rank `step` was given {len(stepped)} of the {len(mine)} numbers of its range"
        )


def _counted_from(seen, begins, parameters, first: int, end: int) -> str:
    """If the pieces are right and only `start` is not: from where it was counted."""
    wanted = [
        (i, max(first - begin, 0), min(end - begin, p.numel()))
        for i, (begin, p) in enumerate(zip(begins, parameters))
    ]
    wanted = [(i, start, stop - start) for i, start, stop in wanted if start < stop]
    got = [piece for piece in seen if piece[2]]
    if len(got) != len(wanted) or not wanted:
        return ""
    if [piece[1:] for piece in got] == [piece[1:] for piece in wanted]:
        told, pieces = ([piece[0] for piece in one] for one in (got, wanted))
        return f": `step` was told that they are of the parameters {told}, and they are of {pieces}"
    if got[:-1] == wanted[:-1] and got[-1][:2] == wanted[-1][:2]:
        return ": padding is nobody's number, and is not stepped"
    if [(i, count) for i, _, count in got] != [(i, count) for i, _, count in wanted]:
        return ""
    right = ", and is counted in the parameter: where in it the piece begins"
    if all(start == 0 for _, start, _ in got):
        return f": `start` is always 0{right}"
    from_buffer = all(a[1] == begins[b[0]] + b[1] for a, b in zip(got, wanted))
    from_range = all(a[1] == begins[b[0]] + b[1] - first for a, b in zip(got, wanted))
    if from_buffer or from_range:
        places = [
            name for name, so in (("the buffer", from_buffer), ("the range", from_range)) if so
        ]
        whence = " or ".join(places)
        return f": `start` was counted in {whence}{right}"
    return ""


_UNEVEN = [(3, 5), (7,), (2, 2, 2), (1,), (6, 4)]

EXERCISE = Exercise(
    id="3d.zero.ranges",
    goal="ZeRO-1 as Megatron-LM and DeepSpeed do it. All parameters lie one behind the other, "
    "flat, in one buffer, which is cut into n ranges of ceil(total / n) numbers each (the last "
    "ones may be shorter, or empty). A rank steps the numbers of its range and no other, and gets "
    "the others'. Return all updated parameters.",
    interface="`my_zero_1(parameters, gradients, axis, step)`: two lists of tensors of the same "
    "shapes, of any sizes; `gradients` are this rank's own, and a parameter is stepped with the "
    "*sum* over the axis. `step(index, start, weight, gradient)` returns the new values of a piece "
    "of parameter `index`: `weight` and `gradient` are flat, of the same length, and are its "
    "numbers `start` and following, counted in that parameter. Nothing is changed in place; return "
    "a list of tensors of the parameters' shapes. You may use "
    "`pico.comm.reduce_scatter(t, axis, reason)`, which returns this rank's n-th part of the sum "
    "of all t (n divides its rows), and `pico.comm.all_gather(t, axis, reason)`, which returns all "
    "ranks' t one behind the other.",
    budget="One reduce-scatter and one all-gather, each of the buffer, rounded up to a multiple of "
    "n. On each rank `step` is given every number of the rank's range once, and no other.",
    hints=(
        "Where does parameter i begin in the buffer, and where does it end? A rank's range is "
        "another interval of the same axis. What is the piece of parameter i that it has?",
        "The piece is from max(begin of the parameter, begin of the range) to min of their ends, "
        "if that is not empty. `step` counts from the parameter's begin, your share of the "
        "gradients from the range's.",
        "`start, stop = max(begins, first), min(ends, first + share)`; the old values are "
        "`p.reshape(-1)[start - begins : stop - begins]`, the gradient's are "
        "`gradient[start - first : stop - first]`.",
    ),
    stub_function=my_zero_1,
    solution_function=solution,
    why="Two intervals of one axis meet in at most one interval: that is the whole table. The "
    "optimizer's state lives in the ranges too, so nobody ever has all of it, and the ranges are "
    "even to a number, whatever the shapes are. The price is that a piece of a matrix is no "
    "matrix: an optimizer that looks at rows or at the whole matrix (Adafactor, Muon) cannot step "
    "it, and a checkpoint has to say which numbers of what a range holds. FSDP2 therefore cuts "
    "rows. (Megatron-LM's distributed optimizer, "
    "`_build_model_gbuf_param_range_map`; arXiv 1910.02054, section 5.)",
    judge=judge,
    cases=(
        Case("dp2", "five parameters", {"axis": "dp", "shapes": _UNEVEN}),
        Case("dp3", "five parameters", {"axis": "dp", "shapes": _UNEVEN}),
        Case("dp4", "one matrix over all four ranges", {"axis": "dp", "shapes": [(5, 3)]}),
        Case("dp4", "3 numbers: the last range is empty", {"axis": "dp", "shapes": [(2,), (1,)]}),
        Case("dp2tp2", "over dp, which is half of them", {"axis": "dp", "shapes": _UNEVEN}),
    ),
    timeout=5.0,
)
