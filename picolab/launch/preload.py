"""Imported once by the rank server, so that every rank forked from it has torch ready.

The contents matter: the rooms that ranks use are named here, not imported by `launch`, which does
not know them. Half of the seconds are for what a first `pico.train` does not need: the first
optimizer of `torch.optim` imports `torch._dynamo` (seconds for four ranks to do it at once), a
checkpoint DCP. Where a reader watches, that is imported LATER, between two forks; in a script or a
headless notebook before the first one, since there nobody gains by it and a fork that comes in
between waits. The server must stay single-threaded (a lock held by another thread at the fork would
stay locked for ever in the rank), so nothing here computes, and a timer's signal, not a thread,
brings on the second part."""

import gc
import importlib
import os
import signal
import sys

from picolab.launch.orphans import die_with_parent

MODULES = (
    "torch",
    "torch.distributed",
    "torch.distributed.device_mesh",
    "picolab.launch.rank",
    "picolab.comm",
    "picolab.training.trainer",
    "picolab.training.result",
)
LATER = ("torch._dynamo", "picolab.training.checkpoint")
LATER_S = 8.0  # the first run has its first steps behind it


def load() -> None:
    # The kernel starts the server: when the kernel dies, even by SIGKILL, so does the server, and
    # with it its ranks.
    die_with_parent()
    # A rank that is asked for its stack before it can give one shall not die of the question.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # Newer Pythons give the kernel's path, in which "" is the folder of the moment: nothing there
    # is meant to be loaded here. (Ranks get the kernel's path when they begin.)
    sys.path[:] = [place for place in sys.path if place]
    _import(MODULES)
    if os.environ["_PICOLAB_RANK_SERVER"] != "watched":
        _import(LATER)
        return
    signal.signal(signal.SIGALRM, lambda *_: _import(LATER))
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGALRM, signal.SIG_DFL))
    signal.setitimer(signal.ITIMER_REAL, LATER_S)


def _import(names: tuple[str, ...]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            # Without torch there is nothing to warm; the run itself then says what to install.
            if name == "torch":
                break
    gc.collect()
    gc.freeze()  # ranks share these objects: their first collection would copy every page


# Only the server imports this module under this flag: a test or a tool that imports it starts
# nothing.
if os.environ.get("_PICOLAB_RANK_SERVER"):
    load()
