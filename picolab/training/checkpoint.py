"""Checkpoints: a run that was cut off goes on as if nothing had happened, on any layout.

    FOLDER/
        step-10/
            checkpoint.json     step, settings, place in the data, sizes and hashes of the files
            .metadata           which rectangle of which tensor is where
            __0_0.distcp ...    numbers, a file a rank
        step-20/ ...

What a step depends on is all in it: parameters, AdamW's moments and step counts, the place in the
data, the random generators. In the same layout the losses go on bit for bit; in another they are
those of one process up to rounding, since names and slices there are global (checkpoint_plan.py).

    half-written    never seen: the folder is called .step-20.writing until everything in it is on
                    the disk, and is then renamed
    damaged         noticed before the first number is read: checkpoint.json, written last, has the
                    size and the hash of every file (integrity.py). In a folder the newest that is
                    whole is taken, and which ones were passed over is said (folder.py)
    kept            the last `keep`; an older one is renamed before it is removed

What a run may change when it goes on, and what not, is in resume.py.

Twin: `torch.distributed.checkpoint.state_dict.get_state_dict` with FSDP2, which does for DTensors
what is done here for pieces. `.metadata` is torch.distributed.checkpoint's own and a pickle, which
can run code: take checkpoints from people you trust. Leaves out: saving in the background while
training goes on, and disks that ranks do not share.
"""

import contextlib
import hashlib
import os
import re
import shutil
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from picolab import comm
from picolab.show.files import is_held
from picolab.specs import TrainConfig
from picolab.training.checkpoint_plan import LoadPlanner, SavePlanner, make_state, parts, whole
from picolab.training.folder import (
    ANOTHERS,
    Found,
    checkpoints,
    choose,
    describe,
    find,
    matching,
    number,
    say,
)
from picolab.training.hashing_writer import HashingWriter
from picolab.training.integrity import ABOUT, FORMAT, seal
from picolab.training.precision import Precision
from picolab.training.resume import adapt, check, record
from picolab.training.text import Text

_LEFT = re.compile(r"\.step-\d+\.(writing|removing)")


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Where a run's checkpoints go, how often, and which one it goes on from."""

    folder: str | Path | None = None
    """None: none are written. Otherwise one is written at the end at least."""
    every: int | None = None
    """Steps from one checkpoint to the next; None: only at the end."""
    keep: int = 2
    """How many of them to keep, the newest."""
    resume: str | Path | None = None
    """A checkpoint, or a folder of them, of which the newest is taken. None: begin at step 0."""
    notes: tuple[str, ...] = ()
    """What `resolve` said about going on from `resume`, a line each; for the run's record."""

    def __post_init__(self):
        for name in ("folder", "resume"):
            value = getattr(self, name)
            if value is not None:
                if not isinstance(value, str | Path) or not str(value):
                    option = "checkpoint" if name == "folder" else name
                    raise ValueError(f"{option} is {value!r}; it is the path of a folder")
                object.__setattr__(self, name, str(Path(value).expanduser().absolute()))
        for option, value in (("save_every", self.every), ("keep", self.keep)):
            integer = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if not integer and not (value is None and option == "save_every"):
                raise ValueError(f"{option} is {value!r}; it must be an integer of at least 1")
        if self.every is not None and self.folder is None:
            raise ValueError("save_every needs to know where: give checkpoint=FOLDER too")

    def due(self, step: int, steps: int) -> bool:
        """Is a checkpoint to be written when `step` steps of `steps` are done?"""
        if self.folder is None:
            return False
        return step == steps or (self.every is not None and step % self.every == 0)

    def resolve(self, config: TrainConfig, text: Text) -> tuple[TrainConfig, "Checkpoints"]:
        """The settings to train with, and the same with `resume` the one checkpoint that is meant.

        Done once, before ranks start, so that all of them take the same one. All bytes of it are
        checked; what differs from its run and may is said, on stderr, and is in `notes`; `config`
        has another `accumulate` where a step would not be the run's otherwise (see resume.py).

        Raises ValueError for a checkpoint that is not there, damaged, of another model or of other
        data, and where this run would mix its checkpoints with another's; OSError if the folder
        cannot be written. `text` is the run's, and is moved to the checkpoint's place.
        """
        if self.resume is None:
            if self.folder is not None:
                _check_folder(Path(self.folder))
            return config, self
        found = choose(self.resume)
        config, lines = adapt(found.path, found.about, config)
        text.load_state_dict(found.about["text"])
        if self.folder is not None:
            _check_folder(Path(self.folder), found)
        notes = (*found.notes, *lines)
        say(notes)
        return config, replace(self, resume=str(found.path), notes=notes)


