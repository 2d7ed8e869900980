"""The trainer's own observers: what is told, kept and tried out beside the steps themselves."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from picolab import comm, costs
from picolab.monitoring import Observer, StepReport, events
from picolab.monitoring.resident import ResidentMemory
from picolab.show.files import hold
from picolab.specs.settings import described
from picolab.training.folder import ANOTHERS
from picolab.training.result import RankReport
from picolab.training.text import HELD_OUT_BATCHES

if TYPE_CHECKING:
    from picolab.training.checkpoint import Checkpoints


class Recorder(Observer):
    """Writes each step into the rank's report."""

    def __init__(self, report: RankReport):
        self._report = report

    def step(self, run, report: StepReport) -> None:
        mine = self._report
        mine.losses.append(report.loss)
        mine.grad_norms.append(report.grad_norm)
        mine.learning_rates.append(report.lr)
        mine.tokens.append(report.tokens)
        mine.seconds.append(report.seconds)
        mine.cpu_s += report.cpu_s
        if report.skipped:
            mine.skipped.append(report.step)

    def back(self, run, report: StepReport) -> None:
        """What is done again is told again."""
        mine, kept = self._report, report.back_to - run.first_step
        for of_steps in (
            mine.losses, mine.grad_norms, mine.learning_rates, mine.tokens, mine.seconds
        ):  # fmt: skip
            del of_steps[kept:]
        mine.skipped = [step for step in mine.skipped if step < report.back_to]
        mine.cpu_s += report.cpu_s
        mine.went_back.append((report.step, report.back_to))


class EventWriter(Observer):
    """Says each step to whoever watches: the notebook, the run directory. (The step's collectives
    were said before it, by the ledger.)"""

    def __init__(self):
        self._memory = ResidentMemory()
        self._layout = ""

    def start(self, run) -> None:
        """What is run: whoever reads the events later has nothing else that says it."""
        self._layout = str(run.config.layout)
        if comm.mesh().rank("world") == 0:
            flops = costs.flops_per_token(run.config.model)
            events.write("settings", settings=described(run.config), flops_per_token=flops)

    def step(self, run, report: StepReport) -> None:
        events.write(
            "step",
            step=report.step,
            steps=run.config.steps,
            loss=report.loss,
            own_loss=report.own_loss,
            grad_norm=report.grad_norm,
            own_grad_norm=run.own_grad_norm,
            lr=report.lr,
            loss_scale=run.precision.scale,
            tokens=report.tokens,
            began=report.began,
            seconds=report.seconds,
            data_s=report.data_s,
            cpu_s=report.cpu_s,
            queued_s=report.queued_s,
            rss_bytes=self._memory.read(),
            layout=self._layout,
            skipped=report.skipped,
        )


class Evaluation(Observer):
    """The loss on text that is never trained on: after every so many steps, and at the end.

    Always the same sequences, as many as HELD_OUT_BATCHES steps read, so that runs of the same
    global batch can be compared, in whatever layout.
    """

    def __init__(self, every: int, losses: dict[int, float]):
        self._every, self._losses = every, losses

    def step(self, run, report: StepReport) -> None:
        done = report.step + 1
        if done % self._every and done != run.config.steps:
            return
        mesh, config = comm.mesh(), run.config
        tokens_MBS, labels_MBS = run.text.held_out_batch(
            dp_rank=mesh.rank("dp"),
            dp_size=mesh.size("dp"),
            micro_batch=config.micro_batch,
            accumulate=config.accumulate * HELD_OUT_BATCHES,
        )
        loss = run.parallel.evaluate(tokens_MBS.to(run.device), labels_MBS.to(run.device)).item()
        self._losses[done] = loss
        if mesh.rank("world") == 0:
            events.write("eval", step=done, loss=loss)


class CheckpointWriter(Observer):
    """Writes a checkpoint whenever one is due."""

    def __init__(self, checkpoints: "Checkpoints"):
        self._checkpoints = checkpoints

    def start(self, run) -> None:
        """Rank 0 holds the folder as long as it writes there."""
        folder = self._checkpoints.folder
        if folder is None or comm.mesh().rank("world") != 0:
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        try:
            held = hold(Path(folder))
        except BlockingIOError:
            raise ValueError(ANOTHERS.format(folder)) from None
        except OSError:
            return  # a file system without locks
        let_go = ExitStack()
        let_go.callback(os.close, held)
        run.until_end(let_go)

    def step(self, run, report: StepReport) -> None:
        wanted, done = self._checkpoints, report.step + 1
        if wanted.due(done, run.config.steps):
            from picolab.training import checkpoint

            checkpoint.save(
                wanted.folder,
                done,
                run.optimizer,
                run.text,
                run.config,
                wanted.keep,
                run.precision,
            )
