"""Exercise: a checkpoint by hand (chapter 5, section 4).

Each setting is built twice from the same numbers: once the function is simply called, and autograd
keeps what it likes; once the learner calls it. Results and gradients must be the same to the last
bit. How often the function runs, from which random state and with which inputs, the judge sees,
since the function is its own; what stays alive in between, a `Watch` over all storages sees.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef

from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise
from picolab.memory import Watch

SLACK = 20_000  # bytes: a random state is 5,056, and of one checkpoint in another both have some


def my_checkpoint(function, inputs):
    raise NotImplementedError(f"{len(inputs)} inputs, and nothing else is kept")


def solution(function, inputs):
    import torch

    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            tensors = [one for one in inputs if isinstance(one, torch.Tensor)]
            ctx.save_for_backward(*tensors)
            ctx.others = [None if isinstance(one, torch.Tensor) else one for one in inputs]
            ctx.is_tensor = [isinstance(one, torch.Tensor) for one in inputs]
            ctx.random = torch.get_rng_state()
            return function(*inputs)

        @staticmethod
        def backward(ctx, grad):
            saved = iter(ctx.saved_tensors)
            wanted = iter(ctx.needs_input_grad)
            again = [
                next(saved).detach().requires_grad_(want) if is_tensor else other
                for is_tensor, other, want in zip(ctx.is_tensor, ctx.others, wanted)
            ]
            now = torch.get_rng_state()
            torch.set_rng_state(ctx.random)
            try:
                with torch.enable_grad():
                    y = function(*again)
            finally:
                torch.set_rng_state(now)
            torch.autograd.backward(y, grad)  # reaches parameters, too
            return tuple(getattr(one, "grad", None) for one in again)

    return Again.apply(*inputs)


@dataclass(eq=False)
class _Setup:
    """A function with its inputs, and all leaves that may get a gradient."""

    function: Callable
    inputs: tuple
    leaves: dict[str, torch.Tensor]
    loss: Callable = torch.sum
    runs: list[tuple[torch.Tensor, list[bool]]] = field(default_factory=list)
    """Of each run of the function: the random state, and which inputs want a gradient."""
    within: list = field(default_factory=list)
    """One more entry for each run of what is in a checkpoint within the function."""

    def counted(self, *inputs):
        wanted = [one.requires_grad for one in inputs if isinstance(one, torch.Tensor)]
        self.runs.append((torch.get_rng_state(), wanted))
        return self.function(*inputs)


@dataclass
class _Found:
    y: torch.Tensor
    between: torch.Tensor
    """Random numbers drawn between forward and backward, and"""
    after: torch.Tensor
    grads: dict[str, torch.Tensor | None]


def judge(learner, attempt: Attempt) -> None:
    gc.freeze()  # a `Watch` collects first
    for about, build in _SETTINGS.items():
        attempt.setting(about)
        torch.manual_seed(11)
        reference = _keeping_all(build(_plain))
        torch.manual_seed(11)
        with attempt.watching():
            mine = build(learner)
        found = _checked(attempt, learner, mine, wants=reference.y.requires_grad)
        attempt.only()
        attempt.budget(count=0)
        if found is None or not _same(attempt, found, reference, mine):
            return
    if _lets_go(attempt, learner):
        attempt.counts("runs of the function", len(mine.runs), 2, 2)


def _lets_go(attempt: Attempt, learner) -> bool:
    """Whether a result that is dropped, without a backward, goes at once (no garbage is
    collected meanwhile)."""
    attempt.setting("a result that is dropped without a backward")
    setup = _one_input(learner)
    given = {"function": setup.function, "inputs": setup.inputs}
    gc.disable()
    y = attempt.call(learner, given, may_change=("function", "inputs"))
    storage = StorageWeakRef(y.untyped_storage())
    del y
    gone = storage.expired()
    gc.enable()
    return attempt.require(
        gone,
        "the result is still there after it was dropped: something holds it, a list of yours or "
        "its own graph (ctx is a part of that, so a result that hangs on ctx holds itself)",
    )


def _plain(function, inputs):
    return function(*inputs)


def _keeping_all(setup: _Setup) -> _Found:
    y = setup.function(*setup.inputs)
    between = torch.rand(3)
    if y.requires_grad:
        setup.loss(y).backward()
    return _Found(y, between, torch.rand(3), {n: of.grad for n, of in setup.leaves.items()})


def _checked(attempt: Attempt, learner, setup: _Setup, wants: bool) -> _Found | None:
    given = {"function": setup.counted, "inputs": setup.inputs}
    watch = Watch()
    with watch:
        before = watch.live
        y = attempt.call(learner, given, may_change=("function", "inputs"))
        gc.collect()
        kept = watch.live - before
    if not isinstance(y, torch.Tensor):
        attempt.equal("the result", y, torch.zeros(1))
        return None
    between, forward = torch.rand(3), len(setup.runs)
    if not attempt.require(
        forward == 1, f"the forward pass runs the function {forward} times; once is asked for"
    ):
        return None
    if not attempt.require(
        y.requires_grad == wants,
        "its result wants no gradient: the graph ends there"
        if wants
        else "its result wants a gradient, although nobody may ask for one here",
    ):
        return None
    kept -= y.untyped_storage().nbytes()
    if not attempt.require(
        kept <= SLACK,
        f"between forward and backward it keeps {kept:,} bytes that were not there before, beside "
        "the result: inputs are kept as they are, and of what the function makes nothing",
    ):
        return None
    if not wants:
        return _Found(y, between, torch.rand(3), {n: of.grad for n, of in setup.leaves.items()})
    with attempt.watching():
        setup.loss(y).backward()
    after, again = torch.rand(3), setup.runs[1:]
    if not attempt.require(
        len(again) == 1,
        f"the backward pass runs the function {len(again)} times; once is asked for",
    ):
        return None
    if not attempt.require(
        len(setup.within) in (0, 3),
        f"the function of the checkpoint within runs {len(setup.within)} times, and not 3: in the "
        "second run of what is around it, it keeps all of what its function makes",
    ):
        return None
    (state, wanted), (first_state, first_wanted) = again[0], setup.runs[0]
    if not attempt.require(
        torch.equal(state, first_state),
        "the second run starts from another random state than the first: what draws (dropout) "
        "draws other numbers",
    ) or not attempt.require(
        wanted == first_wanted,
        "in the second run other inputs want a gradient than in the first: those that wanted none "
        "cost work and memory now, or those that wanted one get none",
    ):
        return None
    return _Found(y, between, after, {n: of.grad for n, of in setup.leaves.items()})


def _same(attempt: Attempt, found: _Found, right: _Found, setup: _Setup) -> bool:
    if not attempt.equal("the result", found.y, right.y, rtol=0.0):
        return False
    for name, wanted in right.grads.items():
        got, is_input = found.grads[name], name.startswith("x")
        if wanted is None or got is None:
            why = (
                f"{name} gets no gradient"
                if got is None
                else f"{name} gets a gradient, and the function does not depend on it"
            )
            if got is None and not is_input:
                why += (
                    ": it is a parameter that the function uses and no input, so nothing that "
                    "backward returns can be for it; it has to be reached by a backward through "
                    "the second run"
                )
            if not attempt.require(wanted is got is None, why):
                return False
            continue
        mistakes = {
            "it is there twice: the second run must begin at inputs that are cut off from the "
            "graph that they came from (`detach`)": 2 * wanted,
            "it is that of the sum of the result, whatever gradient arrives": (
                lambda name=name: setup_gradient(setup, name)
            ),
        }
        if not attempt.equal(f"the gradient of {name}", got, wanted, 0.0, mistakes):
            return False
    if not attempt.require(
        torch.equal(found.between, right.between),
        "after the forward pass the random numbers go on from elsewhere than without a checkpoint",
    ):
        return False
    return attempt.require(
        torch.equal(found.after, right.after),
        "after the backward pass the random numbers go on from elsewhere: the second run has moved "
        "the state, and it is to be as it was before that run",
    )


def setup_gradient(setup: _Setup, name: str) -> torch.Tensor:
    """Of the plain sum of the result, whatever the setting's loss is."""
    of = setup.leaves[name]
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(setup.function(*setup.inputs).sum(), of, allow_unused=True)
    return torch.zeros_like(of) if grad is None else grad


