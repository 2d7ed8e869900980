"""Exercise: each parameter is stepped as soon as its gradient is complete (mem-023).

A hook of the judge's own has its turn after the learner's: by then the parameter has moved, and no
gradient is held any more.
"""

import gc

import torch
from torch import nn

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise
from picolab.memory import Watch

LR, MOMENTUM = 0.1, 0.8  # (lr is not 1 - momentum: one mistake would look like another)
STEPS = 4


def my_hooks(parameters, lr, momentum, axis):
    raise NotImplementedError("let each parameter be stepped within backward()")


def solution(parameters, lr, momentum, axis):
    import torch

    import picolab as pico

    ranks, velocities = pico.comm.mesh().size(axis), {}

    @torch.no_grad()
    def step(parameter):
        grad = pico.comm.all_reduce(parameter.grad, axis, "a gradient, as it comes") / ranks
        velocity = velocities.setdefault(parameter, torch.zeros_like(parameter))
        velocity.mul_(momentum).add_(grad)
        parameter.sub_(velocity, alpha=lr)
        parameter.grad = None

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(step)


class _Net(nn.Module):
    """A matrix that is used twice, one in every second step only, and two rows of one shape."""

    def __init__(self, values: dict[str, torch.Tensor]):
        super().__init__()
        for name, value in values.items():
            self.register_parameter(name, nn.Parameter(value.clone()))

    def forward(self, x, step: int):
        x = torch.tanh(torch.tanh(x @ self.twice) @ self.twice) @ self.wide
        if step % 2:
            x = torch.tanh(x) @ self.seldom
        return (x * self.gain + self.bias).square().mean()


def judge(learner, attempt: Attempt) -> None:
    axis = attempt.case.values["axis"]
    mesh = comm.mesh()
    ranks, world = list(mesh.ranks(axis)), range(mesh.size("world"))
    attempt.setting(f"{STEPS} steps over {axis}")
    shapes = {"twice": (6, 6), "wide": (6, 9), "seldom": (9, 9), "gain": (9,), "bias": (9,)}
    values = {name: attempt.tensor(*shape) / 3 for name, shape in shapes.items()}
    net, velocities, sent = _Net(values), {}, []
    given = {
        "parameters": list(net.parameters()), "lr": LR, "momentum": MOMENTUM, "axis": axis,
    }  # fmt: skip
    attempt.call(learner, given, may_change=("parameters",))
    witness = _Witness(net)
    for step in range(STEPS):
        batches = [attempt.tensor(5, 6) for _ in world]
        witness.begin()
        with attempt.watching():
            net(batches[attempt.rank], step).backward()
        if not _in_time(attempt, witness, step):
            return
        grads = _mean_gradients(values, [batches[rank] for rank in ranks], step)
        own = _mean_gradients(values, [batches[attempt.rank]], step)
        everyones = _mean_gradients(values, batches, step)
        for name in values:
            old = MOMENTUM * velocities.get(name, torch.zeros_like(values[name]))
            stays = "it has no gradient in this step, so it stays, and its momentum does"
            expected, mistakes = values[name], {stays: values[name] - LR * old}
            if name in grads:
                expected = values[name] - LR * (old + grads[name])
                mistakes = _mistakes(values[name], old, grads[name], own[name], len(ranks))
                everybody = "it is averaged over all ranks, and not over those of the axis"
                mistakes[everybody] = values[name] - LR * (old + everyones[name])
                everybody = "it is summed over all ranks, and not over those of the axis"
                many = len(world) / len(ranks)
                mistakes[everybody] = values[name] - LR * (old + many * everyones[name])
                velocities[name] = old + grads[name]
                sent.append(grads[name].numel() * grads[name].element_size())
            attempt.equal(f"{name} after step {step + 1}", net.get_parameter(name), expected,
                          mistakes=mistakes)  # fmt: skip
            values[name] = expected
        if attempt.problems:
            return
    attempt.only("all_reduce")
    attempt.along(axis)
    attempt.budget("all_reduce", count=len(sent), at_least=len(sent), axis=axis)
    attempt.budget("all_reduce", payload_bytes=sum(sent), least_bytes=sum(sent), axis=axis)
    with attempt.aside("another model, two steps"):
        _holds_velocities_alone(attempt, learner, values, batches[attempt.rank], axis)


def _holds_velocities_alone(attempt: Attempt, learner, values, batch, axis) -> None:
    """After two steps nothing has come but a velocity for each parameter."""
    net = _Net(values)
    given = {
        "parameters": list(net.parameters()), "lr": LR, "momentum": MOMENTUM, "axis": axis,
    }  # fmt: skip
    with Watch() as watch:
        before = watch.live
        attempt.call(learner, given, may_change=("parameters",))
        for _ in range(2):
            with attempt.watching():
                net(batch, 1).backward()
        gc.collect()
        held = watch.live - before
    one = sum(value.nbytes for value in values.values())
    attempt.require(
        held <= one + 1024,
        f"after backward {held:,} bytes are held, and the velocities are {one:,}: a gradient that "
        "hangs elsewhere is not let go of",
    )


