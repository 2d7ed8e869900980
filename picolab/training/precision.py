"""What a precision has to say in a step: whether its gradients may be used.

The base trains as parameters are and never objects. A loss scaler objects when a gradient
overflowed: then the step is skipped, and training goes on with the next. All ranks must skip the
same steps, or replicas drift apart and the next collective pairs a step with another; so a rank
that objects is agreed with, by `agreed`.
"""

import torch

from picolab import comm
from picolab.parallel import ThreeDParallelOptimizer


class Precision:
    """Parameters, gradients and optimizer state have one dtype; every step is taken."""

    def ready(self, parallel: ThreeDParallelOptimizer) -> bool:
        """Gradients are complete. May the step be taken? The same answer on every rank."""
        return True

    def after_step(self, taken: bool) -> None:
        """The step was taken, or skipped."""


def agreed(mine: bool) -> bool:
    """True on all ranks if it is true on all, else False on all: one number a step."""
    answer = torch.tensor(int(not mine), device=comm.device())
    return not comm.all_reduce(answer, "world", "precision: does any rank object?", op="max").item()
