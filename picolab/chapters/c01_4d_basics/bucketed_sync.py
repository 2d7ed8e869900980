"""Exercise: gradients summed over data parallelism in few large pieces (chapter 1, section 3)."""

import torch

from picolab import comm, costs
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise
from picolab.exercises.diagnosis import near
from picolab.show.table import bytes_text


def my_sync(parameters, axis, bucket_bytes):
    raise NotImplementedError(f"sum {len(parameters)} gradients over {axis}")


def solution(parameters, axis, bucket_bytes):
    import torch

    import picolab as pico

    for parameter in parameters:
        if parameter.grad is None:  # not used here, perhaps elsewhere
            parameter.grad = torch.zeros_like(parameter)
    sizes = [p.numel() * p.element_size() for p in parameters]
    under_way = []
    for bucket in pico.costs.buckets(sizes, bucket_bytes):
        grads = [parameters[index].grad for index in bucket]
        flat = torch.cat([grad.view(-1) for grad in grads])
        pending = pico.comm.all_reduce(flat, axis, "dp: gradient bucket", async_op=True)
        under_way.append((pending, grads))
    for pending, grads in under_way:
        pieces = pending.wait().split([grad.numel() for grad in grads])
        for grad, piece in zip(grads, pieces):
            grad.copy_(piece.view_as(grad))


def judge(learner, attempt: Attempt) -> None:
    axis, bucket_bytes = attempt.case.values["axis"], attempt.case.values["bucket_bytes"]
    unused = attempt.case.values["unused"]  # of which parameter, on which ranks there is none
    mesh = comm.mesh()
    weights = [attempt.tensor(*shape) for shape in attempt.case.values["shapes"]]
    # [parameter][rank]; where it is not used, it adds nothing
    everyones = [attempt.tensor(mesh.size("world"), *weight.shape) for weight in weights]
    for index, ranks in unused.items():
        everyones[index][ranks] = 0
    parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
    for index, parameter in enumerate(parameters):
        if attempt.rank not in unused.get(index, []):
            parameter.grad = everyones[index][attempt.rank].clone()
    arguments = {"parameters": parameters, "axis": axis, "bucket_bytes": bucket_bytes}
    attempt.call(learner, arguments, may_change=("parameters",))

    attempt.only("all_reduce")
    attempt.along(axis)
    sizes = [weight.numel() * weight.element_size() for weight in weights]
    if not all(torch.equal(p.detach(), weight) for p, weight in zip(parameters, weights)):
        attempt.wrong("it changed the weights; what has to be summed is each parameter's .grad")
    elif _all_arrived(attempt, sizes, bucket_bytes):
        _gradients_are_sums(attempt, parameters, everyones, mesh.ranks(axis))


def _gradients_are_sums(attempt: Attempt, parameters: list, everyones: list, ranks: tuple) -> None:
    """Up to the first that is not."""
    for index, parameter in enumerate(parameters):
        name = f"the gradient of parameter {index}"
        total = everyones[index][list(ranks)].sum(0)
        mine = everyones[index][attempt.rank]
        if parameter.grad is None:
            attempt.wrong(f"{name} is still None here, and another rank used the parameter")
            break
        if torch.equal(parameter.grad, mine) and not torch.equal(total, mine):
            attempt.wrong(
                f"{name} is still this rank's own: was its bucket summed, and the sum not written "
                "back?"
            )
            break
        if _added_others(parameter.grad - mine, everyones, index, set(ranks) - {attempt.rank}):
            attempt.wrong(
                f"to {name} another parameter's was added: do all ranks fill and start their "
                "buckets in the same order?"
            )
            break
        sums = torch.cat([every[list(ranks)].sum(0).flatten() for every in everyones])
        found = (parameter.grad.reshape(-1, 1) - sums).abs().amin(1) < 1e-9
        if found.all() and not near(parameter.grad.flatten(), total.flatten(), 1e-9):
            attempt.wrong(
                f"{name} holds the sums of other places: is each flat tensor taken apart in the "
                "order, and by the sizes, in which it was put together?"
            )
            break
        parts = {attempt.case.values["axis"]: everyones[index][list(ranks)]}
        if not attempt.equal(name, parameter.grad, total, parts=parts):
            break


def _added_others(added: torch.Tensor, everyones: list, index: int, ranks: set) -> bool:
    """Whether all numbers that were added are of another rank's other parameters (of two ranks)."""
    if len(ranks) > 1:
        return False
    theirs = [every[list(ranks)].reshape(-1) for i, every in enumerate(everyones) if i != index]
    near = (added.reshape(-1, 1) - torch.cat(theirs)).abs() < 1e-9
    return bool(near.any(1).all())


