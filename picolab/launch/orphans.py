"""No rank is left behind.

Two independent ties from a rank to the kernel that started it:
* a thread in the rank waits for the kernel's end and then kills the rank (works everywhere, also
  when the kernel got SIGKILL);
* on Linux the kernel's operating system does it (PR_SET_PDEATHSIG): it reaches a rank that is
  stopped or holds the GIL,
  in which no thread of ours can run. The signal follows the chain kernel -> rank server -> rank.

Nor is what a rank started: data loaders' workers, other programs. A rank leads a process group of
its own, in which they are too, and the group is ended with the run. (If the kernel is killed by
SIGKILL, the rank's thread does that, as long as the rank runs. A program that makes itself a group
of its own, as daemons do, has left.)
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from multiprocessing import connection, current_process, parent_process

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask Linux to kill this process when the thread that started it ends; elsewhere nothing."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked
        os.kill(os.getpid(), signal.SIGKILL)


def lead_a_group() -> None:
    """In a rank: what it starts is its own, and it may start what it likes (multiprocessing lets a
    daemon, which a rank is to the kernel, have no children: no data loader would have workers)."""
    os.setpgid(0, 0)
    current_process()._config["daemon"] = False


def end_group(pid: int) -> None:
    """Kill a rank's group: what it started lives on in it when the rank itself is gone."""
    with contextlib.suppress(ProcessLookupError):  # nobody is left, or it does not lead one yet
        os.killpg(pid, signal.SIGKILL)


def watch_kernel() -> None:
    """In a rank: a thread that kills the rank and what it started once the kernel is gone."""
    sentinel = parent_process().sentinel

    def watch():
        connection.wait([sentinel])
        end_group(os.getpid())

    threading.Thread(target=watch, name="picolab-kernel-watch", daemon=True).start()
