"""`pico.run`: what a function is given, what comes back, and what ranks print.

Wrong versions these catch: a launcher that imports the main script again in each rank, one that
loses C output or the order of lines, one that forks from a cold server, and one whose server has
threads (a fork would then deadlock)."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

import picolab as pico
from picolab.launch import World, server
from picolab.monitoring import history

MODULE_GLOBAL = 17


def test_each_rank_returns_its_own_value_and_sees_its_arguments():
    def square(x, *, plus):
        return dist.get_rank(), x * x + plus, MODULE_GLOBAL

    result = pico.run(square, 3, plus=1, world_size=3)
    assert list(result) == [(0, 10, 17), (1, 10, 17), (2, 10, 17)]
    assert result[2] == (2, 10, 17) and result.world_size == 3 and result.seconds > 0
    assert (result.run_dir / "run.json").exists()


def test_torch_distributed_is_ready_and_one_rank_is_a_world_too():
    def total():
        x = torch.tensor([dist.get_rank() + 1.0])
        dist.all_reduce(x)
        return x.item(), os.environ["RANK"], os.environ["WORLD_SIZE"]

    assert list(pico.run(total, world_size=4)) == [(10.0, str(r), "4") for r in range(4)]
    assert list(pico.run(total, world_size=1)) == [(1.0, "0", "1")]


def test_the_kernels_environment_of_now_reaches_the_ranks(monkeypatch):
    monkeypatch.setenv("PICOLAB_TEST_VALUE", "set after the server started")
    result = pico.run(lambda: os.environ.get("PICOLAB_TEST_VALUE"), world_size=2)
    assert list(result) == ["set after the server started"] * 2


def test_what_ranks_print_is_labelled_whole_and_in_order(capfd):
    def talk():
        import ctypes

        rank = dist.get_rank()
        print("one", rank)
        ctypes.CDLL(None).puts(b"two, from C")
        print("three", "with", "parts")
        os.write(1, b"four, from the file descriptor\n")
        print("five, to stderr", file=sys.stderr)
        print("six, without an end", end="")

    result = pico.run(talk, world_size=2)
    shown = capfd.readouterr().out.splitlines()
    for rank in (0, 1):
        lines = [line.removeprefix(f"[{rank}] ") for line in shown if line.startswith(f"[{rank}]")]
        assert lines == [
            f"one {rank}",
            "two, from C",
            "three with parts",
            "four, from the file descriptor",
            "five, to stderr",
            "six, without an end",
        ]
        whole = (result.run_dir / f"rank.{rank}.log").read_text()
        assert whole.splitlines() == lines


def test_a_flood_of_output_is_bounded_in_the_display_and_whole_on_disk(capfd):
    def flood():
        for i in range(5_000):
            print("line", i)

    result = pico.run(flood, world_size=2)
    out = capfd.readouterr().out
    assert out.count("\n") < 400 and "9700 more lines" in out
    for rank in (0, 1):
        assert len((result.run_dir / f"rank.{rank}.log").read_text().splitlines()) == 5_000


def test_events_arrive_in_the_result_and_in_the_run_directory():
    def speak():
        for step in range(3):
            pico.emit(step=step, loss=1.0 / (step + 1))

    result = pico.run(speak, world_size=2)
    values = [(e.rank, e.data["step"]) for e in result.events if e.kind == "values"]
    assert sorted(values) == [(r, s) for r in (0, 1) for s in range(3)]
    assert len(list(history.History.read(result.run_dir))) == 6
    pico.emit(loss=1.0)  # outside a rank: nothing happens


def talk(steps):
    """In each step two collectives of one kind and one of another, and a word about it."""
    ledger = pico.comm.ledger()
    for step in range(steps):
        ledger.step = step
        for size in (10, 20):
            pico.comm.all_reduce(torch.ones(size), "world", "twice")
        pico.comm.broadcast(torch.ones(step + 1), "world", "once")
        ledger.flush()
        pico.emit(step=step, loss=float(step))
    ledger.step = None


def assert_whole(result, steps):
    by_rank = result.ledger.by("rank", "reason")
    growing = 4 * steps * (steps + 1) // 2
    for rank in (0, 1):
        assert by_rank[rank, "twice"][:2] == (2 * steps, steps * 120)
        assert by_rank[rank, "once"][:2] == (steps, growing)
        assert result.ledger.rank(rank).step(3).total(reason="once").payload_bytes == 16
    values = [(e.rank, e.data["step"]) for e in result.events if e.kind == "values"]
    assert sorted(values) == [(r, s) for r in (0, 1) for s in range(steps)]
    assert len(pico.dashboard(result).state.losses) == steps


def test_a_long_run_is_whole_though_the_kernel_keeps_its_end_only(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "KEPT", 200)
    for _ in range(2):  # the second run finds the events of the first in the directory
        result = pico.run(talk, 100, world_size=2, quiet=True, run_dir=tmp_path)
        assert result.events.older > len(result.events) // 2
        assert_whole(result, 100)
    with World(2, quiet=True) as world:
        for _ in range(2):  # the events of a call are those of no other
            result = world.run(talk, 100)
            assert result.events.older and len(result.events) < 410
            assert_whole(result, 100)
        assert len(world.job.events) >= 800


def test_raw_calls_of_torch_distributed_are_in_the_ledger():
    def raw():
        dist.all_reduce(torch.ones(10))
        work = dist.all_reduce(torch.ones(5, dtype=torch.float64), async_op=True)
        work.wait()
        peer = 1 - dist.get_rank()
        incoming = torch.empty(3)
        operations = [
            dist.P2POp(dist.isend, torch.ones(3), peer),
            dist.P2POp(dist.irecv, incoming, peer),
        ]
        for request in dist.batch_isend_irecv(operations):
            request.wait()
        return incoming.sum().item()

    result = pico.run(raw, world_size=2)
    assert list(result) == [3.0, 3.0]
    mine = result.ledger.rank(0)
    assert [(e.op, e.payload_bytes) for e in mine] == [
        ("all_reduce", 40),
        ("all_reduce", 40),
        ("send", 12),
        ("recv", 12),
    ]


def test_ranks_come_from_a_warm_single_threaded_server():
    def look():
        import sys

        names = {"torch", "picolab.training.trainer", "torch._dynamo"}
        return sorted(names & set(sys.modules))

    assert {"torch", "picolab.training.trainer"} <= set(pico.run(look, world_size=2)[0])
    if server.start_method() == "forkserver":
        deadline = time.monotonic() + 90  # what is loaded once the first run is under way
        while "torch._dynamo" not in pico.run(look, world_size=2)[0]:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert psutil.Process(server.pid()).num_threads() == 1


def test_a_script_without_a_main_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import picolab as pico
            print("the script runs")
            def double(x): return 2 * x
            print(list(pico.run(double, 21, world_size=2, quiet=True)))
            """
        )
    )
    root = Path(pico.__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.stdout.splitlines() == ["the script runs", "[42, 42]"], done.stderr


def test_large_results_come_back_whole():
    result = pico.run(lambda: torch.arange(2_000_000.0), world_size=2)
    assert torch.equal(result[1], torch.arange(2_000_000.0))


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"world_size": 0}, "world_size must be a whole number of ranks, 1 or more, not 0"),
        ({"world_size": 2.5}, "world_size must be a whole number"),
        ({"world_size": 100_000}, "more processes than"),
        ({"backend": "mpi"}, "backend must be 'auto', 'gloo' or 'nccl'"),
        ({"timeout": 0}, "timeout is seconds without progress"),
    ],
)
def test_arguments_that_cannot_work_get_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        pico.run(print, **arguments)
    with pytest.raises(ValueError, match="must be a function"):
        pico.run("not a function")


