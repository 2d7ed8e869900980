"""Imported once by the rank server, so that every rank forked from it has torch ready.

The order matters little, the contents much: the first AdamW imports `torch._dynamo` (seconds for
four ranks to do it at once), and the rooms that ranks use are named here, not imported by
`launch`, which does not know them. The server must stay single-threaded (a lock held by another
thread at the fork would stay locked for ever in the rank), so nothing here computes."""

import gc
import importlib
import os

from picolab.launch.orphans import die_with_parent

MODULES = (
    "torch",
    "torch.distributed",
    "torch.distributed.device_mesh",
    "torch._dynamo",
    "picolab.launch.rank",
    "picolab.comm",
    "picolab.training.trainer",
    "picolab.training.result",
)


def load() -> None:
    # The kernel starts the server: when the kernel dies, even by SIGKILL, so does the server, and
    # with it its ranks.
    die_with_parent()
    for name in MODULES:
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
if os.environ.get("_PICOLAB_RANK_SERVER") == "1":
    load()
