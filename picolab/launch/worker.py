"""A rank that torchrun started: `torchrun ... -m picolab.launch.worker RUN_DIR`.

It runs the payload that `export` wrote (see export.py). torchrun starts the processes, finds the
machines and makes the store; nothing of that is ours. Results and errors are written beside and
renamed, so that whoever collects them never reads half a file.

`join` and `attributed` are for other ways into a rank (`torchrun ... -m picolab train`)."""

import contextlib
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

from picolab.launch import payload as payloads
from picolab.launch import rundirs
from picolab.launch.rank import (
    RankSpec,
    call,
    choose_backend,
    describe,
    loopback_interface,
    recorded,
)
from picolab.show.files import write_beside


def main(argv: list[str]) -> int:
    if len(argv) != 1 or not (Path(argv[0]) / "payload.pkl").is_file():
        place = argv[0] if argv else "RUN_DIR"
        print(f"there is no payload in {place}; write one with pico.launch.export", file=sys.stderr)
        return 2
    try:
        if not started():
            raise ValueError("start this with torchrun, which says who is which rank")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    directory, rank = Path(argv[0]), int(os.environ["RANK"])
    world = int(os.environ["WORLD_SIZE"])

    def send(kind, *values):
        if kind == "warning":
            print(*values, file=sys.stderr)

    with attributed(directory, rank):
        import torch.distributed as dist

        join()
        if rank == 0:
            about = rundirs.describe(directory)
            rundirs.write(directory, {**about, "world_size": world, "started": time.time()})
        named = [secrets.token_hex(6)]
        dist.broadcast_object_list(named, src=0)
        spec = RankSpec(rank, world, "auto", directory, run=named[0])
        with recorded(spec, send):
            result = call(
                spec, payloads.unpack(rundirs.read_pickle(directory / "payload.pkl")), send
            )
        write_beside(directory / f"result.{rank}.pkl", result, mode=0o600)
        dist.barrier()
        dist.destroy_process_group()
    return 0


SET_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def started(environment: Mapping[str, str] = os.environ) -> bool:
    """Is this process one of several that torchrun started? ValueError, naming the variable, where
    the environment says half of it, or what cannot be."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "")
    claims = [name for name in SET_BY_TORCHRUN[:2] if name in environment]
    if not claims:
        if tasks.isdigit() and int(tasks) > 1:
            raise ValueError(
                f"SLURM_STEP_NUM_TASKS says that srun started this {tasks} times, and nothing says "
                "where the ranks meet; let it start one torchrun on each node: srun "
                "--ntasks-per-node 1 torchrun --nnodes N --rdzv-backend c10d ... -m picolab train"
            )
        return False
    cure = "start it with torchrun, or take away what a launcher left: unset " + " ".join(claims)
    for name in SET_BY_TORCHRUN:
        if not environment.get(name, "").strip():
            how = "is empty" if name in environment else "is not set"
            raise ValueError(f"{claims[0]} is set as for a rank, and {name} {how}; {cure}")
    rank, world, port = (environment[name] for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    if not (rank.isdigit() and world.isdigit() and int(rank) < int(world)):
        raise ValueError(f"RANK is {rank!r} and WORLD_SIZE {world!r}, which no rank has; {cure}")
    try:
        socket.getaddrinfo(environment["MASTER_ADDR"], int(port))
    except (OSError, ValueError, OverflowError) as error:
        raise ValueError(
            f"MASTER_ADDR is {environment['MASTER_ADDR']!r} and MASTER_PORT {port!r}, where no "
            f"machine can be found ({error}); {cure}"
        ) from None
    interface = environment.get("GLOO_SOCKET_IFNAME", "")
    unknown = {*filter(None, interface.split(","))} - {name for _, name in socket.if_nameindex()}
    if unknown:
        raise ValueError(
            f"GLOO_SOCKET_IFNAME is {interface!r}, and this machine has no interface "
            f"{min(unknown)!r}; name one that it has, or unset GLOO_SOCKET_IFNAME"
        )
    return True


def join(backend: str = "auto", timeout_s: float | None = None) -> None:
    """Make the process group of the ranks that torchrun started. Rank 0 says which backend, and
    why.

    timeout_s: how long a collective may wait for its peers; None: torch's own. ValueError for a
    backend that this machine cannot run."""
    import torch
    import torch.distributed as dist

    world = int(os.environ["WORLD_SIZE"])
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if local == world:  # all on this machine: nobody outside has business with these ranks
        os.environ["GLOO_SOCKET_IFNAME"] = loopback_interface()
    torch.set_num_threads(1)
    chosen, why = choose_backend(backend, local, torch)
    if chosen == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if os.environ["RANK"] == "0":
        print(f"backend {chosen}{f': {why}' if why else ''}", file=sys.stderr)
    settings = {} if timeout_s is None else {"timeout": timedelta(seconds=timeout_s)}
    dist.init_process_group(chosen, **settings)


@contextlib.contextmanager
def attributed(directory: Path, rank: int) -> Iterator[None]:
    """What fails inside is left in the run directory, as `collect` reads it, and printed; the
    process ends at once, so that its peers fail instead of waiting."""
    try:
        yield
    except BaseException as error:
        kind, what, text, _ = describe(error)
        record = {"rank": rank, "t": time.time(), "kind": kind, "what": what, "traceback": text}
        write_beside(directory / f"error.{rank}.json", json.dumps(record), mode=0o600)
        print(text, file=sys.stderr, flush=True)
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