def test_what_cannot_be_sent_is_named():
    handle = threading.Lock()  # an object that no pickle can carry

    def uses_it():
        return handle.locked()

    with pytest.raises(ValueError, match=r"the function cannot be sent .* It uses 'handle'"):
        pico.run(uses_it)
    with pytest.raises(ValueError, match="argument 2 cannot be sent"):
        pico.run(print, 1, handle)


def test_a_module_of_a_class_of_its_own_travels_by_name():
    """`torch.distributed.config` is such a module, and cloudpickle takes it for a submodule in
    use.
    """

    class Settings:
        config = 5

    def mentions_both():
        return dist.get_rank() + Settings.config

    assert list(pico.run(mentions_both, world_size=2)) == [5, 6]


def test_a_rank_cannot_start_ranks():
    def nested():
        try:
            pico.run(print)
        except ValueError as error:
            return str(error)

    assert "already a rank" in pico.run(nested, world_size=1)[0]


@pytest.mark.skipif(
    torch.cuda.device_count() >= 2, reason="there are GPUs: NCCL would be the right answer"
)
def test_nccl_without_gpus_is_refused_with_a_sentence():
    with pytest.raises(pico.RankFailure, match="needs a GPU for each of the 2 ranks"):
        pico.run(print, backend="nccl")


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="renaming the host needs root on Linux"
)
def test_an_unresolvable_host_name_does_not_matter():
    """VPNs and company laptops: the host's name may resolve to nothing. Loopback is used whatever
    it is.
    """
    code = (
        "import torch, torch.distributed as dist, picolab as pico\n"
        "def f():\n"
        "    x = torch.ones(1); dist.all_reduce(x); return x.item()\n"
        "print(list(pico.run(f, world_size=2, quiet=True)))"
    )
    command = ["unshare", "--uts", "sh", "-c", 'hostname no-such-host.invalid && exec "$@"', "sh"]
    done = subprocess.run(
        [*command, sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip("this container may not rename its host")
    assert done.stdout.strip() == "[2.0, 2.0]", done.stderr
