"""A rank forked from the warm server begins as a fresh process of the kernel would.

Wrong versions these catch: ranks that share the server's random state (a step without its
all-reduce then looks right), an environment that only grows, a rank in the folder, with the limits
or the path of a kernel of ten minutes ago, descriptors that pile up from run to run."""

import locale
import os
import resource
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy
import pytest
import torch
import torch.distributed as dist

import picolab as pico
from picolab.launch import server

forked = pytest.mark.skipif(
    server.start_method() != "forkserver", reason="ranks are fresh processes here"
)


def in_a_kernel_with(patch: str, code: str, folder: Path) -> str:
    """What a script prints whose rank server was changed by `patch` before it forks."""
    (folder / "patched.py").write_text(textwrap.dedent(patch))
    (folder / "script.py").write_text(
        "import picolab as pico\n"
        "from picolab.launch import server\n"
        "names = ['picolab.launch.preload', 'patched']\n"
        "server._server._forkserver.set_forkserver_preload(names)\n" + textwrap.dedent(code)
    )
    places = [str(Path(pico.__file__).parents[1]), str(folder)]
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def draws():
    import random

    return torch.rand(1).item(), numpy.random.rand(), random.random()


def test_ranks_and_runs_draw_different_numbers():
    found = [draw for _ in range(2) for draw in pico.run(draws, world_size=2)]
    for library in zip(*found):
        assert len(set(library)) == 4


def one_step_without_all_reduce():
    """A data-parallel step whose author forgot the all-reduce. Do the replicas agree?"""
    model = torch.nn.Linear(4, 4)
    model(torch.randn(8, 4)).square().mean().backward()
    with torch.no_grad():
        model.weight -= 0.1 * model.weight.grad
    both = [torch.empty_like(model.weight) for _ in range(dist.get_world_size())]
    dist.all_gather(both, model.weight.detach())
    return all(torch.equal(both[0], other) for other in both)


def test_replicas_of_a_step_without_its_all_reduce_do_not_agree():
    assert list(pico.run(one_step_without_all_reduce, world_size=2)) == [False, False]