def _all_arrived(attempt: Attempt, sizes: list[int], bucket_bytes: int) -> bool:
    """Enforce the budget; whether as many bytes were summed as there are."""
    entries = [e for e in attempt.entries if e.op == "all_reduce"]
    attempt.budget("all_reduce", count=len(costs.buckets(sizes, bucket_bytes)))
    others = {e.dtype for e in entries} - {"float64"}
    if others:
        attempt.wrong(f"its buckets are in {others.pop()}, and the gradients in float64")
    largest = max((e.payload_bytes for e in entries), default=0)
    if largest > bucket_bytes and largest not in sizes:
        attempt.wrong(
            f"an all-reduce carries {bytes_text(largest)}, and a bucket holds at most "
            f"{bytes_text(bucket_bytes)} (bytes, not numbers)"
        )
    carried = sum(e.payload_bytes for e in entries)
    # An entry says when the wait began and how long it was since the call.
    ends = [e.start + e.exposed_s for e in entries]
    calls = [end - e.seconds for end, e in zip(ends, entries)]
    if entries and max(calls) > min(ends):
        attempt.wrong(
            "an all-reduce is started after another was waited for: start all of them, then wait"
        )
    attempt.budget(
        "all_reduce",
        payload_bytes=sum(sizes),
        least_bytes=sum(sizes),
        hint="was the last bucket started? was each waited for?",
    )
    return carried >= sum(sizes)


_SHAPES = [(5, 3), (7,), (3, 4), (), (11,), (2, 3, 2)]
_APART = (
    "a rank that leaves out a parameter whose .grad is None makes other buckets than the rest: "
    "None counts as zeros, and all ranks fill the same buckets"
)

EXERCISE = Exercise(
    id="4d.dp.buckets",
    goal="After backward, every `parameter.grad` becomes the sum of all ranks' gradients over the "
    "axis, on every rank. Gradients travel in buckets: some of them joined in one flat tensor, and "
    "one all-reduce for it.",
    interface="`my_sync(parameters, axis, bucket_bytes)`: parameters is a list of "
    "`torch.nn.Parameter`, the same on every rank, in the order in which forward uses them, "
    "contiguous and of one dtype. A `.grad` may be None on *some* ranks: that rank did not use the "
    "parameter, which counts as zero; the sum is owed to it all the same. Weights stay as they "
    "are. You may use:\n\n"
    "- `pico.costs.buckets(sizes_bytes, bucket_bytes)` groups: it returns lists of indices, the "
    "last parameter first, as backward finishes them.\n"
    "- `pico.comm.all_reduce(flat, axis, reason, async_op=True)` returns at once, and `.wait()` of "
    "what it returned gives the summed flat tensor.",
    budget="One all-reduce a bucket, as many buckets as `pico.costs.buckets` makes: none carries "
    "more than bucket_bytes, unless a single gradient is larger. All are started before the first "
    "is waited for.",
    hints=(
        "Collectives are matched by their order alone: the first that this rank starts meets the "
        "first that the others start. What must the list of buckets then *not* depend on?",
        "Two loops. In the first, for each bucket: join its gradients with `torch.cat` (None is "
        "zeros by now), start the all-reduce, put what it returned on a list. `torch.cat` makes a "
        "copy: what has the second loop to do, besides waiting?",
        "`pieces = pending.wait().split([grad.numel() for grad in grads])`, and then for each "
        "pair of them `grad.copy_(piece.view_as(grad))`.",
    ),
    stub_function=my_sync,
    solution_function=solution,
    why="All ranks compute the buckets from the parameters' sizes, which are the same everywhere, "
    "and never from what happens to have a gradient; so the k-th all-reduce is the same bucket on "
    "every rank. Each all-reduce costs its latency once, so few large ones are cheaper than many "
    "small ones; and one alone for everything could not start before backward has finished the "
    "first layer. Here backward is over when you are called; `DataParallelOptimizer` starts the "
    "same buckets from hooks while it runs, and saves the copy: its gradients are views into the "
    "flat tensor. torch's DDP (arXiv 2006.15704) does the same, and averages.",
    judge=judge,
    cases=(
        Case(
            "dp2",
            "6 gradients in 3 buckets",
            {"axis": "dp", "shapes": _SHAPES, "bucket_bytes": 200, "unused": {}},
        ),
        Case(
            "dp2",
            "rank 1 did not use parameter 4",
            {"axis": "dp", "shapes": _SHAPES, "bucket_bytes": 200, "unused": {4: [1]}},
            if_apart=_APART,
        ),
        Case(
            "dp4",
            "one gradient is larger than a bucket, and another is rank 2's alone",
            {
                "axis": "dp",
                "shapes": [(5, 3), (9, 7), (3, 4), (11,)],
                "bucket_bytes": 200,
                "unused": {2: [0, 1, 3]},
            },
            if_apart=_APART,
        ),
        Case(
            "dp3",
            "buckets of 100 bytes, smaller than some gradients",
            {"axis": "dp", "shapes": _SHAPES[::-1], "bucket_bytes": 100, "unused": {0: [2]}},
            if_apart=_APART,
        ),
        Case(
            "dp2tp2",
            "over dp, which is half of them",
            {"axis": "dp", "shapes": _SHAPES, "bucket_bytes": 200, "unused": {}},
        ),
        Case(
            "dp2tp2",
            "over tp, which is the other half",
            {"axis": "tp", "shapes": _SHAPES, "bucket_bytes": 200, "unused": {}},
        ),
    ),
)
