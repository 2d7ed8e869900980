"""Training: `train_rank` is what each rank does, `train_step` one step of it (start.py: `train`).

The loss of a step is the mean over all valid tokens of the *global* batch. Each rank sums the
losses of its own tokens, and every sum is divided by the same number before it is differentiated:

    loss = sum over replicas and micro-batches of  sum(losses of their tokens) / count

where count is over all of them: one integer, reduced over dp before the first forward pass. Then
gradients are plain sums too, over micro-batches (autograd adds) and over replicas (the buckets),
and nothing depends on how the batch was cut. Dividing by each rank's own count and averaging is
wrong as soon as the counts differ.

Every rank ends a step with the same loss, the same norm and (of what it holds) the same parameters
as one process would; tests/distributed/training asserts it for each layout, with AdamW at work and
clipping active.

The loop exists once. Whoever wants to see a run (events, checkpoints, evaluation, the oracle,
mystery runs, a reader) is an observer (monitoring/observer.py), and not another loop. Which numbers
are computed with is asked of one object (precision.py).
"""

import math
import resource
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from picolab import comm
from picolab.memory import SmartMemoryManager, advise
from picolab.memory.scheduler import whole_block
from picolab.moe import saved_choices
from picolab.monitoring import Ledger, Observer, StepReport, events
from picolab.parallel import ThreeDParallelOptimizer, parallelize
from picolab.parallel.micro_batches import count_valid as global_count
from picolab.specs import TrainConfig
from picolab.training.build import build
from picolab.training.eager_adamw import EagerAdamW
from picolab.training.observers import CheckpointWriter, Evaluation, EventWriter, Recorder
from picolab.training.precision import Precision
from picolab.training.precision_named import of_config
from picolab.training.result import RankReport
from picolab.training.text import Text, open_text

if TYPE_CHECKING:
    from picolab.training.checkpoint import Checkpoints


class NonFiniteLoss(ArithmeticError):
    """The loss or its gradient is no longer a number; the message names the step."""


def train_rank(
    config: TrainConfig,
    checkpoints: "Checkpoints | None" = None,
    observers: Sequence[Observer] = (),
    *,
    text: Text | None = None,
    precision: Precision | None = None,
) -> RankReport:
    """What one rank does, from the mesh to its report. torch.distributed must be initialised.

    checkpoints: resolved already, see `Checkpoints.resolve`. None: none are written or read. text:
    where batches come from, None to open `config.data`.
    """
    report = RankReport()
    own: list[Observer] = [Recorder(report), EventWriter()]
    if config.eval_every is not None:
        own.append(Evaluation(config.eval_every, report.eval_losses))
    if checkpoints is not None:
        own.append(CheckpointWriter(checkpoints))
    if config.memory_budget is not None:
        contexts = saved_choices if config.model.experts else whole_block
        own.append(SmartMemoryManager(config.memory_budget, contexts=contexts))
    with Run(config, [*own, *observers], precision or of_config(config)) as run:
        run.prepare(text)
        if checkpoints is not None and checkpoints.resume is not None:
            from picolab.training.checkpoint import restore

            run.first_step = restore(
                checkpoints.resume, run.optimizer, run.text, config, run.precision
            )
            run.parallel.after_load()
            if dist.get_rank() == 0:
                events.write("resume", step=run.first_step, notes=list(checkpoints.notes))
        report.first_step = run.first_step
        try:
            run.tell("start")
            step = run.first_step
            while step < config.steps:
                done = train_step(run, step)
                run.tell("step" if done.back_to is None else "back", done)
                step = step + 1 if done.back_to is None else done.back_to
        except torch.OutOfMemoryError as error:
            advise(config, error, run.step)
            raise
        run.tell("end")
        report.memory = memory_bytes(run.parallel, run.optimizer) | run.precision.memory()
        # (the hash would cost more than opening the text)
        report.text = run.text.state_dict(hashed=False)
        state = run.parallel.state_dict()  # all ranks gather, one is enough to tell
        report.state = state if dist.get_rank() == 0 else None
    return report


def train_step(run: "Run", step: int) -> StepReport:
    """One optimizer step, or one that all ranks agree to skip, or to go back from."""
    config, parallel, ledger = run.config, run.parallel, comm.ledger()
    run.step = ledger.step = step
    began, cpu_began = time.monotonic(), time.process_time()  # the clock of the ledger
    queued = ledger.queued()
    run.precision.before_step(run)
    run.tokens_MBS, run.labels_MBS = next_batch(run.text, config, run.device)
    data_s = time.monotonic() - began
    valid = global_count(run.labels_MBS)
    parallel.zero_grad()
    loss = parallel.forward_backward(
        run.tokens_MBS, run.labels_MBS, valid, config.stage_cost_s, run.precision.scale
    )
    run.precision.unscale(parallel)
    run.tell("gradients")
    lr, taken = config.learning_rate(step), run.precision.ready(parallel)
    norm = parallel.clip(config.clip) if taken and config.clip else parallel.grad_norm()
    back_to = run.precision.judge(run, loss.item(), norm) if taken else None
    taken = taken and back_to is None
    if taken:
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        run.optimizer.step()
        parallel.after_step()
    run.precision.after_step(taken)
    times = time.monotonic() - began, time.process_time() - cpu_began
    queued_s = None if queued is None else ledger.queued() - queued
    skipped = not taken and back_to is None
    of_run = loss.item(), norm, valid.all, lr, *times, skipped, began, queued_s, back_to
    report = StepReport(step, *of_run, parallel.own_loss, data_s)
    run.ledger = Ledger(entry for entry in ledger.flush() if entry.step == step)
    ledger.step = None  # whatever observers send is no part of the step
    if taken:
        _stop_if_not_finite(run, report)
    return report


