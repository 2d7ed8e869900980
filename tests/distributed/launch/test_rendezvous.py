"""Ranks find each other where nobody else can: no store listens, and its file is this user's only.

Wrong versions these catch: a store that listens on every interface (torch's own, which a test
opens in a rank), a folder that others may enter, an interface taken from the environment, a folder
left behind, a run whose folder another run takes for a leftover."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

import picolab as pico
from picolab.launch import rendezvous, server
from picolab.launch.rendezvous import Rendezvous

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def meet(open_a_store=False):
    """Say that the group is there, and stay until the job is stopped."""
    dist.all_reduce(torch.ones(1))
    store = dist.TCPStore("localhost", 0, is_master=True) if open_a_store else None
    pico.emit(ready=1)
    time.sleep(60)
    return store


@pytest.fixture
def job(request):
    given = getattr(request, "param", False)
    job = pico.run(meet, given, world_size=2, wait=False, quiet=True)
    while sum(event.kind == "values" for event in job.events) < 2:
        assert not job.done, job.result()
        time.sleep(0.02)
    yield job
    job.stop()


def listening(pid: int) -> list[tuple[str, int]]:
    connections = psutil.Process(pid).net_connections("inet")
    return [tuple(c.laddr) for c in connections if c.status == psutil.CONN_LISTEN]


def folder_of(job) -> Path:
    return job._collector._rendezvous.folder


@pytest.mark.parametrize("job", [False, True], indirect=True, ids=["", "mutant"])
def test_nothing_listens_but_gloos_own_sockets_on_loopback(job, request):
    """Mutant: a rank opens torch's usual store, which listens on every interface."""
    outward = [
        address
        for pid in job._collector.pids().values()
        for address in listening(pid)
        if address[0] not in LOOPBACK
    ]
    if "mutant" in request.node.name:
        assert outward
        return
    assert not outward
    for pid in job._collector.pids().values():
        assert len(listening(pid)) == 1  # gloo's
    if server.pid() is not None:
        assert not listening(server.pid())


def test_the_kernel_listens_no_more_than_before(job):
    during = set(listening(os.getpid()))
    job.stop()
    assert during <= set(listening(os.getpid()))


def test_the_stores_folder_is_this_users_only(job):
    about = folder_of(job).stat()
    assert stat.S_IMODE(about.st_mode) == 0o700 and about.st_uid == os.getuid()
    names = {path.name for path in folder_of(job).iterdir()}
    assert "store" in names and names <= {"store", "ask.0", "ask.1"}  # pipes to ask ranks by


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another account needs root")
def test_another_account_cannot_open_the_store(job):
    def as_nobody(*command):
        return subprocess.run(command, user=65534, group=65534, extra_groups=[]).returncode

    store = folder_of(job) / "store"
    assert store.stat().st_size > 0
    assert as_nobody("cat", store) and as_nobody("ls", folder_of(job))
    # Mutant: a folder as mkdir makes it.
    folder_of(job).chmod(0o755)
    assert not as_nobody("cmp", store, store) and not as_nobody("ls", folder_of(job))


def test_the_environment_cannot_turn_gloo_to_another_interface(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "picolab-none0")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "picolab-none0")

    def interfaces():
        dist.all_reduce(torch.ones(1))
        return os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]

    assert set(pico.run(interfaces, world_size=2)[0]) <= {"lo", "lo0"}


@pytest.fixture
def own_temporary_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_folder_goes_with_the_run_however_it_ends(own_temporary_folder):
    def ends(how):
        dist.all_reduce(torch.ones(1))
        if how == "raises" and dist.get_rank() == 1:
            raise ValueError("on purpose")
        if how == "is killed" and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hangs":
            time.sleep(60)

    pico.run(ends, "returns", world_size=2)
    for how in ("raises", "is killed", "hangs"):
        with pytest.raises(pico.RankFailure):
            pico.run(ends, how, world_size=2, timeout=1.5, quiet=True)
    job = pico.run(ends, "hangs", world_size=2, wait=False)
    while not list(own_temporary_folder.glob("*/store")):
        time.sleep(0.02)
    job.stop()
    assert not list(own_temporary_folder.iterdir())


def test_what_a_killed_kernel_left_goes_with_the_next_run(own_temporary_folder):
    def leave_one(make_old: bool) -> Path:
        code = "import time; from picolab.launch.rendezvous import Rendezvous as R; r = R()"
        process = subprocess.Popen(
            [sys.executable, "-c", f"{code}; print(r.folder, flush=True); time.sleep(60)"],
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "TMPDIR": str(own_temporary_folder),
                "PYTHONPATH": str(Path(pico.__file__).parents[1]),
            },
        )
        folder = Path(process.stdout.readline().strip())
        process.stdout.close()
        process.kill()
        process.wait()
        if make_old:
            os.utime(folder, (0, 0))
        return folder

    left, just_left = leave_one(True), leave_one(False)
    alive = Rendezvous()
    os.utime(alive.folder, (0, 0))  # a run of many days
    Rendezvous().close()
    assert not left.exists() and just_left.exists() and alive.folder.exists()
    # Mutant: an old folder is taken for a leftover without asking for its lock.
    os.close(alive._lock)
    rendezvous._remove_what_killed_kernels_left()
    assert not alive.folder.exists()


@pytest.mark.skipif(server.start_method() != "forkserver", reason="there is no server here")
@pytest.mark.skipif(sys.version_info < (3, 11, 1), reason="gh-97514: 3.11.0 used an open address")
def test_the_rank_servers_socket_is_this_users_only():
    pico.run(print, world_size=1)
    address = Path(server._server._forkserver._forkserver_address)
    assert address.is_socket() and stat.S_IMODE(address.parent.stat().st_mode) == 0o700