def save(
    folder: str | Path,
    step: int,
    optimizer: torch.optim.Optimizer,
    text: Text,
    config: TrainConfig,
    keep: int = 2,
    precision: Precision | None = None,
) -> Path:
    """Write folder/step-N, N the number of steps that are done. All ranks call it.

    Raises OSError, on every rank, if it cannot be written; what was there before is still there.
    """
    folder, rank = Path(folder), dist.get_rank()
    target, beside = folder / f"step-{step}", folder / f".step-{step}.writing"
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        for left in matching(folder, _LEFT):  # by a run that was killed meanwhile
            shutil.rmtree(left)
        beside.mkdir()
    comm.barrier("world", "checkpoint: nothing is left of an earlier one")
    found = parts(optimizer, copies=False)
    found |= {f"random.{kind}.{rank}": [whole(state)] for kind, state in _random_states().items()}
    writer = HashingWriter(beside)
    try:
        dcp.save(found, storage_writer=writer, planner=SavePlanner())
    except CheckpointException as error:
        if rank == 0:
            shutil.rmtree(beside, ignore_errors=True)
        raise _first(error, f"the checkpoint {target} cannot be written") from None
    if rank == 0:
        about = {
            "format": FORMAT,
            "step": step,
            "layout": str(config.layout),
            "world": dist.get_world_size(),
            "text": text.state_dict(),
            "precision": {} if precision is None else precision.state_dict(),
            "config": record(config),
            "files": {path.name: path.stat().st_size for path in sorted(beside.iterdir())},
            "hashes": dict(sorted(writer.hashes.items())),
        }
        assert about["hashes"].keys() == about["files"].keys()
        _write_to_disk(beside / ABOUT, seal(about))
        if target.exists():  # this run is repeating steps after it was cut off
            _remove(target)
        beside.rename(target)
        # A later one is no part of this run: a damaged one, before which it went on.
        for old in [path for path in checkpoints(folder) if number(path) <= step][:-keep]:
            _remove(old)
    return target


def restore(
    path: str | Path,
    optimizer: torch.optim.Optimizer,
    text: Text,
    config: TrainConfig,
    precision: Precision | None = None,
) -> int:
    """Fill the parameters, the optimizer's state, the place in the data, the random generators and
    what the precision remembers from a checkpoint of any layout; returns the number of steps that
    were done. All ranks call it.

    Raises ValueError for a checkpoint of another run (another model, batch or text), and for one
    that is not complete or disappears while it is read. That its bytes are those that were written
    has been checked, once for all ranks, by `Checkpoints.resolve`.
    """
    path = Path(path)
    about = describe(path)
    check(path, about, config)
    text.load_state_dict(about["text"])
    if precision is not None and about.get("precision"):
        precision.load_state_dict(about["precision"])
    rank = dist.get_rank()
    same_ranks = about["layout"] == str(config.layout)
    _read(path, optimizer, rank if same_ranks else None)
    if not same_ranks:
        # There is no telling whose generator was whose; begin new ones, another on each rank.
        seed = f"{config.seed}/{about['step']}/{rank}".encode()
        torch.manual_seed(int.from_bytes(hashlib.blake2b(seed, digest_size=8).digest(), "little"))
    return about["step"]


def state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """The parameters of a checkpoint, whole, by global name, in this process."""
    path = find(path)
    saved = _metadata(path).state_dict_metadata
    tensors = {
        name.removeprefix("model."): torch.empty(about.size, dtype=about.properties.dtype)
        for name, about in saved.items()
        if name.startswith("model.")
    }
    _load(path, {f"model.{name}": [whole(tensor)] for name, tensor in tensors.items()}, alone=True)
    return tensors


def _read(path: Path, optimizer: torch.optim.Optimizer, rank: int | None) -> None:
    metadata = _metadata(path)
    make_state(optimizer, metadata)
    states = {
        kind: state
        for kind, state in _random_states().items()
        if f"random.{kind}.{rank}" in metadata.state_dict_metadata
    }
    wanted = parts(optimizer, copies=True)
    wanted |= {f"random.{kind}.{rank}": [whole(state)] for kind, state in states.items()}
    _load(path, wanted)
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


def _metadata(path: Path):
    try:
        return dcp.FileSystemReader(path).read_metadata()
    except FileNotFoundError:
        describe(path)  # if it is gone meanwhile, that is to be said
        raise


def _load(path: Path, wanted: dict, alone: bool = False) -> None:
    reader, planner = dcp.FileSystemReader(path), LoadPlanner()
    try:
        with warnings.catch_warnings():
            if alone:  # torch would say that it reads in one process, which is what is wanted
                warnings.simplefilter("ignore", UserWarning)
            dcp.load(wanted, storage_reader=reader, planner=planner, no_dist=alone)
    except CheckpointException as error:
        describe(path)  # if it is gone meanwhile, that is to be said
        raise ValueError(str(_first(error, f"the checkpoint {path} cannot be read"))) from None


def _random_states() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if dist.is_initialized() and dist.get_backend() == "nccl":
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _check_folder(folder: Path, found: Found | None = None) -> None:
    """Another run's checkpoints must not be mistaken for this one's, nor be lost to it. Those that
    are known to be damaged are neither."""
    after, over = (found.about["step"], found.passed_over) if found else (0, ())
    later = [path for path in checkpoints(folder) if number(path) > after and path not in over]
    if later and found is None:
        raise ValueError(
            f"there are checkpoints of another run in {folder} ({later[-1].name}); give "
            f"resume={folder} to go on from there, or another folder"
        )
    if later:
        raise ValueError(
            f"in {folder} are later checkpoints than {found.path.name} to go on from "
            f"({later[-1].name}); give checkpoint= another folder, so that they are not mixed"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"checkpoints cannot be written to {folder}: {error.strerror}; give another folder"
        ) from None
    if not os.access(folder, os.W_OK):
        raise OSError(f"checkpoints cannot be written to {folder}; give another folder")
    with contextlib.suppress(OSError):  # no locks here
        if is_held(folder):
            raise ValueError(ANOTHERS.format(folder))


def _remove(path: Path) -> None:
    """Renamed first: a reader finds the whole of it or nothing."""
    doomed = path.with_name(f".{path.name}.removing")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def _write_to_disk(path: Path, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _first(error: CheckpointException, what: str) -> OSError:
    """The failure of the first rank that had one, as a sentence."""
    cause, _ = error.failures[min(error.failures)]
    reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
    return OSError(f"{what}: {reason}")
