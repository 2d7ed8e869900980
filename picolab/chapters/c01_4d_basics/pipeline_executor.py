"""Exercise: the executor of a pipeline, which does what a schedule says (chapter 1, section 5).

What a stage holds is counted by what autograd saves: each saved tensor is packed into an object
that knows its micro-batch, and autograd lets go of it when the backward has used it.
"""

import weakref

import torch

from picolab import comm, schedules
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise

WIDTH = 5
SHAPE = (2, 3, WIDTH)


def my_executor(order, forward, shape):
    import picolab as pico

    stage, stages = pico.comm.mesh().rank("pp"), pico.comm.mesh().size("pp")
    raise NotImplementedError(f"stage {stage} of {stages}: do {order[0]}, and so on")


def solution(order, forward, shape):
    import torch

    import picolab as pico

    stage, last = pico.comm.mesh().rank("pp"), pico.comm.mesh().size("pp") - 1

    def received(source, reason):
        buffer = torch.empty(shape, dtype=torch.float64)
        return pico.comm.recv(buffer, source, "pp", reason)

    stash, sending = {}, []
    for action in order:
        kind, i = action[0], int(action[1:])
        if kind == "F":
            x = received(stage - 1, "activation").requires_grad_() if stage > 0 else None
            y = forward(i, x)
            stash[i] = x, y
            if stage < last:
                to_send, neighbour = y.detach(), stage + 1
        else:
            dy = received(stage + 1, "gradient") if stage < last else None
            x, y = stash.pop(i)
            torch.autograd.backward(y, dy)
            if stage > 0:
                to_send, neighbour = x.grad, stage - 1
        if (kind == "F" and stage < last) or (kind == "B" and stage > 0):
            sending.append(pico.comm.send(to_send, neighbour, "pp", kind, async_op=True))
    for pending in sending:
        pending.wait()


def judge(learner, attempt: Attempt) -> None:
    mesh, values = comm.mesh(), attempt.case.values
    stages, stage, m = mesh.size("pp"), mesh.rank("pp"), values["micro_batches"]
    order = _orders(values["schedule"], stages, m)[stage]
    weights = [attempt.tensor(WIDTH, WIDTH).requires_grad_() for _ in range(stages)]
    # The replicas of dp have micro-batches of their own.
    drawn = attempt.tensor(2, mesh.size("dp"), m, *SHAPE)[:, mesh.rank("dp")]
    layers = _Layers(stage, stages, *drawn)
    mine = weights[stage].detach().clone().requires_grad_()
    seen = _Seen()

    def forward(i, x):
        return seen.forward(layers, mine, i, x)

    forward.__qualname__ = "forward"  # for error messages
    attempt.call(learner, {"order": list(order), "forward": forward, "shape": SHAPE})
    attempt.only("send", "recv")
    attempt.along("pp")
    if seen.problem:
        attempt.wrong(seen.problem)
        return
    asked = ", ".join(order)
    if not attempt.require(
        seen.log == order,
        f"its order asks for {asked}; it did {', '.join(seen.log) or 'nothing'}",
    ):
        return
    _gradients(attempt, layers, weights, mine, m)
    most = _most_held(order)
    attempt.counted.append(("micro-batches held", "", seen.most, most))
    attempt.require(
        seen.most <= most,
        f"what autograd saved of {seen.most} micro-batches is held at once, and {most} are enough "
        "for this order: after a backward, nothing of its micro-batch is needed",
    )
    neighbours = (stage > 0) + (stage < stages - 1)
    one = drawn[0, 0].numel() * drawn.element_size()
    attempt.budget("send", count=neighbours * m, at_least=neighbours * m)
    sent = neighbours * m * one
    attempt.budget("send", payload_bytes=sent, least_bytes=sent)


def _orders(schedule: str, stages: int, m: int) -> list[list[str]]:
    if schedule == "backwards":  # GPipe, and the last micro-batch goes back first
        one = [f"F{i}" for i in range(m)] + [f"B{i}" for i in reversed(range(m))]
        return [one] * stages
    rows = schedules.make(schedule, stages, m).actions
    return [[f"{action.kind}{action.micro_batch}" for action in row] for row in rows]


def _most_held(order: list[str]) -> int:
    held = [0]
    for action in order:
        held.append(held[-1] + (1 if action[0] == "F" else -1))
    return max(held)


class _Layers:
    """What each stage computes; the last one ends in a loss."""

    def __init__(self, stage: int, stages: int, inputs, targets):
        self.stage, self.stages, self.inputs, self.targets = stage, stages, inputs, targets

    def run(self, stage: int, weight, i: int, x):
        y = torch.tanh((self.inputs[i] if stage == 0 else x) @ weight.T)
        return y if stage < self.stages - 1 else (y - self.targets[i]).square().sum()


class _Seen:
    """What was called, in which order, and how many micro-batches were held."""

    def __init__(self):
        self.log: list[str] = []
        self.most, self.problem = 0, ""
        self._saved: weakref.WeakSet = weakref.WeakSet()

    def forward(self, layers: _Layers, weight, i, x):
        if layers.stage > 0 and not isinstance(x, torch.Tensor):
            raise ValueError(
                f"forward({i}, x): x is the activation that stage {layers.stage - 1} sent"
            )
        if layers.stage > 0 and not x.requires_grad:
            self.problem = (
                f"forward({i}, x): x does not require a gradient, so backward makes none for the "
                "stage before: `.requires_grad_()` of what was received"
            )
        self.log.append(f"F{i}")

        def pack(tensor):
            saved = _Saved(i, tensor)
            self._saved.add(saved)
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
            y = layers.run(layers.stage, weight, i, x)
        self.most = max(self.most, len({saved.micro_batch for saved in self._saved}))
        y.register_hook(lambda _: self.log.append(f"B{i}"))
        return y


