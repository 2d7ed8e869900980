"""Training: `train` starts the ranks, `train_rank` is what each does, `train_step` one step of it.

The loss of a step is the mean over all valid tokens of the *global* batch. Each rank sums the
losses of its own tokens, and every sum is divided by the same number before it is differentiated:

    loss = sum over replicas and micro-batches of  sum(losses of their tokens) / count

where count is over all of them: one integer, reduced over dp before the first forward pass. Then
gradients are plain sums too, over micro-batches (autograd adds) and over replicas (the buckets),
and nothing depends on how the batch was cut. Dividing by each rank's own count and averaging is
wrong as soon as the counts differ.

Every rank ends a step with the same loss, the same norm and (of what it holds) the same parameters
as one process would; tests/distributed/training asserts it for each layout, with AdamW at work and
clipping active. Leaves out: loss scaling, evaluation on held-out text.
"""

import math
import resource
import sys
import time
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from picolab import comm, costs, launch
from picolab.model import Transformer
from picolab.model.transformer import IGNORED
from picolab.monitoring import events
from picolab.monitoring.table import bytes_text
from picolab.parallel import ThreeDParallelOptimizer, parallelize
from picolab.specs import Layout, ModelConfig
from picolab.training.checkpoint import Checkpoints, restore, save
from picolab.training.config import Dtype, TrainConfig, assemble
from picolab.training.progress import Progress
from picolab.training.result import RankReport, TrainResult
from picolab.training.text import Text


class NonFiniteLoss(ArithmeticError):
    """The loss or its gradient is no longer a number; the message names the step."""


def train(
    model: ModelConfig | str = "tiny",
    layout: Layout | str = "dp1",
    data: str | Path = "stdlib",
    steps: int = 20,
    *,
    micro_batch: int = 4,
    accumulate: int = 1,
    seq: int | None = None,
    dtype: Dtype = "fp32",
    lr: float = 3e-3,
    warmup: int | None = None,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    clip: float | None = 1.0,
    seed: int = 0,
    bucket_bytes: int = costs.DEFAULT_BUCKET_BYTES,
    stage_cost_s: tuple[float, float] = (0.0, 0.0),
    checkpoint: str | Path | None = None,
    save_every: int | None = None,
    keep: int = 2,
    resume: str | Path | None = None,
    backend: launch.job.Backend = "auto",
    timeout: float = 120,
    wait: bool = True,
    progress: bool = True,
    run_dir: str | Path | None = None,
    **shape: int | None,
) -> "TrainResult | launch.Job":
    """Train a model on real ranks of this machine.

    result = pico.train(layout="dp2tp2", steps=50)                 # a TrainResult
    job = pico.train(layout="dp2tp2", steps=50, wait=False)        # at once; job.result() is one

    The settings are those of `TrainConfig`, where each is explained; micro_batch and accumulate are
    of one data-parallel replica. `shape` changes the model: hidden=256, layers=8, ... (and `seq`).
    backend, timeout, wait and run_dir are those of `pico.run`. progress: a bar on stderr.

    checkpoint: a folder that gets a checkpoint at the end and, with save_every, after every so many
    steps; it keeps the newest `keep`. resume: a checkpoint, or such a folder, to go on from, in
    this layout or another; `steps` counts those before it too. See `training/checkpoint.py`.

    Raises ValueError for what cannot be trained, before any rank is started; RankFailure if a rank
    fails, for instance because the loss is no longer finite.
    """
    config = assemble(
        model=model,
        layout=layout,
        data=data,
        steps=steps,
        micro_batch=micro_batch,
        accumulate=accumulate,
        seq=seq,
        dtype=dtype,
        lr=lr,
        warmup=warmup,
        weight_decay=weight_decay,
        betas=betas,
        eps=eps,
        clip=clip,
        seed=seed,
        bucket_bytes=bucket_bytes,
        stage_cost_s=stage_cost_s,
        **shape,
    )
    _refuse_too_large(config)
    text = open_text(config)  # what is wrong with the data should be said here, not by a rank
    checkpoints = Checkpoints(folder=checkpoint, every=save_every, keep=keep, resume=resume)
    config, checkpoints = checkpoints.resolve(config, text)
    return launch.run(
        train_rank,
        config,
        checkpoints,
        world_size=config.layout.world,
        backend=backend,
        timeout=timeout,
        wait=wait,
        name="train",
        run_dir=run_dir,
        progress=Progress(config.steps, str(config.layout)) if progress else None,
        transform=lambda run: TrainResult.of(config, run),
    )