class _Witness:
    """Looks at each parameter when the learner's hook has had its turn."""

    def __init__(self, net: nn.Module):
        self.net = net
        self.seen: list[tuple[str, bool, list[str]]] = []
        for name, parameter in net.named_parameters():
            parameter.register_post_accumulate_grad_hook(lambda p, name=name: self._see(name, p))

    def begin(self) -> None:
        self.seen.clear()
        self.before = {name: p.detach().clone() for name, p in self.net.named_parameters()}

    def _see(self, name: str, parameter: nn.Parameter) -> None:
        moved = not torch.equal(parameter.detach(), self.before[name])
        held = [other for other, p in self.net.named_parameters() if p.grad is not None]
        self.seen.append((name, moved, held))


def _in_time(attempt: Attempt, witness: _Witness, step: int) -> bool:
    for name, moved, held in witness.seen:
        if not moved:
            attempt.wrong(
                f"in backward {step + 1} the gradient of {name} was complete, and {name} was not "
                "stepped there and then: a step after backward needs all gradients at once"
            )
            return False
        if held:
            attempt.wrong(
                f"when {name} had been stepped, the gradient of {', '.join(held)} was still held: "
                "let go of it (`parameter.grad = None`), or nothing is saved"
            )
            return False
    return True


def _mean_gradients(values, batches, step: int) -> dict[str, torch.Tensor]:
    net = _Net(values)
    for batch in batches:
        net(batch, step).backward()
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {name: grad / len(batches) for name, grad in found.items()}


def _mistakes(before, old, grad, own, ranks: int) -> dict:
    return {
        "gradients are summed over the ranks; asked for is their mean": before
        - LR * (old + ranks * grad),
        "it is this rank's gradient alone; the others' are missing": before - LR * (old + own),
        "the momentum of earlier steps is missing": before - LR * grad,
        "(1 - momentum) before the gradient; in torch.optim.SGD it comes in whole": before
        - LR * (old + (1 - MOMENTUM) * grad),
        "it goes up the gradient": before + LR * (old + grad),
        "lr is missing": before - (old + grad),
        "momentum is not multiplied with what was before": before
        - LR * (old / MOMENTUM + grad),
        "it is Nesterov's: the gradient, and momentum times the new velocity": before
        - LR * (grad + MOMENTUM * (old + grad)),
        "it was divided by the ranks twice": before - LR * (old + grad / ranks),
    }  # fmt: skip


EXERCISE = Exercise(
    id="interview.memory.early_step",
    goal="SGD with momentum for data-parallel ranks, so that never more than one gradient is "
    "there: as soon as the gradient of a parameter is complete it is averaged over the ranks of "
    "the axis, the parameter is stepped, and the gradient is let go, all within `backward()`.",
    interface="`my_hooks(parameters, lr, momentum, axis)` is called once, before the first "
    "backward, and returns nothing. From then on each `loss.backward()` does everything: nobody "
    "calls a step. A parameter may be used several times in a forward pass, or not at all in some: "
    "then it stays. As torch.optim.SGD: `velocity = momentum * velocity + grad`, "
    "`parameter -= lr * velocity`, the first velocity is the first gradient. "
    "`pico.comm.all_reduce(x, axis, reason)` sums.",
    budget="One all-reduce for each gradient, of its size. When a parameter's gradient has been "
    "dealt with, no parameter has one.",
    hints=(
        "Which hook is called when a gradient has been written, with all of its parts?",
        "`register_post_accumulate_grad_hook`: once a backward for each parameter that has a "
        "gradient, however often it was used. `register_hook` comes before `.grad` is written.",
        "In it, under no_grad: all-reduce, divide, velocity, `parameter.sub_(...)`, "
        "`parameter.grad = None`.",
    ),
    stub_function=my_hooks,
    solution_function=solution,
    why="Gradients of all parameters exist at once only because the step comes after backward. A "
    "plain step needs one parameter's gradient at a time, and backward makes them one after the "
    "other. The hook after accumulation comes when all uses have been added up, and when the "
    "backward of the operators that read the parameter is over, so it may be changed. Ranks run "
    "the same graph, so their hooks come in the same order and their all-reduces meet. What is "
    "lost: anything that needs all gradients before the first step, such as clipping by the global "
    "norm, a loss scale's test, accumulation over micro-batches. (Twins: PyTorch's tutorial on the "
    "optimizer step in backward; LOMO, arXiv 2306.09782.)",
    judge=judge,
    cases=(
        Case("dp2", "", {"axis": "dp"}),
        Case("dp2tp2", "an axis among others", {"axis": "dp"}),
    ),
)
