"""A rank that torchrun or Slurm started: `torchrun ... -m picolab.launch.worker RUN_DIR`.

It runs the payload that `export` wrote (see export.py). torchrun starts the processes, finds the
machines and makes the store; nothing of that is ours. Results and errors are written beside and
renamed, so that whoever collects them never reads half a file.
"""

import json
import os
import sys
import time
from pathlib import Path

from picolab.launch import payload as payloads
from picolab.launch import rundirs
from picolab.launch.rank import RankSpec, call, choose_backend, describe, recorded


def main(argv: list[str]) -> int:
    if len(argv) != 1 or not (Path(argv[0]) / "payload.pkl").is_file():
        place = argv[0] if argv else "RUN_DIR"
        print(f"there is no payload in {place}; write one with pico.launch.export", file=sys.stderr)
        return 2
    if "RANK" not in os.environ:
        print("start this with torchrun or srun, which say who is which rank", file=sys.stderr)
        return 2
    directory, rank = Path(argv[0]), int(os.environ["RANK"])
    world = int(os.environ["WORLD_SIZE"])
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    spec = RankSpec(rank, world, "auto", 0, directory)

    def send(kind, *values):
        if kind in ("backend", "warning"):
            print(*values, file=sys.stderr)

    try:
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        backend, why = choose_backend("auto", local, torch)
        if backend == "nccl":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if rank == 0:
            send("backend", f"backend {backend}: {why}")
            about = rundirs.describe(directory)
            rundirs.write(directory, {**about, "world_size": world, "started": time.time()})
        dist.init_process_group(backend)
        with recorded(spec, send):
            result = call(spec, payloads.unpack((directory / "payload.pkl").read_bytes()), send)
        _leave(directory / f"result.{rank}.pkl", result)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException as error:
        kind, what, text, _ = describe(error)
        record = {"rank": rank, "t": time.time(), "kind": kind, "what": what, "traceback": text}
        _leave(directory / f"error.{rank}.json", json.dumps(record).encode())
        print(text, file=sys.stderr, flush=True)
        os._exit(1)  # at once, so that peers fail instead of waiting
    return 0


def _leave(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}")
    beside.write_bytes(content)
    beside.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
