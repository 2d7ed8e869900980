"""Where the ranks of one run on this machine find each other: a file that only this user can open.

The first thing a process group does is to exchange addresses, through a store. Torch's usual store
is a server that listens on every interface and asks nobody who they are: whoever connects first as
rank 3 *is* rank 3, and what it says to the others is unpickled by them. Here the store is a
`FileStore`, a file in a folder of mode 0700 with a name that nobody can know before it is made, so
another account can neither read it nor register. (Under torchrun the store is torchrun's.)

The folder is removed with the run. A kernel that was killed leaves one behind, and the next run
removes it: the kernel holds a lock on its folder, so a folder whose lock can be had belongs to
nobody any more."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

_PREFIX = "picolab-rendezvous-"
_YOUNG_S = 60  # a folder this new may not have been locked yet


class Rendezvous:
    """A fresh folder, and in it the path of the store. `close()` removes both.

    Raises OSError if the folder for temporary files cannot be written."""

    def __init__(self):
        _remove_what_killed_kernels_left()
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))  # mkdtemp: mode 0700, a random name
        self.store = self.folder / "store"
        self._lock = os.open(self.folder, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)  # gone already: as it should be
        os.close(self._lock)


def _remove_what_killed_kernels_left() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another account's, or somebody is faster
            about = folder.lstat()
            if about.st_uid != os.getuid() or time.time() - about.st_mtime < _YOUNG_S:
                continue
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(lock)
