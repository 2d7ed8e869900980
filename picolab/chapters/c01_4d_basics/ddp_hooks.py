"""Exercise: data parallelism as DDP does it, hooks and overlap (chapter 1, section 3).

Gradients arrive in the order that the judge chooses: autograd goes back through a chain of sums,
the last addend first. It notes when each arrives, so that it can be asked when each bucket left.
"""

import time

import torch

from picolab import comm, costs
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_ddp(parameters, axis, bucket_bytes):
    raise NotImplementedError(f"hook {len(parameters)} parameters, and return `finish`")


def solution(parameters, axis, bucket_bytes):
    import torch

    import picolab as pico

    n = pico.comm.mesh().size(axis)
    sizes = [p.numel() * p.element_size() for p in parameters]
    groups = pico.costs.buckets(sizes, bucket_bytes)
    buckets = [[parameters[i] for i in group] for group in groups]
    bucket_of = {p: k for k, bucket in enumerate(buckets) for p in bucket}
    missing, under_way = [len(bucket) for bucket in buckets], []

    def start(bucket):
        for p in bucket:
            if p.grad is None:  # not used on this rank
                p.grad = torch.zeros_like(p)
        flat = torch.cat([p.grad.flatten() for p in bucket])
        under_way.append(pico.comm.all_reduce(flat, axis, "dp: bucket", async_op=True))

    def ready(p):  # the parameter, not its gradient
        missing[bucket_of[p]] -= 1
        # The next one only, so that the order is the list's on every rank.
        while len(under_way) < len(buckets) and missing[len(under_way)] == 0:
            start(buckets[len(under_way)])

    def finish():
        for bucket in buckets[len(under_way) :]:
            start(bucket)
        for bucket, pending in zip(buckets, under_way):
            pieces = pending.wait().split([p.numel() for p in bucket])
            for p, piece in zip(bucket, pieces):
                p.grad.copy_(piece.view_as(p) / n)
        under_way.clear()
        missing[:] = [len(bucket) for bucket in buckets]

    for p in parameters:
        p.register_post_accumulate_grad_hook(ready)
    return finish


def judge(learner, attempt: Attempt) -> None:
    values, mesh = attempt.case.values, comm.mesh()
    axis, n = values["axis"], mesh.size(values["axis"])
    weights = [attempt.tensor(*shape) for shape in values["shapes"]]
    parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
    arrived: dict[int, float] = {}

    def note(index):
        def arrives(_):
            arrived[index] = time.monotonic()

        return arrives

    for index, parameter in enumerate(parameters):
        parameter.register_post_accumulate_grad_hook(note(index))
    arguments = {"parameters": parameters, "axis": axis, "bucket_bytes": values["bucket_bytes"]}
    finish = attempt.call(learner, arguments, may_change=("parameters",))
    if not attempt.require(
        callable(finish), "my_ddp returns no function: `return finish`, which is called later"
    ):
        return
    attempt.require(not attempt.entries, "it communicates before there is any gradient")
    used = values.get("used", {}).get(attempt.rank, list(range(len(weights))))
    for step in range(2):
        everyones = [attempt.tensor(mesh.size("world"), *weight.shape) for weight in weights]
        for rank, theirs in values.get("used", {}).items():
            for index in set(range(len(weights))) - set(theirs):
                everyones[index][rank] = 0
        for parameter in parameters:
            parameter.grad = None
        arrived.clear()
        loss = torch.zeros((), dtype=torch.float64)
        for index in used:
            loss = loss + (parameters[index] * everyones[index][attempt.rank]).sum()
        with attempt.watching() as entries:
            loss.backward()
            ended = time.monotonic()
            finish()
        told = _Step(step, weights, parameters, everyones, mesh.ranks(axis))
        if not _is_mean(attempt, told, n):
            break
        _overlaps(attempt, entries, arrived, ended, values["bucket_bytes"], weights)
    attempt.only("all_reduce")
    attempt.along(axis)
    sizes = [weight.numel() * weight.element_size() for weight in weights]
    buckets = len(costs.buckets(sizes, values["bucket_bytes"]))
    attempt.budget("all_reduce", count=2 * buckets, at_least=2 * buckets)
    attempt.budget("all_reduce", payload_bytes=2 * sum(sizes), least_bytes=2 * sum(sizes))


