"""No rank is left behind.

Two independent ties from a rank to the kernel that started it:
* a thread in the rank waits for the kernel's end and then kills the rank (works everywhere, also
  when the kernel got SIGKILL);
* on Linux the kernel's operating system does it (PR_SET_PDEATHSIG): it reaches a rank that is
  stopped or holds the GIL,
  in which no thread of ours can run. The signal follows the chain kernel -> rank server -> rank.
"""

import ctypes
import os
import signal
import sys
import threading
from multiprocessing import connection, parent_process

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask Linux to kill this process when the thread that started it ends; elsewhere nothing."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked
        os.kill(os.getpid(), signal.SIGKILL)


def watch_kernel() -> None:
    """In a rank: a thread that kills the rank once the kernel is gone."""
    sentinel = parent_process().sentinel

    def watch():
        connection.wait([sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="picolab-kernel-watch", daemon=True).start()
