"""What this chapter's runs are watched and disturbed by: observers, each for one question.

Sizes      how large the gradients are that travel back through the linears, by powers of two
Counted    bytes of the operands of all linears' products, in the format that each has then
Spiked     one layer's gradient is so many times as large, once
Shaken     one rank finds a gradient that is not finite; and, if asked to, decides alone
"""

import math

from picolab import comm
from picolab.debug.faults import patched
from picolab.monitoring import Observer, events
from picolab.precision import PrecisionAnalyzer, powers, scaler
from picolab.precision.adaptive import BYTES, AdaptiveProduct

SIZES, COUNTED, ENDED = "gradient sizes", "operands", "weights"


class Sizes(Observer):
    """Of the dy of every linear, in one step."""

    def __init__(self, step: int):
        if not isinstance(step, int) or step < 0:
            raise ValueError(f"step is {step!r}; it is a number of a step, from 0")
        self.at = step

    def start(self, run) -> None:
        self.analyzer = PrecisionAnalyzer(run.model)
        run.until_end(self.analyzer.listening())

    def gradients(self, run) -> None:
        if run.step == self.at:
            layers = {name: powers(of["dy"]) for name, of in self.analyzer.operands().items()}
            events.write(SIZES, step=run.step, layers=layers)


class Counted(Observer):
    """Of the three products of every linear in training: x, W and dy, each of which two of them
    read, in the bytes of the format that the linear has."""

    def begin(self, run) -> None:
        self.bytes, real = 0.0, AdaptiveProduct.__call__

        def product(made, x, weight):
            y = real(made, x, weight)
            if y.requires_grad:  # (else it is an evaluation)
                numbers = x.numel() + weight.numel() + y.numel()
                self.bytes += 2 * numbers * BYTES[made.format]
            return y

        run.until_end(patched(AdaptiveProduct, "__call__", product))

    def step(self, run, report) -> None:
        events.write(COUNTED, step=report.step, bytes=self.bytes)
        self.bytes = 0.0

    def back(self, run, report) -> None:
        self.bytes = 0.0


class Spiked(Observer):
    """The gradient of `layer` times `factor`, the first time that `step` is tried."""

    def __init__(self, step: int, layer: str, factor: float):
        if not isinstance(step, int) or step < 0:
            raise ValueError(f"step is {step!r}; it is a number of a step, from 0")
        self.at, self.layer, self.factor, self.done = step, layer, factor, False

    def start(self, run) -> None:
        names = [p.pieces[0].name for p in run.parallel.parameters()]
        if self.layer not in names:
            raise ValueError(f"there is no {self.layer!r}; there are {', '.join(names)}")

    def gradients(self, run) -> None:
        if run.step != self.at or self.done:
            return
        self.done = True
        for parameter in run.parallel.parameters():
            if parameter.pieces[0].name == self.layer:
                parameter.grad *= self.factor


class Shaken(Observer):
    """On one rank, a gradient of one step is infinite. alone: ranks do not ask each other."""

    def __init__(self, step: int, rank: int, alone: bool):
        self.at, self.rank, self.alone = step, rank, alone

    def start(self, run) -> None:
        if self.alone:
            run.precision.ready = lambda parallel: scaler.finite(parallel.parameters())

    def gradients(self, run) -> None:
        if run.step == self.at and comm.mesh().rank("world") == self.rank:
            run.parallel.parameters()[0].grad.view(-1)[0] = math.inf

    def end(self, run) -> None:
        """How many steps this rank's optimizer has made."""
        states = run.optimizer.state.values()
        made = max((int(state["step"]) for state in states if "step" in state), default=0)
        events.write(ENDED, updates=made)


def gradient_sizes(result) -> dict[int, int]:
    """Of a run with `Sizes`: of all layers together. ValueError if it told none."""
    found: dict[int, int] = {}
    for event in result.events:
        if event.kind == SIZES:
            for counts in event.data["layers"].values():
                for e, count in counts.items():
                    found[int(e)] = found.get(int(e), 0) + count
    if not found:
        raise ValueError(
            "this run did not tell how large its gradients are; "
            "give it observers=[pico.chapters.c04_mixed_precision.sizes(step)]"
        )
    return found


def operand_bytes(result) -> dict[int, float]:
    """step -> bytes, of a run with `Counted`, on rank 0."""
    return {
        event.data["step"]: event.data["bytes"]
        for event in result.events
        if event.kind == COUNTED and event.rank == 0
    }


def updates_of(result) -> list[int]:
    """Of a run with `Shaken`: updates that each rank made."""
    told = {event.rank: event.data["updates"] for event in result.events if event.kind == ENDED}
    return [told[rank] for rank in sorted(told)]