def train_rank(config: TrainConfig, checkpoints: Checkpoints | None = None) -> RankReport:
    """What one rank does, from the mesh to its report. torch.distributed must be initialised.

    checkpoints: resolved already, see `Checkpoints.resolve`. None: none are written or read."""
    checkpoints = checkpoints or Checkpoints()
    comm.build_mesh(config.layout)
    text = open_text(config)
    # On the meta device there are only shapes, so that the model is cut before it has values.
    model = Transformer(config.model, dtype=config.torch_dtype)
    parallel = parallelize(model, config.layout, seed=config.seed, bucket_bytes=config.bucket_bytes)
    # After parallelize, which replaces the parameters by the shards that this rank holds.
    optimizer = adamw(model, config)
    report, ledger = RankReport(), comm.ledger()
    if checkpoints.resume is not None:
        report.first_step = restore(checkpoints.resume, optimizer, text, config)
        if dist.get_rank() == 0:
            events.write("resume", step=report.first_step, notes=list(checkpoints.notes))
    for step in range(report.first_step, config.steps):
        ledger.step = step
        began, cpu_began = time.perf_counter(), time.process_time()
        lr = config.learning_rate(step)
        loss, norm, tokens = train_step(parallel, optimizer, text, config, lr)
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
        _stop_if_not_finite(step, loss, norm)

        report.losses.append(loss)
        report.grad_norms.append(norm)
        report.learning_rates.append(lr)
        report.tokens.append(tokens)
        report.seconds.append(seconds)
        report.cpu_s += cpu_s
        ledger.flush()
        events.write(
            "step",
            step=step,
            steps=config.steps,
            loss=loss,
            grad_norm=norm,
            lr=lr,
            tokens=tokens,
            seconds=seconds,
            cpu_s=cpu_s,
            layout=str(config.layout),
        )
        ledger.step = None
        done = step + 1
        if checkpoints.due(done, config.steps):
            folder, keep = checkpoints.folder, checkpoints.keep
            save(folder, done, optimizer, text, config, keep)
    report.memory = memory_bytes(model, optimizer)
    report.text = text.state_dict(hashed=False)  # the hash would cost more than opening the text
    state = parallel.state_dict()  # all ranks gather, one is enough to tell
    report.state = state if dist.get_rank() == 0 else None
    return report


def train_step(
    parallel: ThreeDParallelOptimizer,
    optimizer: torch.optim.Optimizer,
    text: Text,
    config: TrainConfig,
    lr: float,
) -> tuple[float, float, int]:
    """One optimizer step. Returns, of the global batch, the mean loss, the gradient norm before
    clipping, and the count of valid tokens."""
    device = next(parallel.model.parameters()).device
    tokens_MBS, labels_MBS = next_batch(text, config, device)
    count = global_count(labels_MBS)
    parallel.zero_grad()
    total = parallel.forward_backward(tokens_MBS, labels_MBS, count, config.stage_cost_s)
    norm = parallel.grad_norm() if config.clip is None else parallel.clip(config.clip)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return total.item(), norm, count


def open_text(config: TrainConfig) -> Text:
    """The run's text, at its beginning. Every rank opens the same, with the same seed."""
    return Text(config.data, seq=config.model.seq, vocab=config.model.vocab, seed=config.seed)


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


def global_count(labels_MBS: torch.Tensor) -> int:
    """How many labels of the global batch count: what every loss is divided by."""
    count = (labels_MBS != IGNORED).sum()
    return max(1, int(comm.all_reduce(count, "dp", "dp: count of valid tokens")))


def adamw(model: torch.nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW, whose weight decay is for matrices (and embeddings), not for the weights of norms."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def memory_bytes(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes of this rank's tensors by category, and the most memory the process ever had resident.

    The peak includes torch itself, activations and buffers; pages shared with other ranks count in
    each.
    """
    parameters = list(model.parameters())
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
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _stop_if_not_finite(step: int, loss: float, norm: float) -> None:
    """Loss and norm are global, so all ranks stop at the same step."""
    for name, value in (("loss", loss), ("gradient norm", norm)):
        if not math.isfinite(value):
            raise NonFiniteLoss(
                f"the {name} is {value} at step {step}; "
                "try a lower lr, a longer warmup or a tighter clip"
            )


def _refuse_too_large(config: TrainConfig) -> None:
    """Say it before the machine swaps: parameters, gradients and AdamW's moments of all ranks."""
    if torch.cuda.is_available():
        return
    size = costs.dtype_bytes(config.dtype)
    held = costs.parameters(config.model).total // (config.layout.tp * config.layout.pp)
    needed, here = held * 4 * size * config.layout.world, psutil.virtual_memory().total
    if needed > here:
        raise ValueError(
            f"{config.model.name} on {config.layout} needs {bytes_text(needed)} for parameters, "
            f"gradients and optimizer alone, and this machine has {bytes_text(here)}; "
            "take a smaller model, such as 'tiny'"
        )
