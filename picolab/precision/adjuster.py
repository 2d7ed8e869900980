"""The adjuster: watches a training run, says when the last steps have to be taken back, and whose
precision is raised before they are tried again.

A step is *bad* if, before its update is made,

    its loss or its gradient's norm is not finite
    its loss is above the mean of the last good steps' by more than `deviations` of theirs
    its gradient's norm is more than `ratio` times their median

Its loss tells of the parameters that it began with, so what has gone wrong is an earlier update:
the run goes back to the last good state (training/snapshot.py) and tries again, with a difference.

    first time     the culprit is raised by a format: the layer whose gradient has moved most, or,
                   within `cool_down` steps of lowering one, the one that was lowered
    again          before the run is past that step: every layer, to the highest
    once more      it is not the precision. Until the run is past that step what is finite is
                   accepted, as the batch's own, and what was raised is as it was; what is not
                   finite ends the run, with a sentence

So a run goes back at most twice for a step, and never again once it is past it. Raising is undone
when it is no longer needed: after `clean` good steps since it was raised, one layer at a time with
`cool_down` steps between, a layer goes back to the format that was chosen for it. **No
oscillation**: each time it has to be raised again it waits twice as long, and after `tries` of
these it stays where it is; a layer is lowered `tries` times at most, whatever happens.

    adjuster = DynamicPrecisionAdjuster({"a": "fp8", "b": "fp8"}, ["fp8", "bf16", "fp32"])
    objection = adjuster.objection(loss, norm)         # None, or why
    adjuster.good(step, loss, norm)                    # layers that are lowered
    adjuster.bad(step, objection, moved, back)         # what is raised, or "accept"

It is told what was seen and computes nothing else: all ranks that are told the same say the same.
Leaves out: spikes that grow over many steps, which no single step is bad in.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a step is bad, and how long what was raised stays raised."""

    deviations: float = 6.0
    """Of the loss, above the mean."""
    ratio: float = 10.0
    """Of the gradient's norm, to the median."""
    window: int = 32
    """Good steps that these are of."""
    least: int = 8
    """Good steps before they are asked; what is not finite is bad from the first step on."""
    floor: float = 0.01
    """A deviation is this share of the mean at least: losses that hardly move make no alarm."""
    clean: int = 50
    """Good steps after which a layer is lowered again."""
    cool_down: int = 10
    """Good steps between one change and the next layer that is lowered."""
    tries: int = 3
    """How often a layer is lowered, at most."""

    def __post_init__(self):
        for name in ("deviations", "ratio", "floor"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and value > (1 if name == "ratio" else 0)):
                least = "above 1" if name == "ratio" else "above 0"
                raise ValueError(f"{name} is {value!r}; it must be a number {least}")
        for name in ("window", "least", "clean", "cool_down", "tries"):
            value, least = getattr(self, name), 2 if name in ("window", "least") else 0
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least {least}")


class Objection(NamedTuple):
    """Why a step is bad."""

    reason: str
    finite: bool


class Answer(NamedTuple):
    """To a bad step."""

    action: Literal["go back", "accept"]
    raised: tuple[str, ...]
    """Layers that have a higher format now; with "accept", a lower one."""
    reason: str


@dataclass
class Layer:
    """Where one layer is on the ladder."""

    chosen: int
    now: int
    lowered: int = 0
    """How often it was."""
    clean: int = 0
    """Good steps since it was raised."""


