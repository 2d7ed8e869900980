"""torch's flight recorder: what a rank asked torch to do, also where no Python of ours was asked.

Each process group notes its collectives in a ring in C++ (on by default, some 4 us each), those
that DDP's reducer starts inside backward among them. Nobody reads it until a run stands still. Then
the launcher opens a named pipe on which a thread of the rank waits, and the thread writes the
newest entries into a file beside it. (A stopped rank, or one that holds the GIL, does not answer,
nor does torch note gloo's messages: the beacon, which the launcher reads itself, comes first.)

This module is the only one that knows torch's private names. What they give is made plain here:
gloo's entries have no state but `retired`, and ranks of a group are not among them."""

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from picolab.show.files import write_beside

KEPT = 20  # entries of a rank, the newest


def answer_on_demand(folder: Path, rank: int) -> None:
    """In a rank: a thread that sleeps until `ask` wakes it. Where the file system has no pipes,
    there is none, and nobody answers."""
    pipe = folder / f"ask.{rank}"
    try:
        os.mkfifo(pipe, 0o600)
    except OSError:
        return

    def wait() -> None:
        while True:
            try:
                with open(pipe, "rb") as asked:
                    asked.read()
                write_beside(folder / f"flight.{rank}", json.dumps(entries()), mode=0o600)
            except OSError:
                return  # the folder is gone, and the run with it

    threading.Thread(target=wait, name="picolab-flight", daemon=True).start()


def ask(folder: Path, ranks: Collection[int], patience: float) -> dict[int, list[dict[str, Any]]]:
    """Of each of these ranks that answers: its newest entries, oldest first."""
    waiting, found = set(), {}
    for rank in ranks:
        (folder / f"flight.{rank}").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it has no such pipe yet, or nobody listens
            os.close(os.open(folder / f"ask.{rank}", os.O_WRONLY | os.O_NONBLOCK))
            waiting.add(rank)
    until = time.monotonic() + patience
    while waiting and time.monotonic() < until:
        time.sleep(0.02)
        for rank in list(waiting):
            with contextlib.suppress(FileNotFoundError):
                found[rank] = json.loads((folder / f"flight.{rank}").read_bytes())
                waiting.remove(rank)
    return found


def entries() -> list[dict[str, Any]]:
    """In a rank: {group, ranks, number, op, shape, dtype, done} of the newest collectives. [] where
    this torch keeps none."""
    from torch._C import _distributed_c10d as c10d

    dump = getattr(c10d, "_dump_fr_trace_json", None) or getattr(
        c10d, "_dump_nccl_trace_json", None
    )
    if dump is None:
        return []
    ranks, found = _groups(), []
    for entry in json.loads(dump(True, False)).get("entries", []):
        name, about = entry["process_group"]
        sizes, dtypes = entry["input_sizes"], entry["input_dtypes"]
        found.append(
            {
                "group": "world" if about == "default_pg" else about.removeprefix("mesh_") or name,
                "ranks": ranks.get(name, []),
                "number": entry["collective_seq_id"],
                "op": entry["profiling_name"].split(":")[-1],
                "shape": str(sizes[0]) if sizes else "",
                "dtype": _dtype(dtypes[0]) if dtypes else "",
                "done": bool(entry["retired"]),
            }
        )
    return found[-KEPT:]


def _groups() -> dict[str, list[int]]:
    """name -> global ranks, of this rank's process groups."""
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    groups = list(distributed_c10d._world.pg_map)
    return {group.group_name: dist.get_process_group_ranks(group) for group in groups}


def _dtype(name: str) -> str:
    """ "Float" -> "float32", as torch's Python calls it."""
    known = {"Float": "float32", "Double": "float64", "Half": "float16", "Long": "int64",
             "Int": "int32", "Byte": "uint8"}  # fmt: skip
    return known.get(name, re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower())
