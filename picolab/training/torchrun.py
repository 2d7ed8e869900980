"""The same run under torchrun: `torchrun --nproc-per-node 4 -m picolab train ...`. (On a cluster,
srun starts one torchrun on each node.)

At home `train` starts the ranks; there they are started already, and each runs this. It does what
the launcher does around `train_rank`, and nothing else:

    join the process group -> agree on settings and run directory -> record events -> train_rank

So the losses are those of the notebook, bit for bit where the backend is the same, and the run
directory is like one at home: events.RANK.jsonl of each rank, results for `pico.launch.collect`,
the error of a rank that fails. It has to be on a disk that the ranks share, as checkpoints have.

A run that is cut off is started again with `--resume`; torchrun's own `--max-restarts` begins again
inside the same job, and on gloo the ranks often do not find each other there.
"""

import secrets
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from picolab.launch import RunResult, rundirs
from picolab.launch.payload import Payload, pack_result, unpack_result
from picolab.launch.rank import RankSpec, call, recorded
from picolab.launch.worker import attributed, join
from picolab.monitoring import Event, History
from picolab.show.files import write_beside
from picolab.specs import TrainConfig, assemble
from picolab.specs.settings import split
from picolab.training.checkpoint import Checkpoints
from picolab.training.progress import Progress
from picolab.training.result import TrainResult
from picolab.training.text import open_text
from picolab.training.trainer import train_rank

T = TypeVar("T")


def train_here(*, progress: bool = True, **settings) -> TrainResult | None:
    """One rank's part of `train`, with the same settings; the result on rank 0, None elsewhere.

    timeout: here the seconds that a collective may wait for its peers. What is wrong with the
    settings is said once, by rank 0, and all ranks end with status 2.
    """
    began = time.monotonic()
    of_config, options = split(settings)
    join(options.backend, options.timeout)
    rank, world = dist.get_rank(), dist.get_world_size()

    def prepare() -> tuple[TrainConfig, Checkpoints]:
        config = assemble(**of_config)
        if config.layout.world != world:
            raise ValueError(
                f"layout {config.layout} needs {config.layout.world} ranks, and torchrun started "
                f"{world}; give --nproc-per-node {config.layout.world}, or another layout"
            )
        text = open_text(config)
        checkpoints = Checkpoints(**options.checkpoints)
        return checkpoints.resolve(config, text) if rank == 0 else (config, checkpoints)

    config, checkpoints = _agreed(prepare)
    # Rank 0's, since it has looked which checkpoint is the newest and what a step is there, and
    # named the run directory.
    about = {"state": "running", "world_size": world, "backend": dist.get_backend()}
    directory = _agreed(lambda: rundirs.create("train", about, options.run_dir), only=0)
    given = [config, checkpoints, directory, secrets.token_hex(6)]
    dist.broadcast_object_list(given, src=0)
    config, checkpoints, directory, run_name = given
    directory.mkdir(parents=True, exist_ok=True)

    with attributed(directory, rank):
        bar = Progress(config.steps, str(config.layout)) if progress and rank == 0 else None
        spec = RankSpec(rank, world, options.backend, directory, run=run_name)
        report = _recorded_rank(spec, bar, config, checkpoints)
        reports = [None] * world if rank == 0 else None
        dist.gather_object(report, reports)
        write_beside(directory / f"result.{rank}.pkl", pack_result(report), mode=0o600)
        dist.barrier()  # all events are in their files
        dist.destroy_process_group()
    if rank != 0:
        return None
    rundirs.finish(directory, "done")
    seconds = time.monotonic() - began
    run = RunResult(reports, History.read(directory), seconds, directory, "torchrun")
    return TrainResult.of(config, run)


def _recorded_rank(spec: RankSpec, bar: Progress | None, config, checkpoints):
    """`train_rank` with its events in the run directory, and on the bar."""

    def send(kind, *values):
        if kind == "event" and bar is not None:
            bar(*values)
        elif kind == "line" and bar is not None:
            bar(Event.from_json(*values))
        elif kind == "warning":
            print(*values, file=sys.stderr)

    payload = Payload(train_rank, (config, checkpoints), {})
    with recorded(spec, send):
        packed = call(spec, payload, send)
    if bar is not None:
        bar(Event("state", spec.rank, time.time(), {"state": "done"}))
    return unpack_result(packed)


def _agreed(check: Callable[[], T], only: int | None = None) -> T | None:
    """What `check` returns; if it fails on any rank, rank 0 says why, and all ranks end.

    only: the rank that calls it, the others get None."""
    rank = dist.get_rank()
    value, problem = None, None
    try:
        if only in (None, rank):
            value = check()
    except (ValueError, OSError) as error:
        problem = f"picolab: {error}"
    problems = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    found = [text for text in problems if text is not None]
    if found:
        if rank == 0:
            print(found[0], file=sys.stderr, flush=True)
        # Not before it is said: torchrun ends all ranks as soon as one has ended.
        dist.barrier()
        sys.exit(2)
    return value