# -- settings: each gets the learner's function, for what is nested in another checkpoint


def _leaf(*shape, dtype=torch.float64, grad=True, scale=1.0) -> torch.Tensor:
    seed = sum(p * n for p, n in zip((7, 31, 101), shape)) + 1
    draw = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=draw, dtype=dtype)).requires_grad_(grad)


def _weighted(y: torch.Tensor) -> torch.Tensor:
    weight = torch.arange(y.numel(), dtype=y.dtype).view_as(y)
    return (y * (1 + weight / max(1, y.numel()))).sum()


def _mlp(rows: int = 131, dtype=torch.float64, inner: int = 93):
    w, v = _leaf(31, inner, dtype=dtype), _leaf(inner, 31, dtype=dtype)

    def function(x):
        return F.gelu(x @ w) @ v

    return function, {"w": w, "v": v}, _leaf(rows, 31, dtype=dtype)


def _one_input(learner, rows=131, dtype=torch.float64, loss=_weighted):
    function, parameters, x = _mlp(rows, dtype)
    return _Setup(function, (x,), {"x": x, **parameters}, loss)


def _of_a_sum(learner):
    return _one_input(learner, loss=torch.sum)


def _no_rows(learner):
    return _one_input(learner, rows=0)


def _in_fp32(learner):
    setup = _one_input(learner, rows=257, dtype=torch.float32)
    with torch.no_grad():
        setup.inputs[0][:, 0], setup.inputs[0][:, 1] = 1e-30, 1e20
    return setup