class Run:
    """One rank's run, as its observers see it."""

    def __init__(self, config: TrainConfig, observers: Sequence[Observer], precision: Precision):
        self.config, self.observers, self.precision = config, observers, precision
        self.first_step = self.step = 0
        self.tokens_MBS: torch.Tensor | None = None
        """Of the current step, this replica's: (accumulate, micro_batch, seq)."""
        self.labels_MBS: torch.Tensor | None = None
        self.ledger = Ledger()
        """Of the step that is over: this rank's collectives."""
        self.own_grad_norm: float | None = None
        """Of the step that is over: of this rank's own gradient, if a `Probe` listens."""
        self._open = ExitStack()

    def prepare(self, text: Text | None = None) -> None:
        """Mesh, data, model and optimizer, in this order."""
        config = self.config
        comm.build_mesh(config.layout)
        self.tell("begin")
        self.text = open_text(config) if text is None else text
        # On the meta device there are only shapes, so that the model is cut before it has values.
        self.model = build(config.model, config.torch_dtype)
        self.parallel = parallelize(
            self.model,
            config.layout,
            seed=config.seed,
            bucket_bytes=config.bucket_bytes,
            sp_inputs=config.sp_inputs,
            expert_copies=config.expert_copies,
        )
        self.precision.prepare(self.model, self.parallel)
        # After parallelize, which replaces the parameters by the shards that this rank holds.
        self.optimizer = adamw(self.parallel.parameters(), config)
        self.device = next(self.model.parameters()).device

    def tell(self, what: str, *report: StepReport) -> None:
        """Let all observers know."""
        for observer in self.observers:
            getattr(observer, what)(self, *report)

    def until_end(self, context: AbstractContextManager) -> None:
        """Keep a context manager open until the run is over, however it ends."""
        self._open.enter_context(context)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error) -> None:
        self._open.__exit__(*error)


def next_batch(
    text: Text, config: TrainConfig, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels of this replica for the next step: (accumulate, micro_batch, seq).

    Ranks that differ only in tp, cp or pp read the same (cp then takes its share of each sequence;
    a pipeline's first stage needs the tokens, its last the labels)."""
    mesh = comm.mesh()
    tokens_MBS, labels_MBS = text.batch(
        dp_rank=mesh.rank("dp"),
        dp_size=mesh.size("dp"),
        micro_batch=config.micro_batch,
        accumulate=config.accumulate,
    )
    return tokens_MBS.to(device), labels_MBS.to(device)


def adamw(parameters: Iterable[torch.nn.Parameter], config: TrainConfig) -> EagerAdamW:
    """AdamW, whose weight decay is for matrices (and embeddings), not for the weights of norms."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return EagerAdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def memory_bytes(
    parallel: ThreeDParallelOptimizer, optimizer: torch.optim.Optimizer
) -> dict[str, int]:
    """Bytes of this rank's tensors by category, and the most memory the process ever had resident.

    What tensors keep alive is counted, each memory once: a view costs nothing, and a parameter that
    ZeRO gathered and freed nothing either. `costs.rank_states` has the first three. The peak
    includes torch itself, activations and buffers; pages shared with other ranks count in each.
    """
    parameters = parallel.held()
    gradients = [p.grad for p in parameters if p.grad is not None]
    states = [value for state in optimizer.state.values() for value in state.values()]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "parameters": _bytes(parameters),
        "gradients": _bytes(gradients),
        "optimizer": _bytes([value for value in states if isinstance(value, torch.Tensor)]),
        "peak_rss": peak if sys.platform == "darwin" else peak * 1024,
    }


def _bytes(tensors: list[torch.Tensor]) -> int:
    memories = [tensor.untyped_storage() for tensor in tensors]
    return sum({memory.data_ptr(): memory.nbytes() for memory in memories}.values())


def _stop_if_not_finite(run: "Run", report: StepReport) -> None:
    """Loss and norm are global, so all ranks stop at the same step. Each says what its own were:
    that alone tells whose it is."""
    for name, value in (("loss", report.loss), ("gradient norm", report.grad_norm)):
        if not math.isfinite(value):
            own = {"own_loss": report.own_loss, "own_grad_norm": run.own_grad_norm}
            both = {"loss": report.loss, "grad_norm": report.grad_norm}
            events.write("not finite", step=report.step, **both, **own)
            raise NonFiniteLoss(
                f"the {name} is {value} at step {report.step}; "
                "try a lower lr, a longer warmup or a tighter clip"
            )
