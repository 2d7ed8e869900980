"""Section 7: one number of one rank, a little off."""

import torch
import torch.distributed as dist

from picolab.monitoring import Observer, StepReport


class Nudged(Observer):
    """After step `at` one weight of `name` has another last bit, on `rank` and on no other: as of a
    memory that flips a bit and says nothing."""

    def __init__(self, name: str, rank: int, at: int):
        if not isinstance(at, int) or at < 0:
            raise ValueError(f"at is {at!r}; it is the number of a step, from 0")
        self.name, self.rank, self.at = name, rank, at

    @torch.no_grad()
    def step(self, run, report: StepReport) -> None:
        if report.step == self.at and dist.get_rank() == self.rank:
            weight = run.model.get_parameter(self.name).view(-1)[:1]
            weight.copy_(torch.nextafter(weight, weight + 1))