class _Saved:
    """A tensor that autograd keeps for the backward of one micro-batch."""

    def __init__(self, micro_batch: int, tensor: torch.Tensor):
        self.micro_batch, self.tensor = micro_batch, tensor


def _gradients(attempt: Attempt, layers: _Layers, weights: list, mine, m: int) -> None:
    """The stage's gradient is that of one process which runs all stages."""
    stage = layers.stage

    def gradient(micro_batches) -> torch.Tensor:
        total = torch.zeros_like(mine)
        for i in micro_batches:
            x = None
            for s, weight in enumerate(weights):
                x = layers.run(s, weight, i, x)
            total += torch.autograd.grad(x, weights[stage])[0]
        return total

    mistakes = {
        "it is that of the last micro-batch alone: gradients of a step add up": gradient([m - 1]),
        "it is that of the first micro-batch alone: gradients of a step add up": gradient([0]),
        "it is divided by the number of micro-batches; here the losses are added up": gradient(
            range(m)
        )
        / m,
    }
    name = "the gradient of this stage's weight"
    if mine.grad is None:
        attempt.wrong(
            f"{name} is None: `torch.autograd.backward(output, gradient)` leaves it there"
        )
        return
    attempt.equal(name, mine.grad, gradient(range(m)), mistakes=mistakes)


EXERCISE = Exercise(
    id="4d.pp.executor",
    goal="Run one step of one pipeline stage, in the order that it is told: forwards and backwards "
    "of its micro-batches, activations to the next stage, gradients back. It must work for *any* "
    "order that can be done, GPipe's, 1F1B's, or one that nobody has thought of; and the ranks "
    "must "
    "not wait for each other for ever.",
    interface="`my_executor(order, forward, shape)` returns nothing; it leaves gradients in the "
    'parameters, added up over the micro-batches. order is this stage\'s list, as `["F0", "F1", '
    '"B0", "B1"]`. `forward(i, x)` runs its layers on micro-batch i and returns the output: on the '
    "last stage the loss, a scalar, elsewhere an activation. x is what the stage before sent, and "
    "must require a gradient; on the first stage it is None, since `forward` reads micro-batch i "
    "itself. Activations and their gradients have this `shape` and are float64. Stage s is rank s "
    "of the axis `pp`. You may use `torch.autograd.backward(output, gradient)`, "
    '`pico.comm.recv(buffer, source, "pp", reason)`, which fills and returns the buffer, and '
    '`pico.comm.send(x, to, "pp", reason, async_op=True)`, which returns at once: `.wait()` of '
    "what "
    "it returned comes back when x has been sent. Without `async_op=True` it waits until the other "
    "side receives.",
    budget="One send a micro-batch to each neighbour. Forwards and backwards exactly in this "
    "order, and after a backward nothing that autograd kept for its micro-batch is held.",
    hints=(
        "What does a backward need that its forward had? Note it down under the number of the "
        "micro-batch. From where do the first stage, and the last, get what the others receive?",
        "Stage 1 wants to send an activation on while stage 2 wants to send a gradient back. If "
        "both wait until the other receives, which of them does? When may you wait, then?",
        "F: receive into `torch.empty(shape, dtype=torch.float64)`, `.requires_grad_()`, "
        "`y = forward(i, x)`, `stash[i] = x, y`, send `y.detach()`. B: receive dy, "
        "`x, y = stash.pop(i)`, `torch.autograd.backward(y, dy)` (dy is None on the last stage), "
        "send `x.grad`. Wait for the sends after the last action.",
    ),
    stub_function=my_executor,
    solution_function=solution,
    why="`backward(output, gradient)` starts where the next stage stopped: it is the chain rule "
    "with a message in the middle. The received activation is a leaf that requires a gradient, so "
    "its `.grad` is what the stage before needs. No cycle of waiting can arise: a send returns at "
    "once, so a stage waits only in a receive, for something that its sender does *earlier* in its "
    "order; and an order that can be done at all has no cycle among these. With blocking sends "
    "there is one more edge, from a send to the receive, and 1F1B has a cycle. Messages between "
    "two "
    "ranks arrive in the order in which they are sent, so neighbours must do the same "
    "micro-batches "
    "in the same order: a valid schedule says so. (The package's executor also frees each "
    "activation's memory once it was sent: backward needs the graph behind it, not its values.)",
    judge=judge,
    cases=(
        Case("pp2", "1F1B, 3 micro-batches", {"schedule": "1f1b", "micro_batches": 3}),
        Case("pp4", "1F1B, 7 micro-batches", {"schedule": "1f1b", "micro_batches": 7}),
        Case("pp3", "GPipe, 4 micro-batches", {"schedule": "gpipe", "micro_batches": 4}),
        Case(
            "pp3",
            "1F1B with fewer micro-batches than stages",
            {"schedule": "1f1b", "micro_batches": 2},
        ),
        Case(
            "dp2pp2",
            "two pipelines; the last micro-batch goes back first",
            {"schedule": "backwards", "micro_batches": 3},
        ),
    ),
    blocked=("picolab.parallel.pipeline.PipelineParallelOptimizer.run",),
    timeout=4.0,
)
