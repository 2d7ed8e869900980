"""Run directories: one place, one folder a run, the newest 20 kept.

    $XDG_STATE_HOME/picolab/runs, or ~/.local/state/picolab/runs if that is not set

    20261124-101530-0001-train/
        run.json              what was started, when, by which process, how it ended
        events.RANK.jsonl     the rank's events (`monitoring.Event`), one line each
        rank.RANK.log         everything the rank printed
        alerts.jsonl          what a monitor told of it (`monitoring.AlertManager`), if one watched
        where.json            of a run that failed: where each rank was (monitoring/standstill.py)

`picolab runs ls` lists them, `picolab runs rm NAME...` removes them. A run that is still going is
never removed. Nobody else may look: folders are made with mode 0700, files with 0600. A folder that
is given (`run_dir=`) may have been prepared by somebody, so no link in it is followed, and one that
others can write to is refused; what an earlier run left in it is put into `earlier-1`."""

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
import stat
import time
from pathlib import Path

import psutil

from picolab.show.files import hold, is_held, private, write_beside

KEEP = 20
_GOING_ON = ("waiting", "running")
_CURES = {
    errno.ENOSPC: "Free some space there, or choose another place",
    errno.EDQUOT: "Free some space there, or choose another place",
    errno.ENAMETOOLONG: "Choose a shorter name",
}


class RunDirectoryError(OSError):
    """The run directory cannot be made or written; the message says why and what to do."""


def root() -> Path:
    """Where run directories live. The folder may not exist yet."""
    state = os.environ.get("XDG_STATE_HOME")
    if not state:
        try:
            state = Path.home() / ".local" / "state"
        except RuntimeError:
            raise RunDirectoryError(
                "HOME is not set and this account has no home, so there is no place for runs; set "
                "XDG_STATE_HOME to a folder"
            ) from None
    return Path(state) / "picolab" / "runs"


def create(name: str, about: dict, path: str | Path | None = None) -> Path:
    """Make a new run directory (or use `path`), write its run.json, and prune old ones.

    Raises RunDirectoryError if the place cannot be written, for instance because the disk is full.
    """
    try:
        # Absolute: a rank may be elsewhere by the time it is asked for.
        directory = _claim(name) if path is None else Path(path).expanduser().absolute()
        try:
            directory.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            _refuse_what_others_prepared(directory)
        mine = {"pid": os.getpid(), "started": time.time()}
        if about.get("state") in _GOING_ON:
            mine["held"] = _hold(directory)
        try:
            _put_earlier_aside(directory)
            write(directory, {**about, "name": name, **mine})
        except OSError:
            _let_go(directory)
            raise
    except RunDirectoryError:
        raise
    except OSError as error:
        place = path or root()
        raise RunDirectoryError(
            error.errno or 0,
            f"cannot write the run directory in {place}: {error.strerror or error}. "
            f"{_CURES.get(error.errno, 'Choose another place')} with run_dir=... or XDG_STATE_HOME",
        ) from error
    if path is None:
        _prune()
    return directory


_held: dict[Path, int] = {}  # of runs of this process that go on: an open descriptor, locked


def _hold(directory: Path) -> bool:
    """Until `finish`: the number of a process says nothing in another container, nor a time after
    the clock was set. False where the file system knows no locks."""
    try:
        _held[directory] = hold(directory)
    except BlockingIOError:
        raise RunDirectoryError(
            f"{directory} is the run directory of a run that is going on; take another one, or "
            "stop that run"
        ) from None
    except OSError:
        return False
    return True


def _let_go(directory: Path) -> None:
    if directory in _held:
        os.close(_held.pop(directory))


def _put_earlier_aside(directory: Path) -> None:
    """What a run that has ended left in a folder that is used again goes to `earlier-1`,
    `earlier-2`, ...: two runs in one file of events would be drawn, and counted, as one.
    """
    left = [path for path in directory.iterdir() if _OURS.match(path.name) and path.name != "held"]
    if left:
        numbers = (directory / f"earlier-{number}" for number in itertools.count(1))
        aside = next(path for path in numbers if not path.exists())
        aside.mkdir(mode=0o700)
        for path in left:
            path.rename(aside / path.name)


