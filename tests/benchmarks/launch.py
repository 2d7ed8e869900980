"""How long until four ranks have finished their first all-reduce: `python
tests/benchmarks/launch.py [--world 4] [--runs 5]`.

The same work (make a process group over gloo, one all-reduce) started by `pico.run`, by
`torch.multiprocessing.spawn` and by torchrun, in turn, within one run of this program. The time
is from the call to the end of the last rank's all-reduce. Prints medians and ratios, and how soon
a failing rank is reported; asserts nothing."""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import picolab as pico

SCRIPT = """
import json, os, sys, time
import torch, torch.distributed as dist
dist.init_process_group("gloo")
dist.all_reduce(torch.ones(1))
with open(os.path.join(sys.argv[1], os.environ["RANK"]), "w") as file:
    json.dump(time.time(), file)
dist.destroy_process_group()
"""


def first_all_reduce():
    import torch
    import torch.distributed as dist

    dist.all_reduce(torch.ones(1))
    return time.time()


def spawned(rank, world, port, folder):
    import torch
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    dist.all_reduce(torch.ones(1))
    (Path(folder) / str(rank)).write_text(json.dumps(time.time()))
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def by_run(world: int) -> float:
    start = time.time()
    return max(pico.run(first_all_reduce, world_size=world, quiet=True)) - start


def by_spawn(world: int) -> float:
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        start = time.time()
        mp.spawn(spawned, (world, free_port(), folder), nprocs=world)
        return max(json.loads(path.read_text()) for path in Path(folder).iterdir()) - start


def by_torchrun(world: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"
        script.write_text(SCRIPT)
        out = Path(folder) / "out"
        out.mkdir()
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(world), str(script), str(out)]
        start = time.time()
        subprocess.run(command, check=True, capture_output=True)
        return max(json.loads(path.read_text()) for path in out.iterdir()) - start


def report_delay() -> float:
    """Seconds from a rank's exception to the error in the caller."""

    def fails():
        import torch
        import torch.distributed as dist

        if dist.get_rank() == 1:
            pico.emit(at=time.time())
            raise ValueError("on purpose")
        dist.all_reduce(torch.ones(1))

    moments = []
    try:
        pico.run(
            fails, world_size=4, quiet=True, progress=lambda e: moments.append(e.data.get("at"))
        )
    except pico.RankFailure:
        return time.time() - next(m for m in moments if m)
    raise AssertionError("the run was meant to fail")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    cold = by_run(options.world)
    times = {"pico.run": [], "mp.spawn": [], "torchrun": []}
    for _ in range(options.runs):
        times["pico.run"].append(by_run(options.world))
        times["mp.spawn"].append(by_spawn(options.world))
        times["torchrun"].append(by_torchrun(options.world))
    ours = statistics.median(times["pico.run"])
    print(f"{options.world} ranks, from the call to the end of the first all-reduce:")
    print(f"  pico.run, first call of all (loads torch)  {cold:7.3f} s")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"  {name:<42} {median:7.3f} s   {median / ours:6.1f} x pico.run")
    print(f"  a rank's exception reported after          {report_delay():7.3f} s")


if __name__ == "__main__":
    main()
