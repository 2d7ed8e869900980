"""200 launches with faults, half of them in a real kernel: `python tests/benchmarks/soak.py
[--launches 200] [--seed 0] [--seconds 900]`.

Each draws a fault, a number of ranks, a culprit and a step from the seed. Asserted: the culprit is
named wherever it can be known, and never an innocent rank; an interrupt ends a run; afterwards no
process, open file, folder or memory is left (the slack is said beside each). How long a report and
an interrupt took is printed, not asserted. tests/distributed/launch/test_soak.py runs it weekly.
"""

import argparse
import collections
import gc
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

import picolab as pico

# What may be grown after all launches: allocators keep some, libraries are loaded once.
MORE_BYTES, MORE_FILES = 300e6, 3
TIMEOUT_S = 3.0
# A thread that printed in a kernel had a zmq socket of its own there; ipykernel closes those of
# threads that have ended every ten seconds.
CLOSES_EVERY_S = 15.0


def steps(fault, culprit, at):
    """A step is an all-reduce; at one of them the culprit does something else."""
    import torch
    import torch.distributed as dist

    mine = dist.get_rank() == culprit
    with tempfile.TemporaryFile() as file:
        file.write(b"x")
        for step in range(5):
            if mine and step == at:
                FAULTS[fault](torch, dist)
            size = 3 if mine and step == at and fault == "other size" else 2
            dist.all_reduce(torch.ones(size))
            if fault == "interrupt":
                time.sleep(0.2)
    return torch.ones(1000) if fault != "large" else torch.ones(3_000_000)


def _raise(torch, dist):
    raise ZeroDivisionError("on purpose")


def _spin(torch, dist):
    while True:
        time.sleep(0.01)


def _leave_a_child(torch, dist):
    subprocess.Popen(["sleep", "600"])


FAULTS = {
    "none": lambda torch, dist: None,
    "large": lambda torch, dist: None,
    "child": _leave_a_child,
    "raise": _raise,
    "exit": lambda torch, dist: sys.exit(3),
    "at once": lambda torch, dist: os._exit(4),
    "SIGKILL": lambda torch, dist: os.kill(os.getpid(), signal.SIGKILL),
    "SIGSEGV": lambda torch, dist: os.kill(os.getpid(), signal.SIGSEGV),
    "SIGSTOP": lambda torch, dist: os.kill(os.getpid(), signal.SIGSTOP),
    "silent": _spin,
    "other operation": lambda torch, dist: dist.broadcast(torch.ones(2), 0),
    "other size": lambda torch, dist: None,
    "many lines": lambda torch, dist: print("line\n" * 10_000),
    "interrupt": lambda torch, dist: None,
}
GOOD = ("none", "large", "child", "many lines")
# Two ranks contradict each other: of a mismatch neither can be told to be the wrong one.
NEEDS_THREE = ("other operation", "other size")


def one(draw: random.Random) -> tuple[str, str, float]:
    """One launch. Returns the fault, what is wrong with what was told ("" if nothing), and the
    seconds that it took."""
    fault = draw.choice(list(FAULTS))
    world = draw.randint(2, 4)
    culprit, at = draw.randrange(world), draw.randrange(5)
    began = time.monotonic()
    if fault == "interrupt":
        delay = draw.uniform(0.01, 0.8)
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
        began += delay
    told = "nothing"
    try:
        pico.run(steps, fault, culprit, at, world_size=world, timeout=TIMEOUT_S, quiet=True)
    except pico.RankFailure as failure:
        told = failure.rank
    except KeyboardInterrupt:
        told = "interrupt"
    seconds = time.monotonic() - began
    if fault in GOOD:
        right: tuple = ("nothing",)
    elif fault == "interrupt":
        right = ("interrupt",)
    elif fault in NEEDS_THREE and world == 2:
        right = (None, culprit)
    else:
        right = (culprit,)
    case = f"{fault}, {world} ranks, rank {culprit} at step {at}"
    return fault, "" if told in right else f"{case}: told {told}", seconds


def soak(launches: int, seed: int, limit_s: float) -> dict:
    """Raises AssertionError if something was told wrongly or left behind."""
    draw, began = random.Random(seed), time.monotonic()
    pico.run(steps, "large", 0, 0, world_size=2, quiet=True)  # what is loaded once is loaded
    me = psutil.Process()
    before = state(me)
    times, wrong = collections.defaultdict(list), []
    for _ in range(launches):
        if time.monotonic() - began > limit_s:
            break
        fault, problem, seconds = one(draw)
        times[fault].append(seconds)
        wrong += [problem] if problem else []
    time.sleep(0.5)
    after, until = state(me), time.monotonic() + CLOSES_EVERY_S
    while after["files"] > before["files"] + MORE_FILES and time.monotonic() < until:
        time.sleep(0.5)
        after = state(me)
    count, took = sum(map(len, times.values())), time.monotonic() - began
    print(f"{count} launches in {took:.0f} s; told wrongly: {len(wrong)}")
    for fault, seconds in sorted(times.items()):
        middle, most = statistics.median(seconds), max(seconds)
        print(f"  {fault:16} {len(seconds):3}   median {middle:5.2f} s   longest {most:5.2f} s")
    print(f"before {before}\nafter  {after}")
    assert not wrong, "\n".join(wrong)
    assert max(times["interrupt"], default=0) < 5, "an interrupt took long"
    assert after["processes"] <= before["processes"], "processes are left"
    assert after["files"] <= before["files"] + MORE_FILES, "open files are left"
    assert after["folders"] <= before["folders"], "folders of rendezvous are left"
    assert after["bytes"] <= before["bytes"] + MORE_BYTES, "memory is kept"
    return {fault: max(seconds) for fault, seconds in times.items()}


def state(me: psutil.Process) -> dict:
    gc.collect()
    folder = Path(tempfile.gettempdir())
    return {
        "processes": sum(p.status() != psutil.STATUS_ZOMBIE for p in me.children(recursive=True)),
        "files": me.num_fds(),
        "folders": len(list(folder.glob("picolab-rendezvous-*"))),
        "bytes": me.memory_info().rss,
    }


def in_a_kernel(launches: int, seed: int, limit_s: float) -> str:
    """The same in a cell of a real ipykernel; what it printed."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3")
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nimport soak\n"
    code += f"soak.soak({launches}, {seed}, {limit_s}); None"
    try:
        printed: list[str] = []
        reply = client.execute_interactive(
            code,
            timeout=limit_s + 120,
            output_hook=lambda message: printed.append(
                message["content"].get("text") or "\n".join(message["content"].get("traceback", []))
            ),
        )
        assert reply["content"]["status"] == "ok", "".join(printed)
        return "".join(printed)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--launches", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=900)
    given = parser.parse_args()
    half, each = given.launches // 2, given.seconds / 2
    # Whoever starts it in the background has interrupts ignored, and here they are what is tried.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print("as a script:")
    soak(half, given.seed, each)
    print("in a kernel:")
    print(in_a_kernel(given.launches - half, given.seed + 1, each))


if __name__ == "__main__":
    main()