@forked
def test_without_new_random_state_all_ranks_draw_the_same(tmp_path):
    """Mutant: the server's state is kept."""
    output = in_a_kernel_with(
        "import picolab.launch.rank as rank\nrank.draw_anew = lambda: None",
        f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_surroundings import draws, one_step_without_all_reduce as step
        (a, b, _), (c, d, _) = pico.run(draws, quiet=True)
        (e, f, _), _ = pico.run(draws, quiet=True)
        print(a == c == e, b == d == f, *pico.run(step, quiet=True))
        """,
        tmp_path,
    )
    assert output.splitlines()[-1] == "True True True True"


def test_a_seed_in_the_function_is_a_seed():
    def seeded():
        import random

        torch.manual_seed(5), numpy.random.seed(5), random.seed(5)
        return draws()

    first, second = pico.run(seeded, world_size=2)
    assert first == second == seeded()


SET_BY_THE_LAUNCHER = {
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "OMP_NUM_THREADS"),
}


def test_the_environment_is_the_kernels_of_now(monkeypatch):
    for name in ("PICOLAB_TEST_KEPT", "PICOLAB_TEST_CHANGED", "PICOLAB_TEST_DELETED"):
        os.environ[name] = "first"
    server._server._forkserver._stop()  # the next server is started with all three
    environment = pico.run(lambda: dict(os.environ), world_size=1)[0]
    assert environment["PICOLAB_TEST_DELETED"] == "first"

    os.environ["PICOLAB_TEST_CHANGED"] = "second"
    del os.environ["PICOLAB_TEST_DELETED"]
    environment = pico.run(lambda: dict(os.environ), world_size=1)[0]
    expected = dict(os.environ)
    for name in SET_BY_THE_LAUNCHER:
        environment.pop(name, None), expected.pop(name, None)
    assert environment == expected
    for name in ("PICOLAB_TEST_KEPT", "PICOLAB_TEST_CHANGED"):
        del os.environ[name]


@forked
def test_an_environment_that_only_grows_is_seen(tmp_path):
    """Mutant: the kernel's variables are laid over the server's."""
    output = in_a_kernel_with(
        "import os\nos.environ.clear = lambda: None",
        """
        import os
        os.environ["GOES"] = "here"
        server.warm()
        del os.environ["GOES"]
        print(pico.run(lambda: os.environ.get("GOES"), world_size=1, quiet=True)[0])
        """,
        tmp_path,
    )
    assert output.splitlines()[-1] == "here"


def test_folder_umask_limits_cores_and_names_are_the_kernels_of_now(tmp_path, monkeypatch):
    def look():
        import time

        mask = os.umask(0)
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
        files = resource.getrlimit(resource.RLIMIT_NOFILE)
        hour = time.localtime(0).tm_hour
        return os.getcwd(), mask, files, cores, sys.path, sys.argv, hour

    pico.run(print, world_size=1, quiet=True)  # a server that has seen nothing of what follows
    mask, limits = os.umask(0o027), resource.getrlimit(resource.RLIMIT_NOFILE)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    one = {min(cores)} if cores else None
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    monkeypatch.setattr(sys, "argv", ["chapter", "--fast"])
    monkeypatch.setenv("TZ", "UTC-5")
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[0] - 1, limits[1]))
    try:
        if cores:
            os.sched_setaffinity(0, one)
        found = pico.run(look, world_size=2)
    finally:
        os.umask(mask)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        if cores:
            os.sched_setaffinity(0, cores)
    files = (limits[0] - 1, limits[1])
    expected = (str(tmp_path), 0o027, files, one, sys.path, ["chapter", "--fast"], 5)
    assert list(found) == [expected] * 2


def test_a_folder_that_is_gone_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    with pytest.raises(ValueError, match=r"working directory .* removed, .*os\.chdir"):
        pico.run(print, world_size=1)


def test_what_is_the_notebooks_own_does_not_reach_the_ranks():
    def look():
        with warnings.catch_warnings(record=True) as spoken:
            warnings.warn("not an error in a rank", UserWarning, stacklevel=1)
        return (
            len(spoken),
            locale.setlocale(locale.LC_NUMERIC),
            signal.getsignal(signal.SIGTERM),
            signal.getsignal(signal.SIGCHLD),
            signal.pthread_sigmask(signal.SIG_BLOCK, []),
            sys.getrecursionlimit(),
            torch.get_num_threads(),
            torch.get_default_dtype(),
            os.read(0, 1),
        )

    threads, recursion = torch.get_num_threads(), sys.getrecursionlimit()
    old = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        sys.setrecursionlimit(recursion + 1000)
        torch.set_num_threads(2)
        torch.set_default_dtype(torch.float64)
        locale.setlocale(locale.LC_NUMERIC, "C.UTF-8")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = pico.run(look, world_size=2)
            again = pico.run(look, world_size=2)  # a warning was said, and is said again
    finally:
        signal.signal(signal.SIGTERM, old)
        sys.setrecursionlimit(recursion)
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
        locale.setlocale(locale.LC_NUMERIC, "C")
    default = signal.SIG_DFL
    expected = (1, "C", default, default, set(), 1000, 1, torch.float32, b"")
    assert list(found) == list(again) == [expected] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_file_of_the_kernel_or_of_an_earlier_run_is_open_in_a_rank(tmp_path):
    def table():
        opened = {}
        for name in os.listdir("/proc/self/fd"):
            try:
                opened[int(name)] = os.readlink(f"/proc/self/fd/{name}")
            except FileNotFoundError:
                continue  # the listing's own
        return opened

    with open(tmp_path / "the kernel's", "w"):
        runs = [pico.run(table, world_size=2) for _ in range(4)]
    for run in runs:
        files = [name for name in run[1].values() if name.startswith("/")]
        own = str(run.run_dir)
        assert all(name.startswith(own) or name == "/dev/null" for name in files), files
    sizes = [len(run[1]) for run in runs]
    assert max(sizes) < 40 and sizes[-1] <= sizes[0]
