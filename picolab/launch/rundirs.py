"""Run directories: one place, one folder a run, the newest 20 kept.

    $XDG_STATE_HOME/picolab/runs, or ~/.local/state/picolab/runs if that is not set

    20261124-101530-0001-train/
        run.json              what was started, when, by which process, how it ended
        events.RANK.jsonl     the rank's events (`monitoring.Event`), one line each
        rank.RANK.log         everything the rank printed

`picolab runs ls` lists them, `picolab runs rm NAME...` removes them. A run that is still going is
never removed."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import psutil

from picolab.show.files import write_beside

KEEP = 20


class RunDirectoryError(OSError):
    """The run directory cannot be made or written; the message says why and what to do."""


def root() -> Path:
    """Where run directories live. The folder may not exist yet."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "picolab" / "runs"


def create(name: str, about: dict, path: str | Path | None = None) -> Path:
    """Make a new run directory (or use `path`), write its run.json, and prune old ones.

    Raises RunDirectoryError if the place cannot be written, for instance because the disk is full.
    """
    try:
        # Absolute: a rank may be elsewhere by the time it is asked for.
        directory = _claim(name) if path is None else Path(path).expanduser().absolute()
        directory.mkdir(parents=True, exist_ok=True)
        write(directory, {**about, "name": name, "pid": os.getpid(), "started": time.time()})
    except OSError as error:
        place = path or root()
        raise RunDirectoryError(
            error.errno or 0,
            f"cannot write the run directory in {place}: {error.strerror or error}. "
            "Free some space there, or choose another place with run_dir=... or XDG_STATE_HOME",
        ) from error
    if path is None:
        _prune()
    return directory


def finish(directory: Path, state: str) -> None:
    """Note how the run ended. A full disk at this point loses the note, not the result."""
    try:
        about = describe(directory)
        write(directory, {**about, "state": state, "ended": time.time()})
        for temporary in [*directory.glob("beacon.*"), *directory.glob("stack.*")]:
            temporary.unlink(missing_ok=True)
    except OSError:
        # The caller has its result; run.json then still says "running" with a process that is
        # gone, and `ls` shows it as ended.
        return


def describe(directory: Path) -> dict:
    """The run.json of a run; {} if it is missing or unreadable."""
    try:
        return json.loads((directory / "run.json").read_text())
    except (OSError, ValueError):
        return {}


def ls() -> list[Path]:
    """All run directories, oldest first."""
    if not root().is_dir():
        return []
    return sorted(path for path in root().iterdir() if _NAME.match(path.name) and path.is_dir())


def is_running(directory: Path) -> bool:
    about = describe(directory)
    if about.get("state") not in (None, "running", "waiting"):
        return False
    try:
        return psutil.Process(about["pid"]).create_time() <= about["started"] + 1
    except (KeyError, TypeError, psutil.Error):
        return False


def size(directory: Path) -> int:
    """Bytes of the files in it."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def remove(names: list[str]) -> list[Path]:
    """Remove these runs; returns what was removed. ValueError for a name that is not there or
    still runs.
    """
    known = {path.name: path for path in ls()}
    for name in names:
        if name not in known:
            raise ValueError(f"there is no run {name!r} in {root()}; `picolab runs ls` lists them")
        if is_running(known[name]):
            raise ValueError(f"run {name!r} is still running; stop it first")
    for name in names:
        shutil.rmtree(known[name])
    return [known[name] for name in names]


_NAME = re.compile(r"\d{8}-\d{6}-\d{4}-")


def _claim(name: str) -> Path:
    """A folder of our own: mkdir decides between two runs that start in the same second."""
    root().mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    label = re.sub(r"[^A-Za-z0-9_.-]+", "-", name) or "run"
    # Numbered within the second, above what is there: names then sort in the order of their making.
    taken = [int(path.name[16:20]) for path in ls() if path.name.startswith(stamp)]
    for number in range(max(taken, default=-1) + 1, 10_000):
        directory = root() / f"{stamp}-{number:04d}-{label}"
        try:
            directory.mkdir()
            return directory
        except FileExistsError:
            continue
    raise OSError(f"no free name for a run at {stamp} in {root()}")


def _prune() -> None:
    runs = ls()
    for directory in runs[: max(0, len(runs) - KEEP)]:
        if not is_running(directory):
            shutil.rmtree(directory, ignore_errors=True)


def write(directory: Path, about: dict) -> None:
    """Beside and renamed, so that a reader never sees half a file."""
    write_beside(directory / "run.json", json.dumps(about, indent=1, default=str))
