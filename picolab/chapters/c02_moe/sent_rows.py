"""An observer that tells which rank sends how many rows to which.

For every layer and micro-batch it notes how many rows go to each rank of ep, and tells their sums
once a step (the event "rows sent"); matrix_figure.py makes a matrix of them.
"""

import torch

from picolab import comm
from picolab.chapters.c02_moe.matrix_figure import EVENT
from picolab.moe import expert_layers
from picolab.monitoring import Observer, StepReport, events


class Sent(Observer):
    """Tells, once a step, how many rows this rank has sent to each rank of ep in its forwards."""

    def start(self, run) -> None:
        self._rows = [0] * comm.axis_size("ep")
        for layer in expert_layers(run.model):
            self._listen(layer.communication)

    def _listen(self, communication) -> None:
        dispatch = communication.dispatch

        def listened(x_AD, rows_E):
            if torch.is_grad_enabled():  # an evaluation's are not the step's
                of_rank = rows_E.view(len(self._rows), -1).sum(1).tolist()
                self._rows = [old + new for old, new in zip(self._rows, of_rank)]
            return dispatch(x_AD, rows_E)

        communication.dispatch = listened

    def step(self, run, report: StepReport) -> None:
        events.write(EVENT, step=report.step, rows=self._rows)
        self._rows = [0] * len(self._rows)
