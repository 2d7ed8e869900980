"""What happens in the ranks of a mystery run: the package's training step, with a fault at work.

    recording = record(config, fault)        # real ranks; what each one saw and held

Three such recordings make a case: the run in question, the same layout without the fault, and one
process on the same global batch. The loop is that of `training.train_rank`; beside it, each rank
keeps a copy of what it holds before the first step and after the last one. Nothing is gathered by
the ranks: a collective would be one more thing that may be wrong.
"""

import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch

from picolab import comm, launch
from picolab.debug.faults import Fault
from picolab.model import Piece, Transformer, slices
from picolab.monitoring import History, Ledger, events
from picolab.monitoring.figures import run_state
from picolab.monitoring.step_split import StepSplit
from picolab.parallel import parallelize
from picolab.training import TrainConfig, trainer

Held = dict[str, tuple[Piece, torch.Tensor]]  # global name -> which slice, and its values


@dataclass
class RankRecord:
    """What one rank saw and held. Lists have one entry a step."""

    place: dict[str, int]
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    start: Held = field(default_factory=dict)
    end: Held = field(default_factory=dict)


@dataclass
class Recording:
    """One run: its settings, what its ranks saw and held, and its events."""

    config: TrainConfig
    ranks: list[RankRecord]
    events: History
    ledger: Ledger

    @property
    def losses(self) -> list[float]:
        """As rank 0 logs them, which is what people look at."""
        return self.ranks[0].losses

    @property
    def norms(self) -> list[float]:
        return self.ranks[0].norms

    @property
    def split(self) -> dict[int, StepSplit]:
        """Where the mean step of each rank went; without the first step, which is warm-up."""
        return run_state(self.events).split()


def record(config: TrainConfig, fault: Fault | None = None) -> Recording:
    """Train on real ranks of this machine, with the fault at work in each of them. Nothing is shown
    meanwhile: a bar with the loss or the speed would be a look that nobody has taken."""
    run = launch.run(
        _rank,
        config,
        fault,
        world_size=config.layout.world,
        backend="gloo",
        name="mystery",
        quiet=True,
    )
    return Recording(config, list(run), run.events, run.ledger)


def one_process(config: TrainConfig) -> TrainConfig:
    """The same training without parallelism: the replicas' sequences in one batch."""
    rows = config.micro_batch * config.layout.dp
    return replace(config, layout="dp1", micro_batch=rows)


def _rank(config: TrainConfig, fault: Fault | None) -> RankRecord:
    with fault.applied(config.layout) if fault else nullcontext():
        return _train(config)


def _train(config: TrainConfig) -> RankRecord:
    mesh, ledger = comm.build_mesh(config.layout), comm.ledger()
    text = trainer.open_text(config)
    model = Transformer(config.model, dtype=config.torch_dtype)
    parallel = parallelize(model, config.layout, seed=config.seed, bucket_bytes=config.bucket_bytes)
    optimizer = trainer.adamw(model, config)
    found = RankRecord(dict(mesh.coordinates), start=_held(model))
    for step in range(config.steps):
        ledger.step, began = step, time.perf_counter()
        lr = config.learning_rate(step)
        loss, norm, tokens = trainer.train_step(parallel, optimizer, text, config, lr)
        seconds = time.perf_counter() - began
        found.losses.append(loss)
        found.norms.append(norm)
        ledger.flush()
        events.write(
            "step",
            step=step,
            steps=config.steps,
            loss=loss,
            grad_norm=norm,
            tokens=tokens,
            seconds=seconds,
            layout=str(config.layout),
        )
    ledger.step = None
    found.end = _held(model)
    return found


def _held(model: torch.nn.Module) -> Held:
    found: Held = {}
    for parameter in model.parameters():
        for piece, part in slices(parameter, parameter.detach()):
            found[piece.name] = piece, part.to("cpu", copy=True)
    return found