class DynamicPrecisionAdjuster:
    """The machine that follows from the steps it is told of, and from nothing else.

    chosen: layer -> its format. ladder: formats, from the lowest to the highest. Raises ValueError
    for a format that is not on it.
    """

    def __init__(
        self, chosen: Mapping[str, str], ladder: Sequence[str], limits: Limits | None = None
    ):
        self.ladder, self.limits = tuple(ladder), limits or Limits()
        for name, format in chosen.items():
            if format not in self.ladder:
                raise ValueError(
                    f"{name} is in {format!r}, which is not among {', '.join(self.ladder)}"
                )
        places = {name: self.ladder.index(format) for name, format in chosen.items()}
        self.layers = {name: Layer(place, place) for name, place in places.items()}
        self._seen: list[tuple[int, float, float]] = []  # (step, loss, norm) of good ones
        self._quiet = 0  # good steps since anything was changed
        self._lowered_last: str | None = None
        self._trouble: int | None = None  # the bad step that the run is not past yet
        self._before: dict[str, int] = {}  # places when it was first seen
        self._accepts = False  # until it is past

    @property
    def formats(self) -> dict[str, str]:
        """Of each layer, now."""
        return {name: self.ladder[layer.now] for name, layer in self.layers.items()}

    def objection(self, loss: float, norm: float) -> Objection | None:
        """Why a step is bad; None: it is not."""
        limits = self.limits
        for name, value in (("loss", loss), ("gradient's norm", norm)):
            if not math.isfinite(value):
                return Objection(f"the {name} is {value}", finite=False)
        if len(self._seen) < limits.least:
            return None
        losses, norms = ([of[i] for of in self._seen] for i in (1, 2))
        mean, median = statistics.fmean(losses), statistics.median(norms)
        deviation = max(statistics.pstdev(losses), limits.floor * abs(mean))
        if loss - mean > limits.deviations * deviation:
            usual = f"{mean:.4g} with a deviation of {deviation:.2g}"
            return Objection(f"the loss is {loss:.4g}, and the last good ones are {usual}", True)
        if norm > limits.ratio * median > 0:
            times = f"{norm / median:.3g} times the median of the last good ones"
            return Objection(f"the gradient's norm is {times}", True)
        return None

    def good(self, step: int, loss: float, norm: float) -> list[str]:
        """A step without objection (or one that was accepted); layers that were lowered by it."""
        self._seen = [*self._seen, (step, loss, norm)][-self.limits.window :]
        if self._trouble is not None and step >= self._trouble:
            self._trouble, self._accepts = None, False
        self._quiet += 1
        for layer in self.layers.values():
            layer.clean += 1
        if self._trouble is not None or self._quiet < self.limits.cool_down:
            return []
        self._lowered_last = None
        due = (name for name, layer in self.layers.items() if self._is_due(layer))
        name = next(due, None)
        if name is None:
            return []
        layer = self.layers[name]
        layer.now, layer.lowered = layer.chosen, layer.lowered + 1
        self._quiet, self._lowered_last = 0, name
        return [name]

    def _is_due(self, layer: Layer) -> bool:
        """Waits double with each time that it was lowered and had to be raised again."""
        if layer.now == layer.chosen or layer.lowered >= self.limits.tries:
            return False
        return layer.clean >= self.limits.clean * 2**layer.lowered

    def bad(
        self, step: int, why: Objection, moved: Mapping[str, float], back: int | None
    ) -> Answer:
        """What to do about a bad step. moved: layer -> by how much its gradient has, in powers of
        two. back: the last good state's step; None: there is none.

        Raises FloatingPointError for what is not finite and no precision cures, or that there is
        no good state to go back from to.
        """
        again = self._trouble is not None
        if not again:
            self._before = {name: layer.now for name, layer in self.layers.items()}
        top = len(self.ladder) - 1
        able = [name for name, layer in self.layers.items() if layer.now < top]
        if back is None and not why.finite:
            raise FloatingPointError(
                f"{why.reason} at step {step}, and there is no good state to go back to; "
                "try a lower lr, a longer warmup or a tighter clip"
            )
        if back is None:
            return Answer("accept", (), f"{why.reason}; there is no good state to go back to")
        if again and (self._accepts or not able):
            return self._not_the_precisions(step, why)
        if again:
            names, reason = able, "again, so every layer is raised"
        else:
            names, reason = self._culprit(able, moved)
        for name in names:
            layer = self.layers[name]
            layer.now, layer.clean = (top if again else layer.now + 1), 0
        self._trouble = max(step, self._trouble or 0)  # (on the way there, another may be bad)
        self._quiet, self._lowered_last = 0, None
        self._seen = [of for of in self._seen if of[0] < back]
        return Answer("go back", tuple(names), f"{why.reason}; {reason}")

    def _culprit(self, able: list[str], moved: Mapping[str, float]) -> tuple[list[str], str]:
        """One of those that can be raised, and why it; none, if there is none."""
        if self._lowered_last is not None:
            return [self._lowered_last], f"{self._lowered_last} had just been lowered"
        if not able:
            return [], "nothing can be raised, so the same is tried again"
        # (of several that are not finite the first: what follows reads its output)
        name = max(able, key=lambda name: moved.get(name, 0.0))
        return [name], f"{name}'s gradient has moved most"

    def _not_the_precisions(self, step: int, why: Objection) -> Answer:
        raised = [n for n, layer in self.layers.items() if layer.now != self._before[n]]
        for name in raised:
            self.layers[name].now = self._before[name]
        self._accepts, self._quiet = True, 0
        if not why.finite:
            raise FloatingPointError(
                f"{why.reason} at step {step}, also with every layer in {self.ladder[-1]}, so it "
                "is not the precision; try a lower lr, a longer warmup or a tighter clip"
            )
        reason = f"{why.reason}; in every precision, so it is the batch's own"
        return Answer("accept", tuple(raised), reason)

    def state_dict(self) -> dict:
        """As JSON has it."""
        return {
            "layers": {name: vars(layer).copy() for name, layer in self.layers.items()},
            "seen": [list(of) for of in self._seen],
            "quiet": self._quiet,
            "lowered_last": self._lowered_last,
            "trouble": self._trouble,
            "before": self._before,
            "accepts": self._accepts,
        }

    def load_state_dict(self, state: dict) -> None:
        self.layers = {name: Layer(**of) for name, of in state["layers"].items()}
        self._seen = [tuple(of) for of in state["seen"]]
        self._quiet, self._trouble = state["quiet"], state["trouble"]
        self._lowered_last, self._before = state["lowered_last"], dict(state["before"])
        self._accepts = state["accepts"]


class Movements:
    """How far each layer's gradient is from where it was: |log2(norm / its running mean)|."""

    def __init__(self, memory: float = 0.9):
        self.memory, self._usual = memory, {}

    def remember(self, norms: Mapping[str, float]) -> None:
        """Those of a good step."""
        for name, norm in norms.items():
            if norm > 0:
                log = math.log2(norm)
                usual = self._usual.get(name, log)
                self._usual[name] = self.memory * usual + (1 - self.memory) * log

    def of(self, norms: Mapping[str, float]) -> dict[str, float]:
        """Layer -> powers of two; infinite for what is not finite, 0 for a layer not seen yet."""
        return {name: self._moved(name, norm) for name, norm in norms.items()}

    def _moved(self, name: str, norm: float) -> float:
        if not math.isfinite(norm):
            return math.inf
        if name not in self._usual:
            return 0.0
        return abs(math.log2(norm) - self._usual[name]) if norm > 0 else math.inf
