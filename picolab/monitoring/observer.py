"""Who listens to a training run, without a line of the training loop knowing it. No torch.

    class Loudest(pico.Observer):
        def gradients(self, run):
            name, parameter = max(run.model.named_parameters(), key=lambda p: p[1].grad.abs().max())
            pico.emit(step=run.step, loudest=name)

    pico.train(layout="dp2", observers=[Loudest()])

Every rank gets a copy of each observer and calls it at the same places, in the order of the list:

    begin      the mesh is there, nothing else: what must be in force while the model is built
    start      model, optimizer and data are ready, nothing has been computed
    gradients  of a step are complete, and not clipped yet
    step       the step is over
    back       it was bad, and is undone: the run is where it was at the beginning of an earlier one
    end        after the last step

Events, checkpoints, evaluation, the oracle, fault injection and mystery runs are observers. All
ranks call, so an observer may do collectives if it does them on all of them.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StepReport:
    """What one step was. Loss, norm and tokens are global; times are this rank's."""

    step: int
    """From 0."""
    loss: float
    """The mean over all valid tokens of the global batch, in nats, before the update."""
    grad_norm: float
    """Of the whole gradient, before clipping."""
    tokens: int
    """Valid tokens of the global batch."""
    lr: float
    seconds: float
    cpu_s: float
    """CPU seconds of this process, all threads."""
    skipped: bool = False
    """All ranks agreed not to update (an fp16 gradient overflowed)."""
    began: float | None = None
    """On this machine's monotonic clock, as the ledger's times are."""
    queued_s: float | None = None
    """Seconds in which this rank was ready to run and no core was free; None: not told here."""
    back_to: int | None = None
    """The step that the run goes on from, if this one was undone."""
    own_loss: float | None = None
    """The mean over this rank's own valid tokens, before anything was reduced; None where the rank
    knows no loss."""
    data_s: float | None = None
    """Of the seconds: until the batch was there."""


class Observer:
    """Does nothing, six times. `run` is the trainer's `Run`: config, model, parallel, optimizer,
    text, step, tokens_MBS, labels_MBS, and after a step its ledger."""

    def begin(self, run: Any) -> None:
        """Before model and data exist. `run.until_end(context)` keeps a context manager open for
        the whole run, also if it fails."""

    def start(self, run: Any) -> None:
        """Before the first step."""

    def gradients(self, run: Any) -> None:
        """Every gradient is that of the global batch; clipping and the update come next."""

    def step(self, run: Any, report: StepReport) -> None:
        """The step is over. What an observer sends now is not booked as part of a step."""

    def back(self, run: Any, report: StepReport) -> None:
        """In place of `step`, of a step that is undone: `report.back_to` is the next one."""

    def end(self, run: Any) -> None:
        """After the last step, if the run did not fail."""