def _refuse_what_others_prepared(directory: Path) -> None:
    why = _of_others(directory)
    if why:
        raise RunDirectoryError(
            f"the run directory {directory} {why}, so what is read and written there could be "
            "theirs; take a new folder, which is made for you alone"
        )
    for path in directory.iterdir():
        if _OURS.match(path.name) and not stat.S_ISREG(path.lstat().st_mode):
            raise RunDirectoryError(
                f"{path} is not a file, but a link or the like that somebody has put there; take "
                "it away, or take a new folder"
            )


def _of_others(path: Path) -> str:
    """Why somebody else decides what is in it; "" if nobody does."""
    about = path.stat()
    if about.st_uid != os.getuid():
        return "belongs to another account"
    return "can be written by every account" if about.st_mode & stat.S_IWOTH else ""


def read_pickle(path: Path) -> bytes:
    """The bytes of a pickle in a run directory, which run code when they are unpickled. ValueError
    if somebody else could have written them."""
    for place in (path.parent, path):
        why = _of_others(place)
        if why:
            raise ValueError(
                f"{place} {why}, and {path.name} is a pickle, which runs code when it is read; "
                "copy it to a folder of your own if you trust whoever wrote it"
            )
    with open(path, "rb", opener=private) as file:
        return file.read()


def finish(directory: Path, state: str) -> None:
    """Note how the run ended. A full disk at this point loses the note, not the result."""
    _let_go(directory)
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
        with open(directory / "run.json", opener=private) as file:
            about = json.load(file)
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def ls() -> list[Path]:
    """All run directories, oldest first."""
    if not root().is_dir():
        return []
    return sorted(path for path in root().iterdir() if _NAME.match(path.name) and _is_folder(path))


def find(name: str) -> Path:
    """A path, or the name of a run; "": the newest run. ValueError if there is none."""
    if name:
        path = Path(name).expanduser()
        path = path if path.is_dir() or path.name != name else root() / name
    else:
        path = next(reversed(ls()), None)
    if path is None:
        raise ValueError(f"there is no run in {root()}; picolab train makes one")
    if not path.is_dir():
        raise ValueError(f"there is no run directory {path}; `picolab runs ls` lists the runs")
    return path


def _is_folder(path: Path) -> bool:
    """And no link to one."""
    return stat.S_ISDIR(path.lstat().st_mode)


def is_running(directory: Path) -> bool:
    about = describe(directory)
    if about.get("state") not in (None, *_GOING_ON):
        return False
    with contextlib.suppress(OSError):
        held = is_held(directory)
        if held or about.get("held"):
            return held
    try:
        return psutil.Process(about["pid"]).create_time() <= about["started"] + 1
    except (KeyError, TypeError, psutil.Error):
        return False


def size(directory: Path) -> int:
    """Bytes of the files in it."""
    found = [path.lstat() for path in directory.rglob("*")]
    return sum(about.st_size for about in found if stat.S_ISREG(about.st_mode))


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
# What is written into a run directory.
_OURS = re.compile(
    r"(rank|events|beacon|stack|result|error)\.\d+(\.\w+)?$|(run\.json|where\.json|payload\.pkl|held)$"
    r"|alerts\.(jsonl|state\.json)$"
)


def _claim(name: str) -> Path:
    """A folder of our own: mkdir decides between two runs that start in the same second."""
    root().mkdir(mode=0o700, parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    label = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:80] or "run"
    # Numbered within the second, above what is there: names then sort in the order of their making.
    taken = [int(path.name[16:20]) for path in ls() if path.name.startswith(stamp)]
    for number in range(max(taken, default=-1) + 1, 10_000):
        directory = root() / f"{stamp}-{number:04d}-{label}"
        try:
            directory.mkdir(mode=0o700)
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
    write_beside(directory / "run.json", json.dumps(about, indent=1, default=str), mode=0o600)
