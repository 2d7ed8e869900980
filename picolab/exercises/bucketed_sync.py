"""Exercise: gradients summed over data parallelism in few large pieces (chapter 1, section 3)."""

import torch

from picolab import comm, costs
from picolab.exercises.attempt import Attempt
from picolab.exercises.definition import Case, Exercise, Mutant
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
        if not attempt.equal(name, parameter.grad, total):
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
    largest = max((e.payload_bytes for e in entries), default=0)
    if largest > bucket_bytes and largest not in sizes:
        attempt.wrong(
            f"an all-reduce carries {bytes_text(largest)}, and a bucket holds at most "
            f"{bytes_text(bucket_bytes)} (bytes, not numbers)"
        )
    carried = sum(e.payload_bytes for e in entries)
    if carried < sum(sizes):
        attempt.wrong(
            f"its finished all-reduces carry {bytes_text(carried)}, and the gradients are "
            f"{bytes_text(sum(sizes))}: was the last bucket started? was each waited for?"
        )
    # An entry says when the wait began and how long it was since the call.
    ends = [e.start + e.exposed_s for e in entries]
    calls = [end - e.seconds for end, e in zip(ends, entries)]
    if entries and max(calls) > min(ends):
        attempt.wrong(
            "an all-reduce is started after another was waited for: start all of them, then wait"
        )
    attempt.budget("all_reduce", payload_bytes=sum(sizes))
    return carried >= sum(sizes)


# Wrong in the ways people are.


def _sync(parameters, axis, bucket_bytes, order=lambda buckets: buckets, back=True):
    """The solution, with places to go wrong in."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    sizes = [p.numel() * p.element_size() for p in parameters]
    under_way = []
    for bucket in order(costs.buckets(sizes, bucket_bytes)):
        grads = [parameters[index].grad for index in bucket]
        flat = torch.cat([grad.view(-1) for grad in grads])
        under_way.append((comm.all_reduce(flat, axis, "bucket", async_op=True), grads))
    for pending, grads in under_way:
        pieces = pending.wait().split([grad.numel() for grad in grads])
        for grad, piece in zip(grads, pieces):
            if back:
                grad.copy_(piece.view_as(grad))


def one_all_reduce_a_gradient(parameters, axis, bucket_bytes):
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        comm.all_reduce(parameter.grad, axis, "gradient")


def averages(parameters, axis, bucket_bytes):
    _sync(parameters, axis, bucket_bytes)
    for parameter in parameters:
        parameter.grad /= comm.mesh().size(axis)


def sum_is_not_written_back(parameters, axis, bucket_bytes):
    _sync(parameters, axis, bucket_bytes, back=False)


def one_bucket_for_all(parameters, axis, bucket_bytes):
    _sync(parameters, axis, 2**30)


def bucket_bytes_taken_for_numbers(parameters, axis, bucket_bytes):
    _sync(parameters, axis, bucket_bytes * parameters[0].element_size())


def skips_what_was_not_used(parameters, axis, bucket_bytes):
    _sync([p for p in parameters if p.grad is not None], axis, bucket_bytes)


def fills_buckets_as_gradients_arrived(parameters, axis, bucket_bytes):
    if comm.mesh().rank(axis) == 1:
        parameters = [parameters[index] for index in (0, 1, 3, 4, 2, 5)]
    _sync(parameters, axis, bucket_bytes)


def last_bucket_is_never_started(parameters, axis, bucket_bytes):
    _sync(parameters, axis, bucket_bytes, order=lambda buckets: buckets[:-1])


def sums_the_weights(parameters, axis, bucket_bytes):
    flat = torch.cat([p.data.view(-1) for p in parameters])  # a hook's argument: the parameter
    comm.all_reduce(flat, axis, "what the hook was given")
    for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters])):
        parameter.data.copy_(piece.view_as(parameter))


def waits_for_each(parameters, axis, bucket_bytes):
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    sizes = [p.numel() * p.element_size() for p in parameters]
    for bucket in costs.buckets(sizes, bucket_bytes):
        grads = [parameters[index].grad for index in bucket]
        flat = torch.cat([grad.view(-1) for grad in grads])
        comm.all_reduce(flat, axis, "bucket")
        for grad, piece in zip(grads, flat.split([grad.numel() for grad in grads])):
            grad.copy_(piece.view_as(grad))


def waits_for_none(parameters, axis, bucket_bytes):
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    sizes = [p.numel() * p.element_size() for p in parameters]
    for bucket in costs.buckets(sizes, bucket_bytes):
        flat = torch.cat([parameters[index].grad.view(-1) for index in bucket])
        comm.all_reduce(flat, axis, "bucket", async_op=True)
        for index, piece in zip(bucket, flat.split([parameters[i].numel() for i in bucket])):
            parameters[index].grad = piece.view_as(parameters[index])


def takes_all_ranks(parameters, axis, bucket_bytes):
    _sync(parameters, "world", bucket_bytes)


_SHAPES = [(5, 3), (7,), (3, 4), (), (11,), (2, 3, 2)]

EXERCISE = Exercise(
    id="4d.dp.buckets",
    title="Bucketed gradient synchronisation",
    minutes=25,
    difficulty=4,
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
        ),
        Case(
            "dp2tp2",
            "over dp, which is half of them",
            {"axis": "dp", "shapes": _SHAPES, "bucket_bytes": 200, "unused": {}},
        ),
    ),
    mutants=(
        Mutant(one_all_reduce_a_gradient, "it takes 6 all-reduces, and the budget is 3"),
        Mutant(averages, "all of it is 0.5 times what it should be"),
        Mutant(sum_is_not_written_back, "is still this rank's own"),
        Mutant(one_bucket_for_all, "an all-reduce carries 464 B, and a bucket holds at most 200 B"),
        Mutant(bucket_bytes_taken_for_numbers, "(bytes, not numbers)"),
        Mutant(skips_what_was_not_used, "the two ranks entered different collectives"),
        Mutant(fills_buckets_as_gradients_arrived, "another parameter's was added"),
        Mutant(last_bucket_is_never_started, "was the last bucket started?"),
        Mutant(sums_the_weights, "it changed the weights"),
        Mutant(waits_for_each, "start all of them, then wait"),
        Mutant(waits_for_none, "was each waited for?"),
        Mutant(takes_all_ranks, "it communicates over the ranks (0, 1, 2, 3)"),
    ),
)
