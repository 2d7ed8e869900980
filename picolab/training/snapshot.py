"""A state in memory to go back to: what a run was at the beginning of a step, all of it that a step
depends on, so that steps from there on come out bit for bit as they did.

    parameters, moments and step counts     what the optimizer steps, of this rank
    the place in the data                   before the step's batch was read
    random generators                       before anything was drawn

It is taken when the step's gradients are known and its update is not made yet: only then has the
loss shown that the parameters are good, and they are still those that the step began with. What was
read or drawn since the beginning of the step is remembered there (`Moment`).

It costs a copy of the parameters and moments, 12 bytes a parameter in fp32, in memory that is used
again each time. A checkpoint (checkpoint.py) is the same on disk, for another layout too.
"""

from typing import NamedTuple

import torch

from picolab import comm


class Moment(NamedTuple):
    """What a step begins with, beside tensors."""

    step: int
    position: int
    random: list[torch.Tensor]

    @classmethod
    def of(cls, run) -> "Moment":
        return cls(run.step, run.text.position, _random_states())


class Snapshot:
    """Of one rank; all ranks take and put back theirs together."""

    def __init__(self) -> None:
        self._moment: Moment | None = None
        self._kept: dict[tuple[int, str], torch.Tensor] = {}

    @property
    def step(self) -> int | None:
        """At whose beginning it was; None: nothing was taken yet."""
        return None if self._moment is None else self._moment.step

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._kept.values())

    @torch.no_grad()
    def take(self, run, moment: Moment) -> None:
        """run is at the beginning of `moment`'s step, but for gradients and what moment has."""
        self._moment, tensors, before = moment, _tensors(run), self._kept
        self._kept = {key: before.get(key, torch.empty_like(t)) for key, t in tensors.items()}
        for key, tensor in tensors.items():
            self._kept[key].copy_(tensor)

    @torch.no_grad()
    def put_back(self, run) -> int:
        """Make the run what it was; its next step."""
        moment, tensors = self._moment, _tensors(run)
        for key, tensor in tensors.items():
            if key in self._kept:
                tensor.copy_(self._kept[key])
        # At the beginning of the first step there are no moments.
        with_moments = {number for number, name in self._kept if name}
        for number, parameter in enumerate(run.parallel.parameters()):
            if number not in with_moments:
                run.optimizer.state.pop(parameter, None)
        run.parallel.after_load()
        run.parallel.zero_grad()
        run.text.position = moment.position
        _set_random_states(moment.random)
        return moment.step


def _tensors(run) -> dict[tuple[int, str], torch.Tensor]:
    """(number of the parameter, what of its state) -> tensor; "" for the parameter itself."""
    found = {}
    for number, parameter in enumerate(run.parallel.parameters()):
        found[number, ""] = parameter
        for name, value in run.optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                found[number, name] = value
    return found


def _random_states() -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    if comm.device().type == "cuda":
        states.append(torch.cuda.get_rng_state())
    return states


def _set_random_states(states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])
