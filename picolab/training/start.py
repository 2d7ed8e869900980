"""`train`: what is checked before ranks start, and their start.

Without torch, which takes seconds to import: the kernel needs it when there is a result, and the
ranks have it from their server. So the first cell of a notebook shows at once that ranks are being
started, and leaves the machine to the server that is loading torch for them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import psutil

from picolab import costs, launch
from picolab.monitoring import Observer
from picolab.show.table import bytes_text
from picolab.specs import TrainConfig, assemble
from picolab.specs.settings import RunOptions, split, takes_settings
from picolab.training.folder import say
from picolab.training.progress import Progress
from picolab.training.text import open_text

if TYPE_CHECKING:
    from picolab.training.result import TrainResult


@takes_settings("model", "layout", "data", "steps")
def train(
    *,
    wait: bool = True,
    progress: bool = True,
    observers: Sequence[Observer] = (),
    **settings,
) -> "TrainResult | launch.Job":
    """Train a model on real ranks of this machine.

    result = pico.train(layout="dp2tp2", steps=50)                 # a TrainResult
    job = pico.train(layout="dp2tp2", steps=50, wait=False)        # at once; job.result() is one

    progress: a bar on stderr. observers: each rank gets a copy and calls it as the run goes on, see
    `pico.Observer`. The settings are listed below; those of the model's shape change it, as in
    pico.train(hidden=256, layers=8).

    Raises ValueError for what cannot be trained, before any rank is started; RankFailure if a rank
    fails, for instance because the loss is no longer finite.
    """
    of_config, options = split(settings)
    config = assemble(**of_config)
    for observer in observers:
        if not isinstance(observer, Observer):
            kind = type(observer).__name__
            raise ValueError(
                f"observers are pico.Observer objects, and {observer!r} is an {kind}; give "
                "instances of a class that inherits from pico.Observer"
            )
    _refuse_too_large(config)
    text = open_text(config)  # what is wrong with the data should be said here, not by a rank
    checkpoints = None
    if options.checkpoints != RunOptions().checkpoints:
        from picolab.training.checkpoint import Checkpoints

        config, checkpoints = Checkpoints(**options.checkpoints).resolve(config, text)
    say(config.layout.remarks)
    return launch.run(
        _train_rank,
        config,
        checkpoints,
        tuple(observers),
        world_size=config.layout.world,
        backend=options.backend,
        timeout=options.timeout,
        wait=wait,
        name="train",
        run_dir=options.run_dir,
        progress=Progress(config.steps, str(config.layout)) if progress else None,
        transform=lambda run: _result(config, run),
    )


def _train_rank(*args):
    from picolab.training.trainer import train_rank

    return train_rank(*args)


def _result(config: TrainConfig, run: launch.RunResult) -> "TrainResult":
    from picolab.training.result import TrainResult

    return TrainResult.of(config, run)


def _refuse_too_large(config: TrainConfig) -> None:
    """Say it before the machine swaps: parameters, gradients and AdamW's moments of all ranks."""
    held = costs.parameters(config.model).total / (config.layout.tp * config.layout.pp)
    each = costs.state_bytes(
        held,
        **costs.trained_bytes(config.precision),
        zero=config.layout.zero,
        dp=config.layout.size(config.layout.shard_axis),
    ).total
    needed, here = round(each * config.layout.world), psutil.virtual_memory().total
    if needed > here and not _has_gpu():
        raise ValueError(
            f"{config.model.name} on {config.layout} needs {bytes_text(needed)} for parameters, "
            f"gradients and optimizer alone, and this machine has {bytes_text(here)}; "
            "take a smaller model, such as 'tiny'"
        )


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