def _several(learner):
    """One wants a gradient, a mask, indices, a number and None do not."""
    w, x = _leaf(50, 41), _leaf(67, 50)
    mask = (_leaf(67, 41, grad=False) > 0).double()
    rows = torch.arange(66, -1, -1)

    def function(mask, rows, x, scale, nothing):
        assert nothing is None
        return (torch.tanh(x[rows] @ w) * mask * scale).cumsum(0)

    return _Setup(function, (mask, rows, x, 0.3, None), {"x": x, "w": w}, _weighted)


def _two_that_want(learner):
    x, other, frozen = _leaf(67, 50), _leaf(67, 50, scale=0.1), _leaf(50, 50, grad=False)

    def function(x, other, frozen):
        return torch.softmax((x * other) @ frozen, -1) + other

    return _Setup(function, (x, other, frozen), {"x": x, "x other": other}, _weighted)


def _an_unused_one(learner):
    x, unused, w = _leaf(67, 50), _leaf(3, 5), _leaf(50, 9)
    leaves = {"x": x, "x unused": unused, "w": w}
    return _Setup(lambda x, unused: (x @ w).exp(), (x, unused), leaves)


def _twice_the_same(learner):
    x = _leaf(67, 50)
    return _Setup(lambda a, b: torch.sin(a * 2) * b, (x, x), {"x": x}, _weighted)


def _not_a_leaf(learner):
    function, parameters, x = _mlp()
    before = torch.tanh(x) * 2
    return _Setup(function, (before,), {"x": x, **parameters}, _weighted)


def _used_elsewhere(learner):
    """The input goes past the checkpoint as well, and its result is used twice."""
    function, parameters, x = _mlp()
    before = x * 1.5

    def loss(y):
        return (y * y).sum() + (y + before).tanh().sum()

    return _Setup(function, (before,), {"x": x, **parameters}, loss)


def _dropped(learner):
    function, parameters, x = _mlp()

    def dropping(x):
        return F.dropout(function(F.dropout(x, 0.3)), 0.2)

    return _Setup(dropping, (x,), {"x": x, **parameters}, _weighted)


def _a_part_without(learner):
    """A part of the function is under no_grad, as a statistic is."""
    function, parameters, x = _mlp()

    def normed(x):
        with torch.no_grad():
            size = x.square().mean().sqrt()
        return function(x / size)

    return _Setup(normed, (x,), {"x": x, **parameters}, _weighted)


def _nested(learner):
    """A checkpoint within the function, which drops before and behind it."""
    inner, parameters, x = _mlp()
    within = []

    def dropping(x):
        within.append(None)
        return F.dropout(inner(x), 0.4)

    def function(x):
        x = F.dropout(x, 0.1)
        return torch.sin(learner(dropping, (x,))) * F.dropout(x, 0.1)

    return _Setup(function, (x,), {"x": x, **parameters}, _weighted, within=within)


def _in_a_row(learner):
    """Behind another checkpoint, and before one."""
    function, parameters, x = _mlp()
    first, others, _ = _mlp(inner=17)
    before = learner(lambda x: F.dropout(first(x), 0.2), (x,))
    leaves = {"x": x, **parameters, **{f"first {name}": of for name, of in others.items()}}

    def loss(y):
        return _weighted(learner(lambda y: torch.tanh(F.dropout(y, 0.5)), (y,)))

    return _Setup(lambda x: F.dropout(function(x), 0.1), (before,), leaves, loss)


