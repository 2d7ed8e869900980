"""How a file is written, so that nobody ever sees half of it; and one in a folder where others may
have been before: no link is followed, no pipe waited for.
"""

import fcntl
import os
import stat
from pathlib import Path


def write_beside(path: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Beside, then renamed: a reader finds the old file or the new one, whole. Text is UTF-8. mode:
    of the new file, less the umask; a private one is 0o600."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.unlink(missing_ok=True)  # a torn one of a process of the same number
        new = os.O_WRONLY | os.O_CREAT | os.O_EXCL  # (follows no link)
        with open(beside, "wb", opener=lambda name, _: os.open(name, new, mode)) as file:
            file.write(content.encode() if isinstance(content, str) else content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def private(path: str, flags: int) -> int:
    """For `open(path, ..., opener=private)`: a regular file, which nobody else may read if it is
    made now. OSError for a link, a pipe, a device: somebody has put it there."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a regular file; take it away")
    return descriptor


def hold(folder: Path) -> int:
    """Lock a folder, until the returned descriptor is closed or this process ends in whatever way.
    BlockingIOError while somebody holds it; another OSError where there are no locks."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def is_held(folder: Path) -> bool:
    """Whether somebody holds a folder. OSError where there are no locks, or it is none."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def append_line(path: Path, line: str) -> None:
    """One more line, on the disk when this returns. After a torn one (its writer was killed), it
    begins on a line of its own."""
    with open(path, "a+b") as file:
        torn = False
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