class _Step:
    """What has to be known of one step to say what is wrong with its gradients."""

    def __init__(self, step, weights, parameters, everyones, ranks):
        self.when = "" if step == 0 else " in the second step"
        self.weights, self.parameters = weights, parameters
        self.everyones, self.ranks = everyones, ranks


def _is_mean(attempt: Attempt, step: _Step, n: int) -> bool:
    for index, (parameter, weight) in enumerate(zip(step.parameters, step.weights)):
        name = f"the gradient of parameter {index}{step.when}"
        if not torch.equal(parameter.detach(), weight):
            return attempt.require(
                False,
                "the weights are changed: a post-accumulate hook is handed the parameter, and what "
                "has to be reduced is its .grad",
            )
        if parameter.grad is None:
            return attempt.require(
                False,
                f"{name} is still None: what did not arrive counts as zero, and `finish` sends it",
            )
        mine, total = step.everyones[index][attempt.rank], _total(step, index)
        if _added_others(parameter.grad * n - mine, step, index, attempt.rank):
            return attempt.require(
                False,
                f"to {name} another parameter's was added: are the buckets started in the same "
                "order on every rank?",
            )
        mistakes = {
            "it is the sum, and asked for is the mean, as DDP has it": total,
            "it is this rank's own: was its bucket sent, and what came back written "
            "into .grad?": mine,
            "it is this rank's own, divided: was what came back written into .grad?": mine / n,
            "it is divided by the number of ranks twice": total / n**2,
            "it is the mean of the weights: the hook's argument is the parameter": weight,
        }
        if not attempt.equal(name, parameter.grad, total / n, mistakes=mistakes):
            return False
    return True


def _total(step: _Step, index: int) -> torch.Tensor:
    return step.everyones[index][list(step.ranks)].sum(0)


def _added_others(added: torch.Tensor, step: _Step, index: int, rank: int) -> bool:
    """Whether all numbers that were added are of another rank's other parameters (of two ranks)."""
    others = [one for one in step.ranks if one != rank]
    if len(others) != 1:
        return False
    theirs = [e[others[0]].reshape(-1) for i, e in enumerate(step.everyones) if i != index]
    near = (added.reshape(-1, 1) - torch.cat(theirs)).abs() < 1e-9
    return bool(near.any(1).all()) and bool(added.any())


def _overlaps(attempt: Attempt, entries, arrived, ended, bucket_bytes, weights) -> None:
    """Each bucket left while backward went on, and none was waited for before it was over."""
    entries = [e for e in entries if e.op == "all_reduce"]
    # An entry says when the wait began and how long it was since the call.
    calls = sorted(e.start + e.exposed_s - e.seconds for e in entries)
    if any(e.start < ended for e in entries):
        attempt.wrong(
            "an all-reduce is waited for while backward is still going on: nothing overlaps then; "
            "start it with async_op=True, and wait in `finish`"
        )
        return
    sizes = [weight.numel() * weight.element_size() for weight in weights]
    complete = 0.0  # when the buckets up to this one had all their gradients
    for number, bucket in enumerate(costs.buckets(sizes, bucket_bytes)):
        if any(index not in arrived for index in bucket) or number >= len(calls):
            return  # only `finish` can know that no more will come
        complete = max(complete, *(arrived[index] for index in bucket))
        later = [when for when in arrived.values() if when > complete]
        if calls[number] > min(later, default=ended):
            attempt.wrong(
                f"bucket {number} had all its gradients and was not started before the next "
                "gradient came: a hook that completes a bucket starts it"
            )
            return


_SHAPES = [(5, 3), (7,), (3, 4), (), (11,), (2, 3, 2)]
_ALIKE = [(2, 5)] * 6  # of one size, so that nothing but the order tells two buckets apart