def _without_gradients(learner):
    """Nobody wants a gradient: as in evaluation."""
    function, parameters, x = _mlp()

    def watched(x):
        with torch.no_grad():
            return function(x)

    return _Setup(watched, (x.detach(),), {"x": x, **parameters})


def _first_without(learner):
    """Of two inputs the first wants none."""
    given, x, w = _leaf(67, 50, grad=False), _leaf(67, 50), _leaf(50, 9)

    def function(given, x):
        return torch.sigmoid((given * x) @ w)

    return _Setup(function, (given, x), {"x": x, "w": w}, _weighted)


_SETTINGS = {
    "one input, two parameters": _one_input,
    "the gradient that arrives is that of a sum": _of_a_sum,
    "two inputs, the first wants no gradient": _first_without,
    "two inputs that want gradients, and one that does not": _two_that_want,
    "a mask, indices, a number and None among the inputs": _several,
    "an input that is not used": _an_unused_one,
    "the same input twice": _twice_the_same,
    "an input that is no leaf": _not_a_leaf,
    "an input that is used elsewhere, too": _used_elsewhere,
    "no rows": _no_rows,
    "fp32, from 1e-30 to 1e20": _in_fp32,
    "dropout": _dropped,
    "a part of it under no_grad": _a_part_without,
    "a checkpoint within a checkpoint": _nested,
    "checkpoints in a row": _in_a_row,
    "no gradient is wanted": _without_gradients,
    "one input, again": _one_input,
}


EXERCISE = Exercise(
    id="memory.checkpoint.function",
    goal="Run a function so that autograd keeps its inputs and nothing of what it makes: in the "
    "backward it is run a second time, from the same random state, and gradients are those of "
    "that run, to the last bit what they would be without.",
    interface="`my_checkpoint(function, inputs)` returns `function(*inputs)`, a tensor. inputs: a "
    "tuple of tensors, some of which want no gradient (masks, indices), and perhaps numbers and "
    "None. The function may use parameters that are no inputs, and they get their gradients, too; "
    "it may draw random numbers of the CPU's generator, have parts under `no_grad`, and call your "
    "checkpoint itself. After the backward pass random numbers go on as if there were no second "
    "run. A result that is dropped takes what was kept with it. At least one input wants a "
    "gradient, or there is no backward. Write it as a "
    "`torch.autograd.Function`; `torch.utils.checkpoint` is what you write.",
    budget="One run of the function in the forward, one in the backward. Between them: the inputs "
    "as they are, the result, and 20,000 bytes for random states.",
    hints=(
        "In `forward` of an autograd.Function nothing is recorded: just call it. What will "
        "`backward` need to do it again, beside the inputs? And where does the graph begin that "
        "the second run makes?",
        "`ctx.save_for_backward` for tensors, `torch.get_rng_state()` *before* the first run. In "
        "`backward`: inputs cut off (`detach`) and wanting what they wanted, `enable_grad`, the "
        "old random state for the run and the present one again after it.",
        "`torch.autograd.backward(y, grad)` goes through the second run's graph to its leaves: the "
        "cut-off inputs, whose `.grad` you return, and parameters, which get theirs at once. "
        "(`autograd.grad` would give you only what you name.) One thing returned for each input, "
        "None for what wants none.",
    ),
    stub_function=my_checkpoint,
    solution_function=solution,
    why="The gradient of a block needs what the block made, and whoever has the input and the "
    "random state can make it again: memory of a whole block for one more forward, a third more "
    "work if all blocks do it (arXiv 1604.06174). The second run is a graph of its own, with the "
    "inputs as leaves, or it would go on into the graph before it. Two limits of this way, which "
    "is torch's `use_reentrant=True`: if no input wants a gradient the parameters get none, and "
    "`torch.autograd.grad` through it cannot work. Today's way (`use_reentrant=False`, which the "
    "package's BlockRunner uses) hangs on saved-tensor hooks instead and stops the second run when "
    "it has what was asked for. Both also put back autocast and the states of the GPU's "
    "generators. What the package refuses is a generator of one's own, which nobody puts back "
    "(`pico.source('picolab.memory.scheduler')`).",
    judge=judge,
    cases=(Case("dp1", "many functions"),),
    blocked=(
        "torch.utils.checkpoint.CheckpointFunction.forward",
        "torch.utils.checkpoint._checkpoint_without_reentrant_generator",
    ),
    timeout=20.0,
)