EXERCISE = Exercise(
    id="4d.dp.hooks",
    goal="Write what DDP does. `my_ddp` is called once, before training, and returns `finish`. "
    "Then, step after step, somebody sets every `.grad` to None, calls `loss.backward()`, and "
    "calls `finish()`: now every `.grad` is the *mean* of all ranks' gradients over the axis. "
    "Gradients travel in buckets, and a bucket leaves *while backward goes on*, as soon as all its "
    "gradients are there.",
    interface="`my_ddp(parameters, axis, bucket_bytes)`: a list of `torch.nn.Parameter`, the same "
    "on every rank. Ranks may use them in another order, and a rank may not use one at all: that "
    "counts as zero there. You may use:\n\n"
    "- `p.register_post_accumulate_grad_hook(hook)`: `hook(p)` is called whenever a backward has "
    "put a gradient into `p.grad`.\n"
    "- `pico.costs.buckets(sizes_bytes, bucket_bytes)`: lists of indices, the last parameter "
    "first, as backward usually finishes them.\n"
    "- `pico.comm.all_reduce(flat, axis, reason, async_op=True)` returns at once, and `.wait()` of "
    "what it returned gives the summed flat tensor. `pico.comm.mesh().size(axis)` is the number of "
    "ranks.",
    budget="One all-reduce a bucket in each step. A bucket that is complete, and whose "
    "predecessors "
    "have left, is started before the next gradient arrives; none is waited for before backward is "
    "over.",
    hints=(
        "Three functions that share some lists: a hook, something that starts a bucket, `finish`. "
        "What does a bucket have to count, and who sets it back for the next step?",
        "Collectives are matched by their order alone. If rank 1's gradients arrive in another "
        "order, its second bucket is full first. May it leave? And `finish`: which buckets has it "
        "still to start, and what stands in a `.grad` that never arrived?",
        "`missing[k] -= 1` in the hook; then `while len(under_way) < len(buckets) and "
        "missing[len(under_way)] == 0`: start the next of the list. In `finish`: start the rest, "
        "wait for all in order, split, divide by n, copy into `.grad`; empty `under_way` and fill "
        "`missing` again.",
    ),
    stub_function=my_ddp,
    solution_function=solution,
    why="The hook of the last gradient of a bucket sends it off, so that it travels while the "
    "layers below it are still computed: that is the overlap. Buckets leave in one fixed order, "
    "never in the order in which they happen to fill: the k-th all-reduce of this rank meets the "
    "k-th of every other. A gradient that does not come keeps its bucket, and those behind it, "
    "until `finish`. (torch's DDP has no `finish`: a callback at the end of backward does it, and "
    "with `find_unused_parameters` it looks through the graph for those that will not come. Its "
    "gradients are views into the buckets, which saves both copies. arXiv 2006.15704.) DDP "
    "averages; this package sums, since its losses are divided by the global count of tokens.",
    judge=judge,
    cases=(
        Case(
            "dp2",
            "6 gradients in 3 buckets",
            {"axis": "dp", "shapes": _SHAPES, "bucket_bytes": 200},
        ),
        Case(
            "dp2",
            "rank 1 uses the parameters in another order",
            {"axis": "dp", "shapes": _ALIKE, "bucket_bytes": 160, "used": {1: [4, 5, 0, 1, 2, 3]}},
        ),
        Case(
            "dp2",
            "nobody uses parameter 4",
            {
                "axis": "dp",
                "shapes": _SHAPES,
                "bucket_bytes": 200,
                "used": {0: [0, 1, 2, 3, 5], 1: [0, 1, 2, 3, 5]},
            },
        ),
        Case(
            "dp4",
            "rank 2 does not use parameter 4, and nobody else parameter 1",
            {
                "axis": "dp",
                "shapes": _SHAPES,
                "bucket_bytes": 200,
                "used": {0: [0, 2, 3, 4, 5], 1: [0, 2, 3, 4, 5], 2: [0, 1, 2, 3, 5], 3: [0, 2, 5]},
            },
        ),
        Case(
            "dp2tp2",
            "over dp, which is half of them",
            {"axis": "dp", "shapes": _SHAPES, "bucket_bytes": 200},
        ),
    ),
    blocked=(
        "picolab.parallel.buckets.GradientBuckets.attach",
        "picolab.parallel.buckets.GradientBuckets._arrived",
        "picolab.parallel.data.naive_sync",
    ),
    timeout=5.0,
)
